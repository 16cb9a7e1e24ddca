"""A song as one picture for people: its waveform and its spectrogram over one axis of time, with a title."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np

from ..formatting import duration
from ..io.lettering import write
from ..io.png import png
from .spectrogram import HIGHEST, LOWEST, RANGE_DB, coloured, log_mel_picture, mel_centres

WIDTH, WAVE, SPECTRUM = 1000, 90, 300  # pixels of what is drawn of the song
LEFT, RIGHT, TOP, GAP, BOTTOM = 76, 24, 70, 26, 56
PAPER, INK, FAINT, SOUND = (255, 255, 255), (40, 40, 40), (210, 210, 210), (114, 31, 129)
KILOHERTZ = (0.1, 0.5, 1, 2, 4, 8, 16)
STEPS = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120)  # seconds between marks
MARKS = 10  # at most


def song_png(samples: np.ndarray, sample_rate: int, title: str = "", about: str = "") -> bytes:
    """The PNG of (samples,) or (samples, channels) of sound in [-1, 1]; two lines of text are above it.

    What of the lines is not in ASCII stands in the file's own text alone.
    """
    mono = samples.mean(axis=1) if samples.ndim == 2 else samples
    pixels = np.empty((TOP + WAVE + GAP + SPECTRUM + BOTTOM, LEFT + WIDTH + RIGHT, 3), np.uint8)
    pixels[:] = PAPER
    _letters(pixels, title, 10, LEFT, most=WIDTH)
    _letters(pixels, about, 34, LEFT, most=WIDTH)
    _wave(pixels[TOP : TOP + WAVE, LEFT : LEFT + WIDTH], mono)
    for value in (1, 0, -1):
        _letters(pixels, f"{value}", TOP + (1 - value) / 2 * (WAVE - 1) - 7, LEFT - 12, anchor=1.0)
    top = TOP + WAVE + GAP
    picture = log_mel_picture(mono, sample_rate, WIDTH, SPECTRUM)
    pixels[top : top + SPECTRUM, LEFT : LEFT + WIDTH] = coloured(picture)
    _frequencies(pixels, top, sample_rate)
    _times(pixels, top + SPECTRUM, len(mono) / sample_rate)
    return png(pixels, title=title)


def time_marks(seconds: float) -> Iterator[tuple[float, str]]:
    """Moments for an axis of time from 0 on, evenly apart, and what stands there; minutes from 90 s on."""
    step = next((step for step in STEPS if seconds / step <= MARKS), 60.0 * np.ceil(seconds / 60 / MARKS))
    for i in range(int(seconds / step + 1e-9) + 1):
        at = i * step
        yield at, duration(at) if seconds >= 90 else f"{at:g}"


def _wave(part: np.ndarray, mono: np.ndarray) -> None:
    """Draw the lowest and the highest sample of each column into (height, width, 3)."""
    height, width, _ = part.shape
    part[height // 2] = FAINT
    edges = np.linspace(0, len(mono), width + 1).astype(int)
    for x, (a, b) in enumerate(pairwise(edges)):
        if len(some := np.clip(mono[a : max(b, a + 1)], -1, 1)):
            rows = ((1 - np.array([some.max(), some.min()])) / 2 * (height - 1)).round().astype(int)
            part[rows[0] : rows[1] + 1, x] = SOUND


def _frequencies(pixels: np.ndarray, top: int, sample_rate: int) -> None:
    """Marks of frequencies left of the spectrogram that begins at the row `top`."""
    highest = min(HIGHEST, sample_rate / 2)
    centres = mel_centres(SPECTRUM, LOWEST, highest) / 1000
    for value in KILOHERTZ:
        if value * 1000 <= highest:
            row = top + SPECTRUM - 1 - round(float(np.interp(value, centres, np.arange(SPECTRUM))))
            pixels[row, LEFT - 8 : LEFT] = INK
            _letters(pixels, f"{value:g}", row - 7, LEFT - 12, anchor=1.0)
    _letters(pixels, "kHz", top + SPECTRUM + 34, LEFT - 12, anchor=1.0)


def _times(pixels: np.ndarray, below: int, seconds: float) -> None:
    """Marks of time under the spectrogram that ends at the row `below`."""
    for at, text in time_marks(seconds):
        column = LEFT + round(at / seconds * (WIDTH - 1)) if seconds else LEFT
        pixels[below : below + 8, column] = INK
        _letters(pixels, text, below + 12, column, anchor=0.5)
    unit = "minutes:seconds" if seconds >= 90 else "seconds"
    _letters(pixels, unit, below + 34, LEFT + WIDTH / 2, anchor=0.5)
    _letters(pixels, f"bright: loud, black: {RANGE_DB:.0f} dB less", below + 34, LEFT + WIDTH, anchor=1.0)


def _letters(
    pixels: np.ndarray, text: str, row: float, column: float, *, anchor: float = 0.0, most: int = 0
) -> None:
    """A line of text; of one that is wider than `most` pixels the beginning."""
    text = text[: most // 12] if most else text
    write(pixels, text, (row, column), ink=INK, anchor=anchor)
