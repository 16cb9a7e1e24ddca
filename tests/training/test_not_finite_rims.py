"""Numbers that are not finite, counted to the last: when a run ends, and what its checkpoints say."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import pytest

from acestep_mlx.errors import AceStepError
from acestep_mlx.report.events import Listeners, StepDone
from acestep_mlx.training.checkpoint import Health
from acestep_mlx.training.saving import Writer
from acestep_mlx.training.step import StepResult
from acestep_mlx.training.trainer import MAX_SKIPPED, Counters, Intervals, Saved, Trainer, _Pending

NAN = float("nan")


def trainer(told: list[Any], saved: list[Health], *, scales: bool = False, **options: Any) -> Trainer:
    step: Any = SimpleNamespace(world=1, scales_loss=scales, settings=SimpleNamespace(accumulate=4))

    def save(health: Health) -> tuple[Path, list[Path]]:
        saved.append(health)
        return Path("checkpoint"), []

    batches: Any = None
    return Trainer(
        step, batches, 99, intervals=Intervals(0), save=save, emit=Listeners([told.append]), **options
    )


def seen(
    trainer: Trainer, loss: float, *, finite: bool, update: bool = True, step: int = 1, samples: int = 1
) -> None:
    """The numbers of a micro-step arrive."""
    result = StepResult(mx.array(loss), mx.array(1.0), mx.array(finite), mx.array(False))
    trainer._pending = _Pending(result, update, step, samples, 1.0, {"learning_rate": 1.0}, 0)
    trainer._drain()


@pytest.mark.parametrize("before", [0, 1, 3])
def test_the_fifth_update_in_a_row_without_numbers_is_the_last(before: int) -> None:
    told: list[Any] = []
    one = trainer(told, [])
    for step in range(before):
        seen(one, NAN, finite=False, step=step)
    seen(one, 1.0, finite=True)  # begins anew
    for step in range(MAX_SKIPPED - 1):
        seen(one, NAN, finite=False, step=step)
    with pytest.raises(AceStepError, match=f"{MAX_SKIPPED} steps in a row"):
        seen(one, NAN, finite=False)
    assert sum(isinstance(event, StepDone) and event.skipped for event in told) == before + MAX_SKIPPED


@pytest.mark.parametrize(
    ("scales", "loss", "finite", "healthy"),
    [
        (False, 1.0, True, True),
        (False, 1.0, False, False),  # a gradient alone
        (False, NAN, False, False),
        (True, 1.0, False, True),  # fp16: how the loss scale is found
        (True, NAN, False, False),  # but a loss is not scaled where it is computed
        (True, math.inf, False, False),
    ],
)
def test_what_a_checkpoint_is_told_of_its_steps(
    scales: bool, loss: float, finite: bool, healthy: bool
) -> None:
    saved: list[Health] = []
    one = trainer([], saved, scales=scales)
    seen(one, loss, finite=finite, update=False)
    one._checkpoint()
    assert [health.healthy for health in saved] == [healthy]


@pytest.mark.parametrize(
    ("parts", "loss"),
    [
        ([(2.0, 3), (6.0, 1)], 3.0),
        ([(2.0, 4)], 2.0),
        ([(2.0, 1), (NAN, 3), (8.0, 2)], 6.0),
        ([(NAN, 2)], NAN),
    ],
)
def test_the_loss_of_an_update_is_the_mean_over_its_songs(
    parts: list[tuple[float, int]], loss: float
) -> None:
    """Without those of a micro-batch that is not finite; the next update begins at nothing."""
    told: list[Any] = []
    one = trainer(told, [])
    for step in (1, 2):
        for i, (value, samples) in enumerate(parts, 1):
            finite, update = math.isfinite(value), i == len(parts)
            seen(one, value, finite=finite, update=update, step=step, samples=samples)
    assert [event.loss for event in told] == pytest.approx([loss] * 2, nan_ok=True)
    assert [event.skipped for event in told] == [math.isnan(loss)] * 2


@pytest.mark.parametrize("then", [True, False])
@pytest.mark.parametrize("now", [True, False])
def test_a_later_moment_of_the_same_update_is_no_healthier_than_the_earlier(then: bool, now: bool) -> None:
    """The weights are those of the checkpoint before, which this one replaces."""
    saved: list[Health] = []
    before = Saved(Path("checkpoint-3"), 3, 0, Health(then, 0.5))
    one = trainer([], saved, counters=Counters(step=3, micro=1), resumed=before)
    seen(one, 1.0, finite=now, update=False)
    one._checkpoint()
    assert saved == [Health(then and now, 0.5)]


@pytest.mark.parametrize("bad", [NAN, math.inf, -math.inf])
@pytest.mark.parametrize("place", [0, 2])
def test_one_trained_weight_that_is_no_number_is_never_saved(bad: float, place: int) -> None:
    weights = {"a": mx.ones((2, 2)), "b": mx.zeros(3)}
    weights["b"][place] = bad
    step = SimpleNamespace(arrays=dict, parameters=lambda: weights)
    job: Any = SimpleNamespace(world=SimpleNamespace(first=True))
    built: Any = SimpleNamespace(step=step)
    unused: Any = None

    class Told(Writer):
        def way_on(self) -> str:
            return "Begin anew."

    with pytest.raises(AceStepError, match=r"step 7: trained weights are not finite\. Begin anew"):
        Told(job, unused, built, Counters(step=7)).checkpoint(Health())
