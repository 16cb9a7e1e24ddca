"""A song behind another one in the same file is never lost without a word."""

from __future__ import annotations

import struct
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from acestep_mlx.data.facts import FileAudio, examine
from acestep_mlx.errors import DataError
from acestep_mlx.io.audio import probe

from .test_audio import encode, needs_ffmpeg
from .test_lengths import RATE, ffmpeg_made, flac, id3, made, mp3, song, wav

SECOND = np.repeat(np.random.default_rng(1).normal(0, 0.2, (RATE, 1)), 2, axis=1).astype(np.float32)


@cache
def one(form: str) -> bytes:
    return mp3() if form == "mp3" else made({"aiff": "AIFF"}.get(form, form.upper()), x=SECOND)


CHUNKS = ("wav", "aiff", "caf", "au", "w64")
FORMS = (*CHUNKS, "flac", "ogg", "mp3")


@pytest.mark.parametrize("first", FORMS)
@pytest.mark.parametrize("second", FORMS)
def test_a_song_behind_another_is_read_or_named(first: str, second: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.{first}"
    for between in (b"", bytes(40), b"TAG".ljust(128, b"x")):
        path.write_bytes(one(first) + between + one(second))
        chunks = first in CHUNKS
        if (first == second and not chunks) or (chunks and second in CHUNKS and not between):
            if first != "flac" or not between:  # else it is said to be damaged
                assert probe(path).duration > 1.9
            continue
        place = len(one(first)) + len(between)
        with pytest.raises(DataError, match=rf"a second file \({second}\) begins at byte {place}; split it"):
            probe(path)
        assert f"({second})" in str(examine(FileAudio(path)).problem)


@pytest.mark.parametrize("second", ["mp3", "wav", "ogg"])
def test_a_song_behind_a_flac_that_states_no_length(second: str, tmp_path: Path) -> None:
    path = tmp_path / "a.flac"
    path.write_bytes(flac(0) + one(second))
    with pytest.raises(DataError, match=rf"\({second}\) begins at byte {len(flac(0))};"):
        probe(path)


def test_a_picture_before_the_second_song_belongs_to_it(tmp_path: Path) -> None:
    path = tmp_path / "a.flac"
    path.write_bytes(one("flac") + id3(50_000) + mp3(False))
    with pytest.raises(DataError, match=rf"\(mp3\) begins at byte {len(one('flac'))};"):
        probe(path)


def test_what_stands_between_two_flacs_is_no_sound(tmp_path: Path) -> None:
    path = tmp_path / "a.flac"
    for between in (id3(50_000) + mp3(False), one("ogg"), other("bare mp3")):
        path.write_bytes(one("flac") + between + one("flac"))
        with pytest.raises(DataError, match=r"damaged|a second file"):
            probe(path)


def ape(header: bool) -> bytes:
    item = struct.pack("<II", 12, 0) + b"Cover\0" + b"RIFF\0\0\0\0WAVE"
    rest = struct.pack("<III", 2000, len(item) + 32, 1)
    ends = [b"APETAGEX" + rest + struct.pack("<I", flag) + bytes(8) for flag in (0xA0000000, 0x80000000)]
    return ends[0] * header + item + ends[1]


def chunk(name: bytes, body: bytes) -> bytes:
    return name + struct.pack("<I", len(body)) + body + b"\0" * (len(body) % 2)


TAILS: dict[str, bytes] = {
    "ID3v1": b"TAG".ljust(128, b"a"),
    "APEv2": ape(True),
    "APEv2 without header": ape(False),
    "APEv2 and ID3v1": ape(True) + b"TAG".ljust(128, b"a"),
    "Lyrics3": b"LYRICSBEGININD0000200LYR00004fLaC000042LYRICS200" + b"TAG".ljust(128, b"a"),
    "ID3v2": id3(5000),
    "ID3v2 that holds a song": id3(0)[:6] + b"\0\0\x08\0" + made("WAV", x=SECOND)[:1024],
    "padding": bytes(5000),
    "noise": np.random.default_rng(0).bytes(20_000),
    "what looks like one frame": b"\xff\xfb\x90\x64" * 4,
    "a name alone": b"RIFF and WAVE, fLaC, OggS",
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("tail", TAILS)
def test_tags_and_padding_are_no_second_song(form: str, tail: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.{form}"
    path.write_bytes(one(form))
    seconds = probe(path).duration
    path.write_bytes(one(form) + TAILS[tail])
    assert abs(probe(path).duration - seconds) < 0.15  # libsndfile reads a w64 to the end of its file


@pytest.mark.parametrize("name", [b"LIST", b"id3 ", b"bext", b"JUNK"])
def test_chunks_behind_the_samples_may_hold_anything(name: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    data = one("wav") + chunk(name, b"INFO" + mp3() + b"\0")
    path.write_bytes(data[:4] + struct.pack("<I", len(data) - 8) + data[8:])
    assert probe(path).duration == 1.0


@pytest.mark.parametrize("head", [id3(3000), bytes(700)])
def test_what_stands_before_an_mp3_is_no_song(head: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.mp3"
    path.write_bytes(head + mp3() + b"TAG".ljust(128, b"a"))
    assert abs(probe(path).duration - 4.0) < 0.1


def piped(suffix: str, folder: Path) -> bytes:
    source = folder / "source.wav"
    source.write_bytes(made("WAV", x=SECOND))
    return ffmpeg_made(source, folder / f"piped.{suffix}", "-f", suffix, "-").read_bytes()


@needs_ffmpeg
@pytest.mark.parametrize("suffix", CHUNKS)
def test_songs_that_were_written_to_a_pipe_and_joined(suffix: str, tmp_path: Path) -> None:
    """The second one's header must not be heard."""
    data = piped(suffix, tmp_path)
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(data)
    assert abs(probe(path).duration - 1.0) < 0.1
    for second in (data, one(suffix)):
        path.write_bytes(data + second)
        with pytest.raises(DataError, match=rf"a second song \({suffix}\) begins at byte {len(data)}; split"):
            probe(path)


def test_a_wav_behind_one_whose_size_was_never_written(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    path.write_bytes(wav(0) + one("wav"))
    with pytest.raises(DataError, match=rf"a second song \(wav\) begins at byte {len(wav(0))};"):
        probe(path)


@pytest.mark.slow_after(2)
@needs_ffmpeg
@pytest.mark.parametrize(
    ("suffix", "second", "said"),
    [("wv", None, "a second song (wavpack)"), ("wv", "flac", "a second file (flac)"),
     ("m4a", "mp3", "a second file (mp3)"), ("m4a", "flac", "a second file (flac)"),
     ("wma", "mp3", "a second file (mp3)")],
)  # fmt: skip
def test_what_ffmpeg_reads_of_joined_songs(
    suffix: str, second: str | None, said: str, tmp_path: Path
) -> None:
    path = encode(tmp_path / f"a.{suffix}", song(), RATE)
    data = path.read_bytes()
    path.write_bytes(data + TAILS["ID3v1"])
    assert abs(probe(path).duration - 4.0) < 0.1
    path.write_bytes(data + (data if second is None else one(second)))
    assert f"{said} begins at byte {len(data)}; split" in str(examine(FileAudio(path)).problem)


@pytest.mark.slow_after(2)
@needs_ffmpeg
@pytest.mark.parametrize("first", ["flac", "ogg", "mp3", "wav"])
def test_an_m4a_or_wavpack_behind_a_song(first: str, tmp_path: Path) -> None:
    for suffix, name in (("m4a", "mp4"), ("wv", "wavpack")):
        behind = encode(tmp_path / f"b.{suffix}", song(), RATE).read_bytes()
        path = tmp_path / f"a.{first}"
        path.write_bytes(one(first) + behind)
        with pytest.raises(DataError, match=rf"a second file \({name}\) begins at byte {len(one(first))};"):
            probe(path)


@cache
def other(name: str) -> bytes:
    """A second song of any format; `bare`: without the tags or the Xing header that tell it."""
    return mp3(False, "CONSTANT") if name == "bare mp3" else id3(5000) + mp3() if name == "id3" else one(name)


@pytest.mark.slow_after(2)
@needs_ffmpeg
@pytest.mark.parametrize("suffix", CHUNKS)
def test_another_format_behind_a_song_that_was_written_to_a_pipe(suffix: str, tmp_path: Path) -> None:
    """Its bytes must not be heard."""
    data = piped(suffix, tmp_path)
    aac = encode(tmp_path / "b.aac", song(), RATE).read_bytes()
    path = tmp_path / f"a.{suffix}"
    seconds = {name: other(name) for name in ("mp3", "bare mp3", "id3", "ogg", "flac", "au")} | {"aac": aac}
    for name, second in seconds.items():
        path.write_bytes(data + second)
        what = {"bare mp3": "mp3", "id3": "mp3"}.get(name, name)
        with pytest.raises(DataError, match=rf"a second \w+ \({what}\) begins at byte {len(data)}; split"):
            probe(path)


@pytest.mark.slow_after(1)
@pytest.mark.parametrize("name", ["mp3", "bare mp3", "id3", "ogg", "flac"])
def test_another_format_behind_a_wav_whose_size_was_never_written(name: str, tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    for size in (0, 0xFFFFFFFF, 0x7FFFFFFF):
        path.write_bytes(wav(size) + other(name))
        with pytest.raises(DataError, match=rf"begins at byte {len(wav(size))}; split"):
            probe(path)


@pytest.mark.parametrize("scale", [1e-5, 1e-3, 0.5])
def test_samples_are_no_frames(scale: float, tmp_path: Path) -> None:
    """Quiet samples are full of what looks like the beginning of a frame."""
    x = np.random.default_rng(0).normal(0, scale, (4 * RATE, 2)).astype(np.float32)
    data = bytearray(made("WAV", x=np.clip(x, -1, 1)))
    place = data.index(b"data") + 4
    data[place : place + 4] = data[4:8] = b"\xff" * 4
    path = tmp_path / "a.wav"
    path.write_bytes(data)
    assert abs(probe(path).duration - 4) < 0.01


@pytest.mark.slow_after(2)
@needs_ffmpeg
@pytest.mark.parametrize("first", ["aac", "mka", "webm", "piped mka"])
def test_a_song_behind_aac_or_matroska(first: str, tmp_path: Path) -> None:
    suffix = first.split()[-1]
    how = ("-c:a", {"webm": "libopus", "mka": "flac", "aac": "aac"}[suffix])
    source = tmp_path / "source.wav"
    source.write_bytes(made("WAV"))
    end = ("-f", "matroska", "-") if first == "piped mka" else ()
    path = ffmpeg_made(source, tmp_path / f"a.{suffix}", *how, *end)
    data = path.read_bytes()
    assert abs(probe(path).duration - 4.0) < 0.1
    path.write_bytes(data + TAILS["ID3v1"])
    assert abs(probe(path).duration - 4.0) < 0.1
    path.write_bytes(data + data)
    if suffix == "aac":
        assert abs(probe(path).duration - 8.0) < 0.2
    else:
        with pytest.raises(DataError, match=rf"a second file \(mka\) begins at byte {len(data)}; split"):
            probe(path)
    for name in ("mp3", "bare mp3", "ogg", "flac", "wav"):
        path.write_bytes(data + other(name))
        what = name.split()[-1]
        with pytest.raises(DataError, match=rf"a second file \({what}\) begins at byte {len(data)}; split"):
            probe(path)


@pytest.mark.slow_after(2)
@needs_ffmpeg
@pytest.mark.parametrize("first", ["flac", "ogg", "mp3", "wav"])
def test_aac_matroska_or_wma_behind_a_song(first: str, tmp_path: Path) -> None:
    for suffix in ("aac", "mka", "wma"):
        second = encode(tmp_path / f"b.{suffix}", song(), RATE).read_bytes()
        path = tmp_path / f"a.{first}"
        path.write_bytes(one(first) + second)
        with pytest.raises(DataError, match=rf"a second file \({suffix}\) begins at byte {len(one(first))};"):
            probe(path)
