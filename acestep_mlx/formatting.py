"""Counts, sizes and long lists in words."""

from __future__ import annotations

import re
import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from .errors import CheckpointError


def count(n: int, one: str, many: str | None = None) -> str:
    """`1 song`, `2 songs`, `2 batches`; thousands are separated."""
    return f"{n:,} {one if n == 1 else many or one + 's'}"


def size(n: float) -> str:
    """Bytes for people."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if n >= factor:
            return f"{n / factor:.2f} {unit}"
    return f"{n:.0f} bytes"


def rate(x: float) -> str:
    """A speed with as many digits as say something: `0.31`, `4.2`, `57`."""
    return f"{x:.0f}" if x >= 9.95 else f"{x:.1f}" if x >= 0.995 else f"{x:.2g}"


def duration(seconds: float) -> str:
    """`75` → `1:15`, `3700` → `1:01:40`."""
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def listed(items: Sequence[str], limit: int = 3, between: str = "; ") -> str:
    """The first `limit` items and how many more there are: `a; b; c … and 12 more`."""
    more = len(items) - limit
    return between.join(items[:limit]) + (f" … and {more:,} more" if more > 0 else "")


NAMED_PROBLEMS = 3  # of each kind; an error line counts the rest


def problem_report(where: str, problems: Sequence[str]) -> CheckpointError:
    """One line that names the first problems of each kind and counts the rest."""
    shown: list[str] = []
    rest: list[str] = []
    kinds: Counter[str] = Counter()
    for problem in problems:
        kind = re.sub(r"'[^']*'|\([^)]*\)|\d+", "", problem)
        kinds[kind] += 1
        (shown if kinds[kind] <= NAMED_PROBLEMS else rest).append(problem)
    text = listed([*shown, *rest], len(shown))
    return CheckpointError(f"{where}: {count(len(problems), 'problem')}: {text}")


def tallied(counts: Mapping[str, int]) -> str:
    """What was found, and how often where that is more than once: `a, b (3×)`."""
    return ", ".join(f"{what} ({n}×)" if n > 1 else what for what, n in counts.items())


_SECRET = re.compile(r"hf_[A-Za-z0-9]{16,}|(?<=://)[^/@\s]+(?=@)")


def without_secrets(value: Any) -> Any:
    """A text, or the texts in lists and objects, with access tokens and passwords in URLs made unreadable."""
    if isinstance(value, str):
        return _SECRET.sub("…", value)
    if isinstance(value, Mapping):
        return {key: without_secrets(entry) for key, entry in value.items()}
    return [without_secrets(entry) for entry in value] if isinstance(value, (list, tuple)) else value


def brief(text: object, width: int = 160) -> str:
    """A foreign text (another library's error) in one line of at most `width` characters, whole words."""
    line = without_secrets(" ".join(str(text).split()))
    # a single word that is too long for it would vanish altogether
    return textwrap.shorten(line, width, placeholder=" …") if " " in line[:width] else line[:width]
