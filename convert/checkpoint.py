"""The converter: a PyTorch checkpoint in, a self-contained MLX folder out.

Everything is checked from headers before the first weight is read; then tensors are streamed, a slice at a
time, into a temporary folder that takes its final name when it is whole.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from math import prod
from pathlib import Path
from typing import Any

import mlx.core as mx

from .. import __version__
from ..errors import CheckpointError, ConfigError
from ..families.folder import (
    COMPONENTS,
    DTYPES,
    FORMAT,
    FORMAT_VERSION,
    LYRIC_VOCAB,
    QUANTIZED_COMPONENTS,
    Quantization,
    component_module,
    quantizable,
)
from ..io.new_folder import new_folder, new_path
from ..io.progress import Advance, Progress, silent
from ..io.safetensors import ITEM_SIZES
from ..io.tensors import SafetensorsWriter, dtype_name, read_rows, read_tensor
from ..nn.foreign_config import UnknownKeys
from . import lyric_vocab as vocabulary
from . import tokenizer as tokenizers
from .source import ComponentSource, Source, resolve
from .translate import Account, Entry, plan, translate

__all__ = ["Account", "Report", "convert", "plan", "translate"]

SPARE = 64 << 20  # bytes that a disk must have beyond what is written


@dataclass
class ComponentReport:
    """What became of one component."""

    account: Account
    quantized: list[str]
    parameters: int  # converted, as counted upstream
    bytes_read: int
    bytes_written: int


@dataclass
class Report:
    """What a conversion did; `path` is the finished folder."""

    path: Path
    components: dict[str, ComponentReport]
    lyric_vocab: str  # where it came from
    seconds: float
    notes: list[str] = field(default_factory=list)


@dataclass
class _Job:
    """One component, planned: what to read, what to write."""

    name: str
    source: ComponentSource
    config: dict[str, Any]
    entries: list[Entry]
    account: Account
    quantized: list[str]
    dtype: mx.Dtype
    quantization: Quantization | None

    def outputs(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Name → (dtype, shape) of what is written. Shapes only: nothing is computed."""
        wanted: dict[str, tuple[str, tuple[int, ...]]] = {}
        for entry in self.entries:
            for name, value in self.pack(entry, mx.zeros(entry.shape, self.dtype)).items():
                wanted[name] = (dtype_name(value.dtype), tuple(value.shape))
        return wanted

    def pack(self, entry: Entry, value: mx.array) -> dict[str, mx.array]:
        """A tensor of ours, in the wanted dtype, as it is stored: itself or quantised."""
        layer = entry.target.removesuffix(".weight")
        if self.quantization is None or layer not in self.quantized or entry.leaf != "weight":
            return {entry.target: value}
        parts = mx.quantize(value, **self.quantization.as_dict())
        return dict(zip((entry.target, f"{layer}.scales", f"{layer}.biases"), parts, strict=False))

    def slices(self, entry: Entry) -> Iterator[mx.array]:
        """The tensor in our layout, in slices of rows where that is possible."""
        infos = [self.source.tensors[name] for name in entry.sources]
        if entry.by_rows:
            for rows in read_rows(infos[0]):
                yield entry.make({entry.sources[0]: rows}.__getitem__)
        else:
            values = {
                info_name: read_tensor(info) for info_name, info in zip(entry.sources, infos, strict=True)
            }
            yield entry.make(values.__getitem__)

    def source_bytes(self, entry: Entry) -> int:
        """How many bytes of the checkpoint the tensor is made from."""
        infos = (self.source.tensors[name] for name in entry.sources)
        return sum(info.stop - info.start for info in infos)


