"""Tempo, key and metre of sounds whose truth is known, made here: no sound font is needed."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from acestep_mlx.data import measure
from acestep_mlx.data.measure import RATE, beat_of, key_of
from acestep_mlx.families.v15.song_facts import read

BENCHMARKS = str(Path(__file__).resolve().parents[2] / "benchmarks")
TEMPO = 0.04  # of it, by which it may be off


@pytest.fixture
def music(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCHMARKS)
    import music  # type: ignore[import-not-found]

    return music


def clicks(bpm: float, seconds: float = 20.0) -> np.ndarray:
    """(samples,): short bursts, one a beat."""
    t = np.arange(int(seconds * RATE)) / RATE
    noise = np.random.default_rng(0).normal(size=len(t))
    return (0.3 * noise * np.exp(-60 * (t % (60 / bpm)))).astype(np.float32)


def chords(semitones: list[list[int]], seconds: float = 12.0) -> np.ndarray:
    """(samples,): chords one after the other, in semitones above A3, of tones with four harmonics."""
    n = int(seconds * RATE / len(semitones))
    t = np.arange(n) / RATE
    made = [
        sum(np.sin(2 * np.pi * k * 220 * 2 ** (p / 12) * t) / k for p in chord for k in range(1, 5))
        for chord in semitones
    ]
    return (0.1 * np.concatenate(made)).astype(np.float32)


@pytest.mark.slow
@pytest.mark.parametrize("bpm", [63, 97.5, 174])
def test_a_tempo_is_found_but_for_its_octave(bpm: float) -> None:
    beat = beat_of(clicks(bpm))
    assert beat is not None
    assert any(abs(by * beat.bpm.value / bpm - 1) < TEMPO for by in (1, 2, 0.5))
    assert any(abs(one / bpm - 1) < TEMPO for one in (beat.bpm.value, *beat.bpm.others))


@pytest.mark.slow
def test_a_key_is_found_through_the_overtones_of_its_notes() -> None:
    cadence = chords([[0, 4, 7], [-7, 5, 9], [-5, 2, 11], [0, 4, 7]])
    found = key_of(cadence)
    assert found is not None
    assert found.value == "A major"
    assert 0.4 <= found.confidence <= 1
    minor = key_of(chords([[0, 3, 7], [-7, 5, 8], [-5, 2, 11], [0, 3, 7]]))
    assert minor is not None
    assert minor.value == "A minor"


@pytest.mark.slow
def test_composed_music_as_the_benchmark_has_it(music: ModuleType) -> None:
    """Three of the pieces that the methods were not chosen on, each of another kind."""
    right = {"tempo": 0, "key": 0}
    pieces = [music.compose(seed, 16.0) for seed in (5001, 5002, 5003)]
    for piece in pieces:
        sound = music.synthesise(piece)
        beat, key = beat_of(sound), key_of(sound)
        assert beat is not None
        assert key is not None
        right["tempo"] += any(abs(by * beat.bpm.value / piece.bpm - 1) < TEMPO for by in (1, 2, 0.5))
        right["key"] += key.value == piece.key
    assert right["tempo"] == 3
    assert right["key"] >= 2


@pytest.mark.parametrize(("bars", "metre"), [(3, "3"), (4, "4")])
def test_a_metre_is_what_basses_come_again_after(bars: int, metre: str) -> None:
    beat, frames = 40, 4000  # frames of onsets
    low = np.zeros(frames)
    low[::beat] = 0.3
    low[:: bars * beat] = 1.0
    found = measure._metre(measure._likeness(low), 60 * measure._FRAMES / beat)
    assert found is not None
    assert found.value == metre


def test_no_metre_is_said_where_every_beat_is_alike() -> None:
    low = np.zeros(4000)
    low[::40] = 1.0
    assert measure._metre(measure._likeness(low), 60 * measure._FRAMES / 40) is None


@pytest.mark.parametrize(
    "sound", [np.zeros(20 * RATE, np.float32), clicks(120, 3.0), np.zeros(100, np.float32)]
)
def test_nothing_is_said_of_the_beat_of_silence_and_of_a_moment(sound: np.ndarray) -> None:
    assert beat_of(sound) is None


def test_nothing_is_said_of_the_key_of_a_moment() -> None:
    assert key_of(np.ones(100, np.float32)) is None


@pytest.mark.slow
def test_nothing_is_said_of_the_key_of_silence() -> None:
    assert key_of(np.zeros(4 * RATE, np.float32)) is None


@pytest.mark.slow
def test_noise_has_no_tempo() -> None:
    assert beat_of(np.random.default_rng(1).normal(size=30 * RATE).astype(np.float32) * 0.1) is None


def test_each_key_is_one_that_the_model_knows() -> None:
    assert len(measure._KEYS) == 24
    assert all(read({"keyscale": key}).values == {"keyscale": key} for key in measure._KEYS)


@pytest.mark.slow
def test_no_key_is_said_of_what_has_all_notes_alike() -> None:
    assert key_of(chords([[p] for p in range(12)])) is None
