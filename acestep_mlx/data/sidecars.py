"""Metadata files of other programs beside songs: what a text looks like, and the lists that describe a song.

`records` reads those whose form is known; any other costs the song that has no caption elsewhere, with a line
that says what the file looks like. None is trained on as a caption.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import DataError
from ..io.audio import SUFFIXES
from ..io.filenames import composed, shown
from ..io.schema import open_file
from ..io.text_files import read_text
from ..text.blanks import is_blank
from ..text.marks import mark_line
from ..text.sheet import has_stamp, is_marked, timed_lines, unescape_breaks

_TAGS = "caption|lyrics|bpm|keyscale|key|timesignature|duration|language|prompt|tags|genre"
_KNOWN_TAG = re.compile(rf"</?\s*(?:{_TAGS})\s*/?>", re.IGNORECASE)
_ANY_TAG = re.compile(r"<([A-Za-z][\w-]*)(?:\s[^<>]*)?>|</([A-Za-z][\w-]*)\s*>")
_XML = re.compile(r"\s*<(?:\?xml|!doctype|!--|(?:tt|html|lyrics)[\s>])", re.IGNORECASE)
# Side-Step's and HOT-Step's fields; a line that begins with one is not a caption's own words.
_FIELD = re.compile(
    r"""[\s"'*-]*(caption|genre|bpm|key|signature|lyrics|tags|custom_tag|trigger|is_instrumental|repeats?
    |prompt_override|duration|keyscale|scale|time_?signature|sig|language|lang|tempo|tag_position|prompt
    |audio_path|raw_lyrics|formatted_lyrics)["'*]*\s*[:=：]""",
    re.IGNORECASE | re.VERBOSE,
)
_ANY_FIELD = re.compile(r"(\w[\w -]{0,24})\s*[:=：]\s*\S")
_ULTRASTAR = re.compile(r"^[:*]\s\d+\s\d+\s-?\d+\s", re.MULTILINE)
_ASS = re.compile(r"^\s*(?:\[Script Info\]\s*$|Dialogue:\s*\d+,)", re.IGNORECASE | re.MULTILINE)
_FENCE = re.compile(r"^\s*(?:```|~~~)", re.MULTILINE)
_HEADERS = {"---", "+++"}
#: forms that `records` reads, as `looks_like` calls them; SHEET begins what it says of lyrics
TAGS = "ai-toolkit's metadata (<CAPTION> …)"
JSON = "JSON metadata (musubi and others)"
FIELDS = "metadata of Side-Step or HOT-Step"
SHEET = "lyrics with "
SHEET_LINES = 8  # so many lines, none longer than this, are lyrics beside another caption
SHEET_WIDTH = 100

#: endings of files in which other programs describe a song → what such a file looks like, the first first
BESIDE = {
    ".json": "another trainer's metadata (ACE-Step 1.5, ace-lora-trainer, musubi)",
    ".caption.txt": "a caption of ACE-Step 1.5 or Side-Step",
    ".caption": "another trainer's caption",
    ".tags": "another trainer's caption",
    ".prompt": "another trainer's caption",
    ".jsonl": "another trainer's metadata",
    ".yaml": "another trainer's metadata",
    ".yml": "another trainer's metadata",
    ".toml": "another trainer's metadata",
}
#: where underfit looks besides: in and beside the song's folder
ELSEWHERE = ("json/{stem}.json", "txt/{stem}.txt")
LISTS = (".json", ".jsonl", ".csv", ".tsv")
USUAL_LISTS = ("dataset.json", "dataset.jsonl", "metadata.json", "metadata.jsonl", "metadata.csv")
_PATH_NAMES = ("audio_path", "audio", "filename", "file_name", "file", "path", "keys")
_TEXT_NAMES = ("caption", "prompt", "tags", "text", "lyrics", "genre", "bpm", "key", "keyscale", "recaption")
_LIST_BYTES = 1 << 26
#: what a list's head says of all its songs → the name that it has in a row
_OF_ALL = {
    "custom_tag": "custom_tag",
    "tag_position": "tag_position",
    "default_genre": "genre",
    "default_language": "language",
}


