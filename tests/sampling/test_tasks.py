"""Noise and the start of each task."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from acestep_mlx.errors import ConfigError
from acestep_mlx.sampling import tasks
from acestep_mlx.sampling.noise import seeded


def draw(frames: int, seed: int) -> mx.array:
    return seeded([seed])("initial", frames, 0)


def test_frames_are_counted_as_upstream_counts_them() -> None:
    assert [tasks.frames_of(s) for s in (1, 60, 240)] == [10, 645, 2583]
    assert tasks.MAX_FRAMES == 2583


def test_noise_belongs_to_its_seed_alone() -> None:
    both, one = seeded([3, 4]), seeded([4])
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
    known = tasks.repaint(source, draw(20, 2), draw(20, 3), 5, 9, 0.5)
    kept = known.keep(mx.zeros(source.shape), 0.0)
    assert mx.array_equal(kept[..., :5], source[..., :5]) and mx.array_equal(kept[..., 9:], source[..., 9:])
    assert not kept[..., 5:9].any()
    assert mx.array_equal(known.at(1.0), known.noise)
    for start, end in ((-1, 4), (4, 4), (3, 21)):
        with pytest.raises(ConfigError, match="section to repaint"):
            tasks.repaint(source, source, source, start, end, 0.5)


def test_extend_puts_far_frames_back() -> None:
    source, empty = draw(20, 1), draw(0, 1)
    made = tasks.extend(source, draw(20, 2), draw(6, 3), empty, longest=22)
    assert made.known.clean.shape[-1] == 22 and made.before is None
    assert mx.array_equal(made.whole(made.known.clean)[..., 6:], source)
    made = tasks.extend(source, draw(20, 2), empty, draw(6, 3), longest=22)
    assert mx.array_equal(made.whole(made.known.clean)[..., :20], source) and made.after is None
    made = tasks.extend(source, draw(20, 2), draw(30, 3), draw(25, 4))  # more than the source has
    assert made.known.clean.shape[-1] == 75
    assert mx.array_equal(made.known.clean[..., 30:50], source)
    with pytest.raises(ConfigError, match="one side at a time"):
        tasks.extend(source, draw(20, 2), draw(6, 3), draw(6, 3), longest=22)
    with pytest.raises(ConfigError, match="a length on the left"):
        tasks.extend(source, draw(20, 2), empty, empty)


def test_audio2audio_stays_nearer_with_more_strength() -> None:
    source, noise = draw(20, 1), draw(20, 2)

    def away(strength: float) -> float:
        start, sigmas = tasks.audio2audio(source, noise, 40, strength)
        assert len(sigmas) == int((1 - strength) * 40)
        return float(mx.linalg.norm(start - source).item())

    assert away(0.9) < away(0.5) < away(0.1)
    with pytest.raises(ConfigError, match="leaves nothing to change"):
        tasks.audio2audio(source, noise, 40, 1.0)
