"""Conversions that `train` makes by itself when it is given the PyTorch checkpoint, each made once."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .. import __version__
from ..errors import CheckpointError
from ..families.folder import LYRIC_VOCAB, ModelFolder, Quantization
from ..io.atomic import write_bytes
from ..io.hashes import hash_text
from ..io.new_folder import exclusive
from ..io.progress import Advance, Progress, silent
from . import lyric_vocab as vocabulary
from .checkpoint import convert
from .source import Source, hub_commit, is_repo, resolve

ENVIRONMENT = "ACESTEP_MLX_CACHE"
LYRIC_IDS = 6693  # of the released model


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
    models = cache_folder(cache_dir) / "models"

    def place(identity: str) -> Path:
        return _place(models, path_or_repo, identity, dtype, quantize)

    if is_repo(path_or_repo):
        # The download may have been deleted since, and the hub may be out of reach: look here first.
        commit = hub_commit(str(path_or_repo), revision)
        known = [commit] if commit else _commits(models, str(path_or_repo)) if revision is None else []
        for folder in map(place, (f"commit {c}" for c in known)):
            if (folder / "config.json").is_file():
                progress(Advance(f"using the conversion of {path_or_repo} in {folder}"))
                return folder
    source = resolve(path_or_repo, revision, progress)
    folder = place(source.identity())
    if (folder / "config.json").is_file():
        progress(Advance(f"using the conversion of {path_or_repo} in {folder}"))
        return folder
    with exclusive(folder, lambda: progress(Advance(f"waiting for another process to write {folder}"))):
        if not (folder / "config.json").is_file():
            kind = f"{quantize.bits} bits" if quantize else dtype or "the checkpoint's own precision"
            progress(Advance(f"converting {source.path_or_repo} once, {kind}, into {folder}"))
            convert(
                source.path,
                folder,
                quantize=quantize is not None,
                q_bits=quantize.bits if quantize else None,
                q_group_size=quantize.group_size if quantize else None,
                q_mode=quantize.mode if quantize else "affine",
                q_components=("transformer",),
                dtype=dtype,
                named=(source.path_or_repo, source.revision),
                progress=progress,
            )
    return folder


def _place(
    models: Path, given: str | Path, identity: str, dtype: str | None, quantize: Quantization | None
) -> Path:
    """The folder of one conversion."""
    path = Path(given).expanduser()
    settings = {
        "converter": __version__,
        "source": identity,
        "dtype": dtype,
        "quantization": quantize.as_dict() if quantize else None,
    }
    key = hash_text(json.dumps(settings, sort_keys=True))
    return models / f"{(path if is_repo(given) else path.resolve()).name or 'model'}-{key[:16]}"


def conversion_folder(source: Source, quantize: Mapping[str, Any] | None) -> Path:
    """Where `ensure_model` puts the conversion of `source` (or has put it)."""
    wanted = Quantization.of(**quantize) if quantize else None
    return _place(cache_folder() / "models", source.path_or_repo, source.identity(), None, wanted)


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


def lyric_vocabulary(progress: Progress = silent, cache_dir: str | Path | None = None) -> Path:
    """Upstream's lyric vocabulary for work without a model; found as `convert` finds it, then cached."""
    kept = cache_folder(cache_dir) / LYRIC_VOCAB
    if kept.is_file():
        return kept
    for converted in sorted(kept.parent.glob(f"models/*/{LYRIC_VOCAB}")):
        if vocabulary.is_upstreams(converted):
            return converted
    found = vocabulary.find(None, kept.parent, LYRIC_IDS, progress)
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(kept, found.data)
    except OSError as error:
        raise CheckpointError(f"{kept}: {error.strerror or error}") from None
    return kept
