"""A length that a header or a library guesses is never taken for the song's."""

from __future__ import annotations

import io
import struct
import subprocess
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import av.stream
import numpy as np
import pytest
import soundfile

from acestep_mlx import families
from acestep_mlx.cli.describe import audio_file
from acestep_mlx.config.request import Request
from acestep_mlx.data.facts import FileAudio, examine
from acestep_mlx.errors import DataError
from acestep_mlx.io import audio, ffmpeg, lengths
from acestep_mlx.io.audio import probe, read_audio
from acestep_mlx.io.mpeg import cut_by_xing, mp3_frame, mp3_frames
from acestep_mlx.pipeline import ACEStepPipeline

from .test_audio import encode, needs_ffmpeg, pitch

RATE = 44100
HALF = 2.0  # seconds of each half of the song


@cache
def song(rate: int = RATE) -> np.ndarray:
    """(samples, 2): a quiet tone of 440 Hz, then a loud noise with one of 880 Hz: bit rates differ much."""
    t = np.arange(round(HALF * rate)) / rate
    noise = np.random.default_rng(0).normal(0, 0.05, len(t))
    quiet, loud = 0.1 * np.sin(2 * np.pi * 440 * t), 0.5 * np.sin(2 * np.pi * 880 * t) + noise
    return np.repeat(np.concatenate([quiet, loud])[:, None], 2, axis=1).astype(np.float32)


def made(form: str, rate: int = RATE, x: np.ndarray | None = None, **how: object) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, song(rate) if x is None else x, rate, format=form, **how)
    return buffer.getvalue()


@cache
def mp3(xing: bool = True, mode: str = "VARIABLE", rate: int = RATE, reverse: bool = False) -> bytes:
    x = song(rate)[::-1] if reverse else song(rate)
    data = made("MP3", rate, x, bitrate_mode=mode, compression_level=0.5)
    frame = mp3_frame(data, 0)
    assert frame is not None
    return data if xing else data[frame.size :]


