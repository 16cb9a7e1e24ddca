"""What this program keeps on the disk and can make or fetch again: converted models, caches, downloads."""

from __future__ import annotations

import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import ConfigError, DataError, cause, nearest
from .filenames import at_home
from .holds import alone
from .new_folder import PARTIAL, alive

ENVIRONMENT = "ACESTEP_MLX_CACHE"
IN_USE = "it is in use by a process that runs; let that end first"


@dataclass(frozen=True)
class Kept:
    """One thing that is kept. name: by which people call it. kind: what the list puts it under.

    about: what it is, in words. source: the repository of a conversion. size: bytes, measured. made, used:
    when, as far as that is known. busy: a running process uses it. remove: deletes it, gives the bytes that
    are free now; AceStepError.
    """

    kind: str
    name: str
    about: str
    size: int
    remove: Callable[[], int]
    made: float | None = None
    used: float | None = None
    busy: bool = False
    source: str = ""


def cache_folder(given: str | Path | None = None) -> Path:
    """Where conversions are kept: `given`, else $ACESTEP_MLX_CACHE, else acestep-mlx in $XDG_CACHE_HOME or
    in ~/.cache.
    """
    caches = at_home(Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache"))
    if not caches.is_absolute():  # the specification says: ignore such a value
        caches = Path.home() / ".cache"
    return at_home(Path(given or os.environ.get(ENVIRONMENT) or caches / "acestep-mlx"))


def chosen(kept: Sequence[Kept], wanted: Iterable[str]) -> list[Kept]:
    """Those that are named, by their name or by their number in the list, from 1 on, several with commas.

    ConfigError for a name that none has, and for one that is in use. Names are compared, never opened.
    """
    found: dict[int, Kept] = {}
    for name in wanted:
        parts = name.split(",") if re.fullmatch(r"[0-9]+(,[0-9]+)*", name) else [name]
        for part in parts:
            at = [i for i, one in enumerate(kept) if one.name == part]
            if len(at) > 1:
                raise ConfigError(f"{part} is the name of several; give the number of one")
            if not at and re.fullmatch("[0-9]{1,9}", part) and 1 <= int(part) <= len(kept):
                at = [int(part) - 1]
            if not at:
                hint = nearest(part, [one.name for one in kept])
                raise ConfigError(f"nothing that is kept here is called {part!r}{hint}; see cache --list")
            found |= {i: kept[i] for i in at}
    for one in found.values():
        if one.busy:
            raise ConfigError(f"{one.name} is not removed: {IN_USE}; nothing was removed")
    return list(found.values())


def folder_size(folder: Path) -> int:
    """Bytes of the files below a folder; links are not followed."""
    total = 0
    for here, _, names in os.walk(folder):
        for name in names:
            try:
                total += (Path(here) / name).lstat().st_size
            except OSError:
                continue  # gone in between
    return total


def modified(path: Path) -> float | None:
    """When a file was written; None where there is none."""
    try:
        return path.lstat().st_mtime
    except OSError:
        return None


def remove_folder(folder: Path) -> int:
    """Delete a folder of ours; gives its bytes. It has a hidden name before the first of its files goes, so
    that half of it never looks whole. DataError for one that is in use, is a link, or cannot be deleted.
    """
    if folder.is_symlink() or not folder.is_dir():
        raise DataError(f"{folder} is no folder any more; it was left alone")
    hidden = folder.name.startswith(".")
    going = folder if hidden else folder.with_name(f".{folder.name}.{secrets.token_hex(4)}{PARTIAL}")
    freed = folder_size(folder)
    with alone(folder) as free:
        if not free or (hidden and alive(folder)):
            raise DataError(f"{folder} is not removed: {IN_USE}")
        try:
            if not hidden:
                folder.rename(going)
            shutil.rmtree(going)
        except OSError as error:
            raise DataError(f"{error.filename or folder} cannot be removed: {cause(error)}") from None
    return freed
