"""What happens during a run, as plain data: the loop emits events, the CLI draws them, files keep them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..atomic import temporary


@dataclass(frozen=True)
class Event:
    """Base of all events."""


@dataclass(frozen=True)
class Notice(Event):
    """Something to say once. `level` is info or warning."""

    text: str
    level: str = "info"


@dataclass(frozen=True)
class Progress(Event):
    """`done` of `total` units of a phase such as `encode audio`; `total` 0 when it is unknown."""

    phase: str
    done: int
    total: int
    detail: str = ""


@dataclass(frozen=True)
class Started(Event):
    """Training begins: where it starts, where it will end, and what is trained."""

    step: int
    total_steps: int
    trainable_parameters: int
    samples: int
    output_dir: str


@dataclass(frozen=True)
class StepDone(Event):
    """One optimizer update (or a skipped one, with `skipped` true).

    Units: `elapsed` and `eta` seconds of this process, `peak_memory` bytes, rates per second.
    """

    step: int
    loss: float
    smoothed_loss: float
    learning_rate: float
    grad_norm: float
    steps_per_second: float
    audio_seconds_per_second: float
    peak_memory: int
    eta: float
    epoch: int
    elapsed: float
    skipped: bool = False
    extra: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Evaluated(Event):
    """Loss on the fixed evaluation set: the mean, and per timestep bin (label → loss)."""

    step: int
    loss: float
    bins: Mapping[str, float]


@dataclass(frozen=True)
class ValidationClip(Event):
    """One generated clip. `with_lora` is false for the same prompt and seed without the LoRA."""

    step: int
    name: str
    prompt: str
    path: str
    seed: int
    with_lora: bool = True


@dataclass(frozen=True)
class CheckpointSaved(Event):
    """A checkpoint is complete on disk."""

    step: int
    path: str
    removed: tuple[str, ...] = ()


@dataclass(frozen=True)
class Finished(Event):
    """The run is over. `reason` is done or interrupted; `lora` is None when interrupted."""

    step: int
    reason: str
    lora: str | None
    report: str | None
    skipped_steps: int = 0


Listener = Callable[[Event], None]


class Listeners:
    """Sends each event to every listener, in order."""

    def __init__(self, listeners: Iterable[Listener] = ()) -> None:
        self.listeners = list(listeners)

    def add(self, listener: Listener) -> None:
        self.listeners.append(listener)

    def __call__(self, event: Event) -> None:
        for listener in self.listeners:
            listener(event)

    def notice(self, text: str, level: str = "info") -> None:
        self(Notice(text, level))


#: the events that metrics.jsonl keeps, by the name in its `event` column
RECORDED: dict[str, type[Event]] = {
    "step": StepDone,
    "eval": Evaluated,
    "clip": ValidationClip,
    "checkpoint": CheckpointSaved,
}


class MetricsFile:
    """`metrics.jsonl`: one JSON object per recorded event, appended and flushed line by line.

    On resume at `step`, lines of later steps are dropped, so that the file reads as one uninterrupted run.
    """

    def __init__(self, path: Path, step: int = 0) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = [row for row in read_metrics(path) if row.get("step", 0) <= step] if step else []
        partial = temporary(path)
        partial.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
        partial.replace(path)
        self._file = path.open("a", encoding="utf-8")

    def __call__(self, event: Event) -> None:
        for name, kind in RECORDED.items():
            if isinstance(event, kind):
                row: dict[str, Any] = {"event": name, **asdict(event)}
                row.update(row.pop("extra", {}))
                self._file.write(json.dumps({k: _plain(v) for k, v in row.items()}) + "\n")
                self._file.flush()

    def close(self) -> None:
        self._file.close()


def _plain(value: Any) -> Any:
    """JSON has no NaN and no infinity."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All complete lines of a `metrics.jsonl`; a last line cut short by a kill is left out."""
    if not path.is_file():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows
