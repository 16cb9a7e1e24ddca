"""What tells written languages apart when a line is too short for statistics: letters and small words."""

from __future__ import annotations

from pathlib import Path

from ..io.schema import read_json

_TABLES = read_json(Path(__file__).with_suffix(".json"))

# Letters beyond a–z that a language writes itself. One from outside speaks against the language.
LETTERS: dict[str, str] = _TABLES["letters"]

# The words that every text is full of, and those that songs are. A word may stand in several languages: it
# then counts for each of them a little.
WORDS: dict[str, str] = {language: " ".join(lines) for language, lines in _TABLES["words"].items()}

# Sung in every language: a line of these alone says nothing.
SYLLABLES = frozenset(" ".join(_TABLES["syllables"]).split())
