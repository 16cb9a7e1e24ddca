"""The training loop: batches through the compiled step, results read one step late, things done at intervals.

While the device computes micro-step k the host reads the numbers of k−1 and prepares k+1, so logging and data
never wait for the device and the device never waits for them.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import mlx.core as mx

from ..errors import AceStepError, CheckpointError, DataError, refusal
from ..io.progress import TRAINING, phase
from ..report.events import CheckpointSaved, Listeners, StepDone
from .checkpoint import Health
from .distributed import together
from .interrupts import StopRequest
from .intervals import Agenda, Intervals
from .remaining import Remaining
from .step import StepResult, TrainStep

#: updates in a row without a single finite micro-batch after which training stops
MAX_SKIPPED = 5
SMOOTHING = 0.98


Evaluate = Callable[[int, Callable[[float], bool]], float | None]


class BatchSource(Protocol):
    """Where batches come from; its state says which batch is next."""

    @property
    def epoch(self) -> int: ...
    def next(self) -> Mapping[str, Any]: ...
    def state(self) -> dict[str, Any]: ...
    def restore(self, state: dict[str, Any]) -> str | None: ...


@dataclass
class Smoothed:
    """Exponential moving average of the loss, corrected for its start."""

    total: float = 0.0
    weight: float = 0.0

    def add(self, value: float) -> float:
        self.total = SMOOTHING * self.total + (1 - SMOOTHING) * value
        self.weight = SMOOTHING * self.weight + (1 - SMOOTHING)
        return self.value

    @property
    def value(self) -> float:
        return self.total / self.weight if self.weight else float("nan")


@dataclass
class Lowest:
    """The lowest evaluation loss so far and its step, and how many evaluations since were no lower.

    measured: what the loss is of (see `report.events.Evaluated`); "" where that is not known.
    """

    step: int = 0
    loss: float | None = None
    since: int = 0
    measured: str = ""

    def of(self, measured: str) -> Lowest:
        """The same for evaluations of `measured`: none yet where these were of something else."""
        return replace(self if self.measured in ("", measured) else Lowest(), measured=measured)

    def add(self, step: int, loss: float) -> bool:
        """Count an evaluation; whether it is a new lowest. One that is not finite never is."""
        if math.isfinite(loss) and (self.loss is None or loss < self.loss):
            self.step, self.loss, self.since = step, loss, 0
            return True
        self.since += 1
        return False


@dataclass
class Counters:
    """The part of a run's state that is plain numbers. `micro` counts micro-steps since the last update."""

    step: int = 0
    micro: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0
    epoch: int = 0  # of the batch after the last update
    loss_sum: float = 0.0  # of the micro-steps of the update in progress
    loss_weight: float = 0.0
    parts: dict[str, float] = field(default_factory=dict)  # as loss_sum, of the loss's parts
    smoothed: Smoothed = field(default_factory=Smoothed)
    lowest: Lowest = field(default_factory=Lowest)  # has a place of its own in a checkpoint's state

    def to_dict(self) -> dict[str, Any]:
        plain = {k: v for k, v in self.__dict__.items() if k not in ("smoothed", "parts", "lowest")}
        parts = {"parts": dict(self.parts)} if self.parts else {}
        return {**plain, **parts, "smoothed": [self.smoothed.total, self.smoothed.weight]}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], lowest: Mapping[str, Any] | None = None) -> Counters:
        rest = {k: v for k, v in values.items() if k != "smoothed"}
        return cls(**rest, smoothed=Smoothed(*values["smoothed"]), lowest=Lowest(**(lowest or {})))


class Clock:
    """Rates over the last 20 updates, without the pauses between them. audio: seconds trained on so far."""

    def __init__(self) -> None:
        self.audio = 0.0
        self._started = self._now = time.perf_counter()
        self._seen: deque[tuple[float, float]] = deque(maxlen=21)  # when an update was done, audio by then

    @property
    def elapsed(self) -> float:
        """Seconds up to the last update."""
        return self._now - self._started

    def restart(self) -> None:
        """After a pause."""
        self._seen.clear()
        self._seen.append((time.perf_counter(), self.audio))

    def rates(self) -> tuple[float, float]:
        """(updates, seconds of audio) a second, once another update is done."""
        self._now = time.perf_counter()
        self._seen.append((self._now, self.audio))
        began, before = self._seen[0]
        seconds = self._now - began
        if seconds <= 0:
            return 0.0, 0.0
        return (len(self._seen) - 1) / seconds, (self.audio - before) / seconds


