"""Whether the length that a container states can be believed, from its structure and without decoding.

libsndfile stops at the length that it was told or has guessed. An MP3 without a Xing header, songs joined end
to end and files written to a pipe are longer or shorter than that. Their sound must be counted: libsndfile
reads them one by one, with headers that are mended in memory (`parts`); FFmpeg reads what cannot be mended.
"""

from __future__ import annotations

import contextlib
import mmap
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from . import ogg_times
from .mpeg import Data, mp3_parts, walk_mp3
from .schema import open_file

_SLACK = 2  # frames: encoders disagree on whether the Xing frame counts itself
_FLAC_START = re.compile(rb"fLaC[\x00\x80]\x00\x00\x22")  # the magic and the head of STREAMINFO
_FLAC_SYNC = re.compile(rb"\xff[\xf8\xf9]")
_FLAC_HEAD, _FLAC_TAIL = 17, 1 << 22  # bytes of a frame's header, and at the end that hold the last frame
FLAC_FRAME = 1 << 17  # bytes of a FLAC frame where the header does not state the longest
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
    file's `parts`, or "ffmpeg". cut: the length is firmly stated, and there is less.
    """

    reason: str
    decoder: str = "ffmpeg"
    cut: bool = False


def doubt(path: Path, form: str, coding: str, frames: int) -> Doubt | None:
    """Why the number of `frames` that libsndfile gives may be wrong; None when the file states it exactly.

    form, coding: libsndfile's names of the format and its subtype.
    """
    checks = {"MP3": _mp3, "MPEG": _mp3, "OGG": _ogg, "FLAC": _flac, "WAV": _wav, "WAVEX": _wav, "RF64": _wav}
    check = checks.get(form.upper(), _any)
    found = None
    with contextlib.suppress(struct.error), mapped(path) as data:
        if len(songs := chunk_songs(data)[0]) > 1:
            return Doubt(f"{len(songs)} songs are joined in it", "parts")
        found = check(data, frames)
    if found is None and check in (_any, _wav) and not coding.startswith(_SAMPLES) and frames > 0:
        return Doubt(f"it holds {coding}, whose length is stated to a block only", "soundfile")
    return found


@contextlib.contextmanager
def mapped(path: Path) -> Iterator[mmap.mmap]:
    with open_file(path) as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        yield data


def _any(_: Data, frames: int) -> Doubt | None:
    if frames <= 0:
        return Doubt("its header says that it holds nothing")
    return Doubt("its header gives no length", "soundfile") if frames >= _UNKNOWN else None


def _wav(data: Data, frames: int) -> Doubt | None:
    """No frames are the truth about a wav whose chunks lead to its end."""
    position = wav_data(data)
    if frames > 0 and position is not None and _goes_on(data, position) and len(data) <= _MENDED:
        return Doubt("sound goes on behind the size that its header gives", "parts")
    if frames > 0 or position is None:
        return _any(data, frames)
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


def _mp3(data: Data, frames: int) -> Doubt | None:
    walk = walk_mp3(data)
    xing, decoder = walk.xing, "parts"
    if not walk.layer3:  # the other layers have no Xing header
        decoder = "soundfile" if walk.uniform and 0 < walk.samples <= frames else "ffmpeg"
    if xing is None:
        return Doubt("it has no Xing header", decoder)
    if xing.frames <= walk.frames <= xing.frames + _SLACK:
        return None if walk.uniform else Doubt("something lies between its frames", decoder)
    reason = f"its Xing header counts {xing.frames} frames, but there are {walk.frames}"
    return Doubt(reason, decoder, walk.frames < xing.frames - _SLACK and not 0 < xing.size <= walk.size)


def _ogg(data: Data, frames: int) -> Doubt | None:
    links, gap = _ogg_links(data)
    if rate := next(ogg_times.opus_rates(data, 0, len(data)), None):
        return Doubt(f"its header speaks of {rate[1]} Hz, and Opus is {ogg_times.OPUS_RATE}", "parts")
    if gap and len(links) < 2:
        return Doubt("pages of it are missing, so its times mean nothing", "soundfile")
    if len(links) > 1:
        return Doubt(f"{len(links)} songs are joined in it", "parts")
    found = ogg_times.times(data, 0, len(data))
    if found is not None and found.stated != found.total:
        return Doubt(f"its times count {found.stated} samples, but there are {found.total}", "parts")
    if found is not None and not found.believed:
        return Doubt("its last page is not marked as the last", "parts")
    return _any(data, frames)


def _ogg_links(data: Data) -> tuple[list[int], bool]:
    """Where each of the joined songs starts, and whether pages are missing."""
    position, begun, gap = data.find(b"OggS"), True, False
    numbers: dict[int, int] = {}  # the next page of each stream
    links: list[int] = []
    while 0 <= position <= len(data) - 27:
        flags, serial, number = data[position + 5], *struct.unpack_from("<II", data, position + 14)
        if flags & 2:  # a stream begins
            links += [position] if begun else []
            begun = False
        else:
            begun = True
            gap = gap or numbers.get(serial, number) != number
        numbers[serial] = number + 1
        segments = data[position + 26]
        end = position + 27 + segments + sum(data[position + 27 : position + 27 + segments])
        position = end if data[end : end + 4] == b"OggS" else data.find(b"OggS", end)
    return links, gap


def _flac(data: Data, frames: int) -> Doubt | None:
    songs = list(flac_songs(data))
    if len(songs) > 1:
        return Doubt(f"{len(songs)} songs are joined in it", "parts")
    for start, end, stated, there in songs:
        if (runs := len(list(_flac_runs(data, start, end)))) > 1:
            return Doubt(f"{runs} pieces are joined in it", "parts")
        if not stated:
            return Doubt("its header gives no length", "parts" if there else "soundfile")
        if there is not None and there != stated:
            return Doubt(f"its header counts {stated} samples, but there are {there}", "parts")
    return _any(data, frames)


def flac_songs(data: Data) -> Iterator[tuple[int, int, int, int | None]]:
    """Start, end, samples that the header states (0: none), samples by the frames' numbers, of each song."""
    starts = [match.start() for match in _FLAC_START.finditer(data)]
    for start, end in zip(starts, [*starts[1:], len(data)], strict=True):
        stated = struct.unpack_from(">Q", data, start + 18)[0] & (1 << 36) - 1
        yield start, end, stated, _flac_samples(data, start, end)


