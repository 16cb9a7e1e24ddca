"""The loop from noise to latents, and flow-edit. Everything random and every condition is handed in.

Source: ACE-Step's `text2music_diffusion_process` and `flowedit_diffusion_process`; flow-edit:
arXiv 2412.08629.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx

from ..families.v1.conditions import Velocity
from ..io.progress import Advance, Progress, silent
from .guidance import Guidance, apg
from .noise import NoiseSource
from .schedulers import move, omega_gain, pingpong, stages


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
    The guided interval is counted in steps but compared with the number of the evaluation, as in the
    reference: under Heun, which has nearly two a step, it lies in the first half of the run.
    """

    def __init__(
        self, velocity: Velocity, guidance: Guidance, songs: int, steps: int, evaluations: int
    ) -> None:
        self.guidance, self.songs, self.steps = guidance, songs, steps
        self._branches = 3 if guidance.double else 2
        self._start, self._end = guidance.window(steps)
        self._all = velocity if self._end > self._start else None
        outside = self._start > 0 or self._end < evaluations
        self._plain = velocity.part(0, songs) if outside else None
        self._average: mx.array | None = None

    def __call__(self, latents: mx.array, sigma: float, index: int) -> mx.array:
        """Velocity (B, 8, 16, T) of evaluation number `index`."""
        if not self._start <= index < self._end:
            assert self._plain is not None
            return self._plain(latents, sigma)
        assert self._all is not None
        parts = list(mx.split(self._all(mx.concatenate([latents] * self._branches), sigma), self._branches))
        scale = self.guidance.scale_at(index, self.steps)
        combined, self._average = self.guidance.combine(parts, scale, index, self._average)
        return combined


def denoise(
    velocity: Velocity,
    latents: mx.array,
    sigmas: Sequence[float],
    guidance: Guidance,
    noise: NoiseSource,
    *,
    scheduler: str = "euler",
    omega: float = 10.0,
    known: Known | None = None,
    first_step: int = 0,
    progress: Progress = silent,
) -> mx.array:
    """From latents (B, 8, 16, T) at sigmas[first_step] to clean latents, in float32.

    With `known`, the song starts from its given part at that level, and the part is put back after every
    evaluation; omega is then not used and pingpong adds no noise (both as in the reference).
    """
    line = stages(scheduler, sigmas)
    todo = [(index, stage) for index, stage in enumerate(line) if stage.step >= first_step]
    if not todo:
        return latents if known is None else known.clean
    guided = Guided(velocity, guidance, latents.shape[0], len(sigmas), len(line))
    gain = omega_gain(omega) if known is None else None
    if known is not None:
        latents = known.at(todo[0][1].sigma)
    origin = slope = latents
    for done, (index, stage) in enumerate(todo, start=1):
        v = guided(latents, stage.sigma, index)
        if scheduler == "pingpong" and known is None:
            latents = pingpong(latents, v, stage, noise("step", latents.shape[-1], stage.step))
        elif stage.corrector:
            started = line[index - 1].sigma
            latents = move(origin, (slope + v) / 2, stage.after - started, gain)
        else:
            origin, slope = latents, v
            latents = move(latents, v, stage.after - stage.sigma, gain)
        if known is not None:
            latents = known.keep(latents, stage.after)
        mx.eval(latents)
        progress(Advance(done=done, total=len(todo)))
    return latents


def edit(
    velocity: Velocity,
    source: mx.array,
    sigmas: Sequence[float],
    guidance: Guidance,
    noise: NoiseSource,
    *,
    scheduler: str = "euler",
    begin: float = 0.0,
    end: float = 1.0,
    samples: int = 1,
    progress: Progress = silent,
) -> mx.array:
    """Flow-edit: carry `source` (B, 8, 16, T) over from what it is to what is wanted.

    velocity rows: [source × B, its null × B, target × B, its null × B], without guidance [source × B,
    target × B]. Steps before `begin` (a share of them) are left out; up to `end` the difference of both
    velocities, averaged over `samples` noises, moves the song; after it the target is sampled as usual.
    Guidance is APG or CFG at its full scale throughout. As in the reference, only the source's velocity
    has APG's momentum in the first part and only the target's in the second. In the first part pingpong
    moves like Euler: there is no noise in what moves (the reference's song does not move at all there).
    """
    B, frames = source.shape[0], source.shape[-1]
    branches = 2 if guidance.enabled else 1
    first, last = int(len(sigmas) * begin), int(len(sigmas) * end)
    target_only = velocity.part(B * branches, 2 * B * branches) if last < len(sigmas) else None
    source_average: mx.array | None = None
    target_average: mx.array | None = None

    def combine(parts: list[mx.array], average: mx.array | None) -> tuple[mx.array, mx.array | None]:
        if branches == 1:
            return parts[0], None
        if guidance.kind == "apg":
            return apg(parts[0], parts[1], guidance.scale, average)
        return guidance.combine(parts, guidance.scale, guidance.zero_steps + 1, average)

    song, sampled = source, None
    for step in range(first, len(sigmas)):
        sigma = sigmas[step]
        after = sigmas[step + 1] if step + 1 < len(sigmas) else 0.0
        if step < last:
            change = mx.zeros_like(source)
            for k in range(samples):
                noisy = (1 - sigma) * source + sigma * noise("edit", frames, step * samples + k)
                moved = song + noisy - source
                rows = mx.concatenate([noisy] * branches + [moved] * branches)
                parts = list(mx.split(velocity(rows, sigma), 2 * branches))
                from_source, source_average = combine(parts[:branches], source_average)
                to_target, _ = combine(parts[branches:], None)
                change = change + (to_target - from_source) / samples
            song = song + (after - sigma) * change
        else:
            if sampled is None:
                start = noise("edit-start", frames, 0)
                sampled = song + (sigma * start + (1 - sigma) * source) - source
            assert target_only is not None
            parts = list(mx.split(target_only(mx.concatenate([sampled] * branches), sigma), branches))
            v, target_average = combine(parts, target_average)
            if scheduler == "pingpong":
                sampled = (1 - after) * (sampled - sigma * v) + after * noise("step", frames, step)
            else:
                sampled = sampled + (after - sigma) * v
        mx.eval(song, sampled) if sampled is not None else mx.eval(song)
        progress(Advance(done=step - first + 1, total=len(sigmas) - first))
    return song if sampled is None else sampled
