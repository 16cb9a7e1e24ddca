"""Whether a second song stands behind one in its file, which no decoder would say.

Only what is certain counts: the first song's own structure leads to a place where another one begins, or to
such a place behind tags and padding.
"""

from __future__ import annotations

import contextlib
import re
import struct
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path

import numpy as np

from . import lengths
from .ffmpeg import packets
from .mpeg import Data, adts_frame, after_tag, after_tags, mapped, mp3_frame, mp3_frames

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
_PIPED = (b"FORM", b"RIFF", b"RF64", b"BW64", b".snd", b"caff", b"riff")  # may not state their size
_WITHIN = _STARTS | {  # headers that are none of the sound in which they stand
    "wav": rb"RIFF.{4}WAVE(?:fmt |LIST|JUNK|bext|fact|id3 )|(?:RF64|BW64).{8}ds64",
    "aiff": rb"FORM.{4}AIF[FC](?:COMM|FVER|MARK|NAME|ANNO|SSND|ID3 )",
    "au": rb"\.snd\x00\x00.{6}\x00\x00\x00[\x01-\x1b]\x00",
    "caf": rb"caff\x00\x01\x00\x00desc",
    "w64": re.escape(lengths.W64) + rb".{8}wave\xf3\xac",
    "ogg": rb"OggS\x00\x02\x00{8}",
    "mp4": rb"\x00\x00\x00[\x08-\xff]ftyp[ -~]{4}",
    "wavpack": rb"wvpk.{3}\x00[\x00-\x20]\x04.{2}.{4}\x00{4}",
    "tag": rb"ID3[\x02-\x04]\x00[\x00-\xf0][\x00-\x7f]{4}",
}
_HEADER = re.compile(
    b"|".join(b"(?P<%s>%s)" % (name.encode(), start) for name, start in _WITHIN.items()), re.S
)
_CHAIN = 4  # MPEG frames of one kind in a row that are no accident
_LONG_CHAIN = 12  # the same within samples, of which there are many
_BLOCK = 1 << 22  # bytes that are searched at a time
_FRAME = 1 << 13  # bytes that no MPEG frame exceeds
_INITIAL = 0x800  # WavPack: the first block of those that make one frame


def kind(path: Path) -> str | None:
    """The format that the file begins with, whatever its name; None where that is not known."""
    with contextlib.suppress(ValueError, struct.error), mapped(path) as data:
        return (_sound_at(data, 0) or (None,))[0]
    return None


def behind(path: Path) -> str | None:
    """What begins where behind the song that the file starts with, in words; None where nothing does."""
    with contextlib.suppress(ValueError, struct.error), mapped(path) as data:
        own = _sound_at(data, 0)
        if own is None:
            return None
        kind, start = own[0], after_tags(data, 0)
        if kind == "wavpack" and (second := _second_wavpack(data, start)) is not None:
            return f"a second song (wavpack) begins at byte {second}"
        if data[:4] in _PIPED and (found := _second_piped(data)) is not None:
            return f"a second {'song' if found[0] == kind else 'file'} ({found[0]}) begins at byte {found[1]}"
        if kind == "flac" and (found := _within_flacs(path, data)):
            return f"a second file ({found[0]}) begins at byte {found[1]}"
        for other in lengths.chunk_songs(data)[0]:
            if (data[other : other + 16] == lengths.ASF) != (kind == "wma"):  # only libsndfile reads several
                return f"a second file ({(_sound_at(data, other) or own)[0]}) begins at byte {other}"
        walk = _WALKS.get(kind, _ends)
        for end in walk(data):
            found = _sound_at(data, end)
            # Formats with walks of their own find their kind again wherever it stands.
            if found is not None and (found[0] != kind or walk in (_ends, _mka_ends)):
                return f"a second file ({found[0]}) begins at byte {found[1]}"
    return None


def _sound_at(data: Data, position: int) -> tuple[str, int] | None:
    """Format and place of a song that begins at `position`, or behind tags and zeros there."""
    tag: int | None = None  # of the song: ID3v2 directly before it
    before = -1
    while position != before and position < len(data):
        before = position
        position, tag = after_tag(data, position, tag)
    start = position if tag is None else tag
    if match := _START.match(data, position):
        name = str(match.lastgroup)
        return name, start - 3 if name == "mp4" and tag is None else start
    chained = _chain(data, position, _CHAIN)
    return (chained, start) if chained else None


def _chain(data: Data, position: int, length: int) -> str | None:
    """The format of which `length` frames of one kind stand in a row from `position` on."""
    for name, frame_at in (("mp3", mp3_frame), ("aac", adts_frame)):
        kinds, at = set(), position
        for _ in range(length):
            frame = frame_at(data, at)
            if frame is None:
                break
            kinds.add((frame.rate, frame.mono, frame.layer))
            at += frame.size
        else:
            if len(kinds) == 1 and at <= len(data):
                return name
    return None


def _ends(data: Data) -> Iterator[int]:
    """Formats of chunks."""
    end = lengths.chunk_songs(data)[1]
    if end:
        yield end


