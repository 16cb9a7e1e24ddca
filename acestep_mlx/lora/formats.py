"""LoRA files: every spelling is read, four are written, and what was written is read back and compared.

The rule for other loaders: b ← scale·b, a unchanged, one rank for all modules (smaller ones are zero-padded),
no `.alpha` keys and no metadata that a loader acts on. Each of them then applies exactly the trained ΔW at
strength 1.0. Our own facts travel in the metadata under our own key.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from .. import __version__
from ..errors import CheckpointError, ConfigError
from ..models.files import FLOATS, PICKLES, read_header
from .files import whole_or_nothing
from .keys import Key, convolution_dims, describe_unknown, parse
from .linear import base_linears, row_norms_squared
from .lyrics_embedder import FOLDER as EMBEDDER_FOLDER
from .lyrics_embedder import for_format, read_lyrics_embedder
from .scales import PeftSettings, read_settings
from .weights import LoRAModule, LoRAWeights, relative_difference

METADATA_KEY = "acestep_mlx"
FILE_NAME = "pytorch_lora_weights.safetensors"
FILE_NAMES = (FILE_NAME, "adapter_model.safetensors")  # looked for in a folder, in this order

# Tolerated ‖ΔW_file − ΔW‖/‖ΔW‖: a few roundings of A and of B.
TOLERANCES = {mx.float32: 1e-6, mx.float16: 2e-3, mx.bfloat16: 1.6e-2}
DTYPES = {"float32": mx.float32, "float16": mx.float16, "bfloat16": mx.bfloat16}


@dataclass(frozen=True)
class Format:
    """How one kind of loader wants its keys."""

    prefix: str
    a: str
    b: str
    magnitude: str
    baked: bool = True


FORMATS: dict[str, Format] = {
    "peft": Format("", "lora_A.weight", "lora_B.weight", "lora_magnitude_vector"),
    "comfyui": Format("", "lora_A.weight", "lora_B.weight", "dora_scale"),
    "simpletuner": Format("transformer.", "lora_A.weight", "lora_B.weight", "lora_magnitude_vector.weight"),
    "mlx": Format("", "lora_a", "lora_b", "m", baked=False),
}


# Reading ---------------------------------------------------------------------------------------------------


def find_file(path: str | Path) -> Path:
    """The LoRA file at `path`: itself, or in a folder the one with a known name.

    Raises CheckpointError when there is none, or only a pickle.
    """
    path = Path(path).expanduser()
    if path.is_file():
        if path.suffix != ".safetensors" and path.suffix not in PICKLES:  # read_header refuses pickles
            raise CheckpointError(f"{path} is not a .safetensors file")
        return path
    if not path.is_dir():
        raise CheckpointError(f"{path}: no such LoRA file or folder")
    for name in FILE_NAMES:
        if (path / name).is_file():
            return path / name
    pickles = sorted(p.name for p in path.iterdir() if p.suffix in PICKLES)
    if pickles:
        read_header(path / pickles[0])
    raise CheckpointError(f"{path} holds no LoRA: looked for {' and '.join(FILE_NAMES)}")


def read_lora(path: str | Path) -> LoRAWeights:
    """A LoRA from any supported file or folder, in float32.

    A folder may also hold `lyrics_embedder/`. Raises CheckpointError for files that are corrupt, of another
    kind or contradictory, for unknown keys, and for NaN.
    """
    file = find_file(path)
    header = read_header(file)
    metadata = header.metadata
    if not header.tensors:
        raise CheckpointError(f"{file} holds no tensors")
    not_floats = [f"{n} ({t.dtype})" for n, t in header.tensors.items() if t.dtype not in FLOATS]
    if not_floats:
        raise CheckpointError(f"{file}: LoRA weights must be floats, but {describe_unknown(not_floats)}")
    empty = [name for name, tensor in header.tensors.items() if tensor.size == 0]
    if empty:
        raise CheckpointError(f"{file}: rank 0 or empty tensors: {describe_unknown(empty)}")
    try:
        loaded = mx.load(str(file))
        assert isinstance(loaded, dict)
        tensors = {k: v.astype(mx.float32) for k, v in loaded.items()}
        mx.eval(tensors)
    except (RuntimeError, ValueError) as error:
        raise CheckpointError(f"{file} cannot be read: {error}") from None
    ours = _our_metadata(metadata, file)
    weights = _collect(tensors, ours, read_settings(metadata, file) if not ours else None, str(file))
    if Path(path).expanduser().is_dir() and (file.parent / EMBEDDER_FOLDER).is_dir():
        weights.lyrics_embedder = read_lyrics_embedder(file.parent)
    weights.check_finite()
    return weights


def _our_metadata(metadata: Mapping[str, str], file: Path) -> dict[str, Any]:
    if METADATA_KEY not in metadata:
        return {}
    try:
        ours = json.loads(metadata[METADATA_KEY])
    except (ValueError, RecursionError):
        ours = None
    if not isinstance(ours, dict):
        raise CheckpointError(f"{file}: its {METADATA_KEY} metadata is damaged")
    return ours


def _collect(
    tensors: Mapping[str, mx.array], ours: dict[str, Any], settings: PeftSettings | None, where: str
) -> LoRAWeights:
    """Sort tensors into modules by the key tables and find every module's scale."""
    parts: dict[str, dict[str, mx.array]] = {}
    embedder: dict[str, mx.array] = {}
    diffs: dict[str, mx.array] = {}
    unknown, twice = [], []
    adapters: set[str] = set()
    for name, value in sorted(tensors.items()):
        key = parse(name)
        if key is None:
            unknown.append(name)
        elif key.role in ("embedder", "set_weight"):
            target = key.path if key.role == "embedder" else f"{key.path}.weight"
            embedder[target] = value
        elif key.role in ("diff", "diff_b"):
            diffs[f"{key.path}.{'weight' if key.role == 'diff' else 'bias'}"] = value
        else:
            role, value = _oriented(key, value)
            adapters |= {key.adapter} if key.adapter else set()
            if role in parts.setdefault(key.path, {}):
                twice.append(name)
            parts[key.path][role] = value
    if unknown:
        raise CheckpointError(
            f"{where}: {len(unknown)} keys are in no known LoRA format: {describe_unknown(unknown)}"
        )
    if twice or len(adapters) > 1:
        names = describe_unknown(twice) if twice else ", ".join(sorted(adapters))
        raise CheckpointError(f"{where} holds more than one adapter for the same modules: {names}")
    if not parts:
        raise CheckpointError(f"{where} holds no LoRA modules")
    scales = _Scales(ours, settings, where)
    modules = {path: _module(path, part, scales, where) for path, part in sorted(parts.items())}
    return LoRAWeights(modules, ours, embedder or None, diffs, where)


