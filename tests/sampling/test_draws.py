"""No random number of a song is drawn twice: not in two steps, nor in two noises of one step."""

from __future__ import annotations

from itertools import pairwise

import mlx.core as mx
import pytest

from acestep_mlx.sampling.denoise import Known, denoise, edit
from acestep_mlx.sampling.guidance import Guidance

SIGMAS = [1.0, 0.8, 0.55, 0.3, 0.1]
SONG = mx.random.normal((1, 8, 16, 6), key=mx.random.key(1))


class Still:
    """A model that moves nothing."""

    def __call__(self, latents: mx.array, sigma: float) -> mx.array:
        return mx.zeros_like(latents)

    def part(self, start: int, stop: int) -> Still:
        return self


class Drawn:
    """Noise that remembers what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, int]] = []

    def __call__(self, purpose: str, index: int) -> mx.array:
        self.asked.append((purpose, index))
        return SONG


class Slope(Still):
    """A model that moves one half of a song more than the other."""

    def __call__(self, latents: mx.array, sigma: float) -> mx.array:
        return mx.concatenate([latents[..., :3], 3 * latents[..., 3:]], axis=-1)


def test_omega_is_not_for_songs_of_which_a_part_is_given() -> None:
    free = mx.ones_like(SONG)
    free[..., 0] = 0
    found = {
        omega: [
            denoise(Slope(), SONG, SIGMAS, Guidance(scale=1.0), Drawn(), omega=omega, known=known)
            for known in (None, Known(SONG, SONG, free))
        ]
        for omega in (-90.0, 90.0)
    }
    assert not mx.allclose(found[-90.0][0], found[90.0][0])
    assert mx.array_equal(found[-90.0][1], found[90.0][1])


@pytest.mark.parametrize("scheduler", ["euler", "heun", "pingpong"])
@pytest.mark.parametrize("end", [1.0, 0.6])
@pytest.mark.parametrize("samples", [1, 2, 3])
def test_every_noise_of_an_edit_is_another(samples: int, end: float, scheduler: str) -> None:
    drawn = Drawn()
    edit(Still(), SONG, SIGMAS, Guidance(), drawn, scheduler=scheduler, end=end, samples=samples)
    assert len(set(drawn.asked)) == len(drawn.asked)
    moved = int(len(SIGMAS) * end)
    assert sum(purpose == "edit" for purpose, _ in drawn.asked) == samples * moved


def test_every_step_of_pingpong_has_fresh_noise() -> None:
    drawn = Drawn()
    denoise(Still(), SONG, SIGMAS, Guidance(), drawn, scheduler="pingpong")
    assert len(set(drawn.asked)) == len(drawn.asked) == len(SIGMAS)
    assert all(b > a for (_, a), (_, b) in pairwise(drawn.asked))
