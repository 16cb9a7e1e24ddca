"""What a training step would take on this machine: memory and time as `training.pace` estimates them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from ..config.read_run import load_config
from ..families import families
from ..families.work import SECONDS
from ..training.memory import budget, released_sizes
from ..training.pace import expected_step
from .speed import Speed

PRECISIONS = {16: "no_change", 8: "int8-quanto", 4: "int4-quanto"}  # bits → base_model_precision


class Expected(NamedTuple):
    """memory: bytes. recomputed: the share of the blocks that compute their activations again, as a run here
    would choose it; products_kept: of those that do so but for their linear layers.
    """

    family: str
    bits: int
    seconds: int
    step_seconds: float
    memory: int
    fits: bool
    recomputed: float
    products_kept: float = 0.0


def expected(speed: Speed) -> Iterator[Expected]:
    """Of each family's default model, at batch 1 and rank 16."""
    room = budget()
    for family in families():
        for bits, precision in PRECISIONS.items():
            flavour = next(iter(family.variants))
            config = load_config({"model_flavour": flavour, "base_model_precision": precision})
            model = released_sizes(config)
            for seconds in SECONDS:
                load = family.memory.load(float(seconds))
                step = expected_step(config, load, speed.rates(bits), room, model=model)
                fits = step.memory <= room
                shares = step.recomputed, step.products_kept
                yield Expected(family.name, bits, seconds, step.seconds, step.memory, fits, *shares)
