"""How much memory a training step takes, before any weight is loaded, and what fits which Mac.

Weights, LoRA and optimizer are counted exactly from the model's configuration. What activations take, the
family says (`families.protocol.StepMemory`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import mlx.core as mx
from mlx.utils import tree_flatten

from ..config.optimizers import OPTIMIZERS
from ..config.run import RunConfig
from ..families import of_flavour
from ..families.model_folder import ModelFolder, quantizable
from ..families.protocol import Component, Family, Load
from ..families.songs import Shape
from ..formatting import count, size
from ..lora.surgery import AdapterSpec, adapter_keeps, adapter_size, target_shapes
from ..nn.device import cache_limit as cache_limit
from ..nn.device import machine_memory as machine_memory
from .rows import LONGEST
from .settings import COMPUTE_DTYPES, full_training, further_loss, lora_spec, rollout_settings

if TYPE_CHECKING:
    from .preflight import BaseModel

GB = 1e9
MACS = (8, 16, 24, 36, 64)  # GB of unified memory
COUNTED, COUNTED_LETTERS = 3, 40_000  # lyrics of a bucket whose tokens are counted, and how much of each


UPDATE = 1.5  # of the trained parameters' bytes: what an update takes beside them, moments and gradients
ROWS = 3.3  # of the longest row's bytes: what it takes for the rows that are in work
CAUTION = 0.7  # share of the usable memory that the estimate may take when checkpointing is chosen
CARD = 0.9  # share of an NVIDIA card's memory; the rest is the driver's and the libraries'
LEAST_CACHE = 128 << 20  # also where nothing is left
IN_WORK = 3  # arrays of a LoKr layer beside those that it keeps
RESULTS = "linear layers' results"
FIXED = 0.15 * GB  # the program itself, compiled graphs, buffers kept for reuse


@dataclass(frozen=True)
class Estimate:
    """Bytes by part; `total` is the expected peak."""

    parts: Mapping[str, float] = field(default_factory=dict)

    @property
    def total(self) -> float:
        return sum(self.parts.values())


class Recomputed(NamedTuple):
    """How many blocks of a model are computed again in the backward pass: of the first ones everything, of
    those after them all but the results of their linear layers, which are kept. The others keep everything.

    From `level` to level more is computed again and less is kept. What linear layers give is kept of every
    block before anything else is of one: for a byte it saves many times the work.
    """

    wholly: int = 0
    but_products: int = 0

    @classmethod
    def of(cls, level: int, blocks: int) -> Recomputed:
        """level: from 0, nothing is, to 2 · blocks, everything."""
        return cls(max(0, level - blocks), min(level, 2 * blocks - level))

    @classmethod
    def resumed(cls, state: Mapping[str, Any], blocks: int) -> Recomputed | None:
        """As the run did it of whose checkpoint this is the state; None where that had nothing to choose."""
        if "checkpointed_blocks" not in state:
            return None
        wholly = min(state["checkpointed_blocks"], blocks)
        return cls(wholly, min(state.get("product_blocks", 0), blocks - wholly))

    @property
    def state(self) -> dict[str, int]:
        """For a checkpoint."""
        return {"checkpointed_blocks": self.wholly, "product_blocks": self.but_products}

    @property
    def level(self) -> int:
        return 2 * self.wholly + self.but_products


class Heard(NamedTuple):
    """Another model that clips are made through: its sizes, the bits that it is stored in, and what a clip is
    of; its batch is 2 where it is guided.
    """

    model: Any
    stored_bits: int | None
    clip: Load


@lru_cache(maxsize=16)
def weight_bytes(family: Family, config: Any, bits: int | None, group: int, size: int) -> float:
    """Bytes of the frozen transformer, `bits` per weight (and scale and bias per group) where quantised."""
    return component_bytes(family.components["transformer"], config, bits, group, size)


def component_bytes(
    component: Component,
    config: Any,
    bits: int | None,
    group: int,
    size: int,
    used: tuple[str, ...] = ("",),
) -> float:
    """Bytes of a frozen component, of the weights whose paths begin as `used` says."""
    model = component.module(config)  # its arrays stay lazy: only shapes are read
    quantised = {
        f"{path}.weight"
        for path, module in model.named_modules()
        if bits is not None and quantizable(component, path, module, group)
    }
    total = 0.0
    for path, value in dict(tree_flatten(model.parameters())).items():
        if not path.startswith(used):
            continue
        if path in quantised:
            assert bits is not None
            total += value.size * bits / 8 + value.size / group * 2 * size
        else:
            total += value.size * size
    return total


@lru_cache(maxsize=16)
def adapter_parameters(
    family: Family, config: Any, spec: AdapterSpec
) -> tuple[int, int, Mapping[str, tuple[int, int]]]:
    """(LoRA parameters, those of what can be trained in full, (out, in) of the modules with a LoRA)."""
    model = family.components["transformer"].module(config)
    parameters = dict(tree_flatten(model.parameters()))
    whole = sum(v.size for k, v in parameters.items() if f"{k}.".startswith(family.lora.full.prefixes))
    return adapter_size(model, spec), whole, target_shapes(model, spec)


def estimate(
    config: RunConfig,
    load: Load,
    *,
    model: Any | None = None,
    stored_bits: int | None = None,
    checkpointed: int | None = None,
    products: int = 0,
    heard: Heard | None = None,
) -> Estimate:
    """Expected peak of training with `config` on batches like `load`.

    model: sizes (default: the released model's). stored_bits: quantisation of the MLX folder, if any.
    checkpointed: blocks that compute all their activations again (default: all, or none if that is switched
    off); products: others that keep the results of their linear layers.
    heard: what clips are made through, where that is another model.
    """
    family = of_flavour(config.model_flavour)
    model = model or released_sizes(config)
    size = COMPUTE_DTYPES[config.mixed_precision].size
    bits = stored_bits or (config.quantization or {}).get("bits")
    if checkpointed is None:
        checkpointed = model.blocks if config.gradient_checkpointing else 0
    spec = lora_spec(config)
    lora, whole, shapes = adapter_parameters(family, model, spec)
    paths = tuple(shapes)
    in_full = full_training(config)
    if in_full is None:
        whole = 0
    else:
        paths += family.lora.full.prefixes
    accumulates = 1 if config.gradient_accumulation_steps > 1 else 0
    trained = 4.0 * (lora + whole)  # in float32
    kept = OPTIMIZERS[config.optimizer].kept(config.optimizer_config, spec.rank)
    slots = OPTIMIZERS[in_full.optimizer].slots if in_full is not None else 0
    moments = 4.0 * (lora * kept + whole * slots)
    activations = _activations(family, model, load, checkpointed, products, size)
    found = sum(activations.values())
    while_stepping = {
        "gradients": 2 * trained,  # and, within the step, LoRA weights in the activations' precision
        **activations,
        **_products(family, model, load, spec, checkpointed + products, size),
        # Clipped gradients and new moments come one after the other, when the activations are gone.
        "optimizer's step": max(0.0, UPDATE * trained + min(5 * trained, ROWS * 4 * LONGEST) - found),
        **_rollout(config, model, load, size, found),
    }
    further = further_loss(config)
    return Estimate(
        {
            "base weights": weight_bytes(family, model, bits, 64, size),
            "LoRA and optimizer": trained * (1 + accumulates) + moments,
            **({"averaged weights": trained} if config.use_ema else {}),
            **while_stepping,
            **_clips(config, heard, size, trained, sum(while_stepping.values())),
            **family.memory.kept(load, paths),
            **(further.memory(config, model, load) if further is not None else {}),
            "program": FIXED,
        }
    )


def _activations(
    family: Family, model: Any, load: Load, checkpointed: int, products: int, size: int
) -> dict[str, float]:
    """What is alive in the backward pass. Results that the block in work keeps are among its activations."""
    again = checkpointed + products
    parts = {"activations": family.memory.activations(model, load, size, again)}
    if held := products if again < model.blocks else max(0, products - 1):
        parts[RESULTS] = held * product_bytes(family, model, load, size)
    return parts


def product_bytes(family: Family, model: Any, load: Load, size: int) -> float:
    """What a block keeps that keeps the results of its linear layers."""
    return float(sum(p.rows * p.outputs for p in family.memory.products(model, load)[:-1]) * size)


def products_saved(family: Family, model: Any, load: Load, recomputed: Recomputed) -> float:
    """Share of the FLOPs in linear layers that is saved of a step which computes all blocks again: forward,
    as much for the gradient, and once more all but the last layer of each block."""
    layers = family.memory.products(model, load)
    again = sum(p.flops for p in layers[:-1])
    whole = 2 * sum(p.flops for p in layers) + again
    return (model.blocks - recomputed.wholly) * again / (model.blocks * whole) if whole else 0.0


def _clips(
    config: RunConfig, heard: Heard | None, size: int, trained: float, step: float
) -> dict[str, float]:
    """What clips through another model take beyond the `step`, which is over then: its weights, a copy of the
    LoRA, and at most what a step takes that computes all its activations again.
    """
    if heard is None:
        return {}
    family = of_flavour(config.model_flavour)
    model, bits = heard.model, heard.stored_bits or (config.quantization or {}).get("bits")
    taken = weight_bytes(family, model, bits, 64, size) + trained
    taken += family.memory.activations(model, heard.clip, size, model.blocks)
    return {"clips through validation_model": max(0.0, taken - step)}


def _products(
    family: Family, model: Any, load: Load, spec: AdapterSpec, checkpointed: int, size: int
) -> dict[str, float]:
    """At most what a LoKr's products keep for the backward pass: those of blocks that keep theirs, and of
    the one in work; and gradients of the largest layer."""
    total, largest = _kept(family, model, spec)
    if not total:
        return {}
    blocks = model.blocks - checkpointed + min(1, checkpointed)
    numbers = total * blocks / model.blocks + IN_WORK * largest
    return {"LoKr's products": numbers * family.memory.tokens(model, load) * size}


@lru_cache(maxsize=16)
def _kept(family: Family, config: Any, spec: AdapterSpec) -> tuple[int, int]:
    return adapter_keeps(family.components["transformer"].module(config), spec)


def _rollout(config: RunConfig, model: Any, load: Load, size: int, step: float) -> dict[str, float]:
    """What a rollout takes beyond the `step` that follows it, whose activations are not there yet: what the
    conditions were made into, and at most what a step takes that computes all its activations again."""
    if rollout_settings(config) is None:
        return {}
    memory = of_flavour(config.model_flavour).memory
    taken = memory.told(model, load, size) + memory.activations(model, load, size, model.blocks)
    return {"rollout": max(0.0, taken - step)}


def encoding(family: Family, seconds: float, folder: ModelFolder | None = None) -> float:
    """Bytes while songs of at most so many seconds are encoded: of the encoder that takes most, one being
    loaded at a time. folder: the model's (default: a released one, of which `train` quantises nothing else
    than the transformer).
    """
    found = [0.0]
    for one in family.encoders:
        if not (released := _used(family, one.uses, family.released)):
            continue
        here, share = released, 1.0
        if folder is not None:
            here = _used(family, one.uses, folder.component_config, stored_bits(folder))
            share = _used(family, one.uses, folder.component_config) / released
        found.append(here + min(1.0, share) * one.activations(seconds))  # in a miniature everything is small
    return FIXED + max(found)


def _used(
    family: Family,
    uses: Mapping[str, tuple[str, ...]],
    sizes: Callable[[str], Any],
    bits: int | None = None,
) -> float:
    """Bytes of the weights that an encoder takes, in float32 but for quantised ones."""
    parts = family.components
    return sum(component_bytes(parts[name], sizes(name), bits, 64, 4, used) for name, used in uses.items())


def released_sizes(config: RunConfig) -> Any:
    """The config of the transformer that the released model of this flavour has."""
    family = of_flavour(config.model_flavour)
    sizes = family.variants[config.model_flavour].transformer
    return family.components["transformer"].config(**sizes)


def stored_bits(folder: ModelFolder) -> int | None:
    """Bits of a weight as the folder has it, where it is quantised."""
    return (folder.quantization or {}).get("bits")


def usable(memory: float) -> float:
    """What a Mac with so many bytes lets the GPU use, of any Mac: Metal's usual recommended working set."""
    return memory * (2 / 3 if memory <= 36 * GB else 3 / 4)


