"""The first stage of a run: what can fail cheaply, and what is made once for many runs."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from ..config.datasets import DataSets
from ..config.run import RunConfig
from ..convert.conversions import ensure_model
from ..data.encode import Cache, encode_dataset
from ..data.manifest import build_manifest
from ..families.model_folder import ModelFolder
from ..formatting import count
from ..io.progress import Progress, phase
from ..report.events import Listeners
from . import checkpoint
from .distributed import World
from .interrupts import StopRequest
from .preflight import Preflight, preflight
from .validation import Validation, requests

PROMPTS = "reading the prompts of clips"


@dataclass
class Kept:
    """The last complete checkpoint of a run, which changes as it goes on."""

    checkpoint: Path | None = None

    def __call__(self) -> str:
        """It in a sentence; empty without any."""
        return f"The last complete checkpoint is {self.checkpoint}." if self.checkpoint else ""


@dataclass(frozen=True)
class Job:
    """A run as it was asked for, and whom it tells; every stage is given it. overwrite: begin anew."""

    config: RunConfig
    world: World
    emit: Listeners
    stop: StopRequest
    overwrite: bool
    kept: Kept = field(default_factory=Kept)

    @property
    def output(self) -> Path:
        return self.config.output_path


@dataclass(frozen=True)
class Prepared:
    """What a run trains with. resumed: the checkpoint that it goes on from; on rank 0, as `validation`."""

    resumed: checkpoint.Checkpoint | None
    folder: ModelFolder
    cache: Cache
    validation: Validation | None


def prepare(job: Job) -> Prepared:
    """All cheap checks, then the converted model, the songs' caches and the texts of the clips."""
    for key, reason in job.config.ignored:
        job.emit.notice(f"{key} is ignored: {reason}")
    first = job.world.first
    found = _checked(job) if first else None
    resumed = _resumed(job, found) if found else None
    folder = job.world.first_then_others(lambda: open_model(job.config, job.emit.progress))
    cache = job.world.first_then_others(lambda: _caches(job, folder, found.datasets if found else None))
    return Prepared(resumed, folder, cache, _validation(job, folder) if first else None)


def _validation(job: Job, folder: ModelFolder) -> Validation:
    """With the model that clips are made with; another than is trained is opened where there are any."""
    other = job.config.validation_model
    if other is None or not requests(job.config):
        job.emit.progress(phase(PROMPTS))
        return Validation.encoded(job.config, folder, job.output)
    heard = open_model(job.config, job.emit.progress, other)
    job.emit.progress(phase(PROMPTS))
    return Validation.encoded(job.config, heard, job.output, borrowed=True)


def _checked(job: Job) -> Preflight:
    """What is known of the run once everything is found to be in order."""
    checkpoint.clean(job.output)
    job.emit.progress(phase("checking the run"))
    return preflight(job.config, job.emit.notice, ranks=job.world.size, overwrite=job.overwrite)


def _resumed(job: Job, found: Preflight) -> checkpoint.Checkpoint | None:
    """The checkpoint that the run goes on from."""
    if found.resume is not None:
        job.kept.checkpoint = found.resume
        job.emit.progress(phase("reading the checkpoint"))
        return checkpoint.read(found.resume)
    if job.config.resume_from_checkpoint:
        job.emit.notice(f"starting from the beginning: no checkpoint in {job.output} yet")
    return None


def open_model(config: RunConfig, progress: Progress, other: str | None = None) -> ModelFolder:
    """The model of a configuration as an MLX folder, converted where that has not been done yet; or the
    `other` that it names.
    """
    source = other or config.pretrained_model_name_or_path
    local = config.resolve(source)
    path = ensure_model(
        local if local.exists() else source,
        quantize=config.quantization,
        revision=None if other else config.revision,
        progress=progress,
    )
    return ModelFolder.open(path)


def _caches(job: Job, folder: ModelFolder, datasets: DataSets | None) -> Cache:
    """The data sets, read already on rank 0, encoded; what was left out is named."""
    manifest = build_manifest(job.config, job.emit.progress, datasets=datasets)
    for text, level in manifest.report.remarks():
        job.emit.notice(text, level)
    cache = encode_dataset(manifest, job.config, folder, job.emit.progress)
    for name, reason in cache.skipped:
        job.emit.notice(f"skipped {name}: {reason}", "warning")
    if cache.skipped:
        left = f"{count(len(cache.samples), 'song')} left"
        job.emit.notice(f"{count(len(cache.skipped), 'song')} skipped, {left}", "warning")
    return cache
