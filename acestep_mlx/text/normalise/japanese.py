"""Japanese to Hepburn romaji; MeCab (UniDic) splits the words."""

from __future__ import annotations

from functools import cache
from typing import Any


@cache
def _cutlet() -> Any:
    import cutlet

    return cutlet.Cutlet()


def romaji(line: str) -> str:
    """`今日は` → `kyou wa`, lower-case. A kana that the romaniser has no row for is left out of its word."""
    try:
        return _cutlet().romaji(line).lower()
    except (KeyError, IndexError):
        return " ".join(filter(None, (_piece(character) for character in line)))


def _piece(character: str) -> str:
    """One character on its own: archaic kana break the romaniser, their neighbours need not suffer."""
    try:
        return _cutlet().romaji(character).lower()
    except (KeyError, IndexError):
        return ""
