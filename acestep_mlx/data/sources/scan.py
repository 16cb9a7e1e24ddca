"""The sound files below a folder that are somebody's songs, and what else lies there, each with the reason.

This program's own output and caches, project packages, environments and hidden files are no songs: a run that
writes into the folder that it reads would train on its own clips at its second start.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ...io.audio import SUFFIXES, UNREAD
from ...io.filenames import is_file, shown
from ...sampling.record import made_here

#: folders that a Mac or a program shows as one file
PACKAGES = (
    ".band", ".logicx", ".logic", ".als", ".app", ".bundle", ".component", ".vst", ".vst3", ".framework",
    ".plugin", ".pkg", ".xcodeproj", ".fcpbundle", ".imovielibrary", ".photoslibrary", ".musiclibrary",
    ".tvlibrary", ".aplibrary", ".sparsebundle", ".garageband", ".rtfd",
)  # fmt: skip
#: files of projects → folders beside them that hold takes and samples
_PROJECTS = {
    ".als": ("samples", "backup"),
    ".logicx": ("audio files", "bounced files"),
    ".ptx": ("audio files", "session file backups"),
    ".cpr": ("audio", "images"),
    ".rpp": ("media", "peaks"),
}
_ENVIRONMENTS = ("pyvenv.cfg", "conda-meta")
_LEFTOVERS = {"__MACOSX": "a Mac's attributes of unpacked files", "__pycache__": "compiled programs"}
_ENVIRONMENT_NAMES = ("node_modules", "site-packages", *_LEFTOVERS)
_WASTE = ("$recycle.bin", "recycler", "system volume information", "lost+found")
_OUTPUT_FILES = ("metrics.jsonl", "training_state.json")
_CLIP = re.compile(r"(?:step_\d+_.*_\d+|base_.*_[0-9a-f]{8})\.wav")  # validation clips of any version


@dataclass
class SoundFiles:
    """files: songs, sorted. left_out: (name, reason) of what is none. unreadable: (folder, reason)."""

    files: list[Path] = field(default_factory=list)
    left_out: list[tuple[str, str]] = field(default_factory=list)
    unreadable: list[tuple[str, str]] = field(default_factory=list)


def sound_files(root: Path, own: Mapping[Path, str]) -> SoundFiles:
    """Sound files below `root`; links are followed, each folder is looked at once (they may loop).

    own: output and cache folders of this run, resolved → what each is.
    """
    found = SoundFiles()
    met: dict[tuple[int, int], str] = {}  # folders, and under which name

    def failed(error: OSError) -> None:
        name = os.path.relpath(error.filename or root, root)
        found.unreadable.append((f"{shown(name)}/", f"folder cannot be read: {error.strerror or error}"))

    for place, folders, files in os.walk(root, followlinks=True, onerror=failed):
        here = Path(place)
        try:
            status = here.stat()
        except OSError as error:
            failed(error)
            folders.clear()
            continue
        name = f"{shown(os.path.relpath(here, root))}/"
        if (first := met.setdefault((status.st_dev, status.st_ino), name)) is not name:
            found.left_out.append((name, f"the same folder as {first}"))
            folders.clear()
            continue
        inner = _project_parts(here)
        folders.sort(key=lambda name: ((here / name).is_symlink(), name))  # a link after what it may lead to
        for name in list(folders):
            if _is_met(here / name, met):
                continue  # said when it is entered
            why = _own(here / name, own) or _no_songs(here / name, name.lower() in inner)
            if why is None:
                continue
            folders.remove(name)
            quiet = name.startswith(".") or name in _ENVIRONMENT_NAMES
            if not quiet or _holds_sound(here / name):
                found.left_out.append((f"{shown(os.path.relpath(here / name, root))}/", why))
        for name in files:
            suffix = Path(name).suffix.lower()
            if suffix not in SUFFIXES and suffix not in UNREAD:
                continue
            why = _no_song(here / name) or UNREAD.get(suffix)
            if why is None:
                found.files.append(here / name)
            else:
                found.left_out.append((shown(os.path.relpath(here / name, root)), why))
    found.files.sort(key=lambda path: path.relative_to(root).parts)
    found.left_out.sort()
    return found


def _is_met(folder: Path, met: Mapping[tuple[int, int], str]) -> bool:
    try:
        status = folder.stat()
    except OSError:
        return False
    return (status.st_dev, status.st_ino) in met


def _own(folder: Path, own: Mapping[Path, str]) -> str | None:
    try:
        return own.get(folder.resolve())
    except (OSError, RuntimeError):  # a link that leads to itself
        return None


def _no_songs(folder: Path, takes: bool) -> str | None:
    """Why nothing below a folder is a song, or None."""
    if folder.name in _LEFTOVERS:
        return _LEFTOVERS[folder.name]
    if folder.name in _ENVIRONMENT_NAMES or any(_there(folder / name) for name in _ENVIRONMENTS):
        return "environment with programs"
    if folder.name.startswith("."):
        return "hidden folder"
    if folder.name.lower() in _WASTE:
        return "the system's own folder"
    if folder.suffix.lower() in PACKAGES:
        return f"package ({folder.suffix})"
    if takes:
        return "takes and samples of a project"
    if any(_there(folder / name) for name in _OUTPUT_FILES):
        return "output of acestep-mlx"
    if _there(folder / "audio_index.json"):
        return "cache of acestep-mlx"
    if _has_suffix(folder, ".als"):
        return "Ableton project"
    return None


def _no_song(path: Path) -> str | None:
    """Why a sound file is none of the user's songs, or None."""
    if path.name.startswith("."):
        return "hidden file"
    if path.parent.name == "validation" and (
        _CLIP.fullmatch(path.name) or _there(path.parent.parent / "metrics.jsonl")
    ):
        return "validation clip of acestep-mlx"
    if is_file(path) and made_here(path):  # a pipe would be waited for
        return "made by acestep-mlx"
    return None


def _project_parts(folder: Path) -> set[str]:
    """Names, in lower case, of the folders that belong to projects saved in `folder`."""
    return {part for suffix, parts in _PROJECTS.items() if _has_suffix(folder, suffix) for part in parts}


def _has_suffix(folder: Path, suffix: str) -> bool:
    try:
        return any(entry.name.lower().endswith(suffix) for entry in os.scandir(folder))
    except OSError:
        return False


def _holds_sound(folder: Path) -> bool:
    names = (name for _, _, files in os.walk(folder) for name in files)
    return any(Path(name).suffix.lower() in SUFFIXES for name in names)


def _there(path: Path) -> bool:
    return os.path.lexists(path)
