"""What FFmpeg's libraries decode: sample for sample, in every coding of samples, and nothing left open."""

from __future__ import annotations

import gc
from pathlib import Path

import numpy as np
import pytest
import soundfile

from acestep_mlx.errors import DataError
from acestep_mlx.io import ffmpeg
from acestep_mlx.io.audio import probe, write_audio

WAVE = 0.5 * np.sin(np.arange(12000, dtype=np.float32) / 9).reshape(6000, 2)


@pytest.mark.parametrize("coding", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE"])
def test_samples_of_every_coding_are_the_same(coding: str, tmp_path: Path) -> None:
    path = tmp_path / "song.wav"
    soundfile.write(path, WAVE, 44100, subtype=coding)
    (rate,) = {rate for _, rate in ffmpeg.blocks(path)}
    found = np.concatenate([block for block, _ in ffmpeg.blocks(path)])
    expected, _ = soundfile.read(path, dtype="float32", always_2d=True)
    assert (rate, found.dtype) == (44100, np.float32)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("end", ["close", "forget", "throw"])
def test_a_reader_that_stops_early_leaves_nothing_open(
    end: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "song.flac"
    write_audio(path, WAVE, 44100)
    opened = []
    open_file = ffmpeg.open_file
    monkeypatch.setattr(ffmpeg, "open_file", lambda path: opened.append(open_file(path)) or opened[-1])
    blocks = ffmpeg.blocks(path)
    next(blocks)
    if end == "close":
        blocks.close()
    elif end == "throw":
        with pytest.raises(KeyboardInterrupt):
            blocks.throw(KeyboardInterrupt)
    else:
        del blocks
        gc.collect()
    assert [file.closed for file in opened] == [True]


def test_a_song_most_of_which_cannot_be_decoded_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "a.mp3"
    write_audio(path, np.tile(WAVE, (20, 1)), 44100)
    data = bytearray(path.read_bytes())
    rng = np.random.default_rng(0)
    for at in range(3000, len(data)):
        if not (data[at] == 0xFF or data[at - 1] == 0xFF or data[at - 2] == 0xFF or data[at - 3] == 0xFF):
            data[at] = int(rng.integers(0, 255))
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"damaged|unreadable"):
        list(ffmpeg.blocks(path))


def test_a_lossless_song_with_a_damaged_packet_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "a.flac"
    write_audio(path, WAVE, 44100)
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(DataError, match=r"a\.flac: damaged: "):
        list(ffmpeg.blocks(path))


@pytest.mark.parametrize("suffix", ["caf", "w64"])
def test_a_coding_that_nothing_decodes_is_said(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.{suffix}"
    soundfile.write(path, WAVE, 44100, subtype="PCM_16")
    data = path.read_bytes()
    old, new = {"caf": (b"lpcm", b"zzzz"), "w64": (b"\x01\0\x02\0\x44\xac", b"\x77\x77\x02\0\x44\xac")}[
        suffix
    ]
    assert old in data
    path.write_bytes(data.replace(old, new, 1))
    with pytest.raises(DataError, match=rf"a\.{suffix}: unreadable: FFmpeg has no decoder for its sound"):
        probe(path)
