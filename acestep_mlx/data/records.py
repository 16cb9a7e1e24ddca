"""What other programs' files say of a song, each brought to the same record.

Forms: ai-toolkit's tags, `name: value` lines of Side-Step and HOT-Step, JSON beside the song (ACE-Step 1.5,
ace-lora-trainer, musubi), and rows of lists (dataset.json, metadata.jsonl, CSV).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import DataError
from ..io.schema import parse_json, show
from ..io.text_files import without_controls
from ..text.blanks import is_blank
from . import sidecars
from .captions import clean_lyrics, lyrics_cell, one_line, unique

#: what is said of a song that nobody sings in, where its lyrics do not say it; every model reads it
INSTRUMENTAL = "[Instrumental]"
_CAPTIONS = ("caption", "prompt", "text", "tags", "genre")
_WORDED = 3  # of these that hold nothing but a caption
_LYRICS = ("lyrics", "norm_lyrics", "formatted_lyrics", "raw_lyrics")
_TRIGGERS = ("custom_tag", "trigger")
_HALF = re.compile("[\ud800-\udfff]")
_YES = {"true", "1", "yes"}
_TAG = re.compile(r"<\s*([a-z]\w*)\s*>|</\s*([a-z]\w*)\s*>", re.IGNORECASE)
_OPEN = re.compile(
    r"</?\s*(?:caption|lyrics|bpm|keyscale|key|timesignature|duration|language|prompt|tags|genre)\s*/?>",
    re.IGNORECASE,
)
# Side-Step's names and HOT-Step's; any other `word:` belongs to the field above it.
_LINE = re.compile(
    r"""\s*(caption|genre|bpm|key|signature|lyrics|tags|custom_tag|trigger|is_instrumental|repeats?
    |prompt_override|duration|keyscale|scale|time_?signature|sig|language|lang|tempo|tag_position)
    \s*[:：](.*)""",
    re.IGNORECASE | re.VERBOSE,
)


@dataclass(frozen=True)
class Record:
    """What one file says of a song.

    source: the file, for people. captions: variants, the trigger words in place. worded: whether they stand
    in a field for captions, rather than for a genre or tags. lyrics: as they are written.
    instrumental: whether it says that nobody sings. trigger: its own trigger words. facts: all else, as it is
    written, by name in lower case. notes: what is not taken from it. listed: whether the file is a list of
    many songs. doubtful: whether the captions may be lyrics.
    """

    source: str
    captions: tuple[str, ...] = ()
    lyrics: str | None = None
    instrumental: bool = False
    trigger: str | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    listed: bool = False
    worded: bool = True
    doubtful: bool = False


def read_record(text: str, source: str, *, tagged: bool = True) -> Record | None:
    """The record of a text in a form that is known; None for any other. DataError for a damaged one.

    tagged: whether trigger words are put to the captions.
    """
    what = sidecars.looks_like(text)
    if what == sidecars.TAGS:
        fields, notes = _tags(text, source)
    elif what == sidecars.JSON:
        fields, notes = json_fields(text, source), []
    elif what is not None and what.startswith(sidecars.FIELDS) and (lines := _fields(text)):
        fields, notes = lines, []
    else:
        return None
    return record_of(fields, source, notes=notes, tagged=tagged)


def record_of(
    row: Mapping[Any, Any],
    source: str,
    *,
    listed: bool = False,
    notes: list[str] | None = None,
    tagged: bool = True,
) -> Record:
    """The record of named fields. DataError when one that is taken is no text, or is another's form."""
    if any(name is None and value for name, value in row.items()):  # as `csv` has it
        raise DataError(f"{source}: the song's row has more columns than the header; quote texts with commas")
    fields = {name: _text(value, source) for name, value in sidecars.lower_case(row).items()}
    found = list(notes or [])
    captions = _captions(fields, source)
    for caption in captions:
        sidecars.check_caption(caption, f"the caption in {source}", listed=True)
    trigger = next((one_line(fields[n]) for n in _TRIGGERS if not is_blank(fields.get(n))), None)
    if trigger and tagged:
        captions = unique([_tagged(caption, trigger, fields, source) for caption in captions])
    lyrics = _lyrics(fields, source)
    instrumental = str(fields.get("is_instrumental")).strip().lower() in _YES
    if instrumental and lyrics is not None and _sung(lyrics):
        found.append(f"{source} says that nobody sings, and has lyrics: these are read")
    repeat = str(fields.get("repeat") or fields.get("repeats") or "1").strip()
    if repeat not in ("1", "1.0"):
        found.append(f"{source}: repeat {repeat} is not read; set repeats of a data set")
    worded = not all(is_blank(fields.get(name)) for name in _CAPTIONS[:_WORDED])
    doubtful = any(isinstance(fields.get(n), str) and sidecars.may_be_sung(fields[n]) for n in _CAPTIONS)
    return Record(
        source, tuple(captions), lyrics, instrumental, trigger, fields, tuple(found), listed, worded, doubtful
    )


def _text(value: Any, source: str) -> Any:
    """A text, or those of a list, without control characters, which JSON may spell. DataError for halves of
    characters."""
    if isinstance(value, list):
        return [_text(part, source) if isinstance(part, str) else part for part in value]
    if not isinstance(value, str):
        return value
    if (half := _HALF.search(value)) is not None:
        raise DataError(f"{source} has half a character (\\u{ord(half[0]):04x}); write it anew as UTF-8")
    return without_controls(value)


def _sung(lyrics: str) -> bool:
    """Whether lyrics have words, rather than a mark alone."""
    return re.fullmatch(r"\s*\[[^\]]*\]\s*", lyrics) is None


