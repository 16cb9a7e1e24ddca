"""Lyrics as people write them → lyrics as the model reads them: before the tokenizer, with what was changed.

Time stamps of any form are not sung, a part's name becomes the mark that the model knows, and a mark stands
on a line of its own. The tokenizer itself stays as the reference's: data sets and `generate` go through here.
"""

from __future__ import annotations

import html
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise

from ..formatting import tallied
from .clean import is_lrc_tag, language_tag_of, split_lines
from .marks import is_counter, known_mark, mark_line
from .stamps import (
    BARE_STAMP,
    CLOCK,
    INSIDE,
    LABEL,
    OFFSET,
    STAMP,
    TAIL_STAMP,
    Spans,
    Timed,
    has_hundredths,
    moved,
    spans_of,
)

_HTML_BREAK = re.compile(r"[ \t]*<br\s*/?>[ \t]*\n?", re.IGNORECASE)
_ENTITY = re.compile(r"&(?:amp|quot|apos|lt|gt|nbsp|#\d{1,6}|#x[0-9a-f]{1,5});", re.IGNORECASE)
_BREAK = re.compile(r"(?:\\+r)?\\+n")
# What no time of day in a song looks like: a fraction, or hours, minutes and seconds; at a rim also minute 0.
_EXACT = re.compile(r"\d[.,．，]\d{2,}|\d[:：]\d+[:：]\d")
_CERTAIN = re.compile(rf"{_EXACT.pattern}|(?<!\d)00?[:：]\d\d")
_CUE = re.compile(rf"\s*{CLOCK}\s*(?:-+>|→)\s*{CLOCK}\s*(.*)")
_CUE_SETTING = re.compile(r"(?:(?:align|position|line|size|vertical|region|[XY][12]):\S+\s*)+")
_VTT_BLOCK = re.compile(r"(?:NOTE|STYLE|REGION)(?=\s|$)")
_STYLE = re.compile(r"</?[ibuvc](?:[ .][^>]*)?>|</?font[^>]*>|\{\\[^}]*\}", re.IGNORECASE)
_DATA = re.compile(r"\[[A-Za-z#_]+\s*:.*\]")
_FENCE = re.compile(r"\s*(?:`{3,}[\w.+-]*|~{3,})\s*")  # of a code block in Markdown
_SQUARE = re.compile(r"[\[［【]([^\[\]［］【】]*)[\]］】]")


@dataclass
class Sheet:
    """Lyrics for the tokenizer, and in words what was changed. An empty text: nothing is left to sing.

    lines: those of the text.
    """

    text: str
    notes: list[str] = field(default_factory=list)
    lines: list[Timed] = field(default_factory=list)


def read_sheet(text: str) -> Sheet:
    """`text` without time stamps and subtitle numbers, its parts marked as the model knows them.

    Idempotent: what it returns is not changed again.
    """
    lines, notes, fences = _plain_lines(text)
    marks = _Marks()
    lines = [Timed(piece, line.spans) for line in lines for piece in marks.read(line.text)]
    notes += marks.notes()
    lines, more = _without_fences(lines)  # which stood behind a stamp or a mark
    return _sheet(lines, notes, fences + more)


def untimed(text: str) -> Sheet:
    """`text` without time stamps and subtitle numbers, its marks as written; where it has none, the same.

    `lines` is empty where no line has a time.
    """
    lines, notes, fences = _plain_lines(text)
    if not notes and not fences:
        return Sheet(text)
    sheet = _sheet(lines, notes, fences)
    return sheet if any(line.spans for line in sheet.lines) else Sheet(sheet.text, sheet.notes)


def _sheet(lines: list[Timed], notes: list[str], fences: int) -> Sheet:
    if fences:
        notes.append(f"code fences of Markdown left out: {fences} line{'s' * (fences != 1)}")
    lines = _trimmed(lines)
    return Sheet("\n".join(line.text for line in lines), notes, lines)


def _plain_lines(text: str) -> tuple[list[Timed], list[str], int]:
    """Lines of `text` with their marks untouched; what was changed; how many fences there were."""
    text, notes = _unescaped(text)
    lines, fences = _without_fences([Timed(line) for line in split_lines(text)])
    hundredths = has_hundredths(text)
    if any(_CUE.match(line.text) for line in lines):
        lines, cues = _without_cues(lines)
        notes.append(f"subtitles read, {cues} cue{'s' * (cues != 1)} without number and time")
    bare, stamped = _without_stamps([line.text for line in lines])
    lines = [
        line
        if left.strip() == line.text.strip()
        else Timed(left, line.spans or spans_of(line.text, hundredths))
        for line, left in zip(lines, bare, strict=True)
    ]
    if stamped:
        notes.append(f"time stamps removed from {stamped} line{'s' * (stamped != 1)}")
    lines, data = _without_data(lines, stamped > 0)
    notes += [f"LRC data left out: {tallied(Counter(data))}"] if data else []
    if sooner := sum(int(found[1]) for line in data if (found := OFFSET.fullmatch(line))) / 1000:
        lines = [Timed(line.text, moved(line.spans, -sooner)) for line in lines]
    return lines, notes, fences


