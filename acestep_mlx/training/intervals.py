"""When a run evaluates, saves and makes clips, and how often it still will."""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from ..config.run import RunConfig


@dataclass(frozen=True)
class Intervals:
    """When things happen, in updates and in passes over the data.

    0 means never; None for a step interval of evaluation or validation means at every checkpoint.
    """

    checkpoint_steps: int = 500
    checkpoint_epochs: int | None = None
    validation_steps: int | None = None
    validation_epochs: int | None = None
    evaluation_steps: int | None = None
    checkpoint_minutes: float = 30.0  # since the last checkpoint, or the beginning

    @classmethod
    def of(cls, config: RunConfig) -> Intervals:
        """As a configuration has them."""
        return cls(
            config.checkpoint_step_interval, config.checkpoint_epoch_interval,
            config.validation_step_interval, config.validation_epoch_interval, config.eval_steps_interval,
            config.checkpoint_minutes,
        )  # fmt: skip

    def checkpoint_due(self, step: int, ended: int | None, last: bool) -> bool:
        """After update `step`; `ended` is the number of the epoch that ended with it, if one did."""
        return last or _due(self.checkpoint_steps, step) or _due(self.checkpoint_epochs, ended)

    def checkpoint_overdue(self, seconds: float) -> bool:
        """So long after the last one; neither evaluation nor validation goes with it."""
        return 0 < 60 * self.checkpoint_minutes <= seconds

    def evaluation_due(self, step: int, ended: int | None, last: bool) -> bool:
        if self.evaluation_steps is None:
            return self.checkpoint_due(step, ended, last)
        return last or _due(self.evaluation_steps, step)

    def validation_due(self, step: int, ended: int | None, last: bool) -> bool:
        if self.validation_steps is None and self.validation_epochs is None:
            return self.checkpoint_due(step, ended, last)
        return last or _due(self.validation_steps, step) or _due(self.validation_epochs, ended)


def _due(interval: int | None, count: int | None) -> bool:
    return bool(interval and count and count % interval == 0)


class ToCome(NamedTuple):
    """How often something happens after a step."""

    evaluations: int
    checkpoints: int
    validations: int


class _Due(NamedTuple):
    """Steps after which something happens: a regular part, and others that are not in it, in order."""

    regular: range
    others: list[int]

    @classmethod
    def of(cls, steps: int | None, epochs: int | None, total: int, per_epoch: float) -> _Due:
        """Every so many steps and epochs of `per_epoch` steps, and after the last one, `total`."""
        regular = range(steps, total + 1, steps) if steps else range(0)
        passes = range(epochs, int(total / per_epoch + 1e-9) + 1, epochs) if epochs and per_epoch else ()
        others = {math.ceil(number * per_epoch - 1e-9) for number in passes} | {total}
        return cls(regular, sorted(step for step in others if step not in regular))

    def after(self, step: int) -> int:
        """How many are later than `step`."""
        return sum(len(steps) - bisect_right(steps, step) for steps in self)


@dataclass(frozen=True)
class Agenda:
    """What a run of `total` updates does, and when. steps_per_epoch: updates in a pass over the data."""

    intervals: Intervals
    total: int
    steps_per_epoch: float

    def after(self, step: int) -> ToCome:
        """What is still to come once update `step` and all that belongs to it are done."""
        saved, heard, evaluated = self._due
        return ToCome(evaluated.after(step), saved.after(step), heard.after(step))

    @cached_property
    def _due(self) -> tuple[_Due, _Due, _Due]:
        """Of checkpoints, clips and evaluations."""
        given = self.intervals
        saved = _Due.of(given.checkpoint_steps, given.checkpoint_epochs, self.total, self.steps_per_epoch)
        heard = evaluated = saved
        if given.validation_steps is not None or given.validation_epochs is not None:
            heard = _Due.of(given.validation_steps, given.validation_epochs, self.total, self.steps_per_epoch)
        if given.evaluation_steps is not None:
            evaluated = _Due.of(given.evaluation_steps, None, self.total, self.steps_per_epoch)
        return saved, heard, evaluated
