"""Conversions that `train` makes by itself when it is given the PyTorch checkpoint, each made once."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from ..families.model_folder import ModelFolder, Quantization
from ..io.hashes import hash_text
from ..io.new_folder import exclusive, new_path
from ..io.progress import Advance, Progress, silent
from .converter import Settings, write_folder
from .source import Source, hub_commit, is_repo, resolve

CONVERSION = "0.1.0"  # whose conversions are used; raise it when the weights would differ
ENVIRONMENT = "ACESTEP_MLX_CACHE"


def cache_folder(given: str | Path | None = None) -> Path:
    """Where conversions are kept: `given`, else $ACESTEP_MLX_CACHE, else acestep-mlx in $XDG_CACHE_HOME or
    in ~/.cache.
    """
    caches = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    if not caches.is_absolute():  # the specification says: ignore such a value
        caches = Path.home() / ".cache"
    return Path(given or os.environ.get(ENVIRONMENT) or caches / "acestep-mlx").expanduser()


def ensure_model(
    path_or_repo: str | Path,
    *,
    dtype: str | None = None,
    quantize: Quantization | Mapping[str, Any] | None = None,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    progress: Progress = silent,
) -> Path:
    """The MLX folder for a model given as MLX folder, PyTorch folder or hub repository.

    An MLX folder is returned as it is. Anything else is converted once into the cache, under a name made of
    the source's revision or content, dtype, quantisation and converter version; `progress` says so. Only the
    transformer is quantised: the encoders are freed before training, and caches made with them then serve
    every precision. Several processes may ask at once: one converts, the others wait. Raises
    CheckpointError in one line.
    """
    path = Path(path_or_repo).expanduser()
    if is_mlx_folder(path):
        return path
    if isinstance(quantize, Mapping):
        quantize = Quantization.of(**quantize)
    settings = Settings(quantize, ("transformer",), dtype)
    models = cache_folder(cache_dir) / "models"
    folder = _converted(models, path_or_repo, revision, settings)
    if folder is None:
        source = resolve(path_or_repo, revision, progress)
        folder = _place(models, path_or_repo, source.identity(), settings)
        if not (folder / "config.json").is_file():
            return _convert(source, folder, settings, progress)
    progress(Advance(f"using the conversion of {path_or_repo} in {folder}"))
    return folder


def _converted(models: Path, given: str | Path, revision: str | None, settings: Settings) -> Path | None:
    """The conversion of a hub repository that was made before.

    The download may have been deleted since, and the hub may be out of reach.
    """
    if not is_repo(given):
        return None
    commit = hub_commit(str(given), revision)
    known = [commit] if commit else _commits(models, str(given)) if revision is None else []
    places = (_place(models, given, f"commit {one}", settings) for one in known)
    return next((folder for folder in places if (folder / "config.json").is_file()), None)


def _convert(source: Source, folder: Path, settings: Settings, progress: Progress) -> Path:
    """Write `folder`, unless another process does; gives it."""
    with exclusive(folder, lambda: progress(Advance(f"waiting for another process to write {folder}"))):
        if not (folder / "config.json").is_file():
            bits = settings.quantization and f"{settings.quantization.bits} bits"
            kind = bits or settings.dtype or "the checkpoint's own precision"
            progress(Advance(f"converting {source.path_or_repo} once, {kind}, into {folder}"))
            write_folder(source, new_path(folder, ENVIRONMENT), settings, progress)
    return folder


def _place(models: Path, given: str | Path, identity: str, settings: Settings) -> Path:
    """The folder of one conversion."""
    path = Path(given).expanduser()
    facts = {
        "converter": CONVERSION,
        "source": identity,
        "dtype": settings.dtype,
        "quantization": settings.quantization.as_dict() if settings.quantization else None,
    }
    key = hash_text(json.dumps(facts, sort_keys=True))
    return models / f"{(path if is_repo(given) else path.resolve()).name or 'model'}-{key[:16]}"


def conversion_folder(source: Source, quantize: Mapping[str, Any] | None) -> Path:
    """Where `ensure_model` puts the conversion of `source` (or has put it)."""
    wanted = Settings(Quantization.of(**quantize) if quantize else None)
    return _place(cache_folder() / "models", source.path_or_repo, source.identity(), wanted)


def _commits(models: Path, repo: str) -> list[str]:
    """The commits of a hub repository that were converted before, newest conversion first."""
    found = []
    for path in models.glob("*/config.json"):
        try:
            source = ModelFolder.open(path.parent).config["source"]
        except CheckpointError:
            continue  # damaged, or of another version: it would not be used
        if source["path_or_repo"] == repo and source.get("revision"):
            found.append((path.stat().st_mtime, source["revision"]))
    return [commit for _, commit in sorted(found, reverse=True)]


def is_mlx_folder(path: Path) -> bool:
    """Whether `path` looks like what `convert` writes (`ModelFolder.open` then checks it)."""
    return (path / "config.json").is_file() and (path / "transformer.safetensors").is_file()