def _flac_runs(data: Data, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Start, end and samples of each piece of a song whose frames are numbered in a row.

    Programs that join songs without coding them again leave the frames' numbers as they were.
    """
    begin, block, first = _flac_first(data, start, end)
    if first is None:
        return
    head, frame, number = begin, first, first.sample
    for match in _FLAC_SYNC.finditer(data, begin + 1, end):
        at = match.start()
        found = _flac_frame(data[at : at + _FLAC_HEAD], block)
        if found is None or found.kind != first.kind:
            continue
        if found.sample != frame.sample + frame.size:
            if at - head > FLAC_FRAME or crc16(data[head:at]):  # no frame: the one before does not end here
                continue
            yield begin, at, frame.sample + frame.size - number
            begin, number = at, found.sample
        head, frame = at, found
    yield begin, end, frame.sample + frame.size - number


def _flac_samples(data: Data, start: int, end: int) -> int | None:
    """From the first frame to the end of the last, or None where they cannot be found."""
    position, block, first = _flac_first(data, start, end)
    tail = max(position, end - _FLAC_TAIL)
    return next((samples for _, samples in _flac_counts(data, tail, end, block, first)), None)


def flac_last(data: Data, start: int, end: int, stated: int) -> int | None:
    """Where the frame begins with which the song has as many samples as are stated (0: the last frame)."""
    position, block, first = _flac_first(data, start, end)
    counts = _flac_counts(data, position, end, block, first)
    return next((head for head, samples in counts if samples == stated or not stated), None)


def _flac_first(data: Data, start: int, end: int) -> tuple[int, int, FlacFrame | None]:
    """The first frame's place, the samples of frames that are only numbered, and its header."""
    (block,) = struct.unpack_from(">H", data, start + 8)
    position, last = start + 4, False
    while not last and position < end:
        last = bool(data[position] & 0x80)
        position += 4 + int.from_bytes(data[position + 1 : position + 4], "big")
    return position, block, _flac_frame(data[position : position + _FLAC_HEAD], block)


def _flac_counts(
    data: Data, start: int, end: int, block: int, first: FlacFrame | None
) -> Iterator[tuple[int, int]]:
    """From the last on: where each frame begins, and the song's samples up to its end."""
    for match in reversed(list(_FLAC_SYNC.finditer(data, start, end))):
        frame = _flac_frame(data[match.start() : match.start() + _FLAC_HEAD], block)
        if first is not None and frame is not None and frame.kind == first.kind:
            yield match.start(), frame.sample + frame.size - first.sample


class FlacFrame(NamedTuple):
    """Number of its first sample, samples in it, and what all frames of a song share."""

    sample: int
    size: int
    kind: tuple[int, int, int]


def _flac_frame(head: bytes, block: int) -> FlacFrame | None:
    """A frame's header, whose checksum must be right. `block`: samples of frames that are only numbered."""
    head = head.ljust(_FLAC_HEAD, b"\0")  # the last frame may be shorter
    if not _FLAC_SYNC.match(head) or not head[2] >> 4:
        return None
    # The number is written as UTF-8 writes characters, in up to seven bytes.
    more = next((n for n in range(8) if not head[4] << n & 0x80), 8)
    number = head[4] & (0x7F >> more)
    length = max(1, more)
    for byte in head[5 : 4 + length]:
        number = number << 6 | byte & 0x3F
    at, code = 4 + length, head[2] >> 4
    if code in (6, 7):
        size = int.from_bytes(head[at : at + code - 5], "big") + 1
        at += code - 5
    else:
        size = 192 if code == 1 else 576 << code - 2 if code < 6 else 256 << code - 8
    at += {12: 1, 13: 2, 14: 2}.get(head[2] & 15, 0)
    if more in (1, 8) or _crc8(head[:at]) != head[at]:
        return None
    sample = number * block if head[1] == 0xF8 else number
    return FlacFrame(sample, size, (head[1], head[2] & 15, head[3] & 0x0E))


def _crc8(data: bytes) -> int:
    crc = 0
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc << 1 ^ (0x107 if crc & 0x80 else 0)
    return crc


def _crc16_of(byte: int) -> int:
    crc = byte << 8
    for _ in range(8):
        crc = crc << 1 ^ (0x18005 if crc & 0x8000 else 0)
    return crc


CRC16 = tuple(map(_crc16_of, range(256)))


def crc16(data: bytes) -> int:
    """FLAC's checksum of a frame; 0 for a frame with its own behind it."""
    crc = 0
    for byte in data:
        crc = (crc << 8 & 0xFF00) ^ CRC16[crc >> 8 ^ byte]
    return crc


def parts(path: Path, form: str) -> Iterator[bytes]:
    """The songs that are joined in a file, each as a file that libsndfile reads to its end."""
    cut = {"mp3": mp3_parts, "mpeg": mp3_parts, "ogg": _ogg_parts, "flac": _flac_parts}.get(form, _wav_parts)
    with mapped(path) as data:
        yield from cut(data)


def _ogg_parts(data: Data) -> Iterator[bytes]:
    links, _ = _ogg_links(data)
    for start, end in zip(links, [*links[1:], len(data)], strict=True):
        yield ogg_times.mended(data, start, end)


def _flac_parts(data: Data) -> Iterator[bytes]:
    """The songs, or their pieces, with the samples that they hold in their headers."""
    for start, end, stated, there in flac_songs(data):
        sound = _flac_first(data, start, end)[0]
        (kept,) = struct.unpack_from(">Q", data, start + 18)
        runs = list(_flac_runs(data, start, end))
        if len(runs) < 2:
            runs = [(sound, end, stated if there is None else there)]
        for begin, last, total in runs:
            head = data[start : start + 18] + struct.pack(">Q", kept >> 36 << 36 | total)
            yield head + data[start + 26 : sound] + data[begin:last]


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
