"""What happens during a run, as plain data: the loop emits events, the CLI draws them, files keep them."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from ..formatting import count, listed
from ..io import schema
from ..io.atomic import write_bytes
from ..io.progress import Advance


@dataclass(frozen=True)
class Event:
    """Base of all events."""


@dataclass(frozen=True)
class Notice(Event):
    """Something to say once. `level` is info or warning."""

    text: str
    level: str = "info"


@dataclass(frozen=True)
class Advanced(Event):
    """A stage of the preparation is further on."""

    advance: Advance


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

    Units: `elapsed` and `eta` seconds of this process, `peak_memory` bytes, rates per second. eta: of all
    that is still to come; eta_open: something of it was never done in this run, and is not in `eta`.
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
    eta_open: bool = False


@dataclass(frozen=True)
class Evaluated(Event):
    """Loss on the fixed evaluation set: the mean, per timestep bin (label → loss) and per song.

    measured: which songs and noise, as a hash; evaluations with the same one can be compared song by song.
    verdict: whether it is going well, in a sentence; verdict_kind: early, learning, flat, memorising or
    unstable.
    """

    step: int
    loss: float
    bins: Mapping[str, float]
    songs: Mapping[str, float] = field(default_factory=dict)
    measured: str = ""
    verdict: str = ""
    verdict_kind: str = ""


@dataclass(frozen=True)
class AverageEvaluated(Event):
    """The same with the averaged weights, for comparison."""

    step: int
    loss: float
    bins: Mapping[str, float]


@dataclass(frozen=True)
class ValidationClip(Event):
    """One generated clip. `with_lora` is false for the same prompt and seed without the LoRA; `averaged` is
    true for one with the averaged weights. `loudness`: LUFS, or not finite where it was not measured.
    """

    step: int
    name: str
    prompt: str
    path: str
    seed: int
    with_lora: bool = True
    averaged: bool = False
    lyrics: str = ""
    loudness: float = math.nan


@dataclass(frozen=True)
class CheckpointSaved(Event):
    """A checkpoint is complete on disk. `best`: that with the lowest evaluation loss, where any was
    measured."""

    step: int
    path: str
    removed: tuple[str, ...] = ()
    best: str = ""


@dataclass(frozen=True)
class Finished(Event):
    """The run is over. `reason` is done, early (the evaluation loss fell no more) or interrupted; `lora` is
    None when interrupted. `average`: the LoRA of the averaged weights. `best`: see `CheckpointSaved`.
    """

    step: int
    reason: str
    lora: str | None
    report: str | None
    skipped_steps: int = 0
    average: str | None = None
    best: str = ""


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

    def progress(self, advance: Advance) -> None:
        """For work that reports to a `Progress`."""
        self(Advanced(advance) if advance.total else Notice(advance.stage))

    def notice(self, text: str, level: str = "info") -> None:
        self(Notice(text, level))


#: the events that metrics.jsonl keeps, by the name in its `event` column
RECORDED: dict[str, type[Event]] = {
    "step": StepDone,
    "eval": Evaluated,
    "eval_average": AverageEvaluated,
    "clip": ValidationClip,
    "checkpoint": CheckpointSaved,
}


class MetricsFile:
    """`metrics.jsonl`: one JSON object per recorded event, appended and flushed line by line.

    On resume at `step`, lines of later steps are dropped, so that the file reads as one uninterrupted run. A
    line that cannot be written waits for the next one, and `failed` is called, so that a disk that is full of
    numbers ends a run with a checkpoint. Raises OSError when the file cannot be begun.
    """

    def __init__(
        self, path: Path, step: int = 0, failed: Callable[[OSError], None] = lambda error: None
    ) -> None:
        self.path, self.failed = path, failed
        self.failure: OSError | None = None
        self._waiting = b""
        path.parent.mkdir(parents=True, exist_ok=True)
        self.damaged: list[str] = []  # lines of an earlier part of the run that could not be read
        kept = [row for row in read_metrics(path, self.damaged) if row["step"] <= step] if step else []
        write_bytes(path, "".join(json.dumps(row) + "\n" for row in kept).encode())
        self._file = path.open("ab", buffering=0)

    def __call__(self, event: Event) -> None:
        for name, kind in RECORDED.items():
            if isinstance(event, kind):
                row: dict[str, Any] = {"event": name, **asdict(event)}
                row.update(row.pop("extra", {}))
                self._waiting += (json.dumps(_plain(row)) + "\n").encode()
                self._write()

    def _write(self) -> None:
        self.failure = None
        try:
            while self._waiting:
                self._waiting = self._waiting[self._file.write(self._waiting) or 0 :]
        except OSError as error:
            self.failure = error
            self.failed(error)

    def close(self) -> None:
        self._write()
        with contextlib.suppress(OSError):
            self._file.close()


def _plain(value: Any) -> Any:
    """JSON has no NaN and no infinity."""
    if isinstance(value, Mapping):
        return {name: _plain(one) for name, one in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


OTHER_RATE = "learning_rate_"  # of what is trained beside the LoRA, with its name behind
PART = "/"  # in the name of a part of the loss
_number = schema.optional(schema.number(-1e50, 1e50))  # null: it was not finite
#: by the type of an event's field: what metrics.jsonl may hold for it, and what stands for it where it lacks
_BY_TYPE: dict[str, tuple[schema.Check, Any]] = {
    "int": (schema.whole(0, 2**63 - 1), 0),
    "float": (_number, None),
    "bool": (schema.flag, False),
    "str": (schema.text, ""),
    "Mapping[str, float]": (schema.table(_number), {}),
    "tuple[str, ...]": (schema.items(schema.path_text), ()),
}


def _row_schema(kind: type[Event]) -> tuple[schema.Check, dict[str, Any]]:
    """The check of a row, made from its event's fields, and their defaults. `extra` lies among them."""
    kinds = {f.name: _BY_TYPE[str(f.type)] for f in fields(kind) if f.name not in ("step", "extra")}
    checks = {name: check for name, (check, _) in kinds.items()}
    if "path" in checks:
        checks["path"] = schema.path_text

    def check(row: Any, where: str) -> dict[str, Any]:
        rates = {name: _number for name in row if name.startswith(OTHER_RATE) or PART in name}
        found: dict[str, Any] = schema.record({"step": schema.whole(0, 10**9)}, checks | rates)(row, where)
        return found

    return check, {n: d for n, (_, d) in kinds.items()}


_ROWS = {name: _row_schema(kind) for name, kind in RECORDED.items()}


def read_metrics(path: Path, damaged: list[str] | None = None) -> list[dict[str, Any]]:
    """The rows of a `metrics.jsonl`, each with all of its event's columns (see `_BY_TYPE`).

    Events that this version does not know are left out. A line that is no such row is left out too, and
    named in `damaged`; but not a last line that a kill has cut short.
    """
    if not path.is_file():
        return []
    rows = []
    with schema.open_file(path) as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = schema.parse_json(line)
                if not isinstance(row, dict) or not isinstance(row.get("event"), str):
                    raise schema.Mismatch("no event in it")
                if row["event"] in _ROWS:
                    check, defaults = _ROWS[row["event"]]
                    checked = check(row, "")
                    rows.append(checked | {k: v for k, v in defaults.items() if k not in checked})
            except (ValueError, schema.Mismatch) as error:
                if damaged is not None and line.endswith(b"\n"):
                    damaged.append(f"line {number}: {error}")
    return rows


def damage(path: Path, damaged: Sequence[str]) -> str:
    """What `read_metrics` has left out, as a sentence."""
    return f"{path}: {count(len(damaged), 'line')} damaged and left out ({listed(damaged)})"