def _second_piped(data: Data) -> tuple[str, int] | None:
    """Format and place of the next song behind one that does not state its size."""
    starts, end = lengths.chunk_songs(data)
    if not starts:
        return None
    place = lengths.wav_data(data)
    empty = len(starts) == 1 and place is not None and data[place : place + 4] == bytes(4)
    if end is not None and not empty:  # a wav of 0 bytes is read to the file's end
        return None
    first = starts[-1] + 12 if place is None or len(starts) > 1 else place + 4
    return _second_in(data, first, len(data))


def _within_flacs(path: Path, data: Data) -> tuple[str, int] | None:
    """Format and place of what stands behind the last packet of a song: the packet seems to hold it, too."""
    places = list(accumulate((-size for size in reversed(packets(path).sizes)), initial=len(data)))[:0:-1]
    for end in (*lengths.flac_starts(data)[1:], len(data)):
        last = max((place for place in places if place < end), default=end)
        if (found := _second_in(data, last, end)) and found[0] != "flac":
            return found
    return None


def _second_in(data: Data, start: int, end: int) -> tuple[str, int] | None:
    """Format and place of the first header, or of MPEG frames in a row, between two places."""
    found = []
    position = start
    while (match := _HEADER.search(data, position, end)) is not None:
        name: str | None = str(match.lastgroup)
        if name == "tag":  # of an MP3, an AAC or a FLAC
            name = (_sound_at(data, match.start()) or (None, 0))[0]
        if name:
            found.append((match.start(), name))
            break
        position = max(match.end(), after_tags(data, match.start()))
    if (frames := _frames_within(data, start, found[0][0] if found else end)) is not None:
        found.append(frames)
    return min((place, name) for place, name in found)[::-1] if found else None


def _frames_within(data: Data, start: int, end: int) -> tuple[int, str] | None:
    """Place and format of the first MPEG frames in a row among samples."""
    for at in range(start, end, _BLOCK):
        block = np.frombuffer(data[at : min(at + _BLOCK, end) + _FRAME], np.uint8)
        sync = np.flatnonzero((block[:-1] == 0xFF) & (block[1:] >= 0xE0))
        sync = sync[sync < len(block) - 8]
        for place in sync[_followed(block, sync)].tolist():
            if at + place < end and (name := _chain(data, at + place, _LONG_CHAIN)) is not None:
                return at + place, name
    return None


def _followed(block: np.ndarray, sync: np.ndarray) -> np.ndarray:
    """Which of the places where a frame may begin have another head of the same kind where it would end."""
    second, third = block[sync + 1], block[sync + 2]
    adts = second & 0xF6 == 0xF0
    length = (block[sync + 3] & 3).astype(np.int64) << 11 | block[sync + 4].astype(np.int64) << 3
    length |= block[sync + 5] >> 5
    size = np.where(adts, length, _MP3_SIZES[second & 31, third >> 1])
    after = np.minimum(sync + size, len(block) - 2)
    found: np.ndarray = (size > 0) & (block[after] == 0xFF) & (block[after + 1] == second)
    return found


def _ogg_rimss(data: Data) -> Iterator[int]:
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
    return (end for _, end in lengths.mp4_atoms(data) if end)


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


def _aac_ends(data: Data) -> Iterator[int]:
    """Where no ADTS frame follows one."""
    found = _sound_at(data, 0)
    while found is not None and found[0] == "aac":
        position = after_tags(data, found[1])
        while (frame := adts_frame(data, position)) is not None:
            position += frame.size
        yield position
        found = _sound_at(data, position)


def _mka_ends(data: Data) -> Iterator[int]:
    """Where no element of Matroska or WebM follows one; those of unknown size end where theirs do."""
    position = 0
    while position + 5 <= len(data):
        name_length, size_length = 9 - data[position].bit_length(), 0
        name = data[position : position + name_length]
        if name not in _MKA_ELEMENTS or (position and name == _EBML):
            break
        position += name_length
        size_length = 9 - data[position].bit_length()
        size = int.from_bytes(data[position : position + size_length], "big") & (1 << 7 * size_length) - 1
        position += size_length
        if size != (1 << 7 * size_length) - 1:
            position += size
    yield position


_EBML = bytes.fromhex("1a45dfa3")
_MKA_NAMES = """
    1a45dfa3 18538067 114d9b74 1549a966 1654ae6b 1f43b675 1c53bb6b 1254c367 1043a770 1941a469
    ec bf e7 a3 a0 ab a7 5854 af"""
# the header, the segment, and what stands in segments and clusters
_MKA_ELEMENTS = frozenset(bytes.fromhex(name) for name in _MKA_NAMES.split())
_MP3_SIZES = np.zeros((32, 128), np.int64)  # bytes of a frame by its header's bits
for _second in range(32):
    for _third in range(128):
        _found = mp3_frame(bytes([0xFF, 0xE0 | _second, _third << 1, 0]), 0)
        _MP3_SIZES[_second, _third] = _found.size if _found else 0
_WALKS = {
    "aac": _aac_ends,
    "mka": _mka_ends,
    "flac": lambda _: iter(()),
    "ogg": _ogg_rimss,
    "mp3": _mp3_ends,
    "mp4": _mp4_ends,
    "wavpack": _wavpack_ends,
}
