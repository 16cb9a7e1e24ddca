"""Pages of an Ogg file: what an Opus header says, whether one is damaged or missing, and whether the end is
what its writer meant. A download that broke off, and lost pages, are decoded without a complaint.
"""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path
from typing import NamedTuple

from .mpeg import Data
from .schema import open_file

_MARK, _END_OF_STREAM = b"OggS", 4  # RFC 3533: of a page's header, and of its flags
_FIRST = 2  # RFC 3533: the flag of a stream's first page
_MIRRORED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
_LONGEST = 27 + 255 + 255 * 255  # bytes of a page


def is_open_ended(path: Path) -> bool:
    """Whether the last page of an Ogg file is not marked as the end of its stream, or is cut itself.

    False for other files, and where it cannot be read.
    """
    try:
        with open_file(path) as file:
            if file.read(len(_MARK)) != _MARK:
                return False
            file.seek(max(0, file.seek(0, os.SEEK_END) - 2 * _LONGEST))
            tail = file.read()
    except OSError:
        return False
    page = tail[tail.rfind(_MARK) :]
    lengths = page[27 : 27 + page[26]] if len(page) > 26 else b""
    whole = len(page) > 26 and len(page) >= 27 + page[26] + sum(lengths)
    return not whole or not page[5] & _END_OF_STREAM


def opus_rate(path: Path) -> int:
    """Hz of the sound that Opus was made of, as its header says for information (RFC 7845); 0: unknown."""
    with open_file(path) as file:
        data = file.read(_LONGEST)
    at = data.find(b"OpusHead") + 12
    return int.from_bytes(data[at : at + 4], "little") if at >= 12 else 0


class Pages(NamedTuple):
    """Pages of sound. whole: bytes of good ones; torn: whether one is damaged or missing; rims: bytes of
    damaged ones before the first good one or after the last.
    """

    whole: int
    torn: bool
    rims: int


def ogg_pages(data: Data) -> Pages:
    """None of them for other files. A stream that starts late, as a recorded broadcast, lacks nothing."""
    whole, bad, torn, rims = 0, 0, False, 0
    follows: dict[int, int] = {}  # stream → number of its next page of sound
    position = 0 if data[: len(_MARK)] == _MARK else -1
    while position >= 0 and position + 27 <= len(data):
        end, intact = _page(data, position)
        if not intact:
            after = data.find(_MARK, position + 1)
            if after < 0 and end > len(data):  # `is_open_ended`
                break
            bad += (len(data) if after < 0 else after) - position
            position = after
            continue
        granule, stream, number = struct.unpack_from("<qII", data, position + 6)
        if data[position + 5] & _FIRST:
            follows.pop(stream, None)
        elif granule:  # headers have 0
            torn |= bad > 0 or follows.get(stream, number) != number
            rims += 0 if whole else bad
            follows[stream] = number + 1
            whole, bad = whole + end - position, 0
        position = end if data[end : end + 4] == _MARK else data.find(_MARK, end)
    return Pages(whole, torn or bad > 0, rims + bad)


def _page(data: Data, start: int) -> tuple[int, bool]:
    """Where a page ends, and whether its checksum is right."""
    end = start + 27 + data[start + 26]
    end += sum(data[start + 27 : end])
    page = bytearray(data[start:end])
    (stated,) = struct.unpack_from("<I", page, 22)
    page[22:26] = bytes(4)
    # the usual polynomial, from the other end of each byte and with no ones added
    mirrored = zlib.crc32(page.translate(_MIRRORED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return end, int(f"{mirrored:032b}"[::-1], 2) == stated and end <= len(data)
