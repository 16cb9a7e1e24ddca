"""How much memory a training step takes, before any weight is loaded, and what fits which Mac.

Weights, LoRA and optimizer are counted exactly from the model's configuration. Activations follow a model
with one term per kind of array that is alive at the worst moment; its coefficients are fitted to measured
peaks by `benchmarks/memory.py`, which prints them and their error.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import mlx.core as mx

from .. import formatting as words
from ..config.run import RunConfig
from ..data.batches import LYRIC_STEP
from ..families.folder import quantizable
from ..families.v1 import lyric_states
from ..families.v1.dit import ACEStepTransformer, TransformerConfig
from ..families.v1.lyrics.tokenizer import MAX_TOKENS, LyricTokenizer
from ..lora.formats.keys import LYRICS_EMBEDDER
from ..lora.surgery import find_targets
from .build import COMPUTE_DTYPES, flat, lora_spec, machine_memory

GB = 1e9
MACS = (8, 16, 24, 36, 64)  # GB of unified memory
#: what an optimizer keeps beside each parameter; adafactor's row and column are 1/rank of a LoRA matrix
SLOTS = {"adamw": 2.0, "adam": 2.0, "lion": 1.0, "muon": 1.0, "sgd": 1.0, "adafactor": 0.0}
FRAMES_PER_SECOND = 44100 / 4096
COUNTED, COUNTED_LETTERS = 3, 40_000  # lyrics of a bucket whose tokens are counted, and how much of each
TEXT_TOKENS, LYRIC_TOKENS_PER_SECOND = 256, 3.2  # what a song has unless the data says


@dataclass(frozen=True)
class Coefficients:
    """What each of `features` is multiplied by for one size of activations; benchmarks/memory.py fits it."""

    frames: float
    scores: float
    kept: float
    kept_scores: float
    lyric_scores: float
    lyrics: float


#: By the bytes of an activation: in float32 more is held at once, as nothing is made smaller on the way.
FITTED = {
    2: Coefficients(frames=6.96, scores=4.90, kept=2.43, kept_scores=1.63, lyric_scores=11.1, lyrics=7.12),
    4: Coefficients(frames=9.88, scores=5.35, kept=1.51, kept_scores=2.04, lyric_scores=9.51, lyrics=10.1),
}
FIRST_KEPT = 0.4  # of what a block keeps, the part that one without checkpointing adds among others with it
LYRICS_KEPT = 1.6  # without any checkpointing the lyric encoder keeps its layers too
UPDATE = 0.6  # of the trained parameters' bytes: what an update takes beside them, moments and gradients
CAUTION = 0.7  # share of the usable memory that the estimate may take when checkpointing is chosen
FIXED = 0.15 * GB  # the program itself, compiled graphs, buffers kept for reuse


@dataclass(frozen=True)
class Load:
    """One training step: B samples of T frames, L text and M lyric tokens."""

    frames: int
    batch: int = 1
    text: int = TEXT_TOKENS
    lyrics: int = 0

    @classmethod
    def of_seconds(cls, seconds: float, batch: int = 1, lyrics: int | None = None) -> Load:
        """A song of so many seconds with as many lyrics as such a song tends to have."""
        words = round(seconds * LYRIC_TOKENS_PER_SECOND) if lyrics is None else lyrics
        return cls(round(seconds * FRAMES_PER_SECOND), batch, TEXT_TOKENS, words)


@dataclass(frozen=True)
class Estimate:
    """Bytes by part; `total` is the expected peak."""

    parts: Mapping[str, float] = field(default_factory=dict)

    @property
    def total(self) -> float:
        return sum(self.parts.values())


def features(config: TransformerConfig, load: Load, size: int, checkpointed: int) -> dict[str, float]:
    """What the coefficients multiply, in bytes. `size`: of an activation; D width, F feed-forward width.

    frames: arrays of the block in work over the frames, B·T·(2F + 4D); scores: its cross-attention's,
    B·H·T·S; kept and kept_scores: the same of each other block that is not checkpointed; lyric_scores,
    lyrics: the lyric encoder's attention and its layers. (`block_inputs` adds what the others keep.)
    """
    B, T, M = load.batch, load.frames, load.lyrics
    S = 1 + load.text + M
    frames = B * T * (2.0 * config.ff_dim + 4 * config.dim) * size
    scores = float(B * config.num_attention_heads * T * S * size)
    free = config.num_layers - checkpointed
    kept = max(FIRST_KEPT * free, free - 1.0)  # what the block in work keeps, frames and scores count
    return {
        "frames": frames,
        "scores": scores,
        "kept": kept * frames,
        "kept_scores": kept * scores,
        "lyric_scores": B * config.lyric_encoder_heads * M * (2.0 * M) * size,
        "lyrics": B * M * config.lyric_hidden_size * 4.0 * size,
    }


def activations(config: TransformerConfig, load: Load, size: int, checkpointed: int) -> float:
    """Bytes at the worse of two moments: the backward pass of a block, and that of the lyric encoder."""
    terms = {
        name: getattr(FITTED[size], name) * value
        for name, value in features(config, load, size, checkpointed).items()
    }
    lyrics = terms.pop("lyric_scores") + terms.pop("lyrics")
    block = block_inputs(config, load, size, checkpointed) + sum(terms.values())
    return max(block, lyrics if checkpointed else LYRICS_KEPT * lyrics)


def block_inputs(config: TransformerConfig, load: Load, size: int, checkpointed: int) -> float:
    """Bytes that checkpointed blocks keep: the frames they were given, and the conditions' gradient."""
    tokens = load.frames + 1 + load.text + load.lyrics
    return checkpointed * load.batch * tokens * config.dim * float(size)


