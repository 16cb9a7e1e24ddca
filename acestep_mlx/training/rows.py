"""Many small arrays as few rows: what treats them all alike is a kernel a row, and not one for each."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import mlx.core as mx

CHUNK = 1024
LONGEST = 1 << 21  # numbers of a row: what an update computes on the way is as long (8 MB)


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


@dataclass(frozen=True)
class Rows:
    """Arrays in rows of at most LONGEST numbers, or of one array that is longer."""

    rows: Mapping[str, Row]

    @classmethod
    def of(cls, arrays: Mapping[str, mx.array], name: str = "row") -> Rows:
        """name: what the rows' names begin with."""
        found: list[dict[str, tuple[int, ...]]] = []
        length = LONGEST
        for path, array in arrays.items():
            if length + array.size > LONGEST:
                found.append({})
                length = 0
            found[-1][path] = array.shape
            length += array.size
        return cls({f"{name} {i}": Row(shapes) for i, shapes in enumerate(found)})

    def pack(self, arrays: Mapping[str, mx.array]) -> dict[str, mx.array]:
        """Name of a row → (n,) float32."""
        return {name: row.pack(arrays) for name, row in self.rows.items()}

    def unpack(self, rows: Mapping[str, mx.array]) -> dict[str, mx.array]:
        """The arrays, as views of the rows."""
        return {k: v for name, row in self.rows.items() for k, v in row.unpack(rows[name]).items()}

    def zeros(self) -> dict[str, mx.array]:
        return {name: mx.zeros(row.size) for name, row in self.rows.items()}

    @property
    def paths(self) -> list[str]:
        """Names of the arrays, in order."""
        return [path for row in self.rows.values() for path in row.shapes]


def squared_norm(rows: Mapping[str, mx.array]) -> mx.array:
    """Σ x² of float32 rows: of chunks first, so that no long sum loses digits."""
    return sum((_squared(row) for row in rows.values()), mx.array(0.0))


def _squared(row: mx.array) -> mx.array:
    whole = row.size // CHUNK * CHUNK
    total = mx.sum(mx.square(row[whole:]))
    if whole:
        total = total + mx.sum(mx.sum(mx.square(row[:whole].reshape(-1, CHUNK)), axis=-1))
    return total
