"""Averaged weights: they follow their formula, are kept, gone on with bit for bit, heard and exported."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from acestep_mlx.cli import main
from acestep_mlx.config.read_run import load_config
from acestep_mlx.families import of_flavour
from acestep_mlx.families.protocol import Load
from acestep_mlx.lora.formats.read import read_lora
from acestep_mlx.lora.surgery import LoRASpec
from acestep_mlx.report.events import AverageEvaluated, CheckpointSaved, Evaluated
from acestep_mlx.training import checkpoint, memory
from acestep_mlx.training.average import AverageSettings
from acestep_mlx.training.interrupts import StopRequest

from . import runs, tiny

SHARE = AverageSettings(0.25, 1)


def test_the_share_that_stays_rises_to_the_decay() -> None:
    """(1 + n) / (10 + n) of SimpleTuner's and diffusers' averages; the first update is taken over whole."""
    settings = AverageSettings(0.5)
    assert [settings.stays(n) for n in (1, 2, 3, 8, 9, 1000)] == [0.0, 2 / 11, 3 / 12, 8 / 17, 0.5, 0.5]
    every_third = AverageSettings(0.5, 3)
    assert [every_third.stays(n) for n in range(1, 7)] == [1.0, 1.0, 3 / 12, 1.0, 1.0, 6 / 15]


def command(*arguments: object) -> int:
    """The exit code of `acestep-mlx` with these arguments."""
    with pytest.raises(SystemExit) as ended:
        main(list(map(str, arguments)))
    return int(ended.value.code or 0)


def _numpy(arrays: Any) -> dict[str, np.ndarray]:
    return {name: np.array(value) for name, value in arrays.items()}


@pytest.mark.parametrize("interval", [1, 2])
@pytest.mark.parametrize("dora", [False, True])
def test_it_is_the_average_of_what_was_trained(interval: int, dora: bool) -> None:
    """DoRA's magnitudes too. An update that is left out does not move it."""
    model = tiny.adapted(spec=LoRASpec(rank=2, alpha=3, use_dora=dora))
    settings = AverageSettings(0.3, interval)
    step = tiny.step(model, compiled=False, average=settings)
    expected = _numpy(step.parameters())
    for update in range(1, 6):
        batch = tiny.batch(update)
        if update == 4:
            batch["latents"] = batch["latents"] * mx.array(float("nan"))
        step(batch, update=True, step=update - 1)
        stays = 1.0 if update == 4 else settings.stays(update)
        now = _numpy(step.parameters())
        expected = {k: stays * v + (1 - stays) * now[k] for k, v in expected.items()}
    found = _numpy(step.average.values)
    assert found.keys() == step.parameters().keys() and (any(k.endswith(".m") for k in found) == dora)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-6, atol=1e-7)
    assert any(not np.array_equal(found[k], v) for k, v in _numpy(step.parameters()).items())


