"""Checkpoints by time: a night that ends badly costs half an hour, however far apart the others are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from acestep_mlx.cli.dry_run import checkpoint_line
from acestep_mlx.config.read_run import load_config
from acestep_mlx.errors import AceStepError, CheckpointError
from acestep_mlx.report.events import Listeners
from acestep_mlx.training import trainer as trainer_module
from acestep_mlx.training.checkpoint import Health
from acestep_mlx.training.distributed import together
from acestep_mlx.training.trainer import Intervals, Saved, Trainer

from .test_step_rims import Epochs, Numbers, step_of


class Night:
    """A trainer of `steps` steps of ten minutes each, and what it did in order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, intervals: Intervals, steps: int, **options: Any):
        self.now, self.done = 50_000.0, []
        night = self

        class Slow(Epochs):
            def next(self) -> dict[str, mx.array]:
                night.now += 600
                return super().next()

        monkeypatch.setattr(trainer_module.time, "monotonic", lambda: self.now)
        self.trainer = Trainer(
            step_of(Numbers()), Slow(), steps, intervals=intervals, save=self.save, emit=Listeners([]),
            evaluate=lambda step, saved: self.done.append(("evaluated", step)),
            validate=lambda step: self.done.append(("validated", step)), **options,
        )  # fmt: skip

    def save(self, health: Health) -> tuple[Path, list[Path]]:
        self.done.append(("by time" if health.timed else "saved", self.trainer.counters.step))
        return Path(), []

    def run(self) -> list[tuple[str, int]]:
        """Nothing was asked for at the end but the last checkpoint with its evaluation and clips."""
        self.trainer.run()
        return self.done


END = ["evaluated", "saved", "validated"]


@pytest.mark.parametrize(
    ("minutes", "saved"),
    [(30, [3, 6]), (20, [2, 4, 6]), (25, [3, 6]), (5, [1, 2, 3, 4, 5, 6]), (70, []), (0, [])],
)
def test_they_are_written_when_so_much_time_has_passed_and_nothing_goes_with_them(
    minutes: float, saved: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    done = Night(monkeypatch, Intervals(0, checkpoint_minutes=minutes), 7).run()
    assert done == [("by time", step) for step in saved] + [(what, 7) for what in END]


def test_time_is_counted_from_the_last_checkpoint_of_any_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    done = Night(monkeypatch, Intervals(4, checkpoint_minutes=30), 12).run()
    assert [step for what, step in done if what == "by time"] == [3, 7, 11]
    assert [step for what, step in done if what == "saved"] == [4, 8, 12]
    done = Night(monkeypatch, Intervals(3, checkpoint_minutes=30), 9).run()
    assert not [one for one in done if one[0] == "by time"], "both are due: one is written"


def test_a_run_that_goes_on_counts_from_its_own_start(monkeypatch: pytest.MonkeyPatch) -> None:
    night = Night(
        monkeypatch, Intervals(0, checkpoint_minutes=30), 4, resumed=Saved(Path("old"), 0, 0, Health())
    )
    night.now += 10**6  # the night before
    assert night.run()[0] == ("by time", 3)


def test_they_are_on_by_default() -> None:
    assert load_config({}).checkpoint_minutes == Intervals().checkpoint_minutes == 30


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "checkpoints: every 500 steps, and the last; between them after 30 minutes without one"),
        ({"checkpointing_steps": 1, "checkpoint_minutes": 0}, "checkpoints: every 1 step, and the last"),
        (
            {"checkpointing_steps": 0, "checkpoint_epoch_interval": 2, "checkpoint_minutes": 7.5},
            "checkpoints: every 2 epochs, and the last; between them after 7.5 minutes without one",
        ),
        ({"checkpointing_steps": 0, "checkpoint_minutes": 0}, "checkpoints: the last"),
    ],
)
def test_the_dry_run_says_when_they_are_written(given: dict[str, Any], said: str) -> None:
    assert checkpoint_line(load_config(given)) == said


def test_ranks_write_them_at_the_same_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also a rank whose own clock says no."""
    heard = iter([None, "it is time for a checkpoint"])
    night = Night(monkeypatch, Intervals(0, checkpoint_minutes=10**5), 2)
    asked = []

    def agree(problem: str | None) -> str | None:
        asked.append(problem)
        return next(heard, None)

    night.trainer.step.world, night.trainer.agree = 2, agree
    assert not night.trainer._overdue() and night.trainer._overdue() and not night.trainer._overdue()
    assert asked == [None] * 3


# ── what one rank does while the others wait ─────────────────────────────────────────────────────────
def test_all_wait_for_what_one_does() -> None:
    order: list[Any] = []

    def agree(problem: str | None) -> str | None:
        order.append(problem)
        return problem

    assert together(agree, lambda: order.append("work") or 3) == 3
    assert order == ["work", None]
    with pytest.raises(CheckpointError, match="the disk is full"):
        together(agree, lambda: (_ for _ in ()).throw(CheckpointError("the disk is full")))
    assert order[-1] == "the disk is full"


def test_an_error_of_another_rank_ends_this_one_with_its_words() -> None:
    with pytest.raises(AceStepError, match="the disk of the first is full"):
        together(lambda mine: "the disk of the first is full", lambda: None)


@pytest.mark.parametrize("what", ["save", "evaluate", "validate"])
def test_ranks_wait_at_a_checkpoint_at_an_evaluation_and_at_clips(
    what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    night = Night(monkeypatch, Intervals(0, checkpoint_minutes=0), 1)
    done = {"save": (Path(), []), "evaluate": 1.0, "validate": None}
    setattr(night.trainer, what, lambda *_: order.append(what) or done[what])
    night.trainer.agree = lambda problem: order.append("met")
    night.trainer.run()
    assert order[0] == "met", "the batch"
    assert order.count(what) == 1 and order[order.index(what) + 1] == "met"
