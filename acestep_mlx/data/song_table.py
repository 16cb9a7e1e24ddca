"""A table of songs for a terminal: what each is trained with, and what there is to look at."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

from ..formatting import count, duration
from .summary import SongRow

COLUMNS = 80
#: title → width of a column; the last one takes the rest
_WIDTHS = {"song": 22, "length": 6, "caption": 12, "lyrics": 12, "lang": 4}
_GAP = "  "


def song_table(rows: Sequence[SongRow]) -> list[str]:
    """One line of at most 80 columns a song, those that are left out first; then what the columns mean.

    Names are cut in their middle, as their ends tell takes of a song apart.
    """
    if not rows:
        return []
    rest = COLUMNS - sum(_WIDTHS.values()) - len(_GAP) * len(_WIDTHS)
    out = [_line([*_WIDTHS, "problems"], rest), "-" * COLUMNS]
    ordered = sorted(rows, key=lambda row: row.seconds is not None)
    out += [_line(_cells(row), rest) if row.seconds is not None else _left_out(row) for row in ordered]
    used = [row for row in rows if row.seconds is not None]
    total = duration(sum(row.seconds or 0.0 for row in used))
    out.append("-" * COLUMNS)
    out.append(f"{count(len(used), 'song')}, {total}; left out: {len(rows) - len(used)}")
    if any((source or "").find("*") >= 0 for row in used for source in (row.caption, row.lyrics)):
        out.append("caption and lyrics: where they are read from (*: the song's name)")
    return out


def _cells(row: SongRow) -> list[str]:
    return [
        row.name,
        duration(row.seconds or 0.0).rjust(_WIDTHS["length"]),
        row.caption or "none",
        row.lyrics or "none",
        row.language or "-",
        row.problem,
    ]


def _left_out(row: SongRow) -> str:
    name = _padded(_shortened(row.name, _WIDTHS["song"]), _WIDTHS["song"])
    return f"{name}{_GAP}{_shortened(row.problem, COLUMNS - _WIDTHS['song'] - len(_GAP), end=True)}"


def _line(cells: Sequence[str], rest: int) -> str:
    widths = [*_WIDTHS.values(), rest]
    parts = [
        _padded(_shortened(cell, width, end=width == rest), width)
        for cell, width in zip(cells, widths, strict=True)
    ]
    return _GAP.join(parts).rstrip()


def columns_of_text(text: str) -> int:
    """Columns that a text takes: letters of East Asia take two, marks that join a letter none."""
    wide = sum(unicodedata.east_asian_width(letter) in "WF" for letter in text)
    return len(text) + wide - sum(unicodedata.combining(letter) > 0 for letter in text)


def _padded(text: str, width: int) -> str:
    return text + " " * (width - columns_of_text(text))


def _shortened(text: str, width: int, *, end: bool = False) -> str:
    """`text` in so many columns, its middle (or its end) as `…`."""
    if columns_of_text(text) <= width:
        return text
    tail = "" if end else text[-(width // 3) :]
    while columns_of_text(tail) > width // 2:
        tail = tail[1:]
    head = text
    while columns_of_text(head) + 1 + columns_of_text(tail) > width:
        head = head[:-1]
    return f"{head}…{tail}"
