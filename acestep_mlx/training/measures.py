"""What a run measures of itself at intervals: the evaluation loss and clips."""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import shorten

from ..io.progress import Advance, phase
from ..report.events import AverageEvaluated, Evaluated, Event, StepDone, ValidationClip, read_metrics
from . import checkpoint
from .build import Built
from .evaluation import Evaluation, Measured
from .intervals import Agenda, Intervals
from .output import METRICS
from .prepared import Job, Prepared
from .remaining import Kind, Remaining
from .settings import measured_weights
from .trainer import Counters
from .validation import Validation
from .verdict import Context, Point, Verdict, judge


@dataclass
class History:
    """A run so far, as its metrics.jsonl has it and then its events.

    evaluations: what was measured (see `Evaluated`) and the losses. training: (step, loss), the finite ones.
    clips: the sound files of steps with the LoRA.
    """

    evaluations: list[tuple[str, Point]] = field(default_factory=list)
    training: list[tuple[int, float]] = field(default_factory=list)
    clips: dict[Path, int] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path, step: int) -> History:
        """Of the run in `folder`, up to `step`."""
        history = cls()
        for row in read_metrics(folder / METRICS):
            at = int(row["step"])
            if at > step:
                continue
            if row["event"] == "step":
                history._trained(at, _loss(row["loss"]))
            elif row["event"] == "eval":
                songs = {name: _loss(loss) for name, loss in row["songs"].items()}
                history.evaluations.append((row["measured"], Point(at, _loss(row["loss"]), songs)))
            elif row["event"] == "clip" and row["with_lora"]:
                history.clips[Path(row["path"])] = at
        return history

    def __call__(self, event: Event) -> None:
        if isinstance(event, StepDone):
            self._trained(event.step, event.loss)
        elif isinstance(event, Evaluated):
            self.evaluations.append((event.measured, Point(event.step, event.loss, event.songs)))
        elif isinstance(event, ValidationClip) and event.with_lora:
            self.clips[Path(event.path)] = event.step

    def _trained(self, step: int, loss: float) -> None:
        if math.isfinite(loss):
            self.training.append((step, loss))


def _loss(value: float | None) -> float:
    """As a metrics.jsonl has it, where null is a loss that was not finite."""
    return math.nan if value is None else value


