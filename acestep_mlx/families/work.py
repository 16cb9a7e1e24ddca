"""What a GPU has to do in a training step, counted: kernels, bytes, FLOPs, for the models at true size.

`benchmarks/traffic.py --table` counts and writes each family's `work.json`: bits of a weight → seconds of
music → with every block recomputed, the same but for its linear layers, and with everything kept → [kernels,
bytes, the products' bytes, FLOPs].
"""

from __future__ import annotations

from bisect import bisect
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from ..io.schema import read_json

SECONDS = (30, 60, 120, 240)  # of music, that every table has


class Work(NamedTuple):
    """Of one step at batch 1 and rank 16."""

    kernels: float
    bytes: float
    product_bytes: float
    flops: float

    def seconds(self, products: float, bandwidth: float, launch: float) -> float:
        """At so many FLOPs and bytes a second, and seconds from a kernel to the next: what is no product
        waits for memory, and products for arithmetic or for memory, whichever is longer.
        """
        waiting = max(self.flops / products, self.product_bytes / bandwidth)
        return waiting + (self.bytes - self.product_bytes) / bandwidth + self.kernels * launch

    def between(self, other: Work, part: float) -> Work:
        """This at 0, the other at 1, and on that line beyond."""
        return Work(*(a + part * (b - a) for a, b in zip(self, other, strict=True)))


def work_file(family: str) -> Path:
    """Where a family's counts are."""
    return Path(__file__).parent / family / "work.json"


@cache
def _table(family: str) -> Any:
    return read_json(work_file(family))


def step_work(family: str, bits: int, seconds: float, recomputed: float, products_kept: float = 0.0) -> Work:
    """Of a step on so many seconds of music; lengths that were not counted lie on a line through two that
    were. recomputed: the share of the blocks that compute their activations again; products_kept: of those
    that do so but for their linear layers.
    """
    counted = _table(family)[str(bits)]
    lengths = sorted(map(int, counted))
    place = min(max(bisect(lengths, seconds), 1), len(lengths) - 1)
    pair = lengths[place - 1], lengths[place]
    shares = {"recomputed": recomputed, "products": products_kept, "kept": 1 - recomputed - products_kept}
    below, above = (
        Work(*(sum(share * row[way][i] for way, share in shares.items()) for i in range(len(Work._fields))))
        for row in (counted[str(length)] for length in pair)
    )
    return below.between(above, (seconds - pair[0]) / (pair[1] - pair[0]))
