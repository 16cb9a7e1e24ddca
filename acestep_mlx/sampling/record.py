"""What stays with a song: how it was made, in a JSON file beside it and in the sound file's own tags."""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from .. import __version__
from ..config.request import Request
from ..errors import ConfigError, DataError, NewerVersionError, cause
from ..formatting import count, size
from ..io import schema
from ..io.atomic import write_bytes
from ..io.audio import WRITABLE, resample, write_audio
from ..io.disk import free_space, largest_file
from ..io.ffmpeg import tags
from ..io.filenames import at_home

KEY = "acestep_mlx"
RECORD_VERSION = 1  # of what is under it
RATES = (44100, 48000)  # Hz that a song may be written in
SOFTWARE = f"acestep-mlx {__version__}"
MAX_RECORD_BYTES = 16 << 20  # of a JSON file or of a sound file's tags; ours have some kilobytes

_TAG_BYTES = 1 << 16  # of a beginning and an end, where every format keeps its tags
_OURS = re.compile(rb'acestep-mlx \d|"%b":' % KEY.encode())
_OURS_WIDE = tuple(  # as ID3 and WMA may have it
    text.encode(f"utf-16-{order}") for text in ("acestep-mlx ", f'"{KEY}":') for order in ("le", "be")
)


def default_name(request: Request) -> str:
    """A file name of the prompt's first words, or of the task."""
    words = re.findall(r"\w+", request.prompt.lower())
    return "-".join(words)[:40].strip("-") or request.task


def output_paths(output: str | Path | None, request: Request, suffix: str = ".wav") -> list[Path]:
    """One path for each seed. An output that is a folder (or none) gets names of its own.

    Several songs, and names made here, carry the seed: `slow-jazz-7.wav`. A name without a suffix gets
    `suffix`. Raises DataError for a suffix that cannot be written.
    """
    path = at_home(output) if output is not None else Path()
    named = output is not None and not path.is_dir() and not str(output).endswith(os.sep)
    if named and not path.suffix:
        path = path.with_name(path.name + suffix)
    if named and path.suffix.lower() not in WRITABLE:
        raise DataError(f"{path}: the suffix must be one of {', '.join(WRITABLE)}")
    if named and len(request.seeds) == 1:
        return [path]
    folder, stem, suffix = (
        (path.parent, path.stem, path.suffix) if named else (path, default_name(request), suffix)
    )
    names = [f"{stem}-{seed}" for seed in request.seeds]
    if len(set(names)) < len(names):
        names = [f"{name}-{i}" for i, name in enumerate(names, start=1)]
    return [folder / f"{name}{suffix}" for name in names]


def beside(path: Path, suffix: str = ".json") -> Path:
    """The file that goes with a sound file."""
    return path.with_suffix(suffix)


def check_writable(paths: Sequence[Path], *, force: bool, largest: int = 0) -> None:
    """Find out before the work whether its result can be written. Folders are made.

    largest: bytes that a sound file among `paths` has at most. Raises DataError when a folder cannot take
    files, or not of such a name or size, or when a file is there already and `force` is false.
    """
    for path in paths:
        try:
            if path.is_dir():
                raise DataError(f"{path} is a folder; name a file")
            if path.exists() and not force:
                raise DataError(f"{path} exists; use --force to replace it, or another --output")
        except OSError as error:
            raise DataError(f"{path} cannot be a file: {cause(error)}") from None
    for folder in {path.parent for path in paths}:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            raise DataError(f"{folder} cannot be written to: {cause(error)}") from None
    for path in paths:
        try:
            path.open("xb").close()  # the very name: file systems differ in what they take
            path.unlink()
        except FileExistsError:
            continue
        except OSError as error:
            raise DataError(f"{path} cannot be written: {cause(error)}") from None
    _check_room([path for path in paths if path.suffix.lower() in WRITABLE], largest)


def _check_room(paths: Sequence[Path], largest: int) -> None:
    limit = largest_file()
    if limit is not None and limit < largest:
        raise DataError(
            f"a song takes up to {size(largest)}, and this process may write files of at most "
            f"{size(limit)} (ulimit -f); raise that limit"
        )
    for folder in {path.parent for path in paths}:
        songs = sum(path.parent == folder for path in paths)
        free, needed = free_space(folder), songs * largest
        if free < needed:
            raise DataError(
                f"{folder}: {count(songs, 'song')} may take {size(needed)}, and "
                f"{size(free)} are free; make room or choose another --output"
            )


def save_song(
    path: Path,
    samples: np.ndarray,
    record: Mapping[str, Any],
    *,
    sample_rate: int,
    facts: Mapping[str, Any],
    own_rate: int = RATES[0],
) -> tuple[Path | None, list[str]]:
    """Write (samples, 2) with `record` in its tags, and the record and `facts` as JSON beside it.

    own_rate: Hz of the samples; sample_rate: of the file.

    `facts` (how long it took, …) are not in the sound file, so that equal songs are equal files. A finished
    song is not dropped: where `path` cannot be written it gets another name there, or a place in the working
    directory, at home, or among temporary files.

    Returns where the song is, if anywhere, and what could not be done, a sentence each.
    """
    refused, saved = "", None
    for place in (path, *_other_places(path)):
        try:
            _write_sound(place, samples, record, own_rate, sample_rate)
            saved = place
            break
        except DataError as error:
            refused = refused or str(error)
            if not np.isfinite(samples).all():
                return None, [refused]
    if saved is None:
        return None, [f"{refused}, nor anywhere else"]
    problems = [f"{refused}; the song is in {saved}"] if refused else []
    try:
        _write_story(saved, record, {**facts, "file": saved.name})
    except DataError as error:
        problems.append(f"{error}; what made the song is in its tags")
    return saved, problems


