"""The training loop: batches through the compiled step, results read one step late, things done at intervals.

While the device computes micro-step k the host reads the numbers of k−1 and prepares k+1, so logging and data
never wait for the device and the device never waits for them.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import mlx.core as mx

from ..errors import AceStepError
from .events import CheckpointSaved, Listeners, StepDone
from .interrupts import StopRequest
from .step import StepResult, TrainStep

#: updates in a row without a single finite micro-batch after which training stops
MAX_SKIPPED = 5
SMOOTHING = 0.98
FRAME_SECONDS = 512 * 8 / 44100  # one latent frame


class BatchSource(Protocol):
    """Where batches come from; its state says which batch is next."""

    epoch: int

    def next(self) -> Mapping[str, Any]: ...
    def state(self) -> dict[str, Any]: ...


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
class Counters:
    """The part of a run's state that is plain numbers. `micro` counts micro-steps since the last update."""

    step: int = 0
    micro: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0
    loss_sum: float = 0.0  # of the micro-steps of the update in progress
    loss_weight: float = 0.0
    smoothed: Smoothed = field(default_factory=Smoothed)

    def to_dict(self) -> dict[str, Any]:
        plain = {k: v for k, v in self.__dict__.items() if k != "smoothed"}
        return {**plain, "smoothed": [self.smoothed.total, self.smoothed.weight]}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Counters:
        rest = {k: v for k, v in values.items() if k != "smoothed"}
        return cls(**rest, smoothed=Smoothed(*values["smoothed"]))


@dataclass(frozen=True)
class _Pending:
    """A micro-step that is on its way."""

    result: StepResult
    update: bool
    step: int  # number of the update it belongs to, from 1
    samples: int
    frames: float
    rate: float
    epoch: int


@dataclass
class Intervals:
    """When things happen. 0 or None = never; epochs count passes over the data."""

    checkpoint_steps: int = 500
    checkpoint_epochs: int | None = None

    def checkpoint_due(self, step: int, epoch_ended: int | None) -> bool:
        if self.checkpoint_steps and step % self.checkpoint_steps == 0:
            return True
        return bool(self.checkpoint_epochs and epoch_ended and epoch_ended % self.checkpoint_epochs == 0)


