"""One component of a checkpoint becomes one file, a tensor or a slice of its rows at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import mlx.core as mx

from ..errors import CheckpointError
from ..families.layout import ComponentSource
from ..families.model_folder import DTYPES, Quantization, component_module, quantizable
from ..io.safetensors import ITEM_SIZES
from ..io.tensors import SafetensorsWriter, dtype_name, read_rows, read_tensor
from ..nn.foreign_config import UnknownKeys
from .plan import Entry, Plan, plan
from .source import Source


@dataclass
class Job:
    """One component, planned: what to read, what to write.

    config: the dataclass of its sizes; stored: what config.json keeps of it. quantized: paths of layers.
    dtype: of everything else.
    """

    name: str
    source: ComponentSource
    config: Any
    stored: dict[str, Any]
    plan: Plan
    quantized: list[str]
    dtype: mx.Dtype
    quantization: Quantization | None

    @property
    def parameters(self) -> int:
        """How many numbers are converted, as counted upstream."""
        return sum(self.source.tensors[entry.sources[-1]].size for entry in self.plan.entries)

    @property
    def bytes_read(self) -> int:
        """Of all tensors that the component has upstream."""
        return sum(info.stop - info.start for info in self.source.tensors.values())

    def outputs(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Name → (dtype, shape) of what is written. Shapes only: nothing is computed."""
        return {
            name: (dtype_name(value.dtype), tuple(value.shape))
            for entry in self.plan.entries
            for name, value in self.pack(entry, mx.zeros(entry.shape, self.dtype)).items()
        }

    def needed(self) -> int:
        """Bytes that are written."""
        return sum(prod(shape) * ITEM_SIZES[dtype] for dtype, shape in self.outputs().values())

    def pack(self, entry: Entry, value: mx.array) -> dict[str, mx.array]:
        """A tensor of ours, in the wanted dtype, as it is stored: itself or quantised."""
        layer = entry.target.removesuffix(".weight")
        if self.quantization is None or layer not in self.quantized or entry.leaf != "weight":
            return {entry.target: value}
        parts = mx.quantize(value, **self.quantization.as_dict())
        return dict(zip((entry.target, f"{layer}.scales", f"{layer}.biases"), parts, strict=False))

    def slices(self, entry: Entry) -> Iterator[mx.array]:
        """The tensor in our layout, in slices of rows where that is possible."""
        infos = {name: self.source.tensors[name] for name in entry.sources}
        if entry.by_rows:
            for rows in read_rows(infos[entry.sources[0]]):
                yield entry.make({entry.sources[0]: rows}.__getitem__)
        else:
            yield entry.make({name: read_tensor(info) for name, info in infos.items()}.__getitem__)

    def source_bytes(self, entry: Entry) -> int:
        """How many bytes of the checkpoint the tensor is made from."""
        infos = (self.source.tensors[name] for name in entry.sources)
        return sum(info.stop - info.start for info in infos)

    def write(self, path: Path, read: Callable[[int], None]) -> SafetensorsWriter:
        """Write the file; `read` is told the bytes of each tensor. CheckpointError for what is not finite."""
        with SafetensorsWriter(path, self.outputs()) as writer:
            for entry in self.plan.entries:
                for rows in self.slices(entry):
                    self._write_rows(entry, rows, writer)
                mx.clear_cache()
                read(self.source_bytes(entry))
        return writer

    def _write_rows(self, entry: Entry, source: mx.array, writer: SafetensorsWriter) -> None:
        rows = source.astype(self.dtype)
        parts = self.pack(entry, rows)
        largest = mx.max(mx.abs(rows)) if rows.size else mx.array(0.0)
        mx.eval(largest, *parts.values())
        if not mx.isfinite(largest).item():
            info = self.source.tensors[entry.sources[-1]]
            what, advice = "values that are not finite", "download the file again"
            if mx.isfinite(source).all().item():
                what = f"values that {dtype_name(self.dtype)} cannot hold"
                advice = f"use --dtype {'float32' if self.dtype == mx.bfloat16 else 'bfloat16 or float32'}"
            raise CheckpointError(f"{info.path}: {entry.sources[-1]!r} has {what}; {advice}")
        for name, value in parts.items():
            writer.write(name, value)


def plan_component(
    source: Source, name: str, dtype: str | None = None, quantization: Quantization | None = None
) -> Job:
    """Check one component's config and headers. CheckpointError in one line that names all that is wrong."""
    found = source.component(name)
    component = source.family.components[name]
    try:
        values = {**found.config, **component.config.sizes_in(found.shapes)}
    except CheckpointError as error:
        raise CheckpointError(f"{found.where}: {error}") from None
    try:
        config, module = component_module(name, component, values, len(found.tensors))
    except UnknownKeys as error:
        raise CheckpointError(f"{found.config_file}: {error.with_flag()}") from None
    except CheckpointError as error:
        raise CheckpointError(f"{found.config_file}: {error}") from None
    try:
        planned = plan(name, component.keymap, module, found.shapes)
    except CheckpointError as error:
        raise CheckpointError(f"{found.where}: {error}") from None
    chosen: list[str] = []
    if quantization is not None:
        layers, size = module.named_modules(), quantization.group_size
        chosen = sorted(path for path, layer in layers if quantizable(component, path, layer, size))
    kind = DTYPES[dtype] if dtype is not None else _own_dtype(found, planned.entries)
    return Job(name, found, config, config.stored(values), planned, chosen, kind, quantization)


def _own_dtype(component: ComponentSource, entries: list[Entry]) -> mx.Dtype:
    """The dtype that most of a component's weights have."""
    sizes: dict[str, int] = {}
    for entry in entries:
        info = component.tensors[entry.sources[-1]]
        sizes[info.dtype] = sizes.get(info.dtype, 0) + info.size
    most = max(sizes, key=lambda name: sizes[name])
    return {"BF16": mx.bfloat16, "F16": mx.float16}.get(most, mx.float32)
