"""How much memory a training step takes, before any weight is loaded, and what fits which Mac.

Weights, LoRA and optimizer are counted exactly from the model's configuration. What activations take, the
family says (`families.protocol.StepMemory`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import mlx.core as mx
from mlx.utils import tree_flatten

from ..config.optimizers import OPTIMIZERS
from ..config.run import RunConfig
from ..families import of_flavour
from ..families.model_folder import ModelFolder, quantizable
from ..families.protocol import Family, Load
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
FIXED = 0.15 * GB  # the program itself, compiled graphs, buffers kept for reuse


@dataclass(frozen=True)
class Estimate:
    """Bytes by part; `total` is the expected peak."""

    parts: Mapping[str, float] = field(default_factory=dict)

    @property
    def total(self) -> float:
        return sum(self.parts.values())


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
    transformer = family.components["transformer"]
    model = transformer.module(config)  # its arrays stay lazy: only shapes are read
    quantised = {
        f"{path}.weight"
        for path, module in model.named_modules()
        if bits is not None and quantizable(transformer, path, module, group)
    }
    total = 0.0
    for path, value in dict(tree_flatten(model.parameters())).items():
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
    heard: Heard | None = None,
) -> Estimate:
    """Expected peak of training with `config` on batches like `load`.

    model: sizes (default: the released model's). stored_bits: quantisation of the MLX folder, if any.
    checkpointed: blocks that compute their activations again (default: all, or none if that is switched off).
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
    found = family.memory.activations(model, load, size, checkpointed)
    while_stepping = {
        "gradients": 2 * trained,  # and, within the step, LoRA weights in the activations' precision
        "activations": found,
        **_products(family, model, load, spec, checkpointed, size),
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
    config: RunConfig, shapes: Iterable[Shape], model: Any, stored_bits: int | None, checkpointed: int
) -> int:
    """Bytes of freed buffers that MLX may keep while steps on batches of these shapes are made: the
    activations of one, where there is room.

    With less, each step would free them and ask the system for them again.
    """
    found = [
        estimate(config, load, model=model, stored_bits=stored_bits, checkpointed=checkpointed)
        for load in _loads_of(config, shapes)
    ]
    worst = max(found, key=lambda one: one.total)
    return int(max(LEAST_CACHE, min(budget() - worst.total, worst.parts["activations"])))


def choose_blocks(config: RunConfig, load: Load, model: Any, budget: float, stored_bits: int | None) -> int:
    """The fewest checkpointed blocks that keep the estimate within `budget` bytes; all if none do."""
    most = int(model.blocks)
    for blocks in range(most):
        if estimate(config, load, model=model, stored_bits=stored_bits, checkpointed=blocks).total <= budget:
            return blocks
    return most


def checkpointed_blocks(
    config: RunConfig, shapes: Iterable[Shape], model: Any, stored_bits: int | None
) -> int:
    """As few as this machine allows for batches of these shapes: each costs a second forward pass."""
    room = CAUTION * budget()
    return max(choose_blocks(config, one, model, room, stored_bits) for one in _loads_of(config, shapes))


def _loads_of(config: RunConfig, shapes: Iterable[Shape]) -> list[Load]:
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


class Worst(NamedTuple):
    """The batch of a run that takes most, its estimate, and the bytes that this machine lets a run use."""

    load: Load
    estimate: Estimate
    room: float

    @property
    def spare(self) -> float:
        """Bytes that are left; below 0 where it does not fit."""
        return self.room - self.estimate.total


def worst(
    config: RunConfig,
    model: Any | None = None,
    batches: Sequence[Load] | None = None,
    stored_bits: int | None = None,
    heard: Heard | None = None,
) -> Worst:
    """What a run takes at its worst step.

    model: sizes (default: the released model's). batches: what a step may be made of (default: a minute
    of music). stored_bits: quantisation of the MLX folder, if any. heard: see `estimate`.
    """
    family = of_flavour(config.model_flavour)
    choices = batches or [family.memory.load(60.0, config.train_batch_size)]
    estimates = [
        estimate(config, load, model=model, stored_bits=stored_bits, heard=heard) for load in choices
    ]
    expected, load = max(zip(estimates, choices, strict=True), key=lambda pair: pair[0].total)
    return Worst(load, expected, budget())


def verdict(
    config: RunConfig,
    model: Any | None = None,
    batches: Sequence[Load] | None = None,
    stored_bits: int | None = None,
    heard: Heard | None = None,
) -> list[str]:
    """Lines for people: the parts of the estimate, this machine, and the Macs that the run fits. Arguments:
    see `worst`.
    """
    load, expected, room = worst(config, model, batches, stored_bits, heard)
    seconds = of_flavour(config.model_flavour).latents.seconds(load.frames)
    lines = [
        f"about {size(expected.total)} at the worst step ({seconds:.0f} s of music with "
        f"{count(load.lyrics, 'lyric token')} × {load.batch}), estimated:",
        *(f"  {name}: {size(amount)}" for name, amount in expected.parts.items()),
    ]
    here = machine_memory()
    what = "fits" if expected.total <= room else "does not fit"
    lines.append(f"this machine has {size(here)}, of which {size(room)} are usable: {what}")
    macs = [f"{mac} GB {'yes' if expected.total <= usable(mac * GB) else 'no'}" for mac in MACS]
    lines.append(f"Macs: {', '.join(macs)}")
    if expected.total > min(room, usable(MACS[-1] * GB)):
        from .faults import memory_advice

        lines.append("what would help, in order of effect: " + "; ".join(memory_advice(config, seconds)[:-1]))
    return lines
