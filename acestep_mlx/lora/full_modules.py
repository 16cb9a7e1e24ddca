"""Modules that were trained in full (`families.protocol.FullModules`), beside or inside a LoRA file.

Its tensors carry the plain upstream names, also where LoRA layers sit on some of its linear layers.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_unflatten

from ..errors import CheckpointError, ConfigError
from ..families.protocol import FullModules, LoRANames
from ..io.safetensors import FLOATS, PICKLES, read_header
from ..io.tensors import load_tensors, save_tensors
from .formats.keys import describe_unknown, parse
from .linear import QUANTIZED, Wrapper, dense_layer, dense_weight
from .weights import LoRAModule, LoRAWeights


def full_parameters(transformer: nn.Module) -> dict[str, mx.array]:
    """Upstream name → value of these modules' own parameters, dequantised in float32; no adapter's."""
    found: dict[str, mx.array] = {}
    inside: set[str] = set()
    for path, module in transformer.named_modules():
        if not transformer.lora.full.holds(path):
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
    """Replace the quantised layers of these modules by dense ones, so that they can be trained or set.

    Returns the layers that stood there, by path. `only` limits it to these paths.
    """
    before: dict[str, nn.Module] = {
        path: module
        for path, module in transformer.named_modules()
        if transformer.lora.full.holds(path)
        and (only is None or path in only)
        and isinstance(module, QUANTIZED)
    }
    if before:
        dense = [(path, dense_layer(module, dense_weight(module))) for path, module in before.items()]
        transformer.update_modules(tree_unflatten(dense))
    return before


def set_full(transformer: nn.Module, tensors: Mapping[str, mx.array], where: str = "") -> None:
    """Put trained values (upstream names) into the model, in the precision that each parameter has there.

    Quantised layers become dense. Raises CheckpointError naming what is missing, unknown or of another shape.
    """
    make_dense(transformer)
    here = full_parameters(transformer)
    check_full(here, tensors, where or f"the {transformer.lora.full.title}", complete=True)
    wrapped = {p for p, m in transformer.named_modules() if isinstance(m, Wrapper)}
    updates = []
    for name, value in tensors.items():
        module, _, leaf = name.rpartition(".")
        path = f"{module}.linear.{leaf}" if module in wrapped else name
        updates.append((path, value.astype(here[name].dtype)))
    transformer.update(tree_unflatten(updates))


def check_full(
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
    """The same for what a LoRA carries of parameters, whole or as differences."""
    for tensors in (weights.full or {}, weights.diffs):
        check_full(here, tensors, where, complete=False)


def save_full(folder: str | Path, tensors: Mapping[str, mx.array], modules: FullModules) -> Path:
    """Write `<folder>/NAME/NAME.safetensors` (atomically); tensors keep their dtype."""
    path = Path(folder) / modules.name / f"{modules.name}.safetensors"
    save_tensors(path, tensors, {"format": "pt"})
    return path


def read_full(folder: str | Path, names: LoRANames) -> dict[str, mx.array]:
    """What `save_full` wrote (or SimpleTuner's, turned into .safetensors), by upstream name."""
    folder = Path(folder) / names.full.name
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
        if key is None or key.role != "full" or header.tensors[n].dtype not in FLOATS
    ]
    if unknown or not keys:
        raise CheckpointError(f"{files[0]} is no {names.full.title}: {describe_unknown(unknown) or 'empty'}")
    tensors = load_tensors(files[0])
    return {key.path: tensors[name] for name, key in keys.items() if key is not None}


def for_format(weights: LoRAWeights, format: str, base: nn.Module | None) -> LoRAWeights:
    """`weights` with what was trained in full in the form that `format`'s loader applies.

    peft (the original pipeline) and mlx: plain values, which replace the base's. ComfyUI: differences from
    the base, with the LoRA of the same module merged into them, because one patch per module is all it keeps.
    """
    modules_in_full = weights.family.lora.full
    title = modules_in_full.title
    if format == "simpletuner":
        raise ConfigError(
            f"SimpleTuner takes a {title} from a pickle beside the LoRA, not from the LoRA file; "
            "export without it"
        )
    if format == "diffusers":
        raise ConfigError(
            f"the format 'diffusers' holds no {title}; export without it, or with --format peft"
        )
    if weights.full is None and not weights.diffs:
        raise ConfigError(f"this LoRA has no {title} to export")
    if format != "comfyui" and not weights.diffs:
        return weights
    if base is None:
        raise ConfigError(
            f"the {title} in format {format!r} is relative to the base model: "
            "give it too (--model MLX_FOLDER)"
        )
    here = full_parameters(base)
    given = weights.full or {}
    check_parameters(here, weights, f"the {title}")
    values = {name: value.astype(mx.float32) for name, value in given.items()}
    for name, diff in weights.diffs.items():
        values[name] = values.get(name, here[name].astype(mx.float32)) + diff
    if format != "comfyui":
        return replace(weights, full=values, diffs={})
    modules = dict(weights.modules)
    diffs = {}
    lost = modules_in_full.not_loaded(format, values)
    for name, value in values.items():
        if name in lost:
            continue
        module, _, leaf = name.rpartition(".")
        if leaf == "weight" and module in modules:
            value = _merged(modules.pop(module), value)
        diffs[name] = value - here[name].astype(mx.float32)
    return replace(weights, modules=modules, full=None, diffs=diffs)


def _merged(module: LoRAModule, weight: mx.array) -> mx.array:
    """The adapted weight of a LoRA module on a trained weight (out, in)."""
    like = nn.Linear(1, 1, bias=False)
    like.weight = weight
    return module.adapted_weight(like)


def train_full(transformer: nn.Module) -> None:
    """Unfreeze these modules' own parameters (dense ones; call make_dense first)."""
    for path, module in transformer.named_modules():
        if transformer.lora.full.holds(path):
            own = [] if isinstance(module, Wrapper) else list(_own_parameters(module))
            module.unfreeze(keys=own, recurse=False)
