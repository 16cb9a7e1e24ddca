"""Flow matching as ACE-Step v1 trains it: schedule, noising, loss. Pure functions, float32.

Symbols: x0 clean latents, ε noise, σ in (0, 1] the noise level, x_t = σ·ε + (1 − σ)·x0 noisy latents,
v = ε − x0 velocity (what the transformer predicts), t = 1000·σ the timestep that it is given.
x0 is recovered as x_t − σ·v. Latents are (B, 8, 16, T), masks (B, T).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from ..protocol import Draw

STEPS = 1000


def shift_sigmas(sigmas: mx.array, shift: float) -> mx.array:
    """σ' = s·σ / (1 + (s − 1)·σ): more time is spent at high noise for s > 1 (SD3, arXiv 2403.03206)."""
    return shift * sigmas / (1 + (shift - 1) * sigmas)


def sigmas(shift: float = 3.0, steps: int = STEPS) -> mx.array:
    """The training schedule (steps,): steps/steps … 1/steps, shifted; falling from 1."""
    return shift_sigmas(mx.arange(steps, 0, -1, dtype=mx.float32) / steps, shift)


def sample_timesteps(
    key: mx.array, n: int, logit_mean: float = 0.0, logit_std: float = 1.0, shift: float = 3.0
) -> tuple[mx.array, mx.array]:
    """σ (n,) and timesteps (n,): logit-normal places in the schedule."""
    u = mx.sigmoid(logit_mean + logit_std * mx.random.normal((n,), key=key))
    index = mx.clip(mx.floor(u * STEPS), 0, STEPS - 1).astype(mx.int32)
    sigma = sigmas(shift)[index]
    return sigma, sigma * STEPS


def _column(sigma: mx.array) -> mx.array:
    return sigma.astype(mx.float32).reshape(-1, 1, 1, 1)


def add_noise(latents: mx.array, noise: mx.array, sigma: mx.array) -> mx.array:
    """x_t = σ·ε + (1 − σ)·x0, (B, 8, 16, T) float32; sigma (B,)."""
    s = _column(sigma)
    return s * noise.astype(mx.float32) + (1 - s) * latents.astype(mx.float32)


def denoised(velocity: mx.array, noisy: mx.array, sigma: mx.array) -> mx.array:
    """The estimate of x0, x_t − σ·v, float32."""
    return noisy.astype(mx.float32) - _column(sigma) * velocity.astype(mx.float32)


def sample_losses(
    velocity: mx.array,
    noisy: mx.array,
    sigma: mx.array,
    latents: mx.array,
    mask: mx.array,
    weight: mx.array | None = None,
) -> mx.array:
    """(B,) float32: the mean over all of (mask·(x0_hat − x0))², times the fraction of frames that count.

    The mean includes padding, as upstream's does; so a half-padded sample weighs a quarter. weight: of each
    squared error.
    """
    mask = mask.astype(mx.float32)
    error = (denoised(velocity, noisy, sigma) - latents.astype(mx.float32)) * mask[:, None, None]
    squared = mx.square(error) if weight is None else mx.square(error) * weight
    return mx.mean(squared, axis=(1, 2, 3)) * mx.mean(mask, axis=1)