@lru_cache(maxsize=16)
def weight_bytes(config: TransformerConfig, bits: int | None, group: int, size: int) -> float:
    """Bytes of the frozen transformer, `bits` per weight (and scale and bias per group) where quantised."""
    model = ACEStepTransformer(config)  # its arrays stay lazy: only shapes are read
    quantised = {
        f"{path}.weight"
        for path, module in model.named_modules()
        if bits is not None and quantizable(path, module, group)
    }
    total = 0.0
    for path, value in flat(model.parameters()):
        if path in quantised:
            assert bits is not None
            total += value.size * bits / 8 + value.size / group * 2 * size
        else:
            total += value.size * size
    return total


@lru_cache(maxsize=16)
def adapter_parameters(
    config: TransformerConfig, rank: int, targets: tuple[str, ...], dora: bool
) -> tuple[int, int, bool]:
    """(LoRA parameters, lyrics embedder parameters, whether the LoRA changes how lyrics are encoded)."""
    model = ACEStepTransformer(config)
    count = 0
    modules = find_targets(model, targets)
    for module in modules.values():
        out, inputs = module.weight.shape
        count += rank * (out + inputs) + (out if dora else 0)
    embedder = sum(v.size for k, v in flat(model.parameters()) if f"{k}.".startswith(LYRICS_EMBEDDER))
    return count, embedder, lyric_states.trained(modules)


def estimate(
    config: RunConfig,
    load: Load,
    *,
    model: TransformerConfig | None = None,
    stored_bits: int | None = None,
    checkpointed: int | None = None,
) -> Estimate:
    """Expected peak of training with `config` on batches like `load`.

    model: sizes (default: the released 3.5B model). stored_bits: quantisation of the MLX folder, if any.
    checkpointed: blocks that compute their activations again (default: all, or none if that is switched off).
    """
    model = model or TransformerConfig()
    size = COMPUTE_DTYPES[config.mixed_precision].size
    bits = stored_bits or (config.quantization or {}).get("bits")
    if checkpointed is None:
        checkpointed = model.num_layers if config.gradient_checkpointing else 0
    spec = lora_spec(config)
    lora, embedder, encodes = adapter_parameters(model, spec.rank, spec.targets, spec.use_dora)
    embedder = embedder if config.lyrics_embedder_train else 0
    keeps_lyrics = load.lyrics > 0 and not (encodes or config.lyrics_embedder_train)
    accumulates = 1 if config.gradient_accumulation_steps > 1 else 0
    trained = 4.0 * (lora + embedder)  # in float32
    moments = 4.0 * (lora * _slots(config, spec.rank) + embedder * SLOTS[config.lyrics_embedder_optimizer])
    found = activations(model, load, size, checkpointed)
    return Estimate(
        {
            "base weights": weight_bytes(model, bits, 64, size),
            "LoRA and optimizer": trained * (1 + accumulates) + moments,
            "gradients": 2 * trained,  # and, within the step, LoRA weights in the activations' precision
            "activations": found,
            # Clipped gradients and new moments come one after the other, when the activations are gone.
            "optimizer's step": max(0.0, UPDATE * trained - found),
            **({"encoded lyrics, at most": float(lyric_states.MAX_BYTES)} if keeps_lyrics else {}),
            "program": FIXED,
        }
    )


def _slots(config: RunConfig, rank: int) -> float:
    """Numbers that the LoRA's optimizer keeps for each of its parameters."""
    if config.optimizer == "adafactor":
        return 1 / rank + bool((config.optimizer_config or {}).get("beta_1"))
    return SLOTS[config.optimizer]