def looks_like(text: str, *, listed: bool = False) -> str | None:
    """What a text that should be a caption looks like instead; None for a plain caption.

    listed: it stands in a list's caption column, where `Genre: rock` is somebody's own words.
    """
    text = unescape_breaks(text)[0]
    if _KNOWN_TAG.search(text):
        return TAGS
    if _XML.match(text) or _has_pair(text):
        return "XML"
    if text.lstrip().startswith("{\\rtf"):
        return "rich text (RTF)"
    if _FENCE.search(text):
        return "a block of Markdown (```)"
    if _is_json(text):
        return JSON
    if _ASS.search(text):
        return "subtitles (ASS)"
    if _ULTRASTAR.search(text):
        return "karaoke (UltraStar)"
    named = (_song_path(row) or "" for row in _rows(text, ".csv") or [] if isinstance(row, dict))
    if any(name.lower().endswith(SUFFIXES) for name in named):
        return "a list of songs (CSV)"
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    if lines and lines[0] in _HEADERS:
        return "metadata (YAML or TOML)"
    field = next((found for line in lines if (found := _FIELD.match(line))), None)
    if field and not listed:
        return f"{FIELDS} ({field[1]}: …)"
    keys = [found[1].lower() for line in lines if (found := _ANY_FIELD.match(line))]
    if len(set(keys)) == len(lines) > 2:
        return f"metadata ({lines[0][:40]})"
    timed = timed_lines(lines)
    if any(has_stamp(line) for line in lines) or (timed > 2 and timed >= 0.8 * len(lines)):
        return f"{SHEET}time stamps"
    mark = next((line for line in lines if is_marked(line) or _is_mark(line)), None)
    return f"{SHEET}structure marks ({mark[:40]})" if mark else None


def _has_pair(text: str) -> bool:
    """Whether a tag is opened and closed; in one pass, however many are opened."""
    opened = set()
    for tag in _ANY_TAG.finditer(text):
        if tag[1]:
            opened.add(tag[1])
        elif tag[2] in opened:
            return True
    return False


def may_be_sung(text: str) -> bool:
    """Whether a text that is taken for captions may be lyrics without marks: many short lines, most of them
    without commas, lines that come again, or stanzas.
    """
    lines = [line.strip() for line in unescape_breaks(text)[0].split("\n")]
    stanzas = [list(part) for filled, part in itertools.groupby(lines, bool) if filled]
    told = [line for part in stanzas for line in part]
    if len(told) < 4 or max(map(len, told)) > SHEET_WIDTH:
        return False
    again = len(set(told)) < len(told) or sum(len(part) > 1 for part in stanzas) > 1
    return again or (len(told) >= SHEET_LINES and sum("," in line for line in told) < len(told) / 2)


def _is_mark(line: str) -> bool:
    """A mark without square brackets that is all of its line, and more than one plain word."""
    found = mark_line(line)
    return found is not None and not found[1] and not line.isalpha()


def _is_json(text: str) -> bool:
    """Objects, lists of them, lines of them, and the remains of one (`{"caption": …` without its end)."""
    start = text.lstrip()[:1]
    if start not in ("{", "["):
        return False
    if start == "{" and re.match(r"\s*\{\s*(?:\"[^\"]*\"|'[^']*'|[A-Za-z_]\w*)\s*:|\s*\{\s*\}", text):
        return True
    try:
        return isinstance(json.loads(text), (dict, list))
    except (ValueError, RecursionError):
        return start == "[" and re.match(r"\s*\[\s*[\"{]", text) is not None


def check_caption(text: str, name: str, advice: str = "", *, listed: bool = False) -> None:
    """DataError when `text`, which `name` gives, is no plain caption."""
    if (found := looks_like(text, listed=listed)) is not None:
        raise DataError(
            f"{name} looks like {found}, which is not read as a caption{advice and f'; {advice}'}"
        )


