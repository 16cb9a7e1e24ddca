"""An MLX folder and LoRAs in, a new MLX folder out, layer by layer."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from ..errors import CheckpointError, ConfigError
from ..families.model_folder import ModelFolder
from ..formatting import listed
from ..io.hashes import hash_file
from ..io.new_folder import new_folder, new_path
from ..io.progress import Advance, Progress, silent
from ..io.safetensors import Header, read_header, sample
from ..io.tensors import SafetensorsWriter, load_lazily
from ..lora.formats.read import find_file, read_lora
from ..lora.full_modules import check_parameters, full_parameters
from ..lora.linear import dense_weight
from ..lora.merge import FuseError, check_strengths, fuse_layer, parameter_changes, parts_by_path, with_weight
from ..lora.weights import LoRAWeights

SPARE = 64 << 20  # bytes of disk beyond the model's own


@dataclass
class FuseReport:
    """What `fuse` did. `errors`: per quantised or rounded layer, what its precision lost."""

    path: Path
    layers: int
    parameters: int
    quantized: bool
    errors: dict[str, FuseError] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def worst(self) -> tuple[str, FuseError]:
        """The layer that lost most of its weight."""
        return max(self.errors.items(), key=lambda item: item[1].weight)

    @property
    def whole(self) -> FuseError:
        """Of all layers together."""
        return FuseError.together(self.errors.values())


def fuse(
    model: str | Path,
    loras: Sequence[tuple[str | Path, float]],
    dst: str | Path,
    *,
    progress: Progress = silent,
) -> FuseReport:
    """Merge `loras` (path, strength) into the MLX folder `model` and write the new MLX folder `dst`.

    Quantised layers are dequantised, fused in float32 and quantised again with the folder's settings. One
    layer is in memory at a time. `dst`, new or empty, appears only when whole.
    Raises CheckpointError or ConfigError in one line.
    """
    started = time.monotonic()
    dst = new_path(dst, "folder")
    folder = ModelFolder.open(model)
    if not loras:
        raise ConfigError("nothing to fuse: give at least one LoRA")
    read = [(read_lora(path), float(strength)) for path, strength in loras]
    check_strengths(read)
    source = folder.file("transformer")
    header = read_header(source)
    skeleton = _skeleton(folder, header)
    for weights, _ in read:
        weights.check_against(skeleton)
        for line in weights.left_out:
            progress(Advance(f"{weights.source}: {line}"))
    job = _Job(source, header, folder.quantization, read)
    job.check(skeleton)
    needed = sum(path.stat().st_size for path in folder.path.iterdir() if path.is_file()) + SPARE
    with new_folder(dst, needed=needed) as new:
        fingerprint = job.write(new / source.name, progress)
        for path in sorted(folder.path.iterdir()):
            if (
                path.is_file()
                and path.name not in (source.name, "config.json")
                and not path.name.startswith(".")
            ):
                shutil.copyfile(path, new / path.name)
        config = dict(folder.config)
        config["fingerprints"] = {**folder.fingerprints, "transformer": fingerprint}
        known = {name: one for name, one in config.get("files", {}).items() if name != "transformer"}
        written = {name: new / folder.file(name).name for name in folder.family.components}
        config["files"] = {name: known.get(name) or sample(path) for name, path in written.items()}
        config["fused"] = [*config.get("fused", []), *(_entry(path, strength) for path, strength in loras)]
        text = json.dumps(config, indent=2, ensure_ascii=False)
        (new / "config.json").write_text(text + "\n", encoding="utf-8")
    quantized = folder.quantization is not None
    return FuseReport(dst, len(job.parts), job.changed, quantized, job.errors, time.monotonic() - started)


def _entry(path: str | Path, strength: float) -> dict[str, Any]:
    """What config.json keeps of a LoRA that was merged in."""
    file = find_file(path)
    name = file.parent.name if Path(path).is_dir() else file.name
    return {"lora": name, "scale": float(strength), "sha256": hash_file(file)}


def _skeleton(folder: ModelFolder, header: Header) -> nn.Module:
    """The transformer's shapes; its random weights are never computed."""
    skeleton = folder.skeleton("transformer")
    flat: Any = tree_flatten(skeleton.parameters())
    wanted = {name: tuple(value.shape) for name, value in flat}
    if wanted != {name: info.shape for name, info in header.tensors.items()}:
        odd = sorted({n for n, _ in {*wanted.items()} ^ {(n, i.shape) for n, i in header.tensors.items()}})
        file, names = folder.file("transformer"), listed(odd, between=", ")
        raise CheckpointError(f"{file} is not the transformer of its config.json: {names}")
    return skeleton


