"""Ogg Vorbis whose times disagree with its sound, as cutting without coding it again leaves them.

libvorbisfile takes the last page's time for the song's length, from the first page's on. Cut songs start
before their time 0: that many samples are lost at their end. Each packet says how many samples it gives, so
the times are counted anew and written into the pages. Vorbis I specification, sections 4.2, 4.3 and A.2.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

from .mpeg import Data

_IDENTIFICATION, _SETUP = b"\x01vorbis", b"\x05vorbis"
_HEADERS = 3  # packets before the sound
_MODE = 41  # bits that describe a mode in the setup header, behind a bit that says which of two block sizes
_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
_NO_TIME = -1  # of a page on which no packet ends


class Page(NamedTuple):
    """An Ogg page: its bytes, what its header says, and where the pieces of packets in it lie."""

    start: int
    end: int
    flags: int
    time: int
    serial: int
    laces: bytes


class Times(NamedTuple):
    """Samples up to the end of each page of sound, as the pages say and as their packets give."""

    pages: list[Page]
    counted: list[int]

    @property
    def lead(self) -> int:
        """By how much the times are ahead of the sound; below 0 when the song starts before its time 0."""
        return self.pages[0].time - self.counted[0]

    @property
    def stated(self) -> int:
        """Samples that libvorbisfile gives."""
        return self.pages[-1].time - max(self.lead, 0)

    @property
    def total(self) -> int:
        """Samples that are there. The last page may say that its sound ends before its last packet does."""
        before = self.counted[-2] if len(self.counted) > 1 else 0
        end = self.pages[-1].time - self.lead
        return end if before <= end < self.counted[-1] else self.counted[-1]


def ogg_pages(data: Data, start: int, end: int) -> Iterator[Page]:
    """All pages that lie whole in a part of a file, over what stands between them."""
    position = data.find(b"OggS", start, end)
    while 0 <= position <= end - 27:
        flags, time, serial = struct.unpack_from("<BqI", data, position + 5)
        laces = bytes(data[position + 27 : position + 27 + data[position + 26]])
        last = position + 27 + len(laces) + sum(laces)
        if last > end:
            return
        yield Page(position, last, flags, time, serial, laces)
        position = last if data[last : last + 4] == b"OggS" else data.find(b"OggS", last, end)


def times(data: Data, start: int, end: int) -> Times | None:
    """The times of the Vorbis stream in one song; None where there is none, or it makes no sense."""
    serial = sizes = flags = None
    packets = before = count = 0
    packet = b""  # of the headers; of the sound its first byte
    found = Times([], [])
    for page in ogg_pages(data, start, end):
        body = page.start + 27 + len(page.laces)
        if page.flags & 2 and serial is None and data[body : body + 7] == _IDENTIFICATION:
            serial, sizes = page.serial, data[body + 28]
        if page.serial != serial:
            continue
        for lace in page.laces:
            if packets < _HEADERS:
                packet += data[body : body + lace]
            else:
                packet = packet or data[body : body + min(lace, 1)]
            body += lace
            if lace == 255:
                continue
            packets += 1
            if packets == _HEADERS:
                flags = _block_flags(packet)
            elif packets > _HEADERS and packet and not packet[0] & 1:
                if not flags or sizes is None:
                    return None
                mode = packet[0] >> 1 & (1 << (len(flags) - 1).bit_length()) - 1
                if mode < len(flags):
                    block = 1 << (sizes >> 4 if flags[mode] else sizes & 15)
                    count += (before + block) // 4 if before else 0
                    before = block
            packet = b""
        if packets > _HEADERS and page.time != _NO_TIME:
            found.pages.append(page)
            found.counted.append(count)
    return found if found.pages else None


def _block_flags(setup: bytes) -> list[bool]:
    """Whether each mode has long blocks. They stand at the header's end, before a bit that is 1."""
    if setup[:7] != _SETUP:
        return []
    bits = int.from_bytes(setup, "little")
    place = bits.bit_length() - 1
    read: list[bool] = []
    found: list[bool] = []
    while len(read) < 64 and place >= _MODE + 6:
        place -= _MODE
        mode = bits >> place & (1 << _MODE) - 1
        if mode >> 33 > 63 or mode >> 1 & 0xFFFFFFFF:  # a mapping there cannot be, or a window that is not 0
            break
        read.insert(0, bool(mode & 1))
        if bits >> place - 6 & 63 == len(read) - 1:  # how many there are stands before them
            found = list(read)
    return found


def with_counted_times(data: Data, start: int, end: int) -> bytes:
    """The song with the times that its packets give in its pages, where its own would lose some of it."""
    found = times(data, start, end)
    if found is None or found.stated == found.total:
        return bytes(data[start:end])
    mended = bytearray(data[start:end])
    for page, count in zip(found.pages, [*found.counted[:-1], found.total], strict=True):
        first, last = page.start - start, page.end - start
        struct.pack_into("<q", mended, first + 6, count)
        struct.pack_into("<I", mended, first + 22, 0)
        struct.pack_into("<I", mended, first + 22, _checksum(mended[first:last]))
    return bytes(mended)


def _checksum(page: bytes | bytearray) -> int:
    """Ogg's CRC: zlib's with the order of bits reversed, from 0 on and not inverted."""
    crc = zlib.crc32(page.translate(_REVERSED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int(f"{crc:032b}"[::-1], 2)
