"""Audio files ↔ arrays, resampling, and the log-mel spectrogram.

wav, flac and aiff go through libsndfile; everything else, and what libsndfile would not read to its end, goes
through FFmpeg. A song is what decoding to its end gives, never what its header claims.
"""

from __future__ import annotations

import contextlib
import io
import math
import os
import struct
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING

import mlx.core as mx
import numpy as np

from ..errors import DataError, cause
from . import ffmpeg, lengths, mpeg
from .atomic import write_bytes
from .joined import behind, kind
from .losses import Losses
from .schema import open_file

if TYPE_CHECKING:
    import soundfile

SUFFIXES = ffmpeg.SUFFIXES  # what counts as an audio file in a folder
# What looks like one and is never read, with the reason.
UNREAD = {
    **dict.fromkeys((".mid", ".midi", ".kar"), "holds notes (MIDI), not sound"),
    **dict.fromkeys((".m4p", ".aax", ".aaxc", ".aa"), "is copy-protected"),
    ".cda": "only points to a track of a CD",
    ".pcm": "holds bare samples, without their rate and channels; convert it to wav",
}
# libsndfile's (format, encoding) by suffix
WRITABLE = {
    ".wav": ("WAV", "PCM_16"),
    ".flac": ("FLAC", "PCM_16"),
    ".mp3": ("MP3", "MPEG_LAYER_III"),
    ".ogg": ("OGG", "VORBIS"),
}
TAGS = (
    "title",
    "copyright",
    "software",
    "artist",
    "comment",
    "date",
    "album",
    "license",
    "tracknumber",
    "genre",
)
MIN_RATE, MAX_RATE = 1000, 768_000  # Hz
MAX_FRAMES = 1 << 28  # 2 GiB as float32 stereo: an hour and a half at 48 kHz
BLOCK = 1 << 16  # frames read or written at a time
STATED_FRAMES = 1 << 36  # more than the header of any format that states them can count
LOSSY_FRAMES = 4096  # by which the length that a lossy format states may be off
MPEG = ("mp3", "mp2", "mp1")
_BY_SOUNDFILE = ("wav", "aiff", "flac", "caf", "au", "w64")  # by their content
_WAV_COMMENT = 16_000  # bytes that libsndfile may write before samples; from some 50 KB on no wav comes of it
SILENCE = 1e-4  # peak, −80 dB

_HALF = 0.5**0.5
_LEFT, _RIGHT, _BOTH, _NONE = (1.0, 0.0), (0.0, 1.0), (_HALF, _HALF), (0.0, 0.0)
_LS, _RS = (_HALF, 0.0), (0.0, _HALF)
# Share of each channel in left and right (ITU-R BS.775), in the order of wav, flac and FFmpeg
LAYOUTS = {
    3: (_LEFT, _RIGHT, _BOTH),
    4: (_LEFT, _RIGHT, _LS, _RS),
    5: (_LEFT, _RIGHT, _BOTH, _LS, _RS),
    6: (_LEFT, _RIGHT, _BOTH, _NONE, _LS, _RS),
    7: (_LEFT, _RIGHT, _BOTH, _NONE, (0.5, 0.5), _LS, _RS),
    8: (_LEFT, _RIGHT, _BOTH, _NONE, _LS, _RS, _LS, _RS),
}


@dataclass(frozen=True)
class AudioInfo:
    """Sound in a file: `sample_rate` in Hz, `format` in lower case.

    duration: seconds; exact, or stated or guessed (`look`), or counted (`probe`). promised: seconds that the
    file firmly states: when fewer can be decoded it is truncated; 0 where it states none. doubt: why what the
    header says about the length is not taken; empty when it is. lost: what little could not be decoded, once
    it was (`probe`).
    """

    duration: float
    sample_rate: int
    channels: int
    format: str
    decoder: str = "soundfile"  # "ffmpeg", or "parts": libsndfile, mended part by part
    exact: bool = True
    promised: float = 0.0
    doubt: str = ""
    lost: str = ""


