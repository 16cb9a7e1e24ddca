"""Whether a second song stands behind one in its file, which no decoder would say.

Only what is certain counts: the first song's own structure leads to a place where another one begins, or to
such a place behind tags and padding.
"""

from __future__ import annotations

import contextlib
import re
import struct
from collections.abc import Iterator
from pathlib import Path

from . import lengths
from .mpeg import Data, after_tags, mp3_frame, mp3_frames

_STARTS = {
    "wav": rb"RIFF.{4}WAVE|(?:RF64|BW64).{8}ds64",
    "aiff": rb"FORM.{4}AIF[FC]",
    "flac": rb"fLaC[\x00\x80]\x00\x00\x22",
    "ogg": rb"OggS\x00[\x00-\x07]",
    "wavpack": rb"wvpk.{4}[\x00-\x20]\x04",
    "mp4": rb"[\x08-\xff]ftyp",  # behind zeros
    "ape": rb"MAC .[\x0e\x0f]",
    "caf": rb"caff\x00\x01\x00\x00",
    "au": rb"\.snd\x00\x00",
    "w64": re.escape(lengths.W64),
    "wma": re.escape(lengths.ASF),
    "mka": rb"\x1aE\xdf\xa3.{0,40}(?:matroska|webm)",
}
_START = re.compile(
    b"|".join(b"(?P<%s>%s)" % (name.encode(), start) for name, start in _STARTS.items()), re.S
)
_PIPED = {  # headers of songs whose size is not stated
    b"FORM": re.compile(rb"FORM.{4}AIF[FC](?:COMM|FVER|MARK|NAME|ANNO|SSND|ID3 )", re.S),
    b"RIFF": re.compile(rb"RIFF.{4}WAVE(?:fmt |LIST|JUNK|bext|fact|id3 )", re.S),
    b".snd": re.compile(rb"\.snd\x00\x00.{6}\x00\x00\x00[\x01-\x1b]\x00", re.S),
    b"caff": re.compile(rb"caff\x00\x01\x00\x00desc"),
    b"riff": re.compile(re.escape(lengths.W64) + rb".{8}wave\xf3\xac", re.S),
}
_CHAIN = 4  # MPEG frames of one kind in a row that are no accident
_INITIAL = 0x800  # WavPack: the first block of those that make one frame


def behind(path: Path) -> str | None:
    """What begins where behind the song that the file starts with, in words; None where nothing does."""
    with contextlib.suppress(ValueError, struct.error), lengths.mapped(path) as data:
        own = _sound_at(data, 0)
        if own is None:
            return None
        kind, start = own[0], after_tags(data, 0)
        if kind == "wavpack" and (second := _second_wavpack(data, start)) is not None:
            return f"a second song (wavpack) begins at byte {second}"
        if (pattern := _PIPED.get(data[:4])) and (second := _second_piped(data, pattern)) is not None:
            return f"a second song ({kind}) begins at byte {second}"
        walk = _WALKS.get(kind, _ends)
        for end in walk(data):
            found = _sound_at(data, end)
            # Formats with walks of their own find their kind again wherever it stands.
            if found is not None and (found[0] != kind or walk is _ends):
                return f"a second file ({found[0]}) begins at byte {found[1]}"
    return None


def _sound_at(data: Data, position: int) -> tuple[str, int] | None:
    """Format and place of a song that begins at `position`, or behind tags and zeros there."""
    tag: int | None = None  # of the song: ID3v2 directly before it
    before = -1
    while position != before and position < len(data):
        before = position
        position, tag = _after_tag(data, position, tag)
    start = position if tag is None else tag
    if match := _START.match(data, position):
        name = str(match.lastgroup)
        return name, start - 3 if name == "mp4" and tag is None else start
    kinds = set()
    for _ in range(_CHAIN):
        frame = mp3_frame(data, position)
        if frame is None:
            return None
        kinds.add((frame.rate, frame.mono, frame.layer))
        position += frame.size
    return ("mp3", start) if len(kinds) == 1 and position <= len(data) else None


def _after_tag(data: Data, position: int, tag: int | None) -> tuple[int, int | None]:
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


def _ends(data: Data) -> Iterator[int]:
    """Formats of chunks."""
    end = lengths.chunk_songs(data)[1]
    if end:
        yield end


def _second_piped(data: Data, pattern: re.Pattern[bytes]) -> int | None:
    """The next song's header behind one that does not state its size."""
    starts, end = lengths.chunk_songs(data)
    if not starts:
        return None
    place = lengths.wav_data(data)
    empty = len(starts) == 1 and place is not None and data[place : place + 4] == bytes(4)
    if end is not None and not empty:  # a wav of 0 bytes is read to the file's end
        return None
    match = pattern.search(data, starts[-1] + 12)
    return match.start() if match else None


def _ogg_ends(data: Data) -> Iterator[int]:
    """Each place where no page follows one."""
    position = data.find(b"OggS")
    while 0 <= position <= len(data) - 27:
        segments = data[position + 26]
        end = position + 27 + segments + sum(data[position + 27 : position + 27 + segments])
        if data[end : end + 4] == b"OggS":
            position = end
        else:
            yield end
            position = data.find(b"OggS", end)


def _mp3_ends(data: Data) -> Iterator[int]:
    """Each place where no frame follows one."""
    end: int | None = None
    for position, frame in mp3_frames(data):
        if end is not None and position != end:
            yield end
        end = position + frame.size
    if end is not None:
        yield end


def _mp4_ends(data: Data) -> Iterator[int]:
    """Each boundary of an atom."""
    position = 0
    while position + 16 <= len(data):
        size, _ = struct.unpack_from(">I4s", data, position)
        size = struct.unpack_from(">Q", data, position + 8)[0] if size == 1 else size
        if size < 8:  # 0: to the end
            return
        position += size
        yield position


def _second_wavpack(data: Data, position: int) -> int | None:
    """Where a block that holds a song's first sample stands for the second time."""
    songs = 0
    while data[position : position + 4] == b"wvpk" and position + 32 <= len(data):
        (size,) = struct.unpack_from("<I", data, position + 4)
        index, samples, flags = struct.unpack_from("<III", data, position + 16)
        songs += not index and not data[position + 10] and samples > 0 and bool(flags & _INITIAL)
        if songs > 1:
            return position
        position += 8 + size
        if data[position : position + 4] != b"wvpk" and (next_one := _sound_at(data, position)) is not None:
            position = next_one[1]
    return None


def _wavpack_ends(data: Data) -> Iterator[int]:
    """Where no block follows one."""
    position = after_tags(data, 0)
    while data[position : position + 4] == b"wvpk" and position + 32 <= len(data):
        position += 8 + struct.unpack_from("<I", data, position + 4)[0]
    yield position


def _flac_ends(data: Data) -> Iterator[int]:
    """Where each song's last frame may end, by its checksum."""
    for start, end, stated, _ in lengths.flac_songs(data):
        head = lengths.flac_last(data, start, end, stated)
        if head is None:
            continue
        longest = int.from_bytes(data[start + 15 : start + 18], "big") or lengths.FLAC_FRAME
        crc = 0
        for at, byte in enumerate(data[head : min(end, head + longest)], head + 1):
            crc = (crc << 8 & 0xFF00) ^ lengths.CRC16[crc >> 8 ^ byte]
            if not crc:
                yield at


_WALKS = {
    "flac": _flac_ends,
    "ogg": _ogg_ends,
    "mp3": _mp3_ends,
    "mp4": _mp4_ends,
    "wavpack": _wavpack_ends,
}