def _name(path: str, leaf: str) -> str:
    """Of a tensor of the layer at `path`; "" is the model itself."""
    return f"{path}.{leaf}" if path else leaf


def _whole_parameters(weights: LoRAWeights, path: str) -> LoRAWeights:
    """What a LoRA brings as whole parameters of the layer at `path`."""
    return replace(
        weights,
        modules={},
        full={n: v for n, v in (weights.full or {}).items() if n.rpartition(".")[0] == path},
        diffs={n: v for n, v in weights.diffs.items() if n.rpartition(".")[0] == path},
    )


class _Job:
    """The new transformer file, one layer at a time."""

    def __init__(
        self,
        source: Path,
        header: Header,
        quantization: dict[str, Any] | None,
        loras: list[tuple[LoRAWeights, float]],
    ) -> None:
        self.header, self.quantization, self.loras = header, quantization, loras
        self.parts = parts_by_path(loras)
        self.errors: dict[str, FuseError] = {}
        self.changed = len({n for w, s in loras if s for n in [*(w.full or {}), *w.diffs]})
        self.arrays = load_lazily(source)

    def check(self, skeleton: nn.Module) -> None:
        """Raises CheckpointError for whole parameters that do not fit."""
        if self.changed:
            here = full_parameters(skeleton)
            for weights, _ in self.loras:
                check_parameters(here, weights, weights.source)

    def write(self, path: Path, progress: Progress) -> str:
        """Write the file and return its fingerprint."""
        layers: dict[str, list[str]] = {}
        for name in self.header.tensors:
            layers.setdefault(name.rpartition(".")[0], []).append(name)
        total = sum(info.stop - info.start for info in self.header.tensors.values())
        done = 0
        tensors = {name: (info.dtype, info.shape) for name, info in self.header.tensors.items()}
        with SafetensorsWriter(path, tensors) as writer:
            for layer, names in layers.items():
                values = {name: self.arrays.pop(name) for name in names}
                for name, value in self._changed(layer, values).items():
                    mx.eval(value)
                    writer.write(name, value)
                done += sum(self.header.tensors[n].stop - self.header.tensors[n].start for n in names)
                progress(Advance("fusing", done, total, "bytes"))
        return writer.digest()

    def _changed(self, path: str, values: dict[str, mx.array]) -> dict[str, mx.array]:
        """The tensors of one layer (or the plain parameters beside it), with everything merged in."""
        own = {name.rpartition(".")[2]: value for name, value in values.items()}
        mine = [(_whole_parameters(weights, path), strength) for weights, strength in self.loras]
        layer = self._layer(own)
        here = {_name(path, leaf): value for leaf, value in own.items()}
        if layer is not None:
            here[f"{path}.weight"] = dense_weight(layer)
        changes = parameter_changes(mine, here)
        for name, value in changes.items():
            leaf = name.rpartition(".")[2]
            if leaf == "weight" and layer is not None:
                layer = with_weight(layer, value)
            else:
                own[leaf] = value.astype(own[leaf].dtype)
        if path in self.parts:
            assert layer is not None
            layer, self.errors[path] = fuse_layer(layer, self.parts[path])
        if layer is not None and (path in self.parts or changes):
            own |= {leaf: layer[leaf] for leaf in ("weight", "scales", "biases") if leaf in own}
        return {_name(path, leaf): value for leaf, value in own.items()}

    def _layer(self, own: dict[str, mx.array]) -> nn.Module | None:
        """A layer around the tensors of a matrix (out, in), quantised or not."""
        if "weight" not in own or own["weight"].ndim != 2:
            return None
        layer: nn.Module = nn.Linear(1, 1, bias=False)
        if "scales" in own:
            assert self.quantization is not None
            layer = nn.QuantizedLinear(self.quantization["group_size"], 1, bias=False, **self.quantization)
        for leaf in ("weight", "scales", "biases"):
            if leaf in own:
                layer[leaf] = own[leaf]
        return layer