def check_lyrics(text: str, name: str) -> None:
    """DataError when `text` is another program's metadata rather than lyrics: tags, JSON, named fields."""
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    fields = {found[1].lower() for line in lines[:40] if (found := _FIELD.match(line))}
    first = _FIELD.match(lines[0]) if lines else None
    tagged = len(_KNOWN_TAG.findall(text)) > 1 or _XML.match(text)
    tagged = tagged or _ASS.search(text) or _ULTRASTAR.search(text)
    if tagged or _is_json(text) or (first and (len(fields) > 1 or first[1].lower() in ("caption", "lyrics"))):
        what = looks_like(text) or "metadata"
        raise DataError(
            f"{name} looks like {what}, which is not read as lyrics; put the lyrics alone into it"
        )


# ── files beside a song ──────────────────────────────────────────────────────────────────────────────
def beside(name: str, named: Callable[[str], Path | None]) -> list[tuple[Path, str]]:
    """Other programs' files that describe a song, and what each looks like; the first counts first.

    named: a file in its folder. They may be called after the song's stem or, `song.wav.json`, after all of
    its name.
    """
    stem = Path(name).stem
    templates = {ending: (f"{stem}{ending}", f"{name}{ending}") for ending in BESIDE}
    wanted = [(other, BESIDE[ending]) for ending in BESIDE for other in templates[ending]]
    wanted.append((f"{name}.txt", "a caption under the song's whole name"))
    wanted += [(one.format(stem=stem), "another trainer's metadata (underfit)") for one in ELSEWHERE]
    found = {path: what for other, what in wanted if (path := named(other)) is not None}
    return [
        (path, what) for path, what in found.items() if not (path.suffix.lower() == ".json" and is_ours(path))
    ]


def fields_of(row: Mapping[Any, Any], names: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """Fields of a row, as they are written. names: field → names that keys have for it, in lower case."""
    keys = lower_case(row)
    found = {
        field: next((keys[n] for n in known if not is_blank(keys.get(n), n)), None)
        for field, known in names.items()
    }
    return {field: value for field, value in found.items() if value is not None}


def lower_case(row: Mapping[Any, Any]) -> dict[str, Any]:
    """A row by its names in lower case."""
    return {key.strip().lower(): value for key, value in row.items() if isinstance(key, str)}


def is_ours(path: Path) -> bool:
    """Whether a JSON file is what `generate` writes beside a song."""
    try:
        with open_file(path) as file:
            return b'"acestep_mlx"' in file.read(4096)
    except OSError:
        return False


class Listed(NamedTuple):
    """A list that describes a song; row: what it says, None where it is not told whose its rows are."""

    file: Path
    row: Mapping[Any, Any] | None


_Songs = Mapping[str, list[tuple[str, Mapping[Any, Any]]]]


class Lists:
    """Lists of songs (dataset.json, metadata.jsonl, a CSV) in the songs' folders that nobody asked for.

    own: the list that the data set names, which is read elsewhere.
    """

    def __init__(self, names: Callable[[Path], Iterable[str]], own: Path | None = None) -> None:
        self._names = names  # the names in a folder
        self._own = own
        self._of = cache(self._read)

    def find(self, song: Path, root: Path) -> Listed | None:
        """The list in the song's folder, or in one above it up to `root`, that describes the song.

        DataError when it says two things of the song.
        """
        folder, unclear = song.parent, None
        while True:
            for path, songs in self._of(folder):
                if songs is None:
                    unclear = unclear or Listed(path, None)
                elif (row := _row_of(song, path, songs)) is not None:
                    return Listed(path, row)
            if folder == root or folder == folder.parent:
                return unclear
            folder = folder.parent

    def unclear(self, folder: Path) -> list[Path]:
        """Lists by their usual names in a folder that cannot be understood."""
        return [path for path, songs in self._of(folder) if songs is None]

    def _read(self, folder: Path) -> list[tuple[Path, _Songs | None]]:
        """Each list with its rows (path, row) by the base names of songs; None where it names none that can
        be told."""
        found: list[tuple[Path, _Songs | None]] = []
        for name in sorted(self._names(folder)):
            path = folder / name
            if name.startswith(".") or not name.lower().endswith(LISTS) or path == self._own:
                continue
            try:
                text = read_text(path, _LIST_BYTES)[0]
            except DataError:
                text = ""
            rows = _rows(text, path.suffix.lower())
            songs: dict[str, list[tuple[str, Mapping[Any, Any]]]] = {}
            for row in rows or []:
                if isinstance(row, dict) and (place := _song_path(row)):
                    songs.setdefault(place.rpartition("/")[2], []).append((place, row))
            if songs:
                found.append((path, songs))
            elif name.lower() in USUAL_LISTS or (rows is None and _names_sound(text)):
                found.append((path, None))
        return found


def _row_of(song: Path, file: Path, songs: _Songs) -> Mapping[Any, Any] | None:
    """The row for a song: whose path ends as the song's does, the longest such end; None without one.

    A row whose file is there and is another one is that file's. DataError when several, which differ, fit as
    well.
    """
    rows = songs.get(composed(song.name)) or songs.get(composed(song.stem)) or []
    fitting = [(place, row) for place, row in rows if _may_be(song, file.parent, place)]
    if not fitting:
        return None
    parts = [composed(part) for part in song.with_suffix("").parts]

    def same(place: str) -> int:
        mine = place.split("/")
        mine[-1] = mine[-1] if mine[-1] == parts[-1] else Path(mine[-1]).stem
        pairs = zip(reversed(mine), reversed(parts), strict=False)
        return next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(mine), len(parts)))

    most = max(same(place) for place, _ in fitting)
    first, *others = [row for place, row in fitting if same(place) == most]
    if any(row != first for row in others):
        raise DataError(f"{shown(file.name)} has several rows for it, which differ; keep one")
    return first


