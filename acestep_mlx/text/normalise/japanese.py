"""Japanese to Hepburn romaji; MeCab (UniDic) splits the words."""

from __future__ import annotations

from functools import cache
from typing import Any


@cache
def _cutlet() -> Any:
    import cutlet

    return cutlet.Cutlet()


def romaji(line: str) -> str:
    """`今日は` → `kyou wa`, lower-case. A character that breaks the romaniser is left out."""
    written = _romaji(line)
    if written is None:
        written = _romaji("".join(character for character in line if _romaji(character) is not None))
    if written is None:  # they only break it together
        written = " ".join(filter(None, map(_romaji, line)))
    return written.lower()


def _romaji(text: str) -> str | None:
    try:
        return _cutlet().romaji(text)
    except (KeyError, IndexError):  # a code point that its tables lack, a foreign word that is empty
        return None