def _trimmed(lines: list[Timed]) -> list[Timed]:
    """Lines without blanks at their ends, and without blank lines at both ends of the whole."""
    lines = [Timed(line.text.rstrip(), line.spans) for line in lines]
    sung = [i for i, line in enumerate(lines) if line.text]
    lines = lines[sung[0] : sung[-1] + 1] if sung else []
    return [Timed(lines[0].text.lstrip(), lines[0].spans), *lines[1:]] if lines else []


def _unescaped(text: str) -> tuple[str, list[str]]:
    """`text` without written-out line breaks and HTML, also what these make of each other; what was done."""
    done: dict[str, None] = {}
    found = True
    while found:
        text, found = unescape_breaks(text)
        if found:
            done[r"\n written out, read as line breaks"] = None
        text, breaks = _HTML_BREAK.subn("\n", text)
        plain = _ENTITY.sub(_character, text)
        if breaks or plain != text:
            done["HTML read (<br>, &amp; and the like)"] = None
            text, found = plain, True
    return text, list(done)


def _character(entity: re.Match[str]) -> str:
    """What an entity of HTML stands for; one that cannot be printed stays as it is."""
    character = html.unescape(entity[0]).replace("\xa0", " ")
    return character if character.isprintable() and character != "\ufffd" else entity[0]


def unescape_breaks(text: str) -> tuple[str, bool]:
    r"""`text` with each written-out `\n` as a line break, and whether there was one."""
    if "\\" not in text:
        return text, False
    text, found = _BREAK.subn("\n", text)
    return text, found > 0


def has_stamp(line: str) -> bool:
    """Whether a line begins with a time stamp, holds one in square brackets, or times a subtitle."""
    if _CUE.match(line):
        return True
    bare = BARE_STAMP.match(line)
    if bare and _CERTAIN.search(bare[1]):
        return True
    return any(not found.start() or found[0].strip()[0] in "[［【<" for found in STAMP.finditer(line))


def timed_lines(lines: list[str]) -> int:
    """How many lines have a time stamp somewhere, as `read_sheet` finds them."""
    return _without_stamps(lines)[1]


def is_marked(line: str) -> bool:
    """Whether a line begins with a mark in square brackets, so that it is one of lyrics.

    Within a line it may be the user's own way of writing a caption: `piano [solo], warm`.
    """
    first = _SQUARE.match(line.lstrip(" \t*_#>-–•"))
    return first is not None and _square_mark(first) is not None


def _without_fences(lines: list[Timed]) -> tuple[list[Timed], int]:
    """Lines without those that begin and end a code block of Markdown, and how many these were."""
    kept = [line for line in lines if not _FENCE.fullmatch(line.text)]
    return kept, len(lines) - len(kept)


def _without_cues(lines: list[Timed]) -> tuple[list[Timed], int]:
    """Lines of SRT or WebVTT without numbers, times, styles and blank lines; and how many cues there were."""
    out: list[Timed] = []
    cues, header, before = 0, False, ""
    vtt = any(line.text.strip("\ufeff \t").startswith("WEBVTT") for line in lines[:3])
    previous = ""
    spans: Spans = ()
    for line in (one.text for one in lines):
        above, previous, before = previous, before, line
        stripped = line.strip("\ufeff \t")
        if not stripped:
            header, spans = False, ()
        elif (vtt and not previous.strip() and _VTT_BLOCK.match(stripped)) or (
            stripped.startswith("WEBVTT") and not cues
        ):
            header = True
        elif cue := _CUE.match(stripped):
            cues += 1
            header = False
            named = vtt and previous.strip() and not above.strip()
            if out and (previous.strip().isdigit() or named):  # the cue's number or name
                out.pop()
            spans = spans_of(f"[{stripped[: cue.start(1)].strip()}]", False)
            rest = _CUE_SETTING.sub("", cue[1]).strip()
            out += [Timed(rest, spans)] if rest else []
        elif not header:
            out.append(Timed(_STYLE.sub("", line), spans))
    return out, cues


def _without_data(lines: list[Timed], timed: bool) -> tuple[list[Timed], list[str]]:
    """Lines without LRC's data (`[ar:Artist]`, any `[name:value]` where lyrics were timed), and the data."""
    data = [line.text.strip() for line in lines]
    data = [line for line in data if _is_data(line, timed)]
    return [line for line in lines if line.text.strip() not in data], data


