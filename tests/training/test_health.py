"""Losses that are not finite: what is kept, what is said, and that the advice works."""

from __future__ import annotations

import json
import math
import re
import shlex
import shutil
from pathlib import Path

import mlx.core as mx
import pytest

from acestep_mlx.config.read_run import load_config
from acestep_mlx.errors import AceStepError
from acestep_mlx.report.events import CheckpointSaved, Notice, StepDone
from acestep_mlx.training import checkpoint
from acestep_mlx.training.evaluation import Evaluation, Measured
from acestep_mlx.training.run import train
from acestep_mlx.training.step import TrainStep

from ..small import small_model
from . import runs


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory):
    """Its runs need no second block."""
    return small_model(tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("health")


def poison(monkeypatch, bad) -> None:
    """Losses become NaN in every update (numbered from 1) for which `bad(number, step)` holds."""
    original = TrainStep.__call__

    def call(self, batch, **kwargs):
        factor = mx.array(float("nan") if bad(kwargs["step"] + 1, self) else 1.0)
        return original(self, {**batch, "latents": batch["latents"] * factor}, **kwargs)

    monkeypatch.setattr(TrainStep, "__call__", call)


def health(folder) -> dict[str, bool]:
    return {path.name: one.healthy for path, one in checkpoint.healths(folder).items()}


# ── what is kept ──────────────────────────────────────────────────────────────────────────────────────
def write(folder, step, healthy=True, evaluation=None, timed=False):
    """A checkpoint folder as far as `prune` looks at it."""
    path = folder / f"checkpoint-{step}"
    path.mkdir(parents=True)
    state = {"format": checkpoint.FORMAT, "format_version": 1, "step": step, "files": {}}
    state |= {"healthy": healthy, "evaluation": evaluation, "timed": timed}
    (path / checkpoint.STATE).write_text(json.dumps(state))
    return path


CASES = {
    "the last two": (2, [(1, True, None), (2, True, None), (3, True, None)], [2, 3]),
    "and the best": (2, [(1, True, 0.5), (2, True, 0.9), (3, True, 0.8), (4, True, 0.7)], [1, 3, 4]),
    "the best among the last": (2, [(1, True, 0.9), (2, True, 0.8), (3, True, 0.5)], [2, 3]),
    "of equal ones the newest": (1, [(1, True, 0.5), (2, True, 0.5), (3, True, 0.5)], [3]),
    "and the last healthy": (1, [(1, True, None), (2, True, None), (3, False, 0), (4, False, 0)], [2, 4]),
    "unhealthy ones displace none": (
        2,
        [(1, True, 0.1), (2, True, 0.9), (3, True, 0.8), (4, False, 0.0), (5, False, 0.0), (6, False, 0.0)],
        [1, 2, 3, 5, 6],
    ),
    "nothing healthy": (2, [(1, False, None), (2, False, None), (3, False, None)], [2, 3]),
    "by time: the newest": (
        2, [(1, True, None), (2, True, None), (3, True, None, True), (4, True, None, True)], [1, 2, 4]
    ),
    "by time: none beside a newer one": (3, [(1, True, 0.5), (2, True, None, True), (3, True, None)], [1, 3]),
    "by time: the only healthy one": (
        1, [(1, False, None), (2, True, None, True), (3, True, None, True), (4, False, None)], [3, 4]
    ),
    "by time, without a limit": (0, [(1, True, None), (2, True, None, True), (3, True, None)], [1, 3]),
    "no limit": (0, [(1, True, None), (2, False, None), (3, True, None)], [1, 2, 3]),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_kept_are_the_last_the_best_and_the_last_healthy(tmp_path, case):
    limit, steps, left = CASES[case]
    paths = [write(tmp_path, *one) for one in steps]
    removed = checkpoint.prune(tmp_path, limit, paths[-1])
    assert [int(p.name.rpartition("-")[2]) for p in checkpoint.checkpoints(tmp_path)] == left
    assert {p.name for p in removed} == {p.name for p in paths if not p.exists()}


def test_a_checkpoint_that_cannot_be_read_is_not_healthy_and_one_of_an_older_version_is(tmp_path):
    broken, old = write(tmp_path, 1), write(tmp_path, 2)
    (broken / checkpoint.STATE).write_text("{")
    state = json.loads((old / checkpoint.STATE).read_text())
    (old / checkpoint.STATE).write_text(json.dumps({k: v for k, v in state.items() if k != "healthy"}))
    assert health(tmp_path) == {"checkpoint-1": False, "checkpoint-2": True}
    assert checkpoint.last_healthy(tmp_path) == old


def test_the_best_is_one_of_those_that_were_measured_on_the_same_songs() -> None:
    """After the evaluation songs have changed, losses of before say nothing of what comes."""

    def best(*given: tuple[float | None, str]) -> str | None:
        found = {
            Path(f"{n}"): checkpoint.Health(True, loss, measured=of) for n, (loss, of) in enumerate(given)
        }
        path = checkpoint.best_of(found)
        return None if path is None else path.name

    assert best((0.5, "a"), (0.6, "a")) == "0"
    assert best((0.5, "a"), (0.7, "b"), (0.6, "b"), (None, "")) == "2"
    assert best((0.5, ""), (0.7, "b")) == "0", "checkpoints of before do not say"
    assert best((None, "a")) is None


# ── in a run ──────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.slow
def test_healthy_checkpoints_are_not_rotated_away_by_broken_ones(root, tiny_model, monkeypatch):
    """A NaN now and then: each of those checkpoints is written, and none takes a good one's place."""
    poison(monkeypatch, lambda step, _: step >= 4 and step % 2 == 0)
    options = {"max_train_steps": 8, "checkpointing_steps": 2, "checkpoints_total_limit": 1}
    config = runs.configuration(root, tiny_model, "rotation", **options)
    result, seen = runs.run(config)
    assert health(root / "rotation") == {"checkpoint-2": True, "checkpoint-8": False}
    assert result.finished and [e.step for e in seen.of(CheckpointSaved)] == [2, 4, 6, 8]


@pytest.mark.slow
def test_steps_and_their_evaluation_decide(root, tiny_model, monkeypatch):
    poison(monkeypatch, lambda step, _: step == 3)
    losses = {0: 1.0, 2: 0.5, 4: 0.4, 6: math.nan, 8: 0.6}
    found = iter(losses.values())
    monkeypatch.setattr(
        Evaluation, "__call__", lambda self, stopped: Measured(loss := next(found), {"0-200": loss}, {})
    )
    options = {"max_train_steps": 8, "checkpointing_steps": 2, "eval_loss_disable": False}
    config = runs.configuration(root, tiny_model, "decide", **options)
    result, seen = runs.run(config)
    assert health(root / "decide") == {
        "checkpoint-2": True,
        "checkpoint-4": False,  # step 3
        "checkpoint-6": False,  # its evaluation
        "checkpoint-8": True,
    }
    assert checkpoint.best(root / "decide").name == "checkpoint-2"
    page = result.report.read_text()
    assert "NaN" not in page and ">nan" not in page
    assert any("evaluation loss is not finite" in e.text for e in seen.of(Notice))


@pytest.mark.slow
def test_a_report_is_written_though_every_loss_is_null(root, tiny_model, monkeypatch):
    poison(monkeypatch, lambda step, _: True)
    monkeypatch.setattr(Evaluation, "__call__", lambda self, _: Measured(math.nan, {"0-200": math.inf}, {}))
    options = {"max_train_steps": 3, "checkpointing_steps": 1, "eval_loss_disable": False}
    result, _ = runs.run(runs.configuration(root, tiny_model, "null", **options))
    assert result.finished and "<svg" in result.report.read_text()
    rows = [json.loads(line) for line in (root / "null" / "metrics.jsonl").read_text().splitlines()]
    found = [row for row in rows if row["event"] == "eval"]
    assert [(row["loss"], row["bins"]) for row in found] == [(None, {"0-200": None})] * 4


@pytest.mark.slow
def test_weights_that_are_not_finite_are_not_saved_and_the_healthy_checkpoint_is_named(
    root, tiny_model, monkeypatch
):
    original = TrainStep.__call__

    def spoil(self, batch, **kwargs):
        result = original(self, batch, **kwargs)
        if kwargs["step"] == 1:  # an optimizer that overflows, after a loss and a gradient that did not
            name, value = next(iter(self.parameters().items()))
            self.set_parameters({name: mx.full(value.shape, math.inf)})
        return result

    monkeypatch.setattr(TrainStep, "__call__", spoil)
    options = {"max_train_steps": 4, "checkpointing_steps": 1}
    config = runs.configuration(root, tiny_model, "weights", **options)
    message = diverge(config)
    assert "step 2: trained weights are not finite" in message
    assert f"last healthy checkpoint is {root / 'weights' / 'checkpoint-1'}" in message
    assert health(root / "weights") == {"checkpoint-1": True}


def test_finding_the_loss_scale_of_fp16_is_not_ill_health(root, tiny_model, monkeypatch):
    """The gradient overflows while the loss is finite: the scale is halved, and nothing is wrong."""
    original = TrainStep.__call__

    def overflow(self, batch, **kwargs):
        if kwargs["step"] == 0:
            self.carry["scale"] = mx.array(2.0**120)
        return original(self, batch, **kwargs)

    monkeypatch.setattr(TrainStep, "__call__", overflow)
    config = runs.configuration(root, tiny_model, "scale", mixed_precision="fp16", max_train_steps=2)
    _, seen = runs.run(config)
    assert next(e.skipped for e in seen.of(StepDone))
    assert health(root / "scale") == {"checkpoint-2": True}


# ── the advice ────────────────────────────────────────────────────────────────────────────────────────
def diverge(config) -> str:
    with pytest.raises(AceStepError) as stopped:
        train(config)
    assert "\n" not in str(stopped.value)
    return str(stopped.value)


def advised(message: str) -> tuple[list[str], bool]:
    """The options in a message, to be typed behind the same command; whether --overwrite is one of them."""
    words = shlex.split(message[message.index("--") :])
    options = [word for word in words if word.startswith("--")]
    return [word for word in options if word != "--overwrite"], "--overwrite" in options


def follow(config, root, message):
    """Run the advice as the command line would; (result, events)."""
    options, overwrite = advised(message)
    path = root / "followed.json"
    path.write_text(json.dumps(config))
    seen = runs.Recorder()
    return train(load_config(path, options), overwrite=overwrite, on_event=seen), seen


def at_this_rate(step: TrainStep) -> bool:
    return step.groups[0].schedule(0) >= 1e-3


@pytest.mark.slow
def test_the_message_names_the_last_healthy_checkpoint_and_its_advice_runs(root, tiny_model, monkeypatch):
    poison(monkeypatch, lambda step, run: step >= 4 and at_this_rate(run))
    folder = root / "with a space"
    options = {"max_train_steps": 9, "checkpointing_steps": 2, "checkpoints_total_limit": 1}
    config = runs.configuration(root, tiny_model, folder.name, resume_from_checkpoint="latest", **options)
    message = diverge(config)
    assert re.search(r"step 8: 5 steps in a row .* not finite", message)
    assert f"The last healthy checkpoint is {folder / 'checkpoint-2'}" in message
    assert health(folder) == {"checkpoint-2": True, "checkpoint-6": False}
    result, seen = follow(config, root, message)
    assert result.finished and [e.step for e in seen.of(StepDone)] == [3, 4, 5, 6, 7, 8, 9]
    assert not any(e.skipped for e in seen.of(StepDone))
    assert all(health(folder).values())
    assert health(folder / "previous-1") == {"checkpoint-6": False}


@pytest.mark.slow
def test_without_a_healthy_checkpoint_the_advice_is_to_begin_anew(root, tiny_model, monkeypatch):
    poison(monkeypatch, lambda step, run: at_this_rate(run))
    options = {"max_train_steps": 9, "checkpointing_steps": 2}
    config = runs.configuration(root, tiny_model, "never well", resume_from_checkpoint="latest", **options)
    message = diverge(config)
    assert "No checkpoint is healthy" in message and "--overwrite" in message
    result, seen = follow(config, root, message)
    assert result.finished and [e.step for e in seen.of(StepDone)] == list(range(1, 10))
    assert not any(e.skipped for e in seen.of(StepDone))


@pytest.mark.slow
@pytest.mark.parametrize("healthy", [True, False])
def test_in_fp16_the_advice_is_bf16_from_the_healthy_lora(root, tiny_model, monkeypatch, healthy):
    poison(monkeypatch, lambda step, run: run.scales_loss and step >= (4 if healthy else 1))
    options = {"max_train_steps": 9, "checkpointing_steps": 3, "mixed_precision": "fp16"}
    name = f"half {healthy}"
    config = runs.configuration(root, tiny_model, name, resume_from_checkpoint="latest", **options)
    message = diverge(config)
    assert ("checkpoint-3" in message) == healthy
    result, seen = follow(config, root, message)
    assert result.finished and result.lora.parent == root / f"{name}-bf16"
    assert not any(e.skipped for e in seen.of(StepDone))


@pytest.mark.slow
def test_latest_warns_of_a_checkpoint_that_is_not_healthy(root, tiny_model, monkeypatch):
    with monkeypatch.context() as patch:
        poison(patch, lambda step, _: step == 3)
        options = {"max_train_steps": 4, "checkpointing_steps": 2}
        config = runs.configuration(root, tiny_model, "warned", **options)
        runs.run(config)
    from acestep_mlx.cli.describe_training import training_checkpoint

    told = {n: "\n".join(training_checkpoint(root / "warned" / f"checkpoint-{n}", None)) for n in (2, 4)}
    assert "not healthy" in told[4] and "not healthy" not in told[2]
    shutil.copytree(root / "warned", root / "warned-on")
    config |= {
        "output_dir": str(root / "warned-on"),
        "resume_from_checkpoint": "latest",
        "max_train_steps": 5,
    }
    _, seen = runs.run(config)
    warnings = [e.text for e in seen.of(Notice) if e.level == "warning"]
    assert len(warnings) == 1 and "checkpoint-4 is not healthy" in warnings[0]
    assert warnings[0].endswith(f"the last healthy one is {root / 'warned-on' / 'checkpoint-2'}")
