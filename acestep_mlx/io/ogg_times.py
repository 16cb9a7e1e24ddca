"""Ogg Vorbis and Opus whose times disagree with their sound, as cutting without coding again leaves them.

libvorbisfile takes the last page's time for the song's length, from the first page's on. Cut songs start
before their time 0: that many samples are lost at their end; libopusfile refuses them. Each packet says how
many samples it gives, so the times are counted anew and written into the pages. Vorbis I specification,
sections 4.2, 4.3 and A.2; RFC 6716, section 3.1.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

from .mpeg import Data

_SETUP = b"\x05vorbis"
_MODE = 41  # bits that describe a mode in the setup header, behind a bit that says which of two block sizes
_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
_MOST_CUT = 5760  # samples of the longest packet, within which an encoder ends the sound
_NO_TIME = -1  # of a page on which no packet ends
_ENDS = 4  # flag of a stream's last page
OPUS_RATE = 48_000  # Hz, of all Opus (RFC 7845, section 5.1)
_RATES_TAKEN = range(24_001, 1 << 31)  # in an Opus header, for which libsndfile decodes at 48 kHz
_OPUS_PAGE, _OPUS_FIELD = 28, 12  # bytes before its header in the first page, and before the rate there


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
    def stated(self) -> int:
        """Samples that a player gives who believes the last page, and the first where it starts late."""
        lead = self.pages[0].time - self.counted[0] if len(self.pages) > 1 else 0
        return self.pages[-1].time - max(lead, 0)

    @property
    def total(self) -> int:
        """Samples that are there. The last page may say that its sound ends before its last packet does."""
        last, before = self.pages[-1].time, self.counted[-2] if len(self.counted) > 1 else 0
        end = before + last - (self.pages[-2].time if len(self.pages) > 1 else 0)
        cut = self.counted[-1] - end
        return end if 0 < cut <= _MOST_CUT and before < end else self.counted[-1]

    @property
    def believed(self) -> bool:
        """Whether the pages say what the packets give. libopusfile refuses sound that is cut before a page
        that is not marked as the last.
        """
        marked = self.pages[-1].flags & _ENDS or self.total == self.counted[-1]
        return self.stated == self.total and bool(marked)


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


class _Vorbis:
    """Samples of each packet: a block gives what lies between its middle and that of the block before."""

    headers = 3

    def __init__(self, identification: bytes) -> None:
        self.sizes = 1 << (identification[28] & 15), 1 << (identification[28] >> 4)
        self.flags: list[bool] = []
        self.before = 0

    def setup(self, header: bytes) -> bool:
        self.flags = _block_flags(header)
        return bool(self.flags)

    def samples(self, packet: bytes) -> int:
        mode = packet[0] >> 1 & (1 << (len(self.flags) - 1).bit_length()) - 1
        if packet[0] & 1 or mode >= len(self.flags):  # no sound
            return 0
        block = self.sizes[self.flags[mode]]
        count = (self.before + block) // 4 if self.before else 0
        self.before = block
        return count


class _Opus:
    """Samples at 48 kHz of each packet."""

    headers = 2

    def __init__(self, _: bytes) -> None:
        """Every packet says all."""

    def setup(self, _: bytes) -> bool:
        return True

    def samples(self, packet: bytes) -> int:
        config, code = packet[0] >> 3, packet[0] & 3
        size = 120 << (config & 3) if config >= 16 else 480 << (config & 1) if config >= 12 else 0
        size = size or (480, 960, 1920, 2880)[config & 3]
        return size * ((1, 2, 2)[code] if code < 3 else packet[1] & 63 if len(packet) > 1 else 0)


def times(data: Data, start: int, end: int) -> Times | None:
    """The times of the Vorbis or Opus stream in one song; None where there is none, or it makes no sense."""
    codec: _Vorbis | _Opus | None = None
    serial = packets = count = 0
    packet = b""  # of a header; of the sound its first two bytes
    found = Times([], [])
    for page in ogg_pages(data, start, end):
        body = page.start + 27 + len(page.laces)
        if page.flags & 2 and codec is None:
            kinds = [kind for magic, kind in _CODECS.items() if data[body : body + len(magic)] == magic]
            codec = kinds[0](data[body : page.end].ljust(30, b"\0")) if kinds else None
            serial = page.serial
        if codec is None or page.serial != serial:
            continue
        for lace in page.laces:
            part = data[body : body + (lace if packets < codec.headers else min(lace, 2))]
            packet, body = packet + part, body + lace
            if lace == 255:
                continue
            packets += 1
            if packets == codec.headers and not codec.setup(packet):
                return None
            if packets > codec.headers and packet:
                count += codec.samples(packet)
            packet = b""
        if packets > codec.headers and page.time != _NO_TIME:
            found.pages.append(page)
            found.counted.append(count)
    return found if found.pages else None


def opus_rates(data: Data, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Where each Opus header states a rate for which libsndfile would decode at less than 48 kHz, and that.

    It is the rate of what was encoded, for information only.
    """
    position = data.find(b"OpusHead", start, end)
    while position >= 0:
        page, field = position - _OPUS_PAGE, position + _OPUS_FIELD
        if page >= start and field + 4 <= end and data[page : page + 4] == b"OggS" and data[page + 5] & 2:
            (rate,) = struct.unpack_from("<I", data, field)
            if rate not in _RATES_TAKEN:
                yield field, rate
        position = data.find(b"OpusHead", field, end)


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


def mended(data: Data, start: int, end: int) -> bytes:
    """The song as libsndfile reads all of it: Opus at 48 kHz, and the times that its packets give."""
    song = bytearray(data[start:end])
    for field, _ in opus_rates(data, start, end):
        struct.pack_into("<I", song, field - start, OPUS_RATE)
        _sign(song, next(ogg_pages(bytes(song), field - start - _OPUS_FIELD - _OPUS_PAGE, len(song))))
    found = times(bytes(song), 0, len(song))
    if found is not None and not found.believed:
        for page, count in zip(found.pages, [*found.counted[:-1], found.total], strict=True):
            struct.pack_into("<q", song, page.start + 6, count)
            song[page.start + 5] |= _ENDS if page is found.pages[-1] else 0
            _sign(song, page)
    return bytes(song)


def _sign(song: bytearray, page: Page) -> None:
    """Write the checksum of a page that was changed."""
    struct.pack_into("<I", song, page.start + 22, 0)
    struct.pack_into("<I", song, page.start + 22, _checksum(song[page.start : page.end]))


def _checksum(page: bytes | bytearray) -> int:
    """Ogg's CRC: zlib's with the order of bits reversed, from 0 on and not inverted."""
    crc = zlib.crc32(page.translate(_REVERSED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int(f"{crc:032b}"[::-1], 2)


_CODECS: dict[bytes, type[_Vorbis] | type[_Opus]] = {b"\x01vorbis": _Vorbis, b"OpusHead": _Opus}
