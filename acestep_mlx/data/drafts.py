"""What `prepare` writes into the JSON file beside a song, and how it is told from what somebody wrote there.

`KEY` holds, for each drafted field, a hash of the value that was written: a value that is another now is
somebody's own. Drafts count after everything else that is said of a song.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import DataError, cause
from ..io.atomic import write_bytes
from ..io.filenames import Folders, shown
from ..io.hashes import content_hash
from ..io.schema import parse_json, read_file, refuse_newer
from .sidecars import USUAL_LISTS, is_ours

KEY = "acestep_mlx_drafts"
VERSION = 1
TRIGGER = "custom_tag"  # ACE-Step 1.5's name for it
#: names in a folder of songs that other files have
_TAKEN = {*USUAL_LISTS, "config.json", "multidatabackend.json", "audio_index.json", "training_state.json"}


def stamp(value: Any) -> str:
    """What tells whether a value is the one that was drafted."""
    return content_hash(value)[:16]


def split(content: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The fields of a file beside a song that are somebody's own, and those that are still drafts.

    The trigger words stay with the caption that they were drafted for, also when it was edited.
    """
    told = fields_of(content)
    drafted = {
        name for name, one in told.items() if name in content and one.get("is") == stamp(content[name])
    }
    if "caption" in content and "caption" not in drafted:
        drafted.discard(TRIGGER)
    own = {name: value for name, value in content.items() if name != KEY and name not in drafted}
    return own, {name: value for name, value in content.items() if name in drafted}


def note_of(content: Mapping[str, Any]) -> Mapping[str, Any]:
    """What `prepare` keeps of a song; {} where there is nothing, or something else."""
    note = content.get(KEY)
    return note if isinstance(note, dict) and note.get("version") == VERSION else {}


def fields_of(content: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Drafted field → how it came about."""
    fields = note_of(content).get("fields")
    return {n: one for n, one in fields.items() if isinstance(one, dict)} if isinstance(fields, dict) else {}


def drafts_file(song: Path, folders: Folders) -> Path:
    """The JSON file of a song's name, `song.json`, or `song.wav.json` where that name means another thing."""
    stem = f"{song.stem}.json"
    name = f"{song.name}.json" if stem.lower() in _TAKEN else stem
    return folders.find(song.parent, name) or song.with_name(name)


def read_drafts(path: Path) -> tuple[dict[str, Any], bytes]:
    """What the file has, and its bytes; nothing where there is none.

    DataError for a file that may not be written to: a link, a list, no JSON, another program's; or
    NewerVersionError.
    """
    name = shown(path.name)
    if path.is_symlink():
        raise DataError(f"{name} is a link, which is not written through; put a file in its place")
    try:
        data = read_file(path)
    except FileNotFoundError:
        return {}, b""
    except OSError as error:
        raise DataError(f"{name} cannot be read: {cause(error) if error.errno else error.strerror}") from None
    if is_ours(path):
        raise DataError(f"{name} says how another song was made; rename the song")
    try:
        content = parse_json(data)
    except ValueError as error:
        raise DataError(f"{name}: not JSON ({error}); mend it, or move it away") from None
    if not isinstance(content, dict):
        raise DataError(f"{name}: not a JSON object; move it away")
    if isinstance(note := content.get(KEY), dict):
        refuse_newer(note.get("version"), VERSION, f"{name}: what is drafted in it")
    return content, data


def write_drafts(path: Path, content: Mapping[str, Any], before: bytes) -> None:
    """Write the file, whole or not at all. before: the bytes that it had when it was read.

    DataError when somebody has written to it since; OSError.
    """
    if read_drafts(path)[1] != before:
        raise DataError(f"{shown(path.name)} was changed while the song was measured; run prepare again")
    mode = path.stat().st_mode if before else None
    write_bytes(path, _text(content).encode())
    if mode is not None:
        path.chmod(mode & 0o777)


def _text(content: Mapping[str, Any]) -> str:
    """JSON with a field a line, and a line for each part of what is kept of the drafts."""

    def line(value: Any) -> str:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)

    lines = {name: line(value) for name, value in content.items()}
    if isinstance(note := content.get(KEY), dict):
        parts = ",\n".join(f"    {line(name)}: {line(part)}" for name, part in note.items())
        lines[KEY] = f"{{\n{parts}\n  }}"
    return "{\n" + ",\n".join(f"  {line(name)}: {text}" for name, text in lines.items()) + "\n}\n"
