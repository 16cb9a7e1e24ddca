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
_MENDED = 1 << 30  # bytes of a file that is mended in memory
_UNKNOWN = 1 << 60  # libsndfile's largest number stands for "unknown"


Data = mmap.mmap | bytes


class Doubt(NamedTuple):
    """Why a stated length is not taken.

    decoder: what reads the file to its end: "soundfile", which is not led astray, "parts": the same on the
    file's `parts`, or "ffmpeg". cut: the length is firmly stated, and there is less.
    """

    reason: str
    decoder: str = "ffmpeg"
    cut: bool = False


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
    uniform: bool  # one rate, one number of channels, nothing between the frames
    layer: int


def doubt(path: Path, form: str, frames: int) -> Doubt | None:
    """Why the number of `frames` that libsndfile gives may be wrong; None when the file states it exactly."""
    checks = {"MP3": _mp3, "MPEG": _mp3, "OGG": _ogg, "FLAC": _flac, "WAV": _wav, "WAVEX": _wav}
    check = checks.get(form.upper(), _any)
    with contextlib.suppress(struct.error), _mapped(path) as data:
        return check(data, frames)
    return _any(b"", frames)


@contextlib.contextmanager
def _mapped(path: Path) -> Iterator[mmap.mmap]:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        yield data


def _any(_: Data, frames: int) -> Doubt | None:
    if frames <= 0:
        return Doubt("its header says that it holds nothing")
    return Doubt("its header gives no length", "soundfile") if frames >= _UNKNOWN else None


def _wav(data: Data, frames: int) -> Doubt | None:
    """No frames are the truth about a wav whose chunks lead to its end."""
    position = _wav_data(data)
    if frames > 0 or position is None:
        return _any(data, frames)
    position += 4
    while position + 8 <= len(data) and _is_name(data[position : position + 4]):
        size = struct.unpack_from("<I", data, position + 4)[0]
        position += 8 + size + size % 2
    if position in (len(data), len(data) + 1):
        return None
    return Doubt("its header says that it holds nothing", "parts" if len(data) <= _MENDED else "ffmpeg")


def _wav_data(data: Data) -> int | None:
    """Where the size of a wav's samples stands."""
    position = 12
    while position + 8 <= len(data) and data[:4] == b"RIFF" and _is_name(data[position : position + 4]):
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
    if walk.layer != 3:  # the other layers have no Xing header
        decoder = "soundfile" if walk.uniform and 0 < walk.samples <= frames else "ffmpeg"
    if xing is None:
        return Doubt("it has no Xing header", decoder)
    if xing.frames <= walk.frames <= xing.frames + _SLACK:
        return None if walk.uniform else Doubt("something lies between its frames", decoder)
    reason = f"its Xing header counts {xing.frames} frames, but there are {walk.frames}"
    return Doubt(reason, decoder, walk.frames < xing.frames - _SLACK and not 0 < xing.size <= walk.size)


def walk_mp3(data: Data) -> Walk:
    """Count all frames, over tags and whatever else lies between them."""
    count = samples = size = end = layer = 0
    xing: Xing | None = None
    kinds: set[tuple[int, bool]] = set()
    uniform = True
    for position, frame in _mp3_frames(data):
        kinds.add((frame.rate, frame.mono))
        uniform = uniform and end in (0, position)
        end, layer = position + frame.size, frame.layer
        if not size:
            xing = xing_header(data[position:end])
        if size or xing is None:
            count += 1
            samples += frame.samples
        size += frame.size
    return Walk(count, samples, size, xing, uniform and len(kinds) < 2, layer)


def _mp3_frames(data: Data) -> Iterator[tuple[int, Frame]]:
    """Each whole frame with its position."""
    position: int | None = _after_tags(data, 0)
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


def xing_header(frame: bytes) -> Xing | None:
    """The Xing header in the first frame of a file; None where there is none, or none that counts frames."""
    # It follows the side information: 32 or 17 bytes in MPEG-1, 17 or 9 in MPEG-2.
    for place in (36, 21, 13):
        if frame[place : place + 4] in (b"Xing", b"Info") and len(frame) >= place + 16:
            flags, frames, size = struct.unpack(">III", frame[place + 4 : place + 16])
            return Xing(frames, size if flags & 2 else 0) if flags & 1 else None
    return None


def _after_tags(data: Data, position: int) -> int:
    """Behind the ID3v2 tags that start at `position`."""
    while data[position : position + 3] == b"ID3" and len(data) >= position + 10:
        a, b, c, d = (byte & 0x7F for byte in data[position + 6 : position + 10])
        footer = 10 if data[position + 5] & 0x10 else 0
        position += 10 + (a << 21 | b << 14 | c << 7 | d) + footer
    return position


def _next_frame(data: Data, position: int) -> int | None:
    """Where the next frame starts that another one, or the end, follows."""
    position = _after_tags(data, position)
    for match in _SYNC.finditer(data, position):
        frame = mp3_frame(data, match.start())
        if frame is not None:
            end = match.start() + frame.size
            if mp3_frame(data, end) is not None or end == len(data):
                return match.start()
    return None


def _ogg(data: Data, frames: int) -> Doubt | None:
    links, gap = _ogg_links(data)
    if gap and len(links) < 2:
        return Doubt("pages of it are missing, so its times mean nothing", "soundfile")
    return Doubt(f"{len(links)} songs are joined in it", "parts") if len(links) > 1 else _any(data, frames)


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
    starts = [match.start() for match in _FLAC_START.finditer(data)]
    # samples, 0: unknown
    totals = [struct.unpack_from(">Q", data, start + 18)[0] & (1 << 36) - 1 for start in starts]
    if 0 in totals:
        return Doubt("its header gives no length", "soundfile" if len(starts) < 2 else "parts")
    if any(total > len(data) // _FLAC_FRAME * _FLAC_BLOCK for total in totals):
        return Doubt("its header gives an impossible length", "soundfile" if len(starts) < 2 else "parts")
    return Doubt(f"{len(starts)} songs are joined in it", "parts") if len(starts) > 1 else _any(data, frames)


def parts(path: Path, form: str) -> Iterator[bytes]:
    """The songs that are joined in a file, each as a file that libsndfile reads to its end."""
    cut = {"mp3": _mp3_parts, "mpeg": _mp3_parts, "ogg": _ogg_parts, "flac": _flac_parts}.get(
        form, _wav_parts
    )
    with _mapped(path) as data:
        yield from cut(data)


def _mp3_parts(data: Data) -> Iterator[bytes]:
    """Runs of frames of one kind, each behind a Xing header that counts them."""
    pieces: list[bytes] = []
    kind: tuple[int, bool] | None = None
    for position, frame in _mp3_frames(data):
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


def _ogg_parts(data: Data) -> Iterator[bytes]:
    links, _ = _ogg_links(data)
    for start, end in zip(links, [*links[1:], len(data)], strict=True):
        yield data[start:end]


def _flac_parts(data: Data) -> Iterator[bytes]:
    starts = [match.start() for match in _FLAC_START.finditer(data)]
    for start, end in zip(starts, [*starts[1:], len(data)], strict=True):
        yield data[start:end]


def _wav_parts(data: Data) -> Iterator[bytes]:
    """The wav with its own size in its headers; its samples are taken to go on to its end."""
    whole = bytearray(data[:])
    size = _wav_data(data)
    assert size is not None
    whole[4:8] = struct.pack("<I", len(data) - 8)
    whole[size : size + 4] = struct.pack("<I", len(data) - size - 4)
    yield bytes(whole)
