"""Noise levels, stages and steps, without a model."""

from __future__ import annotations

from itertools import pairwise

import mlx.core as mx
import numpy as np
import pytest

from acestep_mlx.errors import ConfigError
from acestep_mlx.families.v1.schedule import custom_timetable, shifted, timetable
from acestep_mlx.sampling import schedulers as s


def test_timetable_falls_from_one_and_counts_its_steps() -> None:
    table = timetable(60)
    assert len(table) == 60 and table[0] == 1.0
    assert all(a > b > 0 for a, b in pairwise(table))
    assert timetable(1) == [1.0]


def test_shift_moves_levels_towards_one() -> None:
    assert shifted(0.5, 1.0) == 0.5
    assert shifted(0.5, 3.0) == 0.75
    assert timetable(9, shift=5.0)[4] > timetable(9, shift=2.0)[4]


def test_custom_timetable_picks_levels() -> None:
    full = timetable(20)
    picked = custom_timetable([1, 7, 20])
    assert picked == pytest.approx([shifted(full[i]) for i in (0, 6, 19)], rel=1e-6)
    for wrong in ([], [3, 3], [5, 2], [0, 4]):
        with pytest.raises(ConfigError, match="oss_steps"):
            custom_timetable(wrong)


@pytest.mark.parametrize("scheduler", ["euler", "heun", "pingpong"])
def test_stages_lead_to_zero(scheduler: str) -> None:
    line = s.stages(scheduler, timetable(5))
    assert len(line) == (9 if scheduler == "heun" else 5)
    assert line[-1].after == 0.0 and line[-1].step == 4
    assert [stage.step for stage in line] == sorted(stage.step for stage in line)
    with pytest.raises(ConfigError, match="euler, heun, pingpong"):
        s.stages("eular", [1.0])


def test_omega_scales_what_departs_from_each_songs_mean() -> None:
    x, v = (
        mx.zeros((2, 8, 16, 5)),
        mx.random.normal((2, 8, 16, 5)) + mx.array([1.0, -3.0])[:, None, None, None],
    )
    plain, wide = s.move(x, v, -0.1), s.move(x, v, -0.1, s.omega_gain(30.0))
    for song in range(2):
        assert wide[song].mean().item() == pytest.approx(plain[song].mean().item(), abs=1e-5)
    assert (mx.std(wide[0]) / mx.std(plain[0])).item() == pytest.approx(s.omega_gain(30.0), rel=1e-4)
    assert s.omega_gain(0.0) == 1.0 and 0.9 < s.omega_gain(-90.0) < s.omega_gain(90.0) < 1.1


def test_pingpong_ends_at_its_estimate() -> None:
    x, v = mx.random.normal((1, 8, 16, 3)), mx.random.normal((1, 8, 16, 3))
    out = s.pingpong(x, v, s.Stage(0, 0.4, 0.0), mx.full(x.shape, 1e6))
    assert np.allclose(out, x - 0.4 * v, atol=1e-6)
