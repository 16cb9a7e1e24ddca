"""FFmpeg as a child process, for the formats that libsndfile cannot read. Each is a row of FORMATS.

Only the local file is opened (no network, no playlists that name other files), there is no shell, and the
audio comes out at the file's own rate and channels.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..errors import DataError

INSTALL = (
    "install it (macOS: brew install ffmpeg; Debian: apt install ffmpeg) or convert the file to wav or flac"
)


class Format(NamedTuple):
    """Files that only FFmpeg reads.

    endings: of their names. demuxers: FFmpeg's names of the container. states: whether it states a length;
    what FFmpeg says of others is worked out from the first frames and the size. plain: whether it is known by
    its beginning whatever the file is called; others are tried for their endings alone.
    """

    endings: str
    demuxers: str
    states: bool = False
    plain: bool = True


# Playlists and concatenation scripts, which name other files, are not among them. Of films the sound is read.
FORMATS = (
    Format("m4a alac mp4 m4b m4r m4v mov qt 3gp 3g2", "mov,mp4,m4a,3gp,3g2,mj2", states=True),
    Format("mka webm mkv", "matroska,webm", states=True),
    Format("aac", "aac"),
    Format("wma asf wmv", "asf"),
    Format("wv", "wv", states=True),
    Format("tta", "tta", states=True),
    Format("ape", "ape", states=True),
    Format("ac3", "ac3"),
    Format("eac3 ec3", "eac3"),
    Format("amr awb", "amr"),
    Format("mp1 mp2 mpa mpga", "mp3"),
    Format("spx", "ogg"),
    Format("dsf", "dsf", plain=False),
    Format("dff", "iff", plain=False),
    Format("dts dtshd", "dts,dtshd", plain=False),
    Format("mlp thd", "mlp,truehd", plain=False),
    Format("shn", "shn", plain=False),
    Format("tak", "tak", plain=False),
    Format("mpc", "mpc,mpc8", plain=False),
    Format("oma", "oma", plain=False),
    Format("ra rm", "rm", plain=False),
    Format("avi", "avi", plain=False),
    Format("flv", "flv", plain=False),
    Format("mpg mpeg vob", "mpeg", plain=False),
    Format("m2ts mts", "mpegts", plain=False),
)
SUFFIXES = tuple(f".{ending}" for one in FORMATS for ending in one.endings.split())
# Containers that state a length, and those that libsndfile reads too, but not always to their end.
_NATIVE = ("wav", "flac", "mp3", "ogg", "aiff", "au", "w64", "caf")
_STATED = {"caf", "wav", "flac", "aiff", "w64"} | {
    name for one in FORMATS if one.states for name in one.demuxers.split(",")
}
PROBE_SECONDS = 60
_ADDRESS = re.compile(r"\[\S+ @ 0x[0-9a-f]+\] ")  # which part of FFmpeg speaks, and where it is in memory
_UNKNOWN = ("Invalid argument", "Invalid data found when processing input")
BLOCK_BYTES = 1 << 20


class Stream(NamedTuple):
    """The first audio stream of a file; `duration` in seconds, 0 where the file states none.

    Even a stated one is true to a frame only: what encoders add at the ends is not always left out.
    """

    duration: float
    sample_rate: int
    channels: int
    codec: str


def available() -> bool:
    """Whether both programs are on the PATH."""
    return all(shutil.which(program) for program in ("ffmpeg", "ffprobe"))


def missing(path: Path) -> DataError:
    """The error of a file that only FFmpeg reads."""
    return DataError(f"{path}: reading {path.suffix or 'this format'} needs FFmpeg; {INSTALL}")


def _open(path: Path) -> list[str]:
    # An absolute `file:` URL: neither a leading '-' nor a ':' in the name means anything to FFmpeg.
    known = [one.demuxers for one in FORMATS if one.plain or path.suffix.lower()[1:] in one.endings.split()]
    demuxers = ",".join((*known, *_NATIVE))
    return ["-protocol_whitelist", "file", "-format_whitelist", demuxers, "-i", f"file:{path.absolute()}"]


def probe(path: Path) -> Stream:
    """What the file says of itself. DataError when it holds no audio, or FFmpeg is missing."""
    if not available():
        raise missing(path)
    entries = "stream=codec_type,sample_rate,channels,codec_name,duration:stream_disposition=attached_pic"
    entries += ":format=start_time,duration,format_name"
    command = ["ffprobe", "-v", "error", "-show_entries", entries, "-of", "json"]
    try:
        done = subprocess.run(
            command + _open(path),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=PROBE_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise DataError(f"{path}: FFmpeg could not make sense of it within {PROBE_SECONDS} s") from None
    if done.returncode:
        raise DataError(f"{path}: unreadable: {_reason(done.stderr, path)}")
    found = json.loads(done.stdout)
    sounds = [one for one in found.get("streams", ()) if one.get("codec_type") == "audio"]
    if not sounds:
        raise DataError(f"{path}: holds no audio")
    stream = sounds[0]
    return Stream(
        _duration(found, stream),
        int(stream.get("sample_rate") or 0),
        int(stream.get("channels") or 0),
        stream.get("codec_name") or "unknown",
    )


def _duration(found: dict[str, Any], stream: dict[str, Any]) -> float:
    """Seconds that the file states for the sound, 0 where it states none.

    A container's are those of its longest stream, and count from time 0 although it may begin later.
    """
    container = found.get("format", {})
    if _STATED.isdisjoint(container.get("format_name", "").split(",")):
        return 0.0
    if (seconds := _seconds(stream, "duration")) > 0:
        return seconds
    pictures = [one.get("disposition", {}).get("attached_pic") for one in found["streams"]]
    timed = [one.get("codec_type") in ("audio", "video", "subtitle") for one in found["streams"]]
    if sum(time and not picture for time, picture in zip(timed, pictures, strict=True)) > 1:
        return 0.0
    return max(0.0, _seconds(container, "duration") - max(0.0, _seconds(container, "start_time")))


def _seconds(entry: dict[str, Any], name: str) -> float:
    text = entry.get(name)
    return 0.0 if text in (None, "N/A") else float(text)


def blocks(path: Path, channels: int, sample_rate: int) -> Iterator[np.ndarray]:
    """The whole decoded audio in (frames, channels) float32 blocks at `sample_rate` Hz.

    There is no start: seeking goes by times, which some files do not have and others have wrong. DataError
    when decoding fails, also when it fails after the first blocks.
    """
    command = ["ffmpeg", "-nostdin", "-v", "error", *_open(path), "-map", "0:a:0"]
    # Said, so that songs of several rates joined in one file come out at one.
    command += ["-ar", str(sample_rate), "-ac", str(channels), "-f", "f32le", "-c:a", "pcm_f32le", "pipe:1"]
    with tempfile.TemporaryFile() as messages:
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=messages)
        assert child.stdout is not None
        try:
            frame, rest = 4 * channels, b""
            while data := child.stdout.read(BLOCK_BYTES):
                data = rest + data
                whole = len(data) - len(data) % frame
                rest = data[whole:]
                yield np.frombuffer(data[:whole], "<f4").reshape(-1, channels)
            code = child.wait()
        finally:
            child.kill()
            child.stdout.close()
            child.wait()
        messages.seek(0)
        said = messages.read(4096)
        if code:
            raise DataError(f"{path}: unreadable: {_reason(said, path)}")


def _reason(said: bytes, path: Path) -> str:
    """The last thing FFmpeg said, without the file's own name."""
    lines = said.decode("utf-8", "replace").replace(f"file:{path.absolute()}: ", "").strip().splitlines()
    reason = _ADDRESS.sub("", lines[-1].strip()) if lines else "FFmpeg gives no reason"
    return f"it is no sound file that FFmpeg knows ({reason})" if reason in _UNKNOWN else reason
