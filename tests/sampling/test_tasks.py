"""Noise and the start of each task."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from acestep_mlx.config.request import Request
from acestep_mlx.errors import ConfigError
from acestep_mlx.families import family
from acestep_mlx.families.protocol import LatentSpec
from acestep_mlx.families.v1 import schedule
from acestep_mlx.sampling import tasks
from acestep_mlx.sampling.guidance import Guidance
from acestep_mlx.sampling.noise import seeded
from acestep_mlx.sampling.sample import _songs_at_once

V1 = family("v1").latents
TIME_FIRST = LatentSpec(48000, 1920, (None, 64), 1.0, 240.0)


def draw(frames: int, seed: int) -> mx.array:
    return seeded([seed], V1)("initial", frames, 0)


def test_frames_are_counted_as_upstream_counts_them() -> None:
    assert [V1.whole_frames(s) for s in (1, 60, 240)] == [10, 645, 2583]


def test_noise_belongs_to_its_seed_alone() -> None:
    both, one = seeded([3, 4], V1), seeded([4], V1)
    assert mx.array_equal(both("initial", 9, 0)[1:], one("initial", 9, 0))
    assert not mx.array_equal(one("initial", 9, 0), one("retake", 9, 0))
    assert not mx.array_equal(one("step", 9, 0), one("step", 9, 1))
    values = one("initial", 200, 0)
    assert abs(values.mean().item()) < 0.05 and abs(mx.std(values).item() - 1) < 0.05
    assert one("left", 0, 0).shape == (1, 8, 16, 0)


def test_retake_keeps_the_power_of_noise() -> None:
    a, b = draw(300, 1), draw(300, 2)
    assert mx.array_equal(tasks.retake(a, b, 0.0), a)
    assert np.allclose(tasks.retake(a, b, 1.0), b, atol=1e-6)
    assert abs(mx.std(tasks.retake(a, b, 0.4)).item() - 1) < 0.05


def test_repaint_is_free_in_its_section_only() -> None:
    source = draw(20, 1)
    known = tasks.repaint(source, draw(20, 2), draw(20, 3), 5, 9, 0.5, V1)
    kept = known.keep(mx.zeros(source.shape), 0.0)
    assert mx.array_equal(kept[..., :5], source[..., :5]) and mx.array_equal(kept[..., 9:], source[..., 9:])
    assert not kept[..., 5:9].any()
    assert mx.array_equal(known.at(1.0), known.noise)
    for start, end in ((-1, 4), (4, 4), (3, 21)):
        with pytest.raises(ConfigError, match="section to repaint"):
            tasks.repaint(source, source, source, start, end, 0.5, V1)


def test_extend_puts_far_frames_back() -> None:
    source, empty = draw(20, 1), draw(0, 1)
    made = tasks.extend(source, draw(20, 2), draw(6, 3), empty, V1, longest=22)
    assert made.known.clean.shape[-1] == 22 and made.before is None
    assert mx.array_equal(made.whole(made.known.clean)[..., 6:], source)
    made = tasks.extend(source, draw(20, 2), empty, draw(6, 3), V1, longest=22)
    assert mx.array_equal(made.whole(made.known.clean)[..., :20], source) and made.after is None
    made = tasks.extend(
        source, draw(20, 2), draw(30, 3), draw(25, 4), V1, longest=2583
    )  # more than the source has
    assert made.known.clean.shape[-1] == 75
    assert mx.array_equal(made.known.clean[..., 30:50], source)
    with pytest.raises(ConfigError, match="one side at a time"):
        tasks.extend(source, draw(20, 2), draw(6, 3), draw(6, 3), V1, longest=22)
    with pytest.raises(ConfigError, match="a length on the left"):
        tasks.extend(source, draw(20, 2), empty, empty, V1, longest=2583)


def test_audio2audio_stays_nearer_with_more_strength() -> None:
    source, noise = draw(20, 1), draw(20, 2)

    def away(strength: float) -> float:
        start, sigmas = tasks.audio2audio(source, noise, 40, strength, 3.0, schedule)
        assert len(sigmas) == int((1 - strength) * 40)
        return float(mx.linalg.norm(start - source).item())

    assert away(0.9) < away(0.5) < away(0.1)
    with pytest.raises(ConfigError, match="leaves nothing to change"):
        tasks.audio2audio(source, noise, 40, 1.0, 3.0, schedule)


def test_a_model_with_time_first_gets_the_same_songs() -> None:
    """Repaint and extend where time is another axis: the same frames, only laid out otherwise."""
    spec = LatentSpec(V1.sample_rate, V1.samples_per_frame, (None, 8, 16), 1.0, 240.0)
    source, noise, other, left, empty = draw(20, 1), draw(20, 2), draw(20, 3), draw(6, 4), draw(0, 5)

    def turned(x: mx.array) -> mx.array:
        return mx.moveaxis(x, -1, 1)

    one = tasks.repaint(source, noise, other, 5, 9, 0.5, V1)
    two = tasks.repaint(*map(turned, (source, noise, other)), 5, 9, 0.5, spec)
    for name in ("clean", "noise", "free"):
        assert mx.array_equal(turned(getattr(one, name)), getattr(two, name)), name
    for sides in ((left, empty), (empty, left)):
        first = tasks.extend(source, noise, *sides, V1, longest=22)
        second = tasks.extend(turned(source), turned(noise), *map(turned, sides), spec, longest=22)
        assert mx.array_equal(turned(first.known.free), second.known.free)
        assert mx.array_equal(turned(first.whole(first.known.noise)), second.whole(second.known.noise))
    assert seeded([3, 4], TIME_FIRST)("initial", 9, 0).shape == (2, 9, 64)


@pytest.mark.parametrize("shift", [1.0, 3.0, 6.0])
@pytest.mark.parametrize("strength", [0.1, 0.5, 0.9])
def test_audio2audio_mixes_as_much_noise_as_the_shift_says(strength: float, shift: float) -> None:
    source, noise = mx.zeros((1, 8, 16, 4)), mx.ones((1, 8, 16, 4))
    start, sigmas = tasks.audio2audio(source, noise, 40, strength, shift, schedule)
    left = 1 - strength
    assert start[0, 0, 0, 0].item() == pytest.approx(shift * left / (1 + (shift - 1) * left), rel=1e-5)
    assert sigmas == schedule.timetable(int(left * 40), shift, left)


@pytest.mark.parametrize(
    ("wanted", "frames", "rows"),
    [
        (Request(duration=30.0), 322, 2),
        (Request(duration=30.0, guidance_scale=1.0), 322, 1),
        (Request(task="repaint", repaint_end=1.0), 20, 2),
        (Request(task="edit", edit_prompt="x"), 20, 4),
        (Request(task="extend", extend_left=1.0), 30, 2),
        (Request(task="extend", extend_right=2.0), 41, 2),
        (Request(task="extend", extend_left=1.0, extend_right=2.0), 51, 2),
    ],
    ids=["anew", "unguided", "repaint", "edit", "left", "right", "both sides"],
)
def test_songs_that_are_made_at_once_are_counted_with_all_their_frames(
    wanted: Request, frames: int, rows: int
) -> None:
    """As many as fit, each with what is added to it, under all its conditions; one at least."""
    source = draw(20, 1) if wanted.needs_source else None
    guidance = Guidance.of(wanted, (-2, -1))
    for at_once, songs in ((frames * rows * 3, 3), (frames * rows * 3 - 1, 2), (frames * rows - 1, 1)):
        model: Any = SimpleNamespace(latents=V1, frames_at_once=at_once)
        assert _songs_at_once(model, wanted, guidance, source) == songs
