"""Noise levels of a generation and the steps between them.

Symbols: x are the latents, v the model's velocity, sigma in [0, 1] the share of noise in x (1 is pure
noise); the model is told the time 1000 * sigma. Everything here is a pure function of arrays of shape
(B, 8, 16, T) in float32; randomness is handed in. Source of the formulas: ACE-Step's
`schedulers/scheduling_flow_match_{euler,heun}_discrete.py` and `scheduling_flow_match_pingpong.py`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import mlx.core as mx
import numpy as np

from ..config.request import SCHEDULERS, SHIFT
from ..errors import ConfigError

TRAIN_STEPS = 1000


@dataclass(frozen=True)
class Stage:
    """One evaluation of the model: at `sigma`, within step number `step`; it leaves latents at `after`.

    `corrector` marks Heun's second evaluation, which starts again from the latents before the first.
    """

    step: int
    sigma: float
    after: float
    corrector: bool = False


def shifted(sigma: Any, shift: float = SHIFT) -> Any:
    """Move noise levels (a number or an array) towards 1: shift * sigma / (1 + (shift - 1) * sigma)."""
    return shift * sigma / (1 + (shift - 1) * sigma)


def noise_level(strongest: float, shift: float = SHIFT) -> float:
    """The share of noise that audio2audio mixes into its source; `strongest` is 1 - reference strength."""
    return float(shifted(np.float32(strongest), shift))


def timetable(steps: int, shift: float = SHIFT, strongest: float = 1.0) -> list[float]:
    """Noise levels of `steps` steps, largest first, without the final 0.

    The ends of the line are themselves shifted levels, and the line is shifted once more: that is what
    the reference does, and what the model's published settings were chosen with.
    """
    highest = shifted(np.float32(strongest), shift)
    lowest = shifted(np.float32(1.0 / TRAIN_STEPS), shift)
    line = np.linspace(float(highest), float(lowest), steps)
    return [float(sigma) for sigma in np.asarray(shifted(line, shift), dtype=np.float32)]


def custom_timetable(positions: Sequence[int], shift: float = SHIFT) -> list[float]:
    """Noise levels picked out of a longer timetable: 1-based positions in one of `max(positions)` steps.

    As in the reference (`oss_steps`), the picked levels are shifted again.
    """
    if not positions or any(b <= a for a, b in pairwise(positions)) or positions[0] < 1:
        raise ConfigError(f"oss_steps must be rising step numbers from 1 on, got {list(positions)}")
    full = timetable(max(positions), shift)
    picked = np.array([full[p - 1] for p in positions], dtype=np.float32)
    return [float(sigma) for sigma in shifted(picked, shift)]


def stages(scheduler: str, sigmas: Sequence[float]) -> list[Stage]:
    """The model evaluations of a whole run: one a step, or two for Heun (but one for its last step)."""
    if scheduler not in SCHEDULERS:
        raise ConfigError(f"unknown scheduler {scheduler!r}: one of {', '.join(SCHEDULERS)}")
    line = []
    for step, sigma in enumerate(sigmas):
        after = sigmas[step + 1] if step + 1 < len(sigmas) else 0.0
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
        mean = change.mean(axis=(1, 2, 3), keepdims=True)
        change = (change - mean) * gain + mean
    return latents + change


def pingpong(latents: mx.array, velocity: mx.array, stage: Stage, noise: mx.array) -> mx.array:
    """Estimate the clean latents and mix them with fresh noise down to the next level."""
    clean = latents - stage.sigma * velocity
    return (1.0 - stage.after) * clean + stage.after * noise
