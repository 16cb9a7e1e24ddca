"""The rims of a training step: gradients that are not finite while the loss is, how far clipping lets a step
go, which step has which rate, what evaluation and validation leave of dropout.

Most steps here are on a model of three numbers a loss is made up for, so that every movement is known.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from acestep_mlx.config.optimizers import OPTIMIZERS
from acestep_mlx.errors import ConfigError
from acestep_mlx.families.protocol import Draw
from acestep_mlx.families.v1 import FAMILY as V1
from acestep_mlx.families.v1.objective import FlowMatching
from acestep_mlx.lora.surgery import LoRASpec, adapter_modules
from acestep_mlx.report.events import Listeners, StepDone
from acestep_mlx.training import restore
from acestep_mlx.training import trainer as trainer_module
from acestep_mlx.training.checkpoint import Checkpoint
from acestep_mlx.training.distributed import World
from acestep_mlx.training.evaluation import Evaluation
from acestep_mlx.training.measures import Measures
from acestep_mlx.training.optimizers import Group, Schedule, make_optimizer
from acestep_mlx.training.step import StepSettings, TrainStep
from acestep_mlx.training.trainer import Counters, Intervals, Trainer

from . import tiny


class Numbers(nn.Module):
    """Two parameters, of three numbers and of one."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = mx.array([1.0, 2.0, 3.0]), mx.array([4.0])


#: The gradient of `slope` at `batch["latents"]` of ones; its norm is 13.
SLOPE = {"a": [3.0, 4.0, 0.0], "b": [12.0]}
NORM = 13.0


def slope(model: nn.Module, batch: Any, drawn: Any, dtype: Any) -> mx.array:
    """(B,) with a known gradient in every parameter, times the sample's latents."""
    value = mx.sum(model.a * mx.array(SLOPE["a"])) + mx.sum(model.b * mx.array(SLOPE["b"]))
    return value * batch["latents"].reshape(-1)


def steep(where: str) -> Callable[..., mx.array]:
    """As `slope`; for a sample of 0 the loss is as finite as ever, and one number's gradient is not."""

    def loss(model: nn.Module, batch: Any, drawn: Any, dtype: Any) -> mx.array:
        latents = batch["latents"].reshape(-1)
        one = getattr(model, where)[-1]
        root = mx.sqrt(one - mx.stop_gradient(one) + mx.where(latents == 0, 0.0, 1.0))  # at 0 or 1
        return slope(model, {"latents": mx.ones(latents.shape)}, drawn, dtype) + root

    return loss


class Given(FlowMatching):
    """The objective of a made-up loss."""

    def __init__(self, loss: Callable[..., mx.array]) -> None:
        super().__init__()
        object.__setattr__(self, "losses", loss)


def sample(*latents: float) -> dict[str, mx.array]:
    return {
        "latents": mx.array(latents).reshape(-1, 1, 1, 1),
        "keys": mx.stack([mx.random.key(i) for i in range(len(latents))]),
    }


def step_of(
    model: nn.Module,
    loss: Callable[..., mx.array] = slope,
    *,
    optimizer: str = "sgd",
    rate: float = 0.1,
    schedule: Schedule | None = None,
    split: bool = False,
    **settings: Any,
) -> TrainStep:
    """A TrainStep over Numbers; `split`: each parameter in a group of its own."""
    schedule = schedule or Schedule("constant", rate, 0, 10)

    def group(name: str, *paths: str) -> Group:
        return Group(name, make_optimizer(optimizer, rate, weight_decay=0.0), schedule, list(paths))

    groups = [group("lora", "a"), group("lyrics_embedder", "b")] if split else [group("lora", "a", "b")]
    return TrainStep(model, groups, StepSettings(**settings), Given(loss), compiled=False)


def values(model: nn.Module) -> dict[str, np.ndarray]:
    return {k: np.array(v) for k, v in model.parameters().items()}


# ── a gradient that is not finite ────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize("where", ["a", "b"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_bad_gradient_under_a_finite_loss_changes_nothing(where: str, optimizer: str) -> None:
    model = Numbers()
    step = step_of(model, steep(where), optimizer=optimizer)
    step(sample(1.0), update=True)
    before, state = values(model), {k: np.array(v) for k, v in step.arrays()["optimizer"].items()}
    result = step(sample(0.0), update=True, step=1)
    assert mx.isfinite(result.loss).item() and not result.finite.item()
    for name, value in values(model).items():
        np.testing.assert_array_equal(value, before[name])
    for name, value in step.arrays()["optimizer"].items():
        np.testing.assert_array_equal(np.array(value), state[name], err_msg=name)
    assert step(sample(1.0), update=True, step=2).finite.item()
    assert all((value != before[name]).any() for name, value in values(model).items()), "and on it goes"


