"""Caption and lyrics files: naming conventions, caption variants."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from ..io.text_files import read_text
from ..text.sheet import unescape_breaks

__all__ = [
    "CAPTION_NAMES", "LYRICS_ENDINGS", "LYRICS_NAMES", "caption_lines", "clean_lyrics", "lyrics_name",
    "read_text", "shuffled", "unique",
]  # fmt: skip

CAPTION_NAMES = ("{stem}.txt", "{stem}_prompt.txt")
LYRICS_NAMES = (
    "{stem}.lyrics", "{stem}_lyrics.txt", "{stem}.lyrics.txt", "{stem}.lrc", "{stem}.srt", "{stem}.vtt",
    "{name}.lyrics", "{name}.lrc", "{name}.srt", "{name}.vtt",
)  # fmt: skip
LYRICS_ENDINGS = (".lyrics", ".lrc", ".srt", ".vtt")  # before which a language's code may stand
_TOKENS = re.compile(r"\{(\w*)\}")
_SEPARATORS = {"comma": ",", "space": " ", "period": "."}


def caption_lines(text: str, multiline: bool) -> list[str]:
    r"""Variants in a caption file: every non-empty line, or the whole text as one caption.

    A `\n` that is written out, as lists have it, is a line's end.
    """
    lines = [line.strip() for line in unescape_breaks(text)[0].split("\n") if line.strip()]
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

    if "{" in (rest := _TOKENS.sub("", template)) or "}" in rest:
        raise ConfigError(
            f"lyrics_filename_format={template!r}: a brace that belongs to no token; tokens look like "
            f"{{stem}} ({where})"
        )
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