class Loop:
    """Runs `total_steps` updates.

    Args:
        save: writes a checkpoint of the current state and returns its path and what was removed.
        after: called at every update where `due(step, epoch_ended)` holds, after the checkpoint (evaluation,
            validation).
        world: ranks that train together; they stop and checkpoint at the same update.
    """

    def __init__(
        self,
        step: TrainStep,
        batches: BatchSource,
        total_steps: int,
        *,
        intervals: Intervals,
        save: Callable[[], tuple[Path, list[Path]]],
        emit: Listeners,
        counters: Counters | None = None,
        after: Callable[[int, bool], None] | None = None,
        due: Callable[[int, int | None], bool] = lambda step, epoch_ended: False,
        cache_limit: int | None = None,
    ) -> None:
        self.step, self.batches, self.total = step, batches, total_steps
        self.intervals, self.save, self.emit = intervals, save, emit
        self.counters = counters or Counters()
        self.after, self.due = after, due
        self.cache_limit = cache_limit
        self.accumulate = step.settings.accumulate
        self._pending: _Pending | None = None
        self._times: deque[tuple[float, float]] = deque(maxlen=21)  # when an update was seen done, seconds of audio
        self._frames = 0.0
        self._started = time.perf_counter()
        self._stop_seen = False

    def run(self, stop: StopRequest | None = None) -> str:
        """Train; returns "done" or "interrupted" (after a complete checkpoint either way).

        Raises AceStepError after MAX_SKIPPED updates in a row without a finite batch.
        """
        with stop or StopRequest() as stop:
            while self.counters.step < self.total:
                self._micro_step(stop)
                if self._should_stop(stop):
                    self._drain()
                    self._checkpoint()
                    return "interrupted"
            self._drain()
        return "done"

    def _should_stop(self, stop: StopRequest) -> bool:
        if self.step.world == 1:
            return stop.requested
        # Every rank reads the same answer at the same micro-step; the gradient in progress is not shared, so
        # they go on to the end of the update.
        return self._stop_seen and self.counters.micro == 0

    def _micro_step(self, stop: StopRequest) -> None:
        counters = self.counters
        batch = self.batches.next()
        arrays = {k: v for k, v in batch.items() if isinstance(v, mx.array)}
        epoch = self.batches.epoch
        update = counters.micro + 1 == self.accumulate
        result = self.step(arrays, update=update, step=counters.step, stop=stop.requested)
        mx.async_eval(result, self.step.state)
        pending = _Pending(
            result,
            update,
            counters.step + 1,
            arrays["latents"].shape[0],
            float(batch.get("frames", 0)),
            self.step.groups[0].schedule(counters.step),
            epoch,
        )
        self._drain()
        self._pending = pending
        counters.micro = 0 if update else counters.micro + 1
        counters.step += update
        if update:
            self._boundary()

    def _boundary(self) -> None:
        """What may happen after an update: checkpoint, then evaluation and validation."""
        step = self.counters.step
        ended = self.batches.state().get("epochs_done") if self.intervals.checkpoint_epochs else None
        last = step == self.total
        checkpoint = last or self.intervals.checkpoint_due(step, ended)
        rest = self.after is not None and (last or checkpoint or self.due(step, ended))
        if not checkpoint and not rest:
            return
        self._drain()
        if checkpoint:
            self._checkpoint()
        if rest and self.after is not None:
            self.after(step, last)
        self._times.clear()

    def _checkpoint(self) -> None:
        path, removed = self.save()
        self.emit(CheckpointSaved(self.counters.step, str(path), tuple(map(str, removed))))

    def _drain(self) -> None:
        """Read the numbers of the micro-step that is on its way, if any."""
        if self._pending is None:
            return
        p, self._pending = self._pending, None
        counters = self.counters
        loss, norm = p.result.loss.item(), p.result.grad_norm.item()
        self._stop_seen = self._stop_seen or bool(p.result.stop.item())
        self._frames += p.frames
        if p.result.finite.item():
            counters.loss_sum += loss * p.samples
            counters.loss_weight += p.samples
        if self.cache_limit is not None and mx.get_cache_memory() > self.cache_limit:
            mx.clear_cache()
        if p.update:
            self._report(p, norm)

    def _report(self, p: _Pending, norm: float) -> None:
        counters = self.counters
        skipped = counters.loss_weight == 0
        loss = counters.loss_sum / counters.loss_weight if not skipped else float("nan")
        counters.loss_sum = counters.loss_weight = 0.0
        if skipped:
            counters.skipped += 1
            counters.skipped_in_a_row += 1
        else:
            counters.skipped_in_a_row = 0
            counters.smoothed.add(loss)
        now = time.perf_counter()
        self._times.append((now, self._frames * FRAME_SECONDS))
        seconds = now - self._times[0][0]
        updates = len(self._times) - 1
        rate = updates / seconds if seconds > 0 else 0.0
        audio = (self._times[-1][1] - self._times[0][1]) / seconds if seconds > 0 else 0.0
        self.emit(
            StepDone(
                step=p.step,
                loss=loss,
                smoothed_loss=counters.smoothed.value,
                learning_rate=p.rate,
                grad_norm=norm,
                steps_per_second=rate,
                audio_seconds_per_second=audio,
                peak_memory=mx.get_peak_memory(),
                eta=(self.total - p.step) / rate if rate else 0.0,
                epoch=p.epoch,
                elapsed=now - self._started,
                skipped=skipped,
            )
        )
        if counters.skipped_in_a_row >= MAX_SKIPPED:
            raise AceStepError(
                f"training stopped at step {p.step}: {MAX_SKIPPED} steps in a row had a loss or gradient that is not "
                "finite. The checkpoints are untouched; go on from the last one with a lower learning_rate, or with "
                "mixed_precision=bf16 if it is fp16"
            )
