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


def sample_losses(
    velocity: mx.array, target: mx.array, mask: mx.array, weight: mx.array | None = None
) -> mx.array:
    """(B,) float32: mean of (v − target)² over the frames that count and all channels. weight: of each."""
    mask = mask.astype(mx.float32)
    squared = mx.square(velocity.astype(mx.float32) - target)
    error = (squared if weight is None else squared * weight).mean(axis=-1) * mask
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
        x0, _ = self.clean(batch, draw)
        t = draw.sigma[:, None, None]
        noisy = t * draw.noise + (1 - t) * x0
        return self.compared(self.velocity(model, batch, noisy, draw.sigma, dtype), noisy, batch, draw)

    def clean(self, batch: Mapping[str, mx.array], draw: Draw) -> tuple[mx.array, mx.array]:
        """Latents where the draw has them in the autoencoder's distribution; mask (B, T, 1)."""
        mean, std, mask = (batch[name].astype(mx.float32) for name in ("mean", "std", "latent_mask"))
        return mean + std * draw.more["latents"], mask[..., None]

    def told(self, model: nn.Module, batch: Mapping[str, mx.array], dtype: mx.Dtype) -> dict[str, Any]:
        """`cross_kv`: each layer's keys and values of the conditions."""
        return {"cross_kv": model.cross_kv(batch["states"].astype(dtype))}

    def velocity(
        self, model: nn.Module, batch: Mapping[str, Any], noisy: mx.array, sigma: mx.array, dtype: mx.Dtype
    ) -> mx.array:
        """(B, T, C) in the model's dtype, at r = t; the batch with what `told` adds, or without."""
        source: Any = batch["source"]
        found: mx.array = model(
            hidden_states=noisy.astype(dtype),
            timestep=sigma,
            timestep_r=sigma,
            encoder_hidden_states=batch["states"].astype(dtype),
            context_latents=mx.concatenate([source, mx.ones_like(source)], axis=-1).astype(dtype),
            attention_mask=batch["latent_mask"].astype(mx.float32),
            encoder_attention_mask=batch["states_mask"],
            **({"cross_kv": batch["cross_kv"]} if "cross_kv" in batch else {}),
        )
        return found

    def compared(
        self,
        velocity: mx.array,
        noisy: mx.array,
        batch: Mapping[str, mx.array],
        draw: Draw,
        *,
        rolled: mx.array | None = None,
        weight: mx.array | None = None,
    ) -> mx.array:
        """With ε − x0; with (x − x0)/t where a song was rolled out, which leads back to x0 from there."""
        x0, _ = self.clean(batch, draw)
        target = draw.noise - x0
        if rolled is not None:
            back = (noisy - x0) / draw.sigma[:, None, None]
            target = mx.where(rolled[:, None, None], back, target)
        return sample_losses(velocity, target, batch["latent_mask"], weight)
