"""Guidance as algebra."""

from __future__ import annotations

from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest

from acestep_mlx.errors import ConfigError
from acestep_mlx.sampling import guidance as g

C, U, T = (mx.random.normal((2, 8, 16, 6), key=mx.random.key(i)) for i in range(3))


def close(a: mx.array, b: mx.array) -> bool:
    return np.allclose(np.array(a), np.array(b), atol=1e-4)


def test_scale_one_is_the_conditional_velocity() -> None:
    assert close(g.cfg(C, U, 1.0), C)
    assert close(g.apg(C, U, 1.0)[0], C)
    assert close(g.double_condition(C, U, T, 1.0, 1.0), C)
    assert close(g.cfg_star(C, U, 1.0), C)


def test_apg_moves_at_right_angles_and_not_too_far() -> None:
    velocity, average = g.apg(C, U, 9.0)
    moved = velocity - C
    assert close((moved * C).sum((-2, -1)), mx.zeros((2, 8)))
    assert (mx.linalg.norm(moved, axis=(-2, -1)) <= 8.0 * g.NORM_THRESHOLD + 1e-3).all()
    assert close(average, C - U)
    _, second = g.apg(C, U, 9.0, average)
    assert close(second, (C - U) * (1 + g.MOMENTUM))


def test_cfg_star_fits_each_song_by_itself() -> None:
    both = g.cfg_star(C, U, 4.0)
    assert close(both[:1], g.cfg_star(C[:1], U[:1], 4.0))
    assert close(g.cfg_star(C, 3 * U, 4.0), both)  # the size of the unconditional velocity does not matter


def test_window_and_decay() -> None:
    settings = g.Guidance(scale=15.0, interval=0.5, decay=1.0, minimum=3.0)
    assert settings.window(60) == (15, 45)
    assert settings.scale_at(15, 60) == 15.0 and settings.scale_at(44, 60) == pytest.approx(3.0)
    assert replace(settings, decay=0.0).scale_at(44, 60) == 15.0
    assert replace(settings, interval=0.0).window(60) == (30, 30)
    assert replace(settings, interval=1.0).window(60) == (0, 60)
    # One guided step: the reference divides by zero here.
    assert replace(settings, interval=0.1).scale_at(4, 10) == 15.0
    assert not replace(settings, scale=1.0).enabled and replace(settings, scale=0.0).window(60) == (0, 0)


def test_zero_init_stands_still_in_the_first_steps_only() -> None:
    settings = g.Guidance(kind="cfg_star", zero_steps=1)
    assert not settings.combine([C, U], 5.0, 1, None)[0].any()
    assert settings.combine([C, U], 5.0, 2, None)[0].any()
    assert replace(settings, zero_init=False).combine([C, U], 5.0, 0, None)[0].any()


def test_double_condition_needs_both_scales() -> None:
    assert g.Guidance(text_scale=5.0, lyric_scale=2.0).double
    assert not g.Guidance(text_scale=5.0).double
    assert not g.Guidance(text_scale=5.0, lyric_scale=2.0, scale=1.0).double
    with pytest.raises(ConfigError, match="apg, cfg, cfg_star"):
        g.Guidance(kind="agp")


def test_axes_may_stand_elsewhere() -> None:
    """A model with time before channels gets the same guidance, if APG is told where its channels are."""

    def turned(x: mx.array) -> mx.array:
        return mx.moveaxis(x, 1, -1)  # (B, 16, 6, 8)

    for kind in ("apg", "cfg_star"):
        one = g.Guidance(kind=kind).combine([C, U], 9.0, 5, None)[0]
        two = g.Guidance(kind=kind, axes=(-3, -2)).combine([turned(C), turned(U)], 9.0, 5, None)[0]
        assert close(turned(one), two), kind
    wrong = g.Guidance().combine([turned(C), turned(U)], 9.0, 5, None)[0]
    assert not close(turned(g.Guidance().combine([C, U], 9.0, 5, None)[0]), wrong)


def test_guidance_counts_its_branches() -> None:
    assert g.Guidance(scale=1.0).branches == 1 and g.Guidance().branches == 2
    assert g.Guidance(text_scale=5.0, lyric_scale=2.0).branches == 3
    assert g.Guidance(scale=0.0).combine([C], 9.0, 5, None) == (C, None)