def probe(path: str | os.PathLike[str]) -> AudioInfo:
    """Length, rate and channels. Decodes only when the file does not state its length exactly.

    DataError: missing, empty, truncated or not audio.
    """
    path = Path(path)
    info = look(path)
    if info.exact:
        return info
    lost: list[Losses] = []
    frames = sum(len(block) for block in decode(path, info, lost=lost))
    seconds = frames / info.sample_rate
    return replace(info, duration=seconds, doubt=counted(info, seconds), lost=said(lost))


def look(path: Path) -> AudioInfo:
    """What a file's headers and structure tell, without decoding. DataError as for `probe`."""
    return _by_soundfile(path) if _check_file(path) in _BY_SOUNDFILE else _by_ffmpeg(path)


def _by_soundfile(path: Path) -> AudioInfo:
    """libsndfile's view, or FFmpeg's where libsndfile has none or would not read all."""
    import soundfile

    try:
        joined = lengths.joined_samples(path)  # which libsndfile does not open
        found = soundfile.info(io.BytesIO(next(lengths.parts(path, "wav"))) if joined else os.fsencode(path))
    except (soundfile.LibsndfileError, RuntimeError, OSError):
        return _by_ffmpeg(path)
    doubt = lengths.doubt(path, found.format, found.subtype, found.frames)
    info = AudioInfo(found.duration, found.samplerate, found.channels, found.format.lower())
    if doubt is None:
        return _sane(path, replace(info, promised=info.duration))
    if doubt.decoder != "ffmpeg":
        return _sane(path, replace(info, decoder=doubt.decoder, exact=False, doubt=doubt.reason))
    return _by_ffmpeg(path, doubt.reason)


def _by_ffmpeg(path: Path, doubt: str = "") -> AudioInfo:
    """FFmpeg's view; `doubt`: why libsndfile does not do, and why no length is believed."""
    stream = ffmpeg.probe(path)
    if (songs := lengths.mp4_songs(path) or lengths.chunked(path)[0]) > 1:
        raise DataError(
            f"{path}: {songs} songs are joined in it, of which only the first can be read; split it"
        )
    states, promised = stream.states, stream.promised
    if stream.codec in MPEG:
        with mpeg.mapped(path) as data:
            cut = mpeg.cut_by_xing(data)
        states, promised = cut is not None, stream.duration if cut else 0.0
    doubt = doubt or ("" if states else "it does not state its length")
    return _sane(
        path,
        AudioInfo(
            stream.duration, stream.sample_rate, stream.channels, stream.codec, "ffmpeg",
            exact=False, promised=0.0 if doubt else promised, doubt=doubt,
        ),
    )  # fmt: skip


def said(lost: list[Losses]) -> str:
    """What could not be decoded, and what it means for the rest; empty where nothing was lost."""
    moved = ", and what follows them comes earlier by as much"
    return "; ".join(f"{one.said}{moved if one.lost else ''}" for one in lost)


def counted(info: AudioInfo, seconds: float) -> str:
    """Why the length that the file gives was not taken for the one that decoding gave; empty where it was."""
    if info.doubt or info.exact or abs(info.duration - seconds) * info.sample_rate <= LOSSY_FRAMES:
        return info.doubt
    return f"its header says {info.duration:.2f} s"


def decode(
    path: Path,
    info: AudioInfo,
    start: float = 0.0,
    duration: float | None = None,
    lost: list[Losses] | None = None,
) -> Iterator[np.ndarray]:
    """(frames, 2) float32 blocks at the file's own rate, from `start` for `duration` seconds (None: all).

    What little could not be decoded is added to `lost` once the end is reached.
    DataError: damaged, no audio, nothing from `start` on, values that are not numbers, or, once the end is
    reached, fewer than `info.promised` seconds.
    """
    first = round(start * info.sample_rate)
    stop = math.inf if duration is None else first + round(duration * info.sample_rate)
    position = first if info.exact else 0  # frames of the file that lie behind
    lost = [] if lost is None else lost
    with contextlib.closing(_blocks(path, info, position, lost)) as blocks:
        for block in blocks:
            part = block[max(0, first - position) : min(len(block), stop - position)]
            position += len(block)
            if len(part):
                if not np.isfinite(part).all():
                    raise DataError(f"{path}: holds values that are not finite numbers")
                yield to_stereo(part)
            if position >= stop:
                return
    seconds = position / info.sample_rate
    if not position:
        raise DataError(f"{path}: holds no audio")
    if position <= first:
        raise DataError(f"{path}: starts at {start} s, but lasts only {seconds:.2f} s")
    # Lossy formats may not know their length to the sample.
    there = position + sum(one.seconds for one in lost) * info.sample_rate
    if there < info.promised * info.sample_rate - max(LOSSY_FRAMES, 0.1 * info.sample_rate):
        raise DataError(f"{path}: truncated: only {seconds:.2f} of {info.promised:.2f} s can be decoded")