def _other_places(path: Path) -> Iterator[Path]:
    folders = [path.parent]
    for find in (Path.cwd, Path.home, lambda: Path(tempfile.gettempdir())):
        with contextlib.suppress(OSError, RuntimeError):
            folders.append(find())
    for folder in dict.fromkeys(folders):
        for suffix in dict.fromkeys((path.suffix, ".wav")):
            yield folder / f"acestep-song-{secrets.token_hex(3)}{suffix}"


def _write_story(path: Path, record: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
    text = json.dumps({KEY: record, **facts}, ensure_ascii=False, indent=2)
    # a byte of a name that is not UTF-8 becomes `\\udcff`, which JSON has too
    write_beside(path, ".json", f"{text}\n".encode(errors="backslashreplace"))


def _write_sound(
    path: Path, samples: np.ndarray, record: Mapping[str, Any], own_rate: int, sample_rate: int
) -> None:
    if sample_rate not in RATES:
        raise ConfigError(f"sample rate must be {' or '.join(map(str, RATES))}, got {sample_rate}")
    samples = resample(samples, own_rate, sample_rate)
    request = record["request"]
    tags = {
        "title": request["prompt"][:200] or request["task"],
        "software": SOFTWARE,
        "comment": json.dumps({KEY: record}),
    }
    write_audio(path, samples, sample_rate, tags=tags)


def write_beside(path: Path, suffix: str, data: bytes) -> None:
    """Write the file that goes with a sound file, whole or not at all. Raises DataError."""
    target = beside(path, suffix)
    try:
        write_bytes(target, data)
    except OSError as error:
        raise DataError(f"{target} cannot be written: {cause(error)}") from None


RECORD_SCHEMA = schema.record(
    {"request": schema.record({})},
    {
        "version": schema.text,
        "model": schema.record({}, {"path": schema.path_text, "fingerprints": schema.table(schema.text)}),
        "loras": schema.items(
            schema.record(
                {"path": schema.path_text, "scale": schema.number(-100, 100)}, {"sha256": schema.text}
            ),
        ),
        "sample_rate": schema.choice(*RATES),
    },
)


def read_record(path: str | Path) -> dict[str, Any]:
    """The record of a song, from its JSON or from the tags of the sound file itself.

    Raises DataError when there is none in it, or when it is damaged; NewerVersionError for one that only a
    newer version understands. `request` is checked by `Request.from_dict`.
    """
    path = at_home(path)
    try:
        content = schema.parse_json(_text(path))
        record = content[KEY] if isinstance(content, dict) else None
        if not isinstance(record, dict):
            raise ValueError
    except OSError as error:
        raise DataError(f"{path} cannot be read: {cause(error)}") from None
    except (ValueError, KeyError) as error:
        why = f"not JSON: {error}" if error.args and isinstance(error, ValueError) else f"no {KEY!r} in it"
        raise DataError(f"{path} does not say how a song was made ({why})") from None
    try:
        schema.check_version(record.get("format_version", 1), RECORD_VERSION, "the song's record")
        record = {k: v for k, v in record.items() if v is not None}
        RECORD_SCHEMA(record, "")
    except NewerVersionError as error:
        raise NewerVersionError(f"{path}: {error}") from None
    except schema.Mismatch as error:
        raise DataError(f"{path} does not say how a song was made: {error}") from None
    return record


def made_here(path: Path) -> bool:
    """Whether a sound file, of any format, carries the tags that this program writes. Reads its ends only."""
    try:
        with schema.open_file(path) as file:
            if file.read(4) == b"RIFF" and _is_tag(_wav_info(file)):
                return True
            file.seek(0)
            if _is_tag(file.read(_TAG_BYTES)):
                return True
            file.seek(max(0, file.seek(0, os.SEEK_END) - _TAG_BYTES))
            return _is_tag(file.read())
    except OSError:
        return False


def _is_tag(data: bytes) -> bool:
    if b"acestep" in data and _OURS.search(data):
        return True
    return any(text in data for text in _OURS_WIDE)


def _text(path: Path) -> str:
    """The JSON in a file or in a sound file's tags; ValueError where it is far too long to be ours."""
    if path.suffix.lower() in WRITABLE:
        return _comment(path)
    with schema.open_file(path) as file:
        data = file.read(MAX_RECORD_BYTES + 1)
    if len(data) > MAX_RECORD_BYTES:
        raise ValueError
    return data.decode("utf-8-sig")


def _comment(path: Path) -> str:
    if not path.is_file():
        what = "not a file" if path.exists() else "no such file"
        raise DataError(f"{path}: {what}")
    try:
        return tags(path).get("comment", "")
    except DataError as error:
        why = str(error).removeprefix(f"{path}: ")
        raise DataError(f"{path} does not say how a song was made ({why})") from None


def _wav_info(sound: BinaryIO) -> bytes:
    """What is in a RIFF file's INFO lists."""
    found = b""
    sound.seek(12)
    for name, length in _chunks(sound):
        if name == b"LIST" and length <= MAX_RECORD_BYTES:
            body = sound.read(length)
            found += body[4:] if body[:4] == b"INFO" else b""
    return found


def _chunks(file: BinaryIO) -> Iterator[tuple[bytes, int]]:
    """Name and length of each chunk from here on; the file stands at its data."""
    while len(head := file.read(8)) == 8:
        length, start = int.from_bytes(head[4:], "little"), file.tell()
        yield head[:4], length
        file.seek(start + length + length % 2)
