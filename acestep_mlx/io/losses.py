"""What of a song's packets could not be decoded, or is missing between them: counted, and small or damage."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..formatting import count
from .mpeg import Data, after_tag, after_tags, after_xing, sound_end, tags_within

if TYPE_CHECKING:
    import av

MOST = 0.01  # of a song's seconds, above which it is damaged
FEW = 0.2  # seconds that may be lost of any song: a few packets
_MISSING = 0.7  # of a packet's length: where its successor begins so much too late, packets are missing
_NEAR = 0.1  # weight of the last packet in what one is expected to have
_FRAME = 1 << 12  # bytes that hardly a frame of lossy sound exceeds


@dataclass
class Losses:
    """Of one file. raw: whether its packets stand one behind the other without a container; then FFmpeg makes
    one of everything up to the next good one. timed: whether a leap in the times means that packets are
    missing.

    packets: decoded ones, `sound` seconds of them; failed: those that could not be; absent: seconds by which
    the times of packets leap; behind: bytes behind the sound that are neither that nor tags.
    """

    data: Data
    raw: bool
    timed: bool
    packets: int = 0
    sound: float = 0.0
    failed: int = 0
    absent: float = 0.0
    behind: int = 0
    _size: float = 1 << 12  # bytes of a packet, on the average of the last that were decoded
    _read: int = 0  # of all up to the last decoded one
    _tail: int = 0  # of those behind it
    _open: int = 0  # packets lost since then
    _last: bytes = b""  # the last decoded one of a raw stream
    _first: int | None = None  # where the first packet is
    _ends: float | None = None  # seconds at which the packet before ends by its times
    _tags: int = 0  # byte at which tags end

    @property
    def lost(self) -> int:
        """Packets."""
        return self.failed + max(0, round(self.absent / self._length))

    @property
    def seconds(self) -> float:
        """Of sound that is lost."""
        return self.failed * self._length + (max(0.0, self.absent) if self.lost > self.failed else 0.0)

    @property
    def said(self) -> str:
        """In words; empty where nothing is lost."""
        said = []
        if self.lost:
            packets = count(self.packets + self.lost, "packet")
            said.append(f"{self.lost:,} of {packets} ({self.seconds:.2f} s) could not be decoded")
        if self.behind:
            said.append(f"{count(self.behind, 'byte')} at its end are neither sound nor a tag")
        return "; ".join(said)

    @property
    def small(self) -> bool:
        return self.seconds <= max(FEW, MOST * (self.sound + self.seconds))

    def leap(self, packet: av.Packet[av.AudioStream]) -> float:
        """Seconds that are missing before a packet, below 0 where its time lies before the one before it."""
        base, ends = packet.time_base, self._ends
        if packet.pts is None or base is None or not packet.duration:
            return 0.0
        begin, length = float(packet.pts * base), float(packet.duration * base)
        self._ends = begin + length
        found = 0.0 if ends is None else begin - ends
        return found if abs(found) > _MISSING * length else 0.0

    def decoded(self, packet: av.Packet[av.AudioStream]) -> None:
        if packet.size:  # there is an empty one at the end
            self.packets += 1
            self._size += (packet.size - self._size) * (_NEAR if self.packets > 1 else 1.0)
            self.failed, self._open = self.failed + self._open, 0
            self._read, self._tail = self._read + self._tail, 0
            self._last = bytes(packet) if self.raw else b""

    def read(self, packet: av.Packet[av.AudioStream]) -> None:
        """Every packet, before it is decoded."""
        if packet.size:
            self._first = packet.pos or 0 if self._first is None else self._first
            self._tail += packet.size

    def end(self, stop: int | None = None) -> None:
        """The last packet was read; FFmpeg gave up at byte `stop`.

        What stands behind the last frame of a raw stream is none of it. Before it FFmpeg passes over bytes in
        which no frame begins, which are lost; tags are no loss.
        """
        if self.raw and self._first is not None and self._last:
            stop = self.data.rfind(self._last) + len(self._last)
            tags = [at for at in tags_within(self.data, self._first) if at < stop]
            passed = stop - self._first - self._read - sum(after_tags(self.data, at) - at for at in tags)
            self.failed += max(0, round(passed / self._size))
            self.behind = max(0, sound_end(self.data) - max(stop, self._tags))
        elif stop is not None:
            self.failed += max(0, round((sound_end(self.data) - stop) / self._size))

    def fail(self, start: int | None, size: int) -> None:
        """Bytes from `start` on could not be decoded. Tags are no loss, nor zeros up to the next packet."""
        if not self.raw or start is None:
            self.failed += 1
            return
        end, start = min(start + size, sound_end(self.data)), max(start, self._tags)
        # a tag may begin earlier: in what is left of a song that was cut
        within = self.data.rfind(b"ID3", max(0, start - _FRAME), max(0, end))
        lost, padding = 0, 0
        for place in dict.fromkeys((start, max(start, within), within)) if within >= 0 else (start,):
            before = place
            while (after := after_tag(self.data, place, None)[0]) > place:
                padding += after - place if self.data[place : place + 1] == b"\0" else 0
                place = after
            if place > before:
                lost += max(0, before - max(start, self._tags))
                self._tags = max(self._tags, after_xing(self.data, place))
        if (size := end - max(start, self._tags)) > 0:
            lost += size + padding
        if lost > 0:
            self._open += max(1, round(lost / self._size))

    @property
    def _length(self) -> float:
        """Seconds of a packet, on the average."""
        return self.sound / self.packets if self.sound else 0.02
