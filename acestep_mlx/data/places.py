"""The folders in which caches of songs are, wherever runs have put them, and what is in them of which model.

Each folder is noted by a file of its own in the program's cache when it is first written to. A note is only a
hint: nothing counts as ours, and nothing is removed, but cache files that say so themselves, in their places
under a folder that is no link.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from ..errors import CheckpointError, DataError, cause
from ..families import families
from ..formatting import count
from ..io import schema
from ..io.atomic import PREFIX, SUFFIX, write_bytes
from ..io.filenames import shown
from ..io.hashes import hash_text
from ..io.holds import HOLD, alone, hold, in_use, last_used
from ..io.kept import IN_USE, Kept, cache_folder
from .cache import describe

NOTES, VERSION = "caches", 1
_NOTE = schema.record({"format_version": schema.whole(), "folder": schema.path_text})
_PAIR, _ENTRY = re.compile("[0-9a-f]{2}"), re.compile(r"[0-9a-f]+\.cache")
_HALF = re.compile(rf"{re.escape(PREFIX)}[0-9a-f]+{re.escape(SUFFIX)}")
UNKNOWN = "of version 0.1, or damaged"


def use(folder: Path, owner: object) -> None:
    """Note that caches are in `folder`, which is there, and that they are in use until `owner` is gone.

    Where that cannot be written down nothing happens: the caches work without.
    """
    with contextlib.suppress(OSError):
        folder = folder.resolve()
        note = _note(folder)
        if not note.is_file():
            note.parent.mkdir(parents=True, exist_ok=True)
            text = json.dumps({"format_version": VERSION, "folder": str(folder)})
            write_bytes(note, text.encode())
    hold(folder, owner)


def kept_caches(further: Iterable[Path] = ()) -> list[Kept]:
    """The caches in all folders that are known, and in `further` ones, by folder and model."""
    folders = sorted({*_noted(), *(path.resolve() for path in further)})
    return [one for folder in folders for one in _in_folder(folder)]


def _note(folder: Path) -> Path:
    return cache_folder() / NOTES / f"{hash_text(str(folder))[:16]}.json"


def _noted() -> Iterator[Path]:
    """The folders that are noted; not one that has become a link, or lies behind one."""
    for note in sorted((cache_folder() / NOTES).glob("*.json")):
        try:
            path = Path(schema.read_artifact(note, _NOTE, what="the note", version=VERSION)["folder"])
            if path.is_absolute() and path == path.resolve() and note == _note(path):
                yield path
        except (CheckpointError, OSError, ValueError):
            continue  # not ours, or of a newer version: nothing is removed by it


@dataclass
class _Found:
    """Cache files of one model in a folder. newest: when the last of them was written."""

    files: list[Path] = field(default_factory=list)
    size: int = 0
    newest: float = 0.0


def _in_folder(folder: Path) -> Iterator[Kept]:
    """What is in a folder, an entry for each model."""
    found = _files(folder)
    for owner, one in sorted(found.items()):
        title = next((family.title for family in families() if family.name == owner), UNKNOWN)
        name = shown(str(folder)) + (f" ({owner or 'unknown'})" if len(found) > 1 else "")
        yield Kept(
            "cache",
            name,
            f"{title}: {count(len(one.files), 'entry', 'entries')}",
            one.size,
            partial(_remove, folder, owner),
            made=one.newest,
            used=last_used(folder),
            busy=in_use(folder),
        )


def _files(folder: Path) -> Mapping[str, _Found]:
    """The cache files in their places in a folder, by the family that they say they are of."""
    found: dict[str, _Found] = defaultdict(_Found)
    known = {family.name for family in families()}
    for path, status in _entries(folder):
        owner, names = describe(path)
        if not names:
            continue  # no cache file: somebody else's
        one = found[owner if owner in known else ""]
        one.files.append(path)
        one.size += status.st_size
        one.newest = max(one.newest, status.st_mtime)
    return found


def _entries(folder: Path, pattern: re.Pattern[str] = _ENTRY) -> Iterator[tuple[Path, os.stat_result]]:
    """Regular files `ab/abc….cache` below a folder, with their status. Links are passed over."""
    with contextlib.suppress(OSError):
        for pair in sorted(os.scandir(folder), key=lambda entry: entry.name):
            if not _PAIR.fullmatch(pair.name) or not pair.is_dir(follow_symlinks=False):
                continue
            for file in sorted(os.scandir(pair.path), key=lambda entry: entry.name):
                if pattern.fullmatch(file.name) and file.is_file(follow_symlinks=False):
                    yield Path(file.path), file.stat(follow_symlinks=False)


def _remove(folder: Path, owner: str) -> int:
    """Delete the cache files of a family in a folder, and what that leaves empty. DataError."""
    freed = 0
    with alone(folder) as free:
        if not free:
            raise DataError(f"{folder} is not removed: {IN_USE}")
        found = _files(folder)
        try:
            for path in found[owner].files if owner in found else ():
                size = path.lstat().st_size
                path.unlink()
                freed += size
            if set(found) <= {owner}:
                _clear(folder)
        except OSError as error:
            raise DataError(f"{error.filename or folder} cannot be removed: {cause(error)}") from None
    return freed


def _clear(folder: Path) -> None:
    """Remove what runs that died left in a folder without entries, and it where nothing else is in it."""
    for path, _ in list(_entries(folder, _HALF)):
        path.unlink()
    for pair in folder.iterdir():
        if _PAIR.fullmatch(pair.name) and pair.is_dir() and not pair.is_symlink():
            with contextlib.suppress(OSError):  # something is in it
                pair.rmdir()
    if {path.name for path in folder.iterdir()} <= {HOLD}:
        (folder / HOLD).unlink(missing_ok=True)
        folder.rmdir()
        _note(folder).unlink(missing_ok=True)
