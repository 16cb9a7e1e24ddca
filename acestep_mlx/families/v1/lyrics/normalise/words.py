"""Abbreviations and symbols, spoken. `words.json` has the tables, by what is written; rows by language."""

from __future__ import annotations

import re
from pathlib import Path

from .....io.schema import read_json

_TABLES = read_json(Path(__file__).with_suffix(".json"))
# What a symbol is called. ja and hi have none: theirs is another path.
SYMBOLS: dict[str, dict[str, str]] = _TABLES["symbols"]
# What is written before the full stop (Russian: with a hyphen, no stop), and what is said.
ABBREVIATIONS: dict[str, dict[str, str]] = _TABLES["abbreviations"]


def _pattern(language: str) -> re.Pattern[str]:
    written = "|".join(ABBREVIATIONS[language])
    return re.compile(rf"\b({written})" + (r"\b" if language == "ru" else r"\."))


_ABBREVIATION = {language: _pattern(language) for language in ABBREVIATIONS}
_SYMBOL = re.compile("[" + re.escape("".join(SYMBOLS)) + "]")


def expand_abbreviations(text: str, language: str) -> str:
    """`dr. who` → `doctor who`; `text` is lower-case."""
    pattern = _ABBREVIATION.get(language)
    if pattern is None:
        return text
    return pattern.sub(lambda match: ABBREVIATIONS[language][match[1]], text)


def expand_symbols(text: str, language: str) -> str:
    """`you & me` → `you and me`, with spaces around the word; the ends are stripped."""
    return _SYMBOL.sub(lambda match: f" {SYMBOLS[match[0]][language]} ", text).strip()
