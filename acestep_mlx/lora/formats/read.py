"""LoRA files of every spelling, read into one form."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from ...errors import CheckpointError
from ...families import default
from ...families.protocol import Family
from ...formatting import count, listed
from ...io.filenames import at_home
from ...io.safetensors import FLOATS, PICKLES, read_header
from ...io.tensors import load_tensors
from ..full_modules import read_full
from ..weights import LoRAModule, LoRAWeights
from .keys import Key, describe_unknown, parse, spelled_path
from .metadata import METADATA_KEY, read_facts
from .recognise import is_full_parameter, recognise
from .scales import PeftSettings, check_scale, read_settings

FILE_NAME = "pytorch_lora_weights.safetensors"
PEFT_FILE = "adapter_model.safetensors"  # in a folder as peft saves it
FILE_NAMES = (FILE_NAME, PEFT_FILE, "lokr_weights.safetensors")  # looked for in a folder, in this order


def find_file(path: str | Path) -> Path:
    """The LoRA file at `path`: itself, or in a folder the one with a known name.

    Raises CheckpointError when there is none, or only a pickle.
    """
    path = at_home(path)
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
    found = (
        inside.parent
        for name in FILE_NAMES
        for depth in ("*", "*/*")
        for inside in path.glob(f"{depth}/{name}")
    )
    if below := sorted({str(folder.relative_to(path)) for folder in found}):
        raise CheckpointError(
            f"{path} holds no LoRA itself; name a folder in it: {listed(below, between=', ')}"
        )
    raise CheckpointError(f"{path} holds no LoRA: looked for {listed(FILE_NAMES, between=', ')}")


def read_lora(path: str | Path) -> LoRAWeights:
    """A LoRA from any supported file or folder, in float32.

    A folder may also hold one of modules that were trained in full. Raises CheckpointError for files that are
    corrupt, of another kind or another model, or contradictory, for unknown keys, and for NaN.
    """
    file = find_file(path)
    header = read_header(file)
    metadata = header.metadata
    if not header.tensors:
        raise CheckpointError(f"{file} holds no tensors")
    adapter = recognise(header.tensors)
    if adapter is not None and adapter.problem:
        raise CheckpointError(f"{file} {adapter.problem}")
    not_floats = [
        f"{name} ({tensor.dtype})"
        for name, tensor in header.tensors.items()
        if tensor.dtype not in FLOATS
        # LyCORIS stores whole alphas as integers
        and (tensor.dtype == "BOOL" or not name.endswith(".alpha"))
    ]
    if not_floats:
        raise CheckpointError(f"{file}: LoRA weights must be floats, but {describe_unknown(not_floats)}")
    empty = [name for name, tensor in header.tensors.items() if tensor.size == 0]
    if empty:
        raise CheckpointError(f"{file}: rank 0 or empty tensors: {describe_unknown(empty)}")
    tensors = load_tensors(file, mx.float32)
    ours = read_facts(metadata, file)
    family = adapter.family if adapter is not None else default()
    weights = _collect(family, tensors, ours, read_settings(metadata, file) if not ours else None, str(file))
    name = family.lora.full.name
    if name and at_home(path).is_dir() and (file.parent / name).is_dir():
        weights.full = read_full(file.parent, family.lora)
    weights.check_finite()
    return weights


def _skipped(parts: Mapping[str, Mapping[str, mx.array]], family: Family, where: str) -> tuple[str, ...]:
    """Modules that change nothing; CheckpointError where there is no other, or one outside is trained."""
    skipped = tuple(path for path in sorted(parts) if family.lora.why_unused(path))
    outside = [path for path in skipped if family.lora.is_outside(path)]
    moved = [path for path in outside if "b" in parts[path] and mx.any(parts[path]["b"] != 0).item()]
    if moved:
        raise CheckpointError(
            f"{where} holds trained modules outside the transformer, which are not supported: "
            f"{describe_unknown(moved)}"
        )
    if len(skipped) == len(parts):
        raise CheckpointError(
            f"{where} holds only modules that change nothing: {describe_unknown([*skipped])}"
        )
    return skipped


def _collect(
    family: Family,
    tensors: Mapping[str, mx.array],
    ours: dict[str, Any],
    settings: PeftSettings | None,
    where: str,
) -> LoRAWeights:
    """Sort tensors into modules by the key tables and find every module's scale."""
    parts: dict[str, dict[str, mx.array]] = {}
    full: dict[str, mx.array] = {}
    diffs: dict[str, mx.array] = {}
    unknown, twice = [], []
    adapters: set[str] = set()
    spelled: dict[str, str] = {}  # what peft's settings speak of
    for name, value in sorted(tensors.items()):
        key = parse(name, family.lora)
        if key is None or (key.role == "full" and not is_full_parameter(key.path, family)):
            unknown.append(name)
        elif key.role in ("full", "set_weight"):
            target = key.path if key.role == "full" else f"{key.path}.weight"
            full[target] = value
        elif key.role in ("diff", "diff_b"):
            diffs[f"{key.path}.{'weight' if key.role == 'diff' else 'bias'}"] = value
        else:
            role, value = _oriented(key, value)
            adapters |= {key.adapter} if key.adapter else set()
            if role in parts.setdefault(key.path, {}):
                twice.append(name)
            parts[key.path][role] = value
            spelled[key.path] = spelled_path(name)
    if unknown:
        raise CheckpointError(
            f"{where}: {count(len(unknown), 'key')} in no known LoRA format: {describe_unknown(unknown)}"
        )
    if twice or len(adapters) > 1:
        names = describe_unknown(twice) if twice else ", ".join(sorted(adapters))
        raise CheckpointError(f"{where} holds more than one adapter for the same modules: {names}")
    if not parts:
        raise CheckpointError(f"{where} holds no LoRA modules")
    elsewhere = [name for name in [*full, *diffs] if not family.lora.full.holds(name)]
    if elsewhere:
        raise CheckpointError(
            f"{where} holds whole weights of {count(len(elsewhere), 'parameter')} outside the "
            f"{family.lora.full.title}, which are not supported: {describe_unknown(elsewhere)}"
        )
    skipped = _skipped(parts, family, where)
    used = {path: part for path, part in sorted(parts.items()) if path not in skipped}
    scales = _Scales(ours, settings, spelled, where)
    modules = {path: _module(path, part, scales, where) for path, part in used.items()}
    unscaled = sum(not scales.stored(part.get("alpha")) and not _whole(part) for part in used.values())
    return LoRAWeights(modules, ours, full or None, diffs, where, skipped, unscaled, family)


