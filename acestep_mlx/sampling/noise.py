"""Random numbers of a generation: a function of seed, purpose and index, and of nothing else.

So a song is the same whether it is made alone or in a batch, and a retake can keep its first noise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import mlx.core as mx

from ..families.protocol import LatentSpec
from ..io.hashes import digest_of

# noise(purpose, frames, index) -> (B, *latents.of(frames)) float32
NoiseSource = Callable[[str, int, int], mx.array]


def seeded(seeds: Sequence[int], latents: LatentSpec) -> NoiseSource:
    """Normal noise for one song per seed.

    The key of a draw is taken from SHA-256 of "seed:purpose:index", so that draws of different purposes
    (`initial`, `retake`, `step`, ...) never overlap.
    """

    def draw(purpose: str, frames: int, index: int = 0) -> mx.array:
        songs = []
        for seed in seeds:
            digest = digest_of(f"{seed}:{purpose}:{index}".encode()).digest()
            key = mx.random.key(int.from_bytes(digest[:8], "big"))
            songs.append(mx.random.normal(latents.of(frames), key=key))
        return mx.stack(songs)

    return draw
