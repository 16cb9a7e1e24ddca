"""One request → latents: its task's start, the model's velocity, its loop. Knows neither files nor text."""

from __future__ import annotations

from dataclasses import replace

import mlx.core as mx

from ..config.request import Request
from ..errors import ConfigError
from ..families.protocol import Conditioned, LatentSpec
from ..io.progress import Progress, part, silent
from .denoise import denoise, edit
from .guidance import Guidance
from .noise import NoiseSource, seeded
from .tasks import TASKS, Material


def sample(
    model: Conditioned,
    request: Request,
    *,
    source: mx.array | None = None,
    noise: NoiseSource | None = None,
    initial: mx.array | None = None,
    progress: Progress = silent,
) -> mx.array:
    """Latents (songs, …) in float32, one song per seed of the request.

    `source` (1, …) are the latents of the song that the task starts from. `noise` replaces the numbers drawn
    from the seeds (purposes: initial, retake, left, right, step, edit, edit-start), `initial` (songs, …) the
    first of them alone. Songs that do not fit into one evaluation are made in groups.
    """
    songs, latents = len(request.seeds), model.latents
    guidance = Guidance.of(request, model.norm_axes)
    if noise is None:
        group = _songs_at_once(model, request, guidance, source)
        if songs > group:
            return _in_groups(model, request, group, source, initial, progress)
        noise = _two_seeds(request, latents, initial)
    if source is not None:
        source = mx.broadcast_to(source.astype(mx.float32), (songs, *source.shape[1:]))
    song = Material(request, latents, model.schedule, noise, source, model.silence, model.told)
    draw = noise

    if request.task == "edit":
        return edit(
            model.velocity(guidance.branches, songs),
            song.source,
            song.sigmas,
            guidance,
            lambda purpose, index: draw(purpose, song.frames, index),
            scheduler=request.scheduler,
            begin=request.edit_begin,
            end=request.edit_end,
            samples=request.edit_samples,
            progress=progress,
        )
    start = TASKS[request.task](song)
    frames = start.latents.shape[latents.time_axis]
    made = denoise(
        model.velocity(guidance.branches, songs, start.given),
        start.latents,
        start.sigmas,
        guidance,
        lambda purpose, index: draw(purpose, frames, index),
        scheduler=request.scheduler,
        omega=request.omega,
        known=start.known,
        first_step=start.first_step,
        beside=model.beside(songs, start.given),
        progress=progress,
    )
    return start.whole(made)


def _songs_at_once(model: Conditioned, request: Request, guidance: Guidance, source: mx.array | None) -> int:
    spec = model.latents
    rows = guidance.branches * (2 if request.task == "edit" else 1)
    frames = spec.song_frames(request.duration) if source is None else source.shape[spec.time_axis]
    frames += spec.whole_frames(request.extend_left) + spec.whole_frames(request.extend_right)
    return max(model.frames_at_once // (frames * rows), 1)


def _in_groups(
    model: Conditioned,
    request: Request,
    group: int,
    source: mx.array | None,
    initial: mx.array | None,
    progress: Progress,
) -> mx.array:
    starts = range(0, len(request.seeds), group)
    made = []
    for i, start in enumerate(starts):
        group_request = replace(
            request,
            seeds=request.seeds[start : start + group],
            retake_seeds=request.other_seeds[start : start + group],
        )
        share = part(progress, i, len(starts))
        own = None if initial is None else initial[start : start + group]
        made.append(sample(model, group_request, source=source, initial=own, progress=share))
    return mx.concatenate(made)


def _two_seeds(request: Request, latents: LatentSpec, initial: mx.array | None) -> NoiseSource:
    """The first noise (or `initial`) from the seeds, everything that a retake may change from the others."""
    own, other = seeded(request.seeds, latents), seeded(request.other_seeds, latents)

    def draw(purpose: str, frames: int, index: int = 0) -> mx.array:
        if purpose == "initial" and initial is not None:
            wanted = (len(request.seeds), *latents.of(frames))
            if initial.shape != wanted:
                raise ConfigError(f"the first noise must be {wanted}, got {initial.shape}")
            return initial.astype(mx.float32)
        return (own if purpose in ("initial", "step") else other)(purpose, frames, index)

    return draw
