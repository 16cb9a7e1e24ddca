"""Songs in a folder, with captions and lyrics beside them or in a CSV list."""

from __future__ import annotations

import csv
import io
import os
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..audio import SUFFIXES
from ..errors import ConfigError, DataError, nearest
from .audio_facts import AudioRef, FileAudio
from .backends import Backend
from .captions import CAPTION_NAMES, LYRICS_NAMES, caption_lines, clean_lyrics, lyrics_name, read_text

_FILENAME_COLUMNS = ("filename", "file_name", "file", "path", "audio", "name")
_CAPTION_COLUMNS = ("caption", "prompt", "tags", "text")
_LYRICS_COLUMNS = ("lyrics", "norm_lyrics")


@dataclass
class Song:
    """A song that was found, before its sound was looked at. name: unique within its data set, for people."""

    name: str
    audio: AudioRef
    captions: list[str]
    lyrics: str | None
    notes: list[str] = field(default_factory=list)
    problem: str | None = None


def scan(backend: Backend) -> list[Song]:
    """The songs of a local or CSV data set, sorted by name.

    DataError when the folder is not there or empty.
    """
    folder = backend.folder
    assert folder is not None
    if not folder.is_dir():
        what = "is not a folder" if folder.exists() else "does not exist"
        raise DataError(f"data set {backend.id!r}: {folder} {what}; set instance_data_dir")
    rows = _read_csv(backend, folder) if backend.csv_file is not None else None
    if backend.type == "csv":
        assert rows is not None
        return [_listed(backend, folder, name, row) for name, row in rows.items()]
    songs = [_found(backend, folder, path, rows) for path in _audio_files(folder)]
    if not songs:
        kinds = ", ".join(sorted(s.lstrip(".") for s in SUFFIXES))
        raise DataError(f"data set {backend.id!r}: no audio files in {folder} (known: {kinds})")
    return songs


def _audio_files(folder: Path) -> list[Path]:
    """Audio files below the folder, sorted.

    Hidden files are left out; folders are visited once (links may loop).
    """
    found: list[Path] = []
    visited: set[tuple[int, int]] = set()
    for place, folders, files in os.walk(folder, followlinks=True):
        status = Path(place).stat()
        if (status.st_dev, status.st_ino) in visited:
            folders.clear()
            continue
        visited.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [
            Path(place) / name
            for name in files
            if Path(name).suffix.lower() in SUFFIXES and not name.startswith(".")
        ]
    return sorted(found, key=lambda path: path.relative_to(folder).parts)


def _nfc(name: str) -> str:
    """Composed Unicode: a Mac may hand out "é" as two characters, a list has one."""
    return unicodedata.normalize("NFC", name)


def _found(backend: Backend, folder: Path, path: Path, rows: Mapping[str, dict[str, str]] | None) -> Song:
    name = path.relative_to(folder).as_posix()
    song = Song(name, FileAudio(path), [], None)
    if not path.is_file():
        song.problem = "broken link" if path.is_symlink() else "not a regular file"
        return song
    row = None
    if rows is not None:
        row = next((rows[key] for key in map(_nfc, (name, path.name, path.stem)) if key in rows), None)
    _describe(backend, path, song, row)
    return song


def _listed(backend: Backend, folder: Path, name: str, row: dict[str, str]) -> Song:
    """A song named by a CSV row; the name may not lead out of the folder."""
    decomposed = unicodedata.normalize("NFD", name)
    name = decomposed if not (folder / name).exists() and (folder / decomposed).exists() else name
    path = folder / name
    song = Song(name, FileAudio(path), [], None)
    song.problem = path_problem(folder, name)
    if song.problem is None:
        _describe(backend, path, song, row)
    return song


def path_problem(folder: Path, name: str) -> str | None:
    """Why a file name that a list gives cannot be used: missing, or outside the data set's folder."""
    if not name or "\0" in name:
        return "not a file name"
    try:
        target = (folder / name).resolve()
        if not target.is_relative_to(folder.resolve()):
            return "leads out of the data set's folder"
        if not target.is_file():
            return "no such file"
    except (OSError, RuntimeError, ValueError):  # name too long, link loop
        return "not a usable file name"
    suffix = Path(name).suffix.lower()  # the link's name: download caches keep their files under hashes
    if suffix not in SUFFIXES:
        return f"not an audio file ({suffix or 'no ending'})"
    return None


