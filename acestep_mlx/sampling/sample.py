"""One request → latents: the branches a task needs, its start, its loop. Knows neither files nor text."""

from __future__ import annotations

from dataclasses import replace

import mlx.core as mx
import mlx.nn as nn

from ..config.request import Request
from ..errors import ConfigError
from ..families.v1.conditions import Encoded, Prompt, Velocity, encode_branches, encode_plain
from ..io.progress import Progress, part, silent
from . import tasks
from .denoise import Known, denoise, edit
from .guidance import Guidance
from .noise import NoiseSource, seeded
from .schedulers import custom_timetable, timetable

# Frames of all rows together in one evaluation: three branches of 240 s, or ten songs of 30 s with two.
MAX_TOKENS = 8192


def sample(
    transformer: nn.Module,
    prompt: Prompt,
    request: Request,
    *,
    source: mx.array | None = None,
    target: Prompt | None = None,
    noise: NoiseSource | None = None,
    progress: Progress = silent,
) -> mx.array:
    """Latents (songs, 8, 16, T) in float32, one song per seed of the request.

    `source` (1, 8, 16, T) are the latents of the song that the task starts from, `target` what an edit
    leads to. `noise` replaces the numbers drawn from the seeds (purposes: initial, retake, left, right,
    step, edit, edit-start). Songs that do not fit into one evaluation (MAX_TOKENS) are made in groups.
    """
    songs = len(request.seeds)
    group = _songs_at_once(request, source)
    if songs > group and noise is None:
        return _in_groups(transformer, prompt, request, group, source, target, progress)
    if noise is None:
        noise = _two_seeds(request)
    if request.needs_source:
        if source is None:
            raise ConfigError(f"{request.task} needs a source")
        source = mx.broadcast_to(source.astype(mx.float32), (songs, *source.shape[1:]))
    if request.task == "edit":
        assert source is not None and target is not None
        return _edit(transformer, prompt, target, source, request, noise, progress)

    steps = request.steps
    sigmas = (
        custom_timetable(request.oss_steps, request.shift)
        if request.oss_steps
        else timetable(steps, request.shift)
    )
    frames = source.shape[-1] if source is not None else tasks.frames_of(request.duration)
    latents = noise("initial", frames, 0)
    known: Known | None = None
    extension: tasks.Extension | None = None
    start = 0
    if request.task == "retake":
        latents = tasks.retake(latents, noise("retake", frames, 0), request.change)
    elif request.task == "repaint":
        assert source is not None
        first, last = tasks.frames_of(request.repaint_start), frames
        if request.repaint_end is not None:
            last = min(tasks.frames_of(request.repaint_end), frames)
        other = noise("retake", frames, 0)
        if (first, last) == (0, frames):  # nothing is given: a retake of the source's length
            latents = tasks.retake(latents, other, request.change)
        else:
            known = tasks.repaint(source, latents, other, first, last, request.change)
    elif request.task == "extend":
        assert source is not None
        left, right = tasks.frames_of(request.extend_left), tasks.frames_of(request.extend_right)
        extension = tasks.extend(source, latents, noise("left", left, 0), noise("right", right, 0))
        known = extension.known
    elif request.task == "audio2audio":
        assert source is not None
        latents, sigmas = tasks.audio2audio(source, latents, steps, request.reference_strength, request.shift)
    if known is not None:
        start = tasks.first_step(len(sigmas), request.change)
        latents = known.clean

    guidance = Guidance.of(request)
    branches = encode_branches(
        transformer, prompt, weaken_lyrics=request.erg_lyric, text_alone=guidance.double
    )
    if not guidance.enabled:
        branches = branches[:1]
    weaken = [i == 1 and request.erg_diffusion for i in range(len(branches))]
    velocity = Velocity(transformer, _rows(branches, songs), [w for w in weaken for _ in range(songs)])
    latents = denoise(
        velocity,
        latents,
        sigmas,
        guidance,
        noise,
        scheduler=request.scheduler,
        omega=request.omega,
        known=known,
        first_step=start,
        progress=progress,
    )
    return extension.whole(latents) if extension is not None else latents


def _edit(
    transformer: nn.Module,
    prompt: Prompt,
    target: Prompt,
    source: mx.array,
    request: Request,
    noise: NoiseSource,
    progress: Progress,
) -> mx.array:
    guidance = Guidance.of(request)
    branches = []
    for condition in (prompt, target):
        pair = encode_plain(transformer, condition)
        branches += pair if guidance.enabled else pair[:1]
    return edit(
        Velocity(transformer, _rows(branches, source.shape[0])),
        source,
        timetable(request.steps, request.shift),
        guidance,
        noise,
        scheduler=request.scheduler,
        begin=request.edit_begin,
        end=request.edit_end,
        samples=request.edit_samples,
        progress=progress,
    )


def _songs_at_once(request: Request, source: mx.array | None) -> int:
    guidance = Guidance.of(request)
    rows = (3 if guidance.double else 2) if guidance.enabled else 1
    frames = tasks.frames_of(request.duration) if source is None else source.shape[-1]
    frames += tasks.frames_of(request.extend_left) + tasks.frames_of(request.extend_right)
    return max(MAX_TOKENS // (frames * rows * (2 if request.task == "edit" else 1)), 1)


def _in_groups(
    transformer: nn.Module,
    prompt: Prompt,
    request: Request,
    group: int,
    source: mx.array | None,
    target: Prompt | None,
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
        made.append(sample(transformer, prompt, group_request, source=source, target=target, progress=share))
    return mx.concatenate(made)


def _rows(branches: list[Encoded], songs: int) -> list[Encoded]:
    return [branch for branch in branches for _ in range(songs)]


def _two_seeds(request: Request) -> NoiseSource:
    """The first noise from the seeds, everything that a retake may change from the other seeds."""
    own, other = seeded(request.seeds), seeded(request.other_seeds)

    def draw(purpose: str, frames: int, index: int = 0) -> mx.array:
        return (own if purpose in ("initial", "step") else other)(purpose, frames, index)

    return draw
