"""What is written beside a song and in it."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from acestep_mlx.config.request import Request
from acestep_mlx.errors import ConfigError, DataError
from acestep_mlx.io import audio
from acestep_mlx.io.audio import read_audio, write_audio
from acestep_mlx.report.spectrogram import log_mel_picture
from acestep_mlx.sampling import record as r

SOUND = (0.1 * np.random.default_rng(0).standard_normal((22050, 2))).astype(np.float32)


def story(**values: Any) -> dict[str, Any]:
    return {"request": Request(prompt="Tür 雨", **values).to_dict(), "model": {}, "loras": []}


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".mp3", ".ogg"])
@pytest.mark.parametrize(
    "lyrics", ["[verse]\nÄ 雨\n", *("la la\n" * n for n in (2000, 8000, 11_000, 100_000))], ids=len
)
def test_the_sound_file_tells_how_it_was_made(tmp_path: Path, suffix: str, lyrics: str) -> None:
    path = tmp_path / f"song{suffix}"
    wanted = story(lyrics=lyrics, seeds=(5,))
    r.save_song(path, SOUND, wanted, sample_rate=44100, facts={"seconds": 1.5})
    assert r.read_record(path) == wanted
    assert r.read_record(tmp_path / "song.json") == wanted
    assert json.loads((tmp_path / "song.json").read_text())["seconds"] == 1.5
    read = read_audio(path, sample_rate=None)
    assert soundfile.info(str(path)).samplerate == 44100 and len(read) >= len(SOUND)
    assert suffix in (".mp3", ".ogg") or np.allclose(read, SOUND, atol=1e-3)
    assert r.made_here(path)
    assert {p.name for p in tmp_path.iterdir()} == {f"song{suffix}", "song.json"}


def test_a_file_that_cannot_be_read_back_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audio, "_WAV_COMMENT", 1 << 20)  # as libsndfile alone would have it
    with pytest.raises(DataError, match=r"a\.wav: (cannot be written|not written)"):
        write_audio(tmp_path / "a.wav", SOUND, 44100, {"title": "x", "comment": "y" * 70_000})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("length", [70_000, 70_001])
def test_a_long_comment_ends_at_an_even_place(length: int, tmp_path: Path) -> None:
    """Chunks of a RIFF file begin at even places, and a reader takes their sizes at their word."""
    write_audio(tmp_path / "a.wav", SOUND, 44100, {"comment": "y" * length})
    data = (tmp_path / "a.wav").read_bytes()
    size = int.from_bytes(data[data.index(b"INFOICMT") + 8 :][:4], "little")
    assert size == length + 1 + (length + 1) % 2 and data.endswith(bytes(size - length))
    assert int.from_bytes(data[4:8], "little") == len(data) - 8 and len(data) % 2 == 0


def test_48_khz_on_request(tmp_path: Path) -> None:
    path = tmp_path / "song.wav"
    r.save_song(path, SOUND, story(), sample_rate=48000, facts={})
    info = soundfile.info(str(path))
    assert info.samplerate == 48000 and info.frames == 24000
    with pytest.raises(ConfigError, match="44100 or 48000"):
        r.save_song(path, SOUND, story(), sample_rate=22050, facts={})


def test_names(tmp_path: Path) -> None:
    request = Request(prompt="Slow, warm: jazz!", seeds=(7, 9))
    assert [p.name for p in r.output_paths(tmp_path, request)] == [
        "slow-warm-jazz-7.wav",
        "slow-warm-jazz-9.wav",
    ]
    assert [p.name for p in r.output_paths("a/x.mp3", request)] == ["x-7.mp3", "x-9.mp3"]
    assert r.output_paths("a/x.mp3", Request(seeds=(7,))) == [Path("a/x.mp3")]
    assert [p.name for p in r.output_paths(None, Request(seeds=(3, 3)))] == [
        "text2music-3-1.wav",
        "text2music-3-2.wav",
    ]
    with pytest.raises(DataError, match="suffix must be one of"):
        r.output_paths("x.aac", request)
    assert [p.name for p in r.output_paths("a/x", request)] == ["x-7.wav", "x-9.wav"]
    assert r.output_paths("x", Request(seeds=(7,)), ".flac") == [Path("x.flac")]


def test_nothing_is_overwritten_unasked(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.wav"
    r.check_writable([path], force=False)
    path.write_bytes(b"mine")
    with pytest.raises(DataError, match="--force"):
        r.check_writable([path], force=False)
    r.check_writable([path], force=True)
    with pytest.raises(DataError, match="cannot be written to"):
        r.check_writable([path / "b.wav"], force=False)
    with pytest.raises(DataError, match="is a folder"):
        r.check_writable([tmp_path], force=True)


def test_files_without_a_story(tmp_path: Path) -> None:
    wav, text = tmp_path / "a.wav", tmp_path / "a.json"
    soundfile.write(str(wav), SOUND, 44100)
    for content in ("{}", "[]", "no json", '{"acestep_mlx": {"request": 3}}'):
        text.write_text(content)
        with pytest.raises(DataError, match="does not say how"):
            r.read_record(text)
    with pytest.raises(DataError, match="does not say how"):
        r.read_record(wav)
    for missing in ("no.wav", "no.json"):
        with pytest.raises(DataError, match=missing):
            r.read_record(tmp_path / missing)


def test_spectrogram_shows_pitch_and_time() -> None:
    t = np.arange(44100) / 44100
    low, high = np.sin(2 * np.pi * 200 * t), np.sin(2 * np.pi * 5000 * t)
    picture = log_mel_picture(np.concatenate([low, high]), 44100, 100, 80)
    assert picture.shape == (80, 100) and picture.min() >= 0 and picture.max() == 1
    first, second = picture[:, 20].argmax(), picture[:, 80].argmax()
    assert first > second + 20  # rows count downwards


@pytest.mark.parametrize("length", [0, 1, 2, 3, 7])
def test_a_wav_with_chunks_of_any_length_before_the_record(tmp_path: Path, length: int) -> None:
    """A chunk of odd length is followed by one byte of padding."""
    path = tmp_path / "song.wav"
    wanted = story(seeds=(5,))
    r.save_song(path, SOUND, wanted, sample_rate=44100, facts={})
    data = path.read_bytes()
    chunk = b"JUNK" + struct.pack("<I", length) + b"\1" * (length + length % 2)
    path.write_bytes(b"RIFF" + struct.pack("<I", len(data) - 8 + len(chunk)) + b"WAVE" + chunk + data[12:])
    assert r.read_record(path) == wanted and r.made_here(path)