def budget() -> float:
    """Bytes that this device lets a run use: Metal's own recommended working set, most of a card's memory."""
    info = mx.device_info()
    if working_set := info.get("max_recommended_working_set_size"):
        return float(working_set)
    return machine_memory() * CARD if "total_memory" in info else usable(machine_memory())


def step_cache(
    config: RunConfig,
    shapes: Iterable[Shape],
    model: Any,
    stored_bits: int | None,
    checkpointed: int,
    products: int = 0,
) -> int:
    """Bytes of freed buffers that MLX may keep while steps on batches of these shapes are made: the
    activations of one, where there is room.

    With less, each step would free them and ask the system for them again.
    """
    found = [
        estimate(
            config, load, model=model, stored_bits=stored_bits, checkpointed=checkpointed, products=products
        )
        for load in loads_of(config, shapes)
    ]
    worst = max(found, key=lambda one: one.total)
    freed = worst.parts["activations"] + worst.parts.get(RESULTS, 0.0)
    return int(max(LEAST_CACHE, min(budget() - worst.total, freed)))


def choose_blocks(
    config: RunConfig, load: Load, model: Any, budget: float, stored_bits: int | None
) -> Recomputed:
    """As little as keeps the estimate within `budget` bytes; everything if nothing less does."""
    blocks = int(model.blocks)
    for level in range(2 * blocks):
        found = Recomputed.of(level, blocks)
        checkpointed, products = found
        expected = estimate(
            config, load, model=model, stored_bits=stored_bits, checkpointed=checkpointed, products=products
        )
        if expected.total <= budget:
            return found
    return Recomputed(blocks)


