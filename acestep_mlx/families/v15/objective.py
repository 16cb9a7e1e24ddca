"""Flow matching as ACE-Step 1.5's own forward pass trains it. Pure functions, float32.

Symbols: x0 clean latents, ε noise, t in (0, 1) the time and the share of noise, x_t = t·ε + (1 − t)·x0,
v = ε − x0 the velocity that the transformer predicts. Latents are (B, T, C), masks (B, T), 1 where a frame
counts.

What the original does, and we do: t is the larger of two draws of sigmoid(N(μ, σ)), with μ and σ of the
model's config (mean 0.53; a single draw, as SimpleTuner and others take, has 0.42); the second time r equals
t; the context is latents of silence and a mask of ones; a song's whole condition is now and then replaced by
the learned null (`songs.collate`); the loss is the plain mean square of v − (ε − x0).

What we do otherwise: the original masks no padding, neither of frames nor of texts, so that a song learns
beside whatever it is batched with. Here padding is masked in the attentions and in the loss, and a song draws
the same however far it is padded: a batch of two gives the losses of two batches of one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from ..protocol import Draw, Prepare

NOISE_FRAMES = 256  # that are drawn from one key
DENSITY = "time_density"  # in a batch: μ and σ of the times, (2,) float32


def sample_times(key: mx.array, mean: mx.array, deviation: mx.array, draws: int = 2) -> mx.array:
    """(1,) float32 in (0, 1): the largest of `draws` numbers whose logits are N(mean, deviation)."""
    largest = mx.random.normal((draws,), key=key).max(keepdims=True)
    return mx.sigmoid(mean + deviation * largest)


def sample_noise(key: mx.array, frames: int, channels: int) -> mx.array:
    """(frames, channels) standard normal float32; fewer frames are the beginning of more."""
    blocks = []
    for _ in range(-(-frames // NOISE_FRAMES)):
        key, own = mx.random.split(key)
        blocks.append(mx.random.normal((NOISE_FRAMES, channels), key=own))
    return mx.concatenate(blocks)[:frames]


def time_density(model: nn.Module) -> Prepare:
    """Adds the model's own μ and σ to batches: its config.json has them."""
    density = mx.array([model.config.timestep_mu, model.config.timestep_sigma])
    return lambda batch: {**batch, DENSITY: density}


def sample_losses(velocity: mx.array, target: mx.array, mask: mx.array) -> mx.array:
    """(B,) float32: mean of (v − target)² over the frames that count and all channels."""
    mask = mask.astype(mx.float32)
    error = mx.square(velocity.astype(mx.float32) - target).mean(axis=-1) * mask
    return error.sum(axis=1) / mask.sum(axis=1)


@dataclass(frozen=True)
class FlowMatching:
    """The objective of a run.

    mean, deviation: of the logits of times; None: the model's own. draws: of which the largest is the time.
    """

    mean: float | None = None
    deviation: float | None = None
    draws: int = 2

    def draw(self, batch: Mapping[str, mx.array]) -> Draw:
        """Time, noise, and where in the autoencoder's distribution the latents lie (`more["latents"]`)."""
        keys, (_, T, C) = batch["keys"], batch["mean"].shape
        mean, deviation = batch[DENSITY]
        mean = mean if self.mean is None else mx.array(self.mean)
        deviation = deviation if self.deviation is None else mx.array(self.deviation)
        own = [mx.split(mx.random.split(key, 4), 4) for key in keys]
        noise = mx.stack([sample_noise(key[0][0], T, C) for key in own])
        latents = mx.stack([sample_noise(key[1][0], T, C) for key in own])
        times = [sample_times(key[2][0], mean, deviation, self.draws) for key in own]
        return Draw(noise, mx.concatenate(times), own[0][3][0], {"latents": latents})

    def fixed(self, batch: Mapping[str, mx.array], sigma: mx.array) -> Draw:
        """The noise of `draw` at one time for all songs, and the autoencoder's mean for their latents."""
        drawn = self.draw(batch)
        return drawn._replace(
            sigma=mx.broadcast_to(sigma, drawn.sigma.shape),
            more={"latents": mx.zeros_like(drawn.more["latents"])},
        )

    def losses(
        self, model: nn.Module, batch: Mapping[str, mx.array], draw: Draw, dtype: mx.Dtype
    ) -> mx.array:
        """Flow-matching loss of each song, (B,) float32; the batch is one of `songs.collate`."""
        mean, std, mask = (batch[name].astype(mx.float32) for name in ("mean", "std", "latent_mask"))
        x0, t = mean + std * draw.more["latents"], draw.sigma[:, None, None]
        source: Any = batch["source"]
        velocity = model(
            hidden_states=(t * draw.noise + (1 - t) * x0).astype(dtype),
            timestep=draw.sigma,
            timestep_r=draw.sigma,
            encoder_hidden_states=batch["states"].astype(dtype),
            context_latents=mx.concatenate([source, mx.ones_like(source)], axis=-1).astype(dtype),
            attention_mask=mask,
            encoder_attention_mask=batch["states_mask"],
        )
        return sample_losses(velocity, draw.noise - x0, mask)
