"""Whether the length that a container states can be believed, from its structure and without decoding.

libsndfile stops at the length that it was told. Songs joined end to end and files written to a pipe are
longer or shorter than that. Their sound must be counted: libsndfile reads them one by one, with headers that
are mended in memory (`parts`); FFmpeg reads what cannot be mended.
"""

from __future__ import annotations

import contextlib
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from . import ffmpeg
from .mpeg import Data, mapped

_FLAC_START = re.compile(rb"fLaC[\x00\x80]\x00\x00\x22")  # the magic and the head of STREAMINFO
_STRAY = 1 << 12  # bytes behind the samples that may be anything
_MENDED = 1 << 30  # bytes of a file that is mended in memory
_SAMPLES = ("PCM", "FLOAT", "DOUBLE", "ULAW", "ALAW")  # codings of single samples
PLACEHOLDERS = (0x7FFF0000, 0xFFFF0000)  # sizes from here on that writers to a pipe leave in the header
W64 = bytes.fromhex("726966662e91cf11a5d628db04c10000")
ASF = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")
_ASF_FILE = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")  # its object of sizes
_ASF_DATA = bytes.fromhex("3626b2758e66cf11a6d900aa0062ce6c")  # its object of sound
_CAF_CHUNKS = (b"desc", b"data", b"pakt", b"chan", b"kuki", b"info", b"free", b"uuid")
_ASF_HEAD = 1 << 16  # bytes in which that stands
_UNKNOWN = 1 << 60  # libsndfile's largest number stands for "unknown"


class Doubt(NamedTuple):
    """Why a stated length is not taken.

    decoder: what reads the file to its end: "soundfile", which is not led astray, "parts": the same on the
    file's `parts`, or "ffmpeg".
    """

    reason: str
    decoder: str = "ffmpeg"


def doubt(path: Path, form: str, coding: str, frames: int) -> Doubt | None:
    """Why the number of `frames` that libsndfile gives may be wrong; None when the file states it exactly.

    form, coding: libsndfile's names of the format and its subtype.
    """
    checks = {"FLAC": _flac, "WAV": _wav, "WAVEX": _wav, "RF64": _wav}
    check = checks.get(form.upper(), _any)
    found = None
    with contextlib.suppress(struct.error), mapped(path) as data:
        if len(songs := chunk_songs(data)[0]) > 1:
            return Doubt(f"{len(songs)} songs are joined in it", "parts")
        found = check(path, data, frames)
    if found is None and check in (_any, _wav) and not coding.startswith(_SAMPLES) and frames > 0:
        return Doubt(f"it holds {coding}, whose length is stated to a block only", "soundfile")
    return found


def _any(_: Path, data: Data, frames: int) -> Doubt | None:
    if frames <= 0:
        return Doubt("its header says that it holds nothing")
    return Doubt("its header gives no length", "soundfile") if frames >= _UNKNOWN else None


def _wav(path: Path, data: Data, frames: int) -> Doubt | None:
    """No frames are the truth about a wav whose chunks lead to its end."""
    position = wav_data(data)
    if frames > 0 and position is not None and _goes_on(data, position) and len(data) <= _MENDED:
        return Doubt("sound goes on behind the size that its header gives", "parts")
    if frames > 0 or position is None:
        return _any(path, data, frames)
    position += 4
    while position + 8 <= len(data) and _is_name(data[position : position + 4]):
        size = struct.unpack_from("<I", data, position + 4)[0]
        position += 8 + size + size % 2
    if position in (len(data), len(data) + 1):
        return None
    return Doubt("its header says that it holds nothing", "parts" if len(data) <= _MENDED else "ffmpeg")


def _goes_on(data: Data, position: int) -> bool:
    """Whether the RIFF size covers what stands behind the samples, and that is no chunk and no padding."""
    size, whole = (struct.unpack_from("<I", data, at)[0] for at in (position, 4))
    end = position + 4 + size + size % 2
    return (
        data[:4] == b"RIFF"
        and end + _STRAY < 8 + whole <= len(data) + 1
        and not _is_name(data[end : end + 4])
        and any(data[end : end + _STRAY])
    )


def chunked(path: Path) -> tuple[int, int]:
    """How many songs in formats of chunks stand end to end, and at which byte the last one says it ends.

    (0, 0) for other formats; 0 bytes where the size is not stated.
    """
    with contextlib.suppress(ValueError, struct.error), mapped(path) as data:  # ValueError: an empty file
        starts, end = chunk_songs(data)
        return len(starts), end or 0
    return 0, 0


def chunk_songs(data: Data) -> tuple[list[int], int | None]:
    """Where each of the joined songs starts, and where the last ends by its own header."""
    starts: list[int] = []
    end: int | None = 0
    while end is not None and end < len(data) and (size := _chunks_size(data, end)) is not None:
        starts.append(end)
        end = end + size if size else None
    return starts, end


def _chunks_size(data: Data, at: int) -> int | None:
    """Bytes of the song in chunks that begins there; 0 where it does not say, None where none begins."""
    head, kind = data[at : at + 28], data[at + 8 : at + 12]
    if len(head) < 28:
        return None
    if head[:4] in (b"RIFF", b"FORM") and kind in (b"WAVE", b"AIFF", b"AIFC"):
        (size,) = struct.unpack_from("<I" if kind == b"WAVE" else ">I", head, 4)
        # Writers to a pipe leave 0 or a largest number; the last padding byte may be missing.
        unknown = not size or any(low <= size <= low + 0x20000 for low in PLACEHOLDERS)
        return 0 if unknown else 8 + size + size % 2
    if head[:4] in (b"RF64", b"BW64") and head[12:16] == b"ds64":
        (size,) = struct.unpack_from("<Q", head, 20)
        return 8 + size + size % 2 if 0 < size < _UNKNOWN else 0
    if head[:16] == W64:
        (size,) = struct.unpack_from("<Q", head, 16)
        return size if 40 <= size < _UNKNOWN else 0
    if head[:4] == b".snd":
        offset, size = struct.unpack_from(">II", head, 4)
        return offset + size if 0 < size < 0xFFFFFFFF else 0
    if head[:4] == b"caff":
        return _caf_size(data, at)
    if head[:16] == ASF:
        return _asf_size(data, at)
    return None


