"""What encoders make of a song, once: the directions that the transformer's states are compared with.

As upstream's trainer has it: mono, resampled, one normalisation for the song, chunks whose last one is padded
with zeros, the last layer's states, and of each chunk the frames that its sound fills. The loss needs their
direction alone, so rows of length 1 are kept.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np

from ....io.hashes import hash_file
from ...songs import Encoded, SoundPart, Words
from .encoders import HOP, SOUND_RATE, Encoder
from .hubert import Hubert, HubertFile

VERSION = 1  # of what is kept; raise it when the computation changes
WIDTH, ROLLOFF = (
    6,
    0.99,
)  # of the resampling filter: zero crossings, and where it ends, of the new Nyquist rate
SAMPLES = 480_000  # of a batch of chunks: two of a minute's first convolution are 400 MB


def resampled(mono: np.ndarray, down: int) -> np.ndarray:
    """Every `down`th sample of (n,) float32 behind torchaudio's default filter → (⌈n / down⌉,) float32."""
    before = int(np.ceil(WIDTH * down / ROLLOFF))
    t = np.clip(np.arange(-before, before + down) / down * ROLLOFF, -WIDTH, WIDTH)
    taps = (np.sinc(t) * np.cos(t * np.pi / WIDTH / 2) ** 2 * ROLLOFF / down).astype(np.float32)
    padded = np.pad(mono.astype(np.float32), (before, before + down))
    length = -(-len(mono) // down)
    found = np.zeros(length, np.float32)
    for k, tap in enumerate(taps):
        found += tap * padded[k : k + down * length : down][:length]
    return found


def chunks(sound: np.ndarray, encoder: Encoder) -> tuple[np.ndarray, list[int]]:
    """A song (n, channels) at `SOUND_RATE` → chunks (C, samples) as the encoder hears them, normalised, and
    the frames of each that count.
    """
    mono = sound.mean(axis=1) if sound.ndim == 2 else sound
    n = max(1, len(mono) // encoder.down)
    heard = resampled(mono, encoder.down)[:n].astype(np.float64)
    variance = heard.var(ddof=1) if n > 1 else 0.0
    heard = (heard - heard.mean()) / np.sqrt(variance + 1e-7)
    size = encoder.chunk_samples
    count = -(-n // size)
    padded = np.zeros(count * size, np.float32)
    padded[:n] = heard
    lengths = [min(size, n - i * size) for i in range(count)]
    return padded.reshape(count, size), [-(-length // HOP) for length in lengths]


def features(network: Hubert, sound: np.ndarray, encoder: Encoder) -> np.ndarray:
    """A song (n, channels) at `SOUND_RATE` → (L, D) float32, rows of length 1; L is `encoder.length(n)`."""
    heard, lengths = chunks(sound, encoder)
    together = max(1, SAMPLES // encoder.chunk_samples)
    rows = []
    for first in range(0, len(heard), together):
        states = network(mx.array(heard[first : first + together]))
        found = np.array(states.astype(mx.float32))  # [C, L, D]
        rows += [one[:length] for one, length in zip(found, lengths[first:], strict=False)]
        mx.clear_cache()
    together_rows = np.concatenate(rows)
    norms = np.linalg.norm(together_rows, axis=1, keepdims=True)
    unit: np.ndarray = together_rows / np.maximum(norms, 1e-12)
    return unit


class Features(SoundPart):
    """A song → its features under the encoder's name."""

    rate = SOUND_RATE

    def __init__(self, encoder: Encoder, file: HubertFile) -> None:
        self.encoder, self.file = encoder, file
        self.names = (encoder.name,)
        self.title = f"what {encoder.title} hears"
        self._key = {
            "version": VERSION, "encoder": hash_file(file.path), "chunk": encoder.chunk,
            "heads": file.config.heads, "pre_norm": encoder.pre_norm,
        }  # fmt: skip

    def key(self, words: Words) -> dict[str, Any]:
        return self._key

    def load(self) -> Hubert:
        return self.file.load()

    def encode(self, given: np.ndarray) -> Encoded:
        return Encoded({self.encoder.name: features(self.loaded, given, self.encoder)})

    def fits(self, arrays: np.ndarray, samples: int) -> bool:
        shape = (self.encoder.length(samples), self.file.config.width)
        return arrays.shape == shape
