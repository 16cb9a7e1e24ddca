"""What encodes songs takes no more weights than it uses, and its estimate counts those."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_map_with_path

from acestep_mlx.config.read_run import load_config
from acestep_mlx.families import families
from acestep_mlx.families.model_folder import ModelFolder, parameters_of
from acestep_mlx.families.songs import Arrays, Words
from acestep_mlx.training.memory import FIXED, encoding, verdict, worst

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


@pytest.mark.slow
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


def test_the_estimate_is_of_the_encoder_that_takes_most() -> None:
    """v1's hears a long song, and 1.5's reads the captions: a network of 0.6 billion parameters."""
    v1, v15 = ({seconds: encoding(one, seconds) / 1e9 for seconds in (60, 240)} for one in families())
    assert 1.9 < v1[60] < v1[240] < 2.6
    assert v15[60] == v15[240] and 3.2 < v15[60] < 3.6


def test_a_miniature_s_is_small(folder: ModelFolder) -> None:
    assert 0 < encoding(folder.family, 60, folder) - FIXED < 0.1e9


def test_a_run_needs_what_its_songs_take_where_that_is_more_than_a_step() -> None:
    config = load_config({"base_model_precision": "int4-quanto"})
    step = worst(config).estimate.total
    assert worst(config).need == worst(config, encoding=step / 2).need == step
    assert worst(config, encoding=2 * step).need == 2 * step
    beside = worst(config, encoding=1e9, ondemand=True)
    assert (
        beside.encoding
        == 1e9
        + worst(config).estimate.parts["base weights"]
        + (worst(config).estimate.parts["LoRA and optimizer"])
    )
    assert any(line.startswith("while songs are encoded") for line in verdict(config, encoding=1e9))
    assert not any("encoded, before" in line for line in verdict(config))
