"""The converter: a PyTorch checkpoint in, a self-contained MLX folder out.

Everything is checked from headers before the first weight is read; then tensors are streamed, a slice at a
time, into a temporary folder that takes its final name when it is whole.
"""

from __future__ import annotations

import inspect
import json
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx

from .. import __version__
from ..errors import ConfigError, nearest
from ..families.model_folder import DTYPES, FORMAT, FORMAT_VERSION, Quantization
from ..families.protocol import Apart, FoundTexts, KeptApart
from ..io.new_folder import new_folder, new_path
from ..io.progress import Advance, Progress, silent
from ..io.safetensors import sample
from ..io.tensors import SafetensorsWriter
from . import apart
from .plan import Plan
from .source import Source, resolve
from .stream import Job, plan_component

SPARE = 64 << 20  # bytes that a disk must have beyond what is written


@dataclass(frozen=True)
class Settings:
    """How to convert. `of` takes them by the names of the command's flags.

    quantization: of the large linear layers of `quantized` (default: of all components that may be). dtype:
    of everything else ("bfloat16", "float16", "float32"; None keeps each component's own). without: keys of
    the components' config.json that are left out, as the user says that they change nothing. texts: files to
    take instead of the checkpoint's own, by their names in the family's `texts`.
    """

    quantization: Quantization | None = None
    quantized: Collection[str] | None = None
    dtype: str | None = None
    without: frozenset[str] = frozenset()
    texts: Mapping[str, str | Path] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.dtype is not None and self.dtype not in DTYPES:
            raise ConfigError(f"dtype must be one of {', '.join(DTYPES)}, got {self.dtype!r}")

    @classmethod
    def of(
        cls,
        *,
        quantize: bool = False,
        q_bits: int | None = None,
        q_group_size: int | None = None,
        q_mode: str = "affine",
        dtype: str | None = None,
        allow_config_keys: Sequence[str] = (),
        **texts: str | Path | None,
    ) -> Settings:
        """ConfigError for a combination that MLX does not have."""
        quantization = Quantization.of(q_bits, q_group_size, q_mode) if quantize else None
        given = {name: path for name, path in texts.items() if path is not None}
        return cls(quantization, None, dtype, frozenset(allow_config_keys), given)


@dataclass
class ComponentReport:
    """What became of one component."""

    plan: Plan
    quantized: list[str]
    parameters: int  # converted, as counted upstream
    bytes_read: int
    bytes_written: int


@dataclass
class Report:
    """What a conversion did; `path` is the finished folder, `origins` says where vocabularies came from."""

    path: Path
    components: dict[str, ComponentReport]
    origins: Mapping[str, str]
    seconds: float
    notes: list[str] = field(default_factory=list)


def convert(
    src: str | Path,
    dst: str | Path,
    *,
    revision: str | None = None,
    progress: Progress = silent,
    **options: Any,
) -> Report:
    """Convert the checkpoint `src` (upstream's folder or hub repository, or another program's file of it)
    into the new MLX folder `dst`.

    revision: of the hub repository. options: the command's flags (`Settings.of`): quantize, q_bits,
    q_group_size, q_mode, dtype, allow_config_keys, and files to take instead of the checkpoint's own.
    progress is told bytes, and notes.

    Memory stays far below 2 GB whatever the size. `dst`, new or empty, appears only when whole.
    Raises ConfigError or CheckpointError in one line.
    """
    started = time.monotonic()
    settings = Settings.of(**options)
    dst = new_path(dst, "--mlx-path")
    notes: list[str] = []

    def tell(advance: Advance) -> None:
        if not advance.total:
            notes.append(advance.stage)
        progress(advance)

    report = write_folder(resolve(src, revision, tell), dst, settings, tell)
    return replace(report, notes=notes, seconds=time.monotonic() - started)


