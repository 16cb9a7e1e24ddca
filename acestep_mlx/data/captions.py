"""Caption and lyrics files: naming conventions, caption variants."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Sequence
from typing import Any

from ..config.datasets import Shuffle
from ..text.sheet import unescape_breaks

CAPTION_NAMES = ("{stem}.txt", "{stem}_prompt.txt")
LYRICS_NAMES = (
    "{stem}.lyrics", "{stem}_lyrics.txt", "{stem}.lyrics.txt", "{stem}.lrc", "{stem}.srt", "{stem}.vtt",
    "{name}.lyrics", "{name}.lrc", "{name}.srt", "{name}.vtt",
)  # fmt: skip
LYRICS_ENDINGS = (".lyrics", ".lrc", ".srt", ".vtt")  # before which a language's code may stand
_NOT_LYRICS = re.compile(r"write a .* song that genre is")  # upstream's mark for "no lyrics here"
_SEPARATORS = {"comma": ",", "space": " ", "period": "."}


def caption_lines(text: str, multiline: bool) -> list[str]:
    r"""Variants in a caption file: every non-empty line, or the whole text as one caption.

    A `\n` that is written out, as lists have it, is a line's end.
    """
    lines = [line.strip() for line in unescape_breaks(text)[0].split("\n") if line.strip()]
    return lines if multiline else [" ".join(lines)] if lines else []


def clean_lyrics(text: str) -> str | None:
    """Lyrics without trailing blanks; None when nothing is left (no lyrics)."""
    lines = [line.rstrip() for line in text.split("\n")]
    stripped = "\n".join(lines).strip()
    return stripped or None


def one_line(value: Any) -> str:
    """A cell as one line; lists of tags are joined by ", "; dictionaries are not captions by themselves."""
    if isinstance(value, (list, tuple)):
        return ", ".join(text for text in (one_line(part) for part in value) if text)
    if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
        return f"{value:.15g}"  # a year, a tempo
    return " ".join(unescape_breaks(value)[0].split()) if isinstance(value, str) else ""


def lyrics_cell(value: Any) -> str | None:
    """Lyrics of a cell, which may hold a list of their lines; None where it has none."""
    if isinstance(value, (list, tuple)):
        value = "\n".join(part for part in value if isinstance(part, str))
    if not isinstance(value, str) or _NOT_LYRICS.search(value):
        return None
    return clean_lyrics(value.replace("\r\n", "\n").replace("\r", "\n"))


def shuffled(caption: str, shuffle: Shuffle) -> list[str]:
    """Caption variants with their tags in other orders.

    The first `position_start` tags stay; a caption with fewer than two others is returned as it is.
    """
    separator = _SEPARATORS[shuffle.split_on]
    tags = [tag.strip() for tag in caption.split(separator) if tag.strip()]
    start = shuffle.position_start
    if len(tags) < start + 2:
        return [caption]
    joined = {"comma": ", ", "space": " ", "period": ". "}[shuffle.split_on]
    variants = [caption] if shuffle.include_original else []
    for number in range(shuffle.count):
        tail = tags[start:]
        random.Random(f"{shuffle.seed}:{number}:{caption}").shuffle(tail)
        variants.append(joined.join(tags[:start] + tail))
    return unique(variants)


def unique(captions: Sequence[str]) -> list[str]:
    """The same captions without repetitions, in order."""
    return list(dict.fromkeys(captions))
