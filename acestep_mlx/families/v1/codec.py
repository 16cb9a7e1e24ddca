"""Codec: stereo waveform ↔ latents; owns the mel range and the scale and shift of the latents.

Encoding: log-mel per channel → normalised to the autoencoder's range → latents. Decoding goes back through
the autoencoder's decoder and the vocoder. Long audio is worked on in windows whose overlap covers
everything that the layers can see, and the autoencoder's global attention is summed up over the whole
signal first (`dcae.apply_layers`), so the result equals the one computed in one go, at any length. Upstream
encodes whole songs, and above 48 s decodes in windows with an attention for each; here both see the whole.
"""

from __future__ import annotations

import mlx.core as mx
import numpy as np

from ...errors import CheckpointError, DataError
from ...io.audio import log_mel, resample
from ...io.progress import Progress, part, silent
from .dcae import AutoencoderDC
from .vocoder import Vocoder

SAMPLE_RATE = 44100  # Hz
HOP = 512  # samples per mel frame
DOWN = 8  # mel frames per latent frame
CHANNELS = 2
MEL_MIN, MEL_MAX = -11.0, 3.0  # the range of log-mel values that maps to [−1, 1]
LATENT_SCALE, LATENT_SHIFT = 0.1786, -1.9091
# Memory: latent frames in work at a time in the autoencoder, mel frames in the vocoder.
DCAE_WINDOW, VOCODER_WINDOW = 96, 768


def latent_frames(samples: int) -> int:
    """Latent frames of so many samples at 44.1 kHz, the padded last one included."""
    return -(-samples // (HOP * DOWN))


class Codec:
    """Waveform ↔ latents with a loaded autoencoder and vocoder."""

    def __init__(self, dcae: AutoencoderDC, vocoder: Vocoder) -> None:
        voc, down = vocoder.config, dcae.compression
        if (voc.sampling_rate, voc.hop_length, down) != (SAMPLE_RATE, HOP, DOWN):
            raise CheckpointError(
                f"codec: {SAMPLE_RATE} Hz, hop {HOP} and {DOWN} frames per latent are expected, "
                f"not {voc.sampling_rate} Hz, {voc.hop_length} and {down}"
            )
        if dcae.config.in_channels != CHANNELS or voc.n_mels != voc.input_channels:
            raise CheckpointError("codec: the autoencoder and the vocoder do not fit together")
        self.dcae, self.vocoder = dcae, vocoder

    def encode(
        self,
        wav: np.ndarray | mx.array,
        sample_rate: int = SAMPLE_RATE,
        *,
        progress: Progress = silent,
    ) -> mx.array:
        """Latents (B, 8, 16, T) float32, T = latent_frames(samples at 44.1 kHz).

        wav: (samples,), (samples, channels) or (B, samples, 2), float in [−1, 1]; mono is doubled. The end is
        padded with silence to a whole latent frame. `progress` is told the share done. DataError for audio
        that is empty, not finite, or of another shape.
        """
        batch = as_stereo_batch(wav)
        if sample_rate != SAMPLE_RATE:
            batch = np.stack([resample(item, sample_rate, SAMPLE_RATE) for item in batch])
        missing = latent_frames(batch.shape[1]) * HOP * DOWN - batch.shape[1]
        batch = np.pad(batch, ((0, 0), (0, missing), (0, 0)))
        parts = [self._encode(item, part(progress, i, len(batch))) for i, item in enumerate(batch)]
        return mx.concatenate(parts)

    def _encode(self, wav: np.ndarray, progress: Progress) -> mx.array:
        voc = self.vocoder.config
        mel = mx.stack(
            [
                log_mel(
                    mx.array(channel),
                    sample_rate=voc.sampling_rate,
                    n_fft=voc.n_fft,
                    win_length=voc.win_length,
                    hop_length=voc.hop_length,
                    n_mels=voc.n_mels,
                    f_min=voc.f_min,
                    f_max=voc.f_max,
                )
                for channel in np.ascontiguousarray(wav.T)
            ]
        )  # [2, n_mels, F]
        mel = 2 * (mel - MEL_MIN) / (MEL_MAX - MEL_MIN) - 1
        z = self.dcae.encode(mel[None], DCAE_WINDOW, progress).astype(mx.float32)
        latents = (z - LATENT_SHIFT) * LATENT_SCALE
        mx.eval(latents)
        return latents

    def decode(self, latents: mx.array, *, progress: Progress = silent) -> mx.array:
        """Waveform (B, samples, 2) float32 at 44.1 kHz, samples = 4096·T, of latents (B, 8, 16, T)."""
        C, H = self.dcae.config.latent_channels, self.vocoder.config.n_mels // DOWN
        if latents.ndim != 4 or latents.shape[1:3] != (C, H) or latents.shape[3] == 0:
            raise DataError(f"latents must be (B, {C}, {H}, T), got {latents.shape}")
        parts = [self._decode(item, part(progress, i, len(latents))) for i, item in enumerate(latents)]
        return mx.stack(parts)

    def _decode(self, latents: mx.array, progress: Progress) -> mx.array:
        z = latents.astype(mx.float32) / LATENT_SCALE + LATENT_SHIFT
        mel = self.dcae.decode(z[None], DCAE_WINDOW, part(progress, 0, 2))[0].astype(mx.float32)
        mel = (mel + 1) / 2 * (MEL_MAX - MEL_MIN) + MEL_MIN
        # One channel after the other, as the vocoder is mono: half the memory.
        parts = [
            self.vocoder(channel[None], VOCODER_WINDOW, part(progress, 2 + i, 4))[0, 0]
            for i, channel in enumerate(mel)
        ]
        wav = mx.stack(parts).astype(mx.float32)  # [2, samples]
        mx.eval(wav)
        return wav.T


def as_stereo_batch(wav: np.ndarray | mx.array) -> np.ndarray:
    """(samples,), (samples, channels) or (B, samples, channels) as (B, samples, 2) float32, checked."""
    batch = np.array(wav, dtype=np.float32)
    if batch.ndim == 1:
        batch = batch[:, None]
    if batch.ndim == 2:
        batch = batch[None]
    if batch.ndim != 3 or batch.shape[2] not in (1, CHANNELS):
        raise DataError(f"audio must be (samples,), (samples, 2) or (B, samples, 2), got {np.shape(wav)}")
    if batch.shape[0] == 0 or batch.shape[1] == 0:
        raise DataError("audio is empty")
    if not np.isfinite(batch).all():
        raise DataError("audio holds values that are not finite numbers")
    return np.repeat(batch, CHANNELS, axis=2) if batch.shape[2] == 1 else batch
