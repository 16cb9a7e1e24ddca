"""Songs in a folder, with captions and lyrics beside them or in a CSV list."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ...config.datasets import CsvSet, LocalSet, lyrics_name
from ...errors import DataError
from ...formatting import listed
from ...io.audio import SUFFIXES
from ...io.filenames import Folders, composed, is_file, is_folder, shown
from ...io.text_files import read_text
from ...sampling.record import made_here
from ...text.languages import is_language_code
from .. import sidecars
from ..captions import (
    CAPTION_NAMES,
    LYRICS_ENDINGS,
    LYRICS_NAMES,
    caption_lines,
    clean_lyrics,
)
from ..facts import AudioRef, FileAudio
from .scan import sound_files
from .song_list import Row, Rows, find_file, read_list

_NAMELESS = "no file name in this row"
_SHEET_LINES = 8  # so many lines beside another caption are lyrics


@dataclass
class Song:
    """A song that was found, before its sound was looked at. name: unique within its data set, for people.

    metadata: what the model can be told beside, as it is written; unread: files with it that are damaged.
    """

    name: str
    audio: AudioRef
    captions: list[str]
    lyrics: str | None
    notes: list[str] = field(default_factory=list)
    problem: str | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    unread: list[str] = field(default_factory=list)


@dataclass
class Found:
    """What a data set holds: songs, and sound files and folders that are none of them, as (name, reason).

    notes: (list or table, what is to be known about how it is read).
    """

    songs: list[Song]
    left_out: list[tuple[str, str]] = field(default_factory=list)
    notes: list[tuple[str, str]] = field(default_factory=list)


def scan(
    dataset: LocalSet,
    own: Mapping[Path, str] | None = None,
    metadata: Mapping[str, Sequence[str]] | None = None,
) -> Found:
    """The songs of a local or CSV data set, sorted by name.

    own: output and cache folders of the run, resolved, with what each is. metadata: see
    `families.protocol.Family`. DataError when the folder is not there or holds no songs.
    """
    metadata = metadata or {}
    folder = dataset.folder
    if not is_folder(folder):
        what = "is not a folder" if os.path.lexists(folder) else "does not exist"
        raise DataError(f"{dataset.label}: {folder} {what}; set instance_data_dir")
    rows = read_list(dataset.id, folder, dataset.listed, metadata) if dataset.listed is not None else None
    notes = [(shown(rows.file.name), note) for note in rows.notes] if rows is not None else []
    reader = _Reader(dataset, rows, metadata)
    if isinstance(dataset, CsvSet) and rows is not None:
        return replace(reader.listed(rows), notes=notes)
    found = sound_files(folder, own or {})
    songs = [reader.song(path) for path in found.files]
    found.left_out += [(shown(name), "in the list, not in the folder") for name in sorted(reader.unused)]
    found.left_out += [(place, _NAMELESS) for place in (rows.nameless if rows is not None else [])]
    if dataset.caption_strategy == "textfile":
        found.left_out += reader.unread_lists({folder, *(path.parent for path in found.files)})
    songs += [Song(name, FileAudio(folder / name), [], None, problem=why) for name, why in found.unreadable]
    if not songs:
        kinds = ", ".join(sorted(s.lstrip(".") for s in SUFFIXES))
        others = [f"{name}: {reason}" for name, reason in found.left_out]
        besides = f"; left out: {listed(others)}" if others else ""
        raise DataError(f"{dataset.label}: no audio files in {folder} (known: {kinds}){besides}")
    return Found(songs, found.left_out, notes)


class _Reader:
    """Songs with their captions and lyrics; a text that cannot be used makes the song a problem."""

    def __init__(self, dataset: LocalSet, rows: Rows | None, metadata: Mapping[str, Sequence[str]]) -> None:
        self.dataset, self.folder, self.metadata = dataset, dataset.folder, metadata
        self.rows = rows.by_name if rows is not None else {}
        self.unused = set(self.rows)  # rows whose song was not met
        self.folders = Folders()
        self.lists = sidecars.Lists(self.folders.names)
        self.in_languages: dict[Path, dict[str, list[str]]] = {}

    def listed(self, rows: Rows) -> Found:
        """Songs named by the rows of a list; a row that names none is a song that cannot be used."""
        found = Found([])
        for name, row in rows.by_name.items():
            path, problem = find_file(self.folder, name)
            if path is not None and made_here(path):
                found.left_out.append((shown(name), "made by acestep-mlx"))
            else:
                song = Song(shown(name), FileAudio(path or self.folder / name), [], None, problem=problem)
                found.songs.append(self._described(song, path, row))
        found.songs += [
            Song(place, FileAudio(rows.file), [], None, problem=_NAMELESS) for place in rows.nameless
        ]
        if not found.songs:
            others = [f"{name}: {reason}" for name, reason in found.left_out]
            raise DataError(f"{self.dataset.label}: no songs in the list; left out: {listed(others)}")
        return found

    def song(self, path: Path) -> Song:
        """A song found in the folder, with its row where there is a list."""
        name = path.relative_to(self.folder).as_posix()
        song = Song(shown(name), FileAudio(path), [], None)
        if not is_file(path):
            song.problem = _why_no_file(path)
        keys = [composed(key) for key in (name, path.name, path.stem)]
        key = next((key for key in keys if key in self.rows), None)
        if key is None:
            return self._described(song, path, None)
        self.unused.discard(key)
        return self._described(song, path, self.rows[key])

    def unread_lists(self, folders: Iterable[Path]) -> list[tuple[str, str]]:
        """Other programs' lists of songs in the folders, by their usual names."""
        found = [self.folders.find(folder, name) for folder in folders for name in sidecars.USUAL_LISTS]
        names = sorted(shown(path.relative_to(self.folder).as_posix()) for path in found if path is not None)
        read = f"of which only {', '.join(self.metadata)} are read" if self.metadata else "which is not read"
        return [(name, f"another trainer's list of songs, {read}") for name in names]

    def _described(self, song: Song, path: Path | None, row: Row | None) -> Song:
        if song.problem is not None or path is None:
            return song
        if row is not None and row.problem is not None:
            song.problem = row.problem
            return song
        try:
            song.captions = self._captions(path, song, row)
            song.lyrics = self._lyrics(path, song, row)
        except DataError as error:
            song.problem = str(error)
        if self.metadata:
            self._known(path, song, row)
        return song

    def _known(self, path: Path, song: Song, row: Row | None) -> None:
        """What is known of the song beside: of its list, else of a JSON file of the song's name, else of
        another trainer's list.
        """
        in_row = {name: text for name, text in (row.metadata if row is not None else {}).items() if text}
        names = (f"{path.stem}.json", f"{path.name}.json")
        file = next((f for n in names if (f := self.folders.find(path.parent, n)) is not None), None)
        try:
            beside = sidecars.metadata(file, self.metadata) if file is not None else {}
        except DataError as error:
            song.unread.append(str(error))
            beside = {}
        _, others = self.lists.find(path, self.folder) or (None, {})
        song.metadata = {**sidecars.fields_of(others, self.metadata), **beside, **in_row}

    def _text(self, file: Path, song: Song) -> str:
        text, note = read_text(file)
        if note:
            song.notes.append(f"{shown(file.name)}: {note}")
        return text

    def _captions(self, path: Path, song: Song, row: Row | None) -> list[str]:
        dataset = self.dataset
        if dataset.only_instance_prompt:
            return []
        match dataset.caption_strategy:
            case "filename":
                return [" ".join(path.stem.replace("_", " ").split())]
            case "csv":
                text = row.caption if row is not None else ""
                sidecars.check_caption(text, "the caption in the list", listed=True)
                return caption_lines(text, dataset.multiline)
            case "textfile":
                return self._caption_file(path, song)
        return []

    def _caption_file(self, path: Path, song: Song) -> list[str]:
        """The caption beside a song. DataError when it is, or may be, in another program's file."""
        captions: list[str] = []
        lyrics = f", lyrics into {shown(path.stem)}.lyrics"
        names = [template.format(stem=path.stem) for template in CAPTION_NAMES]
        files = [file for name in names if (file := self.folders.find(path.parent, name)) is not None]
        if files:
            name, text = shown(files[0].name), self._text(files[0], song)
            sidecars.check_caption(text, name, f"put the caption alone into {name}{lyrics}")
            captions = caption_lines(text, self.dataset.multiline)
            if len(files) > 1 and len(caption_lines(text, True)) >= _SHEET_LINES:
                raise DataError(
                    f"{name} looks like lyrics, and {shown(files[1].name)} like the caption; keep one of "
                    f"them, lyrics in {shown(path.stem)}.lyrics"
                )
        other = sidecars.beside(path.name, self._near(path))
        if other is not None:
            file, what = other
            text = f"{shown(file.name)} looks like {what}, which is not read"
            if captions and not file.name.lower().endswith(".caption.txt"):  # there, NAME.txt holds lyrics
                if not (self.metadata and file.suffix.lower() == ".json"):
                    song.notes.append(text)
                return captions
            raise DataError(f"{text}; put the caption alone into {shown(path.stem)}.txt{lyrics}")
        if not captions and (found := self.lists.find(path, self.folder)) is not None:
            file, _ = found
            advice = ", or set csv_file and caption_strategy=csv" if file.suffix.lower() == ".csv" else ""
            raise DataError(
                f"{shown(file.name)} looks like another trainer's list of songs with this one in it, which "
                f"is not read; put the caption alone into {shown(path.stem)}.txt{lyrics}{advice}"
            )
        return captions

    def _near(self, path: Path) -> Callable[[str], Path | None]:
        """Finds a file in the song's folder, or one that a folder beside that holds."""

        def find(name: str) -> Path | None:
            found = self.folders.find(path.parent, name)
            if found is None and "/" in name and path.parent != self.folder:
                found = self.folders.find(path.parent.parent, name)
            return found

        return find

    def _lyrics(self, path: Path, song: Song, row: Row | None) -> str | None:
        if row is not None and row.lyrics:
            sidecars.check_lyrics(row.lyrics, "the lyrics in the list")
            return clean_lyrics(row.lyrics)
        if self.dataset.lyrics_format is not None:
            names: tuple[str, ...] = (lyrics_name(self.dataset.lyrics_format, path),)
        else:
            names = tuple(t.format(stem=path.stem, name=path.name) for t in LYRICS_NAMES)
        files = [file for name in names if (file := self.folders.find(path.parent, name)) is not None]
        if not files and self.dataset.lyrics_format is None:
            files = [file for file in [self._lyrics_in_a_language(path)] if file is not None]
        if not files:
            return None
        file, *others = dict.fromkeys(files)
        song.notes += [
            f"lyrics are read from {shown(file.name)}, not from {shown(o.name)}" for o in others if is_file(o)
        ]
        text = self._text(file, song)
        sidecars.check_lyrics(text, shown(file.name))
        return clean_lyrics(text)

    def _lyrics_in_a_language(self, path: Path) -> Path | None:
        """Lyrics with a language's code in their name, as `song.en.lrc`. DataError when there are several."""
        folder = path.parent
        if folder not in self.in_languages:
            self.in_languages[folder] = self._codes(folder)
        index = self.in_languages[folder]
        found = [name for key in (path.stem, path.name) for name in index.get(composed(key), [])]
        if len(found) > 1:
            several = " and ".join(shown(name) for name in sorted(found))
            raise DataError(f"{several} may be its lyrics; keep one of them")
        return folder / found[0] if found else None

    def _codes(self, folder: Path) -> dict[str, list[str]]:
        """Name of a song → the lyrics for it in the folder that have a language's code in their name."""
        index: dict[str, list[str]] = {}
        for name in self.folders.names(folder):
            song, code, ending = ["", "", *composed(name).rsplit(".", 2)][-3:]
            if (
                f".{ending.lower()}" in LYRICS_ENDINGS
                and is_language_code(code)
                # a song that is called `song.en` has these for itself
                and not any(self.folders.find(folder, f"{song}.{code}{suffix}") for suffix in SUFFIXES)
            ):
                index.setdefault(song, []).append(name)
        return index


def _why_no_file(path: Path) -> str:
    try:
        path.stat()
    except OSError as error:
        broken = error.errno in (errno.ENOENT, errno.ELOOP)
        return "broken link" if broken else f"cannot be read: {error.strerror or error}"
    return "not a regular file"
