"""A song's latents: 64 channels, 25 frames a second of sound at 48 kHz."""

from __future__ import annotations

from ..protocol import LatentSpec

LATENTS = LatentSpec(
    sample_rate=48000, samples_per_frame=1920, shape=(None, 64), min_seconds=1.0, max_seconds=600.0
)
