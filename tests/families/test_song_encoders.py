"""What encodes songs takes no more weights than it uses, and its estimate counts those."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_map_with_path

from acestep_mlx.families.model_folder import ModelFolder, parameters_of
from acestep_mlx.families.songs import Arrays, Words

WORDS = Words("slow jazz", "[verse]\nla la la", 1.0, "en")


def encoded(folder: ModelFolder) -> Arrays:
    sound = np.random.default_rng(0).uniform(-0.5, 0.5, (48000, 2)).astype(np.float32)
    arrays: Arrays = {}
    for kind, one in folder.family.encoders._asdict().items():
        arrays |= one(folder).encode(sound if kind == "latents" else WORDS).arrays
    return arrays


@pytest.fixture(params=["tiny_model", "tiny_model_v15"])
def folder(request: pytest.FixtureRequest) -> ModelFolder:
    return ModelFolder.open(request.getfixturevalue(request.param))


def test_weights_that_are_left_out_are_not_used(folder: ModelFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    expected, load = encoded(folder), ModelFolder.load

    def without_the_rest(self: ModelFolder, *args: Any, used: tuple[str, ...], **more: Any) -> nn.Module:
        module = load(self, *args, used=used, **more)

        def kept(path: str, value: mx.array) -> mx.array:
            return value if path.startswith(used) else mx.full(value.shape, mx.nan, value.dtype)

        return module.update(tree_map_with_path(kept, module.parameters()))

    monkeypatch.setattr(ModelFolder, "load", without_the_rest)
    found = encoded(folder)
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert np.array_equal(found[name], array), name


def test_no_memory_is_taken_for_them(tiny_model: Path) -> None:
    folder = ModelFolder.open(tiny_model)
    whole = sum(value.nbytes for value in parameters_of(folder.load("dcae")).values())
    mx.synchronize()
    before = mx.get_active_memory()
    module = folder.load("dcae", used=("encoder.",))
    taken = mx.get_active_memory() - before
    used = sum(v.nbytes for path, v in parameters_of(module).items() if path.startswith("encoder."))
    assert used <= taken < 0.6 * whole
    assert np.isfinite(np.array(parameters_of(module)["decoder.conv_in.weight"])).all()  # read now
