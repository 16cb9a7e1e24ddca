"""How long a run still takes: its steps, and the evaluations, checkpoints and clips between them."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from statistics import fmean
from typing import Literal, NamedTuple

from .intervals import Agenda

Kind = Literal["evaluations", "checkpoints", "validations"]
KINDS: tuple[Kind, ...] = ("evaluations", "checkpoints", "validations")
STEPS = 50  # whose mean is what the next ones take


class Left(NamedTuple):
    """seconds: of what is to come. open: something of it was never done in this run, and is not counted."""

    seconds: float
    open: bool


class Remaining:
    """What was done so far, timed. kinds: what the run does at all beside its steps."""

    def __init__(self, agenda: Agenda, kinds: Collection[Kind] = KINDS) -> None:
        self.agenda, self.kinds = agenda, kinds
        self._costs: dict[Kind, float] = {}  # seconds that the last one took
        self._first: float | None = None  # seconds of the first step, which is compiled
        self._steps: deque[float] = deque(maxlen=STEPS)
        self._since = time.perf_counter()

    @contextmanager
    def timed(self, kind: Kind, share: float = 1.0) -> Iterator[None]:
        """The block is one of them. share: of what it did, that the next ones will do, too."""
        began = time.perf_counter()
        yield
        self._costs[kind] = share * (time.perf_counter() - began)

    def restart(self) -> None:
        """What was done since the last step is no part of the next one."""
        self._since = time.perf_counter()

    def step(self) -> None:
        """An update is done."""
        now = time.perf_counter()
        took, self._since = now - self._since, now
        if self._first is None:
            self._first = took
        else:
            self._steps.append(took)

    def after(self, step: int) -> Left:
        """Of the run once update `step` is done, and nothing yet of what follows it."""
        one = fmean(self._steps) if self._steps else self._first or 0.0
        seconds = one * (self.agenda.total - step)
        to_come = dict(zip(KINDS, self.agenda.after(step - 1), strict=True))
        to_come["checkpoints"] += self._by_time(seconds, to_come["checkpoints"])
        wanted = {kind: n for kind, n in to_come.items() if n and kind in self.kinds}
        seconds += sum(n * self._costs.get(kind, 0.0) for kind, n in wanted.items())
        return Left(seconds, any(kind not in self._costs for kind in wanted))

    def _by_time(self, seconds: float, regular: int) -> int:
        """Checkpoints that are written because minutes have passed, beside so many regular ones."""
        minutes = self.agenda.intervals.checkpoint_minutes
        return max(0, int(seconds / (60 * minutes)) - regular) if minutes else 0
