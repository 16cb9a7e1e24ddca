"""Caption and lyrics files: naming conventions, caption variants."""

from __future__ import annotations

import random
from collections.abc import Sequence

from ..config.datasets import Shuffle
from ..text.sheet import unescape_breaks

CAPTION_NAMES = ("{stem}.txt", "{stem}_prompt.txt")
LYRICS_NAMES = (
    "{stem}.lyrics", "{stem}_lyrics.txt", "{stem}.lyrics.txt", "{stem}.lrc", "{stem}.srt", "{stem}.vtt",
    "{name}.lyrics", "{name}.lrc", "{name}.srt", "{name}.vtt",
)  # fmt: skip
LYRICS_ENDINGS = (".lyrics", ".lrc", ".srt", ".vtt")  # before which a language's code may stand
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
