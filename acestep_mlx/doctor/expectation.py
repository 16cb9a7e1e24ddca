"""What a training step would take on this machine: memory by the estimate of `--dry-run`, time by counts.

The time is what the step's counted products and traffic need at the rates that were measured here: about the
least that it can be, and for a GPU. No step of a true model was run.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from ..config.read_run import load_config
from ..families import families
from ..families.work import SECONDS, step_work
from ..training.memory import CAUTION, budget, choose_blocks, estimate, released_sizes
from .speed import Speed

PRECISIONS = {16: "no_change", 8: "int8-quanto", 4: "int4-quanto"}  # bits → base_model_precision


class Expected(NamedTuple):
    """memory: bytes. recomputed: the share of the blocks that compute their activations again, as a run here
    would choose it.
    """

    family: str
    bits: int
    seconds: int
    step_seconds: float
    memory: int
    fits: bool
    recomputed: float


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
                blocks = choose_blocks(config, load, model, CAUTION * room, None)
                total = estimate(config, load, model=model, checkpointed=blocks).total
                share = blocks / model.blocks
                work = step_work(family.name, bits, seconds, share)
                taken = work.seconds(speed.rate(bits), speed.bandwidth, speed.launch)
                yield Expected(family.name, bits, seconds, taken, int(total), total <= room, share)
