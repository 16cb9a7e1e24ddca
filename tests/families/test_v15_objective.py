"""How ACE-Step 1.5 is trained: its times, its noise, and what padding and neighbours may change."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from acestep_mlx.config.read_run import load_config
from acestep_mlx.families.songs import CachedSong, Shape
from acestep_mlx.families.v15 import ACEStep15
from acestep_mlx.families.v15 import objective as flow
from acestep_mlx.families.v15.objective import DENSITY, FlowMatching
from acestep_mlx.lora.surgery import LoRASpec, adapter_modules, inject

from . import v15

FAMILY = ACEStep15()


def songs(*lengths: int) -> list[CachedSong]:
    """Of so many frames."""
    made = []
    for i, T in enumerate(lengths):
        rng = np.random.default_rng(i)
        sizes = {"mean": (T, 8), "source": (T, 8), "text": (3 + i, 32), "lyrics": (5 - i, 32)}
        sizes |= {"timbre": (1, 32), "null": (1, 32)}
        arrays = {name: rng.normal(size=size).astype(np.float32) for name, size in sizes.items()}
        arrays["std"] = rng.uniform(0.1, 1, (T, 8)).astype(np.float32)
        made.append(CachedSong(arrays, i == 1, False))
    return made


def batch(given: list[CachedSong], shape: Shape, first: int = 0) -> dict[str, mx.array]:
    """With the songs' keys, and the times of a model with the released models' config."""
    arrays = {name: mx.array(a) for name, a in FAMILY.collate(given, shape).items()}
    keys = mx.stack([mx.random.key(first + i) for i in range(len(given))])
    return {**arrays, "keys": keys, DENSITY: mx.array([-0.4, 1.0])}


@pytest.mark.parametrize(("draws", "mean"), [(1, 0.416), (2, 0.532)])
def test_times(draws: int, mean: float) -> None:
    """The larger of two logit-normal draws with the released models' numbers, or a single one."""
    density = mx.array(-0.4), mx.array(1.0)
    keys = mx.random.split(mx.random.key(0), 4000)
    times = np.array(mx.concatenate([flow.sample_times(key, *density, draws) for key in keys]))
    assert abs(times.mean() - mean) < 0.01 and 0 < times.min() < times.max() < 1
    rng = np.random.default_rng(0)
    expected = 1 / (1 + np.exp(0.4 - rng.standard_normal((draws, 200_000)).max(axis=0)))
    at = np.linspace(0.05, 0.95, 10)
    np.testing.assert_allclose(np.quantile(times, at), np.quantile(expected, at), atol=0.03)


def test_the_models_own_config_says_where_the_times_lie() -> None:
    model = v15.transformer()
    assert FAMILY.prepare(model)({"a": mx.array(1)})[DENSITY].tolist() == pytest.approx([-0.4, 1.0])
    given = batch(songs(6), Shape(6, 4, 8))
    for mu, sigma in ((3.0, 1e-6), (-2.0, 1e-6)):
        time = FlowMatching().draw({**given, DENSITY: mx.array([mu, sigma])}).sigma
        assert time.item() == pytest.approx(1 / (1 + np.exp(-mu)), abs=1e-4)


def test_a_run_may_move_them(tmp_path: Path) -> None:
    given = batch(songs(6), Shape(6, 4, 8))
    plain = FAMILY.objective(load_config({}))
    assert plain == FlowMatching(None, None, 2), "v1's defaults are not this model's"
    moved = FAMILY.objective(load_config({"logit_mean": 2.0, "logit_std": 1e-6}))
    assert moved.draw(given).sigma.item() == pytest.approx(1 / (1 + np.exp(-2)), abs=1e-4)
    single = FAMILY.objective(load_config({"ace_step_timestep_draws": 1}))
    assert single == FlowMatching(None, None, 1)
    times = [o.draw(given).sigma.item() for o in (plain, single)]
    assert times[0] != times[1]


