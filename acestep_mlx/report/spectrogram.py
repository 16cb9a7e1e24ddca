"""Pictures of sounds: their log-mel spectrograms as PNG."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from ..io.audio import mel_filters
from ..io.png import png

N_FFT, RANGE_DB = 2048, 80.0
LOWEST, HIGHEST = 30.0, 16000.0  # Hz of a song's picture
RANGE_NATS = 9.0
# Dark to bright, evenly rising in lightness: (red, green, blue) at equal distances.
COLOURS = np.array(
    [(0, 0, 8), (45, 17, 95), (114, 31, 129), (182, 54, 121), (241, 96, 93), (254, 175, 119), (252, 253, 210)]
)


def log_mel_picture(samples: np.ndarray, sample_rate: int, width: int, height: int) -> np.ndarray:
    """(height, width) float in [0, 1]: time to the right, pitch upwards; 1 is the loudest, 0 80 dB less."""
    mono = samples.mean(axis=1) if samples.ndim == 2 else samples
    if not mono.any():
        return np.zeros((height, width))
    mono = np.pad(mono, (N_FFT // 2, N_FFT))
    starts = np.linspace(0, max(len(mono) - N_FFT - N_FFT // 2, 0), width).astype(int)
    window = np.hanning(N_FFT)
    filters = mel_filters(sample_rate, N_FFT, height, LOWEST, min(HIGHEST, sample_rate / 2))
    columns = [np.abs(np.fft.rfft(mono[s : s + N_FFT] * window)) @ filters for s in starts]
    level = 20 * np.log10(np.maximum(np.stack(columns, axis=1), 1e-9))  # [height, width]
    picture: np.ndarray = np.clip((level - level.max()) / RANGE_DB + 1, 0, 1)[::-1]
    return picture


def mel_centres(bins: int = 128, f_min: float = 40.0, f_max: float = 16000.0) -> np.ndarray:
    """(bins,): the middle of each band of `log_mel`, in Hz."""
    from librosa import mel_frequencies  # seconds when cold

    found: np.ndarray = mel_frequencies(bins + 2, fmin=f_min, fmax=f_max)[1:-1]
    return found


def log_mel_png(log_mel: np.ndarray, columns: int = 480) -> bytes:
    """The PNG of log-mel energies (bins, frames), low notes below; RANGE_NATS under the loudest is dark."""
    frames = log_mel.shape[1]
    edges = np.linspace(0, frames, min(columns, frames) + 1).astype(int)
    picture = np.stack([log_mel[:, a : max(b, a + 1)].mean(1) for a, b in pairwise(edges)], 1)
    return png(coloured(np.clip((picture - picture.max()) / RANGE_NATS + 1, 0, 1)[::-1]))


def coloured(level: np.ndarray) -> np.ndarray:
    """(height, width, 3) uint8 of (height, width) from 0, dark, to 1, bright."""
    place = level * (len(COLOURS) - 1)
    at = np.minimum(place.astype(int), len(COLOURS) - 2)
    part = (place - at)[..., None]
    pixels: np.ndarray = (COLOURS[at] * (1 - part) + COLOURS[at + 1] * part).round().astype(np.uint8)
    return pixels
