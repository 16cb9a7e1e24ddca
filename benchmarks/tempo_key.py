"""Tempo, key and metre of music whose truth is known: python benchmarks/tempo_key.py

Composed pieces and Bach's chorales, rendered by fluidsynth with a General MIDI sound font. Needs fluidsynth
and a sound font (Debian: fluidsynth, fluid-soundfont-gm), and mido and music21 from PyPI. The methods were
chosen on the pieces of `--tuning`; what is said of them is measured on others.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from music import DRUMS, RATE, Piece, chorales, compose

from acestep_mlx.data.measure import beat_of, key_of
from acestep_mlx.io.audio import read_audio

FONT = Path("/usr/share/sounds/sf2/FluidR3_GM.sf2")
TUNING, TEST = 1000, 5000  # first seeds of composed pieces
TUNED = 50  # chorales
CLOSE = 0.04  # of a tempo
TICKS = 480


def midi(piece: Piece, path: Path) -> None:
    """Write a piece as a MIDI file."""
    import mido

    programs = sorted({note.program for note in piece.notes if not note.drum})
    channels = {program: channel + (channel >= DRUMS) for channel, program in enumerate(programs)}
    track = mido.MidiTrack()
    track.append(mido.MetaMessage("set_tempo", tempo=mido.bpm2tempo(piece.bpm)))
    track += [mido.Message("program_change", channel=c, program=p) for p, c in channels.items()]
    events = []
    for note in piece.notes:
        channel = DRUMS if note.drum else channels[note.program]
        start, stop = round(note.beat * TICKS), round((note.beat + note.length) * TICKS)
        events.append((start, 1, channel, note.pitch, note.velocity))
        events.append((max(stop, start + 1), 0, channel, note.pitch, 0))
    now = 0
    for tick, on, channel, pitch, velocity in sorted(events):
        kind = "note_on" if on else "note_off"
        track.append(mido.Message(kind, channel=channel, note=pitch, velocity=velocity, time=tick - now))
        now = tick
    mido.MidiFile(ticks_per_beat=TICKS, tracks=[track]).save(path)


def render(piece: Piece, font: Path) -> np.ndarray:
    """(samples,) float32 at 22,050 Hz."""
    with tempfile.TemporaryDirectory() as folder:
        song, sound = Path(folder) / "song.mid", Path(folder) / "song.wav"
        midi(piece, song)
        command = [
            "fluidsynth",
            "-ni",
            "-q",
            "-g",
            "0.5",
            "-r",
            "44100",
            "-F",
            str(sound),
            str(font),
            str(song),
        ]
        subprocess.run(command, check=True, capture_output=True)
        return read_audio(sound, sample_rate=RATE, channels=1)[:, 0]


@dataclass
class Found:
    """What was measured of a piece, None where nothing is said. sure: of the key."""

    piece: Piece
    bpm: int | None
    others: tuple[int, ...]
    key: str | None
    sure: float
    metre: str | None

    @property
    def exact(self) -> bool:
        """Whether the tempo is right."""
        return self.bpm is not None and _close(self.bpm, self.piece.bpm)

    @property
    def octave(self) -> bool:
        """Whether it is, or twice or half of it is."""
        return self.bpm is not None and any(_close(self.bpm * by, self.piece.bpm) for by in (1, 2, 0.5))

    @property
    def told(self) -> bool:
        """Whether it is, or what is said to be as likely."""
        return self.exact or any(_close(bpm, self.piece.bpm) for bpm in self.others)


def _close(bpm: float, truth: float) -> bool:
    return abs(bpm / truth - 1) <= CLOSE


def _same_key(one: str | None, other: str) -> bool:
    """Whether two names are one key on a piano."""
    names = {"C#": "Db", "D#": "Eb", "Gb": "F#", "G#": "Ab", "A#": "Bb"}

    def plain(text: str) -> tuple[str, ...]:
        note, mode = text.split()
        return names.get(note, note), mode

    return one is not None and plain(one) == plain(other)


def measured(pieces: Iterable[Piece], font: Path, keys: bool) -> list[Found]:
    """What the product says of each piece; a line for each."""
    found = []
    for piece in pieces:
        sound = render(piece, font)
        beat, key = beat_of(sound), key_of(sound) if keys else None
        one = Found(
            piece,
            beat.bpm.value if beat else None,
            beat.bpm.others if beat else (),
            key.value if key else None,
            key.confidence if key else 0.0,
            beat.metre.value if beat and beat.metre else None,
        )
        found.append(one)
        said = f"{one.bpm} {one.others} {one.key} {one.sure:.2f} {one.metre}"
        print(f"{piece.name:16} {piece.bpm:5.0f} {piece.key:9} {piece.metre}   {said}", flush=True)
    return found


def report(title: str, found: list[Found]) -> None:
    """Shares of what is right."""

    def share(right: Iterable[bool]) -> str:
        these = list(right)
        return f"{sum(these)}/{len(these)} ({100 * sum(these) / max(1, len(these)):.0f} %)"

    def keys(these: Iterable[Found]) -> str:
        return share(_same_key(one.key, one.piece.key) for one in these)

    print(f"{title}: tempo within 4 %, octave allowed {share(one.octave for one in found)}")
    print(f"  tempo itself {share(one.exact for one in found)}")
    print(f"  tempo itself, or given as likely {share(one.told for one in found)}")
    print(f"  key {keys(found)}")
    for low, high in ((0.0, 0.5), (0.5, 0.8), (0.8, 1.01)):
        these = [one for one in found if low <= one.sure < high]
        print(f"    confidence {low:.1f} to {min(high, 1):.1f}: {keys(these)}")
    clear = [one for one in found if one.metre is not None and one.exact]
    right = share(one.metre == str(one.piece.metre) for one in clear)
    print(f"  metre, where one is said and the tempo is right: {right}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--font", type=Path, default=FONT)
    parser.add_argument("--pieces", type=int, default=100, help="composed ones")
    parser.add_argument("--chorales", type=int, default=60)
    parser.add_argument("--tuning", action="store_true", help="on what the methods were chosen on")
    parser.add_argument("--beats", action="store_true", help="tempo and metre alone: keys take the most time")
    options = parser.parse_args()
    first = TUNING if options.tuning else TEST
    composed = measured((compose(first + i) for i in range(options.pieces)), options.font, not options.beats)
    skipped = 0 if options.tuning else TUNED
    bach = measured(chorales(skipped, options.chorales), options.font, not options.beats)
    report(f"{len(composed)} composed pieces", composed)
    report(f"{len(bach)} of Bach's chorales", bach)


if __name__ == "__main__":
    main()