def _oriented(key: Key, value: mx.array) -> tuple[str, mx.array]:
    """Our own (in, r) and (r, out) turned into a (r, in) and b (out, r)."""
    turned = {"a_in_r": "a", "b_r_out": "b"}.get(key.role)
    return (turned, value.T) if turned else (key.role, value)


@dataclass(frozen=True)
class _Scales:
    """Where the scale of a module comes from."""

    ours: dict[str, Any]
    settings: PeftSettings | None
    where: str

    def of(self, path: str, rank: int, alpha: mx.array | None) -> float:
        found: dict[str, float] = {}
        if alpha is not None:
            if alpha.size != 1:
                raise CheckpointError(f"{self.where}: {path}.alpha is not one number but {alpha.shape}")
            root = self.settings is not None and self.settings.use_rslora
            found[".alpha"] = float(np.array(alpha).reshape(())) / (math.sqrt(rank) if root else rank)
        if self.ours and not self.ours.get("baked", True):
            found["its metadata"] = self._own(path)
        elif self.settings is not None:
            try:
                found[self.settings.source] = self.settings.scale(path, rank)
            except ValueError as error:
                raise CheckpointError(f"{self.where}: {error}") from None
        if len(found) == 2 and not math.isclose(*found.values(), rel_tol=1e-4):
            said = " and ".join(f"{source} says {scale:.6g}" for source, scale in found.items())
            raise CheckpointError(f"{self.where}: the scale of {path} is contradictory: {said}")
        scale = next(iter(found.values()), 1.0)
        if not math.isfinite(scale) or scale == 0:
            raise CheckpointError(
                f"{self.where}: alpha of {path} gives the scale {scale:g}: it would do nothing"
            )
        return scale

    def _own(self, path: str) -> float:
        scales = self.ours.get("scales")
        scale = (
            scales.get(path, self.ours.get("scale")) if isinstance(scales, dict) else self.ours.get("scale")
        )
        if isinstance(scale, bool) or not isinstance(scale, (int, float)):
            raise CheckpointError(f"{self.where}: its {METADATA_KEY} metadata gives no scale for {path}")
        return float(scale)


def _module(path: str, part: dict[str, mx.array], scales: _Scales, where: str) -> LoRAModule:
    missing = [name for role, name in (("a", "A (down)"), ("b", "B (up)")) if role not in part]
    if missing:
        raise CheckpointError(f"{where}: {path} has no {' and no '.join(missing)}")
    a, b = (_flat(part[role], f"{path}.lora_{role.upper()}", where) for role in ("a", "b"))
    if a.shape[0] != b.shape[1]:
        raise CheckpointError(
            f"{where}: the ranks of {path} differ: A {tuple(a.shape)} has {a.shape[0]}, "
            f"B {tuple(b.shape)} has {b.shape[1]}"
        )
    magnitude = part.get("magnitude", part.get("dora_scale"))
    if magnitude is None and scales.settings is not None and scales.settings.use_dora:
        raise CheckpointError(f"{where}: {scales.settings.source} says DoRA, but {path} has no magnitudes")
    if magnitude is not None and magnitude.size != b.shape[0]:
        raise CheckpointError(f"{where}: {path} has {magnitude.size} magnitudes for {b.shape[0]} outputs")
    return LoRAModule(
        a,
        b,
        scales.of(path, a.shape[0], part.get("alpha")),
        None if magnitude is None else magnitude.reshape(-1),
        "base" if "dora_scale" in part else "adapted",
    )