@dataclass(frozen=True)
class Measures:
    """Evaluation and validation of a run; nothing where they are off, or on other ranks than the first."""

    job: Job
    built: Built
    evaluation: Evaluation | None
    validation: Validation | None
    history: History = field(default_factory=History)
    model: Path = Path()  # its folder
    remaining: Remaining = field(default_factory=lambda: Remaining(Agenda(Intervals(), 0, 0.0)))

    @classmethod
    def of(cls, job: Job, prepared: Prepared, built: Built, step: int, agenda: Agenda) -> Measures:
        """What the configuration asks for, in a run that begins at `step`. Reads the evaluation songs."""
        config, evaluation = job.config, None
        if job.world.first and not config.unevaluated:
            batches = built.batches.evaluation(config.num_eval_images)
            update = built.step
            dtype = update.settings.compute_dtype
            evaluation = Evaluation(built.model, batches, update.objective, dtype, update.prepare)
        history = History()
        if evaluation is not None:
            found = prepared.resumed
            history = History.read(found.path.parent if found else job.output, step)
            job.emit.add(history)
        elif job.world.first:
            job.emit.notice(config.unevaluated)
        validation = prepared.validation if prepared.validation and prepared.validation.requests else None
        kinds: list[Kind] = ["checkpoints"]
        kinds += ["evaluations"] if evaluation is not None else []
        kinds += ["validations"] if validation is not None else []
        remaining = Remaining(agenda, kinds)
        return cls(job, built, evaluation, validation, history, prepared.folder.path, remaining)

    def evaluate(self, step: int, saved: Callable[[float], bool] = lambda loss: False) -> float | None:
        """The mean loss; None without any, or once the run is asked to stop. saved: see `Trainer`."""
        if self.evaluation is None:
            return None
        with self.remaining.timed("evaluations"):
            return self._evaluate(step, saved)

    def _evaluate(self, step: int, saved: Callable[[float], bool]) -> float | None:
        first, *others = measured_weights(self.job.config)
        stage = "evaluating" if step else "measuring before training"
        found = self._evaluated(first, stage)
        if found is None:
            return None
        loss, bins, songs = found
        measured = self.measured
        verdict = self._verdict(measured, Point(step, loss, songs), saved(loss))
        self.job.emit(Evaluated(step, loss, bins, songs, measured, verdict.sentence, verdict.kind))
        for weights in others:
            averaged = f"{stage}, averaged weights"
            if (compared := self._evaluated(weights, averaged)) is not None:
                self.job.emit(AverageEvaluated(step, compared.loss, compared.bins))
        if not math.isfinite(loss):
            self.job.emit.notice(f"step {step}: the evaluation loss is not finite", "warning")
        return loss

    @property
    def measured(self) -> str:
        """What the evaluation is of: songs, noise, and whether with averaged weights; "" without any."""
        if self.evaluation is None:
            return ""
        return self.evaluation.measured + ("-average" if measured_weights(self.job.config)[0] else "")

    def _verdict(self, measured: str, now: Point, saved: bool) -> Verdict:
        """saved: whether a checkpoint of this moment follows."""
        config, output, history = self.job.config, self.job.output, self.history
        found = checkpoint.healths(output)
        if saved:
            newest = output / f"checkpoint-{now.step}"
            found[newest] = checkpoint.Health().evaluated(now.loss, measured)
            for path in checkpoint.surplus(found, config.checkpoints_total_limit, newest):
                del found[path]
        best = checkpoint.best_of(found)
        lasting = [
            path for path, health in found.items() if (health.healthy and not health.timed) or path == best
        ]
        prompt = config.validation_prompt or self._caption()
        context = Context(
            held_out=bool(self.built.batches.held_out),
            learning_rate=config.learning_rate,
            checkpoints={_step(path): shlex.quote(str(path)) for path in lasting},
            clips=sorted({step for path, step in history.clips.items() if path.is_file()}),
            best=_step(best) if best is not None else None,
            command=f"acestep-mlx generate --model {shlex.quote(str(self.model))} "
            f"--prompt {shlex.quote(prompt)} --lora ",
            resume=f"--learning_rate={config.learning_rate / 3:.2g} --resume_from_checkpoint=",
        )
        points = {point.step: point for which, point in history.evaluations if which == measured}
        return judge([*({**points, now.step: now}.values())], history.training, context)

    def _caption(self) -> str:
        """The beginning of a trained song's caption."""
        batches = self.built.batches
        captions = (batches.samples[i].captions[0] for i in batches.trained)
        return next(
            (short for caption in captions if (short := shorten(caption, 60, placeholder=""))), "music"
        )

    def _evaluated(self, averaged: bool, stage: str) -> Measured | None:
        """See `Evaluation`."""
        if self.evaluation is None:
            return None

        def tell(advance: Advance) -> None:
            self.job.emit.progress(phase(stage, advance.done, advance.total))

        self.job.emit.progress(phase(stage))
        self.evaluation.progress = tell
        with self.built.step.averaged() if averaged else nullcontext():
            return self.evaluation(self._stopped)

    def validate(self, step: int) -> None:
        """Make the clips."""
        if self.validation is None:
            return
        weights = measured_weights(self.job.config)
        clips = self.validation.planned(len(weights))
        again = len(self.validation.requests) * len(weights)
        with self.remaining.timed("validations", again / clips.total):
            for averaged in weights:
                with self.built.step.averaged() if averaged else nullcontext():
                    self.validation(self.built.model, step, self.job.emit, self._stopped, averaged, clips)

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


def _step(path: Path) -> int:
    """Of a checkpoint's folder."""
    return int(path.name.rpartition("-")[2])
