"""Where each task begins: the latents it starts from, its noise levels, and what of the song is given.

Pure functions of latents (B, …) and noise; `LatentSpec` says where time is and how it is counted. Source:
ACE-Step's `text2music_diffusion_process`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import mlx.core as mx

from ..config.request import Request
from ..errors import ConfigError
from ..families.protocol import LatentSpec
from ..formatting import count
from .denoise import Known
from .noise import NoiseSource


class Schedule(Protocol):
    """A model's noise levels, largest first, without the final 0."""

    def timetable(self, steps: int, shift: float, strongest: float = 1.0) -> list[float]:
        """Of `steps` steps; `strongest`: where the first one lies before shifting."""

    def custom_timetable(self, positions: Sequence[int], shift: float) -> list[float]:
        """Those at `positions` (from 1) of a longer timetable."""

    def noise_level(self, strongest: float, shift: float) -> float:
        """The share of noise that is mixed into a source to start from."""


@dataclass(frozen=True)
class Material:
    """What a task is made of. `given`: the source's latents (B, …), where there is one. `silence`, `told`: as
    of `families.protocol.Conditioned`.
    """

    request: Request
    latents: LatentSpec
    schedule: Schedule
    noise: NoiseSource
    given: mx.array | None
    silence: Callable[[int], mx.array]
    told: bool

    @property
    def source(self) -> mx.array:
        """The source; ConfigError without one."""
        if self.given is None:
            raise ConfigError(f"{self.request.task} needs a source")
        return self.given

    @property
    def frames(self) -> int:
        """Of the source, or as the request says."""
        if self.request.needs_source:
            return self.source.shape[self.latents.time_axis]
        return self.latents.song_frames(self.request.duration)

    @property
    def sigmas(self) -> list[float]:
        """Levels of a whole run."""
        if self.request.oss_steps:
            return self.schedule.custom_timetable(self.request.oss_steps, self.request.shift)
        return self.schedule.timetable(self.request.steps, self.request.shift)

    def draw(self, purpose: str, seconds: float | None = None) -> mx.array:
        """The first noise of this purpose, as long as the song or so many seconds."""
        frames = self.frames if seconds is None else self.latents.whole_frames(seconds)
        return self.noise(purpose, frames, 0)


@dataclass(frozen=True)
class Given:
    """What a model is told of a song: latents `source` (B, …); `free`, 1 where it is to make something."""

    source: mx.array
    free: mx.array


@dataclass(frozen=True)
class Start:
    """Where a run begins: latents (B, …) at the level of `sigmas[first_step]`, or what is `known` of them.

    `whole` makes the song of what comes out. `given`: what a model that can be told is told.
    """

    latents: mx.array
    sigmas: Sequence[float]
    known: Known | None = None
    first_step: int = 0
    whole: Callable[[mx.array], mx.array] = lambda latents: latents
    given: Given | None = None


def _anew(song: Material) -> Start:
    return Start(song.draw("initial"), song.sigmas)


def _retake(song: Material) -> Start:
    return Start(retake(song.draw("initial"), song.draw("retake"), song.request.change), song.sigmas)


def _repaint(song: Material) -> Start:
    request, count_of = song.request, song.latents.whole_frames
    start, end = count_of(request.repaint_start), song.frames
    if request.repaint_end is not None:
        end = min(count_of(request.repaint_end), end)
    if song.told:
        return _retold(song, start, end)
    if (start, end) == (0, song.frames):  # nothing is given: a retake of the source's length
        return _retake(song)
    noise, other = song.draw("initial"), song.draw("retake")
    return _around(song, repaint(song.source, noise, other, start, end, request.change, song.latents))


def _retold(song: Material, start: int, end: int) -> Start:
    """A repaint by a model that is told the rest, and of silence where it is to make something."""
    T, axis = song.frames, song.latents.time_axis
    start = min(start, T - 1)
    free = _between(start, max(end, start + 1), song.source, axis)
    source = mx.where(free == 1, song.silence(T), song.source)
    return Start(song.draw("initial"), song.sigmas, given=Given(source, free))


def _cover(song: Material) -> Start:
    return Start(song.draw("initial"), song.sigmas, given=Given(song.source, mx.ones_like(song.source)))


def _extend(song: Material) -> Start:
    request = song.request
    left, right = song.draw("left", request.extend_left), song.draw("right", request.extend_right)
    longest = song.latents.whole_frames(song.latents.max_seconds)
    made = extend(
        song.source, song.draw("initial"), left, right, song.latents, longest=longest, silence=song.silence
    )
    return _around(song, made.known, made.whole)


def _around(song: Material, known: Known, whole: Callable[[mx.array], mx.array] = Start.whole) -> Start:
    """The start of a run around what is known: the less may vary, the later it enters."""
    sigmas = song.sigmas
    given = Given(known.clean, known.free) if song.told else None
    return Start(known.clean, sigmas, known, first_step(len(sigmas), song.request.change), whole, given)


