"""How long a training step takes on a machine, estimated: what it has to do, at the machine's rates.

The work is counted (`families.work`), the rates are measured (`doctor.speed`) or a vendor's. What `doctor`
and `new` say and the README's table of Macs are this one estimate. On a GPU it was compared with no step yet.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from ..config.run import RunConfig
from ..families import of_flavour
from ..families.protocol import Family, Load
from ..families.work import Work, step_work
from .memory import CAUTION, Recomputed, choose_blocks, estimate, weight_bytes

REACHED = 0.75  # of a vendor's figures, that large products and copies reach: a guess
SLACK = 1.5  # times what the kernels need one after the other at measured rates; see benchmarks/pace.py
LAUNCH = 2e-6  # seconds from one kernel to the next, about what Metal needs
COUNTED_BITS = (4, 8, 16)  # of a weight, that the tables have


class Rates(NamedTuple):
    """products: FLOPs a second of products with a weight. bandwidth: bytes a second, read and written.
    launch: seconds from one kernel to the next.
    """

    products: float
    bandwidth: float
    launch: float = LAUNCH

    def reached(self) -> Rates:
        """Of vendor's figures what a program measures."""
        return Rates(self.products * REACHED, self.bandwidth * REACHED, self.launch / REACHED)


#: vendors' figures: FLOPs a second in float32 (H100: of 16-bit products), bytes a second
NOMINAL = {
    "M1": Rates(2.6e12, 68e9),
    "M2": Rates(3.6e12, 100e9),
    "M1 Pro": Rates(5.2e12, 200e9),
    "M1 Max": Rates(10.4e12, 400e9),
    "M2 Max": Rates(13.6e12, 400e9),
    "M2 Ultra": Rates(27.2e12, 800e9),
    "M4 Max": Rates(18.4e12, 546e9),
    "H100": Rates(989e12, 3350e9),
}


class Step(NamedTuple):
    """seconds: about what it takes. memory: bytes at its peak. recomputed: the share of the blocks that
    compute their activations again, as a run would choose it; products_kept: of those that do so but for
    their linear layers.
    """

    seconds: float
    memory: int
    recomputed: float
    products_kept: float = 0.0


def expected_step(
    config: RunConfig, load: Load, rates: Rates, room: float, *, model: Any, stored_bits: int | None = None
) -> Step:
    """Of one song. room: bytes that a run may use. model: sizes of the transformer. stored_bits: of the model
    folder's weights, where they are quantised.
    """
    again, products = chosen = recomputed(config, load, room, model=model, stored_bits=stored_bits)
    total = estimate(
        config, load, model=model, stored_bits=stored_bits, checkpointed=again, products=products
    ).total
    length = of_flavour(config.model_flavour).latents.seconds(load.frames)
    seconds = song_seconds(config, length, chosen, rates, model=model, stored_bits=stored_bits)
    return Step(seconds, int(total), again / model.blocks, products / model.blocks)


def recomputed(
    config: RunConfig, load: Load, room: float, *, model: Any, stored_bits: int | None = None
) -> Recomputed:
    """What a run on such batches computes again; see `expected_step`."""
    if not config.gradient_checkpointing:
        return Recomputed()
    return choose_blocks(config, load, model, CAUTION * room, stored_bits)


def song_seconds(
    config: RunConfig,
    length: float,
    again: Recomputed,
    rates: Rates,
    *,
    model: Any,
    stored_bits: int | None = None,
) -> float:
    """Of a step on one song of `length` seconds in a run that computes so much again; see `expected_step`."""
    family = of_flavour(config.model_flavour)
    bits = stored_bits or (config.quantization or {}).get("bits") or 16
    wholly, products = (blocks / model.blocks for blocks in again)
    return step_seconds(family, bits, length, wholly, rates, model, products_kept=products)


def step_seconds(
    family: Family,
    bits: int,
    seconds: float,
    recomputed: float,
    rates: Rates,
    model: Any = None,
    *,
    products_kept: float = 0.0,
) -> float:
    """Of a song of so many seconds. model: sizes of the transformer, where it is not the counted one's."""
    counted = next(n for n in COUNTED_BITS if n >= bits)
    work = step_work(family.name, counted, seconds, recomputed, products_kept)
    if model is not None:
        work = _of_size(work, family, model)
    return SLACK * work.seconds(*rates)


def _of_size(work: Work, family: Family, model: Any) -> Work:
    """What was counted for the family's first variant, for another size: by weights, kernels by blocks."""
    first = family.components["transformer"].config(**next(iter(family.variants.values())).transformer)
    if model == first:
        return work
    weights, counted = (weight_bytes(family, sizes, None, 64, 1) for sizes in (model, first))
    scale = weights / counted
    kernels = work.kernels * model.blocks / first.blocks
    return Work(kernels, work.bytes * scale, work.product_bytes * scale, work.flops * scale)