def _oriented(key: Key, value: mx.array) -> tuple[str, mx.array]:
    """Our own (in, r) and (r, out) turned into a (r, in) and b (out, r)."""
    turned = {"a_in_r": "a", "b_r_out": "b"}.get(key.role)
    return (turned, value.T) if turned else (key.role, value)


@dataclass(frozen=True)
class _Scales:
    """Where the scale of a module comes from."""

    ours: dict[str, Any]
    settings: PeftSettings | None
    spelled: Mapping[str, str]
    where: str

    def stored(self, alpha: mx.array | None) -> bool:
        """Whether the file says with what scale a module was trained."""
        return alpha is not None or self.settings is not None or self.ours.get("scale_known", bool(self.ours))

    def of(self, path: str, rank: int | None, alpha: mx.array | None) -> float:
        """rank: None for a LoKr of whole matrices, whose alpha counts for nothing in LyCORIS."""
        if rank is None:
            alpha = None
        found: dict[str, float] = {}
        if alpha is not None:
            if alpha.size != 1:
                raise CheckpointError(f"{self.where}: {path}.alpha is not one number but {alpha.shape}")
            root = self.settings is not None and self.settings.use_rslora
            assert rank is not None
            found[".alpha"] = float(np.array(alpha).reshape(())) / (math.sqrt(rank) if root else rank)
        if self.ours and not self.ours.get("baked", True):
            found["its metadata"] = self._own(path)
        elif self.settings is not None:
            try:
                found[self.settings.source] = self.settings.scale(self.spelled[path], rank)
            except ValueError as error:
                raise CheckpointError(f"{self.where}: {error}") from None
        if len(found) == 2 and not math.isclose(*found.values(), rel_tol=1e-4):  # NaN is not close either
            said = " and ".join(f"{source} says {scale:.6g}" for source, scale in found.items())
            raise CheckpointError(f"{self.where}: the scale of {path} is contradictory: {said}")
        source, scale = next(iter(found.items()), ("", 1.0))
        try:
            check_scale(scale, f"alpha of {path}" + (f" in {source}" if source != ".alpha" else ""))
        except ValueError as error:
            raise CheckpointError(f"{self.where}: {error}") from None
        return scale

    def _own(self, path: str) -> float:
        scales = self.ours.get("scales")
        scale = (
            scales.get(path, self.ours.get("scale")) if isinstance(scales, dict) else self.ours.get("scale")
        )
        if scale is None:
            raise CheckpointError(f"{self.where}: its {METADATA_KEY} metadata gives no scale for {path}")
        return float(scale)