def _may_be(song: Path, folder: Path, place: str) -> bool:
    """Whether a path that a list in `folder` gives may stand for the song: it is not another file's."""
    try:
        named = folder / place
        return not named.is_file() or named.samefile(song)
    except (OSError, ValueError):
        return True


def _names_sound(text: str) -> bool:
    """Whether a damaged file may be a list of songs: it names a sound file."""
    text = text.lower()
    return any(f"{suffix}{end}" in text for suffix in SUFFIXES for end in ('"', ",", ";", "\t"))


def _rows(text: str, suffix: str) -> list[Any] | None:
    """The rows of a list in whatever form, [] for other files; None for a damaged one."""
    try:
        if suffix == ".jsonl":
            return [json.loads(line) for line in text.split("\n") if line.strip()]
        if suffix == ".json":
            content = json.loads(text)
            return _json_rows(content)
        first, text = list_head(text)
        return list(csv.DictReader(io.StringIO(text), delimiter=first, skipinitialspace=True, strict=True))
    except (ValueError, RecursionError, csv.Error):
        return None


def _json_rows(content: Any) -> list[Any]:
    """A list of rows, in an object or not, or rows by their paths; each with what is said of all."""
    if isinstance(content, dict):
        keyed = [{"path": k, **v} for k, v in content.items() if isinstance(v, dict)]
        rows = next((content[k] for k in ("samples", "data", "songs") if k in content), keyed)
        common = content.get("metadata")
        if isinstance(rows, list) and isinstance(common, dict):
            shared = {to: common[name] for name, to in _OF_ALL.items() if not is_blank(common.get(name))}
            return [_with(row, shared) if isinstance(row, dict) else row for row in rows]
        content = rows
    return content if isinstance(content, list) else []


def _with(row: dict[str, Any], shared: Mapping[str, Any]) -> dict[str, Any]:
    """A row, with what is said of all where it says nothing itself."""
    return {**row, **{name: value for name, value in shared.items() if is_blank(row.get(name))}}


def list_head(text: str) -> tuple[str, str]:
    """The delimiter of a CSV list, and the list without Excel's line that names it (`sep=;`)."""
    first, _, rest = text.partition("\n")
    if named := re.fullmatch(r"sep=(.)\r?", first.strip(" "), re.IGNORECASE):
        return named[1], rest
    return max(",;\t|", key=first.count), text


def _song_path(row: dict[Any, Any]) -> str | None:
    """The path of the song that a row describes, with `/`, if it describes one."""
    fields = lower_case(row)
    if not any(name in fields for name in _TEXT_NAMES):
        return None
    name = next(
        (fields[n] for n in _PATH_NAMES if isinstance(fields.get(n), str) and fields[n].strip()), None
    )
    return composed(re.sub(r"[\\/]+", "/", name.strip())) if name else None
