"""The four formats that are written, and the check of what was written.

The rule for other loaders: b ← scale·b, a unchanged, one rank for all modules (smaller ones are zero-padded),
no `.alpha` keys and no metadata that a loader acts on. Each of them then applies exactly the trained ΔW at
strength 1.0. Our own facts travel in the metadata under our own key.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ... import __version__
from ...config.lora_formats import ALL_FORMATS, FORMATS, LOKR_FORMATS, LYCORIS
from ...errors import CheckpointError, ConfigError, cause
from ...io.new_folder import replaced_folder
from ...io.tensors import save_tensors
from ..full_modules import for_format
from ..linear import base_linears, row_norms_squared
from ..weights import LoRAWeights, relative_difference
from .keys import describe_unknown
from .metadata import METADATA_KEY, VERSION
from .read import PEFT_FILE, read_lora
from .scales import ADAPTER_CONFIG

# Tolerated ‖ΔW_file − ΔW‖/‖ΔW‖: a few roundings of A and of B.
TOLERANCES = {mx.float32: 1e-6, mx.float16: 2e-3, mx.bfloat16: 1.6e-2}
DTYPES = {"float32": mx.float32, "float16": mx.float16, "bfloat16": mx.bfloat16}


def write_lora(
    path: str | Path,
    weights: LoRAWeights,
    format: str = "peft",
    dtype: mx.Dtype = mx.float32,
    *,
    base: nn.Module | None = None,
    with_full: bool = False,
) -> Path:
    """Write one .safetensors file, read it back, compare, and only then give it its name.

    `base` is the transformer without this LoRA (injected adapters may sit on it): DoRA, and what was
    trained in full, for ComfyUI are computed against it. `with_full` puts the latter in too.
    Raises ConfigError for a format that cannot hold this LoRA, CheckpointError if the file does not verify.
    """
    path = Path(path)
    if format not in ALL_FORMATS:
        raise ConfigError(f"format must be one of {', '.join(ALL_FORMATS)}, got {format!r}")
    if dtype not in TOLERANCES:
        raise ConfigError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype}")
    if path.suffix != ".safetensors":
        raise ConfigError(f"{path}: a LoRA file's name must end in .safetensors")
    prepared = prepare(weights, format, base, with_full=with_full)
    tensors = {k: v.astype(dtype) for k, v in to_tensors(prepared, format).items()}
    mx.eval(tensors)
    _check_range(tensors, dtype)
    metadata = {"format": "pt", METADATA_KEY: _facts(prepared, format)}
    save_tensors(
        path,
        {k: mx.contiguous(v) for k, v in tensors.items()},
        metadata,
        check=lambda partial: verify(partial, prepared, dtype, name=str(path)),
    )
    return path


def write_peft_folder(
    folder: str | Path, weights: LoRAWeights, dtype: mx.Dtype = mx.float32, *, base: nn.Module | None = None
) -> Path:
    """Write a folder as peft saves one, whole or not at all; it takes the place of what is there. The LoRA's
    file, which by itself is right at strength 1.0 too: the settings beside it leave nothing to be multiplied.

    Raises as `write_lora`, and CheckpointError where the folder cannot be written.
    """
    folder = Path(folder).absolute()
    try:
        with replaced_folder(folder) as partial:
            write_lora(partial / PEFT_FILE, weights, "peft", dtype, base=base)
            text = json.dumps(peft_settings(weights), indent=2)
            (partial / ADAPTER_CONFIG).write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be written: {cause(error)}") from None
    except CheckpointError as error:
        raise CheckpointError(str(error).replace(str(partial), str(folder))) from None
    return folder / PEFT_FILE


def peft_settings(weights: LoRAWeights) -> dict[str, Any]:
    """The adapter_config.json of what `write_lora` makes of `weights` in the format peft."""
    return {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": None,
        "inference_mode": True,
        "r": weights.rank,
        "lora_alpha": weights.rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "use_rslora": False,
        "use_dora": weights.is_dora,
        "target_modules": list(weights.modules),
    }


def prepare(
    weights: LoRAWeights, format: str, base: nn.Module | None = None, *, with_full: bool = False
) -> LoRAWeights:
    """The same LoRA in the form that `format` stores: scale baked into b, one rank, magnitudes its way."""
    if weights.is_lokr:
        return _prepare_lokr(weights, format, with_full)
    if format not in FORMATS:
        raise ConfigError(
            f"{weights.source} is a {weights.kind}, and {format!r} is for LoKr; choose one of "
            f"{', '.join(FORMATS)}"
        )
    spec = FORMATS[format]
    prepared = replace(weights, full=None, diffs={})
    if with_full:  # first, because it may merge modules whose magnitudes are the trained ones
        prepared = for_format(weights, format, base)
    modules = dict(prepared.modules)
    if spec.baked:
        modules = {path: module.baked(weights.rank) for path, module in modules.items()}
    elif scale := _baked_scale(weights.metadata):  # a file of ours: take its trained scale out of b again
        modules = {p: replace(m, b=m.b / scale, scale=m.scale * scale) for p, m in modules.items()}
    wanted = "base" if spec.magnitude == "dora_scale" else "adapted"
    linears = base_linears(base) if base is not None else {}
    for path, module in modules.items():
        if module.magnitude is None or module.magnitude_over == wanted:
            continue
        if path not in linears:
            raise ConfigError(
                f"this is a DoRA: in format {format!r} its magnitudes are relative to the base model's "
                "weights, so give the model too (--model MLX_FOLDER)"
            )
        adapted = module.adapted_norms(linears[path])
        plain = mx.sqrt(mx.maximum(row_norms_squared(linears[path]), 1e-30))
        ratio = plain / adapted if wanted == "base" else adapted / plain
        modules[path] = replace(module, magnitude=module.magnitude * ratio, magnitude_over=wanted)
    return replace(prepared, modules=modules)


def _prepare_lokr(weights: LoRAWeights, format: str, with_full: bool) -> LoRAWeights:
    """Every scale baked: LyCORIS 4.1.3 hears another one once and merges it twice."""
    others = [m for m in weights.modules.values() if m.w1 is None]
    if weights.is_dora or others or weights.diffs:
        what = "magnitudes" if weights.is_dora else "LoRAs on other layers" if others else "whole parameters"
        raise ConfigError(
            f"{weights.source} is a LoKr with {what}, which no format of export holds; ComfyUI and the "
            "program that made it load it as it is, and generate --lora and fuse take it here"
        )
    if format not in LOKR_FORMATS:
        raise ConfigError(
            f"{weights.source} is a LoKr, which the format {format!r} does not hold; choose "
            f"{' or '.join(LOKR_FORMATS)}"
        )
    if with_full:
        raise ConfigError(f"a file of a LoKr holds no {weights.family.lora.full.title}; export without it")
    modules = {path: module.baked(module.rank) for path, module in weights.modules.items()}
    return replace(weights, full=None, modules=modules)


def _baked_scale(facts: Mapping[str, Any]) -> float | None:
    """The trained scale (alpha/r, or alpha/√r with rsLoRA) if `facts` say that it is inside b already."""
    alpha, rank = facts.get("alpha"), facts.get("rank")
    if facts.get("baked") is not True or not alpha or not rank:
        return None
    return float(alpha) / (math.sqrt(rank) if facts.get("use_rslora") else rank)


def to_tensors(prepared: LoRAWeights, format: str) -> dict[str, mx.array]:
    """Keys and arrays as the loader of `format` wants them, float32."""
    if prepared.is_lokr:
        return _lokr_tensors(prepared, format)
    spec, names = FORMATS[format], prepared.family.lora
    tensors = {}
    for path, module in prepared.modules.items():
        name = names.theirs(path, format)
        dims = 0 if format == "mlx" else names.trailing_dims(path)
        a, b = (module.a, module.b) if spec.baked else (module.a.T, module.b.T)
        ones = (1,) * dims
        tensors[f"{name}.{spec.a}"] = a.reshape(*a.shape, *ones)
        tensors[f"{name}.{spec.b}"] = b.reshape(*b.shape, *ones)
        if module.magnitude is not None:
            tensors[f"{name}.{spec.magnitude}"] = _magnitude(module.magnitude, format, dims)
    for name, diff in prepared.diffs.items():
        module_path, _, leaf = name.rpartition(".")
        tensors[f"{module_path}.{'diff' if leaf == 'weight' else 'diff_b'}"] = diff
    for name, value in (prepared.full or {}).items():
        module_path, _, leaf = name.rpartition(".")
        if format == "peft" and module_path in prepared.modules:
            module_path += ".base_layer"  # where peft keeps the layer that it has wrapped
        tensors[f"{module_path}.{leaf}"] = value
    return tensors


def _lokr_tensors(prepared: LoRAWeights, format: str) -> dict[str, mx.array]:
    """LyCORIS's keys, with the alpha that leaves nothing to be multiplied. It keeps a convolution's whole w2
    in the convolution's dimensions; ComfyUI would then multiply the wrong ones.
    """
    tensors: dict[str, mx.array] = {}
    names = prepared.family.lora
    for path, module in prepared.modules.items():
        name, dims = names.theirs(path, format), 0
        if format == LYCORIS:
            name, dims = f"lycoris_{name}".replace(".", "_"), names.trailing_dims(path)
        found = module.lokr
        if "lokr_w2" in found and module.w1 is not None:  # LyCORIS loads a product for w1 beside another only
            found = {"lokr_w1": module.w1, "lokr_w2": found["lokr_w2"]}
        ranks = [value.shape[1] for key, value in found.items() if key.endswith("_a")]
        if "lokr_w2" in found:
            found["lokr_w2"] = found["lokr_w2"].reshape(*found["lokr_w2"].shape, *(1,) * dims)
        tensors |= {f"{name}.{key}": value for key, value in found.items()}
        tensors[f"{name}.alpha"] = mx.array(float(ranks[0] if ranks else 1))
    return tensors


def _magnitude(magnitude: mx.array, format: str, dims: int) -> mx.array:
    if format == "comfyui":  # multiplies the weight (out, in, …)
        return magnitude.reshape(-1, 1, *(1,) * dims)
    if dims and format != "mlx":  # peft multiplies the output (batch, out, …)
        return magnitude.reshape(1, -1, *(1,) * dims)
    return magnitude


def _facts(prepared: LoRAWeights, format: str) -> str:
    """Our metadata as JSON: the trainer's facts, and what reading this file back needs."""
    facts = dict(prepared.metadata)
    for stale in ("baked", "scales", "file_format"):
        facts.pop(stale, None)
    if isinstance(facts.get("base"), str) and Path(facts["base"]).is_absolute():
        facts["base"] = Path(
            facts["base"]
        ).name  # LoRAs are shared: where a home folder is, is nobody's business
    baked = prepared.is_lokr or FORMATS[format].baked
    facts |= {"format_version": VERSION, "file_format": format, "baked": baked}
    facts |= {"tool_version": __version__}
    if prepared.unscaled:
        facts["scale_known"] = False
    if not baked:
        scales = {path: module.scale for path, module in prepared.modules.items()}
        common = max(set(scales.values()), key=list(scales.values()).count)
        facts["scale"] = common
        facts["scales"] = {path: scale for path, scale in scales.items() if scale != common}
    return json.dumps(facts, sort_keys=True, ensure_ascii=False)


