"""A CSV list of songs: which columns hold what, and its rows by the file that each names."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from ...config.datasets import SongList
from ...errors import ConfigError, DataError, nearest
from ...io.audio import SUFFIXES, UNREAD
from ...io.filenames import as_stored, composed, is_file
from ...io.text_files import read_text
from .. import sidecars

#: what a column holds → its usual names, the best first
_USUAL = {
    "filename": ("filename", "file_name", "file", "path", "audio", "name"),
    "caption": ("caption", "prompt", "tags", "text"),
    "lyrics": ("lyrics", "norm_lyrics"),
}
_ADDRESS = "a web address; download the song into the folder and name its file"


@dataclass(frozen=True)
class Row:
    """What a list says of a song. problem: why it cannot be used. metadata: texts of columns by field."""

    caption: str
    lyrics: str
    problem: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass
class Rows:
    """A list. by_name: file name → row. nameless: places of rows that name no file. notes: for people."""

    file: Path
    by_name: dict[str, Row] = field(default_factory=dict)
    nameless: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


# ── files that a list names ──────────────────────────────────────────────────────────────────────────
def find_file(folder: Path, name: str) -> tuple[Path | None, str | None]:
    """The audio file that a list names, as it is spelled on disk, or (None, why it cannot be used).

    Names are relative to the folder and may not lead out of it; separators of Windows are understood.
    """
    problem = path_problem(folder, name)
    if problem is not None and "\\" in name:
        name = name.replace("\\", "/")
        problem = path_problem(folder, name)
    return (as_stored(folder / name), None) if problem is None else (None, problem)


def path_problem(folder: Path, name: str) -> str | None:
    """Why a file name that a list gives cannot be used: missing, or outside the data set's folder."""
    if not name or "\0" in name:
        return "not a file name"
    if "://" in name:
        return _ADDRESS
    try:
        target = as_stored(folder / name).resolve()
        if not target.is_relative_to(folder.resolve()):
            return "leads out of the data set's folder"
        if not target.is_file():
            return "no such file"
    except (OSError, RuntimeError, ValueError):  # name too long, link loop
        return "not a usable file name"
    suffix = Path(name).suffix.lower()  # the link's name: download caches keep their files under hashes
    if suffix in UNREAD:
        return UNREAD[suffix]
    if suffix not in SUFFIXES:
        return f"not an audio file ({suffix or 'no ending'})"
    return None


def _find_list(label: str, folder: Path, wanted: Path) -> Path:
    """The list in or below the songs' folder. DataError when there is none, ConfigError when it is elsewhere.

    It may be named from that folder or from the working directory.
    """
    spellings = (wanted, Path(str(wanted).replace("\\", "/")))
    places = [as_stored(place / name) for name in spellings for place in (folder, Path.cwd())]
    found = [place for place in places if is_file(place)]
    inside = (place for place in found if place.resolve().is_relative_to(folder.resolve()))
    if (path := next(inside, None)) is not None:
        return path
    if found:
        raise ConfigError(
            f"data set {label!r}: csv_file={wanted} leads out of instance_data_dir ({folder}); put the list "
            "into that folder, or set instance_data_dir to one that holds it"
        )
    raise DataError(f"data set {label!r}: no list {wanted} in {folder}")


# ── the list ─────────────────────────────────────────────────────────────────────────────────────────
def read_list(
    label: str, folder: Path, wanted: SongList, metadata: Mapping[str, Sequence[str]] | None = None
) -> Rows:
    """The list of a data set. DataError or ConfigError when it cannot be used. metadata: see
    `families.protocol.Family`.
    """
    path = _find_list(label, folder, wanted.file)
    content, note = read_text(path, limit=1 << 28)
    delimiter, text = sidecars.list_head(content)
    done = above = content.count("\n") - text.count("\n")  # lines that are read; `above` are not the list's
    rows = Rows(path, notes=[note] if note else [])
    reader = csv.reader(
        io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True, strict=True
    )
    try:
        header = [name.strip() for name in next(reader, [])]
        done = above + reader.line_num
        columns = {
            "filename": _column(wanted.filename, "filename", header, path, required=True),
            "caption": _column(wanted.caption, "caption", header, path, required=True),
            "lyrics": _column(wanted.lyrics, "lyrics", header, path, required=False),
        }
        _differ(columns, path)
        unread = _also_meant(columns, wanted, header)
        told = columns_of(metadata or {}, [name for name in header if name not in columns.values()])
        seen: set[str] = set()
        for cells in reader:
            seen |= {name for name, cell in zip(header, cells, strict=False) if cell.strip()}
            _add(rows, cells, header, columns, told, folder, done + 1, delimiter)
            done = above + reader.line_num
    except csv.Error as error:
        said = str(error).replace("unexpected end of data", "a quote opened there is never closed")
        raise DataError(f"{path}, line {done + 1}: not a CSV list ({said})") from None
    if not rows.by_name and not rows.nameless:
        raise DataError(f"{path} lists no songs")
    rows.notes += [note for name, note in unread if name in seen]
    return rows