def _caf_size(data: Data, at: int) -> int:
    position = at + 8
    while position + 12 <= len(data) and _is_name(data[position : position + 4]):
        if data[position : position + 4] == b"caff":  # the next song
            break
        (size,) = struct.unpack_from(">q", data, position + 4)
        if size < 0:
            return 0
        if position + 12 + size > len(data) and data[position : position + 4] not in _CAF_CHUNKS:
            break  # no chunk: a tag or another format
        position += 12 + size
    return position - at


def _asf_size(data: Data, at: int) -> int:
    """A WMA's objects one by one: an index that is missing at the end is no loss."""
    flags = data.find(_ASF_FILE, at, at + _ASF_HEAD)
    if (
        flags >= 0 and len(data) >= flags + 92 and data[flags + 88] & 1
    ):  # a broadcast, whose sizes mean nothing
        return 0
    position = at
    while position + 24 <= len(data) and (position == at or data[position : position + 16] != ASF):
        (size,) = struct.unpack_from("<Q", data, position + 16)
        if not 24 < size <= len(data) - position and data[position : position + 16] not in (ASF, _ASF_DATA):
            break  # no object, or an index that is cut
        if not 24 < size < _UNKNOWN:
            return 0
        position += size
    return position - at


def joined_samples(path: Path) -> bool:
    """Whether the file is several wavs, AIFFs or the like end to end, which libsndfile reads one by one."""
    with contextlib.suppress(ValueError), mapped(path) as data:
        return len(chunk_songs(data)[0]) > 1 and data[:16] != ASF
    return False


def mp4_songs(path: Path) -> int:
    """How many MP4 files are joined in this one; FFmpeg reads the first."""
    with mapped(path) as data:
        return sum(name == b"ftyp" for name, _ in mp4_atoms(data))


def mp4_atoms(data: Data) -> Iterator[tuple[bytes, int]]:
    """Name and end of each atom; the end of one that goes on to the file's is 0."""
    position = 0
    while position + 16 <= len(data):
        size, name = struct.unpack_from(">I4s", data, position)
        size = struct.unpack_from(">Q", data, position + 8)[0] if size == 1 else size
        yield name, position + size if size >= 8 else 0
        if size < 8:
            return
        position += size


def wav_data(data: Data) -> int | None:
    """Where the size of a wav's samples stands."""
    position = 12
    while (
        position + 8 <= len(data)
        and data[:4] in (b"RIFF", b"RF64")
        and _is_name(data[position : position + 4])
    ):
        if data[position : position + 4] == b"data":
            return position + 4
        size = struct.unpack_from("<I", data, position + 4)[0]
        position += 8 + size + size % 2
    return None


def _is_name(name: bytes) -> bool:
    return all(0x20 <= byte < 0x7F for byte in name)


def _flac(path: Path, data: Data, frames: int) -> Doubt | None:
    starts = flac_starts(data)
    if len(starts) != 1:
        return Doubt(f"{len(starts)} songs are joined in it")
    stated, there = _flac_stated(data, starts[0]), ffmpeg.packets(path).frames
    if there is None:  # programs that join songs leave the frames' numbers as they were
        return Doubt("several pieces are joined in it")
    if not stated:
        return Doubt("its header gives no length", "parts")
    if there != stated:
        return Doubt(f"its header counts {stated} samples, but there are {there}", "parts")
    return _any(path, data, frames)


def flac_starts(data: Data) -> list[int]:
    """Where each of the joined songs starts."""
    return [match.start() for match in _FLAC_START.finditer(data)]


def _flac_stated(data: Data, start: int) -> int:
    """Samples that the song's header counts, 0 where it does not."""
    return int(struct.unpack_from(">Q", data, start + 18)[0]) & (1 << 36) - 1


def parts(path: Path, form: str) -> Iterator[bytes]:
    """The songs that are joined in a file, each as a file that libsndfile reads to its end."""
    with mapped(path) as data:
        yield from [_counted_flac(path, data)] if form == "flac" else _wav_parts(data)


def _counted_flac(path: Path, data: Data) -> bytes:
    """The song with the samples that it holds in its header."""
    (start,), there = flac_starts(data), ffmpeg.packets(path).frames or 0
    (kept,) = struct.unpack_from(">Q", data, start + 18)
    return data[start : start + 18] + struct.pack(">Q", kept >> 36 << 36 | there) + data[start + 26 :]


def _wav_parts(data: Data) -> Iterator[bytes]:
    """The songs, or the one wav with its own size in its headers: it is taken to be samples to its end."""
    starts, _ = chunk_songs(data)
    if len(starts) > 1:
        for start, end in zip(starts, [*starts[1:], len(data)], strict=True):
            yield data[start:end]
        return
    whole = bytearray(data[:])
    size = wav_data(data)
    assert size is not None
    if whole[:4] == b"RF64":  # its sizes stand in a chunk of their own
        whole[:4], whole[12:16] = b"RIFF", b"JUNK"
    whole[4:8] = struct.pack("<I", len(data) - 8)
    whole[size : size + 4] = struct.pack("<I", len(data) - size - 4)
    yield bytes(whole)
