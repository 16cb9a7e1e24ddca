"""What a run takes of the disk, before anything is fetched, converted, encoded or trained."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from ..config.optimizers import OPTIMIZERS
from ..config.run import RunConfig
from ..convert.conversions import conversion_folder, converted
from ..convert.converter import Settings, bytes_needed
from ..convert.source import download, is_repo, resolve
from ..data.encode import Cache
from ..data.manifest import Manifest
from ..families import of_flavour, released
from ..families.model_folder import Quantization
from ..io.disk import free_space
from ..io.downloads import hub_folder
from ..io.kept import cache_folder
from .intervals import Agenda
from .memory import adapter_parameters, released_sizes, weight_bytes
from .preflight import BaseModel, Preflight
from .settings import full_training, further_loss, lora_spec, measured_weights
from .validation import requests

BITS16 = 2  # bytes of a number, as released models have it
DOWNLOAD = "download"
WAV = 2 * 2  # bytes of a moment of stereo sound


class Part(NamedTuple):
    """Bytes that are written at `path`. asked: as the hub or files say; else what it tends to be."""

    what: str
    bytes: float
    path: Path
    asked: bool = True


@dataclass(frozen=True)
class DiskUse:
    """What a run writes, in the order in which it does."""

    parts: list[Part]

    @property
    def total(self) -> float:
        """Bytes."""
        return sum(part.bytes for part in self.parts)

    def tightest(self) -> tuple[float, float, Path]:
        """(bytes needed, bytes free, a folder on it) of the disk with the least to spare. Nothing is needed
        of none where nothing is written.
        """
        disks: dict[int, list[Part]] = {}
        for part in self.parts:
            disks.setdefault(_existing(part.path).stat().st_dev, []).append(part)
        found = [
            (sum(p.bytes for p in parts), free_space(parts[0].path), parts[0].path)
            for parts in disks.values()
        ]
        return min(found, key=lambda one: one[1] - one[0], default=(0.0, math.inf, Path()))


def _existing(path: Path) -> Path:
    while not path.exists():
        path = path.parent
    return path


def disk_use(
    config: RunConfig, found: Preflight, manifest: Manifest, agenda: Agenda, there: Collection[str]
) -> DiskUse:
    """Of a run on these songs. agenda: what the run does from its first step on. there: see `encoded`."""
    models = cache_folder() / "models"
    given = [(found.model, config.pretrained_model_name_or_path, config.revision)]
    if found.heard is not None and config.validation_model is not None:
        given.append((found.heard, config.validation_model, None))
    parts = [
        part for model, name, revision in given for part in _model(config, model, name, revision, models)
    ]
    seconds = sum(sample.seconds for sample in manifest.samples)
    cached = _cached(config, found, manifest, there)
    if (further := further_loss(config)) is not None:
        fetched, grown = further.disk(config, seconds)
        parts.append(Part(DOWNLOAD, fetched, hub_folder(), False))
        cached += 0.0 if config.vae_cache_disable else grown
    going_on = found.step < agenda.total
    parts.append(Part("caches", cached, config.resolve(config.cache_dir), False))
    parts.append(
        Part("checkpoints", going_on * _checkpoints(config, found, agenda), config.output_path, False)
    )
    parts.append(Part("clips", going_on * _clips(config, found, agenda), config.output_path, False))
    return DiskUse([part for part in parts if part.bytes])


def _model(
    config: RunConfig, model: BaseModel, name: str, revision: str | None, models: Path
) -> Iterable[Part]:
    """What is fetched, and what is converted, of a model that is not there yet."""
    if model.folder is not None:
        return
    path = config.resolve(name)
    if path.exists():
        source = resolve(path, revision)
        quantization = Quantization.of(**config.quantization) if config.quantization else None
        written = bytes_needed(source, Settings(quantization, ("transformer",)))
        yield Part("converted model", float(written), conversion_folder(source, config.quantization))
    elif is_repo(name) and converted(name, revision, config.quantization) is None:
        fetched = download(name, revision)
        yield Part(DOWNLOAD, fetched.bytes, hub_folder(), fetched.asked)
        sizes, family = released_sizes(config), of_flavour(config.model_flavour)
        bits = (config.quantization or {}).get("bits")
        others = 1e9 * released(name).others
        yield Part("converted model", weight_bytes(family, sizes, bits, 64, BITS16) + others, models, False)


def _cached(config: RunConfig, found: Preflight, manifest: Manifest, there: Collection[str]) -> float:
    """What songs take in the caches that are not there yet."""
    family = manifest.family
    sizes = found.model.transformer or released_sizes(config)
    return sum(
        family.memory.cached(sizes, sample.frames, sample.captions, sample.lyrics)
        for sample in manifest.samples
        if sample.dataset.cache_latents and sample.id not in there
    )


def encoded(config: RunConfig, found: Preflight, manifest: Manifest) -> set[str]:
    """The songs whose sound is in the caches already, by id. A model that is not there has encoded none."""
    folder = found.model.folder
    if folder is None or config.vae_cache_disable or further_loss(config) is not None:
        return set()
    return Cache(manifest, config, folder).encoded()


def _checkpoints(config: RunConfig, found: Preflight, agenda: Agenda) -> float:
    """As many as are kept, the best one, and the one that is written before the oldest goes; and the LoRA."""
    one, lora = checkpoint_bytes(config, found.model)
    written, limit = agenda.after(found.step).checkpoints, config.checkpoints_total_limit
    kept = min(written, limit + 2) if limit else written
    return one * kept + lora


def checkpoint_bytes(config: RunConfig, model: BaseModel) -> tuple[float, float]:
    """(of a checkpoint, of the LoRA's file): weights twice, once for other loaders, and the optimizer's."""
    family, spec = of_flavour(config.model_flavour), lora_spec(config)
    lora, whole, _ = adapter_parameters(family, model.transformer or released_sizes(config), spec)
    in_full = full_training(config)
    kept = OPTIMIZERS[config.optimizer].kept(config.optimizer_config, spec.rank)
    slots = OPTIMIZERS[in_full.optimizer].slots if in_full is not None else 0
    trained = 4.0 * (lora + (whole if in_full is not None else 0))
    averages = 2 * trained if config.use_ema else 0.0
    return 2 * trained + 4.0 * (lora * kept + whole * slots) + averages, trained + averages / 2


def _clips(config: RunConfig, found: Preflight, agenda: Agenda) -> float:
    """Clips with the LoRA, and once those without."""
    asked = requests(config)
    rate = of_flavour(config.model_flavour).latents.sample_rate
    times = agenda.after(found.step).validations * len(measured_weights(config)) + 1
    return sum(WAV * rate * request.duration * times for request in asked.values())
