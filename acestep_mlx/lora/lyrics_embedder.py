"""The trained lyrics embedder (lyric_embs, lyric_encoder, lyric_proj in full) beside or inside a LoRA file.

Its tensors carry the plain upstream names, also where LoRA layers sit on some of its linear layers.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_unflatten

from ..errors import CheckpointError, ConfigError
from ..families.protocol import LoRANames
from ..io.safetensors import FLOATS, PICKLES, read_header
from ..io.tensors import load_tensors, save_tensors
from .formats.keys import describe_unknown, parse
from .linear import QUANTIZED, Wrapper, dense_layer, dense_weight
from .weights import LoRAModule, LoRAWeights

FOLDER = "lyrics_embedder"
FILE = "lyrics_embedder.safetensors"

# What ComfyUI's key table has no place for.
COMFYUI_IGNORES = ("pos_bias_u", "pos_bias_v")


def embedder_parameters(transformer: nn.Module) -> dict[str, mx.array]:
    """Upstream name → value of the lyrics embedder's own parameters, dequantised in float32; no adapter's."""
    found: dict[str, mx.array] = {}
    inside: set[str] = set()
    for path, module in transformer.named_modules():
        if not f"{path}.".startswith(transformer.lora.full):
            continue
        if isinstance(module, Wrapper):
            inside.add(f"{path}.linear")
            module = module.linear
        elif path in inside:
            continue
        for name, value in _own_parameters(module).items():
            found[f"{path}.{name}"] = value
    return found


def _own_parameters(module: nn.Module) -> dict[str, mx.array]:
    if isinstance(module, QUANTIZED):
        own = {"weight": dense_weight(module)}
        return own | ({"bias": module.bias} if "bias" in module else {})
    return {k: v for k, v in module.items() if isinstance(v, mx.array) and not k.startswith("_")}


def make_dense(transformer: nn.Module, only: Container[str] | None = None) -> dict[str, nn.Module]:
    """Replace the quantised layers of the lyrics embedder by dense ones, so that it can be trained or set.

    Returns the layers that stood there, by path. `only` limits it to these paths.
    """
    before: dict[str, nn.Module] = {
        path: module
        for path, module in transformer.named_modules()
        if f"{path}.".startswith(transformer.lora.full)
        and (only is None or path in only)
        and isinstance(module, QUANTIZED)
    }
    if before:
        dense = [(path, dense_layer(module, dense_weight(module))) for path, module in before.items()]
        transformer.update_modules(tree_unflatten(dense))
    return before


def set_embedder(
    transformer: nn.Module, tensors: Mapping[str, mx.array], where: str = "the lyrics embedder"
) -> None:
    """Put trained values (upstream names) into the model, in the precision that each parameter has there.

    Quantised layers become dense. Raises CheckpointError naming what is missing, unknown or of another shape.
    """
    make_dense(transformer)
    here = embedder_parameters(transformer)
    check_embedder(here, tensors, where, complete=True)
    wrapped = {p for p, m in transformer.named_modules() if isinstance(m, Wrapper)}
    updates = []
    for name, value in tensors.items():
        module, _, leaf = name.rpartition(".")
        path = f"{module}.linear.{leaf}" if module in wrapped else name
        updates.append((path, value.astype(here[name].dtype)))
    transformer.update(tree_unflatten(updates))


def check_embedder(
    here: Mapping[str, mx.array], tensors: Mapping[str, mx.array], where: str, *, complete: bool
) -> None:
    """Raises CheckpointError naming tensors that are unknown, of another shape or (if `complete`) missing."""
    problems = [f"{n} is not in this model" for n in tensors if n not in here]
    problems += [
        f"{n} has shape {tuple(v.shape)}, not {tuple(here[n].shape)}"
        for n, v in tensors.items()
        if n in here and v.shape != here[n].shape
    ]
    if complete:
        problems += [f"{n} is missing" for n in here if n not in tensors]
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise CheckpointError(f"{where} does not fit: {problems[0]}{more}")


def check_parameters(here: Mapping[str, mx.array], weights: LoRAWeights, where: str) -> None:
    """The same for what a LoRA carries of the lyrics embedder, whole or as differences."""
    for tensors in (weights.lyrics_embedder or {}, weights.diffs):
        check_embedder(here, tensors, where, complete=False)


def save_lyrics_embedder(folder: str | Path, tensors: Mapping[str, mx.array]) -> Path:
    """Write `<folder>/lyrics_embedder/lyrics_embedder.safetensors` (atomically); tensors keep their dtype."""
    path = Path(folder) / FOLDER / FILE
    save_tensors(path, tensors, {"format": "pt"})
    return path


def read_lyrics_embedder(folder: str | Path, names: LoRANames) -> dict[str, mx.array]:
    """What save_lyrics_embedder wrote (or SimpleTuner's, turned into .safetensors), by upstream name."""
    folder = Path(folder) / FOLDER
    files = sorted(folder.glob("*.safetensors"))
    if len(files) != 1:
        pickles = [p for p in sorted(folder.glob("*")) if p.suffix in PICKLES]
        if pickles and not files:
            read_header(pickles[0])  # refuses it by name
        raise CheckpointError(f"{folder} must hold one .safetensors file, found {len(files)}")
    header = read_header(files[0])
    keys = {name: parse(name, names) for name in header.tensors}
    unknown = [
        n
        for n, key in keys.items()
        if key is None or key.role != "embedder" or header.tensors[n].dtype not in FLOATS
    ]
    if unknown or not keys:
        raise CheckpointError(f"{files[0]} is no lyrics embedder: {describe_unknown(unknown) or 'empty'}")
    tensors = load_tensors(files[0])
    return {key.path: tensors[name] for name, key in keys.items() if key is not None}


def for_format(weights: LoRAWeights, format: str, base: nn.Module | None) -> LoRAWeights:
    """`weights` with the lyrics embedder in the form that `format`'s loader applies.

    peft (the original pipeline) and mlx: plain values, which replace the base's. ComfyUI: differences from
    the base, with the LoRA of the same module merged into them, because one patch per module is all it keeps.
    """
    if format == "simpletuner":
        raise ConfigError(
            "SimpleTuner takes a lyrics embedder from a pickle beside the LoRA, not from the LoRA file; "
            "export without it"
        )
    if weights.lyrics_embedder is None and not weights.diffs:
        raise ConfigError("this LoRA has no lyrics embedder to export")
    if format != "comfyui" and not weights.diffs:
        return weights
    if base is None:
        raise ConfigError(
            f"the lyrics embedder in format {format!r} is relative to the base model: "
            "give it too (--model MLX_FOLDER)"
        )
    here = embedder_parameters(base)
    given = weights.lyrics_embedder or {}
    check_parameters(here, weights, "the lyrics embedder")
    values = {name: value.astype(mx.float32) for name, value in given.items()}
    for name, diff in weights.diffs.items():
        values[name] = values.get(name, here[name].astype(mx.float32)) + diff
    if format != "comfyui":
        return replace(weights, lyrics_embedder=values, diffs={})
    modules = dict(weights.modules)
    diffs = {}
    for name, value in values.items():
        module, _, leaf = name.rpartition(".")
        if leaf in COMFYUI_IGNORES:
            continue
        if leaf == "weight" and module in modules:
            value = _merged(modules.pop(module), value)
        diffs[name] = value - here[name].astype(mx.float32)
    return replace(weights, modules=modules, lyrics_embedder=None, diffs=diffs)


def _merged(module: LoRAModule, weight: mx.array) -> mx.array:
    """The adapted weight of a LoRA module on a trained weight (out, in)."""
    like = nn.Linear(1, 1, bias=False)
    like.weight = weight
    return module.adapted_weight(like)


def ignored_by_comfyui(tensors: Mapping[str, Any]) -> list[str]:
    """The trained tensors that ComfyUI has no way to load."""
    return [name for name in tensors if name.endswith(COMFYUI_IGNORES)]


def trainable_embedder(transformer: nn.Module) -> None:
    """Unfreeze the lyrics embedder's own parameters (dense ones; call make_dense first)."""
    for path, module in transformer.named_modules():
        if f"{path}.".startswith(transformer.lora.full):
            own = [] if isinstance(module, Wrapper) else list(_own_parameters(module))
            module.unfreeze(keys=own, recurse=False)
