"""What a run measures of itself at intervals: the evaluation loss and clips."""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import dataclass

from ..report.events import AverageEvaluated, Evaluated, read_metrics
from .build import Built
from .evaluation import Evaluation
from .output import METRICS
from .prepare import Job, Prepared
from .trainer import Counters, Intervals
from .validation import Validation


@dataclass(frozen=True)
class Measures:
    """Evaluation and validation of a run; nothing where they are off, or on other ranks than the first."""

    job: Job
    built: Built
    evaluation: Evaluation | None
    validation: Validation | None

    @classmethod
    def of(cls, job: Job, prepared: Prepared, built: Built) -> Measures:
        """What the configuration asks for. Reads the songs of the evaluation."""
        config, evaluation = job.config, None
        if job.world.first and not config.eval_loss_disable and config.num_eval_images:
            batches = built.batches.evaluation(config.num_eval_images)
            step = built.step
            dtype = step.settings.compute_dtype
            evaluation = Evaluation(built.model, batches, step.objective, dtype, step.prepare)
        return cls(job, built, evaluation, prepared.validation)

    def evaluate(self, step: int) -> float | None:
        """The mean loss; None without any, or once the run is asked to stop."""
        first, *others = self._weights()
        found = self._evaluated(first)
        if found is None:
            return None
        loss, bins = found
        self.job.emit(Evaluated(step, loss, bins))
        for weights in others:
            if (compared := self._evaluated(weights)) is not None:
                self.job.emit(AverageEvaluated(step, *compared))
        if not math.isfinite(loss):
            self.job.emit.notice(f"step {step}: the evaluation loss is not finite", "warning")
        return loss

    def _weights(self) -> list[bool]:
        """With which weights to measure: False for the trained ones, True for their average."""
        if self.built.step.average is None:
            return [False]
        return {"none": [False], "ema_only": [True]}.get(self.job.config.ema_validation, [False, True])

    def _evaluated(self, averaged: bool) -> tuple[float, dict[str, float]] | None:
        """See `Evaluation`."""
        if self.evaluation is None:
            return None
        with self.built.step.averaged() if averaged else nullcontext():
            return self.evaluation(self._stopped)

    def validate(self, step: int) -> None:
        """Make the clips."""
        if self.validation is None:
            return
        for averaged in self._weights():
            with self.built.step.averaged() if averaged else nullcontext():
                self.validation(self.built.model, step, self.job.emit, self._stopped, averaged)

    def _stopped(self) -> bool:
        return self.job.stop.requested

    def catch_up(self, counters: Counters, intervals: Intervals) -> float | None:
        """Measure before the first step; after a kill, do what was due then and is not recorded.

        The loss of an evaluation that a step had not had; what the untrained LoRA has is none.
        """
        loss = None
        if not self.job.world.first or counters.micro:
            return loss
        step = counters.step
        place = (step, None, step == self.built.total)
        done = {row["event"] for row in read_metrics(self.job.output / METRICS) if row.get("step") == step}
        if (step == 0 or intervals.evaluation_due(*place)) and "eval" not in done:
            loss = self.evaluate(step)
        startup = self.job.config.validation_on_startup
        if (startup if step == 0 else intervals.validation_due(*place)) and "clip" not in done:
            self.validate(step)
        return loss if step else None
