"""Music whose tempo, key and metre are known: composed by a seeded generator, or Bach's chorales.

Notes are rendered by fluidsynth with a General MIDI sound font (`benchmarks/tempo_key.py`), or by the small
synthesiser below, which needs nothing but numpy (the tests).
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

RATE = 22050  # Hz of what `synthesise` gives
MAJOR, MINOR = (0, 2, 4, 5, 7, 9, 11), (0, 2, 3, 5, 7, 8, 10)
DRUMS = 9  # General MIDI's channel
_KICK, _SNARE, _HAT, _RIDE, _STICK = 36, 38, 42, 51, 37
#: chords as degrees of the scale, 0 the tonic; "V" is the dominant with a leading note in minor, too
_PROGRESSIONS = {
    True: ("0 4 5 3", "0 3 4 0", "0 5 3 4", "0 5 1 4", "0 3 0 4", "0 2 3 4", "0 3 5 4", "5 3 0 4"),
    False: ("0 5 2 6", "0 3 V 0", "0 6 5 V", "0 5 3 V", "0 3 6 2", "0 6 5 6", "0 0 3 V", "0 2 6 3"),
}
_NOTES = ("C", "Db", "D", "Eb", "E", "F", "F#", "G", "Ab", "A", "Bb", "B")


class Note(NamedTuple):
    """beat, length: in quarter notes. pitch: MIDI's number. program: General MIDI's. drum: a kind."""

    beat: float
    length: float
    pitch: int
    velocity: int
    program: int
    drum: bool = False


@dataclass
class Piece:
    """bpm: quarter notes a minute. key: `A minor`. metre: beats a bar. notes: in any order."""

    name: str
    bpm: float
    key: str
    metre: int
    notes: list[Note] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """How long it is."""
        return max(note.beat + note.length for note in self.notes) * 60 / self.bpm


def compose(seed: int, seconds: float = 45.0) -> Piece:
    """A piece for a band: chords, a bass, a melody and mostly drums, all of them a little loose in time."""
    draw = random.Random(f"piece {seed}")
    major, tonic = draw.random() < 0.5, draw.randrange(12)
    scale = MAJOR if major else MINOR
    bpm = draw.randint(60, 180)
    metre = 3 if draw.random() < 0.25 else 4
    piece = Piece(f"piece-{seed}", bpm, f"{_NOTES[tonic]} {'major' if major else 'minor'}", metre)
    parts = [draw.choice(_PROGRESSIONS[major]).split() for _ in range(2)]
    bars = max(8, round(seconds * bpm / 60 / metre / 8) * 8)
    chords = [parts[(bar // 8) % 2][bar % 4] for bar in range(bars)] + ["0"]
    style = _Style.drawn(draw, bpm, metre)
    melody = draw.randrange(len(scale) * 2)
    for bar, degree in enumerate(chords):
        chord = _chord(degree, scale)
        last = bar == bars
        melody = _bar(piece, draw, style, bar, [tonic + pitch for pitch in chord], tonic, scale, melody, last)
    loose = style.loose * bpm / 60
    piece.notes = [
        note._replace(beat=max(0.0, note.beat + draw.gauss(0, loose)), velocity=_human(draw, note.velocity))
        for note in piece.notes
    ]
    return piece


@dataclass
class _Style:
    """How a band plays. swing: of the second eighth, in beats. loose: seconds of deviation."""

    drums: bool
    four: bool
    arpeggio: bool
    busy: float
    swing: float
    loose: float
    programs: tuple[int, int, int]  # of chords, bass, melody

    @classmethod
    def drawn(cls, draw: random.Random, bpm: float, metre: int) -> _Style:
        chords = draw.choice((0, 4, 16, 19, 24, 25, 27, 48, 50, 89))
        bass = draw.choice((32, 33, 34, 38))
        lead = draw.choice((0, 11, 22, 26, 40, 56, 65, 71, 73, 80, 81))
        return cls(
            drums=draw.random() < 0.75,
            four=metre == 4 and draw.random() < 0.3,
            arpeggio=draw.random() < 0.4,
            busy=draw.uniform(0.2, 0.8) * min(1.0, 130 / bpm),
            swing=draw.choice((0.0, 0.0, 0.0, 0.12)),
            loose=draw.uniform(0.0, 0.012),
            programs=(chords, bass, lead),
        )


def _human(draw: random.Random, velocity: int) -> int:
    return max(20, min(120, velocity + round(draw.gauss(0, 6))))


def _chord(degree: str, scale: Sequence[int]) -> list[int]:
    """Semitones above the tonic of a triad."""
    if degree == "V":
        return [7, 11, 14]
    steps = [int(degree) + third for third in (0, 2, 4)]
    return [scale[step % 7] + 12 * (step // 7) for step in steps]


def _bar(
    piece: Piece,
    draw: random.Random,
    style: _Style,
    bar: int,
    chord: Sequence[int],
    tonic: int,
    scale: Sequence[int],
    melody: int,
    last: bool,
) -> int:
    """Adds a bar; where the melody stands after it, in steps of the scale."""
    metre, start = piece.metre, bar * piece.metre
    chords, bass, lead = style.programs
    add = piece.notes.append
    if last:
        for pitch in chord:
            add(Note(start, metre, 48 + pitch, 80, chords))
        add(Note(start, metre, 36 + chord[0] % 12, 90, bass))
        return melody
    beats = [start + n for n in range(metre)]
    halves = [start + n / 2 + (style.swing if n % 2 else 0.0) for n in range(2 * metre)]
    if style.arpeggio:
        for n, beat in enumerate(halves):
            add(Note(beat, 0.9, 48 + chord[(0, 1, 2, 1)[n % 4]], 64, chords))
    elif chords in (16, 19, 48, 50, 89):  # organs and strings hold
        for pitch in chord:
            add(Note(start, metre, 48 + pitch, 62, chords))
    else:
        for n, beat in enumerate(beats):
            for pitch in chord:
                add(Note(beat, 0.8, 48 + pitch, 76 if n == 0 else 60, chords))
    root = 36 + chord[0] % 12
    for n, beat in enumerate(beats):
        if n == 0 or (metre == 4 and n == 2) or draw.random() < style.busy:
            add(
                Note(
                    beat, 0.8, root if n == 0 or draw.random() < 0.7 else root + 7, 92 if n == 0 else 78, bass
                )
            )
    if style.drums:
        _drums(piece, draw, style, beats, halves)
    beat = 0.0
    while beat < metre:
        length = draw.choices((0.5, 1.0, 2.0), (style.busy, 0.6, 0.25))[0]
        length = min(length, metre - beat)
        if beat == 0 or beat == 2:  # a note of the chord
            targets = [s for s in range(14) if (scale[s % 7] + tonic) % 12 in {p % 12 for p in chord}]
            melody = min(targets or [melody], key=lambda s: (abs(s - melody), draw.random()))
        else:
            melody = max(0, min(13, melody + draw.choice((-2, -1, -1, 0, 1, 1, 2))))
        if draw.random() < 0.85:
            off = style.swing if beat % 1 else 0.0
            pitch = 60 + tonic + scale[melody % 7] + 12 * (melody // 7) - (12 if tonic > 6 else 0)
            add(Note(start + beat + off, 0.9 * length, pitch, 84, lead))
        beat += length
    return melody


def _drums(
    piece: Piece, draw: random.Random, style: _Style, beats: Sequence[float], halves: Sequence[float]
) -> None:
    metre = piece.metre

    def hit(beat: float, kind: int, velocity: int) -> None:
        piece.notes.append(Note(beat, 0.2, kind, velocity, 0, True))

    for n, beat in enumerate(beats):
        if style.four or n == 0 or (metre == 4 and n == 2):
            hit(beat, _KICK, 104)
        elif metre == 3 or n % 2:
            hit(beat, _SNARE if metre == 4 else _STICK, 92)
    for n, beat in enumerate(halves):
        if n % 2 == 0 or draw.random() < style.busy:
            hit(beat, _HAT, 70 if n % 2 == 0 else 54)
    if draw.random() < 0.3:
        hit(halves[-1], _KICK, 80)


# ── Bach ─────────────────────────────────────────────────────────────────────────────────────────────
def chorales(first: int, most: int) -> Iterator[Piece]:
    """Some of Bach's chorales of music21's corpus, in an order and at tempi that are drawn. The key is what
    the signature and the last note of the bass say together; without that (modes) a chorale is left out.
    """
    from music21 import corpus

    draw = random.Random("chorales 1")
    paths = sorted(
        str(path) for path in corpus.getComposer("bach") if path.suffix in (".mxl", ".xml", ".krn")
    )
    draw.shuffle(paths)
    given = 0
    for path in paths:
        if given == first + most:
            return
        piece = _chorale(path, draw)
        if piece is not None:
            given += 1
            if given > first:
                yield piece


def _chorale(path: str, draw: random.Random) -> Piece | None:
    from pathlib import Path

    from music21 import converter

    score = converter.parse(path)
    parts = list(score.parts)
    if len(parts) != 4:
        return None
    signatures = list(parts[0].recurse().getElementsByClass("KeySignature"))
    times = list(parts[0].recurse().getElementsByClass("TimeSignature"))
    bass = list(parts[-1].flatten().notes)
    if len({one.sharps for one in signatures}) != 1 or not times or not bass:
        return None
    major = signatures[0].sharps * 7 % 12
    last = min(pitch.pitchClass for pitch in bass[-1].pitches[:1])
    if last == major:
        key = f"{_NOTES[major]} major"
    elif last == (major + 9) % 12:
        key = f"{_NOTES[last]} minor"
    else:
        return None
    piece = Piece(Path(path).stem, draw.randint(60, 110), key, times[0].numerator)
    program = draw.choice((0, 19, 48, 52))
    for part in parts:
        for note in part.flatten().notes:
            for pitch in note.pitches:
                length = float(note.quarterLength)
                if length:
                    piece.notes.append(Note(float(note.offset), length, pitch.midi, 80, program))
    return piece if piece.notes and piece.seconds > 15 else None


# ── a synthesiser ────────────────────────────────────────────────────────────────────────────────────
def synthesise(piece: Piece) -> np.ndarray:
    """(samples,) float32 at `RATE`: tones with a few harmonics that fade, and noise for drums."""
    rng = np.random.default_rng(0)
    sound = np.zeros(int((piece.seconds + 0.5) * RATE), np.float32)
    for note in piece.notes:
        start = int(note.beat * 60 / piece.bpm * RATE)
        n = min(int(min(note.length * 60 / piece.bpm + 0.05, 2.0) * RATE), len(sound) - start)
        if n <= 0:
            continue
        t = np.arange(n, dtype=np.float32) / RATE
        loud = (note.velocity / 127) ** 2
        if note.drum:
            tone = rng.standard_normal(n).astype(np.float32) * np.exp(-40 * t)
            if note.pitch == _KICK:
                tone = 2 * np.sin(2 * np.pi * 60 * t) * np.exp(-20 * t)
            tone *= 0.3 if note.pitch == _HAT else 1.0
        else:
            hertz = 440 * 2 ** ((note.pitch - 69) / 12)
            tone = sum(np.sin(2 * np.pi * k * hertz * t) / k**1.5 for k in range(1, 6)) * np.exp(-2 * t)
            tone[-min(n, 400) :] *= np.linspace(1, 0, min(n, 400))
        sound[start : start + n] += (0.25 * loud * tone).astype(np.float32)
    return sound / max(1.0, float(np.abs(sound).max()))
