"""Sound above full scale is clipped where it is written: a file never holds what its format cannot say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from acestep_mlx.config.request import Request
from acestep_mlx.io.audio import WRITABLE, write_audio
from acestep_mlx.sampling import record

RATE = 44100
T = np.arange(RATE // 2) / RATE
LOUD = (3 * np.stack([np.sin(2 * np.pi * 220 * T), np.cos(2 * np.pi * 330 * T)], 1)).astype(np.float32)
CLIPPED = np.clip(LOUD, -1, 1)


def read(path: Path) -> np.ndarray:
    return soundfile.read(path, dtype="float32")[0]


@pytest.mark.parametrize("suffix", WRITABLE)
def test_too_loud_sound_is_the_clipped_sound(suffix: str, tmp_path: Path) -> None:
    loud, clipped = tmp_path / f"loud{suffix}", tmp_path / f"clipped{suffix}"
    write_audio(loud, LOUD, RATE)
    write_audio(clipped, CLIPPED, RATE)
    np.testing.assert_array_equal(read(loud), read(clipped))
    assert np.abs(read(loud)).max() < 1.5 and (np.abs(read(loud)) > 0.9).mean() > 0.5


@pytest.mark.parametrize("suffix", WRITABLE)
def test_sound_within_full_scale_is_left_as_it_is(suffix: str, tmp_path: Path) -> None:
    write_audio(tmp_path / f"a{suffix}", LOUD / 4, RATE)
    found = read(tmp_path / f"a{suffix}")[: len(LOUD)]
    middle = slice(4096, -4096)
    assert np.abs(found[middle] - LOUD[: len(found)][middle] / 4).max() < 0.05


def test_what_is_not_a_number_is_not_clipped_but_refused(tmp_path: Path) -> None:
    from acestep_mlx.errors import DataError

    for wrong in (np.inf, -np.inf, np.nan):
        sound = CLIPPED.copy()
        sound[100, 1] = wrong
        with pytest.raises(DataError, match="not finite"):
            write_audio(tmp_path / "a.wav", sound, RATE)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("rate", record.RATES)
def test_a_song_whose_resampling_overshoots(rate: int, tmp_path: Path) -> None:
    """A square wave at full scale is above it between its samples."""
    square = np.sign(np.sin(2 * np.pi * 441 * T))[:, None].repeat(2, 1).astype(np.float32)
    story: dict[str, Any] = {"request": Request(prompt="x").to_dict(), "model": {}, "loras": []}
    record.save_song(tmp_path / "a.flac", square, story, sample_rate=rate, facts={})
    found = read(tmp_path / "a.flac")
    assert np.abs(found).max() <= 1.0
    wrapped = np.abs(np.diff(found[:, 0])) > 1.9
    assert wrapped.sum() <= 2 * 441 * len(T) / RATE, "no sample has gone over to the other side"
