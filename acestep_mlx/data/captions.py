"""Caption and lyrics files: decoding on purpose, naming conventions, caption variants."""

from __future__ import annotations

import codecs
import random
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import ConfigError, DataError

MAX_TEXT_BYTES = 1 << 20
CAPTION_NAMES = ("{stem}.txt", "{stem}_prompt.txt")
LYRICS_NAMES = ("{stem}.lyrics", "{stem}_lyrics.txt")
_TOKENS = re.compile(r"\{(\w*)\}")
_SEPARATORS = {"comma": ",", "space": " ", "period": "."}
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ufeff\u200b]")


def read_text(path: Path, limit: int = MAX_TEXT_BYTES) -> tuple[str, str | None]:
    """A text file's content with `\\n` line ends, and a note when it was not plain UTF-8.

    UTF-8 (with or without byte order mark) and UTF-16 are certain. Anything else is taken for Windows-1252
    (the common superset of Latin-1) only if it looks like Western text; otherwise DataError: guessing
    between the many East Asian and Cyrillic encodings would train on garbage. Raises DataError too for
    binary, huge or unreadable files.
    """
    try:
        size = path.stat().st_size
        if size > limit:
            raise DataError(f"{path.name} is {size / 2**20:.0f} MB, too large for a caption or lyrics")
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


def caption_lines(text: str, multiline: bool) -> list[str]:
    """Variants in a caption file: every non-empty line, or the whole text as one caption."""
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    return lines if multiline else [" ".join(lines)] if lines else []


def lyrics_name(template: str, song: Path, where: str = "") -> str:
    """A song's lyrics file relative to the song's folder. Tokens: filename, stem, name, ext, parent.

    Raises ConfigError for other tokens and for names that leave the song's folder.
    """
    values = {
        "filename": song.stem,
        "stem": song.stem,
        "name": song.name,
        "ext": song.suffix.lstrip("."),
        "suffix": song.suffix,
        "parent": song.parent.name,
    }

    def fill(match: re.Match[str]) -> str:
        if match[1] not in values:
            known = ", ".join("{" + token + "}" for token in ("filename", "stem", "name", "ext", "parent"))
            raise ConfigError(
                f"lyrics_filename_format: unknown token {match[0]}; there are {known} ({where})"
            )
        return values[match[1]]

    name = _TOKENS.sub(fill, template)
    if not name.strip() or Path(name).is_absolute() or ".." in Path(name).parts or "\0" in name:
        raise ConfigError(
            f"lyrics_filename_format={template!r} must stay inside the data set's folder ({where})"
        )
    return name


def clean_lyrics(text: str) -> str | None:
    """Lyrics without trailing blanks; None when nothing is left (no lyrics)."""
    lines = [line.rstrip() for line in text.split("\n")]
    stripped = "\n".join(lines).strip()
    return stripped or None


def shuffled(caption: str, shuffle: Mapping[str, Any]) -> list[str]:
    """Caption variants with their tags in other orders; `shuffle` as in `backends.SHUFFLE`.

    The first `position_start` tags stay; a caption with fewer than two others is returned as it is.
    """
    separator = _SEPARATORS[shuffle["split_on"]]
    tags = [tag.strip() for tag in caption.split(separator) if tag.strip()]
    start = shuffle["position_start"]
    if len(tags) < start + 2:
        return [caption]
    joined = {"comma": ", ", "space": " ", "period": ". "}[shuffle["split_on"]]
    variants = [caption] if shuffle["include_original"] else []
    for number in range(shuffle["count"]):
        tail = tags[start:]
        random.Random(f"{shuffle['seed']}:{number}:{caption}").shuffle(tail)
        variants.append(joined.join(tags[:start] + tail))
    return unique(variants)


def unique(captions: Sequence[str]) -> list[str]:
    """The same captions without repetitions, in order."""
    return list(dict.fromkeys(captions))
