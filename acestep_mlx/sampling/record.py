"""What stays with a song: how it was made, in a JSON file beside it and in the sound file's own tags."""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .. import __version__
from ..audio import WRITABLE, resample, write_audio
from ..errors import ConfigError, DataError
from .request import Request

KEY = "acestep_mlx"
RATES = (44100, 48000)


def default_name(request: Request) -> str:
    """A file name of the prompt's first words, or of the task."""
    words = re.findall(r"\w+", request.prompt.lower())
    return "-".join(words)[:40].strip("-") or request.task


def output_paths(output: str | Path | None, request: Request, suffix: str = ".wav") -> list[Path]:
    """One path for each seed. An output that is a folder (or none) gets names of its own.

    Several songs, and names made here, carry the seed: `slow-jazz-7.wav`. Raises DataError for a suffix that
    cannot be written.
    """
    path = Path(output).expanduser() if output is not None else Path()
    named = output is not None and not path.is_dir() and not str(output).endswith(os.sep)
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


def check_writable(paths: Sequence[Path], *, force: bool) -> None:
    """Find out before the work whether its result can be written. Folders are made.

    Raises DataError when a folder cannot take files, or when a file is there already and `force` is false.
    """
    for path in paths:
        if path.is_dir():
            raise DataError(f"{path} is a folder; name a file")
        if path.exists() and not force:
            raise DataError(f"{path} exists; use --force to replace it, or another --output")
    for folder in {path.parent for path in paths}:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            raise DataError(f"{folder} cannot be written to: {error.strerror or error}") from None


def write_song(
    path: Path, samples: np.ndarray, record: Mapping[str, Any], *, sample_rate: int, facts: Mapping[str, Any]
) -> None:
    """Write (samples, 2) at 44.1 kHz with `record` in its tags, and the record and `facts` as JSON beside it.

    `facts` (how long it took, …) are not in the sound file, so that equal songs are equal files.
    """
    if sample_rate not in RATES:
        raise ConfigError(f"sample rate must be {' or '.join(map(str, RATES))}, got {sample_rate}")
    samples = resample(samples, 44100, sample_rate)
    request = record["request"]
    tags = {
        "title": request["prompt"][:200] or request["task"],
        "software": f"acestep-mlx {__version__}",
        "comment": json.dumps({KEY: record}),
    }
    write_audio(path, samples, sample_rate, tags=tags)
    text = json.dumps({KEY: record, **facts}, ensure_ascii=False, indent=2)
    write_beside(path, ".json", f"{text}\n".encode())


def write_beside(path: Path, suffix: str, data: bytes) -> None:
    """Write the file that goes with a sound file, whole or not at all. Raises DataError."""
    target = beside(path, suffix)
    partial = path.with_name(f".{target.name}.part")
    try:
        partial.write_bytes(data)
        partial.replace(target)
    except OSError as error:
        raise DataError(f"{target} cannot be written: {error.strerror or error}") from None
    finally:
        partial.unlink(missing_ok=True)


def read_record(path: str | Path) -> dict[str, Any]:
    """The record of a song, from its JSON or from the tags of the sound file itself.

    Raises DataError when there is none in it.
    """
    path = Path(path).expanduser()
    try:
        text = _comment(path) if path.suffix.lower() in WRITABLE else path.read_text(encoding="utf-8")
        record = json.loads(text)[KEY]
        if not isinstance(record, dict) or not isinstance(record["request"], dict):
            raise TypeError
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from None
    except (ValueError, KeyError, TypeError):
        raise DataError(f"{path} does not say how a song was made (no {KEY!r} request in it)") from None
    return record


def _comment(path: Path) -> str:
    import soundfile

    if not path.is_file():
        raise DataError(f"{path}: no such file")
    if path.suffix.lower() == ".wav":  # libsndfile does not read back comments above 2 KB
        return _wav_comment(path.read_bytes())
    try:
        with soundfile.SoundFile(str(path)) as file:
            return file.comment
    except (soundfile.LibsndfileError, RuntimeError) as error:
        raise DataError(f"{path} cannot be read: {error}") from None


def _wav_comment(data: bytes) -> str:
    """The ICMT text of a RIFF file's INFO list, or an empty string."""
    for name, body in _chunks(data[12:]):
        if name == b"LIST" and body[:4] == b"INFO":
            for field, text in _chunks(body[4:]):
                if field == b"ICMT":
                    return text.rstrip(b"\0").decode("utf-8")
    return ""


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = 0
    while at + 8 <= len(data):
        size = int.from_bytes(data[at + 4 : at + 8], "little")
        yield data[at : at + 4], data[at + 8 : at + 8 + size]
        at += 8 + size + size % 2