def _add(
    rows: Rows, cells: Sequence[str], header: Sequence[str], columns: dict[str, str | None],
    told: Mapping[str, str], folder: Path, line: int, delimiter: str,
) -> None:  # fmt: skip
    """Add a row of the list. told: field of metadata → column. line: where it begins."""

    def cell(column: str | None) -> str:
        at = header.index(column) if column is not None else len(cells)
        return cells[at] if at < len(cells) else ""

    if not any(text.strip() for text in cells):
        return
    name = cell(columns["filename"]).strip()
    if not name:
        rows.nameless.append(f"{rows.file.name}, line {line}")
        return
    if "://" not in name:
        if "\\" in name and not os.path.lexists(as_stored(folder / name)):
            name = name.replace("\\", "/")
        name = Path(name).as_posix()
    name = composed(name)
    metadata = {field: cell(column).strip() for field, column in told.items()}
    row = Row(cell(columns["caption"]), cell(columns["lyrics"]), metadata=metadata)
    if any(more.strip() for more in cells[len(header) :]):
        row = replace(row, problem=(
            f"its row in {rows.file.name} (line {line}) has more columns than the header; quote texts that "
            f'hold a {delimiter!r}: "…"'
        ))  # fmt: skip
    if name in rows.by_name and rows.by_name[name] != row:
        row = replace(row, problem=f"{rows.file.name} has several rows for it, which differ; keep one")
    rows.by_name[name] = row


def columns_of(metadata: Mapping[str, Sequence[str]], header: Sequence[str]) -> dict[str, str]:
    """Field of metadata → the column that has it, whatever its case; the first of the usual names counts."""
    known = {name.strip().lower(): name for name in reversed(header)}
    found = {field: next((known[n] for n in names if n in known), None) for field, names in metadata.items()}
    return {field: column for field, column in found.items() if column is not None}


def _column(wanted: str | None, kind: str, header: list[str], path: Path, required: bool) -> str | None:
    """The header's name of a column; None where the list has none of the kind. ConfigError when it cannot be
    told."""
    if wanted is not None:
        if wanted not in header:
            raise ConfigError(f"{path} has no column {wanted!r} (csv_{kind}_column){nearest(wanted, header)}")
        found = [name for name in header if name == wanted]
    else:
        alike = ([name for name in header if name.lower() == usual] for usual in _USUAL[kind])
        found = next((names for names in alike if names), [])
    if len(found) > 1:
        names = ", ".join(repr(name) for name in dict.fromkeys(found))
        way_out = f", or set csv_{kind}_column" if len(set(found)) > 1 else ""
        raise ConfigError(f"{path} has several columns {names}; keep one of them{way_out}")
    if not found and required:
        raise ConfigError(
            f"{path} has no {kind} column ({', '.join(header) or 'empty'}); set csv_{kind}_column"
        )
    return found[0] if found else None


def _differ(columns: dict[str, str | None], path: Path) -> None:
    """ConfigError when captions and lyrics are the same column."""
    if columns["caption"] == columns["lyrics"]:
        raise ConfigError(
            f"{path}: {columns['caption']!r} cannot be both the caption and the lyrics; set "
            "csv_caption_column and csv_lyrics_column"
        )


def _also_meant(
    columns: dict[str, str | None], wanted: SongList, header: list[str]
) -> Iterator[tuple[str, str]]:
    """(column, note) of each column that could have been taken as well, where nobody said which one."""
    for kind, column in columns.items():
        if column is None or getattr(wanted, kind) is not None:
            continue
        others = [name for name in header if name.lower() in _USUAL[kind] and name not in columns.values()]
        for name in others:
            yield (
                name,
                f"column {column!r} is the {kind}, {name!r} is not read; csv_{kind}_column chooses",
            )