def _audio2audio(song: Material) -> Start:
    request, noise = song.request, song.draw("initial")
    return Start(*audio2audio(
        song.source, noise, request.steps, request.reference_strength, request.shift, song.schedule
    ))  # fmt: skip


TASKS: dict[str, Callable[[Material], Start]] = {
    "text2music": _anew,
    "retake": _retake,
    "repaint": _repaint,
    "extend": _extend,
    "audio2audio": _audio2audio,
    "cover": _cover,
}


def retake(noise: mx.array, other: mx.array, variance: float) -> mx.array:
    """Turn the first noise towards another by `variance` (0 … 1) of a right angle; its power stays 1."""
    angle = variance * math.pi / 2
    return math.cos(angle) * noise + math.sin(angle) * other


def first_step(steps: int, variance: float) -> int:
    """The step at which a repaint or an extension enters the run: the less it may vary, the later."""
    return int(steps * (1 - variance))


def repaint(
    source: mx.array,
    noise: mx.array,
    other: mx.array,
    start: int,
    end: int,
    variance: float,
    latents: LatentSpec,
) -> Known:
    """Frames start … end - 1 of `source` are to be made anew, the rest is given."""
    T, seconds = source.shape[latents.time_axis], latents.seconds
    if not 0 <= start < end <= T:
        raise ConfigError(
            f"the section to repaint must lie in 0 to {seconds(T):.2f} s, got {seconds(start):.2f} s to "
            f"{seconds(end):.2f} s"
        )
    free = _between(start, end, source, latents.time_axis)
    return Known(source, mx.where(free == 1, retake(noise, other, variance), noise), free)


@dataclass(frozen=True)
class Extension:
    """A song to be continued: what the model sees, and given frames beyond its longest window.

    `before` and `after` (or None) go back around the result, along the time `axis`.
    """

    known: Known
    before: mx.array | None
    after: mx.array | None
    axis: int

    def whole(self, latents: mx.array) -> mx.array:
        """The sampled window with the frames that were kept aside."""
        parts = [part for part in (self.before, latents, self.after) if part is not None]
        return mx.concatenate(parts, axis=self.axis)


def extend(
    source: mx.array,
    noise: mx.array,
    left: mx.array,
    right: mx.array,
    latents: LatentSpec,
    *,
    longest: int,
    silence: Callable[[int], mx.array] | None = None,
) -> Extension:
    """Continue `source` (B, …) to both sides by as many frames as `left` and `right` noise have.

    `noise` has the source's length; `silence` is the model's, zeros without. When one side would make the
    window longer than `longest` frames, the far end of the source is kept aside. (The reference counts the
    left part twice when it measures the right one, cannot add more frames than the source has, and keeps the
    wrong frames aside.)
    """
    axis = latents.time_axis
    T, L, R = (x.shape[axis] for x in (source, left, right))
    if L + R == 0:
        raise ConfigError("extend needs a length on the left or on the right")
    excess = max(L + T + R - longest, 0)
    if excess and ((L and R) or excess >= T):
        raise ConfigError(
            f"{latents.seconds(L + T + R):.2f} s are more than the model's {latents.seconds(longest):.2f} s: "
            "extend one side at a time, or by less"
        )
    before = _cut(source, axis, 0, excess) if excess and R else None
    after = _cut(source, axis, T - excess, T) if excess and L else None
    start, stop = (excess if R else 0), (T - excess if L else T)

    def quiet(frames: int) -> mx.array:
        size = (len(source), *latents.of(frames))
        return mx.zeros(size) if silence is None else mx.broadcast_to(silence(frames), size)

    clean = mx.concatenate([quiet(L), _cut(source, axis, start, stop), quiet(R)], axis=axis)
    around = mx.concatenate([left, _cut(noise, axis, start, stop), right], axis=axis)
    position = _positions(clean.shape[axis], axis)
    free = ((position < L) | (position >= clean.shape[axis] - R)).astype(mx.float32)
    return Extension(Known(clean, around, mx.broadcast_to(free, clean.shape)), before, after, axis)


def _between(start: int, stop: int, source: mx.array, axis: int) -> mx.array:
    """As large as `source`: 1 at frames start … stop - 1, 0 elsewhere."""
    position = _positions(source.shape[axis], axis)
    return mx.broadcast_to(((position >= start) & (position < stop)).astype(mx.float32), source.shape)


def _positions(frames: int, axis: int) -> mx.array:
    """0 … frames - 1 along `axis` (counted from the end)."""
    return mx.arange(frames).reshape(-1, *(1,) * (-axis - 1))


def _cut(latents: mx.array, axis: int, start: int, stop: int) -> mx.array:
    """Frames start … stop - 1 along `axis` (counted from the end)."""
    return latents[(..., slice(start, stop), *(slice(None),) * (-axis - 1))]


def audio2audio(
    source: mx.array, noise: mx.array, steps: int, strength: float, shift: float, schedule: Schedule
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
    level = schedule.noise_level(strongest, shift)
    return (1.0 - level) * source + level * noise, schedule.timetable(left, shift, strongest)