@dataclass(frozen=True)
class FlowMatching:
    """The objective of a run: where in the schedule its songs are trained, and their loss."""

    logit_mean: float = 0.0
    logit_std: float = 1.0
    shift: float = 3.0

    def draw(self, batch: Mapping[str, mx.array]) -> Draw:
        """Noise and noise level of each song from its own key."""
        keys, shape = batch["keys"], batch["latents"].shape[1:]
        noise, sigma = [], []
        for key in keys:
            for_noise, for_time, _ = mx.split(mx.random.split(key, 3), 3)
            noise.append(mx.random.normal(shape, key=for_noise[0]))
            sigma.append(sample_timesteps(for_time[0], 1, self.logit_mean, self.logit_std, self.shift)[0])
        return Draw(mx.stack(noise), mx.concatenate(sigma), mx.random.split(keys[0], 3)[2], {})

    def fixed(self, batch: Mapping[str, mx.array], sigma: mx.array) -> Draw:
        """The noise of `draw` at one level for all songs."""
        return self.draw(batch)._replace(sigma=mx.broadcast_to(sigma, (batch["latents"].shape[0],)))

    def losses(
        self, model: nn.Module, batch: Mapping[str, mx.array], draw: Draw, dtype: mx.Dtype
    ) -> mx.array:
        """Flow-matching loss of each song, (B,) float32.

        `batch`: latents (B, 8, 16, T), latent_mask (B, T), text (B, L, 768), text_mask (B, L), lyric_ids
        (B, M), lyric_mask (B, M); dropped captions and lyrics are zeros in it. `lyric_states` (B, M, H) are
        optional: what the ids were encoded to before. So is `speaker` (B, 512): the released model knows only
        zeros.
        """
        noisy = add_noise(batch["latents"], draw.noise, draw.sigma)
        velocity = self.velocity(model, batch, noisy, draw.sigma, dtype)
        return self.compared(velocity, noisy, batch, draw)

    def clean(self, batch: Mapping[str, mx.array], draw: Draw) -> tuple[mx.array, mx.array]:
        """The latents as they are cached; mask (B, 1, 1, T)."""
        return batch["latents"].astype(mx.float32), batch["latent_mask"].astype(mx.float32)[:, None, None]

    def told(self, model: nn.Module, batch: Mapping[str, mx.array], dtype: mx.Dtype) -> dict[str, Any]:
        """`cross_kv`: each block's keys and values of speaker, text and lyrics; `cross_mask` (B, S)."""
        states, mask = model.encode(*_conditions(model, batch, dtype), lyric_states=batch.get("lyric_states"))
        return {"cross_kv": model.cross_kv(states), "cross_mask": mask}

    def velocity(
        self,
        model: nn.Module,
        batch: Mapping[str, Any],
        noisy: mx.array,
        sigma: mx.array,
        dtype: mx.Dtype,
    ) -> mx.array:
        """(B, 8, 16, T) in the model's dtype; the batch as in `losses`, with what `told` adds, or without."""
        x, frames, timestep = noisy.astype(dtype), batch["latent_mask"].astype(mx.float32), sigma * STEPS
        if "cross_kv" in batch:
            kv, mask = batch["cross_kv"], batch["cross_mask"]
            found: mx.array = model.decode(x, frames, None, mask, timestep, cross_kv=kv)
            return found
        text, text_mask, speaker, lyric_ids, lyric_mask = _conditions(model, batch, dtype)
        found = model(
            hidden_states=x,
            attention_mask=frames,
            encoder_text_hidden_states=text,
            text_attention_mask=text_mask,
            speaker_embeds=speaker,
            lyric_token_idx=lyric_ids,
            lyric_mask=lyric_mask,
            timestep=timestep,
            lyric_states=batch.get("lyric_states"),
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
        """See `sample_losses`, which takes any noisy latents back to x0."""
        latents, mask = batch["latents"].astype(mx.float32), batch["latent_mask"]
        return sample_losses(velocity, noisy, draw.sigma, latents, mask, weight)


def _conditions(model: nn.Module, batch: Mapping[str, mx.array], dtype: mx.Dtype) -> tuple[mx.array, ...]:
    """Text and its mask, speaker, lyric ids and their mask, as `ACEStepTransformer.encode` takes them."""
    speaker = batch.get("speaker")
    if speaker is None:
        speaker = mx.zeros((batch["text"].shape[0], model.config.speaker_embedding_dim))
    text, speaker = batch["text"].astype(dtype), speaker.astype(dtype)
    return text, batch["text_mask"], speaker, batch["lyric_ids"], batch["lyric_mask"]