def read_audio(
    path: str | os.PathLike[str],
    *,
    sample_rate: int | None = 44100,
    channels: int = 2,
    start: float | None = None,
    duration: float | None = None,
) -> np.ndarray:
    """(samples, channels) float32 in [−1, 1] at `sample_rate` (None: the file's own).

    `start` and `duration` in seconds select a part. Mono is doubled, more than two channels are mixed down
    to stereo, `channels=1` gives the mean of left and right. DataError with the reason when the file is
    missing, empty, truncated, damaged, too long for memory, or holds values that are not numbers.
    """
    path, first = Path(path), start or 0.0
    if first < 0 or (duration is not None and duration <= 0):
        raise DataError(f"{path}: a part from {start} s for {duration} s makes no sense")
    info = look(path)
    limit = MAX_FRAMES * min(1.0, info.sample_rate / (sample_rate or info.sample_rate))  # frames of the file
    wanted = info.promised - first if duration is None else duration
    if wanted * info.sample_rate > limit:
        raise DataError(f"{path}: {wanted:.0f} s are too much for memory; read a part of it")
    if info.exact and first >= info.duration:
        raise DataError(f"{path}: starts at {start} s, but lasts only {info.duration:.2f} s")
    stereo, frames = [], 0
    for block in decode(path, info, first, duration):
        frames += len(block)
        if frames > limit:
            raise DataError(f"{path}: is longer than it says, and too much for memory; read a part of it")
        stereo.append(block)
    samples = np.concatenate(stereo)
    if channels == 1:
        samples = samples.mean(axis=1, keepdims=True)
    if sample_rate is not None:
        samples = resample(samples, info.sample_rate, sample_rate)
    found: np.ndarray = np.clip(samples, -1.0, 1.0)
    return found


def write_audio(
    path: str | os.PathLike[str], samples: np.ndarray, sample_rate: int, tags: Mapping[str, str] | None = None
) -> None:
    """Write (samples,) or (samples, channels) as wav, flac, mp3 or ogg, by the suffix; atomic.

    `tags`: any of TAGS. DataError for another suffix or tag, empty or non-finite samples, or when the disk
    or the format refuses.
    """
    import soundfile

    path = Path(path)
    if path.suffix.lower() not in WRITABLE:
        raise DataError(
            f"{path}: can write {', '.join(WRITABLE)}, not {path.suffix or 'a file without a suffix'}"
        )
    if unknown := [tag for tag in tags or {} if tag not in TAGS]:
        raise DataError(f"{path}: unknown tag {unknown[0]!r}; the tags are {', '.join(TAGS)}")
    samples = np.asarray(samples, dtype=np.float32)
    samples = samples[:, None] if samples.ndim == 1 else samples
    if samples.ndim != 2 or not samples.size:
        raise DataError(
            f"{path}: audio must be (samples,) or (samples, channels) and not empty, got {samples.shape}"
        )
    if not np.isfinite(samples).all():
        raise DataError(f"{path}: not written: the audio holds values that are not finite numbers")
    samples = np.clip(samples, -1.0, 1.0)
    form, encoding = WRITABLE[path.suffix.lower()]
    encoded, tags = io.BytesIO(), dict(tags or {})
    long = (
        tags.pop("comment")
        if form == "WAV" and len(tags.get("comment", "").encode()) > _WAV_COMMENT
        else None
    )
    try:
        with soundfile.SoundFile(
            encoded, "w", int(sample_rate), samples.shape[1], format=form, subtype=encoding
        ) as file:
            for tag, text in tags.items():
                setattr(file, tag, text)
            for i in range(0, len(samples), BLOCK):  # libsndfile's Vorbis encoder overflows on long blocks
                file.write(samples[i : i + BLOCK])
        data = encoded.getvalue() if long is None else _with_comment(encoded.getvalue(), long)
        if (kept := soundfile.info(io.BytesIO(data)).frames) < len(samples):
            raise DataError(f"{path}: not written: of {len(samples)} samples {kept} could be read back")
        write_bytes(path, data)
    except soundfile.LibsndfileError as error:
        raise DataError(f"{path}: cannot be written: {str(error).rpartition(': ')[2].rstrip('.')}") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be written: {cause(error)}") from None