@pytest.mark.parametrize("order", [(1.0, 0.0), (0.0, 1.0)])
def test_a_bad_gradient_is_left_out_of_what_is_accumulated(order: tuple[float, float]) -> None:
    model, alone = Numbers(), Numbers()
    step = step_of(model, steep("b"), accumulate=2, max_grad_norm=0.0)
    for i, latents in enumerate(order):
        step(sample(latents), update=i == 1)
    step_of(alone, steep("b"), max_grad_norm=0.0)(sample(1.0), update=True)
    for name, value in values(model).items():
        np.testing.assert_array_equal(value, values(alone)[name])


def test_nothing_but_bad_gradients_is_an_update_that_changes_nothing() -> None:
    model = Numbers()
    step = step_of(model, steep("a"), accumulate=2)
    for i in range(2):
        step(sample(0.0), update=i == 1)
    for name, value in values(model).items():
        np.testing.assert_array_equal(value, values(Numbers())[name])


def test_a_gradient_whose_square_overflows_is_not_finite_either() -> None:
    model = Numbers()
    result = step_of(model)(sample(1e30), update=True)
    assert mx.isfinite(result.loss).item() and not result.finite.item()
    np.testing.assert_array_equal(values(model)["a"], values(Numbers())["a"])


def test_float16_lowers_its_scale_for_a_gradient_alone() -> None:
    step = step_of(Numbers(), steep("b"), compute_dtype=mx.float16)
    scale = step.carry["scale"].item()
    step(sample(0.0), update=True)
    assert step.carry["scale"].item() == scale / 2 and step.carry["good"].item() == 0
    step(sample(1.0), update=True, step=1)
    assert step.carry["scale"].item() == scale / 2 and step.carry["good"].item() == 1


def test_the_scale_of_float16_does_not_fall_below_one() -> None:
    """Below it gradients would lose digits, and the loss would be no nearer to the range."""
    step = step_of(Numbers(), steep("b"), compute_dtype=mx.float16)
    for scale in (3.0, 1.5, 1.0, 1.0):
        step.carry["scale"] = mx.array(max(step.carry["scale"].item(), 0) if scale < 3 else 6.0)
        step(sample(0.0), update=True)
        assert step.carry["scale"].item() == scale


def test_a_loss_that_is_no_number_is_left_out_though_its_gradient_is_one() -> None:
    """As a loss of infinity less something that is trained."""
    model = Numbers()

    def loss(model: Any, *given: Any) -> mx.array:
        return mx.array([float("inf")]) + model.a.sum()

    result = step_of(model, loss)(sample(1.0), update=True)
    assert mx.isfinite(result.grad_norm).item() and not result.finite.item()
    for name, value in values(model).items():
        np.testing.assert_array_equal(value, values(Numbers())[name])


def test_the_scale_of_float16_is_not_in_the_step() -> None:
    model = Numbers()
    result = step_of(model, compute_dtype=mx.float16, max_grad_norm=0.0)(sample(1.0), update=True)
    assert result.grad_norm.item() == pytest.approx(NORM)
    np.testing.assert_allclose(values(model)["a"], [1 - 0.3, 2 - 0.4, 3.0], rtol=1e-6)


# ── clipping, by the step that plain gradient descent takes ──────────────────────────────────────────
@pytest.mark.parametrize("split", [False, True], ids=["one group", "two groups"])
@pytest.mark.parametrize("compute", [mx.float32, mx.float16], ids=["float32", "float16"])
@pytest.mark.parametrize(("limit", "factor"), [(0.0, 1), (1.0, 1 / 13), (6.5, 0.5), (13.1, 1), (100.0, 1)])
def test_clipping_shortens_the_step_to_the_limit_and_no_further(
    limit: float, factor: float, compute: mx.Dtype, split: bool
) -> None:
    """By the norm over all parameters, whatever group they are in; what is reported is the norm before it."""
    model = Numbers()
    step = step_of(model, max_grad_norm=limit, compute_dtype=compute, split=split)
    result = step(sample(1.0), update=True)
    for name, value in values(model).items():
        moved = values(Numbers())[name] - value
        np.testing.assert_allclose(moved, 0.1 * factor * np.array(SLOPE[name]), rtol=1e-5, atol=1e-7)
    assert result.grad_norm.item() == pytest.approx(NORM)