def write_folder(source: Source, dst: Path, settings: Settings, progress: Progress = silent) -> Report:
    """The same for a checkpoint that is on this machine."""
    started = time.monotonic()
    jobs = plan_folder(source, settings)
    texts = _texts(source, settings, jobs, progress)
    dtype, kept_apart = jobs["transformer"].dtype, apart.plans(source)
    needed = _needed(jobs, kept_apart)
    with new_folder(dst, needed=needed + SPARE, progress=progress) as folder:
        written = _write_weights(folder, jobs, kept_apart, dtype, progress)
        for name, data in texts.files.items():
            (folder / name).write_bytes(data)
        config = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "family": source.family.name,
            "converter_version": __version__,
            "source": {"path_or_repo": source.path_or_repo, "revision": source.revision},
            "dtype": next(name for name, value in DTYPES.items() if value == dtype),
            "quantization": settings.quantization.as_dict() if settings.quantization else None,
            **texts.config,
            "components": {name: job.stored for name, job in jobs.items()},
            "fingerprints": {name: writer.digest() for name, writer in written.items()},
            "files": {name: sample(writer.path) for name, writer in written.items()},
        }
        text = json.dumps(config, indent=2, ensure_ascii=False)
        (folder / "config.json").write_text(text + "\n", encoding="utf-8")
    reports = {
        name: ComponentReport(job.plan, job.quantized, job.parameters, job.bytes_read, written[name].size)
        for name, job in jobs.items()
    }
    return Report(dst, reports, texts.origins, time.monotonic() - started)


def bytes_needed(source: Source, settings: Settings) -> int:
    """What `write_folder` would write."""
    return _needed(plan_folder(source, settings), apart.plans(source))


def _needed(jobs: Mapping[str, Job], kept_apart: Mapping[Apart, KeptApart]) -> int:
    dtype = jobs["transformer"].dtype
    found = sum(job.needed() for job in jobs.values())
    return found + sum(apart.needed(kept, dtype) for kept in kept_apart.values())


def _write_weights(
    folder: Path,
    jobs: Mapping[str, Job],
    kept: Mapping[Apart, KeptApart],
    dtype: mx.Dtype,
    progress: Progress,
) -> dict[str, SafetensorsWriter]:
    """A file for each component, and for what is kept apart; what is read of all of them is told as one
    progress.
    """
    total = sum(job.source_bytes(entry) for job in jobs.values() for entry in job.plan.entries)
    total += sum(info.nbytes for one in kept.values() for info in one.tensors.values())
    done = 0

    def read(name: str, size: int) -> None:
        nonlocal done
        done += size
        progress(Advance(f"converting {name}", done, total, "bytes"))

    written = {}
    for name, job in jobs.items():
        written[name] = job.write(folder / f"{name}.safetensors", partial(read, name))
    for one, tensors in kept.items():
        apart.write(folder / f"{one.name}.safetensors", tensors, dtype, partial(read, one.name))
    return written


def plan_folder(source: Source, settings: Settings | None = None) -> dict[str, Job]:
    """Every component, checked and planned; ConfigError or CheckpointError in one line."""
    settings = settings or Settings()
    source = _without(source, settings.without)
    components = source.family.components
    chosen = components if settings.quantized is None else settings.quantized
    return {
        name: plan_component(
            source, name, settings.dtype, settings.quantization if one.quantized and name in chosen else None
        )
        for name, one in components.items()
    }


def _texts(source: Source, settings: Settings, jobs: Mapping[str, Job], progress: Progress) -> FoundTexts:
    texts = source.family.texts
    known = [*inspect.signature(Settings.of).parameters, *texts.files]
    for name in settings.texts:
        if name not in texts.files:
            what = f"{source.family.title} is converted without such an option"
            raise ConfigError(f"{name}: {what}{nearest(name, known)}")
    configs = {name: job.config for name, job in jobs.items()}
    return texts.find(source.path, source.layout, configs, settings.texts, progress)


def _without(source: Source, keys: Collection[str]) -> Source:
    """The checkpoint without these keys; ConfigError for one that is in no config, or is computed with."""
    components = source.family.components
    found = {name: set(source.component(name).config) for name in components} if keys else {}
    for key in sorted(keys):
        holders = [name for name, theirs in found.items() if key in theirs]
        if not holders:
            raise ConfigError(
                f"--allow-config-key {key}: no config.json of {source.path_or_repo} has this key"
            )
        if any(key in components[name].config.fields() for name in holders):
            raise ConfigError(
                f"--allow-config-key {key}: the model is built from this key; it cannot be left out"
            )
    return replace(source, without=frozenset(keys))