def _with_comment(wav: bytes, comment: str) -> bytes:
    """The wav with a comment behind its samples: before them libsndfile has no room for a long one."""
    text = comment.encode()
    text += bytes(1 + (len(text) + 1) % 2)  # ends in a zero, at an even place
    info = b"INFOICMT" + struct.pack("<I", len(text)) + text
    wav += bytes(len(wav) % 2) + b"LIST" + struct.pack("<I", len(info)) + info
    return wav[:4] + struct.pack("<I", len(wav) - 8) + wav[8:]


def resample(samples: np.ndarray, source: int, target: int) -> np.ndarray:
    """(samples, channels) from `source` to `target` Hz, band-limited (soxr, high quality), float32."""
    if source == target or not len(samples):
        return samples.astype(np.float32, copy=False)
    import soxr

    given = np.ascontiguousarray(samples, dtype=np.float32)
    found: np.ndarray = soxr.resample(given, source, target, quality="HQ")
    return found


def is_silent(samples: np.ndarray) -> bool:
    """Whether nothing is louder than −80 dB."""
    return not samples.size or float(np.abs(samples).max()) < SILENCE


def to_stereo(samples: np.ndarray) -> np.ndarray:
    """(samples, channels) as (samples, 2) float32; no mix is louder than its loudest channel."""
    n = samples.shape[1]
    if n == 2:
        return samples.astype(np.float32, copy=False)
    if n == 1:
        return np.repeat(samples, 2, axis=1).astype(np.float32, copy=False)
    # Beyond 7.1 nothing is agreed: odd and even channels, as in stereo pairs.
    shares = np.array(LAYOUTS.get(n, [_RIGHT if i % 2 else _LEFT for i in range(n)]))
    found: np.ndarray = (samples @ (shares / shares.sum(axis=0))).astype(np.float32)
    return found


@cache
def mel_filters(sample_rate: int, n_fft: int, n_mels: int, f_min: float, f_max: float) -> np.ndarray:
    """(n_fft/2 + 1, n_mels) float32 triangles on Slaney's mel scale, each of unit area (Slaney's norm)."""
    from librosa.filters import mel  # seconds when cold

    return mel(sr=sample_rate, n_fft=n_fft, n_mels=n_mels, fmin=f_min, fmax=f_max).T


def log_mel(
    wav: mx.array,
    *,
    sample_rate: int = 44100,
    n_fft: int = 2048,
    win_length: int = 2048,
    hop_length: int = 512,
    n_mels: int = 128,
    f_min: float = 40,
    f_max: float = 16000,
    chunk: int = 2048,
) -> mx.array:
    """(…, samples) → log-mel spectrogram (…, n_mels, samples // hop_length), float32.

    Upstream's: Hann window, reflected by (win − hop)/2 on each side, √(re² + im² + 1e-6), Slaney mel,
    log(max(x, 1e-5)). `chunk` frames are in work at a time. The signal must be longer than the reflection.
    """
    left, right = (win_length - hop_length) // 2, (win_length - hop_length + 1) // 2
    S = wav.shape[-1]
    if right >= S:
        raise DataError(f"a spectrogram needs more than {right} samples, got {S}")
    x = wav.astype(mx.float32).reshape(-1, S)
    x = mx.concatenate([x[:, left:0:-1], x, x[:, -2 : -2 - right : -1] if right else x[:, :0]], axis=1)
    window = np.zeros(n_fft, np.float32)
    first = (n_fft - win_length) // 2
    window[first : first + win_length] = np.hanning(win_length + 1)[:-1]  # periodic
    hann, filters = mx.array(window), mx.array(mel_filters(sample_rate, n_fft, n_mels, f_min, f_max))
    B, F = x.shape[0], 1 + (x.shape[1] - n_fft) // hop_length
    pieces = []
    for start in range(0, F, chunk):
        n = min(chunk, F - start)
        part = mx.contiguous(x[:, start * hop_length : (start + n - 1) * hop_length + n_fft])
        frames = mx.as_strided(part, (B, n, n_fft), (part.shape[1], hop_length, 1))
        spectrum = mx.fft.rfft(frames * hann)
        power = mx.square(mx.real(spectrum)) + mx.square(mx.imag(spectrum))
        pieces.append(mx.log(mx.maximum(mx.sqrt(power + 1e-6) @ filters, 1e-5)))
        mx.eval(pieces[-1])
    return mx.concatenate(pieces, axis=1).swapaxes(1, 2).reshape(*wav.shape[:-1], n_mels, F)