def _describe(backend: Backend, path: Path, song: Song, row: dict[str, str] | None) -> None:
    """Fill in captions and lyrics; a text that cannot be read makes the song a problem, with the reason."""
    try:
        song.captions = _captions(backend, path, song, row)
        listed = row.get("lyrics") if row else None
        song.lyrics = clean_lyrics(listed) if listed else _lyrics(backend, path, song)
    except DataError as error:
        song.problem = str(error)


def _captions(backend: Backend, path: Path, song: Song, row: dict[str, str] | None) -> list[str]:
    match backend.caption_strategy:
        case "filename":
            return [" ".join(path.stem.replace("_", " ").split())]
        case "csv":
            return caption_lines(row["caption"].replace("\r", "\n"), backend.multiline) if row else []
        case "textfile":
            for template in CAPTION_NAMES:
                file = path.with_name(template.format(stem=path.stem))
                if file.is_file() or file.is_symlink():
                    text, note = read_text(file)
                    if note:
                        song.notes.append(f"{file.name}: {note}")
                    return caption_lines(text, backend.multiline)
    return []


def _lyrics(backend: Backend, path: Path, song: Song) -> str | None:
    if backend.lyrics_format is not None:
        names: tuple[str, ...] = (lyrics_name(backend.lyrics_format, path),)
    else:
        names = tuple(template.format(stem=path.stem) for template in LYRICS_NAMES)
    for name in names:
        file = path.parent / name
        if file.is_file() or file.is_symlink():
            text, note = read_text(file)
            if note:
                song.notes.append(f"{file.name}: {note}")
            return clean_lyrics(text)
    return None


def _read_csv(backend: Backend, folder: Path) -> dict[str, dict[str, str]]:
    """Rows by file name: {"caption", "lyrics"}. DataError or ConfigError when the list cannot be used."""
    assert backend.csv_file is not None
    path = next((p for p in (folder / backend.csv_file, Path.cwd() / backend.csv_file) if p.is_file()), None)
    if path is None:
        raise DataError(f"data set {backend.id!r}: no list {backend.csv_file} in {folder}")
    text, _ = read_text(path, limit=1 << 28)
    first = text.split("\n", 1)[0]
    delimiter = max(",;\t|", key=first.count) if first else ","
    reader = csv.DictReader(io.StringIO(text), delimiter=delimiter, skipinitialspace=True)
    try:
        header = [name.strip() for name in reader.fieldnames or []]
        reader.fieldnames = header
        columns = {
            "filename": _column(backend, "filename", header, _FILENAME_COLUMNS, path, required=True),
            "caption": _column(backend, "caption", header, _CAPTION_COLUMNS, path, required=True),
            "lyrics": _column(backend, "lyrics", header, _LYRICS_COLUMNS, path, required=False),
        }
        rows: dict[str, dict[str, str]] = {}
        for row in reader:
            name = (row.get(columns["filename"] or "") or "").strip()
            if name:
                fields = {kind: row.get(column or "") or "" for kind, column in columns.items()}
                rows[_nfc(Path(name).as_posix())] = fields
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: not a CSV list ({error})") from None
    if not rows:
        raise DataError(f"{path} lists no songs")
    return rows


def _column(
    backend: Backend, kind: str, header: list[str], usual: tuple[str, ...], path: Path, required: bool
) -> str | None:
    wanted = backend.csv_columns[kind]
    if wanted is not None:
        if wanted not in header:
            raise ConfigError(f"{path} has no column {wanted!r} (csv_{kind}_column){nearest(wanted, header)}")
        return wanted
    lowered = {name.lower(): name for name in header}
    for name in usual:
        if name in lowered:
            return lowered[name]
    if required:
        raise ConfigError(
            f"{path} has no {kind} column ({', '.join(header) or 'empty'}); set csv_{kind}_column"
        )
    return None
