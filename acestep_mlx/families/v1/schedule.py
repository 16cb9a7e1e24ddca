"""Noise levels of an ACE-Step v1 generation.

sigma in [0, 1] is the share of noise in the latents; the model is told the time 1000 * sigma. Source of the
formulas: ACE-Step's `schedulers/scheduling_flow_match_{euler,heun}_discrete.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from ...config.request import SHIFT
from ...errors import ConfigError

TRAIN_STEPS = 1000


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