def test_it_moves_once_an_update_and_compiles_nothing_more() -> None:
    model = tiny.adapted()
    step = tiny.step(model, accumulate=2, average=SHARE)
    start = _numpy(step.average.values)
    seen = []
    for micro in range(6):
        step(tiny.batch(micro), update=micro % 2 == 1, step=micro // 2)
        mx.eval(step.state)
        now = _numpy(step.average.values)
        seen.append(any(not np.array_equal(now[k], v) for k, v in start.items()))
        start = now
    assert seen == [False, True] * 3 and step.traces == 2


def test_the_training_is_the_same_with_and_without_it() -> None:
    plain, averaged = tiny.adapted(), tiny.adapted()
    for model, average in ((plain, None), (averaged, SHARE)):
        step = tiny.step(model, average=average)
        for update in range(3):
            step(tiny.batch(update), update=True, step=update)
    assert tiny.difference(tiny.weights(plain), tiny.weights(averaged)) == 0


def test_it_is_lent_to_the_model_and_taken_back() -> None:
    step = tiny.step(tiny.adapted(), compiled=False, average=SHARE)
    for update in range(3):
        step(tiny.batch(update), update=True, step=update)
    trained, average = _numpy(step.parameters()), _numpy(step.average.values)
    with pytest.raises(KeyError), step.averaged():
        assert all(np.array_equal(v, average[k]) for k, v in _numpy(step.parameters()).items())
        raise KeyError
    assert all(np.array_equal(v, trained[k]) for k, v in _numpy(step.parameters()).items())


def test_the_memory_estimate_counts_it() -> None:
    def parts(**options: Any) -> Any:
        return memory.estimate(load_config(options), Load(100, 1)).parts

    plain, averaged = parts(), parts(use_ema=True)
    lora = of_flavour("base").components["transformer"]
    assert lora and set(averaged) - set(plain) == {"averaged weights"}
    assert averaged["averaged weights"] == plain["gradients"] / 2


# ── runs ─────────────────────────────────────────────────────────────────────────────────────────────
@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    root, options = tmp_path_factory.mktemp("average"), {"use_ema": True, "ema_decay": 0.5}
    with runs.lab(root, **options, max_train_steps=3) as make:
        yield make


def average_of(path: Path) -> dict[str, np.ndarray]:
    return _numpy(mx.load(str(path / checkpoint.AVERAGE)))


@pytest.mark.slow
@pytest.mark.parametrize("use_dora", [False, True])
def test_a_run_that_was_stopped_goes_on_with_its_average_bit_for_bit(lab: Any, use_dora: bool) -> None:
    more = {"use_dora": use_dora, "gradient_accumulation_steps": 2}
    straight, _ = runs.run(lab(f"straight-{use_dora}", **more))
    stop = StopRequest()
    config = lab(f"stopped-{use_dora}", **more)
    runs.run(config, act=lambda e: stop.request() if isinstance(e, Evaluated) else None, stop=stop)
    result, _ = runs.run({**config, "resume_from_checkpoint": "latest"})
    runs.assert_identical(straight.checkpoint, result.checkpoint)
    one, two = average_of(straight.checkpoint), average_of(result.checkpoint)
    assert one.keys() == two.keys() and all(np.array_equal(one[k], two[k]) for k in one)


@pytest.mark.slow
def test_checkpoints_and_the_end_hold_it_for_other_loaders(lab: Any, tmp_path: Path, capsys: Any) -> None:
    result, seen = runs.run(lab("kept"))
    average = average_of(result.checkpoint)
    for folder in (result.checkpoint, result.lora.parent):
        plain, ema = read_lora(folder), read_lora(folder / "ema")
        for path, module in ema.modules.items():
            scale = 1.0  # lora_alpha is lora_rank
            delta = scale * average[f"{path}.lora_b"].T @ average[f"{path}.lora_a"].T
            np.testing.assert_allclose(np.array(module.delta()), delta, rtol=1e-5, atol=1e-7)
        assert any(not mx.array_equal(plain.modules[p].b, m.b) for p, m in ema.modules.items())
    finished = seen.events[-1]
    assert finished.average == str(result.lora.parent / "ema" / checkpoint.LORA)
    for given in (result.checkpoint, result.lora, result.lora.parent):
        target = tmp_path / "out.safetensors"
        assert command("export", given, "--ema", "--force", "-o", target) == 0
        exported = read_lora(target).modules
        assert all(mx.array_equal(exported[p].delta(), m.delta()) for p, m in ema.modules.items())
    capsys.readouterr()


@pytest.mark.slow
def test_what_is_trained_in_full_is_averaged_too(lab: Any) -> None:
    result, _ = runs.run(lab("full", lyrics_embedder_train=True, eval_loss_disable=True))
    average = average_of(result.checkpoint)
    for folder in (result.checkpoint, result.lora.parent):
        plain, ema = read_lora(folder).full, read_lora(folder / "ema").full
        assert plain and ema and plain.keys() == ema.keys()
        moved = [name for name in ema if not mx.array_equal(plain[name], ema[name])]
        assert moved and all(np.array_equal(np.array(ema[name]), average[name]) for name in moved)


@pytest.mark.parametrize("which", ["file", "checkpoint"])
def test_without_averaged_weights_export_says_so(which: str, tmp_path: Path, capsys: Any) -> None:
    path = tmp_path / "lora.safetensors" if which == "file" else tmp_path / "checkpoint-3"
    path.write_bytes(b"") if which == "file" else path.mkdir()
    assert command("export", path, "--ema") == 1
    said = capsys.readouterr().err
    assert "no averaged weights are there" in said and "use_ema=true" in said and said.count("\n") == 1


@pytest.mark.slow
def test_the_loss_that_counts_is_that_of_the_weights_that_are_asked_for(lab: Any) -> None:
    found = {kind: runs.run(lab(kind, ema_validation=kind))[1] for kind in ("none", "ema_only", "comparison")}

    def losses(kind: str, event: type) -> list[float]:
        return [e.loss for e in found[kind].of(event)]

    assert losses("none", Evaluated) == losses("comparison", Evaluated) != losses("ema_only", Evaluated)
    assert losses("comparison", AverageEvaluated) == losses("ema_only", Evaluated)
    assert losses("none", AverageEvaluated) == losses("ema_only", AverageEvaluated) == []
    kept = [e.path for e in found["ema_only"].of(CheckpointSaved)][-1]
    state = json.loads((Path(kept) / checkpoint.STATE).read_text())
    assert state["evaluation"] == losses("ema_only", Evaluated)[-1]
