"""Noise levels of an ACE-Step 1.5 generation, and how two velocities become one.

Latents are (B, T, C), sigma in [0, 1] is the share of noise in them and the time that the model is told.
Everything is a pure function; running averages are handed in and out. Sources: diffusers' `AceStepPipeline`;
adaptive projected guidance: arXiv 2410.02416.
"""

from __future__ import annotations

import mlx.core as mx
import numpy as np

MOMENTUM = -0.75
NORM_THRESHOLD = 2.5


def sigmas(steps: int, shift: float = 3.0) -> np.ndarray:
    """float32 (steps + 1), from 1 down to 0: evenly spaced, then s · σ / (1 + (s − 1) · σ) with shift s.

    The tables of eight steps that the turbo models are distilled for are these levels at shift 1, 2 and 3.
    Raises ValueError for less than one step or a shift that is not above 0.
    """
    if steps < 1 or not shift > 0:
        raise ValueError(f"a schedule needs a step or more and a shift above 0, got {steps} and {shift}")
    # As torch.linspace, bit for bit: from both ends, with a float32 step, each level rounded once.
    step, at = np.float64(np.float32(-1) / np.float32(steps)), np.arange(steps + 1)
    line = np.where(at < (steps + 1) // 2, 1 + step * at, -step * (steps - at)).astype(np.float32)
    if shift == 1.0:
        return line
    s = np.float32(shift)
    return (s * line / (1 + np.float32(shift - 1) * line)).astype(np.float32)


def guided(sigma: float, start: float = 0.0, end: float = 1.0) -> bool:
    """Whether a step at this level is guided: start ≤ 1 − σ ≤ end, counted from noise to music."""
    return start <= 1.0 - sigma <= end


def euler(latents: mx.array, velocity: mx.array, sigma: float, after: float) -> mx.array:
    """Latents at level `after` from those at `sigma`: x + (after − σ) · v in float32."""
    wide = latents.astype(mx.float32) + (np.float32(after) - np.float32(sigma)).item() * velocity
    return wide.astype(velocity.dtype)


def cfg(cond: mx.array, uncond: mx.array, scale: float) -> mx.array:
    """Classifier-free guidance: uncond + scale · (cond − uncond)."""
    return uncond + scale * (cond - uncond)


def apg(
    cond: mx.array, uncond: mx.array, scale: float, average: mx.array | None = None
) -> tuple[mx.array, mx.array]:
    """Adaptive projected guidance of velocities (B, T, C): the guided velocity and the new running average.

    The difference is averaged with (negative) momentum, limited in norm, and only its part orthogonal to the
    conditional velocity is used; norms and projection over time, channel by channel. `average` of the step
    before, None at first. Float32 inside.
    """
    cond32 = cond.astype(mx.float32)
    difference = cond32 - uncond.astype(mx.float32)
    if average is not None:
        difference = difference + MOMENTUM * average
    average = difference
    norm = _norm(difference)  # [B, 1, C]
    difference = difference * mx.minimum(1.0, NORM_THRESHOLD / mx.maximum(norm, 1e-30))
    direction = cond32 / mx.maximum(_norm(cond32), 1e-12)
    orthogonal = difference - (difference * direction).sum(axis=1, keepdims=True) * direction
    return (cond32 + (scale - 1) * orthogonal).astype(cond.dtype), average


def _norm(x: mx.array) -> mx.array:
    """(B, T, C) → (B, 1, C): over time."""
    return mx.sqrt(mx.square(x).sum(axis=1, keepdims=True))
