"""The loss on fixed songs with fixed noise, per timestep bin: the number that runs can be compared by."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from ..families.protocol import Batch, Objective, Prepare
from ..lora.surgery import evaluating

#: timesteps in the middle of five equal bins of [0, 1000]
TIMESTEPS = (100.0, 300.0, 500.0, 700.0, 900.0)


def label(timestep: float) -> str:
    """`"0-200"` for the bin around timestep 100."""
    half = 500.0 / len(TIMESTEPS)
    return f"{timestep - half:.0f}-{timestep + half:.0f}"


class Evaluation:
    """Losses of `batches` (as `Batches.evaluation` makes them) at TIMESTEPS; draws and changes nothing."""

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
        self._run = partial(mx.compile, inputs=model.state, outputs=model.state)(self._losses)

    def _losses(self, batch: Batch, timestep: mx.array) -> mx.array:
        draw = self.objective.fixed(batch, timestep / 1000)
        return mx.mean(self.objective.losses(self.model, batch, draw, self.dtype))

    def __call__(self, stopped: Callable[[], bool] = lambda: False) -> tuple[float, dict[str, float]] | None:
        """(mean over songs and bins, label → mean over songs); None once `stopped` says so."""
        sums = [0.0] * len(TIMESTEPS)
        with evaluating(self.model):
            for batch in self.batches:
                if stopped():
                    return None
                arrays = {k: v for k, v in batch.items() if isinstance(v, mx.array)}
                if self.prepare is not None:
                    arrays = self.prepare(arrays)
                for i, timestep in enumerate(TIMESTEPS):
                    sums[i] += float(self._run(arrays, mx.array(timestep)).item())  # type: ignore[arg-type]
        count = max(1, len(self.batches))
        bins = {label(t): s / count for t, s in zip(TIMESTEPS, sums, strict=True)}
        return sum(bins.values()) / len(bins), bins
