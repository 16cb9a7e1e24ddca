"""What libsndfile cannot read to its end, through FFmpeg's libraries (PyAV). Formats are rows of FORMATS.

Only the file itself is read (no network, no playlists that name other files), at its own rate and channels.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ..errors import DataError
from .losses import Losses
from .mpeg import crc16, mapped
from .ogg_rims import ogg_pages
from .schema import open_file

if TYPE_CHECKING:
    import av
    from av.container import InputContainer


class Format(NamedTuple):
    """Files that are songs, and how FFmpeg reads them: also those that libsndfile reads, where they are odd.

    endings: of their names. demuxers: FFmpeg's names of the container. states: whether it states a length;
    what FFmpeg says of others is worked out from the first frames and the size. plain: whether it is known by
    its beginning whatever the file is called; others are tried for their endings alone. times: of its
    packets: "own" where a leap in them means that packets are missing, "none" where frames stand one behind
    the other without a container, "" where they are worked out or lie in a table.
    """

    endings: str
    demuxers: str
    states: bool = False
    plain: bool = True
    times: str = ""


# Playlists and concatenation scripts, which name other files, are not among them. Of films the sound is read.
FORMATS = (
    Format("wav wave bwf rf64", "wav", states=True),
    Format("flac", "flac", states=True),
    Format("aif aiff aifc", "aiff", states=True),
    Format("w64", "w64", states=True),
    Format("caf", "caf", states=True),
    Format("au snd", "au"),
    Format("mp3 mp1 mp2 mpa mpga", "mp3", times="none"),
    Format("ogg oga opus spx", "ogg"),
    Format("m4a alac mp4 m4b m4r m4v mov qt 3gp 3g2", "mov,mp4,m4a,3gp,3g2,mj2", states=True),
    Format("mka webm mkv", "matroska,webm", states=True, times="own"),
    Format("aac", "aac", times="none"),
    Format("wma asf wmv", "asf", times="own"),
    Format("wv", "wv", states=True, times="own"),
    Format("tta", "tta", states=True),
    Format("ape", "ape", states=True),
    Format("ac3", "ac3", times="none"),
    Format("eac3 ec3", "eac3", times="none"),
    Format("amr awb", "amr"),
    Format("dsf", "dsf", plain=False),
    Format("dff", "iff", plain=False),
    Format("dts dtshd", "dts,dtshd", plain=False, times="none"),
    Format("mlp thd", "mlp,truehd", plain=False, times="none"),
    Format("shn", "shn", plain=False),
    Format("tak", "tak", plain=False),
    Format("mpc", "mpc,mpc8", plain=False),
    Format("oma", "oma", plain=False),
    Format("ra rm", "rm", plain=False),
    Format("avi", "avi", plain=False),
    Format("flv", "flv", plain=False, times="own"),
    Format("mpg mpeg vob", "mpeg", plain=False),
    Format("m2ts mts", "mpegts", plain=False, times="own"),
)
SUFFIXES = tuple(f".{ending}" for one in FORMATS for ending in one.endings.split())
# Containers that state a length.
_STATED = {name for one in FORMATS if one.states for name in one.demuxers.split(",")}
_TIMES = {name: one.times for one in FORMATS for name in one.demuxers.split(",")}
_LOSSLESS = ("flac", "alac", "ape", "tta", "wavpack", "mlp", "truehd", "tak", "shorten")


class Stream(NamedTuple):
    """The first audio stream of a file.

    duration: seconds that the file states, or that FFmpeg makes of its sizes; true to a frame at best: what
    encoders add at the ends is not always left out. states: whether the file states a length. promised:
    seconds that must be there, 0 where nothing promises any.
    """

    duration: float
    sample_rate: int
    channels: int
    codec: str
    states: bool
    promised: float


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tuple[InputContainer, av.AudioStream]]:
    import av

    suffix = path.suffix.lower()[1:]
    known = [one.demuxers for one in FORMATS if one.plain or suffix in one.endings.split()]
    formats = ",".join(known)
    try:
        with (
            open_file(path) as file,
            av.open(
                "fd:",
                options={"fd": str(file.fileno()), "format_whitelist": formats, "protocol_whitelist": "fd"},
                metadata_errors="ignore",
            ) as container,
        ):
            assert isinstance(container, av.container.InputContainer)
            if not container.streams.audio:
                raise DataError(f"{path}: holds no audio")
            stream = container.streams.audio[0]
            if stream.codec_context is None:
                raise DataError(f"{path}: unreadable: FFmpeg has no decoder for its sound")
            yield container, stream
    except (av.FFmpegError, OSError, ValueError) as error:
        reason = str(getattr(error, "strerror", None) or error)
        raise DataError(f"{path}: unreadable: it is no sound file that FFmpeg knows ({reason})") from None


def probe(path: Path) -> Stream:
    """What the file says of itself. DataError when it holds no audio."""
    with _opened(path) as (container, stream):
        codec = stream.codec_context
        names = container.format.name.split(",")
        stated, duration = (
            not _STATED.isdisjoint(names),
            float((stream.duration or 0) * (stream.time_base or 0)),
        )
        promised = max(0.0, duration or _of_container(container)) if stated else 0.0
        return Stream(
            promised or duration, codec.sample_rate or 0, codec.channels or 0, codec.codec.canonical_name,
            promised > 0 or "ogg" in names, promised,
        )  # fmt: skip


def _of_container(container: InputContainer) -> float:
    """Seconds of the only stream; those of several are the longest one's, and count from time 0 on."""
    from av.stream import Disposition

    timed = [
        one
        for one in container.streams
        if one.type in ("audio", "video", "subtitle") and not one.disposition & Disposition.attached_pic
    ]
    return ((container.duration or 0) - max(0, container.start_time or 0)) / 1e6 if len(timed) == 1 else 0.0


