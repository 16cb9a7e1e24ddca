"""Noise levels of an ACE-Step 1.5 generation; `sampling` has the guidance and the steps between them.

sigma in [0, 1] is the share of noise in the latents and the time that the model is told. Source: diffusers'
`AceStepPipeline`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


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


def timetable(steps: int, shift: float, strongest: float = 1.0) -> list[float]:
    """Levels of `steps` steps without the final 0; strongest: where the first one lies before shifting."""
    if strongest == 1.0:
        return [float(sigma) for sigma in sigmas(steps, shift)[:-1]]
    return [noise_level(float(level), shift) for level in np.linspace(strongest, 0, steps + 1)[:-1]]


def custom_timetable(positions: Sequence[int], shift: float) -> list[float]:
    """The levels at `positions` (rising, from 1) of a run of as many steps as the last one says."""
    full = timetable(max(positions), shift)
    return [full[position - 1] for position in positions]


def noise_level(strongest: float, shift: float) -> float:
    """The level that lies at `strongest` before shifting."""
    return float(np.float32(shift * strongest / (1 + (shift - 1) * strongest)))
