"""TensorBoard and Weights & Biases as listeners, each behind its extra."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from ..config.run import RunConfig
from ..errors import ConfigError
from .events import PART, AverageEvaluated, Evaluated, Event, Finished, StepDone, ValidationClip


class Tracker(Protocol):
    def __call__(self, event: Event) -> None: ...
    def close(self) -> None: ...


def scalars(event: Event) -> dict[str, float]:
    """Names and numbers that a tracker plots for an event; nothing for most events."""
    if isinstance(event, StepDone):
        if event.skipped:
            return {"train/skipped": 1.0}
        return {
            "train/loss": event.loss,
            "train/smoothed_loss": event.smoothed_loss,
            "train/learning_rate": event.learning_rate,
            "train/grad_norm": event.grad_norm,
            "speed/steps_per_second": event.steps_per_second,
            "speed/audio_seconds_per_second": event.audio_seconds_per_second,
            "memory/peak_gb": event.peak_memory / 1e9,
            **{name if PART in name else f"train/{name}": value for name, value in event.extra.items()},
        }
    if isinstance(event, Evaluated):
        return {"eval/loss": event.loss, **{f"eval/timestep_{bin}": loss for bin, loss in event.bins.items()}}
    if isinstance(event, AverageEvaluated):
        return {"eval/averaged_loss": event.loss}
    return {}


def texts(event: Event) -> dict[str, str]:
    """Names and sentences that a tracker shows for an event."""
    return {"eval/verdict": event.verdict} if isinstance(event, Evaluated) and event.verdict else {}


class TensorBoard:
    """Writes event files that `tensorboard --logdir` reads; needs neither PyTorch nor TensorFlow."""

    def __init__(self, folder: Path) -> None:
        try:
            from tensorboard.compat.proto.event_pb2 import Event as Record
            from tensorboard.compat.proto.summary_pb2 import Summary
            from tensorboard.summary.writer.event_file_writer import EventFileWriter
        except ImportError:
            raise ConfigError("report_to=tensorboard needs: pip install 'acestep-mlx[tensorboard]'") from None
        folder.mkdir(parents=True, exist_ok=True)
        self._record, self._summary = Record, Summary
        self._writer = EventFileWriter(str(folder))

    def __call__(self, event: Event) -> None:
        values = scalars(event)
        if values:
            summary = self._summary(
                value=[self._summary.Value(tag=name, simple_value=value) for name, value in values.items()]
            )
            for name, text in texts(event).items():
                value = summary.value.add(tag=name)
                value.metadata.plugin_data.plugin_name = "text"
                value.tensor.dtype = 7  # DT_STRING
                value.tensor.string_val.append(text.encode())
            step = getattr(event, "step", 0)
            self._writer.add_event(self._record(step=step, wall_time=time.time(), summary=summary))

    def close(self) -> None:
        self._writer.close()


class WandB:
    """Logs to Weights & Biases; with WANDB_MODE=offline nothing leaves the machine."""

    def __init__(self, config: RunConfig, folder: Path) -> None:
        try:
            import wandb
        except ImportError:
            raise ConfigError("report_to=wandb needs: pip install 'acestep-mlx[wandb]'") from None
        self._wandb: Any = wandb
        self._run: Any = wandb.init(
            project=config.tracker_project_name,
            name=config.tracker_run_name,
            dir=str(folder),
            config=config.to_dict(),
            resume="allow",
        )

    def __call__(self, event: Event) -> None:
        values: dict[str, Any] = {**scalars(event), **texts(event)}
        if isinstance(event, ValidationClip):
            kind = "averaged" if event.averaged else "lora" if event.with_lora else "base"
            values[f"clips/{event.name}_{kind}"] = self._wandb.Audio(event.path, caption=event.prompt)
        if values:
            self._run.log(values, step=getattr(event, "step", None))
        if isinstance(event, Finished):
            self._run.summary["skipped_steps"] = event.skipped_steps

    def close(self) -> None:
        self._run.finish()


class Careful:
    """A tracker whose failure ends its curves and not the run; it is said once."""

    def __init__(self, tracker: Tracker, name: str, notify: Callable[[str, str], None]) -> None:
        self.tracker, self.name, self.notify = tracker, name, notify
        self.failed = False

    def __call__(self, event: Event) -> None:
        self._try(lambda: self.tracker(event))

    def close(self) -> None:
        self._try(self.tracker.close)

    def _try(self, work: Callable[[], None]) -> None:
        if self.failed:
            return
        try:
            work()
        except Exception as error:  # it is another program's, and so are its errors
            self.failed = True
            self.notify(f"{self.name} gets no more numbers: {type(error).__name__}: {error}", "warning")


def trackers_folder(config: RunConfig, output_dir: Path) -> Path:
    """`logging_dir`, taken from the output folder."""
    folder = Path(config.logging_dir)
    return folder if folder.is_absolute() else output_dir / folder


def make_trackers(config: RunConfig, output_dir: Path, notify: Callable[[str, str], None]) -> list[Tracker]:
    """The trackers that `report_to` asks for; ConfigError when their package is missing."""
    folder = trackers_folder(config, output_dir)
    if config.report_to == "tensorboard":
        return [Careful(TensorBoard(folder), "TensorBoard", notify)]
    if config.report_to == "wandb":
        folder.mkdir(parents=True, exist_ok=True)
        return [Careful(WandB(config, folder), "Weights & Biases", notify)]
    return []
