"""How conditional and unconditional velocities become one.

All functions are pure; arrays are (B, …) in float32, one song a row. Sources: ACE-Step's `apg_guidance.py`;
adaptive projected guidance: arXiv 2410.02416; CFG-Zero*: arXiv 2503.18886.
"""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx

from ..config.request import GUIDANCE, Request
from ..errors import ConfigError

MOMENTUM = -0.75
NORM_THRESHOLD = 2.5


@dataclass(frozen=True)
class Guidance:
    """Which guidance, how strong, and in which part of the run.

    `interval` is the share of the run's steps, in its middle, that is guided. Within it the scale
    falls from `scale` towards `minimum` by `decay` (0 keeps it, 1 goes all the way). `text_scale` and
    `lyric_scale` above 1, both of them, replace `kind` by double-condition guidance. `axes`: of APG's norms.
    Noise levels outside `first` ≤ 1 − σ ≤ `last` are not guided.
    """

    kind: str = "apg"
    scale: float = 15.0
    interval: float = 0.5
    decay: float = 0.0
    minimum: float = 3.0
    text_scale: float = 0.0
    lyric_scale: float = 0.0
    zero_steps: int = 1
    zero_init: bool = True
    axes: tuple[int, ...] = (-2, -1)
    first: float = 0.0
    last: float = 1.0

    def __post_init__(self) -> None:
        if self.kind not in GUIDANCE:
            raise ConfigError(f"unknown guidance {self.kind!r}: one of {', '.join(GUIDANCE)}")

    @classmethod
    def of(cls, request: Request, axes: tuple[int, ...]) -> Guidance:
        """The guidance that a request asks for, of a model whose APG has its norms over `axes`."""
        return cls(
            kind=request.guidance,
            scale=request.guidance_scale,
            interval=request.guidance_interval,
            decay=request.guidance_decay,
            minimum=request.min_guidance_scale,
            text_scale=request.guidance_scale_text,
            lyric_scale=request.guidance_scale_lyric,
            zero_steps=request.zero_steps,
            zero_init=request.zero_init,
            axes=axes,
            first=request.cfg_interval_start,
            last=request.cfg_interval_end,
        )

    @property
    def enabled(self) -> bool:
        """A scale of 0 or 1 means: the conditional velocity alone."""
        return self.scale not in (0.0, 1.0)

    @property
    def double(self) -> bool:
        """Text and lyrics guided by scales of their own."""
        return self.enabled and self.text_scale > 1.0 and self.lyric_scale > 1.0

    @property
    def branches(self) -> int:
        """Conditions under which the model is evaluated: [conditional(, unconditional(, text alone))]."""
        return 3 if self.double else 2 if self.enabled else 1

    def window(self, steps: int) -> tuple[int, int]:
        """First and one-past-last number that is guided, out of `steps`."""
        if not self.enabled:
            return 0, 0
        start = int(steps * ((1 - self.interval) / 2))
        return start, int(steps * (self.interval / 2 + 0.5))

    def covers(self, sigma: float) -> bool:
        """Whether this noise level may be guided."""
        return self.first <= 1.0 - sigma <= self.last

    def scale_at(self, index: int, steps: int) -> float:
        """The scale of evaluation number `index`, inside the window."""
        start, end = self.window(steps)
        progress = (index - start) / max(end - start - 1, 1)
        return self.scale - (self.scale - self.minimum) * progress * max(self.decay, 0.0)

    def combine(
        self, branches: list[mx.array], scale: mx.array | float, index: int, average: mx.array | None
    ) -> tuple[mx.array, mx.array | None]:
        """One velocity out of those of `branches`, and APG's running average."""
        if len(branches) == 1:
            return branches[0], average
        cond, uncond, *text = branches
        if text:
            return double_condition(cond, uncond, text[0], self.text_scale, self.lyric_scale), average
        if self.kind == "cfg":
            return cfg(cond, uncond, scale), average
        if self.kind == "cfg_star":
            if self.zero_init and index <= self.zero_steps:
                return mx.zeros_like(cond), average
            return cfg_star(cond, uncond, scale), average
        return apg(cond, uncond, scale, average, axes=self.axes)

    def full(self, branches: list[mx.array], average: mx.array | None) -> tuple[mx.array, mx.array | None]:
        """`combine` at the full scale, after all zero steps."""
        return self.combine(branches, self.scale, self.zero_steps + 1, average)


def cfg(cond: mx.array, uncond: mx.array, scale: mx.array | float) -> mx.array:
    """Classifier-free guidance: uncond + scale * (cond - uncond)."""
    return uncond + scale * (cond - uncond)


def double_condition(
    cond: mx.array, uncond: mx.array, text_only: mx.array, text_scale: float, lyric_scale: float
) -> mx.array:
    """Scales of their own for what the text adds to nothing and what the lyrics add to the text."""
    return (1 - text_scale) * uncond + (text_scale - lyric_scale) * text_only + lyric_scale * cond


def cfg_star(cond: mx.array, uncond: mx.array, scale: mx.array | float) -> mx.array:
    """CFG-Zero*: the unconditional velocity is first scaled to fit the conditional one best, song by song."""
    axes = tuple(range(1, cond.ndim))
    fit = (cond * uncond).sum(axes, keepdims=True) / (mx.square(uncond).sum(axes, keepdims=True) + 1e-8)
    return cfg(cond, fit * uncond, scale)


def apg(
    cond: mx.array,
    uncond: mx.array,
    scale: mx.array | float,
    average: mx.array | None = None,
    *,
    axes: tuple[int, ...] = (-2, -1),
) -> tuple[mx.array, mx.array]:
    """Adaptive projected guidance; returns the velocity and the new running average of differences.

    The difference is averaged with (negative) momentum, limited in norm, and only its part orthogonal to
    the conditional velocity is used; norms and projection over `axes`, so that channels stay apart.
    """
    difference = cond - uncond
    if average is not None:
        difference = difference + MOMENTUM * average
    average = difference
    norm = mx.sqrt(mx.square(difference).sum(axes, keepdims=True))
    difference = difference * mx.minimum(1.0, NORM_THRESHOLD / norm)
    direction = cond / mx.maximum(mx.sqrt(mx.square(cond).sum(axes, keepdims=True)), 1e-12)
    orthogonal = difference - (difference * direction).sum(axes, keepdims=True) * direction
    return cond + (scale - 1) * orthogonal, average
