"""Metadata files of other programs beside songs: recognised, so that none is trained on as a caption.

They are not read here. A caption file is plain text; what has another program's form costs the song, with a
line that says what the file looks like.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from ..errors import DataError
from ..io.audio import SUFFIXES
from ..io.filenames import composed, shown
from ..io.schema import open_file, parse_json
from ..io.text_files import read_text
from ..text.marks import mark_line
from ..text.sheet import has_stamp, is_marked, timed_lines, unescape_breaks

_TAGS = "caption|lyrics|bpm|keyscale|key|timesignature|duration|language|prompt|tags|genre"
_KNOWN_TAG = re.compile(rf"</?\s*(?:{_TAGS})\s*/?>", re.IGNORECASE)
_ANY_PAIR = re.compile(r"<([A-Za-z][\w-]*)(?:\s[^<>]*)?>.*?</\1\s*>", re.DOTALL)
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

#: endings of files in which other programs keep a song's caption → what such a file looks like
BESIDE = {
    ".caption.txt": "a caption of ACE-Step 1.5 or Side-Step",
    ".caption": "another trainer's caption",
    ".tags": "another trainer's caption",
    ".prompt": "another trainer's caption",
    ".json": "another trainer's metadata (ACE-Step 1.5, ace-lora-trainer, musubi)",
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


def looks_like(text: str, *, listed: bool = False) -> str | None:
    """What a text that should be a caption looks like instead; None for a plain caption.

    listed: it stands in a list's caption column, where `Genre: rock` is somebody's own words.
    """
    text = unescape_breaks(text)[0]
    if _KNOWN_TAG.search(text):
        return "ai-toolkit's metadata (<CAPTION> …)"
    if _XML.match(text) or _ANY_PAIR.search(text):
        return "XML"
    if text.lstrip().startswith("{\\rtf"):
        return "rich text (RTF)"
    if _FENCE.search(text):
        return "a block of Markdown (```)"
    if _is_json(text):
        return "JSON metadata (musubi and others)"
    if _ASS.search(text):
        return "subtitles (ASS)"
    if _ULTRASTAR.search(text):
        return "karaoke (UltraStar)"
    named = (_song_name(row) or "" for row in _rows(text, ".csv") if isinstance(row, dict))
    if any(name.lower().endswith(SUFFIXES) for name in named):
        return "a list of songs (CSV)"
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    if lines and lines[0] in _HEADERS:
        return "metadata (YAML or TOML)"
    field = next((found for line in lines if (found := _FIELD.match(line))), None)
    if field and not listed:
        return f"metadata of Side-Step or HOT-Step ({field[1]}: …)"
    keys = [found[1].lower() for line in lines if (found := _ANY_FIELD.match(line))]
    if len(set(keys)) == len(lines) > 2:
        return f"metadata ({lines[0][:40]})"
    timed = timed_lines(lines)
    if any(has_stamp(line) for line in lines) or (timed > 2 and timed >= 0.8 * len(lines)):
        return "lyrics with time stamps"
    mark = next((line for line in lines if is_marked(line) or _is_mark(line)), None)
    return f"lyrics with structure marks ({mark[:40]})" if mark else None


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
def beside(name: str, named: Callable[[str], Path | None]) -> tuple[Path, str] | None:
    """The other program's file that describes a song, and what it looks like. named: a file in its folder.

    It may be called after the song's stem or, `song.wav.json`, after all of its name.
    """
    stem = Path(name).stem
    whole = {f"{name}{ending}": what for ending, what in BESIDE.items()}
    whole[f"{name}.txt"] = "a caption under the song's whole name"
    for other, what in ({f"{stem}{ending}": what for ending, what in BESIDE.items()} | whole).items():
        found = named(other)
        if found is not None and not (other.endswith(".json") and _is_ours(found)):
            return found, what
    for template in ELSEWHERE:
        found = named(template.format(stem=stem))
        if found is not None:
            return found, "another trainer's metadata (underfit)"
    return None


def metadata(path: Path, names: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """Fields of a JSON file beside a song, as they are written; nothing of what `generate` writes there.

    names: field → names that keys have for it, in lower case. DataError when it is no JSON object.
    """
    if _is_ours(path):
        return {}
    try:
        content = parse_json(read_text(path)[0])
    except ValueError as error:
        raise DataError(f"{shown(path.name)}: not JSON ({error})") from None
    if not isinstance(content, dict):
        raise DataError(f"{shown(path.name)}: not a JSON object")
    return fields_of(content, names)


def fields_of(row: Mapping[Any, Any], names: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """Fields of a row, as they are written. names: field → names that keys have for it, in lower case."""
    keys = _lower_case(row)
    found = {field: next((keys[n] for n in known if n in keys), None) for field, known in names.items()}
    return {field: value for field, value in found.items() if value is not None}


def _lower_case(row: Mapping[Any, Any]) -> dict[str, Any]:
    return {key.strip().lower(): value for key, value in row.items() if isinstance(key, str)}


def _is_ours(path: Path) -> bool:
    """Whether a JSON file is what `generate` writes beside a song."""
    try:
        with open_file(path) as file:
            return b'"acestep_mlx"' in file.read(4096)
    except OSError:
        return False


class Lists:
    """Lists of songs (dataset.json, metadata.jsonl, a CSV) in the songs' folders that nobody asked for."""

    def __init__(self, names: Callable[[Path], Iterable[str]]) -> None:
        self._names = names  # the names in a folder
        self._of = cache(self._read)

    def find(self, song: Path, root: Path) -> tuple[Path, Mapping[Any, Any]] | None:
        """The list in the song's folder, or in one above it up to `root`, that describes the song, and its
        row there; an empty one where it is not told whose they are.
        """
        folder = song.parent
        name, stem = composed(song.name), composed(song.stem)
        while True:
            for path, songs in self._of(folder):
                if songs is None or name in songs or stem in songs:
                    return path, (songs or {}).get(name) or (songs or {}).get(stem) or {}
            if folder == root or folder == folder.parent:
                return None
            folder = folder.parent

    def _read(self, folder: Path) -> list[tuple[Path, Mapping[str, Mapping[Any, Any]] | None]]:
        """Each list with its rows by the base names of songs; None where it names none that can be told."""
        found: list[tuple[Path, Mapping[str, Mapping[Any, Any]] | None]] = []
        for name in sorted(self._names(folder)):
            if name.startswith(".") or not name.lower().endswith(LISTS):
                continue
            path = folder / name
            try:
                text = read_text(path, _LIST_BYTES)[0]
            except DataError:
                continue
            rows = _rows(text, path.suffix.lower())
            songs = {base: row for row in rows if isinstance(row, dict) and (base := _song_name(row))}
            if songs:
                found.append((path, songs))
            elif name.lower() in USUAL_LISTS:
                found.append((path, None))
        return found


