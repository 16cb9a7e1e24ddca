"""Time stamps of lyrics in any form, and the seconds that they mean."""

from __future__ import annotations

import re
from typing import NamedTuple

# 1:02, 00:12.34, 00:12,34, 00:12:34, 01:02:03,456; outside square brackets seconds have two digits
CLOCK = r"\d{1,3}(?:[:：]\d{1,3}){1,3}(?:[.,．，]\d{1,6})?"
_STRICT_CLOCK = r"\d{1,3}(?:[:：]\d{2}){1,3}(?:[.,．，]\d{1,6})?"
_SECONDS = (
    r"\d{1,5}[.,]\d{1,6}\s*s?|\d{1,5}\s*(?:s|sec|ms)|\d{1,2}\.\d{2}\.\d{2,3}"
    r"|\d{1,3}\s*['′’]\s*\d{1,2}(?:[.,]\d{1,3})?\s*(?:[\"″”]|'')?"
    r"|(?:\d{1,2}\s*h\s*)?\d{1,3}\s*m(?:in)?\s*\d{1,2}(?:[.,]\d{1,6})?\s*s?"
)
_TO = r"\s*(?:-+>?|→|–|—|~|to|/|,|;)\s*"


def _times(time: str) -> str:
    """One time, or a range of two."""
    return rf"[-+@]?\s*(?:{time})(?:{_TO}(?:{time}))*"


STAMP = re.compile(
    rf"[ \t]*(?:[\[［【<〈{{]\|?\s*{_times(f'{CLOCK}|{_SECONDS}')}\s*\|?[\]］】>〉}}]"
    rf"|[(（]\s*{_times(_STRICT_CLOCK)}\s*[)）])[ \t]*"
)
BARE_STAMP = re.compile(rf"\s*({_STRICT_CLOCK}(?:{_TO}{_STRICT_CLOCK})*)(?:\s*[-–—|]+\s*|\s*:\s+|\s+|$)")
TAIL_STAMP = re.compile(rf"\s+[-–—|@]*\s*({_STRICT_CLOCK})\s*$")
LABEL = re.compile(r"\d+[.,]\d{3,}\t\d+[.,]\d{3,}(?:\t|$)")  # Audacity's
INSIDE = re.compile(rf"(?<!\S){_STRICT_CLOCK}(?!\S)[ \t]*")
_TIME = re.compile(rf"{CLOCK}|\d{{1,2}}\.\d{{2}}\.\d{{2,3}}|{_SECONDS}")
OFFSET = re.compile(r"\s*\[offset\s*:\s*([-+]?\d{1,7})\s*\]", re.IGNORECASE)  # ms by which lines come sooner
_THREE = re.compile(r"(?<![\d:])(\d+):(\d+):(\d+)(?![\d.,:])")
_LONG = 600  # seconds: what a song is not sung after


Spans = tuple[tuple[float, float | None], ...]


class Timed(NamedTuple):
    """A line, and when it is sung: (start, end) in seconds, where the end may not be known; none: unknown."""

    text: str
    spans: Spans = ()


def has_hundredths(text: str) -> bool:
    """Whether `1:02:03` has minutes, seconds and hundredths there: as hours it would be after any song."""
    return any(int(h) * 3600 + int(m) * 60 + int(s) > _LONG for h, m, s in _THREE.findall(text))


def spans_of(line: str, hundredths: bool) -> Spans:
    """When a line is sung, by its stamps: all of those that it begins with, else the first one in it.

    hundredths: `1:02:03` has minutes, seconds and hundredths, not hours.
    """
    found: list[str] = []
    at = 0
    while (stamp := STAMP.match(line, at)) and (not found or stamp[0].strip()[0] == found[0].strip()[0]):
        at = stamp.end()  # another bracket is that of a word
        found.append(stamp[0])
    if not found:
        rest = (LABEL.match(line), STAMP.search(line), BARE_STAMP.match(line), TAIL_STAMP.search(line))
        found = [match[0] for match in (*rest, INSIDE.search(line)) if match][:1]
    spans = []
    for text in found:
        times = [_as_seconds(time, hundredths) for time in _TIME.findall(text)]
        if times:
            spans.append((times[0], times[1] if len(times) > 1 and times[1] > times[0] else None))
    return tuple(dict.fromkeys(spans))


def moved(spans: Spans, by: float) -> Spans:
    return tuple((start + by, None if end is None else end + by) for start, end in spans)


def _as_seconds(time: str, hundredths: bool) -> float:
    """A time of any of the forms that `_TIME` knows."""
    parts = [float(part) for part in re.findall(r"\d+", time)]
    fraction = re.search(r"[.,．，](\d+)\D*$", time)
    if ":" in time or "：" in time:
        if fraction:
            parts.pop()
        elif len(parts) == 3 and hundredths:
            return parts[0] * 60 + parts[1] + parts[2] / 100
        parts = parts[:3]  # the fourth counts frames
    elif "ms" in time:
        return parts[0] / 1000
    elif time.count(".") == 2:  # 1.02.33
        return parts[0] * 60 + parts[1] + float(f"0.{int(parts[2])}")
    elif fraction:
        parts.pop()
    total = 0.0
    for part in parts:
        total = total * 60 + part
    return total + (float(f"0.{fraction[1]}") if fraction else 0.0)
