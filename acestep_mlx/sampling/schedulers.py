"""The steps between the noise levels of a generation.

Symbols: x are the latents, v the model's velocity, sigma in [0, 1] the share of noise in x (1 is pure
noise). Everything here is a pure function of arrays (B, …) in float32, one song a row; randomness is handed
in. Source of the formulas: ACE-Step's `schedulers/scheduling_flow_match_{euler,heun}_discrete.py` and
`scheduling_flow_match_pingpong.py`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx

from ..config.request import SCHEDULERS
from ..errors import ConfigError


@dataclass(frozen=True)
class Stage:
    """One evaluation of the model: at `sigma`, within step number `step`; it leaves latents at `after`.

    `corrector` marks Heun's second evaluation, which starts again from the latents before the first.
    """

    step: int
    sigma: float
    after: float
    corrector: bool = False


def stages(scheduler: str, sigmas: Sequence[float]) -> list[Stage]:
    """The model evaluations of a whole run: one a step, or two for Heun (but one for its last step)."""
    if scheduler not in SCHEDULERS:
        raise ConfigError(f"unknown scheduler {scheduler!r}: one of {', '.join(SCHEDULERS)}")
    line = []
    for step, (sigma, after) in enumerate(zip(sigmas, [*sigmas[1:], 0.0], strict=True)):
        line.append(Stage(step, sigma, after))
        if scheduler == "heun" and after > 0:
            line.append(Stage(step, after, after, corrector=True))
    return line


def omega_gain(omega: float) -> float:
    """The factor on what departs from a step's mean: a logistic between 0.9 and 1.1 (`omega_scale`)."""
    return 0.9 + 0.2 / (1.0 + math.exp(-0.1 * omega))


def move(latents: mx.array, velocity: mx.array, distance: float, gain: float | None = None) -> mx.array:
    """x + distance * v; with `gain`, what departs from the mean of this movement is multiplied by it.

    The mean is taken for each song by itself. (The reference takes it over the whole batch, so that a
    song there depends on the songs beside it.)
    """
    change = distance * velocity
    if gain is not None:
        mean = change.mean(axis=tuple(range(1, change.ndim)), keepdims=True)
        change = (change - mean) * gain + mean
    return latents + change


def pingpong(latents: mx.array, velocity: mx.array, stage: Stage, noise: mx.array) -> mx.array:
    """Estimate the clean latents and mix them with fresh noise down to the next level."""
    clean = latents - stage.sigma * velocity
    return (1.0 - stage.after) * clean + stage.after * noise