def test_a_song_draws_the_same_beside_any_other_and_however_far_it_is_padded() -> None:
    """From its own key alone: the beginning of longer noise is the shorter."""
    a, b = songs(7, 300)
    together = FlowMatching().draw(batch([a, b], Shape(301, 8, 8)))
    for i, (song, T) in enumerate(((a, 7), (b, 300))):
        alone = FlowMatching().draw(batch([song], Shape(T, 4, 8), first=i))
        assert mx.array_equal(together.sigma[i : i + 1], alone.sigma)
        assert mx.array_equal(together.noise[i, :T], alone.noise[0])
        assert mx.array_equal(together.more["latents"][i, :T], alone.more["latents"][0])
    drawn = [*together.noise, *together.more["latents"], alone.noise[0]]
    flat = np.concatenate([np.array(x).reshape(-1) for x in drawn[:4]])
    assert abs(flat.mean()) < 0.03 and abs(flat.std() - 1) < 0.03
    assert all(not mx.array_equal(drawn[i], drawn[j]) for i in range(4) for j in range(i)), "independent"
    blocks = flow.sample_noise(mx.random.key(3), 600, 8)
    assert not mx.array_equal(blocks[:256], blocks[256:512])


def test_nothing_of_an_evaluation_is_left_to_chance() -> None:
    given = batch(songs(9, 4), Shape(9, 8, 8))
    objective = FlowMatching()
    fixed = objective.fixed(given, mx.array(0.3))
    assert fixed.sigma.tolist() == pytest.approx([0.3, 0.3])
    assert mx.array_equal(fixed.noise, objective.draw(given).noise) and not fixed.more["latents"].any()
    seen = {}

    class Watched:
        def __call__(self, **inputs: mx.array) -> mx.array:
            seen.update(inputs)
            return inputs["hidden_states"]

    objective.losses(Watched(), given, fixed, mx.float32)  # type: ignore[arg-type]
    mean = given["mean"]
    assert mx.allclose(seen["hidden_states"], 0.3 * fixed.noise + 0.7 * mean, atol=1e-6)


def test_what_the_model_is_told() -> None:
    """Latents from mean and deviation; r = t; silence and a mask of ones; float32 times in any precision."""
    given, seen = batch(songs(9, 4), Shape(9, 8, 8)), {}
    drawn = FlowMatching().draw(given)

    class Watched:
        def __call__(self, **inputs: mx.array) -> mx.array:
            seen.update(inputs)
            return mx.zeros_like(inputs["hidden_states"])

    losses = FlowMatching().losses(Watched(), given, drawn, mx.float16)  # type: ignore[arg-type]
    x0 = given["mean"] + given["std"] * drawn.more["latents"]
    t = drawn.sigma[:, None, None]
    assert mx.allclose(seen["hidden_states"], t * drawn.noise + (1 - t) * x0, atol=1e-2)
    assert mx.array_equal(seen["timestep"], drawn.sigma) and mx.array_equal(seen["timestep_r"], drawn.sigma)
    assert seen["timestep"].dtype == mx.float32
    assert {seen[k].dtype for k in ("hidden_states", "context_latents", "encoder_hidden_states")} == {
        mx.float16
    }
    source, ones = mx.split(seen["context_latents"], 2, axis=-1)
    assert mx.allclose(source, given["source"], atol=1e-2) and (ones == 1).all()
    target = mx.square(drawn.noise - x0)
    expected = [target[0].mean().item(), target[1, :4].mean().item()]
    assert losses.tolist() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("frames", [(9, 4), (41, 17)])
def test_a_batch_of_two_is_two_of_one(frames: tuple[int, int]) -> None:
    """Losses and gradients, one of the songs without its condition, through blocks and without."""
    model = v15.transformer()
    inject(model, LoRASpec(rank=2, targets=FAMILY.lora.default_targets))
    for layer in adapter_modules(model).values():
        layer.lora_b = 0.1 * mx.random.normal(layer.lora_b.shape)
    objective, both = FlowMatching(), songs(*frames)

    def gradient(given: dict[str, mx.array]) -> tuple[list[float], dict[str, mx.array]]:
        drawn = objective.draw(given)

        def loss(parameters: dict) -> tuple[mx.array, mx.array]:
            model.update(parameters)
            losses = objective.losses(model, given, drawn, mx.float32)
            return losses.sum(), losses

        (_, losses), found = mx.value_and_grad(loss)(model.trainable_parameters())
        return losses.tolist(), dict(tree_flatten(found))

    losses, together = gradient(batch(both, Shape(frames[0] + 2, 8, 16)))
    alone = [gradient(batch([both[i]], Shape(frames[i], 4, 8), first=i)) for i in range(2)]
    assert losses == pytest.approx([value for (value,), _ in alone], rel=1e-5)
    assert len(together) == 4 * 8 * 2
    for path, value in together.items():
        expected = alone[0][1][path] + alone[1][1][path]
        assert mx.linalg.norm(value - expected).item() <= 1e-4 * mx.linalg.norm(expected).item(), path
