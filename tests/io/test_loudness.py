"""Loudness by ITU-R BS.1770: the standard's own tone, its filter, its gates."""

from __future__ import annotations

import numpy as np
import pytest

from acestep_mlx.io.loudness import loudness


def tone(hertz: float, rate: int, seconds: float = 2.0) -> np.ndarray:
    found: np.ndarray = np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)
    return found


@pytest.mark.parametrize("rate", [44100, 48000])
def test_a_full_tone_of_1_khz_in_one_channel_is_3_lufs_below_full_scale(rate: int) -> None:
    full = tone(997, rate)
    assert loudness(full, rate) == pytest.approx(-3.01, abs=0.06)
    assert loudness(0.1 * np.stack([full, full], 1), rate) == pytest.approx(-20.0, abs=0.06)


@pytest.mark.parametrize(("hertz", "lufs"), [(30, -12.0), (100, -4.8), (10_000, 0.3)])
def test_low_notes_are_heard_less_and_high_ones_more(hertz: float, lufs: float) -> None:
    assert loudness(tone(hertz, 48000), 48000) == pytest.approx(lufs, abs=0.2)


def test_rests_do_not_count() -> None:
    """Neither silence, nor what is far softer than the rest."""
    loud = tone(997, 44100, 4)
    for rest in (0.0, 1e-2):
        assert loudness(np.concatenate([loud, rest * loud]), 44100) == pytest.approx(-3.05, abs=0.2)
    assert loudness(np.concatenate([loud, 0.7 * loud]), 44100) < -4


def test_silence_and_very_short_sounds() -> None:
    assert loudness(np.zeros((44100, 2)), 44100) == -np.inf
    assert loudness(tone(997, 44100, 0.05), 44100) == pytest.approx(-3.05, abs=0.2)
