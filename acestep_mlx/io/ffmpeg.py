"""FFmpeg as a child process, for the formats that libsndfile cannot read: m4a, aac, alac, wma.

Only the local file is opened (no network, no playlists that name other files), there is no shell, and the
audio comes out at the file's own rate and channels.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..errors import DataError

INSTALL = (
    "install it (macOS: brew install ffmpeg; Debian: apt install ffmpeg) or convert the file to wav or flac"
)
# Containers that hold audio. Playlists and concatenation scripts, which name other files, are not among them.
DEMUXERS = (
    "mov,mp4,m4a,3gp,3g2,mj2,aac,ac3,eac3,asf,caf,matroska,webm,ape,wv,tta,amr,wav,flac,mp3,ogg,aiff,au,w64"
)
PROBE_SECONDS = 60
BLOCK_BYTES = 1 << 20


# Containers that state a length; what FFmpeg says of others is worked out from the first frames and the size.
STATED = {"mov", "caf", "matroska", "ape", "wv", "tta", "wav", "flac", "aiff", "w64"}


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
    return ["-protocol_whitelist", "file", "-format_whitelist", DEMUXERS, "-i", f"file:{path.absolute()}"]


def probe(path: Path) -> Stream:
    """What the file says of itself. DataError when it holds no audio, or FFmpeg is missing."""
    if not available():
        raise missing(path)
    entries = "stream=sample_rate,channels,codec_name,duration:format=duration,format_name"
    command = ["ffprobe", "-v", "error", "-select_streams", "a:0", "-show_entries", entries, "-of", "json"]
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
    if not found.get("streams"):
        raise DataError(f"{path}: holds no audio")
    stream = found["streams"][0]
    container = found.get("format", {})
    durations = (stream.get("duration"), container.get("duration"))
    stated = not STATED.isdisjoint(container.get("format_name", "").split(","))
    return Stream(
        next((float(d) for d in durations if d not in (None, "N/A")), 0.0) if stated else 0.0,
        int(stream.get("sample_rate") or 0),
        int(stream.get("channels") or 0),
        stream.get("codec_name") or "unknown",
    )


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
    return lines[-1].strip() if lines else "FFmpeg gives no reason"
