"""The loop from noise to latents, and flow-edit. Everything random and every condition is handed in.

Source: ACE-Step's `text2music_diffusion_process` and `flowedit_diffusion_process`; flow-edit:
arXiv 2412.08629.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import mlx.core as mx

from ..io.progress import Advance, Progress, silent
from .guidance import Guidance
from .schedulers import Stage, move, omega_gain, pingpong, stages

Noise = Callable[[str, int], mx.array]  # noise(purpose, index), as large as the latents


class Velocity(Protocol):
    """A model's velocity under fixed conditions, one for each row of a batch."""

    def __call__(self, latents: mx.array, sigma: float) -> mx.array:
        """Of latents (rows, …) at noise level sigma; the same shape, float32."""

    def part(self, start: int, stop: int) -> Velocity:
        """The same conditions for rows start … stop - 1 only."""


@dataclass(frozen=True)
class Known:
    """The part of a song that is given: clean latents, their noise, and `free`, 1 where it is not given."""

    clean: mx.array
    noise: mx.array
    free: mx.array

    def at(self, sigma: float) -> mx.array:
        """The given latents at noise level sigma."""
        return (1.0 - sigma) * self.clean + sigma * self.noise

    def keep(self, latents: mx.array, sigma: float) -> mx.array:
        """`latents` where the model is free, the given ones elsewhere."""
        return mx.where(self.free == 1, latents, self.at(sigma))


class Guided:
    """Velocity of a batch of songs under guidance; holds APG's running average between evaluations.

    velocity has the songs of each branch as rows: [conditional × B, unconditional × B(, text alone × B)].
    beside: a velocity of the songs that is mixed in after guidance, and its share.
    The guided interval is counted in steps but compared with the number of the evaluation, as in the
    reference: under Heun, which has nearly two a step, it lies in the first half of the run.
    """

    def __init__(
        self,
        velocity: Velocity,
        guidance: Guidance,
        songs: int,
        steps: int,
        evaluations: int,
        beside: tuple[Velocity, float] | None = None,
    ) -> None:
        self.guidance, self.songs, self.steps, self._beside = guidance, songs, steps, beside
        self._start, self._end = guidance.window(steps)
        self._all = velocity if self._end > self._start else None
        outside = self._start > 0 or self._end < evaluations or (guidance.first, guidance.last) != (0, 1)
        self._plain = velocity.part(0, songs) if outside else None
        self._average: mx.array | None = None

    def __call__(self, latents: mx.array, sigma: float, index: int) -> mx.array:
        """Velocity (B, …) of evaluation number `index`."""
        velocity = self._guided(latents, sigma, index)
        if self._beside is None:
            return velocity
        other, share = self._beside
        return (1 - share) * velocity + share * other(latents, sigma)

    def _guided(self, latents: mx.array, sigma: float, index: int) -> mx.array:
        if not (self._start <= index < self._end and self.guidance.covers(sigma)):
            assert self._plain is not None
            return self._plain(latents, sigma)
        assert self._all is not None
        parts = _branches(self._all, [latents] * self.guidance.branches, sigma)
        scale = self.guidance.scale_at(index, self.steps)
        combined, self._average = self.guidance.combine(parts, scale, index, self._average)
        return combined


def _branches(velocity: Velocity, latents: list[mx.array], sigma: float) -> list[mx.array]:
    """The velocity of each of `latents`, all of them rows of one evaluation."""
    return list(mx.split(velocity(mx.concatenate(latents), sigma), len(latents)))


def denoise(
    velocity: Velocity,
    latents: mx.array,
    sigmas: Sequence[float],
    guidance: Guidance,
    noise: Noise,
    *,
    scheduler: str = "euler",
    omega: float = 10.0,
    known: Known | None = None,
    first_step: int = 0,
    beside: tuple[Velocity, float] | None = None,
    progress: Progress = silent,
) -> mx.array:
    """From latents (B, …) at sigmas[first_step] to clean latents, in float32.

    With `known`, the song starts from its given part at that level, and the part is put back after every
    evaluation; omega is then not used and pingpong adds no noise (both as in the reference).
    """
    line = stages(scheduler, sigmas)
    todo = [(index, stage) for index, stage in enumerate(line) if stage.step >= first_step]
    if not todo:
        return latents if known is None else known.clean
    guided = Guided(velocity, guidance, latents.shape[0], len(sigmas), len(line), beside)
    if known is not None:
        latents = known.at(todo[0][1].sigma)
    return _walk(
        guided,
        latents,
        todo,
        noise if scheduler == "pingpong" and known is None else None,
        gain=omega_gain(omega) if known is None else None,
        known=known,
        report=_report(progress, 0, len(todo)),
    )


