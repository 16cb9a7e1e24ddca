"""What makes a retake, a repaint, an extension and an audio2audio out of plain sampling.

Pure functions of latents (B, 8, 16, T) and noise. Frames are counted at 44100 / (512 * 8) = 10.77 a second.
Source: ACE-Step's `text2music_diffusion_process`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import mlx.core as mx

from ..config.request import MAX_SECONDS, SHIFT
from ..errors import ConfigError
from ..formatting import count
from .denoise import Known
from .schedulers import noise_level, timetable

SAMPLE_RATE, SAMPLES_PER_FRAME = 44100, 512 * 8


def frames_of(seconds: float) -> int:
    """Whole latent frames in `seconds`, as the model was trained to count them (60 s = 645)."""
    return int(seconds * SAMPLE_RATE / SAMPLES_PER_FRAME)


def _seconds(frames: int) -> str:
    return f"{frames * SAMPLES_PER_FRAME / SAMPLE_RATE:.2f} s"


MAX_FRAMES = frames_of(MAX_SECONDS)


def retake(noise: mx.array, other: mx.array, variance: float) -> mx.array:
    """Turn the first noise towards another by `variance` (0 … 1) of a right angle; its power stays 1."""
    angle = variance * math.pi / 2
    return math.cos(angle) * noise + math.sin(angle) * other


def first_step(steps: int, variance: float) -> int:
    """The step at which a repaint or an extension enters the run: the less it may vary, the later."""
    return int(steps * (1 - variance))


def repaint(
    source: mx.array, noise: mx.array, other: mx.array, start: int, end: int, variance: float
) -> Known:
    """Frames start … end - 1 of `source` are to be made anew, the rest is given."""
    T = source.shape[-1]
    if not 0 <= start < end <= T:
        raise ConfigError(
            f"the section to repaint must lie in 0 to {_seconds(T)}, got {_seconds(start)} to {_seconds(end)}"
        )
    position = mx.arange(T)
    free = mx.broadcast_to(((position >= start) & (position < end)).astype(mx.float32), source.shape)
    return Known(source, mx.where(free == 1, retake(noise, other, variance), noise), free)


@dataclass(frozen=True)
class Extension:
    """A song to be continued: what the model sees, and given frames beyond its longest window.

    `before` and `after` (or None) go back around the result.
    """

    known: Known
    before: mx.array | None
    after: mx.array | None

    def whole(self, latents: mx.array) -> mx.array:
        """The sampled window with the frames that were kept aside."""
        parts = [part for part in (self.before, latents, self.after) if part is not None]
        return mx.concatenate(parts, axis=-1)


def extend(
    source: mx.array, noise: mx.array, left: mx.array, right: mx.array, longest: int = MAX_FRAMES
) -> Extension:
    """Continue `source` (B, 8, 16, T) to both sides by as many frames as `left` and `right` noise have.

    `noise` has the source's length. When one side would make the window longer than `longest` frames, the
    far end of the source is kept aside. (The reference counts the left part twice when it measures the
    right one, cannot add more frames than the source has, and keeps the wrong frames aside.)
    """
    T, L, R = source.shape[-1], left.shape[-1], right.shape[-1]
    if L + R == 0:
        raise ConfigError("extend needs a length on the left or on the right")
    excess = max(L + T + R - longest, 0)
    if excess and ((L and R) or excess >= T):
        raise ConfigError(
            f"{_seconds(L + T + R)} are more than the model's {_seconds(longest)}: extend one side at a "
            "time, or by less"
        )
    before = source[..., :excess] if excess and R else None
    after = source[..., T - excess :] if excess and L else None
    start, stop = (excess if R else 0), (T - excess if L else T)

    def silence(frames: int) -> mx.array:
        return mx.zeros((*source.shape[:-1], frames))

    clean = mx.concatenate([silence(L), source[..., start:stop], silence(R)], axis=-1)
    around = mx.concatenate([left, noise[..., start:stop], right], axis=-1)
    position = mx.arange(clean.shape[-1])
    free = ((position < L) | (position >= clean.shape[-1] - R)).astype(mx.float32)
    return Extension(Known(clean, around, mx.broadcast_to(free, clean.shape)), before, after)


def audio2audio(
    source: mx.array, noise: mx.array, steps: int, strength: float, shift: float = SHIFT
) -> tuple[mx.array, list[float]]:
    """Noisy latents to start from, and the levels of the shorter run that is left (`strength` 0 … 1).

    As in the reference the levels are shifted twice and the noise once, so that the model takes the
    source for noisier than it is.
    """
    strongest = 1.0 - strength
    left = int(strongest * steps)
    if left < 1:
        more = "" if strength == 1 else " or add steps"
        raise ConfigError(
            f"a reference strength of {strength:g} leaves nothing to change in {count(steps, 'step')}: "
            f"lower it{more}"
        )
    level = noise_level(strongest, shift)
    return (1.0 - level) * source + level * noise, timetable(left, shift, strongest)