def _whole(part: Mapping[str, mx.array]) -> bool:
    """Whether a module is a LoKr of whole matrices."""
    return "w1" in part and "w2" in part


def _module(path: str, part: dict[str, mx.array], scales: _Scales, where: str) -> LoRAModule:
    if any(role.startswith("w") for role in part):
        return _lokr(path, part, scales, where)
    missing = [name for role, name in (("a", "A (down)"), ("b", "B (up)")) if role not in part]
    if missing:
        raise CheckpointError(f"{where}: {path} has no {' and no '.join(missing)}")
    a, b = (_flat(part[role], f"{path}.lora_{role.upper()}", where) for role in ("a", "b"))
    if a.shape[0] != b.shape[1]:
        raise CheckpointError(
            f"{where}: the ranks of {path} differ: A {tuple(a.shape)} has {a.shape[0]}, "
            f"B {tuple(b.shape)} has {b.shape[1]}"
        )
    scale = scales.of(path, a.shape[0], part.get("alpha"))
    return LoRAModule(a, b, scale, *_magnitude(path, part, b.shape[0], scales, where))


def _lokr(path: str, part: dict[str, mx.array], scales: _Scales, where: str) -> LoRAModule:
    """w1 ⊗ w2, each of them whole or a product of two, w2 then kept as these."""
    flat = {
        role: _flat(part[role], f"{path}.lokr_{role}", where) for role in sorted(part) if role.startswith("w")
    }
    for name in ("w1", "w2"):
        given = [role for role in flat if role.startswith(name)]
        if given not in ([name], [f"{name}_a", f"{name}_b"]) or "a" in part or "b" in part:
            has = ", ".join([*flat, *(role for role in ("a", "b") if role in part)])
            raise CheckpointError(
                f"{where}: {path} has {has}; a LoKr has w1, or w1_a and w1_b, and w2, or w2_a and w2_b"
            )
    ranks = set()
    for name in ("w1", "w2"):
        if name not in flat:
            a, b = flat[f"{name}_a"], flat[f"{name}_b"]
            ranks |= {a.shape[1], b.shape[0]}
    if len(ranks) > 1:
        raise CheckpointError(f"{where}: the ranks of {path} differ: {', '.join(map(str, sorted(ranks)))}")
    w1, w2 = ([flat[role] for role in sorted(flat) if role.startswith(name)] for name in ("w1", "w2"))
    scale = scales.of(path, next(iter(ranks), None), part.get("alpha"))
    outputs = w1[0].shape[0] * w2[0].shape[0]
    return LoRAModule.of_lokr(w1, w2, scale, *_magnitude(path, part, outputs, scales, where))


def _magnitude(
    path: str, part: dict[str, mx.array], outputs: int, scales: _Scales, where: str
) -> tuple[mx.array | None, str]:
    """The magnitudes (out,) of a DoRA, and what they are relative to."""
    if "magnitude" in part and "dora_scale" in part:
        raise CheckpointError(f"{where}: {path} has both a dora_scale and a lora_magnitude_vector")
    magnitude = part.get("magnitude", part.get("dora_scale"))
    if "dora_scale" in part and part["dora_scale"].ndim > 1 and part["dora_scale"].shape[0] != outputs:
        raise CheckpointError(
            f"{where}: {path}.dora_scale {tuple(part['dora_scale'].shape)} is a factor of inputs (LyCORIS "
            "with wd_on_out=False), which is not supported; it would have to be one of outputs"
        )
    if magnitude is None and scales.settings is not None and scales.settings.use_dora:
        raise CheckpointError(f"{where}: {scales.settings.source} says DoRA, but {path} has no magnitudes")
    if magnitude is not None and magnitude.size != outputs:
        raise CheckpointError(f"{where}: {path} has {magnitude.size} magnitudes for {outputs} outputs")
    # LyCORIS divides by ‖W + ΔW‖ as peft does; ComfyUI by ‖W‖, for which only we have written files.
    over = "base" if "dora_scale" in part and scales.ours.get("file_format") == "comfyui" else "adapted"
    return None if magnitude is None else magnitude.reshape(-1), over


def _flat(value: mx.array, name: str, where: str) -> mx.array:
    """(n, m, 1[, 1]) of a 1×1 convolution → (n, m)."""
    if value.ndim < 2 or any(n != 1 for n in value.shape[2:]):
        raise CheckpointError(f"{where}: {name} {tuple(value.shape)} is no linear layer or 1×1 convolution")
    return value.reshape(value.shape[:2])