def _walk(
    guided: Callable[[mx.array, float, int], mx.array],
    latents: mx.array,
    todo: Sequence[tuple[int, Stage]],
    fresh: Noise | None,
    *,
    gain: float | None = None,
    known: Known | None = None,
    report: Callable[[int], None],
) -> mx.array:
    """The numbered stages one after the other; with `fresh` noise in each (pingpong), or without."""
    origin, slope, begun = latents, latents, 1.0
    for done, (index, stage) in enumerate(todo, start=1):
        v = guided(latents, stage.sigma, index)
        if fresh is not None:
            latents = pingpong(latents, v, stage, fresh("step", stage.step))
        elif stage.corrector:
            latents = move(origin, (slope + v) / 2, stage.after - begun, gain)
        else:
            origin, slope, begun = latents, v, stage.sigma
            latents = move(latents, v, stage.after - stage.sigma, gain)
        if known is not None:
            latents = known.keep(latents, stage.after)
        mx.eval(latents)
        report(done)
    return latents


def edit(
    velocity: Velocity,
    source: mx.array,
    sigmas: Sequence[float],
    guidance: Guidance,
    noise: Noise,
    *,
    scheduler: str = "euler",
    begin: float = 0.0,
    end: float = 1.0,
    samples: int = 1,
    progress: Progress = silent,
) -> mx.array:
    """Flow-edit: carry `source` (B, …) over from what it is to what is wanted.

    velocity rows: [source × B, its null × B, target × B, its null × B], without guidance [source × B,
    target × B]. Steps before `begin` (a share of them) are left out; up to `end` the difference of both
    velocities, averaged over `samples` noises, moves the song; after it the target is sampled as usual.
    Guidance is at its full scale throughout. As in the reference, only the source's velocity has APG's
    momentum in the first part and only the target's in the second. In the first part pingpong moves like
    Euler: there is no noise in what moves (the reference's song does not move at all there).
    """
    first, last = int(len(sigmas) * begin), int(len(sigmas) * end)
    todo = list(enumerate(stages("euler", sigmas)))[first:]
    carrying, sampling = todo[: last - first], todo[last - first :]
    song = _carry(
        velocity, source, carrying, guidance, noise, samples, report=_report(progress, 0, len(todo))
    )
    if not sampling:
        return song
    rows, sigma = guidance.branches * len(source), sampling[0][1].sigma
    return _walk(
        _FullScale(velocity.part(rows, 2 * rows), guidance),
        song + (sigma * noise("edit-start", 0) + (1 - sigma) * source) - source,
        sampling,
        noise if scheduler == "pingpong" else None,
        report=_report(progress, len(carrying), len(todo)),
    )


def _carry(
    velocity: Velocity,
    source: mx.array,
    todo: Sequence[tuple[int, Stage]],
    guidance: Guidance,
    noise: Noise,
    samples: int,
    *,
    report: Callable[[int], None],
) -> mx.array:
    """The source moved by the difference between the target's velocity and its own."""
    branches, song, average = guidance.branches, source, None
    for done, (index, stage) in enumerate(todo, start=1):
        change = mx.zeros_like(source)
        for k in range(samples):
            noisy = (1 - stage.sigma) * source + stage.sigma * noise("edit", index * samples + k)
            moved = song + noisy - source
            parts = _branches(velocity, [noisy] * branches + [moved] * branches, stage.sigma)
            from_source, average = guidance.full(parts[:branches], average)
            to_target, _ = guidance.full(parts[branches:], None)
            change = change + (to_target - from_source) / samples
        song = move(song, change, stage.after - stage.sigma)
        mx.eval(song)
        report(done)
    return song


class _FullScale:
    """Velocity guided at the full scale in every evaluation; holds APG's running average."""

    def __init__(self, velocity: Velocity, guidance: Guidance) -> None:
        self._velocity, self._guidance = velocity, guidance
        self._average: mx.array | None = None

    def __call__(self, latents: mx.array, sigma: float, index: int) -> mx.array:
        parts = _branches(self._velocity, [latents] * self._guidance.branches, sigma)
        combined, self._average = self._guidance.full(parts, self._average)
        return combined


def _report(progress: Progress, before: int, total: int) -> Callable[[int], None]:
    """Tells `progress` of evaluations that follow `before` others."""
    return lambda done: progress(Advance(done=before + done, total=total))
