"""Frames of MPEG audio: where they are, how many there are, and the Xing header that counts them."""

from __future__ import annotations

import mmap
import re
import struct
from collections.abc import Iterator
from typing import NamedTuple

Data = mmap.mmap | bytes

_BITRATES = {  # kbit/s by (MPEG-1, layer), at index 1 …
    (True, 1): (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (True, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (False, 3): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_RATES = {3: (44100, 48000, 32000), 2: (22050, 24000, 16000), 0: (11025, 12000, 8000)}  # by version bits
_ADTS_RATES = (96000, 88200, 64000, 48000, 44100, 32000, 24000, 22050, 16000, 12000, 11025, 8000, 7350)
_SYNC = re.compile(rb"\xff[\xe0-\xff]")


class Frame(NamedTuple):
    """Head of an MPEG audio frame: its size in bytes, its samples per channel, its rate in Hz."""

    size: int
    samples: int
    rate: int
    mono: bool
    layer: int


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
    uniform: bool  # frames of one kind, nothing between them
    layer3: bool  # all of them are MP3


def walk_mp3(data: Data) -> Walk:
    """Count all frames, over tags and whatever else lies between them."""
    count = samples = size = end = 0
    xing: Xing | None = None
    kinds: set[tuple[int, bool, int]] = set()
    uniform = True
    for position, frame in mp3_frames(data):
        kinds.add((frame.rate, frame.mono, frame.layer))
        uniform = uniform and end in (0, position)
        end = position + frame.size
        if not size:
            xing = xing_header(data[position:end])
        if size or xing is None:
            count += 1
            samples += frame.samples
        size += frame.size
    layer3 = {layer for _, _, layer in kinds} == {3}
    return Walk(count, samples, size, xing, uniform and len(kinds) < 2, layer3)


def mp3_frames(data: Data) -> Iterator[tuple[int, Frame]]:
    """Each whole frame with its position."""
    position: int | None = after_tags(data, 0)
    while position is not None:
        frame = mp3_frame(data, position)
        if frame is None:
            position = _next_frame(data, position)
        elif position + frame.size > len(data):
            return
        else:
            yield position, frame
            position += frame.size


def mp3_frame(data: Data, position: int) -> Frame | None:
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
        return Frame((12 * bits // hz + padding) * 4, 384, hz, mono, layer)
    samples = 576 if layer == 3 and not first else 1152
    return Frame(samples // 8 * bits // hz + padding, samples, hz, mono, layer)


def adts_frame(data: Data, position: int) -> Frame | None:
    """The frame of raw AAC whose header stands at `position`, or None. Its layer is 0."""
    head = data[position : position + 7]
    if len(head) < 7 or head[0] != 0xFF or head[1] & 0xF6 != 0xF0:
        return None
    rate, size = head[2] >> 2 & 15, (head[3] & 3) << 11 | head[4] << 3 | head[5] >> 5
    if rate >= len(_ADTS_RATES) or size < 7:
        return None
    channels = (head[2] & 1) << 2 | head[3] >> 6
    return Frame(size, 1024 * (1 + (head[6] & 3)), _ADTS_RATES[rate], channels == 1, 0)


def xing_header(frame: bytes) -> Xing | None:
    """The Xing header in the first frame of a file; None where there is none, or none that counts frames."""
    # It follows the side information: 32 or 17 bytes in MPEG-1, 17 or 9 in MPEG-2.
    for place in (36, 21, 13):
        if frame[place : place + 4] in (b"Xing", b"Info") and len(frame) >= place + 16:
            flags, frames, size = struct.unpack(">III", frame[place + 4 : place + 16])
            return Xing(frames, size if flags & 2 else 0) if flags & 1 else None
    return None


def after_tags(data: Data, position: int) -> int:
    """Behind the ID3v2 tags that start at `position`."""
    while data[position : position + 3] == b"ID3" and len(data) >= position + 10:
        a, b, c, d = (byte & 0x7F for byte in data[position + 6 : position + 10])
        footer = 10 if data[position + 5] & 0x10 else 0
        position += 10 + (a << 21 | b << 14 | c << 7 | d) + footer
    return position


def _next_frame(data: Data, position: int) -> int | None:
    """Where the next frame starts that another one, or the end, follows."""
    position = after_tags(data, position)
    for match in _SYNC.finditer(data, position):
        frame = mp3_frame(data, match.start())
        if frame is not None:
            end = match.start() + frame.size
            if mp3_frame(data, end) is not None or end == len(data):
                return match.start()
    return None


def mp3_parts(data: Data) -> Iterator[bytes]:
    """Runs of frames of one kind, each behind a Xing header that counts them."""
    pieces: list[bytes] = []
    kind: tuple[int, bool] | None = None
    for position, frame in mp3_frames(data):
        body = data[position : position + frame.size]
        xing = xing_header(body)
        if pieces and (xing is not None or kind != (frame.rate, frame.mono)):
            yield _counted(pieces)
            pieces = []
        kind = frame.rate, frame.mono
        pieces.append(body)
    if pieces:
        yield _counted(pieces)


def _counted(frames: list[bytes]) -> bytes:
    """The frames behind a Xing header that counts them: their own where it does."""
    xing = xing_header(frames[0])
    if xing is not None and xing.frames == len(frames) - 1:
        return b"".join(frames)
    frames = frames if xing is None else frames[1:]
    body = b"".join(frames)
    return xing_frame(frames[0], len(frames), len(body)) + body if frames else b""


def xing_frame(like: bytes, frames: int, size: int) -> bytes:
    """A frame of the same kind as `like`, without sound, that counts frames and bytes."""
    # No checksum, the highest bit rate.
    head = bytes([0xFF, like[1] | 1, 0xE0 | like[2] & 0x0C, like[3]])
    frame = mp3_frame(head, 0)
    assert frame is not None
    first = head[1] >> 3 & 3 == 3
    side = (17 if frame.mono else 32) if first else (9 if frame.mono else 17)
    tag = b"Xing" + struct.pack(">III", 3, frames, frame.size + size)
    return (head + bytes(side) + tag).ljust(frame.size, b"\0")
