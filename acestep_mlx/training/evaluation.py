"""The loss on fixed songs with fixed noise, per timestep bin: the number that runs can be compared by."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn

from ..families.protocol import Batch, Objective, Prepare
from ..io.hashes import cache_key
from ..io.progress import Advance, Progress, silent
from ..lora.surgery import evaluating

#: timesteps in the middle of five equal bins of [0, 1000]
TIMESTEPS = (100.0, 300.0, 500.0, 700.0, 900.0)


def label(timestep: float) -> str:
    """`"0-200"` for the bin around timestep 100."""
    half = 500.0 / len(TIMESTEPS)
    return f"{timestep - half:.0f}-{timestep + half:.0f}"


class Measured(NamedTuple):
    """loss: mean over songs and bins. bins: label → mean over songs. songs: name → mean over bins."""

    loss: float
    bins: dict[str, float]
    songs: dict[str, float]


class Evaluation:
    """Losses of `batches` (as `Batches.evaluation` makes them) at TIMESTEPS; draws and changes nothing.

    progress: is told how many of them are measured.
    """

    def __init__(
        self,
        model: nn.Module,
        batches: Sequence[Mapping[str, Any]],
        objective: Objective,
        dtype: mx.Dtype,
        prepare: Prepare | None = None,
    ) -> None:
        self.model, self.batches, self.objective, self.dtype = model, batches, objective, dtype
        self.prepare = prepare
        self.names = _names(batches)
        self.progress: Progress = silent
        self.measured = cache_key(songs=self.names, noise=[batch["keys"].tolist() for batch in batches],
                                  of=[batch.get("of") for batch in batches])  # fmt: skip
        self._run = partial(mx.compile, inputs=model.state, outputs=model.state)(self._losses)

    def _losses(self, batch: Batch, timestep: mx.array) -> mx.array:
        draw = self.objective.fixed(batch, timestep / 1000)
        return mx.mean(self.objective.losses(self.model, batch, draw, self.dtype))

    def __call__(self, stopped: Callable[[], bool] = lambda: False) -> Measured | None:
        """The losses; None once `stopped` says so."""
        sums = [0.0] * len(TIMESTEPS)
        songs: dict[str, float] = {}
        with evaluating(self.model):
            for name, batch in zip(self.names, self.batches, strict=True):
                if stopped():
                    return None
                arrays = {k: v for k, v in batch.items() if isinstance(v, mx.array)}
                if self.prepare is not None:
                    arrays = self.prepare(arrays)
                losses = []
                for timestep in TIMESTEPS:
                    losses.append(float(self._run(arrays, mx.array(timestep)).item()))  # type: ignore[arg-type]
                    done = len(songs) * len(TIMESTEPS) + len(losses)
                    self.progress(Advance(done=done, total=len(self.batches) * len(TIMESTEPS)))
                sums = [total + loss for total, loss in zip(sums, losses, strict=True)]
                songs[name] = sum(losses) / len(losses)
        count = max(1, len(self.batches))
        bins = {label(t): s / count for t, s in zip(TIMESTEPS, sums, strict=True)}
        return Measured(sum(bins.values()) / len(bins), bins, songs)


def _names(batches: Sequence[Mapping[str, Any]]) -> list[str]:
    """The song of each batch, no two of them alike."""
    given = [str(batch["ids"][0]) if "ids" in batch else "song" for batch in batches]
    return [name if given.count(name) == 1 else f"{name} ({i})" for i, name in enumerate(given, 1)]
