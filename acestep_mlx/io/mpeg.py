"""Frames of MPEG audio: where they are, and what the Xing header before them promises."""

from __future__ import annotations

import contextlib
import mmap
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from .schema import open_file

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
_TAG = re.compile(rb"ID3[\x02-\x04]\x00[\x00-\xf0][\x00-\x7f]{4}")
_SYNC = re.compile(rb"\xff[\xe0-\xff]")


class Frame(NamedTuple):
    """Head of an MPEG audio frame: its size in bytes, its samples per channel, its rate in Hz."""

    size: int
    samples: int
    rate: int
    mono: bool
    layer: int


@contextlib.contextmanager
def mapped(path: Path) -> Iterator[mmap.mmap]:
    with open_file(path) as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        yield data


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


def cut_by_xing(data: Data) -> bool | None:
    """Whether the file has fewer bytes than its Xing header says; None where none counts its frames.

    One that has all of them holds that sound at least, and more where songs are joined.
    """
    position, frame = next(mp3_frames(data), (0, None))
    if frame is None or (head := _xing(data, position)) is None:
        return None
    flags, _, size = struct.unpack(">III", head)
    return not (flags & 2 and size <= len(data) - position) if flags & 1 else None


def _xing(data: Data, position: int) -> bytes | None:
    """The Xing header in the frame at `position`: its flags, its number of frames and of bytes."""
    # It follows the side information: 32 or 17 bytes in MPEG-1, 17 or 9 in MPEG-2.
    for place in (36, 21, 13):
        head = data[position + place : position + place + 16]
        if head[:4] in (b"Xing", b"Info") and len(head) == 16:
            return head[4:]
    return None


def after_xing(data: Data, position: int) -> int:
    """Behind the frame at `position` if it holds a Xing header, and so no sound."""
    frame = mp3_frame(data, position)
    return position if frame is None or _xing(data, position) is None else position + frame.size


def after_tags(data: Data, position: int) -> int:
    """Behind the ID3v2 tags that start at `position`."""
    while data[position : position + 3] == b"ID3" and len(data) >= position + 10:
        a, b, c, d = (byte & 0x7F for byte in data[position + 6 : position + 10])
        footer = 10 if data[position + 5] & 0x10 else 0
        position += 10 + (a << 21 | b << 14 | c << 7 | d) + footer
    return position


def after_tag(data: Data, position: int, tag: int | None) -> tuple[int, int | None]:
    """Behind one tag or zeros, if they begin there; and where the ID3v2 tags before that place begin."""
    if (after := after_tags(data, position)) > position:
        return after, position if tag is None else tag
    head = data[position : position + 24]
    if head[:1] == b"\0":
        match = re.compile(rb"\0+").match(data, position)
        return (match.end() if match else position), tag
    if head[:8] == b"APETAGEX" and len(head) == 24 and head[23] & 0x20:  # its header, not its footer
        return position + 32 + struct.unpack_from("<I", head, 12)[0], None
    if head[:3] == b"TAG":
        return position + (227 if head[3:4] == b"+" else 128), None
    if head[:11] == b"LYRICSBEGIN":
        ends = [at for end in (b"LYRICS200", b"LYRICSEND") if (at := data.find(end, position)) >= 0]
        return (min(ends) + 9, None) if ends else (position, tag)
    return position, tag


def sound_end(data: Data) -> int:
    """Where the tags and zeros at the file's end begin: ID3v1, Lyrics3, and APE with its footer."""
    end, before = len(data), -1
    while end != before:
        before = end
        if data[end - 128 : end - 125] == b"TAG":
            end -= 128
        elif data[end - 9 : end] == b"LYRICS200" and data[end - 15 : end - 9].isdigit():
            end -= 15 + int(data[end - 15 : end - 9])
        elif data[end - 32 : end - 24] == b"APETAGEX":
            (size, _, flags) = struct.unpack_from("<III", data, end - 20)
            end -= size + (32 if flags & 1 << 31 else 0)
        else:
            block = data[max(0, end - 4096) : end]
            end -= len(block) - len(block.rstrip(b"\0"))
        if not 0 <= end <= before:
            return before
    return end


def tags_within(data: Data, position: int) -> Iterator[int]:
    """Where each ID3v2 tag begins from `position` on."""
    while (match := _TAG.search(data, position)) is not None:
        yield match.start()
        position = after_tags(data, match.start())


def crc16(frame: bytes) -> int:
    """0 where the frame of a FLAC is whole and nothing stands behind it: its checksum ends it."""
    crc = 0
    for byte in frame:
        crc ^= byte << 8
        for _ in range(8):
            crc = crc << 1 ^ (0x18005 if crc & 0x8000 else 0)
    return crc


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
