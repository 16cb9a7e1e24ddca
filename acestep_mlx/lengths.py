"""Whether the length that a container states can be believed, from its structure and without decoding.

libsndfile stops at the length that it was told or has guessed. An MP3 without a Xing header, songs joined end
to end and files written to a pipe are longer or shorter than that; for these the sound must be counted.
"""

from __future__ import annotations

import contextlib
import mmap
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

_BITRATES = {  # kbit/s by (MPEG-1, layer), at index 1 …
    (True, 1): (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (True, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (False, 3): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_RATES = {3: (44100, 48000, 32000), 2: (22050, 24000, 16000), 0: (11025, 12000, 8000)}  # by version bits
_SYNC = re.compile(rb"\xff[\xe0-\xff]")
_SLACK = 2  # frames: encoders disagree on whether the Xing frame counts itself
_FLAC_START = re.compile(rb"fLaC[\x00\x80]\x00\x00\x22")  # the magic and the head of STREAMINFO
_FLAC_FRAME, _FLAC_BLOCK = 9, 65535  # the least bytes of a frame, the most samples in it
_UNKNOWN = 1 << 60  # libsndfile's largest number stands for "unknown"


class Doubt(NamedTuple):
    """Why a stated length is not taken.

    whole: libsndfile reads the file to its end all the same. cut: the length is firmly stated, and there is
    less.
    """

    reason: str
    whole: bool = False
    cut: bool = False


class Frame(NamedTuple):
    """Head of an MPEG audio frame: its size in bytes, its samples per channel, its rate in Hz."""

    size: int
    samples: int
    rate: int
    mono: bool


class Xing(NamedTuple):
    """What a Xing header states: frames, not counting its own, and the stream's bytes (0: not stated)."""

    frames: int
    size: int


class Walk(NamedTuple):
    """All whole frames of an MPEG file, and their bytes."""

    frames: int
    samples: int
    size: int
    xing: Xing | None
    uniform: bool  # one rate, one number of channels, nothing between the frames


def doubt(path: Path, form: str, frames: int) -> Doubt | None:
    """Why the number of `frames` that libsndfile gives may be wrong; None when the file states it exactly."""
    if frames <= 0:
        return Doubt("its header says that it holds nothing")
    check = {"MP3": _mp3, "MPEG": _mp3, "OGG": _ogg, "FLAC": _flac}.get(form.upper())
    if check is not None:
        with contextlib.suppress(struct.error), _mapped(path) as data:
            found = check(data, frames)
            if found is not None:
                return found
    return Doubt("its header gives no length") if frames >= _UNKNOWN else None


@contextlib.contextmanager
def _mapped(path: Path) -> Iterator[mmap.mmap]:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        yield data


def _mp3(data: mmap.mmap, frames: int) -> Doubt | None:
    walk = walk_mp3(data)
    xing = walk.xing
    whole = walk.uniform and frames >= walk.samples
    if xing is None:
        return Doubt("it has no Xing header", whole)
    if xing.frames <= walk.frames <= xing.frames + _SLACK:
        return None
    reason = f"its Xing header counts {xing.frames} frames, but there are {walk.frames}"
    cut = walk.frames < xing.frames - _SLACK and not 0 < xing.size <= walk.size
    return Doubt(reason, whole, cut)


def walk_mp3(data: mmap.mmap | bytes) -> Walk:
    """Go from frame to frame, over tags and whatever else lies between them."""
    position = _after_tags(data, 0)
    count = samples = size = 0
    xing: Xing | None = None
    kinds: set[tuple[int, bool]] = set()
    uniform = True
    while True:
        frame = mp3_frame(data, position)
        if frame is None:
            found = _next_frame(data, position)
            if found is None:
                break
            uniform = uniform and not size
            position = found
            continue
        if position + frame.size > len(data):
            break
        kinds.add((frame.rate, frame.mono))
        if not size and (xing := xing_header(data[position : position + frame.size])) is not None:
            count -= 1
            samples -= frame.samples
        count += 1
        samples += frame.samples
        size += frame.size
        position += frame.size
    return Walk(count, samples, size, xing, uniform and len(kinds) < 2)


def mp3_frame(data: mmap.mmap | bytes, position: int) -> Frame | None:
    """The frame whose header stands at `position`, or None. Free-format frames are not known."""
    head = data[position : position + 4]
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE0 != 0xE0:
        return None
    version, layer = head[1] >> 3 & 3, 4 - (head[1] >> 1 & 3)
    bitrate, rate, padding = head[2] >> 4, head[2] >> 2 & 3, head[2] >> 1 & 1
    if version == 1 or layer == 4 or bitrate in (0, 15) or rate == 3:
        return None
    first = version == 3
    hz, bits = _RATES[version][rate], 1000 * _BITRATES[first, layer][bitrate - 1]
    mono = head[3] >> 6 == 3
    if layer == 1:
        return Frame((12 * bits // hz + padding) * 4, 384, hz, mono)
    samples = 576 if layer == 3 and not first else 1152
    return Frame(samples // 8 * bits // hz + padding, samples, hz, mono)


def xing_header(frame: bytes) -> Xing | None:
    """The Xing header in the first frame of a file; None where there is none, or none that counts frames."""
    # It follows the side information: 32 or 17 bytes in MPEG-1, 17 or 9 in MPEG-2.
    for place in (36, 21, 13):
        if frame[place : place + 4] in (b"Xing", b"Info") and len(frame) >= place + 16:
            flags, frames, size = struct.unpack(">III", frame[place + 4 : place + 16])
            return Xing(frames, size if flags & 2 else 0) if flags & 1 else None
    return None


def _after_tags(data: mmap.mmap | bytes, position: int) -> int:
    """Behind the ID3v2 tags that start at `position`."""
    while data[position : position + 3] == b"ID3" and len(data) >= position + 10:
        a, b, c, d = (byte & 0x7F for byte in data[position + 6 : position + 10])
        footer = 10 if data[position + 5] & 0x10 else 0
        position += 10 + (a << 21 | b << 14 | c << 7 | d) + footer
    return position


def _next_frame(data: mmap.mmap | bytes, position: int) -> int | None:
    """Where the next frame starts that another one, or the end, follows."""
    position = _after_tags(data, position)
    for match in _SYNC.finditer(data, position):
        frame = mp3_frame(data, match.start())
        if frame is not None:
            end = match.start() + frame.size
            if mp3_frame(data, end) is not None or end == len(data):
                return match.start()
    return None


def _ogg(data: mmap.mmap, _: int) -> Doubt | None:
    position, begun, gap = data.find(b"OggS"), False, False
    numbers: dict[int, int] = {}  # the next page of each stream
    links = 1
    while 0 <= position <= len(data) - 27:
        flags, serial, number = data[position + 5], *struct.unpack_from("<II", data, position + 14)
        if flags & 2:  # a stream begins
            links += begun
            begun = False
        else:
            begun = True
            gap = gap or numbers.get(serial, number) != number
        numbers[serial] = number + 1
        segments = data[position + 26]
        end = position + 27 + segments + sum(data[position + 27 : position + 27 + segments])
        position = end if data[end : end + 4] == b"OggS" else data.find(b"OggS", end)
    if links > 1:
        return Doubt(f"{links} songs are joined in it")
    return Doubt("pages of it are missing, so its times mean nothing") if gap else None


def _flac(data: mmap.mmap, _: int) -> Doubt | None:
    starts = [match.end() for match in _FLAC_START.finditer(data)]
    if not starts:
        return None
    total = struct.unpack_from(">Q", data, starts[0] + 10)[0] & (1 << 36) - 1  # samples, 0: unknown
    if not total:
        return Doubt("its header gives no length")
    if total > len(data) // _FLAC_FRAME * _FLAC_BLOCK:
        return Doubt("its header gives an impossible length")
    return Doubt(f"{len(starts)} songs are joined in it") if len(starts) > 1 else None
