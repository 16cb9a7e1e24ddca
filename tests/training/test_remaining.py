"""The time that is left counts what is to come: steps, evaluations, clips, checkpoints; not what is over."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from acestep_mlx.report.events import Listeners, StepDone
from acestep_mlx.training import remaining as remaining_module
from acestep_mlx.training.intervals import Agenda, Intervals
from acestep_mlx.training.remaining import Kind, Remaining
from acestep_mlx.training.trainer import Trainer

from .test_step_rims import Numbers, Samples, sample, step_of

STEP, COMPILED = 2.0, 60.0
COSTS: dict[Kind, float] = {"evaluations": 5.0, "checkpoints": 7.0, "validations": 100.0}
EVERY = {"evaluations": 10, "checkpoints": 20, "validations": 40}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(remaining_module.time, "perf_counter", lambda: now[0])
    return now


def run(clock: list[float], left: Remaining, total: int, after: Any) -> None:
    """Each step takes STEP seconds, the first one longer; what is due takes its COSTS. after: is told."""
    left.restart()
    for step in range(1, total + 1):
        clock[0] += STEP if step > 1 else COMPILED
        left.step()
        after(step)
        for kind, every in EVERY.items():
            if step % every == 0:
                with left.timed(kind):  # type: ignore[arg-type]
                    clock[0] += COSTS[kind]  # type: ignore[index]
        left.restart()


def test_an_eta_is_when_the_run_really_ends(clock: list[float]) -> None:
    """Once everything was done for the first time, to the second; until then it says that more is to come."""
    left = Remaining(Agenda(Intervals(20, None, 40, None, 10, 0.0), 80, 0))
    told: dict[int, tuple[float, float, bool]] = {}

    def after(step: int) -> None:
        found = left.after(step)
        told[step] = (clock[0], found.seconds, found.open)

    run(clock, left, 80, after)
    ended = clock[0]
    assert [step for step, (_, _, open_) in told.items() if open_] == list(range(1, 41))
    for step, (now, seconds, _) in told.items():
        if step > 40:
            assert now + seconds == pytest.approx(ended), step
    assert told[80][1] == sum(COSTS.values()), "what follows the last step is still to come"


def test_evaluations_that_are_over_are_not_counted(clock: list[float]) -> None:
    """One each ten steps, of five seconds each, and nothing else."""
    left = Remaining(Agenda(Intervals(0, None, 0, None, 10, 0.0), 100, 0), ["evaluations"])
    with left.timed("evaluations"):  # before the first step
        clock[0] += 5
    found: dict[int, float] = {}

    def after(step: int) -> None:
        found[step] = left.after(step).seconds

    run(clock, left, 100, after)
    assert found[9] == 91 * STEP + 10 * 5 and found[10] == 90 * STEP + 10 * 5
    assert found[11] == 89 * STEP + 9 * 5 and found[100] == 5


def test_the_first_step_is_not_taken_for_the_others(clock: list[float]) -> None:
    left = Remaining(Agenda(Intervals(0, None, 0, None, 0, 0.0), 11, 0), [])
    found: list[float] = []
    run(clock, left, 11, lambda step: found.append(left.after(step).seconds))
    assert found[0] == 10 * COMPILED, "there is nothing else to go by"
    assert found[1:] == [STEP * n for n in range(9, -1, -1)]


def test_clips_without_the_lora_are_made_once(clock: list[float]) -> None:
    left = Remaining(Agenda(Intervals(0, None, 5, None, 0, 0.0), 10, 0), ["validations"])
    left.step()
    with left.timed("validations", share=0.5):  # as many with as without
        clock[0] += 100
    left.restart()
    clock[0] += STEP
    left.step()
    assert left.after(6).seconds == 4 * STEP + 50


def test_checkpoints_by_time_count(clock: list[float]) -> None:
    left = Remaining(Agenda(Intervals(0, checkpoint_minutes=10), 1801, 0), ["checkpoints"])
    for _ in range(2):
        clock[0] += STEP
        left.step()
    with left.timed("checkpoints"):
        clock[0] += 7
    assert left.after(1).seconds == 3600 + 6 * 7


def test_the_trainer_times_its_checkpoints(clock: list[float]) -> None:
    class Slow(Samples):
        def next(self) -> dict[str, Any]:
            clock[0] += STEP
            return {**sample(1.0), "seconds": 30.0}

    def save(health: Any) -> tuple[Path, list[Path]]:
        clock[0] += 7
        return Path(), []

    told: list[StepDone] = []
    emit = Listeners([lambda event: told.append(event) if isinstance(event, StepDone) else None])
    Trainer(step_of(Numbers()), Slow(), 6, intervals=Intervals(2), save=save, emit=emit).run()
    assert [event.eta_open for event in told] == [True, True, False, False, False, False]
    assert [told[i].eta for i in (2, 4, 5)] == [3 * STEP + 2 * 7, STEP + 7, 7]
