"""Codec: stereo at 48 kHz ↔ latents, with the autoencoder alone; a latent is not scaled."""

from __future__ import annotations

import mlx.core as mx
import numpy as np

from ...io.audio import resample
from ...io.progress import Progress, part, silent
from ..v1.codec import as_stereo_batch
from .latents import LATENTS
from .oobleck import Oobleck

LOUDEST = 10 ** (-1 / 20)  # of a finished song: −1 dB of full scale


class Codec:
    """Waveform ↔ latents with a loaded autoencoder."""

    def __init__(self, vae: Oobleck) -> None:
        self.vae = vae

    def encode(
        self,
        wav: np.ndarray | mx.array,
        sample_rate: int = LATENTS.sample_rate,
        *,
        progress: Progress = silent,
    ) -> tuple[mx.array, mx.array]:
        """Mean and deviation, each (B, samples // 1920, C) float32, counted at 48 kHz: nothing is padded.

        wav: (samples,), (samples, channels) or (B, samples, 2), float in [−1, 1]; mono is doubled.
        DataError for audio that is empty, not finite, shorter than a frame, or of another shape.
        """
        batch = as_stereo_batch(wav)
        if sample_rate != LATENTS.sample_rate:
            batch = np.stack([resample(item, sample_rate, LATENTS.sample_rate) for item in batch])
        means, deviations = [], []
        for i, item in enumerate(batch):  # one after the other, in the memory of one
            mean, std = self.vae.encode(mx.array(item[None]), progress=part(progress, i, len(batch)))
            mx.eval(mean, std)
            means.append(mean)
            deviations.append(std)
        return mx.concatenate(means), mx.concatenate(deviations)

    def decode(self, latents: mx.array, *, progress: Progress = silent) -> mx.array:
        """Waveform (B, 1920·T, 2) float32 at 48 kHz of latents (B, T, C): not clipped, not normalised."""
        songs = []
        for i, item in enumerate(latents):
            songs.append(self.vae.decode(item[None], progress=part(progress, i, len(latents))))
            mx.eval(songs[-1])
        return mx.concatenate(songs)


def finish(sound: np.ndarray) -> np.ndarray:
    """Songs (songs, samples, 2), each as loud as the reference makes it: its largest sample at −1 dB."""
    peak = np.abs(sound).max(axis=(1, 2), keepdims=True)
    found: np.ndarray = sound * (LOUDEST / np.maximum(peak, 1e-6))
    return found
