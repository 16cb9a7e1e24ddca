"""Prompt strings, noise levels and guidance of ACE-Step 1.5 against diffusers' AceStepPipeline."""

from __future__ import annotations

from itertools import product
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from acestep_mlx.families.v15.prompt import format_prompt, instruction
from acestep_mlx.families.v15.schedule import sigmas
from acestep_mlx.sampling.guidance import Guidance, apg, cfg
from acestep_mlx.sampling.schedulers import move

from .v15 import normal, relative_error, torch

pytestmark = pytest.mark.parity


@pytest.fixture(scope="module")
def pipeline() -> Any:
    """The reference's class without its models: the methods that are compared need none."""
    from diffusers.pipelines.ace_step import AceStepPipeline

    return AceStepPipeline.__new__(AceStepPipeline)


BPM = (None, 0, -3, 1, 120, 97.5, 174)
KEYS = (None, "", "  ", "C major", " f# minor ")
METERS = (None, "", "\t", "4", "6/8")
DURATIONS = (None, 0, -1.0, 0.4, 30, 59.999, 240.0)


def test_metadata_in_every_combination(pipeline: Any) -> None:
    for bpm, keyscale, timesignature, duration in product(BPM, KEYS, METERS, DURATIONS):
        given = {
            "bpm": bpm, "keyscale": keyscale, "timesignature": timesignature, "audio_duration": duration,
        }  # fmt: skip
        assert format_prompt("rock", **given) == pipeline._format_prompt("rock", **given), given


@pytest.mark.parametrize("prompt", ["pop, 电子, café", "", "a {caption} with 100%\nlines\n", "# Metas"])
@pytest.mark.parametrize("lyrics", ["", "[verse]\nSoft {notes}\n\n[chorus]\nla", "歌词\r\n", "<|endoftext|>"])
@pytest.mark.parametrize("language", ["en", "zh", "unknown", ""])
@pytest.mark.parametrize("wanted", [None, "", "Cover it", "Cover it:", "Do: this "])
def test_captions_lyrics_and_instructions(
    prompt: str, lyrics: str, language: str, wanted: str | None, pipeline: Any
) -> None:
    given = {"lyrics": lyrics, "vocal_language": language, "instruction": wanted}
    assert format_prompt(prompt, **given) == pipeline._format_prompt(prompt, **given)


@pytest.mark.parametrize("task", ["text2music", "repaint", "cover", "extract", "lego", "complete"])
@pytest.mark.parametrize("tracks", [(), ("",), ("vocals",), ("Drums", "bass")])
def test_instructions_of_the_tasks(task: str, tracks: tuple[str, ...], pipeline: Any) -> None:
    if task in ("extract", "lego"):
        tracks = tracks[:1]
    expected = pipeline._get_task_instruction(
        task, track_name=tracks[0] if tracks else None, complete_track_classes=[t for t in tracks if t]
    )
    assert instruction(task, tracks) == expected


@pytest.mark.parametrize("shift", [0.5, 1.0, 1.7, 2.0, 3.0, 6.0])
def test_noise_levels(shift: float, pipeline: Any) -> None:
    """Through the reference's scheduler, as its denoising loop reads them."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    for steps in (*range(1, 34), 50, 60, 100, 1000):
        scheduler = FlowMatchEulerDiscreteScheduler(num_train_timesteps=1, shift=1.0)
        levels = pipeline._get_timestep_schedule(steps, shift, torch.device("cpu"), torch.float32)
        scheduler.set_timesteps(sigmas=levels.tolist())
        ours = sigmas(steps, shift)
        assert ours.dtype == np.float32 and ours[0] == 1 and ours[-1] == 0
        assert ours.tolist() == scheduler.sigmas.tolist(), steps


@pytest.mark.parametrize(("steps", "shift"), [(0, 3.0), (8, 0.0), (8, -1.0), (8, float("nan"))])
def test_no_schedule(steps: int, shift: float) -> None:
    with pytest.raises(ValueError, match="a step or more and a shift above 0"):
        sigmas(steps, shift)


@pytest.mark.parametrize("scale", [1.5, 7.0, 15.0])
@pytest.mark.parametrize("frames", [1, 3, 40])
def test_guidance_over_several_steps(scale: float, frames: int) -> None:
    """As the pipeline calls it, with its momentum; differences below and above the limit."""
    from diffusers.guiders.adaptive_projected_guidance import MomentumBuffer, normalized_guidance

    buffer, average = MomentumBuffer(momentum=-0.75), None
    for step, size in enumerate((0.01, 3.0, 0.3, 1.0)):
        cond = normal(2, frames, 8, seed=step)
        uncond = cond + size * normal(2, frames, 8, seed=10 + step)
        expected = normalized_guidance(
            pred_cond=torch.from_numpy(cond),
            pred_uncond=torch.from_numpy(uncond),
            guidance_scale=scale - 1.0,
            momentum_buffer=buffer,
            eta=0.0,
            norm_threshold=2.5,
            use_original_formulation=True,
            norm_dim=(1,),
        )
        velocity, average = apg(mx.array(cond), mx.array(uncond), scale, average, axes=(-2,))
        assert relative_error(velocity, expected) <= 1e-6
        assert relative_error(average, buffer.running_average) <= 1e-6


def test_guidance_between_equals_is_nothing() -> None:
    """Where both velocities are the same, and where one is zero, nothing becomes infinite."""
    v = mx.array(normal(1, 5, 8))
    velocity, _ = apg(v, v, 7.0, axes=(-2,))
    assert mx.array_equal(velocity, v)
    assert mx.isfinite(apg(mx.zeros((1, 5, 8)), v, 7.0, axes=(-2,))[0]).all()
    assert relative_error(cfg(v, mx.zeros_like(v), 3.0), 3 * np.array(v)) <= 1e-6


def test_a_step() -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler

    scheduler = FlowMatchEulerDiscreteScheduler(num_train_timesteps=1, shift=1.0)
    levels = sigmas(4, 3.0)
    scheduler.set_timesteps(sigmas=levels[:-1].tolist())
    x = normal(1, 9, 8)
    theirs, ours = torch.from_numpy(x), mx.array(x)
    for i, t in enumerate(scheduler.timesteps):
        v = normal(1, 9, 8, seed=20 + i)
        theirs = scheduler.step(torch.from_numpy(v), t, theirs, return_dict=False)[0]
        ours = move(ours, mx.array(v), float(levels[i + 1] - levels[i]))
    assert relative_error(ours, theirs) <= 1e-6


def test_the_part_that_is_guided() -> None:
    """The interval counts from noise (0) to music (1)."""
    levels = [1.0, 0.8, 0.5, 0.2]
    for first, last, wanted in ((0, 1, "yyyy"), (0.1, 0.6, "nyyn"), (0.5, 0.5, "nnyn")):
        guidance = Guidance(first=first, last=last)
        assert [guidance.covers(s) for s in levels] == [one == "y" for one in wanted]
