"""A song's latents: eight channels of sixteen rows, as tall as a compressed mel spectrogram."""

from __future__ import annotations

from ..protocol import LatentSpec

LATENTS = LatentSpec(
    sample_rate=44100, samples_per_frame=512 * 8, shape=(8, 16, None), min_seconds=3.0, max_seconds=240.0,
    encoding=75e9,
)  # fmt: skip
