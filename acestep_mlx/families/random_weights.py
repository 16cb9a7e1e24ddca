"""Checkpoints with random weights, written slice by slice: for the demo, tests and benchmarks."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import mlx.core as mx
import numpy as np

from ..io.tensors import SafetensorsWriter, dtype_name

Shape = tuple[int, ...]
SLICE = 1 << 24  # elements that are in memory at a time


@dataclass(frozen=True)
class Spec:
    """One tensor: normal with `std` around `mean` (std 0: a constant).

    drawn_as: the name by which its numbers are drawn; its own unless two layouts are to have the same.
    """

    name: str
    shape: Shape
    std: float
    mean: float = 0.0
    drawn_as: str | None = None


def write_weights(
    folder: Path,
    stem: str,
    specs: Sequence[Spec],
    shards: int,
    seed: int,
    dtype: str,
) -> None:
    """The tensors in one file, or in so many with an index. Same seed, same bytes."""
    kind = getattr(mx, dtype)
    cuts = np.array_split(np.arange(len(specs)), shards)
    weight_map: dict[str, str] = {}
    total = 0
    for number, cut in enumerate(cuts, 1):
        part = [specs[i] for i in cut]
        name = f"{stem}.safetensors" if shards == 1 else f"{stem}-{number:05d}-of-{shards:05d}.safetensors"
        tensors = {spec.name: (dtype_name(kind), spec.shape) for spec in part}
        with SafetensorsWriter(folder / name, tensors, {"format": "pt"}) as writer:
            for spec in part:
                for values in random_values(spec, seed):
                    writer.write(spec.name, mx.array(values).astype(kind))
        weight_map.update(dict.fromkeys(tensors, name))
        total += writer.size
    if shards > 1:
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def random_values(spec: Spec, seed: int) -> Iterator[np.ndarray]:
    """A tensor's values in flat slices, the same for a seed and a name."""
    rng = np.random.default_rng([seed, zlib.crc32((spec.drawn_as or spec.name).encode())])
    left = prod(spec.shape)
    while left:
        count = min(left, SLICE)
        left -= count
        if spec.std:
            yield rng.standard_normal(count, np.float32) * np.float32(spec.std) + np.float32(spec.mean)
        else:
            yield np.full(count, spec.mean, np.float32)