def _is_data(line: str, timed: bool) -> bool:
    """Whether a line is nothing but LRC's data."""
    groups = list(_SQUARE.finditer(line))
    if not groups or _SQUARE.sub("", line).strip():
        return False
    return all(
        is_lrc_tag(group[0])
        or (timed and _DATA.fullmatch(group[0]) and not _square_mark(group) and not language_tag_of(group[0]))
        for group in groups
    )


def _without_stamps(lines: list[str]) -> tuple[list[str], int]:
    """Lines without time stamps, and in how many there were some.

    A time without brackets is a stamp where one of them looks like no time of day, or where nearly all lines
    have one in the same place, rising: "7:30 in the morning" is sung.
    """
    bare = [LABEL.sub("", line, count=1) if LABEL.match(line) else line for line in lines]
    bare = [STAMP.sub(_gap, line).strip() if STAMP.search(line) else line for line in bare]
    bare = [INSIDE.sub(lambda time: "" if _EXACT.search(time[0]) else time[0], line) for line in bare]
    for pattern, place in ((BARE_STAMP, re.Pattern.match), (TAIL_STAMP, re.Pattern.search)):
        found: Callable[..., re.Match[str] | None] = place
        sung = [line for line in bare if line.strip() and mark_line(line) is None and not _SQUARE.match(line)]
        times = [match[1] for line in sung if (match := found(pattern, line))]
        certain = any(map(_CERTAIN.search, times))
        usual = len(times) >= 3 and len(times) >= 0.8 * len(sung) and _rising(times)
        bare = [
            line[: match.start()] + line[match.end() :]
            if (match := found(pattern, line)) and (usual or certain)
            else line
            for line in bare
        ]
    return bare, sum(before.strip() != after.strip() for before, after in zip(lines, bare, strict=True))


def _rising(times: list[str]) -> bool:
    """Whether every time is later than the one before."""
    numbers = [[int(part) for part in re.findall(r"\d+", time)] for time in times]
    return all(a < b for a, b in pairwise(numbers))


def _gap(stamp: re.Match[str]) -> str:
    """A word stamp inside a word joins its parts."""
    return " " if stamp[0] != stamp[0].strip() else ""


def _square_mark(group: re.Match[str]) -> str | None:
    if is_lrc_tag(group[0]) or language_tag_of(group[0]) is not None:
        return None
    return known_mark(group[1])


class _Marks:
    """Reads line by line, and remembers what became of the marks."""

    def __init__(self) -> None:
        self.changed: Counter[str] = Counter()
        self.moved: Counter[str] = Counter()
        self.unknown: Counter[str] = Counter()

    def notes(self) -> list[str]:
        """What was changed, in words."""
        kinds = (
            ("marks: ", self.changed),
            ("marks put on a line of their own: ", self.moved),
            ("no mark of the model, so its words are read: ", self.unknown),
        )
        return [label + tallied(counts) for label, counts in kinds if counts]

    def read(self, line: str) -> list[str]:
        """The line with the model's marks, each on a line of its own."""
        if not line.strip():
            return [line]
        groups = [(group, mark) for group in _SQUARE.finditer(line) if (mark := _square_mark(group))]
        if not groups:
            if (found := mark_line(line)) is not None:
                return self._bare(line, *found)
            self._doubt(line)
            return [line]
        out: list[str] = []
        at = 0
        for group, mark in groups:
            out += self._words(line[at : group.start()], bool(at))
            written = group[0]
            if written.lower() != f"[{mark}]":  # the tokenizer reads capitals as small letters
                self.changed[f"{written} → [{mark}]"] += 1
                written = f"[{mark}]"
            elif line.strip() != written:
                self.moved[written] += 1
            out.append(written)
            at = group.end()
        return out + self._words(line[at:], True)

    def _bare(self, line: str, mark: str, rest: str) -> list[str]:
        written = line.strip() if not rest else line.strip().removesuffix(rest).strip() or line.strip()
        self.changed[f"{written} → [{mark}]"] += 1
        return [f"[{mark}]", *self._words(rest, True)]

    def _words(self, text: str, after: bool) -> list[str]:
        """What stands beside a mark; `after` it, a number or an "x2" belongs to the mark."""
        text = text.strip()
        if after:
            text = text.lstrip(":：-–— ").strip()
            if is_counter(text):
                self.changed[f"{text} left out"] += 1
                return []
        if not any(character.isalnum() for character in text):  # what decorates the mark
            return []
        self._doubt(text)
        return [text]

    def _doubt(self, line: str) -> None:
        """Remember what looks like a mark and is none: a bracket that begins a line."""
        group = _SQUARE.match(line.strip())
        if group and not is_lrc_tag(group[0]) and language_tag_of(group[0]) is None:
            self.unknown[group[0]] += 1
