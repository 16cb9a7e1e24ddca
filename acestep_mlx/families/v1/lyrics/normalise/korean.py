"""Hangul to Latin letters by the academic (Yale-like, reversible) transliteration."""

from __future__ import annotations

from functools import cache
from typing import Any


@cache
def _transliter() -> Any:
    from hangul_romanize import Transliter
    from hangul_romanize.rule import academic

    return Transliter(academic)


def romanise(text: str) -> str:
    """`사랑해` → `salanghae`; anything that is not a Hangul syllable stays."""
    found: str = _transliter().translit(text)
    return found
