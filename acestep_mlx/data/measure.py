"""Tempo, key and metre of a song's sound, each with how sure it is and what else it may be.

How often they are right is measured by `benchmarks/tempo_key.py`; the limits are in docs/prepare.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

import librosa
import numpy as np

RATE = 22050  # Hz of the sound that is measured
MOST_SECONDS = 180.0  # of a song that are looked at

_HOP, _FFT, _MELS, _LOW_MELS = 256, 2048, 64, 6  # of onsets; the low bands are up to some 300 Hz
_FRAMES = RATE / _HOP  # a second
_LONGEST = 30.0  # seconds after which onsets are compared with themselves
_SLOWEST, _TRIED, _RATIO = 40.0, 360, 1.005  # beats a minute, how many tempi are tried, and between two
_USUAL, _SPREAD = 120.0, 1.0  # of tempi, in octaves: by how much others need more evidence
_LEAST = 8.0  # seconds of a song whose beat is looked for
_FAINT = 0.25  # likeness over a tempo's beats, below which nothing beats
_ALIKE = 0.8  # of a tempo's evidence, that half or twice of it has where it is as likely
_BEATS = range(1, 5)  # after which a tempo's onsets come again
_BARS = {"3": (3, 9, 15), "4": (4, 8, 16)}  # metre → beats after which it comes again, and the other does not
_CLEAR = 0.5  # likeness over a tempo's beats, from which on its bars are looked for
_BAR_LEAD = 0.1  # of one metre's strength over the other's, from which on it is taken
_OVERTONES = {7: 0.2, 4: 0.05}  # semitones above a note → how much of its harmonics is heard there
_WARMTH = 0.07  # of the scale on which the likeness of keys becomes a share
_EVEN = 0.2  # variation of the notes' shares, below which all are heard alike (in music it is above 0.4)
_UNSURE = 0.4  # share of the likeliest key, below which none is said
# Sha'ath's profiles (KeyFinder, 2011): how much each semitone above the tonic is heard.
_MAJOR = (6.6, 2.0, 3.5, 2.3, 4.6, 4.0, 2.5, 5.2, 2.4, 3.7, 2.3, 3.4)
_MINOR = (6.5, 2.7, 3.5, 5.4, 2.6, 3.5, 2.5, 5.2, 4.0, 2.7, 4.3, 3.2)
_KEYS = tuple(
    f"{note} {mode}"
    for mode, notes in (
        ("major", "C Db D Eb E F F# G Ab A Bb B"),
        ("minor", "C C# D Eb E F F# G G# A Bb B"),
    )
    for note in notes.split()
)

Value = TypeVar("Value")


@dataclass(frozen=True)
class Measured(Generic[Value]):
    """confidence: from 0 to 1. others: values that are as likely, or nearly."""

    value: Value
    confidence: float
    others: tuple[Value, ...] = ()


@dataclass(frozen=True)
class Beat:
    """bpm: of the beat, in whole beats a minute. metre: beats a bar, None where no metre is clear."""

    bpm: Measured[int]
    metre: Measured[str] | None


def beat_of(sound: np.ndarray) -> Beat | None:
    """Of (samples,) float32 at `RATE`; None where nothing comes again and again, or too short for it.

    Onsets are compared with themselves, some beats later: the tempo is where they fit best over one to four
    beats, brought to a fraction of a percent over more of them.
    """
    if len(sound) < _LEAST * RATE:
        return None
    mel = librosa.feature.melspectrogram(y=sound, sr=RATE, n_fft=_FFT, hop_length=_HOP, n_mels=_MELS)
    bands = librosa.power_to_db(mel)
    likeness = _likeness(librosa.onset.onset_strength(S=bands, sr=RATE, hop_length=_HOP))
    if not len(likeness):
        return None
    tried = _SLOWEST * _RATIO ** np.arange(_TRIED)
    tempo = tried[np.argmax(_evidence(likeness, tried))]
    for span, beats in ((0.03, 8), (0.01, 24)):
        near = tempo * np.linspace(1 - span, 1 + span, 61)
        tempo = near[np.argmax(_strength(likeness, near, range(1, beats + 1)))]
    sure = float(_strength(likeness, np.array([tempo]), _BEATS)[0])
    if sure < _FAINT:
        return None
    octaves = tempo * np.array([1.0, 0.5, 2.0])
    first, *evidence = _evidence(likeness, octaves)
    others = tuple(
        round(bpm) for bpm, one in zip(octaves[1:], evidence, strict=True) if one >= _ALIKE * first
    )
    bpm = Measured(round(tempo), min(1.0, sure), others)
    if sure < _CLEAR:
        return Beat(bpm, None)
    low = _likeness(librosa.onset.onset_strength(S=bands[:_LOW_MELS], sr=RATE, hop_length=_HOP))
    return Beat(bpm, _metre(low, tempo))


def _likeness(onsets: np.ndarray) -> np.ndarray:
    """How like onsets are to themselves, by how many frames later; 1 at 0, nothing for silence."""
    beats = onsets - onsets.mean()
    found = librosa.autocorrelate(beats, max_size=min(len(beats) // 2, int(_LONGEST * _FRAMES)))
    found = found / (len(beats) - np.arange(len(found)))
    return found / found[0] if len(found) and found[0] > 0 else found[:0]


def _strength(likeness: np.ndarray, tempi: np.ndarray, beats: range | tuple[int, ...]) -> np.ndarray:
    """(tempi,): the mean likeness so many beats later, of those that are not later than what is known."""
    later = np.outer(60 * _FRAMES / tempi, np.array(beats))
    there = later <= len(likeness) - 1
    found = np.where(there, np.interp(later, np.arange(len(likeness)), likeness), 0.0)
    return np.asarray(found.sum(axis=1) / np.maximum(1, there.sum(axis=1)))


def _evidence(likeness: np.ndarray, tempi: np.ndarray) -> np.ndarray:
    """(tempi,): their strength, less where few songs have such a tempo."""
    usual = np.exp(-0.5 * (np.log2(tempi / _USUAL) / _SPREAD) ** 2)
    return np.asarray(np.maximum(_strength(likeness, tempi, _BEATS), 0) * usual)


def _metre(low: np.ndarray, tempo: float) -> Measured[str] | None:
    """By the low onsets, those of basses and bass drums."""
    if not len(low):
        return None
    fits = {metre: float(_strength(low, np.array([tempo]), bars)[0]) for metre, bars in _BARS.items()}
    best, other = sorted(fits, key=fits.__getitem__, reverse=True)
    lead = fits[best] - fits[other]
    return Measured(best, min(1.0, lead)) if lead >= _BAR_LEAD else None


def key_of(sound: np.ndarray) -> Measured[str] | None:
    """Of (samples,) float32 at `RATE`; None for what has no tones, or no key that stands out.

    Chroma (CENS) of what is left without drums, averaged, less what is heard of notes' harmonics (a key would
    be taken for that of its fifth), and compared with each key's profile.
    """
    if len(sound) < RATE:
        return None
    chroma = librosa.feature.chroma_cens(y=librosa.effects.harmonic(sound), sr=RATE)
    heard = chroma.mean(axis=1)
    if not np.isfinite(heard).all() or heard.std() <= _EVEN * heard.mean():
        return None
    heard = heard - sum(share * np.roll(heard, above) for above, share in _OVERTONES.items())
    profiles = [np.roll(profile, tonic) for profile in (_MAJOR, _MINOR) for tonic in range(12)]
    likeness = np.array([np.corrcoef(profile, heard)[0, 1] for profile in profiles])
    shares = np.exp((likeness - likeness.max()) / _WARMTH)
    shares /= shares.sum()
    first, *others = np.argsort(shares)[::-1]
    if shares[first] < _UNSURE:
        return None
    near = tuple(_KEYS[i] for i in others[:2] if shares[i] >= 0.5 * shares[first])
    return Measured(_KEYS[first], float(shares[first]), near)