@dataclass(frozen=True)
class Saved:
    """The newest checkpoint, and the moment that it holds: `micro` micro-steps after update `step`."""

    path: Path
    step: int
    micro: int
    health: Health


@dataclass(frozen=True)
class _Pending:
    """A micro-step that is on its way."""

    result: StepResult
    update: bool
    step: int  # number of the update it belongs to, from 1
    samples: int
    seconds: float
    rates: dict[str, float]
    epoch: int


class Trainer:
    """Runs `total_steps` updates.

    Args:
        save: writes a checkpoint of the current state, as healthy as it says, and returns its path and what
            was removed.
        evaluate: called when it is due, before the checkpoint, with the step and with what says whether a
            checkpoint follows for a loss; the mean loss, or None.
        validate: called with the step when it is due, after the checkpoint.
        best: the checkpoint with the lowest evaluation loss, or "".
        way_on: what to do after a loss that stays not finite, in a sentence.
        agree: the problem that the first of the ranks to have one has, on every rank; None when none has.
        share: the first rank's value, on every rank.
        patience: evaluations without a new lowest loss after which training ends; 0: none.
        resumed: the checkpoint that the counters are of, where it is of the same folder.
        measured: what the evaluation is of (see `report.events.Evaluated`).
        remaining: how long the run still takes.
    """

    def __init__(
        self,
        step: TrainStep,
        batches: BatchSource,
        total_steps: int,
        *,
        intervals: Intervals,
        save: Callable[[Health], tuple[Path, list[Path]]],
        emit: Listeners,
        counters: Counters | None = None,
        evaluate: Evaluate = lambda step, saved: None,
        validate: Callable[[int], None] = lambda step: None,
        best: Callable[[], str] = lambda: "",
        way_on: Callable[[], str] = lambda: "",
        agree: Callable[[str | None], str | None] = lambda problem: problem,
        share: Callable[[Any], Any] = lambda value: value,
        patience: int = 0,
        resumed: Saved | None = None,
        measured: str = "",
        remaining: Remaining | None = None,
    ) -> None:
        self.step, self.batches, self.total = step, batches, total_steps
        self.intervals, self.save, self.emit = intervals, save, emit
        self.evaluate, self.validate, self.way_on, self.agree = evaluate, validate, way_on, agree
        self.best, self.share, self.patience, self.measured = best, share, patience, measured
        self.counters = counters or Counters()
        self.counters.lowest = self.counters.lowest.of(measured)
        self._saved = resumed
        self._saved_at = time.monotonic()
        self._health = Health()  # of the steps since the last checkpoint, and the evaluation of this step
        self.accumulate = step.settings.accumulate
        self._pending: _Pending | None = None
        self._clock = Clock()
        self.remaining = remaining or Remaining(Agenda(intervals, total_steps, 0.0), ["checkpoints"])
        self._stop_seen = False
        self._round: tuple[dict[str, Any], dict[str, mx.array]] = ({}, {})  # when the update in work began

    def run(self, stop: StopRequest | None = None) -> str:
        """Train; returns "done", "early" or "interrupted" (after a complete checkpoint each time).

        Raises AceStepError after MAX_SKIPPED updates in a row without a finite batch, and DataError (after a
        checkpoint) when there is no next batch.
        """
        stop = stop or StopRequest()
        self._go_on()
        self._saved_at = time.monotonic()
        while self.counters.step < self.total and not self.over:
            if self._should_stop(stop):
                self._drain()
                self._checkpoint()
                return "interrupted"
            self._micro_step(stop)
        self._drain()
        return "early" if self.over else "done"

    @property
    def over(self) -> bool:
        """Whether training ends because the evaluation loss falls no more."""
        return 0 < self.patience <= self.counters.lowest.since

    def judge(self, loss: float | None) -> bool:
        """Count an evaluation of this step, if there was one; whether its loss is to be kept.

        All ranks come here at the same step where there is a patience.
        """
        if self.patience:
            loss = self.share(loss)
        if loss is None:
            return False
        return self.counters.lowest.add(self.counters.step, loss) and self.patience > 0

    def keeps(self, loss: float) -> bool:
        """Whether `judge` would have a checkpoint written for an evaluation with this loss."""
        lowest = replace(self.counters.lowest)
        return self.patience > 0 and (lowest.add(self.counters.step, loss) or lowest.since >= self.patience)

    def catch_up(self, loss: float | None) -> None:
        """Count an evaluation of the step that the run begins at, which its checkpoint lacks."""
        if self.judge(loss):
            healthy = self._saved is None or self._saved.health.healthy
            self._saved, self._health = None, Health(healthy, loss, measured=self.measured)
            self._checkpoint()

    def _should_stop(self, stop: StopRequest) -> bool:
        if self.step.world == 1:
            return stop.requested
        # Every rank reads the same answer at the same micro-step; the gradient in progress is not shared, so
        # they go on to the end of the update.
        return self._stop_seen and self.counters.micro == 0

    def _micro_step(self, stop: StopRequest) -> None:
        counters = self.counters
        batch = self._next_batch()
        arrays = {k: v for k, v in batch.items() if isinstance(v, mx.array)}
        update = counters.micro + 1 == self.accumulate
        result = self.step(arrays, update=update, step=counters.step, stop=stop.requested)
        mx.async_eval(result, self.step.state)
        rates = {_rate_name(g.name): g.schedule(counters.step) for g in self.step.groups}
        seconds, epoch = float(batch.get("seconds", 0.0)), int(batch.get("epoch", 0))
        samples = arrays["keys"].shape[0]
        pending = _Pending(result, update, counters.step + 1, samples, seconds, rates, epoch)
        self._drain()
        self._pending = pending
        counters.micro = 0 if update else counters.micro + 1
        counters.step += update
        if update:
            self._boundary()

    def _next_batch(self) -> Mapping[str, Any]:
        """The next batch. When one rank cannot have it, all keep what was trained and raise the error."""
        if self.counters.micro == 0:
            self._round = self.batches.state(), self.step.loss_scale()
        batch: Mapping[str, Any] = {}
        error: Exception | None = None
        try:
            batch = self.batches.next()
        except (AceStepError, OSError) as caught:
            error = caught
        problem = self.agree(refusal(error) if error else None)
        if problem is not None:
            raise self._saved_after(problem) from error
        return batch

    def _saved_after(self, problem: str) -> DataError:
        """Keep what was trained; the error to raise then."""
        self._drain()
        if self.step.world > 1:
            self._rewind()
        where = f"training stopped at step {self.counters.step}: {problem}"
        unsaved, path = None, None
        try:
            path = self._checkpoint()
        except CheckpointError as failed:
            unsaved = str(failed)
        if (unsaved := self.agree(unsaved)) is not None:  # no rank ends before the first has saved
            return DataError(f"{where}; then {unsaved}")
        return DataError(f"{where}. {path} is complete; go on with --resume_from_checkpoint=latest")

    def _rewind(self) -> None:
        """Back to the last update: what was accumulated since is each rank's own."""
        batches, scale = self._round
        self.batches.restore(batches)
        self.step.begin_round(scale)
        counters = self.counters
        counters.micro, counters.loss_sum, counters.loss_weight, counters.parts = 0, 0.0, 0.0, {}

    def _boundary(self) -> None:
        """What may happen after an update: evaluation, checkpoint, validation."""
        counters, intervals = self.counters, self.intervals
        ended = self.batches.epoch if self.batches.epoch > counters.epoch else None
        counters.epoch = self.batches.epoch
        place = (counters.step, ended, counters.step == self.total)
        evaluation, saving = intervals.evaluation_due(*place), intervals.checkpoint_due(*place)
        validation = intervals.validation_due(*place)
        self._health = replace(self._health, evaluation=None)  # of the step before
        timed = not saving and self._overdue()
        if not (evaluation or saving or validation or timed):
            return
        self._drain()
        if evaluation:
            due = saving
            loss = together(
                self.agree, lambda: self.evaluate(counters.step, lambda loss: due or self.keeps(loss))
            )
            self._health = self._health.evaluated(loss, self.measured)
            saving = self.judge(loss) or saving or self.over

        def keep_and_hear() -> None:
            if saving or timed:
                self._checkpoint(timed and not saving)
            if validation or self.over:
                self.validate(counters.step)

        together(self.agree, keep_and_hear)
        self._go_on()

    def _go_on(self) -> None:
        """Steps follow, after something else."""
        self._clock.restart()
        self.remaining.restart()
        self.emit.progress(phase(TRAINING, self.counters.step, self.total))

    def _overdue(self) -> bool:
        """Whether it is time for a checkpoint on some rank: then it is on all."""
        due = self.intervals.checkpoint_overdue(time.monotonic() - self._saved_at)
        if self.step.world == 1 or not self.intervals.checkpoint_minutes:
            return due
        return self.agree("it is time for a checkpoint" if due else None) is not None

    def _checkpoint(self, timed: bool = False) -> Path:
        """Save, unless a checkpoint holds this very moment; its path. timed: only because it was time."""
        counters, saved, health = self.counters, self._saved, self._health
        if saved is not None and saved.step == counters.step:  # the same weights
            if saved.micro == counters.micro:
                return saved.path
            health = replace(saved.health, healthy=health.healthy and saved.health.healthy, timed=False)
        health = replace(health, timed=timed)
        self.emit.progress(phase("writing the checkpoint"))
        with self.remaining.timed("checkpoints"):
            path, removed = self.save(health)
        self._saved_at = time.monotonic()
        self.emit(CheckpointSaved(counters.step, str(path), tuple(map(str, removed)), self.best()))
        self._saved, self._health = Saved(path, counters.step, counters.micro, health), Health()
        return path

    def _drain(self) -> None:
        """Read the numbers of the micro-step that is on its way, if any."""
        if self._pending is None:
            return
        p, self._pending = self._pending, None
        counters = self.counters
        loss, norm = _float(p.result.loss), _float(p.result.grad_norm)
        self._stop_seen = self._stop_seen or bool(p.result.stop.item())
        self._clock.audio += p.seconds * self.step.world
        if p.result.finite.item():
            counters.loss_sum += loss * p.samples
            counters.loss_weight += p.samples
            for name, value in p.result.parts.items():
                counters.parts[name] = counters.parts.get(name, 0.0) + _float(value) * p.samples
        elif not (self.step.scales_loss and math.isfinite(loss)):
            # In fp16 a gradient that overflows is how the loss scale is found; the weights may be well.
            self._health = replace(self._health, healthy=False)
        if p.update:
            self._report(p, norm)

    def _report(self, p: _Pending, norm: float) -> None:
        counters = self.counters
        skipped = counters.loss_weight == 0
        loss = counters.loss_sum / counters.loss_weight if not skipped else float("nan")
        parts = {name: total / counters.loss_weight for name, total in counters.parts.items()}
        counters.loss_sum = counters.loss_weight = 0.0
        counters.parts = {}
        if skipped:
            counters.skipped += 1
            counters.skipped_in_a_row += 1
        else:
            counters.skipped_in_a_row = 0
            counters.smoothed.add(loss)
        rate, audio = self._clock.rates()
        self.remaining.step()
        left = self.remaining.after(p.step)
        self.emit(
            StepDone(
                step=p.step,
                loss=loss,
                smoothed_loss=counters.smoothed.value,
                learning_rate=p.rates["learning_rate"],
                grad_norm=norm,
                steps_per_second=rate,
                audio_seconds_per_second=audio,
                peak_memory=mx.get_peak_memory(),
                eta=left.seconds,
                epoch=p.epoch,
                elapsed=self._clock.elapsed,
                skipped=skipped,
                extra={**{k: v for k, v in p.rates.items() if k != "learning_rate"}, **parts},
                eta_open=left.open,
            )
        )
        if counters.skipped_in_a_row >= MAX_SKIPPED:
            raise AceStepError(
                f"training stopped at step {p.step}: {MAX_SKIPPED} steps in a row had a loss or gradient "
                f"that is not finite. {self.way_on()}".rstrip()
            )


def _rate_name(group: str) -> str:
    return "learning_rate" if group == "lora" else f"learning_rate_{group}"


def _float(value: mx.array) -> float:
    return float(value.item())  # type: ignore[arg-type]
