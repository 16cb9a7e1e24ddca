"""A picture of a sound: its log-mel spectrogram as a PNG, with numpy and zlib alone."""

from __future__ import annotations

import struct
import zlib

import numpy as np

from ..io.audio import mel_filters

N_FFT, RANGE_DB = 2048, 80.0
# Dark to bright, evenly rising in lightness: (red, green, blue) at equal distances.
COLOURS = np.array(
    [(0, 0, 8), (45, 17, 95), (114, 31, 129), (182, 54, 121), (241, 96, 93), (254, 175, 119), (252, 253, 210)]
)


def log_mel_picture(samples: np.ndarray, sample_rate: int, width: int, height: int) -> np.ndarray:
    """(height, width) float in [0, 1]: time to the right, pitch upwards; 1 is the loudest, 0 80 dB less."""
    mono = samples.mean(axis=1) if samples.ndim == 2 else samples
    mono = np.pad(mono, (N_FFT // 2, N_FFT))
    starts = np.linspace(0, max(len(mono) - N_FFT - N_FFT // 2, 0), width).astype(int)
    window = np.hanning(N_FFT)
    filters = mel_filters(sample_rate, N_FFT, height, 30.0, min(16000.0, sample_rate / 2))
    columns = [np.abs(np.fft.rfft(mono[s : s + N_FFT] * window)) @ filters for s in starts]
    level = 20 * np.log10(np.maximum(np.stack(columns, axis=1), 1e-9))  # [height, width]
    return np.clip((level - level.max()) / RANGE_DB + 1, 0, 1)[::-1]


def png(pixels: np.ndarray) -> bytes:
    """(height, width, 3) uint8 → the bytes of a PNG file."""
    height, width, _ = pixels.shape
    rows = np.concatenate([np.zeros((height, 1), np.uint8), pixels.reshape(height, -1)], axis=1)

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows.tobytes(), 9)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def spectrogram_png(samples: np.ndarray, sample_rate: int, width: int = 1000, height: int = 240) -> bytes:
    """The PNG of (samples,) or (samples, channels) of sound; silence gives a dark picture."""
    level = log_mel_picture(samples, sample_rate, width, height) * (len(COLOURS) - 1)
    at = np.minimum(level.astype(int), len(COLOURS) - 2)
    part = (level - at)[..., None]
    return png((COLOURS[at] * (1 - part) + COLOURS[at + 1] * part).round().astype(np.uint8))