def _blocks(path: Path, info: AudioInfo, first: int, lost: list[Losses]) -> Generator[np.ndarray]:
    """The file's (frames, channels) float32 blocks to its end, from a frame on where lengths are exact."""
    if info.decoder == "ffmpeg":
        for rate, run in groupby(ffmpeg.blocks(path, lost), key=itemgetter(1)):
            yield from _at_rate((block for block, _ in run), rate, info.sample_rate)
        return
    import soundfile

    try:
        if info.decoder == "parts":
            for part in lengths.parts(path, info.format):
                with soundfile.SoundFile(io.BytesIO(part)) as file:
                    yield from _at_rate(_read(file), file.samplerate, info.sample_rate)
        else:
            with soundfile.SoundFile(os.fsencode(path)) as file:
                if first:
                    file.seek(first)
                yield from _read(file)
    except (soundfile.LibsndfileError, RuntimeError, OSError) as error:
        reason = str(error).rpartition(": ")[2].rstrip(".")
        raise DataError(f"{path}: damaged: {reason or type(error).__name__}") from None


def _read(file: soundfile.SoundFile) -> Iterator[np.ndarray]:
    # Behind the last frame of a FLAC there may be tags, which its decoder takes for a damaged frame.
    left = (
        file.frames - file.tell() if file.format == "FLAC" and file.frames < STATED_FRAMES else STATED_FRAMES
    )
    file.seekable = lambda: False  # else it seeks after every block, and fails where the length is not known
    while len(block := file.read(min(BLOCK, left), dtype="float32", always_2d=True)):
        left -= len(block)
        yield block


def _at_rate(blocks: Iterator[np.ndarray], source: int, target: int) -> Iterator[np.ndarray]:
    """All blocks as they are, or as one at another rate."""
    if source == target:
        yield from blocks
    elif parts := [to_stereo(block) for block in blocks]:
        yield resample(np.concatenate(parts), source, target)


def _check_file(path: Path) -> str | None:
    """The format by the file's beginning, None where it is not known.

    DataError unless the file is there, not empty, as long as the header of a format of chunks says, and
    nothing stands behind its sound that would be lost.
    """
    try:
        size = path.stat().st_size
        if not path.is_file():
            raise DataError(f"{path}: not a file")
        with open_file(path) as file:
            file.read(1)
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        raise DataError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if not size:
        raise DataError(f"{path}: empty file")
    _, promised = lengths.chunked(path)
    if promised > size + 1:  # one padding byte may be missing
        raise DataError(f"{path}: truncated: {size} of {promised} bytes are there")
    if what := behind(path):
        raise DataError(f"{path}: {what}; split it, or convert its parts to one format and join them")
    return kind(path)


def _sane(path: Path, info: AudioInfo) -> AudioInfo:
    if not info.sample_rate:
        raise DataError(f"{path}: unreadable: no sound was found in it")
    if not MIN_RATE <= info.sample_rate <= MAX_RATE:
        raise DataError(f"{path}: sample rate {info.sample_rate} Hz is not between {MIN_RATE} and {MAX_RATE}")
    if info.channels < 1:
        raise DataError(f"{path}: holds no audio")
    if info.exact and info.duration <= 0:
        raise DataError(f"{path}: holds no audio")
    return info