def convert(
    src: str | Path,
    dst: str | Path,
    *,
    quantize: bool = False,
    q_bits: int | None = None,
    q_group_size: int | None = None,
    q_mode: str = "affine",
    q_components: Sequence[str] = QUANTIZED_COMPONENTS,
    dtype: str | None = None,
    revision: str | None = None,
    lyric_vocab: str | Path | None = None,
    tokenizer: str | Path | None = None,
    named: tuple[str, str | None] | None = None,
    allow_config_keys: Sequence[str] = (),
    progress: Progress = silent,
) -> Report:
    """Convert the checkpoint `src` (upstream's folder or hub repository, or ComfyUI's all-in-one file) into
    the new MLX folder `dst`.

    quantize: the large linear layers of q_components (see `families.folder.quantizable`), with q_bits,
    q_group_size and q_mode as MLX has them. dtype: of everything
    else ("bfloat16", "float16", "float32"; None keeps each component's own). lyric_vocab: a vocabulary file
    instead of the one that is found. tokenizer: tokenizer.json or spiece.model of the text encoder, or a
    folder with one, instead of the checkpoint's own. named: source and revision to record, when `src` is a
    local copy of something else. allow_config_keys: keys of the components' config.json that are left out, as
    the user says that they change nothing. progress is told bytes, and notes.

    Memory stays far below 2 GB whatever the size. `dst`, new or empty, appears only when whole.
    Raises ConfigError or CheckpointError in one line.
    """
    started = time.monotonic()
    notes: list[str] = []

    def tell(advance: Advance) -> None:
        if not advance.total:
            notes.append(advance.stage)
        progress(advance)

    quantization = Quantization.of(q_bits, q_group_size, q_mode) if quantize else None
    if dtype is not None and dtype not in DTYPES:
        raise ConfigError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    dst = new_path(dst, "--mlx-path")
    source = resolve(src, revision, tell)
    origin = named or (source.path_or_repo, source.revision)
    source = _allow(source, allow_config_keys)
    jobs = [
        plan_component(source, name, dtype, quantization if name in q_components else None)
        for name in COMPONENTS
    ]
    vocab = vocabulary.find(lyric_vocab, source.path, jobs[0].config["lyric_encoder_vocab_size"], tell)
    text_encoder = next(job for job in jobs if job.name == "text_encoder")
    words = tokenizers.find(tokenizer, source, text_encoder.source.folder, text_encoder.config["vocab_size"])

    outputs = {job.name: job.outputs() for job in jobs}
    with new_folder(dst, needed=_sizes(outputs) + SPARE, progress=tell) as folder:
        reports: dict[str, ComponentReport] = {}
        fingerprints: dict[str, str] = {}
        total = sum(job.source_bytes(entry) for job in jobs for entry in job.entries)
        done = 0
        for job in jobs:
            path = folder / f"{job.name}.safetensors"
            with SafetensorsWriter(path, outputs[job.name]) as writer:
                for entry in job.entries:
                    _write(job, entry, writer)
                    done += job.source_bytes(entry)
                    tell(Advance(f"converting {job.name}", done, total, "bytes"))
            fingerprints[job.name] = writer.digest()
            reports[job.name] = ComponentReport(
                job.account,
                job.quantized,
                sum(job.source.tensors[name].size for entry in job.entries for name in entry.sources[-1:]),
                sum(info.stop - info.start for info in job.source.tensors.values()),
                writer.size,
            )
        for name, data in words.items():
            (folder / name).write_bytes(data)
        (folder / LYRIC_VOCAB).write_bytes(vocab.data)
        config = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "converter_version": __version__,
            "source": dict(zip(("path_or_repo", "revision"), origin, strict=True)),
            "dtype": next(name for name, value in DTYPES.items() if value == jobs[0].dtype),
            "quantization": quantization.as_dict() if quantization else None,
            "lyric_vocab": {"source": vocab.source, "sha256": vocab.sha256},
            "components": {job.name: job.config for job in jobs},
            "fingerprints": fingerprints,
        }
        text = json.dumps(config, indent=2, ensure_ascii=False)
        (folder / "config.json").write_text(text + "\n", encoding="utf-8")
    return Report(dst, reports, vocab.source, time.monotonic() - started, notes)


