"""Miniatures of a family's networks whose numbers are known: what `doctor` computes, and parity tests too.

Numbers come from integer arithmetic alone, the same with every version of every library. What PyTorch's
reference makes of them ships beside each family as `known.json`, written by `tests/parity/known.py`.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod, sqrt
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..io.schema import read_json
from .random_weights import Shape, Spec

if TYPE_CHECKING:
    import mlx.core as mx

Known = Mapping[str, Mapping[str, Any]]  # output → what `summary` says of it
SAMPLES = 64  # numbers of an output that are kept


@dataclass(frozen=True)
class Example:
    """A miniature of one component, and a question.

    config: as upstream's config.json says it. specs: its tensors in upstream's layout, by the names that its
    key map knows. given: inputs. run: the module and the inputs → outputs by name. limit: the largest
    relative error that rounding may make, in float32.
    """

    component: str
    config: Mapping[str, Any]
    specs: Sequence[Spec]
    given: Mapping[str, np.ndarray]
    run: Callable[[Any, Mapping[str, mx.array]], Mapping[str, mx.array]]
    limit: float = 1e-4


@dataclass(frozen=True)
class StepExample:
    """A training step of the miniature of the component `transformer`.

    objective: a `protocol.Objective`. batch: as `Family.collate` gives it. noise, sigma, more: what is drawn
    for it (`protocol.Draw`).
    """

    objective: Any
    batch: Mapping[str, np.ndarray]
    noise: np.ndarray
    sigma: np.ndarray
    more: Mapping[str, np.ndarray]
    rank: int = 2
    alpha: float = 3.0
    limit: float = 1e-3


@dataclass(frozen=True)
class Examples:
    """Of a family: one of each component, and the step."""

    components: Sequence[Example]
    step: StepExample

    @property
    def transformer(self) -> Example:
        return next(one for one in self.components if one.component == "transformer")


# ── numbers ───────────────────────────────────────────────────────────────────────────────────────────
def _bits(name: str, count: int) -> np.ndarray:
    """Sixty-four mixed bits for each of `count` places (splitmix64), uint64."""
    z = np.arange(count, dtype=np.uint64) + np.uint64(zlib.crc32(name.encode()) << 32)
    z *= np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1)):
        z ^= z >> np.uint64(shift)
        z *= np.uint64(factor)
    return z


def uniform(name: str, shape: Shape) -> np.ndarray:
    """float32 in [0, 1), other ones for each name."""
    found: np.ndarray = (_bits(name, prod(shape)) >> np.uint64(40)).astype(np.float32) * np.float32(2**-24)
    return found.reshape(shape)


def spread(name: str, shape: Shape, std: float = 1.0, mean: float = 0.0) -> np.ndarray:
    """float32 of this mean and deviation, evenly distributed."""
    found: np.ndarray = (uniform(name, shape) - np.float32(0.5)) * np.float32(sqrt(12) * std)
    return found + np.float32(mean)


def integers(name: str, shape: Shape, below: int) -> np.ndarray:
    """int32 in [0, below)."""
    return (_bits(name, prod(shape)) % np.uint64(below)).astype(np.int32).reshape(shape)


def lengths(size: int, *valid: int) -> np.ndarray:
    """A mask (len(valid), size) float32: 1 at the beginning of each row."""
    return (np.arange(size)[None] < np.array(valid)[:, None]).astype(np.float32)


def tensors(example: Example) -> dict[str, np.ndarray]:
    """The miniature's weights."""
    named = {spec.name: (spec.drawn_as or f"{example.component}.{spec.name}", spec) for spec in example.specs}
    return {name: spread(key, spec.shape, spec.std, spec.mean) for name, (key, spec) in named.items()}


def adapter(path: str, inputs: int, outputs: int, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """A LoRA's A (inputs, rank) and B (rank, outputs), neither of them zero."""
    a = spread(f"{path}.lora_a", (inputs, rank), inputs**-0.5)
    return a, spread(f"{path}.lora_b", (rank, outputs), 0.1)


# ── what the reference made of them ───────────────────────────────────────────────────────────────────
def summary(found: np.ndarray) -> dict[str, Any]:
    """Shape, norm, and numbers from places that are spread over the array."""
    flat = found.astype(np.float64).reshape(-1)
    places = _places(flat.size)
    return {
        "shape": list(found.shape),
        "norm": _short(float(np.linalg.norm(flat))),
        "sample": [_short(x) for x in flat[places].tolist()],
    }


def _places(size: int) -> np.ndarray:
    return np.arange(size) if size <= SAMPLES else np.sort(integers("sample", (SAMPLES,), size))


def _short(x: float) -> float:
    return float(f"{x:.8g}")


def error(found: np.ndarray, known: Mapping[str, Any]) -> float:
    """The relative error of an output: of its norm or of the sample, whichever is worse; inf for another
    shape and for what is no number.
    """
    if list(found.shape) != known["shape"] or not np.isfinite(found).all():
        return float("inf")
    flat, sample = found.astype(np.float64).reshape(-1), np.array(known["sample"])
    of_norm = abs(np.linalg.norm(flat) / known["norm"] - 1)
    return float(max(of_norm, np.linalg.norm(flat[_places(flat.size)] - sample) / np.linalg.norm(sample)))


def known_file(family: str) -> Path:
    """Where a family's numbers are."""
    return Path(__file__).parent / family / "known.json"


def known_numbers(family: str) -> Mapping[str, Known]:
    """Example → output → summary."""
    found: Mapping[str, Known] = read_json(known_file(family))
    return found
