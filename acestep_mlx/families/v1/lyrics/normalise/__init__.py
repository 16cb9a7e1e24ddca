"""Lyrics as written → lyrics as the vocabulary spells them, one line in one language.

The order of the steps decides what a token becomes, so it is kept as the model was trained:
quotes out, capitals down, numbers to words, abbreviations, symbols, white space; then Chinese to
pinyin and Korean to Latin letters. Japanese goes through a romaniser alone, Hindi keeps its digits.
"""

from __future__ import annotations

import re

from .words import expand_abbreviations, expand_symbols

_SPACES = re.compile(r"\s+")
_DIGIT = re.compile(r"\d")
_LONG = 1000  # characters
_PIECE = re.compile(rf"(?s:.{{1,{_LONG}}}(?:\s|$)|.{{1,{_LONG}}})")
# Python lower-cases İ to i + a combining dot, which is another token.
_TURKISH_CAPITALS = str.maketrans("İÖÜ", "iöü")


def normalise(line: str, language: str) -> str:
    """`line` (NFC) in the spelling that the lyric vocabulary knows; `language` is a code of LANGUAGES.

    Never raises: what cannot be read aloud (a number with a thousand digits) stays as it is written.
    A line beyond all singing is taken in pieces, so that its time grows no faster than its length.
    """
    if len(line) > _LONG:
        return " ".join(normalise(piece.strip(), language) for piece in _PIECE.findall(line))
    if language == "ja":
        from .japanese import romaji

        return romaji(line)
    if language == "hi":
        return _SPACES.sub(" ", line.lower())

    text = line.replace('"', "")
    if language == "tr":
        text = text.translate(_TURKISH_CAPITALS)
    text = _numbers(text.lower(), language)
    text = expand_abbreviations(text, language)
    text = _SPACES.sub(" ", expand_symbols(text, language))
    if language == "zh":
        from .chinese import pinyin

        return pinyin(text)
    if language == "ko":
        from .korean import romanise

        return romanise(text)
    return text


def _numbers(text: str, language: str) -> str:
    """Digits to words; the library behind it is imported only for lines that have digits."""
    if language == "zh":
        from .chinese import read_aloud

        return read_aloud(text)
    if not _DIGIT.search(text):
        return text
    from .numbers import Unreadable, expand_numbers

    try:
        return expand_numbers(text, language)
    except Unreadable:
        return text
