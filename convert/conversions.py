"""Conversions that `train` makes by itself when it is given the PyTorch checkpoint, each made once."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from ..families.model_folder import ModelFolder, Quantization
from ..formatting import brief
from ..io import schema
from ..io.filenames import at_home, is_file, shown
from ..io.hashes import hash_text
from ..io.holds import hold, in_use, last_used
from ..io.kept import ENVIRONMENT, Kept, cache_folder, folder_size, modified, remove_folder
from ..io.new_folder import OLD, PARTIAL, alive, exclusive, new_path
from ..io.progress import Advance, Progress, silent
from .converter import Settings, write_folder
from .source import Source, hub_commit, is_repo, resolve

CONVERSION = "0.1.0"  # whose conversions are used; raise it when the weights would differ
_OWN = re.compile(r"[^.].*-[0-9a-f]{16}", re.DOTALL)  # names that `_place` gives
_HALF = re.compile(rf"\..+-[0-9a-f]{{16}}(\.[0-9a-f]+{PARTIAL}|{OLD})", re.DOTALL)
_LEFT = "left by a process that was killed"


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
    path = at_home(path_or_repo)
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
        if not _ready(folder):
            return _convert(source, folder, settings, progress)
    progress(Advance(f"using the conversion of {path_or_repo} in {folder}"))
    return folder


def converted(repo: str, revision: str | None, quantize: Mapping[str, Any] | None) -> Path | None:
    """The conversion of a hub repository that `ensure_model` has made before, or None."""
    wanted = Settings(Quantization.of(**quantize) if quantize else None, ("transformer",))
    places = _places(cache_folder() / "models", repo, revision, wanted)
    return next((folder for folder in places if (folder / "config.json").is_file()), None)


def _places(models: Path, repo: str, revision: str | None, settings: Settings) -> Iterator[Path]:
    """Where conversions of a hub repository may be."""
    commit = hub_commit(repo, revision)
    known = [commit] if commit else _commits(models, repo) if revision is None else []
    return (_place(models, repo, f"commit {one}", settings) for one in known)


def _converted(models: Path, given: str | Path, revision: str | None, settings: Settings) -> Path | None:
    """The conversion of a hub repository that was made before.

    The download may have been deleted since, and the hub may be out of reach.
    """
    if not is_repo(given):
        return None
    return next(filter(_ready, _places(models, str(given), revision, settings)), None)


def _ready(folder: Path) -> bool:
    """Whether the conversion is there; it is in use from now on, so that nobody removes it."""
    config = folder / "config.json"
    if not config.is_file():
        return False
    hold(folder)
    return config.is_file()


def _convert(source: Source, folder: Path, settings: Settings, progress: Progress) -> Path:
    """Write `folder`, unless another process does; gives it."""
    with exclusive(folder, lambda: progress(Advance(f"waiting for another process to write {folder}"))):
        if not _ready(folder):
            bits = settings.quantization and f"{settings.quantization.bits} bits"
            kind = bits or settings.dtype or "the checkpoint's own precision"
            progress(Advance(f"converting {source.path_or_repo} once, {kind}, into {folder}"))
            write_folder(source, new_path(folder, ENVIRONMENT), settings, progress)
            hold(folder)
    return folder


def _place(models: Path, given: str | Path, identity: str, settings: Settings) -> Path:
    """The folder of one conversion."""
    path = at_home(given)
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


def kept_conversions() -> list[Kept]:
    """The conversions in the cache, whole or damaged, and what killed processes left of others."""
    models = cache_folder() / "models"
    try:
        entries = sorted(entry for entry in models.iterdir() if entry.is_dir() and not entry.is_symlink())
    except OSError:
        return []
    whole = [_kept(entry) for entry in entries if _OWN.fullmatch(entry.name)]
    left = [
        Kept("model", shown(one.name), _LEFT, folder_size(one), partial(remove_folder, one), busy=alive(one))
        for one in entries
        if _HALF.fullmatch(one.name)
    ]  # fmt: skip
    return whole + left


def _kept(folder: Path) -> Kept:
    source = ""
    try:
        model = ModelFolder.open(folder)
        about, source = _about(model), model.config["source"]["path_or_repo"]
    except CheckpointError:
        about = "damaged, or written by another version: it is not used"
    return Kept(
        "model",
        shown(folder.name),
        about,
        folder_size(folder),
        partial(remove_folder, folder),
        made=modified(folder / "config.json"),
        used=last_used(folder),
        busy=in_use(folder),
        source=source,
    )


def _about(folder: ModelFolder) -> str:
    source, stored = folder.config["source"], folder.quantization
    revision = f" ({shown(source['revision'][:7])})" if source.get("revision") else ""
    precision = f"{stored['bits']} bits" if stored else folder.config["dtype"]
    return f"{folder.family.title}, {precision}, of {shown(brief(source['path_or_repo']))}{revision}"


def trained_on(fingerprint: str, base: str, near: Path) -> Path | None:
    """The MLX folder with a transformer of this fingerprint: `base`, or what the run's configuration names,
    taken from here or from a folder above the LoRA `near`; or a conversion in the cache. None where there is
    none, or it is another by now.
    """
    kept = [path.parent for path in sorted((cache_folder() / "models").glob("*/config.json"))]
    above = near.absolute().parents
    names = [name for name in (*_configured(above[0]), base) if name.strip()]
    named = [folder / at_home(name) for name in names for folder in (Path(), *above)]
    there = [folder for folder in named if is_file(folder / "transformer.safetensors")]
    for folder in dict.fromkeys([*there, *kept]):
        try:
            if ModelFolder.open(folder).fingerprints["transformer"] == fingerprint:
                return folder
        except CheckpointError:
            continue  # damaged: it would not be used
    return None


def _configured(output: Path) -> Iterator[str]:
    """The models that configurations in a run's output folder, or a checkpoint, name."""
    for path in (output / "config.json", *sorted(output.glob("checkpoint-*/config.json"))):
        with contextlib.suppress(CheckpointError):  # none there, or no configuration
            name = schema.read_json(path).get("pretrained_model_name_or_path")
            if isinstance(name, str):
                yield name


def is_mlx_folder(path: Path) -> bool:
    """Whether `path` looks like what `convert` writes (`ModelFolder.open` then checks it)."""
    return (path / "config.json").is_file() and (path / "transformer.safetensors").is_file()
