"""Names of files: one letter may be written in two ways, and some names cannot be printed."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path


def composed(name: str) -> str:
    """`name` in composed Unicode (NFC): a Mac may hand out "é" as two characters, a list has one."""
    return unicodedata.normalize("NFC", name)


def as_stored(path: Path) -> Path:
    """The path with its letters (NFC or NFD) as they are on disk, as far as it exists."""
    if os.fspath(path).isascii() or os.path.lexists(path):
        return path
    here = Path(path.anchor)
    for part in path.parts[len(here.parts) :]:
        found = here / part
        if not os.path.lexists(found):
            found = next((entry for entry in _entries(here) if composed(entry.name) == composed(part)), found)
        here = found
    return here


class Folders:
    """Files by name, found in any spelling of it (letters in NFC or NFD, the ending in capitals or not).

    A folder is listed once, so that no name, however long, has to be tried on the disk.
    """

    def __init__(self) -> None:
        self._names: dict[Path, dict[str, str]] = {}

    def names(self, folder: Path) -> list[str]:
        """What lies in a folder; [] where it cannot be read."""
        return list(dict.fromkeys(self._index(folder).values()))

    def find(self, folder: Path, name: str) -> Path | None:
        """The entry that `name`, which may lead into folders below, stands for; None when there is none."""
        here = folder
        for part in Path(name).parts if "/" in name else (name,):
            index = self._index(here)
            found = index.get(part) or index.get(composed(part)) or index.get(_key(part))
            if found is None:
                return None
            here = here / found
        return here

    def _index(self, folder: Path) -> dict[str, str]:
        if folder not in self._names:
            names = sorted(entry.name for entry in _entries(folder))
            index = {_key(name): name for name in names} | {composed(name): name for name in names}
            self._names[folder] = index | {name: name for name in names}
        return self._names[folder]


def _key(name: str) -> str:
    stem, dot, ending = composed(name).rpartition(".")
    return stem + dot + ending.lower()


def _entries(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def at_home(path: str | Path) -> Path:
    """`path` with `~` as the user's folder; as it is where nobody is called so."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def is_file(path: Path) -> bool:
    """Whether a regular file is there; False too where that cannot be found out."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def is_folder(path: Path) -> bool:
    """Whether a folder is there; False too where that cannot be found out."""
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def shown(name: str) -> str:
    """A name for a message: on one line, and printable whatever bytes it has on disk."""
    if name.isprintable():
        return name
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in name)