def checkpointed_blocks(
    config: RunConfig, loads: Iterable[Load], model: Any, stored_bits: int | None
) -> Recomputed:
    """As little as this machine allows for such batches."""
    room = CAUTION * budget()
    found = (choose_blocks(config, load, model, room, stored_bits) for load in loads)
    return max(found, key=lambda one: one.level)


def loads_of(config: RunConfig, shapes: Iterable[Shape]) -> list[Load]:
    """Of batches of these shapes."""
    return [Load(s.frames, config.train_batch_size, s.text, s.lyrics) for s in shapes]


def loads(
    songs: Iterable[tuple[int, str | None]], batch: int, family: Family, folder: ModelFolder | None
) -> list[Load]:
    """What batches of these songs can be: for each length, the most lyric tokens that a song of it has.

    songs: (frames of its bucket, lyrics). folder: the model's; without one the tokens are guessed.
    """
    tokens, guess = family.memory.lyric_counter(folder), family.memory.lyric_counter(None)
    step = family.padding.lyrics
    by_frames: dict[int, set[str]] = {}
    for frames, lyrics in songs:
        by_frames.setdefault(frames, set()).add(lyrics or "")
    found = []
    for frames, texts in by_frames.items():
        most = 0
        for text in sorted(texts, key=guess, reverse=True)[:COUNTED]:
            if text:
                most = max(most, tokens(text[:COUNTED_LETTERS]))
        found.append(Load(frames, batch, lyrics=-(-most // step) * step))
    return found


def clips_through(config: RunConfig, other: BaseModel | None) -> Heard | None:
    """What `estimate` needs of the model that clips are made through, where that is not the trained one."""
    from .validation import requests

    if other is None:
        return None
    asked = requests(config, other.folder).values()
    family = of_flavour(config.model_flavour)
    batch = 2 if any(request.guidance_scale > 1 for request in asked) else 1
    clip = family.memory.load(max(request.duration for request in asked), batch)
    return Heard(other.transformer or released_sizes(config), other.bits, clip)


class Choice(NamedTuple):
    """Which blocks a run computes again: on this machine or, where `resumed`, as its checkpoint says.

    taken: bytes at the worst step. kept: of them, linear layers' results.
    saved: share of the FLOPs in linear layers, of those of a step that computes everything again.
    """

    recomputed: Recomputed
    blocks: int
    resumed: bool
    taken: float
    kept: float
    saved: float

    @property
    def line(self) -> str:
        """For people."""
        wholly, products = self.recomputed
        where = "as the checkpoint's run began" if self.resumed else "on this machine"
        return (
            f"computed again to save memory, {where}: of {count(self.blocks, 'block')} {wholly} wholly, "
            f"{products} but for their linear layers (whose results take {size(self.kept)}), "
            f"{self.blocks - wholly - products} not at all; about {size(self.taken)} at the worst step, with "
            f"{100 * self.saved:.0f} % less work in linear layers than if all were wholly"
        )


def choice(
    config: RunConfig,
    model: Any | None = None,
    batches: Sequence[Load] | None = None,
    stored_bits: int | None = None,
    heard: Heard | None = None,
    state: Mapping[str, Any] | None = None,
) -> Choice:
    """state: of the checkpoint that the run goes on from. Other arguments: see `worst`."""
    family, model = of_flavour(config.model_flavour), model or released_sizes(config)
    loads = batches or [family.memory.load(60.0, config.train_batch_size)]
    resumed, chosen = Recomputed.resumed(state or {}, model.blocks), Recomputed()
    if config.gradient_checkpointing:
        chosen = resumed or checkpointed_blocks(config, loads, model, stored_bits)
    options: Any = {"checkpointed": chosen.wholly, "products": chosen.but_products, "heard": heard}

    def taken(load: Load) -> float:
        return estimate(config, load, model=model, stored_bits=stored_bits, **options).total

    load = max(loads, key=taken)
    one = product_bytes(family, model, load, COMPUTE_DTYPES[config.mixed_precision].size)
    saved = products_saved(family, model, load, chosen)
    kept = chosen.but_products * one
    return Choice(chosen, model.blocks, resumed is not None, taken(load), kept, saved)


class Worst(NamedTuple):
    """The batch of a run that takes most, its estimate, and the bytes that this machine lets a run use.

    encoding: bytes while songs are encoded.
    """

    load: Load
    estimate: Estimate
    room: float
    encoding: float

    @property
    def need(self) -> float:
        """Bytes at the run's peak."""
        return max(self.estimate.total, self.encoding)

    @property
    def spare(self) -> float:
        """Bytes that are left; below 0 where it does not fit."""
        return self.room - self.need


def worst(
    config: RunConfig,
    model: Any | None = None,
    batches: Sequence[Load] | None = None,
    stored_bits: int | None = None,
    heard: Heard | None = None,
    encoding: float = 0.0,
    ondemand: bool = False,
) -> Worst:
    """What a run takes at its worst step, or while songs are encoded.

    model: sizes (default: the released model's). batches: what a step may be made of (default: a minute
    of music). stored_bits: quantisation of the MLX folder, if any. heard: see `estimate`. encoding: as the
    function gives it, 0 where all is encoded already. ondemand: whether songs are encoded between steps.
    """
    family = of_flavour(config.model_flavour)
    choices = batches or [family.memory.load(60.0, config.train_batch_size)]
    estimates = [
        estimate(config, load, model=model, stored_bits=stored_bits, heard=heard) for load in choices
    ]
    expected, load = max(zip(estimates, choices, strict=True), key=lambda pair: pair[0].total)
    beside = expected.parts["base weights"] + expected.parts["LoRA and optimizer"] if ondemand else 0.0
    return Worst(load, expected, budget(), encoding and encoding + beside)


def verdict(
    config: RunConfig,
    model: Any | None = None,
    batches: Sequence[Load] | None = None,
    stored_bits: int | None = None,
    heard: Heard | None = None,
    state: Mapping[str, Any] | None = None,
    encoding: float = 0.0,
    ondemand: bool = False,
) -> list[str]:
    """Lines for people: the parts of the estimate, this machine, and the Macs that the run fits. Arguments:
    see `choice` and `worst`.
    """
    most = worst(config, model, batches, stored_bits, heard, encoding, ondemand)
    load, expected, room, _ = most
    seconds = of_flavour(config.model_flavour).latents.seconds(load.frames)
    lines = [
        f"about {size(expected.total)} at the worst step ({seconds:.0f} s of music with "
        f"{count(load.lyrics, 'lyric token')} × {load.batch}), estimated:",
        *(f"  {name}: {size(amount)}" for name, amount in expected.parts.items()),
    ]
    if most.encoding:
        lines.append(f"while songs are encoded, before training: about {size(most.encoding)}")
    here = machine_memory()
    what = "fits" if most.spare >= 0 else "does not fit"
    lines.append(f"this machine has {size(here)}, of which {size(room)} are usable: {what}")
    if config.gradient_checkpointing:
        lines.append(choice(config, model, batches, stored_bits, heard, state).line)
    macs = [f"{mac} GB {'yes' if most.need <= usable(mac * GB) else 'no'}" for mac in MACS]
    lines.append(f"Macs: {', '.join(macs)}")
    if expected.total > min(room, usable(MACS[-1] * GB)):
        from .faults import memory_advice

        lines.append("what would help, in order of effect: " + "; ".join(memory_advice(config, seconds)[:-1]))
    return lines