def _check_range(tensors: Mapping[str, mx.array], dtype: mx.Dtype) -> None:
    finite = {name: mx.isfinite(value).all() for name, value in tensors.items()}
    mx.eval(finite)
    bad = [name for name, ok in finite.items() if not ok.item()]
    if bad:
        raise CheckpointError(f"NaN, infinite or too large for {dtype}: {describe_unknown(bad)}")


def verify(path: Path, expected: LoRAWeights, dtype: mx.Dtype, name: str | None = None) -> float:
    """Read `path` back and compare every ΔW and magnitude; returns the largest relative difference.

    Raises CheckpointError where a module is missing, added, or differs by more than the dtype's rounding.
    """
    again = read_lora(path)
    name = name or str(path)
    if again.modules.keys() != expected.modules.keys():
        odd = sorted(again.modules.keys() ^ expected.modules.keys())
        raise CheckpointError(f"{name} reads back differently: {describe_unknown(odd)}")
    worst = 0.0
    for module_path, module in expected.modules.items():
        other = again.modules[module_path]
        difference = relative_difference(module, other)
        if module.magnitude is not None and other.magnitude is not None:
            gap = mx.abs(other.magnitude - module.magnitude).max() / mx.abs(module.magnitude).max()
            difference = max(difference, float(np.array(gap)))
        same_kind = (module.magnitude is None) == (other.magnitude is None)
        if not same_kind or not difference <= TOLERANCES[dtype]:
            raise CheckpointError(f"{name} reads back differently: {module_path} by {difference:.2g}")
        worst = max(worst, difference)
    for wanted, found in ((expected.full, again.full), (expected.diffs, again.diffs)):
        wanted, found = wanted or {}, found or {}
        if wanted.keys() != found.keys() or not all(
            mx.array_equal(found[k], v.astype(dtype).astype(mx.float32)).item() for k, v in wanted.items()
        ):
            raise CheckpointError(f"{name} reads back differently: the {expected.family.lora.full.title}")
    return worst
