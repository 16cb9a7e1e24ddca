"""Songs on disk become batches of ACE-Step 1.5 and a falling loss, through the ordinary data code."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from acestep_mlx import families
from acestep_mlx.config import run
from acestep_mlx.data.batches import Batches
from acestep_mlx.data.encode import encode_dataset
from acestep_mlx.data.manifest import build_manifest
from acestep_mlx.families.protocol import Variant
from acestep_mlx.families.v15 import ACEStep15
from acestep_mlx.lora.surgery import LoRASpec, adapter_modules, inject
from acestep_mlx.training.evaluation import Evaluation
from acestep_mlx.training.optimizers import Group, Schedule, make_optimizer
from acestep_mlx.training.step import StepSettings, TrainStep

from ..data.songs import config, song
from . import v15


class Unreleased(ACEStep15):
    """With a flavour, which the registry does not have yet."""

    variants = {"v15-test": Variant("nobody/v15", 0.0)}  # noqa: RUF012


FAMILY = Unreleased()


class Ear:
    """In the autoencoder's place: eight sums of a frame's samples, of the size of latents."""

    def encode(self, sound: mx.array, progress: Any = None) -> tuple[mx.array, mx.array]:
        mean = sound.reshape(len(sound), -1, 8, 480).sum(axis=-1) / 10
        return mean, mx.full(mean.shape, 0.1)


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Any]:
    """Configuration and caches of two songs, one of them with lyrics."""
    monkeypatch.setitem(families.REGISTRY, "v15", __name__)
    flavour = run.OPTIONS["model_flavour"]
    monkeypatch.setitem(run.OPTIONS, "model_flavour", replace(flavour, choices=("base", "v15-test")))
    (tmp_path / "songs").mkdir()
    song(tmp_path / "songs", "a", 1.0, caption="pop\nrock", lyrics="[verse]\nla")
    song(tmp_path / "songs", "b", 1.4, caption="jazz")
    given = config(
        tmp_path, {"audio": {"duration_interval": 2}}, model_flavour="v15-test", train_batch_size=2,
        caption_dropout_probability=0.2,
    )  # fmt: skip
    folder: Any = v15.Folder(tmp_path, vae=Ear())
    return given, encode_dataset(build_manifest(given), given, folder)


@pytest.mark.slow
def test_it_learns_two_songs(data: tuple[Any, Any]) -> None:
    given, cache = data
    model = v15.transformer()
    inject(model, LoRASpec(rank=8, alpha=8.0, targets=FAMILY.lora.default_targets))
    for layer in adapter_modules(model).values():
        layer.train()
    trained = [path for path, _ in tree_flatten(model.trainable_parameters())]
    group = Group("lora", make_optimizer("adamw", 2e-2), Schedule("constant", 2e-2, 0, 1), trained)
    objective, prepare = FAMILY.objective(given), FAMILY.prepare(model)
    step = TrainStep(model, [group], StepSettings(), objective, prepare=prepare)
    batches = Batches(cache, given)
    evaluation = Evaluation(model, batches.evaluation(2), objective, mx.float32, prepare)
    before = evaluation()
    losses = [step(_arrays(batches.next()), update=True, step=i).loss.item() for i in range(20)]
    after = evaluation()
    batches.close()
    assert before is not None and after is not None and evaluation() == after, "nothing is left to chance"
    assert np.isfinite(losses).all() and after[0] < 0.9 * before[0]
    assert step.traces <= 2


def test_what_a_batch_is(data: tuple[Any, Any]) -> None:
    given, cache = data
    batches = Batches(cache, given)
    batch = batches.next()
    batches.close()
    names = {"mean", "std", "source", "latent_mask", "states", "states_mask"}
    assert names | {"keys"} == set(_arrays(batch))
    assert batch["mean"].shape == (2, 50, 8), "two seconds"
    frames = dict(zip(batch["ids"], batch["latent_mask"].sum(axis=1).tolist(), strict=True))
    assert {name.rsplit("/")[-1]: n for name, n in frames.items()} == {"a.wav": 25, "b.wav": 35}


def _arrays(batch: dict[str, Any]) -> dict[str, mx.array]:
    return {name: value for name, value in batch.items() if isinstance(value, mx.array)}
