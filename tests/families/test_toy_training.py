"""A made-up family from outside the package goes through the ordinary training loop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from acestep_mlx.config.read_run import load_config
from acestep_mlx.convert.converter import convert
from acestep_mlx.errors import ConfigError
from acestep_mlx.lora.formats.read import read_lora
from acestep_mlx.report.events import Evaluated, StepDone
from acestep_mlx.training.interrupts import StopRequest
from acestep_mlx.training.memory import verdict
from acestep_mlx.training.preflight import preflight
from acestep_mlx.training.run import train
from acestep_mlx.training.step import TrainStep

from ..training import runs
from . import toy
from .toy_checkpoint import write_checkpoint


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    toy.registered(monkeypatch)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    write_checkpoint(tmp_path / "checkpoint")
    convert(tmp_path / "checkpoint", tmp_path / "model")
    return tmp_path / "model"


def options(root: Path, model: Path, name: str, **others: object) -> dict[str, object]:
    given = {"model_flavour": "toy", "train_batch_size": 2, "learning_rate": 3e-2, "max_train_steps": 60}
    return runs.configuration(root, model, name, **{**given, **others})


def test_it_trains_evaluates_and_exports(model: Path, tmp_path: Path) -> None:
    result, seen = runs.run(
        options(tmp_path, model, "run", eval_loss_disable=False, eval_steps_interval=30, lora_rank=4)
    )
    assert result.finished and result.step == 60
    losses = [event.loss for event in seen.of(StepDone)]
    assert np.mean(losses[-10:]) < 0.8 * np.mean(losses[:10])
    first, last = (event.loss for event in seen.of(Evaluated)[:: max(1, len(seen.of(Evaluated)) - 1)])
    assert last < first
    lora = read_lora(result.lora)
    assert lora.family is toy.FAMILY and sorted(lora.modules) == ["layers.0", "layers.1"] and lora.is_trained
    assert result.report is not None and result.report.is_file()


@pytest.mark.slow
def test_it_goes_on_bit_for_bit(model: Path, tmp_path: Path) -> None:
    straight, _ = runs.run(options(tmp_path, model, "straight", max_train_steps=6, lora_dropout=0.2))
    stop = StopRequest()

    def after_three(event: object) -> None:
        if isinstance(event, StepDone) and event.step == 3:
            stop.request()

    given = options(tmp_path, model, "parts", max_train_steps=6, lora_dropout=0.2)
    first = train(given, on_event=after_three, stop=stop)
    assert not first.finished and first.step < 6
    second, _ = runs.run({**given, "resume_from_checkpoint": "latest"})
    ours, theirs = (mx.load(str(result.lora)) for result in (second, straight))
    assert ours.keys() == theirs.keys() and all(mx.array_equal(ours[k], theirs[k]).item() for k in ours)


@pytest.mark.slow
@pytest.mark.parametrize("after", [3, 5, 8])
def test_it_goes_on_in_the_middle_of_a_ramp(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    """Stopped after any micro-step, with songs that are rolled out more and more often: bit for bit."""
    given = {
        "max_train_steps": 5, "lora_dropout": 0.2, "gradient_accumulation_steps": 2,
        "scheduled_sampling_max_step_offset": 60, "scheduled_sampling_stride": 7,
        "scheduled_sampling_ramp_steps": 4, "scheduled_sampling_prob_end": 1.0,
    }  # fmt: skip
    straight, seen = runs.run(options(tmp_path, model, "straight", **given))
    assert all("reflexflow/adr" in event.extra for event in seen.of(StepDone))
    stop, calls, original = StopRequest(), [0], TrainStep.__call__

    def counted(self: TrainStep, batch: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] == after:
            stop.request()
        return original(self, batch, **kwargs)

    parts = {**options(tmp_path, model, "parts", **given), "resume_from_checkpoint": "latest"}
    monkeypatch.setattr(TrainStep, "__call__", counted)
    halted, _ = runs.run(parts, stop=stop)
    assert not halted.finished
    resumed, _ = runs.run(parts)
    runs.assert_identical(straight.checkpoint, resumed.checkpoint)
    assert runs.losses(tmp_path / "straight") == runs.losses(tmp_path / "parts")
    assert (tmp_path / "straight" / "metrics.jsonl").read_text().count("reflexflow/fc") == 5


def test_a_dry_run_knows_its_sizes(model: Path, tmp_path: Path) -> None:
    config = load_config(options(tmp_path, model, "run"))
    found = preflight(config, lambda text, level: None)
    assert found.model.transformer.width == 64
    lines = verdict(config, found.model.transformer)
    assert "60 s of music" in lines[0] and any("base weights" in line for line in lines)


def test_targets_of_another_family_are_named(model: Path, tmp_path: Path) -> None:
    given = options(tmp_path, model, "run", acestep_lora_target="attn_qkv+mlp")
    with pytest.raises(ConfigError, match=r"attn_qkv\+mlp is not for Toy; use one of most, all"):
        preflight(load_config(given), lambda text, level: None)


def test_a_model_of_another_family_is_named(model: Path, tmp_path: Path, tiny_model: Path) -> None:
    for flavour, folder, title in (("toy", tiny_model, "ACE-Step v1"), ("base", model, "Toy")):
        given = options(tmp_path, folder, "run", model_flavour=flavour)
        with pytest.raises(ConfigError, match=f"model_flavour={flavour} .* {title}"):
            preflight(load_config(given), lambda text, level: None)