def tags(path: Path) -> dict[str, str]:
    """What the tags of the file and its sound say, by their names in lower case. DataError as for `probe`."""
    with _opened(path) as (container, stream):
        found = {**container.metadata, **stream.metadata}
    return {name.lower(): text for name, text in found.items()}


def blocks(path: Path, lost: list[Losses] | None = None) -> Iterator[tuple[np.ndarray, int]]:
    """The whole decoded audio in (frames, channels) float32 blocks, each with its rate in Hz.

    There is no start: seeking goes by times, which some files do not have and others have wrong. What little
    could not be decoded is added to `lost` at the end. DataError when more of it is damaged, also after the
    first blocks.
    """
    with _opened(path) as (container, stream), mapped(path) as data:
        times = _TIMES[container.format.name.partition(",")[0]]
        pages = ogg_pages(data)
        losses = Losses(data, raw=times == "none", timed=times == "own" or pages.torn)
        yield from _decoded(path, container, stream, losses)
        losses.absent += pages.rims * losses.sound / max(1, pages.whole)
    lossless = stream.codec_context.name in _LOSSLESS
    if losses.lost and (lossless or not losses.small):
        raise DataError(f"{path}: damaged: {losses.said}")
    if losses.said and lost is not None:
        lost.append(losses)


def _decoded(
    path: Path, container: InputContainer, stream: av.AudioStream, losses: Losses
) -> Iterator[tuple[np.ndarray, int]]:
    import av

    codec, end, before = stream.codec_context, 0, b""
    lossless = codec.name in _LOSSLESS
    if lossless:  # checksums, which FFmpeg passes over otherwise
        codec.options = {"err_detect": "crccheck+explode"}
    try:
        for packet in container.demux(stream):
            losses.read(packet)
            leap = losses.leap(packet)
            if losses.timed:  # joined Oggs begin again at 0
                losses.absent += leap if losses.data[:4] != b"OggS" else max(0.0, leap)
            if codec.name == "flac" and leap > 0 and crc16(before):  # else pieces are joined
                raise DataError(f"{path}: damaged: frames are missing in it")
            before = bytes(packet) if codec.name == "flac" else b""
            end = (packet.pos or 0) + packet.size
            try:
                for frame in packet.decode():
                    losses.sound += frame.samples / frame.sample_rate
                    yield _samples(frame), frame.sample_rate
                losses.decoded(packet)
            except av.FFmpegError as error:
                if lossless:
                    raise DataError(f"{path}: damaged: {error.strerror}") from None
                losses.fail(packet.pos, packet.size)
        losses.end()
    except av.InvalidDataError:  # what follows the sound is none, as far as a stated length tells
        losses.end(None if _STATED.intersection(container.format.name.split(",")) else end)
    except av.PatchWelcomeError:
        raise DataError(f"{path}: songs of several kinds are joined in it; split it") from None


class Packets(NamedTuple):
    """sizes: bytes of all packets, each with what stands behind it; frames: samples in them, None where one
    does not begin when the one before it ends."""

    sizes: list[int]
    frames: int | None


def packets(path: Path) -> Packets:
    """The sound's packets, which are found but not decoded; where the time base is that of the samples."""
    with _opened(path) as (container, stream):
        found = [(one.size, one.pts or 0, one.duration or 0) for one in container.demux(stream) if one.size]
    runs_on = all(begin + length == after for (_, begin, length), (_, after, _) in pairwise(found))
    return Packets([size for size, _, _ in found], sum(n for *_, n in found) if runs_on else None)


def _samples(frame: av.AudioFrame) -> np.ndarray:
    """(frames, channels) float32."""
    samples = frame.to_ndarray()
    samples = samples.T if frame.format.is_planar else samples.reshape(-1, len(frame.layout.channels))
    if samples.dtype.kind == "f":
        return samples.astype(np.float32)
    half = 2.0 ** (8 * samples.dtype.itemsize - 1)
    return (samples.astype(np.float64) / half - (samples.dtype.kind == "u")).astype(np.float32)
