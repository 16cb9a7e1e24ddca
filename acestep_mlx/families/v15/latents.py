"""A song's latents: 64 channels, 25 frames a second of sound at 48 kHz."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..protocol import LatentSpec


@dataclass(frozen=True)
class Latents(LatentSpec):
    """Counted as the reference does, which multiplies by the rate and rounds up where a song ends."""

    def whole_frames(self, seconds: float) -> int:
        """Frames that fit into `seconds`."""
        return int(seconds * self.frame_rate)

    def song_frames(self, seconds: float) -> int:
        """Frames of a song of so many seconds, the last one whole."""
        return math.ceil(seconds * self.frame_rate)


LATENTS = Latents(
    sample_rate=48000, samples_per_frame=1920, shape=(None, 64), min_seconds=1.0, max_seconds=600.0,
    shortest=0.04, encoding=150e9,
)  # fmt: skip
