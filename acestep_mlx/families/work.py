"""What a GPU has to do in a training step, counted: kernels, bytes, FLOPs, for the models at true size.

`benchmarks/traffic.py --table` counts and writes each family's `work.json`: bits of a weight → seconds of
music → with every block recomputed, and with everything kept → [kernels, bytes, the products' bytes, FLOPs].
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from ..io.schema import read_json

SECONDS = (30, 60, 120, 240)  # of music, that the tables have


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


def work_file(family: str) -> Path:
    """Where a family's counts are."""
    return Path(__file__).parent / family / "work.json"


@cache
def _table(family: str) -> Any:
    return read_json(work_file(family))


def step_work(family: str, bits: int, seconds: int, recomputed: float) -> Work:
    """Of a step on so many seconds of music as the table has. recomputed: the share of the blocks that
    compute their activations again.
    """
    row = _table(family)[str(bits)][str(seconds)]
    pairs = zip(row["kept"], row["recomputed"], strict=True)
    return Work(*(kept + recomputed * (again - kept) for kept, again in pairs))
