"""How the events of a training run look on stderr: bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..formatting import count, duration, rate, size
from ..io.progress import TRAINING, phase
from .progress import Display, bar

if TYPE_CHECKING:
    from ..report.events import Advanced, Evaluated, Event, Finished, StepDone


def _steps(first: int, last: int) -> str:
    return f"step {first}" if first == last else f"steps {first} to {last}"


def past_the_end(step: int, total: int) -> str:
    """That a run which goes on at `step` is past its end, and what would make it longer."""
    if step == total:
        return f"nothing left to train: step {step} is the last one (more with max_train_steps)"
    return f"nothing left to train: this run ends at step {total}, and the checkpoint is of step {step}"


def _left(event: StepDone) -> str:
    """`1:20:00`; with a `+` where something is still to come of which it is not known how long it takes."""
    return duration(event.eta) + ("+" if event.eta_open else "")


class TrainDisplay:
    """A listener for `training.run.train`; a context manager that leaves the terminal tidy."""

    def __init__(self) -> None:
        self._display = Display()
        self._say = self._display.say
        self._first_step = self._total_steps = 0
        self._began = self._display.clock()
        self._last: StepDone | None = None

    def __call__(self, event: Event) -> None:
        handler = getattr(self, f"_{type(event).__name__.lower()}", None)
        if handler is not None:
            handler(event)

    def _notice(self, event: Any) -> None:
        self._say(f"{event.level}: {event.text}" if event.level != "info" else event.text)

    def _advanced(self, event: Advanced) -> None:
        self._display(event.advance)
        if event.advance.stage == TRAINING and self._display.terminal:
            self._display.show(self._trained)

    def _started(self, event: Any) -> None:
        self._display.close()
        self._first_step, self._total_steps = event.step, event.total_steps
        self._began = self._display.clock()
        if event.step >= event.total_steps:
            self._say(f"{past_the_end(event.step, event.total_steps)}, in {event.output_dir}")
            return
        self._say(
            f"training {event.trainable_parameters:,} parameters on {count(event.samples, 'song')}, "
            f"{_steps(event.step + 1, event.total_steps)}, into {event.output_dir}"
        )

    def _stepdone(self, event: StepDone) -> None:
        self._last = event
        if event.skipped:
            self._say(f"warning: step {event.step} skipped: its loss or gradient is not finite")
        if self._display.terminal:
            if self._display.stage != TRAINING:
                self._display(phase(TRAINING, event.step, self._total_steps))
            self._display.show(self._trained)
        elif self._display.due(last=event.step == self._total_steps):
            self._say(
                f"step {event.step}/{self._total_steps}, {self._numbers(event)}, "
                f"{event.steps_per_second:.2f} steps/s, ETA {_left(event)}"
            )

    def _trained(self) -> list[str]:
        """The line of the terminal between steps."""
        last, so_far = self._last, f"{duration(self._display.clock() - self._began)} so far"
        step = last.step if last is not None else self._first_step
        head = f"{TRAINING} {bar(step / self._total_steps)} {step}/{self._total_steps}"
        if last is None:
            return [head, so_far, "the first step takes longer"]
        speed = last.steps_per_second
        pace = "" if not speed else f"{speed:.2f} steps/s" if speed >= 1 else f"{1 / speed:.1f} s a step"
        loss = f"loss {last.smoothed_loss:.4f}"
        return [head, f"{_left(last)} left", so_far, loss, pace, self._numbers(last)]

    def _numbers(self, event: StepDone) -> str:
        parts = "".join(f"{name} {value:.4f}, " for name, value in event.extra.items() if "/" in name)
        return (
            f"loss {event.loss:.4f} (smoothed {event.smoothed_loss:.4f}), {parts}"
            f"lr {event.learning_rate:.2e}, grad {event.grad_norm:.3g}, "
            f"{rate(event.audio_seconds_per_second)} s audio/s, peak {size(event.peak_memory)}"
        )

    def _evaluated(self, event: Evaluated) -> None:
        bins = ", ".join(f"{name}: {loss:.4f}" for name, loss in event.bins.items())
        self._say(f"step {event.step}: evaluation loss {event.loss:.4f} (timesteps {bins})")
        if event.verdict:
            self._say(f"step {event.step}: {event.verdict}")

    def _averageevaluated(self, event: Any) -> None:
        self._say(f"step {event.step}: evaluation loss {event.loss:.4f} with the averaged weights")

    def _validationclip(self, event: Any) -> None:
        self._say(f"step {event.step}: {event.path}")

    def _checkpointsaved(self, event: Any) -> None:
        removed = f", removed {len(event.removed)} older" if event.removed else ""
        mine = event.best == event.path
        best = "the best so far" if mine else f"the best so far is {Path(event.best).name}"
        self._say(f"saved {event.path}{removed}" + (f"; {best} by evaluation loss" if event.best else ""))

    def _finished(self, event: Finished) -> None:
        self._display.close()
        if event.skipped_steps:
            self._say(f"warning: {count(event.skipped_steps, 'step')} skipped in all")
        if event.lora:
            self._say(f"LoRA: {event.lora}")
        if event.average:
            self._say(f"LoRA of the averaged weights: {event.average}")
        if event.best:
            self._say(f"best checkpoint by evaluation loss: {event.best}")
        if event.report:
            self._say(f"report: {event.report}")

    def __enter__(self) -> TrainDisplay:
        self._display.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._display.__exit__(*error)
