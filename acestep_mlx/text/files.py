"""Text files in whatever encoding people save them, decoded on purpose."""

from __future__ import annotations

import codecs
import re
from pathlib import Path

from ..errors import DataError
from ..words import size

MAX_TEXT_BYTES = 1 << 20
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ufeff\u200b]")


def read_text(path: Path, limit: int = MAX_TEXT_BYTES) -> tuple[str, str | None]:
    """A text file's content with `\\n` line ends, and a note when it was not plain UTF-8.

    UTF-8 (with or without byte order mark) and UTF-16 are certain. Anything else is taken for Windows-1252
    (the common superset of Latin-1) only if it looks like Western text; otherwise DataError: guessing
    between the many East Asian and Cyrillic encodings would train on garbage. Raises DataError too for
    binary, huge or unreadable files.
    """
    try:
        found = path.stat().st_size
        if found > limit:
            raise DataError(f"{path.name} is {size(found)}, too large for a caption or lyrics")
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {path.name}: {error.strerror or error}") from None
    text, note = _decode(data, path.name)
    text = text.replace("\r\n", "\n").replace("\r", "\n").replace("\u2028", "\n").replace("\x85", "\n")
    return _CONTROL.sub("", text), note


def _decode(data: bytes, name: str) -> tuple[str, str | None]:
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        encoding = "utf-16"
    elif b"\0" in data:
        even, odd = data[0::2].count(0), data[1::2].count(0)
        if max(even, odd) < len(data) // 8 or min(even, odd) > max(even, odd) // 8:
            raise DataError(f"{name} is not text (it holds NUL bytes)")
        encoding = "utf-16-le" if odd > even else "utf-16-be"
    else:
        encoding = "utf-8-sig"
    try:
        return data.decode(encoding), None if encoding == "utf-8-sig" else "read as UTF-16"
    except UnicodeDecodeError:
        if encoding != "utf-8-sig":
            raise DataError(f"{name} is not valid text; save it as UTF-8") from None
    if not _looks_western(data):
        raise DataError(f"{name} is not UTF-8, and its encoding cannot be told for sure; save it as UTF-8")
    return data.decode("cp1252", errors="replace").replace(
        "\ufffd", ""
    ), "read as Windows-1252; save it as UTF-8"


def _looks_western(data: bytes) -> bool:
    """Mostly ASCII, with accented letters or typographic marks that stand alone or in pairs inside words."""
    high = [byte for byte in data if byte >= 0x80]
    letters = sum(byte >= 0xC0 for byte in high)
    marks = sum(byte in b"\x80\x85\x91\x92\x93\x94\x96\x97\xa1\xa3\xab\xb0\xb4\xb7\xbb\xbf" for byte in high)
    runs = re.search(rb"[\x80-\xff]{3,}", data)
    return letters + marks == len(high) and letters <= 0.25 * len(data) + 1 and not runs