def id3(size: int) -> bytes:
    """A tag such as a cover picture makes, full of what looks like frame headers."""
    return b"ID3\x04\0\0" + bytes([size >> 21 & 127, size >> 14 & 127, size >> 7 & 127, size & 127]) + (
        b"\xff\xfb\x90\x64" * (size // 4 + 1)
    )[:size]  # fmt: skip


def wav(size: int, before: bytes = b"") -> bytes:
    """A streamed wav: `size` stands where its bytes should be counted; chunks `before` the samples."""
    data = bytearray(made("WAV", subtype="PCM_16"))
    place = data.index(b"data") + 4
    data[place : place + 4] = struct.pack("<I", size)
    data[4:8] = struct.pack("<I", min(size + len(before) + 36, 0xFFFFFFFF))
    return bytes(data[: place - 4]) + before + bytes(data[place - 4 :])


def odd(data: bytes) -> bytes:
    """The wav with an odd number of bytes in its header, and the byte behind them that is not counted."""
    data += b"odd \x01\0\0\0\xff"
    return data[:4] + struct.pack("<I", len(data) - 8) + data[8:] + b"\0"


def flac(total: int) -> bytes:
    data = bytearray(made("FLAC"))
    kept = struct.unpack(">Q", data[18:26])[0] >> 36 << 36
    data[18:26] = struct.pack(">Q", kept | total)
    return bytes(data)


def torn_ogg() -> bytes:
    """Pages are missing at the front, as in a recording of a broadcast: the times start late."""
    data = made("OGG")
    pages = [i for i in range(len(data)) if data.startswith(b"OggS", i)]
    return data[: pages[2]] + data[pages[len(pages) // 2] :]


ONE = 2 * HALF
# name → (suffix, bytes, seconds, what the reason says)
GUESSED: dict[str, tuple[str, Callable[[], bytes], float, str]] = {
    "VBR without Xing": ("mp3", lambda: mp3(False), ONE, "does not state its length"),
    "VBR without Xing, loud first": (
        "mp3", lambda: mp3(False, reverse=True), ONE, "does not state its length",
    ),
    "CBR without Xing": ("mp3", lambda: mp3(False, "CONSTANT"), ONE, "does not state its length"),
    "without Xing, behind a picture": (
        "mp3", lambda: id3(90_000) + mp3(False), ONE, "does not state its length",
    ),
    "22 kHz without Xing": ("mp3", lambda: mp3(False, rate=22050), ONE, "does not state its length"),
    "joined mp3": ("mp3", lambda: mp3() * 2, 2 * ONE, "its header says"),
    "three mp3 with pictures": ("mp3", lambda: (id3(40_000) + mp3()) * 3, 3 * ONE, "its header says"),
    "joined without Xing": (
        "mp3", lambda: mp3(False, "CONSTANT") * 2, 2 * ONE, "does not state its length",
    ),
    "joined mp3 of two rates": ("mp3", lambda: mp3() + mp3(rate=22050), 2 * ONE, "its header says"),
    "a Xing header that claims days": ("mp3", lambda: claimed(mp3(), 1 << 24), ONE, "its header says"),
    "joined ogg": ("ogg", lambda: made("OGG") * 2, 2 * ONE, "its header says 4.00 s"),
    "three opus": ("opus", lambda: made("OGG", 48000, subtype="OPUS") * 3, 3 * ONE, "its header says 4.0"),
    "torn ogg": ("ogg", torn_ogg, HALF, ""),
    "streamed flac": ("flac", lambda: flac(0), ONE, "gives no length"),
    "flac of weeks": ("flac", lambda: flac((1 << 36) - 1), ONE, "counts 68719476735 samples"),
    "joined flac": ("flac", lambda: made("FLAC") * 2, 2 * ONE, "2 songs are joined"),
    "joined wav": ("wav", lambda: made("WAV") + made("WAV", 22050), 2 * ONE, "2 songs are joined"),
    "joined wav of odd sizes": ("wav", lambda: odd(made("WAV")) * 2, 2 * ONE, "2 songs are joined"),
    "wav of 0 bytes": ("wav", lambda: wav(0), ONE, "holds nothing"),
    "wav of 0 bytes, chunks before": (
        "wav", lambda: wav(0, b"LIST\x04\0\0\0INFOJUNK\x03\0\0\0abc\0odd \x01\0\0\0\xff\0"), ONE,
        "holds nothing",
    ),
}  # fmt: skip


def claimed(data: bytes, frames: int) -> bytes:
    """The mp3 with another number of frames in its Xing header, which also gives its bytes."""
    place = min(i for i in (data.find(b"Xing"), data.find(b"Info")) if i > 0)
    return data[: place + 8] + struct.pack(">I", frames) + data[place + 12 :]


@pytest.mark.slow_after(8)
@pytest.mark.parametrize("name", GUESSED)
def test_the_song_is_what_decoding_to_its_end_gives(name: str, tmp_path: Path) -> None:
    suffix, make, seconds, reason = GUESSED[name]
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(make())
    info = probe(path)
    # each encoder's delay cannot be known, and torn songs say only that something is gone
    assert abs(info.duration - seconds) < (0.7 if name == "torn ogg" else 0.08 * seconds / ONE)
    assert reason in info.doubt and not info.exact
    sound = read_audio(path, sample_rate=None)
    assert len(sound) == round(info.duration * info.sample_rate)
    facts = examine(FileAudio(path))
    assert facts.problem is None and facts.duration == info.duration and reason in (facts.counted or "")


# suffix → a format of chunks that states its size
CHUNKED: dict[str, Callable[[], bytes]] = {
    "wav": lambda: made("WAV"),
    "aiff": lambda: made("AIFF"),
    "rf64": lambda: made("RF64"),
    "w64": lambda: made("W64"),
    "au": lambda: made("AU"),
    "caf": lambda: made("CAF"),
}


@pytest.mark.parametrize("name", [*CHUNKED, "odd wav"])
def test_where_songs_that_are_joined_begin(name: str) -> None:
    """By their own sizes; nothing is decoded for it. The byte behind an odd size is a part of the song."""
    data = odd(made("WAV")) if name == "odd wav" else CHUNKED[name]()
    for times in (1, 2, 3):
        starts = [len(data) * i for i in range(times)]
        assert lengths.chunk_songs(data * times) == (starts, len(data) * times)  # type: ignore[arg-type]


@pytest.mark.parametrize("suffix", CHUNKED)
def test_formats_of_chunks_are_read_to_their_end(suffix: str, tmp_path: Path) -> None:
    whole = CHUNKED[suffix]()
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(whole)
    assert probe(path).exact and probe(path).duration == ONE
    path.write_bytes(whole * 3)
    info = probe(path)
    assert info.duration == 3 * ONE and "3 songs are joined" in info.doubt
    sound, one = read_audio(path), read_audio(alone(tmp_path, suffix))
    assert np.array_equal(sound, np.concatenate([one] * 3))  # no header is heard
    for cut in (whole[: len(whole) // 2], whole + whole[: len(whole) // 2]):
        path.write_bytes(cut)
        with pytest.raises(DataError, match="truncated: "):
            probe(path)


def alone(folder: Path, suffix: str) -> Path:
    path = folder / f"alone.{suffix}"
    path.write_bytes(CHUNKED[suffix]())
    return path


def wma(folder: Path) -> bytes:
    path = folder / "whole.wma"
    command = ["ffmpeg", "-v", "error", "-f", "wav", "-i", "-", str(path)]
    subprocess.run(command, input=made("WAV"), check=True)
    return path.read_bytes()


@needs_ffmpeg
def test_a_wma_that_is_cut_or_joined_is_named(tmp_path: Path) -> None:
    whole = wma(tmp_path)
    path = tmp_path / "b.wma"
    path.write_bytes(whole)
    assert abs(probe(path).duration - ONE) < 0.1
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="truncated: "):
        probe(path)
    path.write_bytes(whole * 2)
    with pytest.raises(DataError, match="2 songs are joined in it"):
        probe(path)


def test_a_wav_whose_sizes_contradict_each_other_is_read_to_its_end(tmp_path: Path) -> None:
    """As a recorder leaves it that updates only one of them."""
    data = bytearray(made("WAV", subtype="PCM_16"))
    place = data.index(b"data") + 4
    data[place : place + 4] = struct.pack("<I", RATE * 4)  # a second
    path = tmp_path / "a.wav"
    path.write_bytes(data)
    assert probe(path).duration == ONE and "goes on" in probe(path).doubt
    kept = RATE * 4 + place + 4
    for tail in (bytes(len(data) - kept), b"junk" + struct.pack("<I", len(data) - kept - 8)):
        path.write_bytes((data[:kept] + tail).ljust(len(data), b"\x01"))  # padding, a chunk
        assert probe(path).duration == 1.0 and probe(path).exact


@pytest.mark.parametrize("times", [2, 3])
@pytest.mark.parametrize("padded", [True, False], ids=["padded", "last padding missing"])
def test_joined_rf64_of_odd_sizes(padded: bool, times: int, tmp_path: Path) -> None:
    """The byte behind an odd number of bytes is not counted, and may be missing at the end."""
    data = bytearray(made("RF64") + b"odd \x01\0\0\0\xff")
    struct.pack_into("<Q", data, data.index(b"ds64") + 8, len(data) - 8)
    assert len(data) % 2
    path = tmp_path / "a.rf64"
    path.write_bytes((bytes(data) + b"\0") * (times - 1) + bytes(data) + b"\0" * padded)
    info = probe(path)
    assert info.duration == times * ONE and f"{times} songs are joined" in info.doubt
    assert np.array_equal(read_audio(path)[-4 * RATE :], read_audio(path)[: 4 * RATE])


@pytest.mark.parametrize(
    ("others", "seconds"),
    [([], 9.0), (["picture"], 9.0), (["video"], 0.0), (["audio"], 0.0), (["video", "subtitle"], 0.0)],
)
def test_a_containers_length_is_the_sounds_where_nothing_else_has_one(
    others: list[str], seconds: float
) -> None:
    """That of its longest stream, counted from 0 also where all begins later; a cover lasts no time."""
    cover = av.stream.Disposition.attached_pic
    streams = [
        SimpleNamespace(type="video" if kind == "picture" else kind, disposition=cover * (kind == "picture"))
        for kind in ("audio", *others)
    ]
    container: Any = SimpleNamespace(streams=streams, duration=10_000_000, start_time=1_000_000)
    assert ffmpeg._of_container(container) == seconds


def test_a_streamed_rf64_is_read_to_its_end(tmp_path: Path) -> None:
    data = bytearray(made("RF64"))
    data[20:44] = bytes(24)  # sizes and samples
    place = data.index(b"data") + 4
    data[place : place + 4] = b"\xff" * 4
    path = tmp_path / "a.wav"
    path.write_bytes(data)
    info = probe(path)
    assert info.duration == ONE and "holds nothing" in info.doubt
    assert len(read_audio(path)) == round(ONE * RATE)


@pytest.mark.slow_after(1)
@pytest.mark.parametrize("name", ["VBR without Xing", "joined ogg", "streamed flac", "wav of 0 bytes"])
def test_info_and_generate_tell_the_same_number(name: str, tmp_path: Path) -> None:
    suffix, make, _, reason = GUESSED[name]
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(make())
    seconds = examine(FileAudio(path)).duration
    (line,) = audio_file(path)[:1]
    assert f"{seconds:.2f} s" in line and reason in line
    of_any_model: Any = SimpleNamespace(family=families.default())
    source = ACEStepPipeline.read_source(of_any_model, Request(task="audio2audio", source=str(path)))
    assert source is not None and abs(len(source) - seconds * 44100) < 2


@pytest.mark.parametrize("stated", [True, False], ids=["stated", "streamed"])
@pytest.mark.parametrize(
    "tail",
    [b"TAG" + b"y" * 125, b"\0" * 100, b"\r\n", b"APETAGEX" + struct.pack("<4I8x", 2000, 32, 0, 0)],
    ids=["ID3v1", "zeros", "newline", "APEv2"],
)
def test_tags_behind_a_flac_are_no_damage(tail: bytes, stated: bool, tmp_path: Path) -> None:
    whole = made("FLAC") if stated else flac(0)
    path = tmp_path / "song.flac"
    path.write_bytes(whole)
    alone = read_audio(path, sample_rate=None)
    path.write_bytes(whole + tail)
    tagged = read_audio(path, sample_rate=None)
    assert np.array_equal(alone, tagged) and probe(path).duration == len(alone) / RATE
    part = read_audio(path, sample_rate=None, start=1.0)
    assert np.array_equal(part, alone[RATE:])


@pytest.mark.parametrize(
    "name", ["VBR without Xing", "CBR without Xing", "joined mp3 of two rates", "joined ogg", "streamed flac"]
)
def test_a_part_is_where_it_is_in_the_whole(name: str, tmp_path: Path) -> None:
    suffix, make, _, _ = GUESSED[name]
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(make())
    whole, rate = read_audio(path, sample_rate=None), audio.look(path).sample_rate
    seconds = len(whole) / rate
    for start, duration in ((0.3, 0.5), (seconds / 2 - 0.2, 0.5), (seconds - 0.5, None)):
        part = read_audio(path, sample_rate=None, start=start, duration=duration)
        first = round(start * rate)
        assert np.abs(part - whole[first : first + len(part)]).max() < 1e-4
        assert abs(len(part) - rate * (duration or 0.5)) < 2
    with pytest.raises(DataError, match="but lasts only"):
        read_audio(path, start=seconds + 1)


@pytest.mark.slow
@needs_ffmpeg
def test_an_estimate_of_aac_proves_nothing(tmp_path: Path) -> None:
    """A stream without a container: its first frames are quiet, so FFmpeg thinks that it lasts far longer."""
    path = encode(tmp_path / "a.aac", song(), RATE)
    facts = examine(FileAudio(path))
    assert facts.problem is None and abs(facts.duration - ONE) < 0.1 and facts.counted
    assert probe(path).duration == facts.duration
    path.write_bytes(path.read_bytes() * 2)
    assert abs(probe(path).duration - 2 * ONE) < 0.2
    late = read_audio(path, start=ONE + HALF + 1, duration=1.0)
    assert abs(pitch(late[:, 0]) - 880) < 1


@pytest.mark.slow_after(2)
@pytest.mark.parametrize("size", [0xFFFFFFFF, 0xFFFFFFFF - 36, 0x7FFFFFFF, 0x80000000, 0x7FFFF000])
def test_sizes_that_writers_to_a_pipe_leave_are_no_promise(size: int, tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    path.write_bytes(wav(size))
    assert probe(path).duration == ONE == examine(FileAudio(path)).duration


@pytest.mark.parametrize("form", ["wav", "flac", "aiff", "au"])
def test_what_states_its_length_exactly_is_not_decoded(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / f"a.{form}"
    path.write_bytes(made(form.upper()))
    with monkeypatch.context() as patch:
        patch.setattr(audio, "decode", None)
        info = probe(path)
    assert info.exact and info.duration == ONE and not info.doubt
    facts = examine(FileAudio(path))
    assert (facts.duration, facts.counted) == (ONE, None)
    assert len(read_audio(path)) == round(ONE * 44100)


def test_a_cut_mp3_is_truncated_by_its_xing_header(tmp_path: Path) -> None:
    path = tmp_path / "a.mp3"
    data = mp3(mode="CONSTANT")
    path.write_bytes(data[: len(data) // 2])
    for look in (probe, read_audio):
        with pytest.raises(DataError, match=r"truncated: only [12]\.\d\d of 4\.00 s"):
            look(path)
    assert "truncated" in str(examine(FileAudio(path)).problem)


@pytest.mark.parametrize("rate", [8000, 12345, 44100, 96000])
@pytest.mark.parametrize("samples", [1, 4096, 4097, 40_000])
@pytest.mark.parametrize("channels", [1, 2, 5])
def test_flac_frames_agree_with_the_header(rate: int, samples: int, channels: int, tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(0, 0.1, (samples, channels)).astype(np.float32)
    path = tmp_path / "a.flac"
    for coding in ("PCM_16", "PCM_24"):
        soundfile.write(path, x, rate, subtype=coding)
        assert ffmpeg.packets(path).frames == samples
        assert probe(path).exact


def ffmpeg_made(source: Path, target: Path, *how: str, before: Sequence[str] = ()) -> Path:
    with target.open("wb") as out:
        command = ["ffmpeg", "-v", "error", "-nostdin", "-y", *before, "-i", str(source), *how]
        if how[-1] == "-":
            subprocess.run(command, stdout=out, check=True)
        else:
            subprocess.run([*command, str(target)], check=True)
    return target


def decoded(path: Path) -> np.ndarray:
    """(samples, 2) as the FFmpeg program decodes them."""
    command = ["ffmpeg", "-v", "error", "-i", str(path), "-f", "f32le", "-ac", "2", "-ar", str(RATE), "-"]
    return np.frombuffer(subprocess.run(command, capture_output=True, check=True).stdout, "<f4").reshape(
        -1, 2
    )


@needs_ffmpeg
@pytest.mark.parametrize("before", [("-ss", "1"), ()])
def test_a_flac_that_was_cut_without_coding_it_again(before: tuple[str, ...], tmp_path: Path) -> None:
    """Its header still counts what it was cut from."""
    path = tmp_path / "whole.flac"
    path.write_bytes(made("FLAC"))
    cut = ffmpeg_made(path, tmp_path / "cut.flac", "-t", "2", "-c", "copy", before=before)
    info = probe(cut)
    there = round(info.duration * RATE)
    assert 1.9 < info.duration < 2.2
    assert info.doubt == f"its header counts 176400 samples, but there are {there}"
    assert examine(FileAudio(cut)).duration == info.duration == len(read_audio(cut)) / 44100


@pytest.mark.slow_after(2)
@needs_ffmpeg
@pytest.mark.parametrize("order", ["whole cut", "cut whole", "whole whole", "cut cut cut"])
def test_flacs_that_were_joined_without_coding_them_again(order: str, tmp_path: Path) -> None:
    """Their frames keep the numbers that they had: the last one's says nothing."""
    whole = tmp_path / "whole.flac"
    whole.write_bytes(made("FLAC"))
    ffmpeg_made(whole, tmp_path / "cut.flac", "-c", "copy", before=("-ss", "1.5"))
    names = tmp_path / "names"
    names.write_text("".join(f"file {name}.flac\n" for name in order.split()))
    joined = ffmpeg_made(names, tmp_path / "a.flac", "-c", "copy", before=("-f", "concat", "-safe", "0"))
    there = decoded(joined)
    assert np.array_equal(read_audio(joined, sample_rate=None), there)
    assert round(probe(joined).duration * RATE) == len(there)
    assert "pieces are joined in it" in probe(joined).doubt


def test_a_flac_that_ends_within_a_frame_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "a.flac"
    for data in (made("FLAC"), flac(0)):
        path.write_bytes(data[: len(data) // 2])
        with pytest.raises(DataError, match="damaged"):
            probe(path)


@pytest.mark.slow_after(1)
@needs_ffmpeg
@pytest.mark.parametrize(
    ("suffix", "how"),
    [("wma", "-f asf"), ("m4a", "-f mp4 -movflags frag_keyframe+empty_moov -c:a aac"),
     ("caf", "-f caf"), ("w64", "-f w64"), ("aiff", "-f aiff"), ("opus", "-f opus"), ("flac", "-f flac"),
     ("mp3", "-f mp3 -q:a 2"), ("wav", "-f wav")],
)  # fmt: skip
def test_what_ffmpeg_writes_to_a_pipe(suffix: str, how: str, tmp_path: Path) -> None:
    path = tmp_path / "whole.wav"
    path.write_bytes(made("WAV"))
    piped = ffmpeg_made(path, tmp_path / f"piped.{suffix}", *how.split(), "-")
    facts = examine(FileAudio(piped))
    assert facts.problem is None and abs(facts.duration - ONE) < 0.1
    assert probe(piped).duration == facts.duration


@pytest.mark.parametrize("coding", ["IMA_ADPCM", "MS_ADPCM", "GSM610"])
def test_codings_in_blocks_are_counted(coding: str, tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, song()[:, :1], RATE, subtype=coding)
    info = probe(path)
    assert not info.exact and coding in info.doubt and abs(info.duration - ONE) < 0.1
    assert examine(FileAudio(path)).duration == info.duration == len(read_audio(path)) / 44100


@pytest.mark.slow
@needs_ffmpeg
@pytest.mark.parametrize("suffix", ["m4a", "mp4"])
def test_joined_mp4_is_refused_for_its_second_half(suffix: str, tmp_path: Path) -> None:
    path = encode(tmp_path / f"a.{suffix}", song(), RATE)
    assert examine(FileAudio(path)).problem is None
    path.write_bytes(path.read_bytes() * 2)
    assert "2 songs are joined in it, of which only the first" in str(examine(FileAudio(path)).problem)


@pytest.mark.slow
def test_what_cannot_be_mended_is_read_by_ffmpeg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.wav"
    path.write_bytes(wav(0))
    monkeypatch.setattr(lengths, "_MENDED", 1000)
    assert (probe(path).decoder, probe(path).duration) == ("ffmpeg", ONE)


def test_oggs_of_two_rates_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.ogg"
    path.write_bytes(made("OGG") + made("OGG", 22050))
    with pytest.raises(DataError, match="songs of several kinds are joined in it; split it"):
        probe(path)


@pytest.mark.parametrize("xing", [True, False])
@pytest.mark.parametrize("start", [None, 0.7, 2.5])
def test_an_mp3_is_the_same_in_blocks_and_in_one(xing: bool, start: float | None, tmp_path: Path) -> None:
    """Seeking, also to the place where it is already, makes libsndfile lose what frames share."""
    path = tmp_path / "a.mp3"
    path.write_bytes(mp3(xing))
    whole = decoded(path) if xing else read_audio(path, sample_rate=None)
    part = read_audio(path, sample_rate=None, start=start)
    assert np.abs(part - whole[round((start or 0) * RATE) :]).max() < 1e-5


@pytest.mark.slow_after(6)
@pytest.mark.parametrize("rate", [8000, 22050, 32000, 44100, 48000])
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("mode", ["VARIABLE", "CONSTANT"])
def test_every_frame_of_an_mp3_is_read(rate: int, channels: int, mode: str, tmp_path: Path) -> None:
    """Against the same frames behind the Xing header that their encoder wrote."""
    path = tmp_path / "a.mp3"
    path.write_bytes(made("MP3", rate, song(rate)[:, :channels], bitrate_mode=mode, compression_level=0.6))
    expected = read_audio(path, sample_rate=None)
    first = mp3_frame(path.read_bytes(), 0)
    assert first is not None and len(expected) == ONE * rate
    path.write_bytes(path.read_bytes()[first.size :])
    sound = read_audio(path, sample_rate=None)
    assert probe(path).doubt == "it does not state its length"
    # The encoder's delay is known from its header only: it is the shift at which the middle agrees.
    middle = slice(round(HALF * rate) - 500, round(HALF * rate) + 1500)
    misses = [np.abs(sound[d:][middle] - expected[middle]).max() for d in range(1200)]
    delay = int(np.argmin(misses))
    assert len(sound) >= delay + len(expected)
    assert np.abs(sound[delay : delay + len(expected)] - expected).max() < 0.02


@pytest.mark.slow_after(1)
@pytest.mark.parametrize("lead", [0, 20, 4000])
def test_a_wav_of_0_bytes_may_start_with_silence(lead: int, tmp_path: Path) -> None:
    x = song()
    x[:lead] = 0
    data = bytearray(made("WAV", x=x, subtype="PCM_16"))
    place = data.index(b"data") + 4
    path = tmp_path / "a.wav"
    path.write_bytes(bytes(data[:place]) + bytes(4) + bytes(data[place + 4 :]))
    assert probe(path).duration == ONE
    assert np.abs(read_audio(path, sample_rate=None) - x).max() < 1e-4


@pytest.mark.parametrize("chunk", [b"", b"LIST\x04\0\0\0INFO", b"id3 \x03\0\0\0abc\0", b"JUNK\x03\0\0\0abc"])
def test_a_wav_that_holds_nothing_holds_nothing(chunk: bytes, tmp_path: Path) -> None:
    """What follows its empty chunk of samples is not taken for samples."""
    path = tmp_path / "a.wav"
    data = made("WAV", x=np.zeros((0, 2), np.float32), subtype="PCM_16") + chunk
    path.write_bytes(data[:4] + struct.pack("<I", len(data) - 8) + data[8:])
    with pytest.raises(DataError, match="holds no audio"):
        probe(path)
    assert examine(FileAudio(path)).problem == "holds no audio"


def frames(data: bytes) -> int:
    return len(list(mp3_frames(data)))


def test_frames_are_found_behind_tags_and_noise() -> None:
    data = mp3()
    for dirty in (id3(5000) + data, data + b"TAG" + bytes(125), bytes(700) + data, data + b"APETAGEX" * 9):
        assert frames(dirty) == frames(data) and cut_by_xing(dirty) is False
    assert cut_by_xing(data[:-2000]) is True and cut_by_xing(mp3(False)) is None
    for nothing in (b"", b"\xff", b"text " * 99, bytes(999), b"\xff\xfb\x90\x64"):
        assert frames(nothing) == 0 and cut_by_xing(nothing) is None


@pytest.mark.parametrize("footer", [False, True])
@pytest.mark.parametrize("tags", [1, 2, 3])
def test_a_song_within_a_tag_is_not_the_files(footer: bool, tags: int) -> None:
    """Pictures and objects in ID3v2 may hold frames; a tag's size leaves out its footer."""
    data, body = mp3(), mp3(False)
    size = bytes(len(body) >> shift & 127 for shift in (21, 14, 7, 0))
    tag = b"\x04\0" + bytes([0x10 * footer]) + size
    whole = (b"ID3" + tag + body + (b"3DI" + tag) * footer) * tags
    assert frames(whole + data) == frames(data)


# ── Ogg Vorbis whose times are not those of its packets ──────────────────────────────────────────────
class Page(NamedTuple):
    start: int
    end: int
    time: int


def ogg_pages(data: bytes) -> list[Page]:
    """Where each page of an Ogg begins and ends, and its time."""
    found, position = [], 0
    while position < len(data):
        segments = data[position + 26]
        end = position + 27 + segments + sum(data[position + 27 : position + 27 + segments])
        found.append(Page(position, end, struct.unpack_from("<q", data, position + 6)[0]))
        position = end
    return found


def sign(data: bytearray, page: Page) -> None:
    """Write the checksum of a page that was changed."""
    data[page.start + 22 : page.start + 26] = bytes(4)
    crc = 0
    for byte in data[page.start : page.end]:
        crc ^= byte << 24
        for _ in range(8):
            crc = crc << 1 ^ (0x104C11DB7 if crc & 0x80000000 else 0)
    struct.pack_into("<I", data, page.start + 22, crc)


def retimed(data: bytes, change: Callable[[int, int], int]) -> bytes:
    """The Ogg with `change(page's number, time)` as the times of its pages of sound."""
    out = bytearray(data)
    for number, page in enumerate(ogg_pages(data)):
        if page.time > 0:
            struct.pack_into("<q", out, page.start + 6, change(number, page.time))
            sign(out, page)
    return bytes(out)


RETIMED: dict[str, Callable[[int, int], int]] = {
    "starts before 0": lambda _, time: time - 9786,
    "starts long before 0": lambda _, time: time - 44000,
    "starts a little before 0": lambda _, time: time - 441,
    "goes back in the middle": lambda number, time: time - 50_000 * (number > 4),
    "leaps in the middle": lambda number, time: time + 50_000 * (number > 4),
    "stands still": lambda _, time: min(time, 15_000),
}


@pytest.mark.slow_after(5)
@pytest.mark.parametrize("rate", [8000, 22050, 44100, 48000])
@pytest.mark.parametrize("name", RETIMED)
def test_an_ogg_whose_times_disagree_with_its_sound_is_read_to_its_end(
    name: str, rate: int, tmp_path: Path
) -> None:
    whole = np.concatenate([song(rate), song(rate)])[:-777]
    data = made("OGG", rate, whole)
    cut = retimed(data, RETIMED[name])
    assert cut != data
    path = tmp_path / "a.ogg"
    path.write_bytes(data)
    straight = read_audio(path, sample_rate=None)
    path.write_bytes(cut)
    info = probe(path)
    # the last page's own cut is known from its time, which may be off
    assert 0 <= len(read_audio(path, sample_rate=None)) - len(straight) < 4096
    assert np.array_equal(read_audio(path, sample_rate=None)[: len(straight)], straight)
    path.write_bytes(cut + data + cut)
    assert 0 <= probe(path).duration - (2 * info.duration + len(straight) / rate) < 4096 / rate


def test_an_ogg_that_starts_late_loses_nothing(tmp_path: Path) -> None:
    """A recording of a broadcast: its times count from before it began."""
    path = tmp_path / "a.ogg"
    path.write_bytes(retimed(made("OGG"), lambda _, time: time + 10_000_000))
    assert len(read_audio(path)) == 4 * RATE


@pytest.mark.slow_after(1)
@pytest.mark.parametrize("by", [-9786, -441, 0])
def test_opus_behind_opus_that_starts_before_0(by: int, tmp_path: Path) -> None:
    whole = made("OGG", 48000, subtype="OPUS")
    path = tmp_path / "a.opus"
    path.write_bytes(whole)
    straight = read_audio(path, sample_rate=None)
    path.write_bytes(whole + retimed(whole, lambda _, time: time + by))
    assert np.array_equal(read_audio(path, sample_rate=None)[: len(straight)], straight)
    assert 0 <= round(probe(path).duration * 48000) - 2 * len(straight) < 1000


@pytest.mark.slow
@needs_ffmpeg
@pytest.mark.parametrize("coding", ["libvorbis", "libopus"])
def test_an_ogg_that_a_player_cut_has_the_samples_that_the_ffmpeg_program_gives(
    coding: str, tmp_path: Path
) -> None:
    """Its first time is below its first page's samples. libsndfile leaves them out, or refuses such Opus."""
    source, whole, cut = tmp_path / "a.wav", tmp_path / "a.ogg", tmp_path / "b.ogg"
    source.write_bytes(made("WAV", 48000))
    ffmpeg_made(source, whole, "-c:a", coding)
    for start in ("0.5", "1.23", "2.002"):
        ffmpeg_made(whole, cut, "-c", "copy", before=("-ss", start))
        command = ["ffmpeg", "-v", "error", "-i", str(cut), "-f", "f32le", "-"]
        given = np.frombuffer(subprocess.run(command, capture_output=True, check=True).stdout, "<f4")
        sound = read_audio(cut, sample_rate=None)
        assert len(sound) == len(given) // 2 == round(probe(cut).duration * 48000)
        assert np.abs(sound - np.clip(given, -1, 1).reshape(-1, 2)).max() < 1e-5


def opus_at(rate: int) -> bytes:
    """Opus whose header says that it was encoded from sound of this rate (0: unknown)."""
    data = bytearray(made("OGG", 48000, subtype="OPUS"))
    struct.pack_into("<I", data, data.index(b"OpusHead") + 12, rate)
    sign(data, ogg_pages(data)[0])
    return bytes(data)


@pytest.mark.slow_after(1)
@pytest.mark.parametrize(
    "rate", [0, 1, 8000, 11025, 12000, 16000, 24000, 44100, 48000, 96000, 2**31, 2**32 - 1]
)
def test_opus_is_48_khz_whatever_its_header_says(rate: int, tmp_path: Path) -> None:
    """RFC 7845: the rate there is of what was encoded, for information; 0 is "unknown"."""
    path = tmp_path / "a.opus"
    path.write_bytes(opus_at(48000))
    straight = read_audio(path, sample_rate=None)
    path.write_bytes(opus_at(rate))
    found = probe(path)
    assert (found.sample_rate, round(found.duration * 48000)) == (48000, len(straight))
    assert np.array_equal(read_audio(path, sample_rate=None), straight)
    part = read_audio(path, sample_rate=None, start=2.5, duration=1.0)
    assert np.array_equal(part, straight[120_000:168_000])
    path.write_bytes(opus_at(48000) + opus_at(rate))
    assert len(read_audio(path, sample_rate=None)) == 2 * len(straight)
    path.write_bytes(opus_at(rate) + made("OGG", 44100))  # one would be heard at the other's rate
    with pytest.raises(DataError, match=r"a\.opus: "):
        probe(path)


def test_opus_of_a_low_rate_whose_pages_are_missing_is_48_khz_too(tmp_path: Path) -> None:
    data = opus_at(8000)
    pages = ogg_pages(data)
    path = tmp_path / "a.opus"
    path.write_bytes(data[: pages[2].start] + data[pages[-2].start :])
    sound = read_audio(path, sample_rate=None)
    assert probe(path).sample_rate == 48000 and 0 < len(sound) < 4 * 48000
    assert np.abs(np.fft.rfft(sound[-24000:, 0]))[-6000:].max() > 1, "noise above 18 kHz is still there"


@pytest.mark.parametrize("less", [1, 300, 900])
@pytest.mark.parametrize("kind", [{"subtype": "OPUS"}, {}], ids=["opus", "vorbis"])
def test_an_ogg_without_the_mark_of_its_end(kind: dict[str, str], less: int, tmp_path: Path) -> None:
    """Streams that were stopped: the last packet is heard to its end."""
    data = bytearray(made("OGG", 48000, song(48000)[:-less], **kind))
    path = tmp_path / "a.ogg"
    path.write_bytes(data)
    straight = read_audio(path, sample_rate=None)
    last = ogg_pages(data)[-1]
    data[last.start + 5] &= ~4
    sign(data, last)
    path.write_bytes(data)
    sound = read_audio(path, sample_rate=None)
    assert np.array_equal(sound[: len(straight)], straight) and len(sound) - len(straight) < 960
    assert examine(FileAudio(path)).duration == probe(path).duration == len(sound) / 48000


@needs_ffmpeg
def test_oggs_that_ffmpeg_joined_without_coding_them_again(tmp_path: Path) -> None:
    whole = tmp_path / "whole.ogg"
    whole.write_bytes(made("OGG"))
    ffmpeg_made(whole, tmp_path / "cut.ogg", "-c", "copy", before=("-ss", "0.7"))
    names = tmp_path / "names"
    names.write_text("file whole.ogg\nfile cut.ogg\nfile whole.ogg\n")
    joined = ffmpeg_made(names, tmp_path / "a.ogg", "-c", "copy", before=("-f", "concat", "-safe", "0"))
    there = len(decoded(joined))
    assert there > 10 * RATE and abs(len(read_audio(joined, sample_rate=None)) - there) < 4096


@needs_ffmpeg
@pytest.mark.parametrize("start", ["0.01", "0.7", "1.234", "3"])
def test_an_ogg_that_was_cut_without_coding_it_again(start: str, tmp_path: Path) -> None:
    whole = tmp_path / "whole.ogg"
    whole.write_bytes(made("OGG", x=np.concatenate([song(), song()])))
    cut = ffmpeg_made(whole, tmp_path / "cut.ogg", "-c", "copy", before=("-ss", start))
    there = decoded(cut)
    sound = read_audio(cut, sample_rate=None)
    assert sound.shape == there.shape and np.abs(sound - np.clip(there, -1, 1)).max() < 1e-3