def _flat(value: mx.array, name: str, where: str) -> mx.array:
    """(n, m, 1[, 1]) of a 1×1 convolution → (n, m)."""
    if value.ndim < 2 or any(n != 1 for n in value.shape[2:]):
        raise CheckpointError(f"{where}: {name} {tuple(value.shape)} is no linear layer or 1×1 convolution")
    return value.reshape(value.shape[:2])


# Writing ---------------------------------------------------------------------------------------------------


def write_lora(
    path: str | Path,
    weights: LoRAWeights,
    format: str = "peft",
    dtype: mx.Dtype = mx.float32,
    *,
    base: nn.Module | None = None,
    with_lyrics_embedder: bool = False,
) -> Path:
    """Write one .safetensors file, read it back, compare, and only then give it its name.

    `base` is the transformer without this LoRA (injected adapters may sit on it): DoRA and the lyrics
    embedder for ComfyUI are computed against it. `with_lyrics_embedder` puts the trained embedder in too.
    Raises ConfigError for a format that cannot hold this LoRA, CheckpointError if the file does not verify.
    """
    path = Path(path)
    if format not in FORMATS:
        raise ConfigError(f"format must be one of {', '.join(FORMATS)}, got {format!r}")
    if dtype not in TOLERANCES:
        raise ConfigError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype}")
    if path.suffix != ".safetensors":
        raise ConfigError(f"{path}: a LoRA file's name must end in .safetensors")
    prepared = prepare(weights, format, base, with_lyrics_embedder=with_lyrics_embedder)
    tensors = {k: v.astype(dtype) for k, v in to_tensors(prepared, format).items()}
    mx.eval(tensors)
    _check_range(tensors, dtype)
    metadata = {"format": "pt", METADATA_KEY: _facts(prepared, format)}
    with whole_or_nothing(path) as temporary:
        try:
            mx.save_safetensors(str(temporary), {k: mx.contiguous(v) for k, v in tensors.items()}, metadata)
        except (RuntimeError, OSError) as error:
            raise CheckpointError(f"{path} cannot be written: {error}") from None
        verify(temporary, prepared, dtype, name=str(path))
    return path


def prepare(
    weights: LoRAWeights, format: str, base: nn.Module | None = None, *, with_lyrics_embedder: bool = False
) -> LoRAWeights:
    """The same LoRA in the form that `format` stores: scale baked into b, one rank, magnitudes its way."""
    spec = FORMATS[format]
    prepared = replace(weights, lyrics_embedder=None, diffs={})
    if with_lyrics_embedder:  # first, because it may merge modules whose magnitudes are the trained ones
        prepared = for_format(weights, format, base)
    modules = dict(prepared.modules)
    if spec.baked:
        modules = {path: module.baked(weights.rank) for path, module in modules.items()}
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


def to_tensors(prepared: LoRAWeights, format: str) -> dict[str, mx.array]:
    """Keys and arrays as the loader of `format` wants them, float32."""
    spec = FORMATS[format]
    tensors = {}
    for path, module in prepared.modules.items():
        dims = 0 if format == "mlx" else convolution_dims(path)
        a, b = (module.a, module.b) if spec.baked else (module.a.T, module.b.T)
        ones = (1,) * dims
        tensors[f"{spec.prefix}{path}.{spec.a}"] = a.reshape(*a.shape, *ones)
        tensors[f"{spec.prefix}{path}.{spec.b}"] = b.reshape(*b.shape, *ones)
        if module.magnitude is not None:
            tensors[f"{spec.prefix}{path}.{spec.magnitude}"] = _magnitude(module.magnitude, format, dims)
    for name, diff in prepared.diffs.items():
        module_path, _, leaf = name.rpartition(".")
        tensors[f"{module_path}.{'diff' if leaf == 'weight' else 'diff_b'}"] = diff
    for name, value in (prepared.lyrics_embedder or {}).items():
        module_path, _, leaf = name.rpartition(".")
        if format == "peft" and module_path in prepared.modules:
            module_path += ".base_layer"  # where peft keeps the layer that it has wrapped
        tensors[f"{module_path}.{leaf}"] = value
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
    facts |= {"file_format": format, "baked": FORMATS[format].baked, "tool_version": __version__}
    if not FORMATS[format].baked:
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
    for wanted, found in ((expected.lyrics_embedder, again.lyrics_embedder), (expected.diffs, again.diffs)):
        wanted, found = wanted or {}, found or {}
        if wanted.keys() != found.keys() or not all(
            mx.array_equal(found[k], v.astype(dtype).astype(mx.float32)).item() for k, v in wanted.items()
        ):
            raise CheckpointError(f"{name} reads back differently: the lyrics embedder")
    return worst
