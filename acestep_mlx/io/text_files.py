"""Text files in whatever encoding people save them, decoded on purpose."""

from __future__ import annotations

import codecs
import os
import re
from pathlib import Path

from ..errors import DataError, cause
from ..formatting import size
from .schema import open_file

MAX_TEXT_BYTES = 1 << 20
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ufeff\u200b]")


def read_text(path: Path, limit: int = MAX_TEXT_BYTES) -> tuple[str, str | None]:
    """A text file's content with `\\n` line ends, and a note when it was not plain UTF-8.

    UTF-8 (with or without byte order mark) and UTF-16 are certain. Anything else is taken for Windows-1252
    (the common superset of Latin-1) only if it looks like Western text; otherwise DataError: guessing
    between the many East Asian and Cyrillic encodings would train on garbage. Raises DataError too for
    binary, huge or unreadable files, and for what is no file at all (a pipe, a device, a folder).
    """
    data = _bytes(path, limit)
    text, note = _decode(data, path.name)
    text = text.replace("\r\n", "\n").replace("\r", "\n").replace("\u2028", "\n").replace("\x85", "\n")
    return without_controls(text), note


def without_controls(text: str) -> str:
    """`text` without characters that are none: of control, of no width, byte order marks."""
    return _CONTROL.sub("", text)


def _bytes(path: Path, limit: int) -> bytes:
    """The file's content. A pipe is not waited for, and no more than `limit` is ever read."""
    try:
        with open_file(path) as file:
            data, length = file.read(limit + 1), os.fstat(file.fileno()).st_size
    except OSError as error:
        why = cause(error) if error.errno else "it is not a regular file"
        raise DataError(f"cannot read {path.name}: {why}") from None
    if len(data) > limit:
        found = size(max(length, limit + 1))
        raise DataError(f"{path.name} is {found}, too large for a caption or lyrics")
    return data


def _decode(data: bytes, name: str) -> tuple[str, str | None]:
    encoding, note = "utf-8-sig", None
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        encoding, note = "utf-16", "read as UTF-16"
    elif order := _utf16_of(data):
        encoding, note = order, "read as UTF-16"
    elif b"\0" in data:
        data = data.rstrip(b"\0")  # what a field of fixed length leaves at a file's end
        note = "read without the NUL bytes at its end"
        if b"\0" in data or not data:
            raise DataError(f"{name} is not text (it holds {'' if data else 'only '}NUL bytes)")
    try:
        return data.decode(encoding), note
    except UnicodeDecodeError:
        if encoding != "utf-8-sig":
            raise DataError(f"{name} is not valid text; save it as UTF-8") from None
    if not _looks_western(data):
        raise DataError(f"{name} is not UTF-8, and its encoding cannot be told for sure; save it as UTF-8")
    western = data.decode("cp1252", errors="replace").replace("\ufffd", "")
    return western, "read as Windows-1252; save it as UTF-8"


def _utf16_of(data: bytes) -> str | None:
    """The byte order of UTF-16 without a mark: nearly every second byte is 0, and none between them."""
    if len(data) % 2:
        return None
    while data.endswith(b"\0\0"):
        data = data[:-2]
    even, odd = data[0::2].count(0), data[1::2].count(0)
    if len(data) < 4 or min(even, odd) or max(even, odd) < 0.75 * len(data) / 2:
        return None
    return "utf-16-le" if odd else "utf-16-be"


def _looks_western(data: bytes) -> bool:
    """Mostly ASCII, with accented letters or typographic marks that stand alone or in pairs inside words."""
    high = [byte for byte in data if byte >= 0x80]
    letters = sum(byte >= 0xC0 for byte in high)
    marks = sum(byte in b"\x80\x85\x91\x92\x93\x94\x96\x97\xa1\xa3\xab\xb0\xb4\xb7\xbb\xbf" for byte in high)
    runs = re.search(rb"[\x80-\xff]{3,}", data)
    return letters + marks == len(high) and letters <= 0.25 * len(data) + 1 and not runs