def plan_component(source: Source, name: str, dtype: str | None, quantization: Quantization | None) -> _Job:
    component = source.component(name)
    config = dict(component.config)
    if name == "transformer":
        config.update(_lyric_encoder_sizes(component))
    where = component.folder if source.is_file else component.folder / "config.json"
    try:
        understood, module = component_module(name, config, len(component.tensors))
    except UnknownKeys as error:
        raise CheckpointError(f"{where}: {error.with_flag()}") from None
    except CheckpointError as error:
        raise CheckpointError(f"{where}: {error}") from None
    if name == "text_encoder":
        config = asdict(understood)  # what transformers' class has judged need not be judged again
    try:
        entries, account = plan(name, module, component.shapes)
    except CheckpointError as error:
        raise CheckpointError(f"{component.folder}: {error}") from None
    chosen: list[str] = []
    if quantization is not None:
        layers = module.named_modules()
        chosen = sorted(path for path, layer in layers if quantizable(path, layer, quantization.group_size))
    kind = DTYPES[dtype] if dtype is not None else _own_dtype(component, entries)
    return _Job(name, component, config, entries, account, chosen, kind, quantization)


def _allow(source: Source, keys: Sequence[str]) -> Source:
    """The checkpoint without these keys; ConfigError for one that is in no config, or is computed with."""
    found = {name: set(source.component(name).config) for name in COMPONENTS} if keys else {}
    for key in keys:
        holders = [name for name, theirs in found.items() if key in theirs]
        if not holders:
            raise ConfigError(
                f"--allow-config-key {key}: no config.json of {source.path_or_repo} has this key"
            )
        if any(key in {f.name for f in fields(COMPONENTS[name][0])} for name in holders):
            raise ConfigError(
                f"--allow-config-key {key}: the model is built from this key; it cannot be left out"
            )
    return replace(source, without=frozenset(keys))


def _lyric_encoder_sizes(component: ComponentSource) -> dict[str, int]:
    """The sizes that upstream's config.json leaves out, from the tensors' shapes."""
    prefix = "lyric_encoder.encoders."
    shapes = component.shapes
    layers = {name[len(prefix) :].split(".")[0] for name in shapes if name.startswith(prefix)}
    try:
        return {
            "lyric_encoder_layers": len(layers),
            "lyric_encoder_heads": shapes[f"{prefix}0.self_attn.pos_bias_u"][0],
            "lyric_encoder_ff": shapes[f"{prefix}0.feed_forward.w_1.weight"][0],
        }
    except (KeyError, IndexError):
        raise CheckpointError(
            f"{component.folder}: not ACE-Step's transformer: it has no lyric encoder"
        ) from None


def _own_dtype(component: ComponentSource, entries: list[Entry]) -> mx.Dtype:
    """The dtype that most of a component's weights have."""
    sizes: dict[str, int] = {}
    for entry in entries:
        info = component.tensors[entry.sources[-1]]
        sizes[info.dtype] = sizes.get(info.dtype, 0) + info.size
    most = max(sizes, key=lambda name: sizes[name])
    return {"BF16": mx.bfloat16, "F16": mx.float16}.get(most, mx.float32)


def _sizes(outputs: dict[str, dict[str, tuple[str, tuple[int, ...]]]]) -> int:
    tensors = (tensor for component in outputs.values() for tensor in component.values())
    return sum(prod(shape) * ITEM_SIZES[dtype] for dtype, shape in tensors)


def _write(job: _Job, entry: Entry, writer: SafetensorsWriter) -> None:
    """Read, translate, cast or quantise, check and write one tensor."""
    for rows in job.slices(entry):
        rows = rows.astype(job.dtype)
        parts = job.pack(entry, rows)
        largest = mx.max(mx.abs(rows)) if rows.size else mx.array(0.0)
        mx.eval(largest, *parts.values())
        if not mx.isfinite(largest).item():
            info = job.source.tensors[entry.sources[-1]]
            raise CheckpointError(
                f"{info.path}: {entry.sources[-1]!r} has values that are not finite in "
                f"{dtype_name(job.dtype)}; use --dtype bfloat16 or float32, or download the file again"
            )
        for name, value in parts.items():
            writer.write(name, value)
    mx.clear_cache()