def usable(memory: float) -> float:
    """What a Mac with so many bytes lets the GPU use: Metal's recommended working set."""
    return memory * (2 / 3 if memory <= 36 * GB else 3 / 4)


def choose_blocks(
    config: RunConfig, load: Load, model: TransformerConfig, budget: float, stored_bits: int | None
) -> int:
    """The fewest checkpointed blocks that keep the estimate within `budget` bytes; all if none do."""
    for blocks in range(model.num_layers + 1):
        if estimate(config, load, model=model, stored_bits=stored_bits, checkpointed=blocks).total <= budget:
            return blocks
    return model.num_layers


def loads(songs: Iterable[tuple[int, str | None]], batch: int, vocab: Path | None) -> list[Load]:
    """What batches of these songs can be: for each length, the most lyric tokens that a song of it has.

    songs: (frames of its bucket, lyrics). vocab: the model's lyric vocabulary; without one the tokens are
    guessed from the letters.
    """
    by_frames: dict[int, set[str]] = {}
    for frames, lyrics in songs:
        by_frames.setdefault(frames, set()).add(lyrics or "")
    tokenizer = LyricTokenizer(vocab) if vocab is not None else None
    found = []
    for frames, texts in by_frames.items():
        most = 0
        for text in sorted(texts, key=_guessed_tokens, reverse=True)[:COUNTED]:
            if text:
                part = text[:COUNTED_LETTERS]
                most = max(most, len(tokenizer.tokenize(part)) if tokenizer else _guessed_tokens(part))
        found.append(Load(frames, batch, lyrics=-(-most // LYRIC_STEP) * LYRIC_STEP))
    return found


def _guessed_tokens(text: str) -> int:
    """Lyric tokens as a letter tends to take them: Latin script half a one, others two and more."""
    plain = sum(character.isascii() for character in text)
    return min(MAX_TOKENS, round(0.6 * plain + 2.5 * (len(text) - plain)))


def verdict(
    config: RunConfig,
    model: TransformerConfig | None = None,
    batches: Sequence[Load] | None = None,
    stored_bits: int | None = None,
) -> list[str]:
    """Lines for people: the parts of the estimate, this machine, and the Macs that the run fits.

    model: sizes (default: the released 3.5B model). batches: what a step may be made of (default: a minute
    of music). stored_bits: quantisation of the MLX folder, if any.
    """
    choices = batches or [Load.of_seconds(60.0, config.train_batch_size)]
    estimates = [estimate(config, load, model=model, stored_bits=stored_bits) for load in choices]
    expected, load = max(zip(estimates, choices, strict=True), key=lambda pair: pair[0].total)
    seconds = load.frames / FRAMES_PER_SECOND
    lines = [
        f"about {words.size(expected.total)} at the worst step ({seconds:.0f} s of music with "
        f"{words.count(load.lyrics, 'lyric token')} × {load.batch}), estimated:",
        *(f"  {name}: {words.size(size)}" for name, size in expected.parts.items()),
    ]
    here = machine_memory()
    what = "fits" if expected.total <= usable(here) else "does not fit"
    lines.append(
        f"this machine has {words.size(here)}, of which {words.size(usable(here))} are usable: {what}"
    )
    macs = [f"{mac} GB {'yes' if expected.total <= usable(mac * GB) else 'no'}" for mac in MACS]
    lines.append(f"Macs: {', '.join(macs)}")
    if expected.total > usable(min(here, MACS[-1] * GB)):
        from .faults import memory_advice

        lines.append(
            "what would help, in order of effect: " + "; ".join(memory_advice(config.to_dict(), seconds)[:-1])
        )
    return lines


def quantised_model(config: TransformerConfig, bits: int | None, dtype: mx.Dtype) -> Any:
    """A transformer with random weights in the given precision, made layer by layer (benchmarks)."""
    model = ACEStepTransformer(config)
    for path, module in model.named_modules():
        own = {k: v for k, v in module.items() if isinstance(v, mx.array) and not k.startswith("_")}
        for name, value in own.items():
            module[name] = (mx.random.normal(value.shape) * 0.02).astype(dtype)
        if bits is not None and quantizable(path, module):
            parent: Any = model
            *outer, leaf = path.split(".")
            for part in outer:
                parent = parent[int(part)] if isinstance(parent, list) else parent[part]
            key = int(leaf) if isinstance(parent, list) else leaf
            parent[key] = module.to_quantized(group_size=64, bits=bits)
            mx.eval(parent[key].parameters())
        else:
            mx.eval(own and [module[name] for name in own])
    model.freeze()
    model.eval()
    return model