def _rows(text: str, suffix: str) -> list[Any]:
    """The rows of a list in whatever form; [] for other files."""
    try:
        if suffix == ".jsonl":
            return [json.loads(line) for line in text.split("\n") if line.strip()]
        if suffix == ".json":
            content = json.loads(text)
            if isinstance(content, dict):
                keyed = [{"path": k, **v} for k, v in content.items() if isinstance(v, dict)]
                content = next((content[k] for k in ("samples", "data", "songs") if k in content), keyed)
            return content if isinstance(content, list) else []
        first, text = list_head(text)
        return list(csv.DictReader(io.StringIO(text), delimiter=first))
    except (ValueError, RecursionError, csv.Error):
        return []


def list_head(text: str) -> tuple[str, str]:
    """The delimiter of a CSV list, and the list without Excel's line that names it (`sep=;`)."""
    first, _, rest = text.partition("\n")
    if named := re.fullmatch(r"sep=(.)\r?", first.strip(" "), re.IGNORECASE):
        return named[1], rest
    return max(",;\t|", key=first.count), text


def _song_name(row: dict[Any, Any]) -> str | None:
    """The base name of the song that a row describes, if it describes one."""
    fields = _lower_case(row)
    if not any(name in fields for name in _TEXT_NAMES):
        return None
    name = next(
        (fields[n] for n in _PATH_NAMES if isinstance(fields.get(n), str) and fields[n].strip()), None
    )
    return composed(re.split(r"[\\/]", name.strip())[-1]) if name else None
