"""The schedule and the loss against the reference scheduler and the reference trainer's arithmetic."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from acestep_mlx.families.v1 import objective as flow

from ..later import Later
from . import reference

torch = Later("torch")
pytestmark = pytest.mark.parity


@pytest.mark.parametrize("shift", [1.0, 3.0, 5.5])
def test_schedule(shift: float) -> None:
    module = reference.load("schedulers.scheduling_flow_match_euler_discrete")
    theirs = module.FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=shift)
    np.testing.assert_allclose(np.array(flow.sigmas(shift)), theirs.sigmas.numpy(), rtol=1e-6)
    np.testing.assert_allclose(np.array(flow.sigmas(shift)) * 1000, theirs.timesteps.numpy(), rtol=1e-6)


def test_noising_and_loss() -> None:
    module = reference.load("schedulers.scheduling_flow_match_euler_discrete")
    scheduler = module.FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=3.0)
    rng = np.random.default_rng(0)
    latents, noise, velocity = (rng.standard_normal((3, 8, 16, 21), dtype=np.float32) for _ in range(3))
    mask = (np.arange(21)[None] < np.array([21, 13, 1])[:, None]).astype(np.float32)
    index = [40, 500, 990]

    timestep = scheduler.timesteps[index]
    sigma = scheduler.sigmas[index]
    noisy = scheduler.scale_noise(torch.from_numpy(latents), timestep, torch.from_numpy(noise))
    # The reference trainer's loss (its `loss` method needs the whole trainer around it).
    prediction = noisy - sigma.view(-1, 1, 1, 1) * torch.from_numpy(velocity)
    wide = torch.from_numpy(mask)[:, None, None].expand_as(prediction)
    square = torch.nn.functional.mse_loss(
        (prediction * wide).reshape(3, -1),
        (torch.from_numpy(latents) * wide).reshape(3, -1),
        reduction="none",
    )
    expected = (square.mean(1) * wide.reshape(3, -1).mean(1)).mean()

    ours = flow.sigmas(3.0)[mx.array(index)]
    our_noisy = flow.add_noise(mx.array(latents), mx.array(noise), ours)
    np.testing.assert_allclose(np.array(our_noisy), noisy.numpy(), atol=1e-6)
    loss = mx.mean(flow.sample_losses(mx.array(velocity), our_noisy, ours, mx.array(latents), mx.array(mask)))
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
