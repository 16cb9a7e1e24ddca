"""Japanese to Hepburn romaji; MeCab (UniDic) splits the words."""

from __future__ import annotations

import sys
from functools import cache
from importlib.util import find_spec
from types import ModuleType
from typing import Any

from .....errors import ConfigError

INSTALL = "pip install --no-deps cutlet==0.5.2"


@cache
def _cutlet() -> Any:
    if find_spec("mojimoji") is None:
        sys.modules.setdefault("mojimoji", _width_conversion())
    try:
        import cutlet
    except ModuleNotFoundError as error:
        raise ConfigError(f"Japanese lyrics need {error.name}, which is not installed; {INSTALL}") from None
    return cutlet.Cutlet()


def _width_conversion() -> ModuleType:
    """The two functions of mojimoji that cutlet calls, by jaconv: mojimoji has no wheel for Python 3.13."""
    import jaconv

    module = ModuleType("mojimoji")
    narrow = str.maketrans("‘’”￥", "`'\"¥")
    voiced = str.maketrans("ﾞﾟ", "゛゜")  # alone; after a kana they are part of it

    def zen_to_han(text: str, kana: bool = False) -> str:
        return jaconv.z2h(text, ignore="＂＇｀", kana=kana, ascii=True, digit=True).translate(narrow)

    def han_to_zen(text: str, digit: bool = False, ascii: bool = False) -> str:
        return jaconv.h2z(text, kana=True, digit=digit, ascii=ascii).translate(voiced)

    vars(module).update(zen_to_han=zen_to_han, han_to_zen=han_to_zen)
    return module


def romaji(line: str) -> str:
    """`今日は` → `kyou wa`, lower-case. A character that breaks the romaniser is left out.

    ConfigError where the romaniser is not installed.
    """
    written = _romaji(line)
    if written is None:
        written = _romaji("".join(character for character in line if _romaji(character) is not None))
    if written is None:  # they only break it together
        written = " ".join(filter(None, map(_romaji, line)))
    return written.lower()


def _romaji(text: str) -> str | None:
    try:
        found: str | None = _cutlet().romaji(text)
        return found
    except (KeyError, IndexError):  # a code point that its tables lack, a foreign word that is empty
        return None
