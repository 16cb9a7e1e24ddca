"""A song's text as lines with their languages: what is read before any token is made."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from ..errors import ConfigError
from .clean import (
    clean_line,
    fit,
    is_lrc_tag,
    language_tag_of,
    split_lines,
    strip_stamps,
)
from .detect import detect, detect_lines
from .languages import forced_language, language_code

_STRUCTURE = re.compile(r"\[.*?\]")


@dataclass
class Line:
    """One line: `raw` as written, `text` as it is to be sung (empty: a blank line), in `language`.

    `dropped` says why the line gives nothing at all; `mended` that characters were respelled or removed.
    """

    number: int
    raw: str
    text: str = ""
    language: str | None = None
    structure: bool = False
    mended: bool = False
    dropped: str | None = None
    notes: list[str] = field(default_factory=list)


def read_lines(text: str, language: str | None = None, known: frozenset[str] | None = None) -> list[Line]:
    """Lines of `text`, cleaned, each with its language.

    `language`: one for all lines ("auto" or None: found line by line); a `[lang:ja]` tag wins from its
    line on. `known`: the vocabulary's single characters; without it nothing is respelled or removed.
    Raises ConfigError for an unknown `language`; an unknown tag is a dropped line.
    """
    lines = list(_cleaned(text, forced_language(language), known))
    undecided = [line for line in lines if line.text and line.language is None]
    guesses = detect_lines([line.text for line in undecided])
    for line, guess in zip(undecided, guesses, strict=True):
        line.language = guess.language
    return lines


def line_languages(text: str, language: str | None = None) -> dict[str, int]:
    """Language → number of sung lines, most first; structure lines such as `[verse]` do not count."""
    lines = read_lines(text, language)
    return dict(
        Counter(line.language for line in lines if line.language and not line.structure).most_common()
    )


def in_language(text: str, language: str) -> str:
    """`text` with every line marked as `language`; a tag of its own still wins from its line on."""
    return f"[lang:{language_code(language)}]{text}"


def foreign_lines(text: str) -> list[tuple[int, str]]:
    """(line number, script) of lines in a script that none of the languages is written in."""
    guesses = ((line.number, detect(line.text).foreign) for line in read_lines(text) if line.text)
    return [(number, script.capitalize()) for number, script in guesses if script]


def _cleaned(text: str, forced: str | None, known: frozenset[str] | None) -> Iterator[Line]:
    for number, raw in enumerate(split_lines(text), start=1):
        line = Line(number, raw)
        visible = clean_line(raw).strip()
        bare = strip_stamps(visible)
        if bare != visible:
            line.notes.append("time stamps removed")
        if (tag := language_tag_of(bare)) is not None:
            name, rest = tag
            try:
                forced = forced_language(name)
            except ConfigError as error:
                line.dropped = "unknown language tag"
                line.notes.append(str(error))
            else:
                bare = strip_stamps(rest)
                line.dropped = None if bare else f"sets the language: {forced or 'auto'}"
        if not line.dropped and is_lrc_tag(bare):
            line.dropped = "LRC data, not sung"
        if not line.dropped:
            line.text, mending = fit(bare, known) if known is not None else (bare, [])
            line.notes += mending
            line.mended = bool(mending)
            line.structure = _STRUCTURE.match(line.text) is not None
            if line.text:
                line.language = "en" if line.structure else forced
        yield line