def test_what_is_clipped_is_the_mean_of_what_was_accumulated() -> None:
    """Gradients of 2 and of −1 times the slope, weights 1 and 3: their mean is −1/4 of it, and clipped so."""
    model = Numbers()
    step = step_of(model, accumulate=2, max_grad_norm=1.0)
    step(sample(2.0), update=False)
    result = step(sample(-1.0, -1.0, -1.0), update=True)
    assert result.grad_norm.item() == pytest.approx(NORM / 4)
    moved = values(Numbers())["a"] - values(model)["a"]
    np.testing.assert_allclose(moved, -0.1 / NORM * np.array(SLOPE["a"]), rtol=1e-5, atol=1e-8)


# ── the rate of each step ────────────────────────────────────────────────────────────────────────────
class Samples:
    """An endless source of one sample."""

    epoch = 0

    def next(self) -> dict[str, mx.array]:
        return sample(1.0)

    def state(self) -> dict[str, Any]:
        return {}


RISING = Schedule("linear", 0.1, 3, 9)  # 0, 1/3, 2/3, 1, 5/6, …


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("start", [0, 2, 5])
def test_a_step_has_the_rate_that_is_reported_for_it(
    start: int, accumulate: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Step n goes by the schedule after n − 1 updates, also after a resume and with accumulation."""
    model = Numbers()
    step = step_of(model, schedule=RISING, max_grad_norm=0.0, accumulate=accumulate)
    told: list[StepDone] = []
    places = [model.b.item()]
    original = TrainStep.__call__

    def watched(self: TrainStep, batch: Any, *, update: bool, **options: Any) -> Any:
        result = original(self, batch, update=update, **options)
        if update:
            places.append(model.b.item())
        return result

    monkeypatch.setattr(TrainStep, "__call__", watched)
    Trainer(
        step,
        Samples(),
        start + 4,
        intervals=Intervals(0),
        save=lambda health: (Path(), []),
        emit=Listeners([lambda event: told.append(event) if isinstance(event, StepDone) else None]),
        counters=Counters(step=start),
    ).run()
    wanted = [RISING(i) for i in range(start, start + 4)]
    np.testing.assert_allclose(-np.diff(places) / SLOPE["b"][0], wanted, atol=1e-6)
    assert [event.step for event in told] == [start + i for i in (1, 2, 3, 4)]
    assert [event.learning_rate for event in told] == pytest.approx(wanted)


@pytest.mark.parametrize("world", [1, 2, 4])
@pytest.mark.parametrize("pauses", [False, True])
def test_speeds_are_of_all_ranks_and_without_the_pauses(
    pauses: bool, world: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A clock on which each batch takes two seconds and each checkpoint a hundred; a sample lasts thirty."""
    now = [1000.0]

    class Slow(Samples):
        def next(self) -> dict[str, Any]:
            now[0] += 2
            return {**sample(1.0), "seconds": 30.0}

    def save(health: Any) -> tuple[Path, list[Path]]:
        now[0] += 100
        return Path(), []

    monkeypatch.setattr(trainer_module.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(mx.distributed, "all_sum", lambda value: value * world)
    step = step_of(Numbers())
    step.world = world
    told: list[StepDone] = []
    emit = Listeners([lambda event: told.append(event) if isinstance(event, StepDone) else None])
    Trainer(step, Slow(), 4, intervals=Intervals(1 if pauses else 0), save=save, emit=emit).run()
    for event in told if pauses else told[-1:]:  # without a pause, numbers come while the next batch is made
        assert event.steps_per_second == pytest.approx(1 / 2)
        assert event.audio_seconds_per_second == pytest.approx(30 / 2 * world)
        known = pauses and event.step > 1  # how long a checkpoint takes
        assert event.eta == pytest.approx((4 - event.step) * 2 + (5 - event.step) * 100 * known)
        assert event.eta_open != known
    assert told[-1].elapsed == 4 * 2 + (300 if pauses else 0)


# ── when what happens, and what a checkpoint says of it ─────────────────────────────────────────────
class Epochs(Samples):
    """Each epoch has three samples."""

    taken = 0

    @property
    def epoch(self) -> int:  # type: ignore[override]
        return self.taken // 3

    def next(self) -> dict[str, mx.array]:
        self.taken += 1
        return sample(1.0)


@pytest.mark.parametrize(
    ("intervals", "saved", "evaluated", "validated"),
    [
        (Intervals(0), [7], [7], [7]),
        (Intervals(3), [3, 6, 7], [3, 6, 7], [3, 6, 7]),
        (Intervals(0, checkpoint_epochs=1), [3, 6, 7], [3, 6, 7], [3, 6, 7]),
        (Intervals(0, checkpoint_epochs=2), [6, 7], [6, 7], [6, 7]),
        (Intervals(4, checkpoint_epochs=1), [3, 4, 6, 7], [3, 4, 6, 7], [3, 4, 6, 7]),
        (Intervals(3, validation_steps=2), [3, 6, 7], [3, 6, 7], [2, 4, 6, 7]),
        (Intervals(3, validation_steps=0), [3, 6, 7], [3, 6, 7], [7]),
        (Intervals(0, validation_epochs=2), [7], [7], [6, 7]),
        (Intervals(0, validation_steps=5, validation_epochs=1), [7], [7], [3, 5, 6, 7]),
        (Intervals(3, evaluation_steps=2), [3, 6, 7], [2, 4, 6, 7], [3, 6, 7]),
        (Intervals(3, evaluation_steps=0), [3, 6, 7], [7], [3, 6, 7]),
    ],
)
def test_a_run_does_all_when_it_is_due_and_at_its_end(
    intervals: Intervals, saved: list[int], evaluated: list[int], validated: list[int]
) -> None:
    """A checkpoint knows the evaluation of its own step, and none of a step before."""
    order: list[tuple[str, int, Any]] = []

    def evaluate(step: int, saved: Any) -> float:
        order.append(("evaluated", step, None))
        return float(step)

    def save(health: Any) -> tuple[Path, list[Path]]:
        order.append(("saved", trainer.counters.step, health.evaluation))
        return Path(), []

    trainer = Trainer(
        step_of(Numbers()),
        Epochs(),
        7,
        intervals=intervals,
        save=save,
        emit=Listeners(),
        evaluate=evaluate,
        validate=lambda step: order.append(("validated", step, None)),
    )
    trainer.run()
    for what, steps in (("saved", saved), ("evaluated", evaluated), ("validated", validated)):
        assert [step for kind, step, _ in order if kind == what] == steps, what
    known = [(step, loss) for kind, step, loss in order if kind == "saved"]
    assert known == [(step, float(step) if step in evaluated else None) for step in saved]
    rank = {"evaluated": 0, "saved": 1, "validated": 2}
    assert order == sorted(order, key=lambda one: (one[1], rank[one[0]])), "in this order at each step"


# ── dropout belongs to training alone ────────────────────────────────────────────────────────────────
@pytest.mark.slow_after(1)
@pytest.mark.parametrize("spec", [LoRASpec(rank=2, dropout=0.5), LoRASpec(2, dropout=0.9, use_dora=True)])
def test_evaluation_is_without_dropout_and_leaves_training_with_it(spec: LoRASpec) -> None:
    def losses(dropout: float) -> tuple[float, Any]:
        model = tiny.adapted(spec=replace(spec, dropout=dropout))
        step = tiny.step(model, compiled=False)
        evaluation = Evaluation(model, [tiny.batch(0), tiny.batch(1)], FlowMatching(), mx.float32)
        before = evaluation()
        step(tiny.batch(2), update=True)
        assert evaluation()[0] != before[0]  # the weights have moved
        assert all(layer.training for layer in adapter_modules(model).values())
        return before

    (with_dropout, bins, _), (without, plain, _) = losses(spec.dropout), losses(0.0)
    assert with_dropout == without and bins == plain


@pytest.mark.parametrize("songs", [1, 3])
def test_the_evaluation_is_the_mean_of_its_bins_and_they_of_the_songs(songs: int) -> None:
    """At the noise that each song's own key gives, in the middle of five bins."""
    model = tiny.adapted()
    batches = [tiny.batch(i) for i in range(songs)]
    found = Evaluation(model, batches, FlowMatching(), mx.float32)()
    assert found is not None
    for i, name in enumerate(("0-200", "200-400", "400-600", "600-800", "800-1000")):
        t = mx.array([100.0 + 200 * i])
        noises = [FlowMatching().draw(batch).noise for batch in batches]
        losses = [
            FlowMatching()
            .losses(model, batch, Draw(noise, t / 1000, batch["keys"][0], {}), mx.float32)
            .item()
            for noise, batch in zip(noises, batches, strict=True)
        ]
        assert found[1][name] == pytest.approx(sum(losses) / songs, rel=1e-4)
    assert len(found[1]) == 5 and found[0] == pytest.approx(sum(found[1].values()) / 5)


def test_dropout_comes_back_after_an_evaluation_that_fails() -> None:
    model = tiny.adapted(spec=LoRASpec(rank=2, dropout=0.5))
    batch = {k: v for k, v in tiny.batch(0).items() if k != "text"}
    with pytest.raises(KeyError, match="text"):
        Evaluation(model, [batch], FlowMatching(), mx.float32)()
    assert all(layer.training for layer in adapter_modules(model).values())


def test_clips_are_heard_without_dropout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from acestep_mlx.config.read_run import load_config
    from acestep_mlx.training import validation

    model = tiny.adapted(spec=LoRASpec(rank=2, dropout=0.5))
    layers = adapter_modules(model).values()
    heard: list[set[tuple[bool, bool]]] = []

    class Pipeline:
        def __init__(self, *components: Any, **options: Any) -> None: ...
        def prepare(self, request: Any) -> Any:
            return SimpleNamespace(prompt=mx.zeros(1))

        def release(self, *names: str) -> None: ...
        def run(self, request: Any, **options: Any) -> np.ndarray:
            heard.append({(layer.training, layer.enabled) for layer in layers})
            return np.zeros((1, 4, 2), np.float32)

    monkeypatch.setattr(validation, "ACEStepPipeline", Pipeline)
    folder: Any = SimpleNamespace(fingerprints={}, family=V1)
    clips = validation.Validation.encoded(load_config({"validation_prompt": "jazz"}), folder, tmp_path)
    clips(model, 1, Listeners())
    assert heard == [{(False, False)}, {(False, True)}]  # without the LoRA, then with it
    assert all(layer.training and layer.enabled for layer in layers)


# ── going on ─────────────────────────────────────────────────────────────────────────────────────────
CHANGES: dict[str, Callable[[mx.array], mx.array]] = {
    "shape": lambda value: value[:, :1],
    "axes": lambda value: value[None],
    "dtype": lambda value: value.astype(mx.float16),
}


@pytest.mark.parametrize("part", ["adapter", "optimizer"])
@pytest.mark.parametrize("change", [*CHANGES, "missing", "more"])
def test_a_checkpoint_of_other_arrays_is_refused(part: str, change: str) -> None:
    step = tiny.step(tiny.adapted(), compiled=False)
    before = {k: np.array(v) for k, v in step.parameters().items()}
    arrays = {"adapter": step.parameters(), **step.arrays()}
    arrays["adapter"] = {k: v + 1 for k, v in arrays["adapter"].items()}
    given = arrays[part]
    name = next(k for k, v in given.items() if v.ndim == 2)
    if change in CHANGES:
        given[name] = CHANGES[change](given[name])
    elif change == "missing":
        del given[name]
    else:
        given["another"] = given[name]
    found = Checkpoint(Path("checkpoint-1"), {"identity": {}}, **arrays)
    job: Any = SimpleNamespace(world=World())
    built: Any = SimpleNamespace(step=step, identity={})
    says = "checkpoint-1 has other trained parameters" if part == "adapter" else "checkpoint-1 does not fit"
    with pytest.raises(ConfigError, match=says):
        restore._load(job, built, found, "checkpoint-1")
    if part == "adapter":
        assert all(np.array_equal(before[k], v) for k, v in step.parameters().items())


@pytest.mark.parametrize(
    ("micro", "rank", "recorded", "wanted"),
    [(0, 0, "", [4]), (1, 0, "", []), (0, 1, "", []), (0, 0, "eval", []), (0, 0, "step", [4])],
    ids=["due", "in the middle of an update", "another rank", "done already", "the step alone is recorded"],
)
def test_what_was_due_when_a_run_was_killed_is_measured_once(
    micro: int, rank: int, recorded: str, wanted: list[int], tmp_path: Path
) -> None:
    if recorded:
        (tmp_path / "metrics.jsonl").write_text(json.dumps({"event": recorded, "step": 4}) + "\n")
    measured: list[int] = []
    job: Any = SimpleNamespace(
        world=World(rank, 2), output=tmp_path, config=SimpleNamespace(validation_on_startup=False)
    )
    measures = Measures(job, SimpleNamespace(total=9), None, None)  # type: ignore[arg-type]
    object.__setattr__(measures, "evaluate", measured.append)
    measures.catch_up(Counters(step=4, micro=micro), Intervals(evaluation_steps=2, validation_steps=3))
    assert measured == wanted
