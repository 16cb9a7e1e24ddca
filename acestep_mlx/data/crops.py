"""Parts of songs: which of a song's lyrics are sung in a part of it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise

from ..text.clean import language_tag_of
from ..text.lines import in_language
from ..text.stamps import Timed

LONGEST = 6.0  # seconds: a line whose end is not known is sung no longer, whatever follows
GRID = 6  # parts whose lyrics are cut begin at multiples of a sixth of their length, so that texts are few
_MARK = re.compile(r"\[[^\]]*\]\s*")


def is_mark(text: str) -> bool:
    """Whether a line of lyrics is a mark such as `[verse]`, which nobody sings."""
    tag = language_tag_of(text)
    return _MARK.fullmatch(text if tag is None else tag[1]) is not None


def nobody_sings(lyrics: str) -> bool:
    """Whether lyrics are nothing but marks."""
    return all(is_mark(line) for line in lyrics.split("\n") if line.strip())


def starts(frames: int, part: int) -> tuple[int, ...]:
    """Where parts of `part` latent frames begin in a song of `frames`, when their lyrics are cut."""
    last = frames - part
    return (*range(0, last, max(1, part // GRID)), last)


def cut(lines: Sequence[Timed], begin: float, end: float, total: float) -> str | None:
    """The lyrics from `begin` to `end` of a song of `total` seconds; None where nothing is sung there.

    A line belongs where the middle of its time is; a line without a time, where the timed one before it is,
    and a mark, where the one after it is. The mark of the section that the part begins in stands first.
    """
    kept = [i for i, sung in enumerate(_inside(lines, begin, end, total)) if sung]
    while kept and not lines[kept[0]].text.strip():
        kept.pop(0)
    if not any(lines[i].text.strip() for i in kept):
        return None
    texts = [lines[i].text for i in kept]
    above = [line.text for line in lines[: kept[0]]]
    if not is_mark(texts[0]):
        texts = [text for text in above if is_mark(text)][-1:] + texts
    tags = [tag[0] for text in above if (tag := language_tag_of(text)) is not None]
    lyrics = "\n".join(texts).strip()
    return in_language(lyrics, tags[-1]) if tags and language_tag_of(lyrics) is None else lyrics


def _inside(lines: Sequence[Timed], begin: float, end: float, total: float) -> list[bool]:
    """Of each line, whether it belongs between the two times."""
    known = sorted({start for line in lines for start, _ in line.spans})
    following = dict(pairwise(known))

    def sung(start: float, until: float | None) -> bool:
        until = until if until is not None else min(following.get(start, total), start + LONGEST)
        return begin <= (start + min(until, total)) / 2 < end

    timed = [any(sung(*span) for span in line.spans) if line.spans else None for line in lines]
    after = _carried(timed[::-1])[::-1]
    before = _carried(timed)
    found = []
    for line, own, previous, following_one in zip(lines, timed, before, after, strict=True):
        first, second = (following_one, previous) if is_mark(line.text) else (previous, following_one)
        found.append(next((value for value in (own, first, second) if value is not None), False))
    return found


def _carried(values: Sequence[bool | None]) -> list[bool | None]:
    """Each value, or the last one before it that is known."""
    now, out = None, []
    for value in values:
        now = value if value is not None else now
        out.append(now)
    return out