# ── forms ────────────────────────────────────────────────────────────────────────────────────────────
def json_fields(text: str, source: str) -> dict[str, Any]:
    """The fields of a JSON file beside a song. DataError when it is no JSON object."""
    try:
        content = parse_json(text)
    except ValueError as error:
        raise DataError(f"{source}: not JSON ({error})") from None
    if not isinstance(content, dict):
        raise DataError(f"{source}: not a JSON object")
    return content


def _tags(text: str, source: str) -> tuple[dict[str, str], list[str]]:
    """ai-toolkit's tags in any order, and a note where there is more. DataError when one is never closed."""
    fields: dict[str, str] = {}
    outside, at = [], 0
    for opening, closing in _pairs(text):
        name, value = opening[1].lower(), text[opening.end() : closing.start()].strip()
        if fields.setdefault(name, value) != value:
            raise DataError(f"{source} has <{opening[1]}> twice, and they differ; keep one")
        outside.append(text[at : opening.start()])
        at = closing.end()
    rest = "".join([*outside, text[at:]]).strip()
    if (open_tag := _OPEN.search(rest)) is not None:
        raise DataError(f"{source}: {open_tag[0]} has no other end; write <CAPTION> … </CAPTION>")
    return fields, [f"{source}: what stands outside its tags is not read"] if rest else []


def _pairs(text: str) -> Iterator[tuple[re.Match[str], re.Match[str]]]:
    """Tags with their other ends, none within another; in one pass, however many have none."""
    tags = list(_TAG.finditer(text))
    ends: dict[str, list[re.Match[str]]] = {}
    for tag in reversed(tags):
        if tag[2]:
            ends.setdefault(tag[2].lower(), []).append(tag)  # the next one last
    at = 0
    for tag in tags:
        if not tag[1] or tag.start() < at:
            continue
        later = ends.get(tag[1].lower(), [])
        while later and later[-1].start() < tag.start():
            later.pop()
        if later:
            at = later[-1].end()
            yield tag, later[-1]


def _fields(text: str) -> dict[str, str]:
    """Side-Step's lines; a line without a name goes on with the field above, and lyrics go to the end.

    What stands before the first field is the caption, where no field is. {} where no line is a field.
    """
    fields: dict[str, list[str]] = {}
    here, lines = "", text.split("\n")
    for number, line in enumerate(lines):
        found = _LINE.fullmatch(line) if not line.startswith("[") else None
        if found is None:
            fields.setdefault(here, []).append(line.strip())
            continue
        here = found[1].lower()
        fields[here] = [found[2].strip()]
        if here == "lyrics":
            fields[here] += lines[number + 1 :]
            break
    head = " ".join(" ".join(fields.pop("", [])).split())
    if fields and head and not "".join(fields.get("caption", [])):
        fields["caption"] = [head]
    return {name: "\n".join(part).strip() for name, part in fields.items()}


# ── fields ───────────────────────────────────────────────────────────────────────────────────────────
def _captions(fields: Mapping[str, Any], source: str) -> list[str]:
    """Variants: of the first field that has words; a song whose list says so is called by its genre."""
    names: tuple[str, ...] = _CAPTIONS
    if str(fields.get("prompt_override")).strip().lower() == "genre":
        names = ("genre", *_CAPTIONS)
    texts = [text for name in names if (text := _variants(name, fields.get(name), source))]
    captions = texts[0] if texts else []
    if isinstance(other := fields.get("recaption"), dict):  # upstream's rewordings
        captions = captions + [line for text in other.values() if (line := one_line(_flat(text, source)))]
    return unique(captions)


def _flat(value: Any, source: str) -> Any:
    """A rewording: a text, or a list of tags; nothing of what is deeper."""
    if isinstance(value, list):
        return [_text(part, source) for part in value if isinstance(part, str)]
    return _text(value, source) if isinstance(value, str) else ""


def _variants(name: str, value: Any, source: str) -> list[str]:
    """A text is one caption; a list of tags as well; a list of captions is as many."""
    parts = [part for part in (value if isinstance(value, (list, tuple)) else [value]) if not is_blank(part)]
    lines = ["" if isinstance(part, (list, dict)) else one_line(part) for part in parts]
    wrong = next((part for part, line in zip(parts, lines, strict=True) if not line), None)
    if wrong is not None:
        raise DataError(f"{source}: its {name} is {show(wrong)}, not a text")
    return [", ".join(lines)] if lines and name in ("tags", "genre") else lines


def _tagged(caption: str, trigger: str, fields: Mapping[str, Any], source: str) -> str:
    """A caption with the song's trigger words, once, where its list puts them."""
    place = str(fields.get("tag_position") or "prepend").strip().lower()
    if place == "replace" or caption == trigger:
        return trigger
    if caption.startswith(f"{trigger}, ") or caption.endswith(f", {trigger}"):
        return caption
    if place not in ("prepend", "append"):
        raise DataError(f"{source}: tag_position {show(place)} is not prepend, append or replace")
    return f"{trigger}, {caption}" if place == "prepend" else f"{caption}, {trigger}"


def _lyrics(fields: Mapping[str, Any], source: str) -> str | None:
    name = next((n for n in _LYRICS if not is_blank(fields.get(n))), None)
    if name is None:
        return None
    value = fields[name]
    if not isinstance(value, (str, list)):
        raise DataError(f"{source}: its {name} are {show(value)}, not a text")
    text = lyrics_cell(value)
    if text is not None:
        sidecars.check_lyrics(text, f"{name} in {source}")
        return clean_lyrics(text)
    return None
