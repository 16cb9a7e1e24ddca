"""Schedule, noising and loss: properties here, the reference's numbers in tests/parity."""

from __future__ import annotations

import math

import mlx.core as mx
import numpy as np
import pytest

from acestep_mlx.families.v1 import objective as flow


def normal(seed: int, *shape: int) -> mx.array:
    return mx.random.normal(shape, key=mx.random.key(seed))


def test_schedule_falls_from_one_and_is_shifted() -> None:
    plain, shifted = flow.sigmas(shift=1.0), flow.sigmas(shift=3.0)
    assert plain.shape == (1000,) and plain[0].item() == 1.0 and plain[-1].item() == pytest.approx(0.001)
    assert bool(mx.all(shifted[1:] < shifted[:-1]))
    assert shifted[500].item() == pytest.approx(3 * 0.5 / (1 + 2 * 0.5))


def test_sampled_timesteps_follow_the_logit_normal() -> None:
    sigma, timestep = flow.sample_timesteps(mx.random.key(0), 20000, logit_mean=0.5, logit_std=0.7)
    assert bool(mx.all(timestep == sigma * 1000))
    # Invert the shift and the index: what is left is the sigmoid of a normal variable.
    plain = np.array(sigma / (3 - 2 * sigma))
    u = np.clip(1 - plain, 1e-4, 1 - 1e-4)
    logits = np.log(u / (1 - u))
    assert logits.mean() == pytest.approx(0.5, abs=0.02)
    assert logits.std() == pytest.approx(0.7, abs=0.02)


def test_extreme_draws_stay_in_the_schedule() -> None:
    high, _ = flow.sample_timesteps(mx.random.key(0), 8, logit_mean=100.0)
    low, _ = flow.sample_timesteps(mx.random.key(0), 8, logit_mean=-100.0)
    assert set(high.tolist()) == {flow.sigmas()[-1].item()} and set(low.tolist()) == {1.0}


def test_same_key_same_timesteps() -> None:
    a, b = (flow.sample_timesteps(mx.random.key(3), 5)[0] for _ in range(2))
    assert a.tolist() == b.tolist() != flow.sample_timesteps(mx.random.key(4), 5)[0].tolist()


def test_the_true_velocity_has_no_loss() -> None:
    latents, noise = normal(0, 2, 8, 16, 5), normal(1, 2, 8, 16, 5)
    sigma = mx.array([0.3, 0.9])
    noisy = flow.add_noise(latents, noise, sigma)
    mask = mx.array([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]])
    assert mx.mean(flow.sample_losses(noise - latents, noisy, sigma, latents, mask)).item() < 1e-12
    assert mx.allclose(flow.denoised(noise - latents, noisy, sigma), latents, atol=1e-5)


def test_padding_does_not_count() -> None:
    latents, noise, sigma = normal(0, 1, 8, 16, 6), normal(1, 1, 8, 16, 6), mx.array([0.5])
    noisy = flow.add_noise(latents, noise, sigma)
    mask = mx.array([[1, 1, 1, 0, 0, 0]])
    junk = mx.where(mask[:, None, None] > 0, normal(2, 1, 8, 16, 6), 1e4)
    clean = mx.where(mask[:, None, None] > 0, junk, 0)
    loss = mx.mean(flow.sample_losses(junk, noisy, sigma, latents, mask))
    assert math.isfinite(loss.item())
    assert loss.item() == mx.mean(flow.sample_losses(clean, noisy, sigma, latents, mask)).item()


def test_half_precision_goes_in_and_float32_comes_out() -> None:
    latents, noise = normal(0, 1, 8, 16, 4).astype(mx.float16), normal(1, 1, 8, 16, 4).astype(mx.bfloat16)
    noisy = flow.add_noise(latents, noise, mx.array([0.5]))
    loss = mx.mean(flow.sample_losses(noise, noisy, mx.array([0.5]), latents, mx.ones((1, 4))))
    assert noisy.dtype == loss.dtype == mx.float32
