"""Many small arrays as one row, so that what treats them all alike is one kernel and not one for each."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import mlx.core as mx

CHUNK = 1024


@dataclass(frozen=True)
class Row:
    """Where in a row (n,) the arrays of these shapes are, in order."""

    shapes: Mapping[str, tuple[int, ...]]

    @classmethod
    def of(cls, arrays: Mapping[str, mx.array]) -> Row:
        return cls({name: array.shape for name, array in arrays.items()})

    @cached_property
    def ends(self) -> list[int]:
        """Where each array ends."""
        return list(accumulate(math.prod(shape) for shape in self.shapes.values()))

    @property
    def size(self) -> int:
        return self.ends[-1] if self.ends else 0

    def pack(self, arrays: Mapping[str, mx.array]) -> mx.array:
        """(n,) float32."""
        return mx.concatenate([arrays[name].reshape(-1) for name in self.shapes]).astype(mx.float32)

    def unpack(self, row: mx.array) -> dict[str, mx.array]:
        """The arrays, as views of the row."""
        parts = mx.split(row, self.ends[:-1])
        return {k: part.reshape(shape) for (k, shape), part in zip(self.shapes.items(), parts, strict=True)}


def squared_norm(row: mx.array) -> mx.array:
    """Σ x² of a float32 row: of chunks first, so that no long sum loses digits."""
    whole = row.size // CHUNK * CHUNK
    total = mx.sum(mx.square(row[whole:]))
    if whole:
        total = total + mx.sum(mx.sum(mx.square(row[:whole].reshape(-1, CHUNK)), axis=-1))
    return total
