"""Songs in a folder, with captions and lyrics beside them or in a CSV list."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterable, Mapping, Sequence
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
from ...text.blanks import is_blank
from ...text.languages import is_language_code
from .. import sidecars
from ..captions import LYRICS_ENDINGS, LYRICS_NAMES, caption_lines, clean_lyrics
from ..drafts import stamp
from ..facts import AudioRef, FileAudio
from ..records import INSTRUMENTAL, Record
from .beside import Beside, Told, after_json
from .scan import sound_files
from .song_list import Row, Rows, find_file, read_list

_NAMELESS = "no file name in this row"
_SPLIT_LYRICS = "{stem}.lyrics.txt"  # ACE-Step 1.5's, which counts after what has caption and lyrics together


@dataclass
class Song:
    """A song that was found, before its sound was looked at. name: unique within its data set, for people.

    metadata: what the model can be told beside, as it is written; unread: files with it that are damaged.
    sources: "caption" and "lyrics" → where each is from, `*` for the song's name; absent where there is none.
    doubtful: where its captions are from, if they may be lyrics.
    """

    name: str
    audio: AudioRef
    captions: list[str]
    lyrics: str | None
    notes: list[str] = field(default_factory=list)
    problem: str | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    unread: list[str] = field(default_factory=list)
    sources: dict[str, str] = field(default_factory=dict)
    doubtful: str | None = None


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
    *,
    drafting: bool = False,
) -> Found:
    """The songs of a local or CSV data set, sorted by name.

    own: output and cache folders of the run, resolved, with what each is. metadata: see
    `families.protocol.Family`. drafting: see `Beside`. DataError when the folder is not there or holds no
    songs.
    """
    metadata = metadata or {}
    folder = dataset.folder
    if not is_folder(folder):
        what = "is not a folder" if os.path.lexists(folder) else "does not exist"
        raise DataError(f"{dataset.label}: {folder} {what}; set instance_data_dir")
    rows = read_list(dataset.id, folder, dataset.listed, metadata) if dataset.listed is not None else None
    notes = [(shown(rows.file.name), note) for note in rows.notes] if rows is not None else []
    reader = _Reader(dataset, rows, metadata, drafting)
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

    def __init__(
        self, dataset: LocalSet, rows: Rows | None, metadata: Mapping[str, Sequence[str]], drafting: bool
    ) -> None:
        self.dataset, self.folder, self.metadata = dataset, dataset.folder, metadata
        self.rows = rows.by_name if rows is not None else {}
        self.unused = set(self.rows)  # rows whose song was not met
        self.folders = Folders()
        self.beside = Beside(
            self.folders,
            self.folder,
            dataset.multiline,
            captioned=dataset.only_instance_prompt or dataset.caption_strategy != "textfile",
            tagged=not (dataset.instance_prompt and dataset.prepend_instance_prompt),
            own=rows.file if rows is not None else None,
            drafting=drafting,
        )
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
        """Other programs' lists of songs in the folders, by their usual names, that cannot be understood."""
        found = {path for folder in folders for path in self.beside.lists.unclear(folder)}
        names = sorted(shown(path.relative_to(self.folder).as_posix()) for path in found)
        return [(name, "another trainer's list of songs, which is not understood") for name in names]

    def _described(self, song: Song, path: Path | None, row: Row | None) -> Song:
        if song.problem is not None or path is None:
            return song
        if row is not None and row.problem is not None:
            song.problem = row.problem
            return song
        told = self.beside.read(path)
        song.notes += told.notes
        try:
            caption = self._captions(path, song, row, told)
            lyrics = self._lyrics(path, song, row, told)
            self._remark(path, song, told, {caption, lyrics})
            song.doubtful = None if song.lyrics else song.doubtful
        except DataError as error:
            song.problem = str(error)
        song.unread += told.unread
        if self.metadata:
            self._known(song, row, told)
        return song

    def _known(self, song: Song, row: Row | None, told: Told) -> None:
        """What is known of the song beside: of its list, then of each file that describes it."""
        listed = row.metadata if row is not None else {}
        for record in told.drafts:
            drafted = sidecars.fields_of(record.facts, self.metadata)
            if told.sung is not None and told.sung != stamp(song.lyrics):  # the language of former lyrics
                drafted.pop("language", None)
            song.metadata |= drafted
        for record in reversed(told.records):
            song.metadata |= sidecars.fields_of(record.facts, self.metadata)
        song.metadata |= {name: text for name, text in listed.items() if not is_blank(text, name)}

    def _remark(self, path: Path, song: Song, told: Told, taken: set[str | None]) -> None:
        """Say what is not taken of the files beside the song. taken: those with its caption and lyrics."""
        song.notes += [why for why in told.lacking if why not in told.unread and not self.beside.captioned]
        for record in told.records:
            if record.source in taken:
                song.notes += record.notes
            elif record.facts and not (record.listed or sidecars.fields_of(record.facts, self.metadata)):
                text = f"{record.source} looks like another trainer's metadata, of which nothing is taken"
                said = any(note.endswith(f"not from {record.source}") for note in song.notes)
                song.notes += [] if said else [text]
        words = {r.trigger for r in told.records if r.trigger} - {self.dataset.instance_prompt}
        if words and not (self.beside.tagged or self.beside.captioned):
            named = listed(sorted(words))
            song.notes.append(f"its trigger words {named} are not used: instance_prompt is set")

    def _text(self, file: Path, song: Song) -> str:
        text, note = read_text(file)
        if note:
            song.notes.append(f"{shown(file.name)}: {note}")
        return text

    def _captions(self, path: Path, song: Song, row: Row | None, told: Told) -> str | None:
        """Sets the song's captions; the file that they are from."""
        dataset = self.dataset
        if dataset.only_instance_prompt:
            return None
        match dataset.caption_strategy:
            case "filename":
                song.captions = [" ".join(path.stem.replace("_", " ").split())]
                song.sources["caption"] = "file name"
            case "csv":
                text = row.caption if row is not None else ""
                sidecars.check_caption(text, "the caption in the list", listed=True)
                song.captions = caption_lines(text, dataset.multiline)
                song.sources |= {"caption": "the list"} if song.captions else {}
            case "textfile":
                return self._told_caption(path, song, told)
        return None

    def _told_caption(self, path: Path, song: Song, told: Told) -> str | None:
        """The caption of the first file that has one. DataError when it may be in one that is not read."""
        found = [record for record in told.records if record.captions]
        if not found and not told.lacking:
            found = [record for record in told.drafts if record.captions]
        if not found:
            if told.lacking:
                stem = shown(path.stem)
                advice = f"; put the caption alone into {stem}.txt, lyrics into {stem}.lyrics"
                raise DataError(told.lacking[0] + ("" if "; " in told.lacking[0] else advice))
            said = [*told.records, *told.drafts]
            alone = next((r for r in said if r.trigger and self.beside.tagged), None)
            if alone is not None and alone.trigger is not None:
                song.captions, song.sources["caption"] = [alone.trigger], "trigger words"
            return None
        first, *others = found
        song.captions = list(first.captions)
        song.doubtful = first.source if first.doubtful else None
        song.sources["caption"] = _general(first.source, path)
        song.notes += [
            f"the caption is read from {first.source}, not from {other.source}"
            for other in others
            if other.captions != first.captions and other.worded and not other.listed
        ]
        return first.source

    def _lyrics(self, path: Path, song: Song, row: Row | None, told: Told) -> str | None:
        """Sets the song's lyrics; the file that they are from."""
        if row is not None and row.lyrics:
            sidecars.check_lyrics(row.lyrics, "the lyrics in the list")
            song.lyrics, song.sources["lyrics"] = clean_lyrics(row.lyrics), "the list"
            return None
        own, split = self._lyrics_files(path)
        beside: list[Record] = [] if self.dataset.lyrics_format is not None else told.records
        if self.dataset.lyrics_format is None and told.sheet is not None:
            at = after_json(beside)
            beside = [*beside[:at], Record(told.sheet[0], lyrics=told.sheet[1]), *beside[at:]]
        sung: list[Path | Record] = [
            *own,
            *(record for record in beside if record.lyrics and not record.listed),
            *split,
            *(record for record in beside if record.lyrics and record.listed),
        ]
        if not sung:
            silent = next((record.source for record in beside if record.instrumental), None)
            if silent is not None:
                song.lyrics, song.sources["lyrics"] = INSTRUMENTAL, _general(silent, path)
            if silent is not None or self.dataset.lyrics_format is not None:
                return silent
            sung = [record for record in told.drafts if record.lyrics]
        if not sung:
            return None
        first, *others = sung
        name = shown(first.name) if isinstance(first, Path) else first.source
        text = self._text(first, song) if isinstance(first, Path) else first.lyrics or ""
        for other in others:
            if isinstance(other, Path) and is_file(other):
                song.notes.append(f"lyrics are read from {name}, not from {shown(other.name)}")
            elif isinstance(other, Record) and not other.listed and other.lyrics != clean_lyrics(text):
                song.notes.append(f"lyrics are read from {name}, not from {other.source}")
        sidecars.check_lyrics(text, name)
        song.lyrics = clean_lyrics(text)
        song.sources |= {"lyrics": _general(name, path)} if song.lyrics else {}
        return name

    def _lyrics_files(self, path: Path) -> tuple[list[Path], list[Path]]:
        """The files of lyrics alone: those of the song's own, and another program's."""
        if self.dataset.lyrics_format is not None:
            file = self.folders.find(path.parent, lyrics_name(self.dataset.lyrics_format, path))
            return [file] if file is not None else [], []
        found = [
            (t, self.folders.find(path.parent, t.format(stem=path.stem, name=path.name)))
            for t in LYRICS_NAMES
        ]
        own = list(dict.fromkeys(file for name, file in found if file is not None and name != _SPLIT_LYRICS))
        split = [file for name, file in found if file is not None and name == _SPLIT_LYRICS]
        if not own and not split and (file := self._lyrics_in_a_language(path)) is not None:
            own = [file]
        return own, [file for file in split if file not in own]

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


def _general(source: str, path: Path) -> str:
    """A file's name with `*` for the song's."""
    folder, slash, name = source.rpartition("/")
    stem = shown(path.stem)
    return f"{folder}{slash}*{name[len(stem) :]}" if re.match(rf"{re.escape(stem)}[._]", name) else source


def _why_no_file(path: Path) -> str:
    try:
        path.stat()
    except OSError as error:
        broken = error.errno in (errno.ENOENT, errno.ELOOP)
        return "broken link" if broken else f"cannot be read: {error.strerror or error}"
    return "not a regular file"
