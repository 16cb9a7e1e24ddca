"""Scheduled sampling: who is rolled out and how far, where that leads, and what is learned there."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from acestep_mlx.config.read_run import load_config
from acestep_mlx.config.run import OPTIONS, ScheduledSampling
from acestep_mlx.errors import ConfigError
from acestep_mlx.families import family, of_flavour
from acestep_mlx.families.model_folder import Quantization, quantize_layers
from acestep_mlx.families.songs import Shape
from acestep_mlx.families.v1.objective import FlowMatching
from acestep_mlx.families.v15.objective import FlowMatching as FlowMatching15
from acestep_mlx.lora.surgery import LoRASpec, adapter_modules, inject
from acestep_mlx.training import memory
from acestep_mlx.training.evaluation import Evaluation
from acestep_mlx.training.optimizers import Group, Schedule, make_optimizer
from acestep_mlx.training.rollout import (
    ADR,
    FC,
    FLOW,
    NOISY,
    ROLLED,
    ReflexFlow,
    Rollout,
    RolloutSettings,
    direction_loss,
    frequency_weight,
    level,
)
from acestep_mlx.training.settings import rollout_lines, rollout_settings
from acestep_mlx.training.step import StepSettings, TrainStep

from ..families import test_v15_objective as songs15
from ..families import v15
from . import tiny

MODELS = ("v1", "v15")
ALWAYS = RolloutSettings(7, probability=1.0)
SETTINGS = {"scheduled_sampling_max_step_offset": 10, "scheduled_sampling_probability": 1.0}


@pytest.fixture(autouse=True)
def _eager() -> Iterator[None]:
    """Nothing is compiled, but where a test enables it."""
    mx.disable_compile()
    yield
    mx.enable_compile()


def objective(model: str) -> Any:
    return FlowMatching() if model == "v1" else FlowMatching15()


def batch(model: str, seed: int = 0, B: int = 1) -> dict[str, mx.array]:
    if model == "v1":
        return tiny.batch(seed, B)
    lengths = [12 - 5 * i for i in range(B)]
    return songs15.batch(songs15.songs(*lengths), Shape(12, 8, 8), 1000 * seed)


def adapted(model: str, spec: LoRASpec | None = None) -> Any:
    if model == "v1":
        return tiny.adapted(spec=spec)
    made = v15.transformer()
    inject(
        made, spec or LoRASpec(rank=2, targets=("cross_attn.q_proj", "cross_attn.k_proj", "self_attn.v_proj"))
    )
    for i, layer in enumerate(adapter_modules(made).values()):
        layer.lora_b = mx.random.normal(layer.lora_b.shape, key=mx.random.key(i)) * 0.05
        layer.train()
    return made


def stepped(
    model: str, network: Any, settings: RolloutSettings | None, lr: float = 1e-2, **options: Any
) -> TrainStep:
    """A training step that rolls out as `settings` say."""
    group = Group(
        "lora", make_optimizer("sgd", lr), Schedule("constant", lr, 0, 100), list(tiny.weights(network))
    )
    made = StepSettings(**options)
    rolling = Rollout(network, objective(model), settings, made.compute_dtype) if settings else None
    return TrainStep(network, [group], made, objective(model), rollout=rolling)


class Given:
    """An objective whose model is a function of latents and σ."""

    def __init__(self, model: str, velocity: Any) -> None:
        self.of, self.function = objective(model), velocity

    def __getattr__(self, name: str) -> Any:
        return getattr(self.of, name)

    def told(self, *_: Any) -> dict[str, Any]:
        return {}

    def velocity(self, model: Any, batch: Any, noisy: mx.array, sigma: mx.array, dtype: Any) -> mx.array:
        return self.function(batch, noisy, sigma)


def rolled(given: Any, offsets: list[int], made: dict[str, mx.array], **settings: Any) -> dict[str, mx.array]:
    """The batch once its songs are rolled out by these timesteps."""

    class Fixed(RolloutSettings):
        def offsets(self, keys: np.ndarray, step: int) -> np.ndarray:
            return np.array(offsets)

    return Rollout(nn.Identity(), given, Fixed(max(offsets), **settings), mx.float32)(made, 0)


# ── the plan ─────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize(
    ("strategy", "shares"),
    [  # of offsets 0 … 4; |dU| of round(4U²) and of round(4 − 4U²)
        ("uniform", [0.2] * 5),
        ("biased_early", [0.354, 0.259, 0.178, 0.145, 0.065]),
        ("biased_late", [0.065, 0.145, 0.178, 0.259, 0.354]),
    ],
)
def test_offsets_are_distributed_as_the_strategy_says(strategy: str, shares: list[float]) -> None:
    settings = RolloutSettings(4, strategy, probability=1.0)
    every = [settings.offset((i + 0.5) / 4_000) for i in range(4_000)]
    np.testing.assert_allclose(np.bincount(every, minlength=5) / 4_000, shares, atol=1e-3)
    np.testing.assert_allclose(np.diff([0, *map(settings.at_most, range(5))]), shares, atol=1e-3)
    keys = np.random.default_rng(0).integers(0, 2**32, (1000, 2), dtype=np.uint32)
    drawn = settings.offsets(keys, 0)
    np.testing.assert_allclose(np.bincount(drawn, minlength=5) / 1000, shares, atol=0.05)
    some = replace(settings, probability=0.25).offsets(keys, 0)
    assert abs((some > 0).sum() / (drawn > 0).sum() - 0.25) < 0.05
    assert (some[some > 0] == drawn[some > 0]).all(), "how far does not depend on how often"
    assert not replace(settings, probability=0.0).offsets(keys, 0).any()


def test_a_song_is_rolled_out_as_far_beside_any_other() -> None:
    keys = np.random.default_rng(0).integers(0, 2**32, (6, 2), dtype=np.uint32)
    together = ALWAYS.offsets(keys, 0)
    assert together.tolist() == [int(ALWAYS.offsets(keys[i : i + 1], 0)[0]) for i in range(6)]
    assert len(set(together.tolist())) > 2


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"probability": 0.7}, {0: 0.7, 10**6: 0.7}),
        ({"probability": 0.7, "ramp_steps": 10, "start_step": 4},
         {0: 0.0, 3: 0.0, 4: 0.0, 5: 0.05, 9: 0.25, 14: 0.5, 99: 0.5}),
        ({"ramp_steps": 10, "prob_start": 0.8, "prob_end": 0.0}, {0: 0.8, 5: 0.4, 10: 0.0, 11: 0.0}),
        ({"ramp_steps": 4, "prob_start": 0.2, "prob_end": 0.6, "ramp_shape": "cosine"},
         {0: 0.2, 1: 0.2 + 0.4 * 0.1464466, 2: 0.4, 4: 0.6}),
        ({"ramp_steps": 5, "start_step": 3, "prob_start": 0.3, "prob_end": 1.0}, {0: 0.3, 2: 0.3, 8: 1.0}),
    ],
)  # fmt: skip
def test_the_ramp(changes: dict[str, Any], expected: dict[int, float]) -> None:
    """An explicit start of 0 is 0, also beside a probability."""
    settings = RolloutSettings(10, **changes)
    assert {s: settings.probability_at(s) for s in expected} == pytest.approx(expected)


@pytest.mark.parametrize("stride", [1, 3, 50])
def test_levels_fall_from_the_source_to_exactly_the_songs_own(stride: int) -> None:
    """The source is 1 at most; with a stride the last step is the shorter one."""
    sigma, offsets = mx.array([0.3, 0.996, 1.0, 0.6254321]), mx.array([7.0, 10.0, 5.0, 0.0])
    for b, (t, o) in enumerate(zip([300, 996, 1000, 625.4321], [7, 10, 5, 0], strict=True)):
        source = min(t + o, 1000)
        expected = [max(t, source - done) / 1000 for done in range(0, o + stride, stride)]
        found = [level(sigma, offsets, mx.array(float(d)))[b].item() for d in range(0, o + stride, stride)]
        assert found == pytest.approx(expected, abs=1e-6)
        assert found[-1] == sigma[b].item()


# ── where a rollout leads ────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("stride", [1, 4, 999])
def test_a_model_that_knows_the_velocity_comes_back_to_the_line(model: str, stride: int) -> None:
    made, of = batch(model, B=2), objective(model)
    d = of.draw(made)
    x0, _ = of.clean(made, d)
    s = d.sigma.reshape(-1, *[1] * (x0.ndim - 1))
    exact = Given(model, lambda batch, noisy, sigma: d.noise - x0)
    for offsets in ([1, 0], [7, 3], [999, 12])[: 3 if stride == 999 else 2]:
        x = rolled(exact, offsets, made, stride=stride)[NOISY]
        assert mx.abs(x - (s * d.noise + (1 - s) * x0)).max().item() < 5e-5


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("stride", [1, 5])
def test_a_linear_model_gives_the_product_of_its_steps(model: str, stride: int) -> None:
    """v = a·x: x = Π(1 + a·Δσ)·x_source, on the grid max(t, t_s − j)/1000; idle songs stay where they are."""
    made, of, a = batch(model, B=2), objective(model), 30.0
    d = of.draw(made)
    x0, noise = (np.array(y, np.float64) for y in (of.clean(made, d)[0], d.noise))
    x = rolled(Given(model, lambda batch, noisy, sigma: a * noisy), [40, 11], made, stride=stride)[NOISY]
    for b, o in enumerate([40, 11]):
        t = 1000 * d.sigma[b].item()
        source = min(t + o, 1000)
        grid = [max(t, source - done) / 1000 for done in range(0, o + stride, stride)]
        factor = np.prod([1 + a * (after - before) for before, after in itertools.pairwise(grid)])
        expected = factor * (grid[0] * noise[b] + (1 - grid[0]) * x0[b])
        np.testing.assert_allclose(np.array(x[b]), expected, rtol=1e-4, atol=1e-5)
        assert factor < 0.8


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_conditions_that_are_encoded_once_give_the_same_velocity(model: str) -> None:
    made, of, network = batch(model, B=2), objective(model), adapted(model)
    d = of.draw(made)
    told = {**made, **of.told(network, made, mx.float32)}
    assert told.keys() > made.keys()
    plain, again = (of.velocity(network, b, d.noise, d.sigma, mx.float32) for b in (made, told))
    valid = mx.broadcast_to(of.clean(made, d)[1], plain.shape) > 0
    assert mx.abs(mx.where(valid, plain - again, 0)).max().item() < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_a_batch_is_its_songs_one_by_one(model: str) -> None:
    """Also where one is rolled out further than the other."""
    whole, network, of = batch(model, 3, B=2), adapted(model), objective(model)
    x = Rollout(network, of, ALWAYS, mx.float32)(whole, 0)[NOISY]
    offsets = ALWAYS.offsets(np.array(whole["keys"]), 0)
    assert len({*offsets.tolist(), 0}) == 3
    mask = of.clean(whole, of.draw(whole))[1]
    for b in range(2):
        alone = {k: v if v.shape[0] != 2 or k == songs15.DENSITY else v[b : b + 1] for k, v in whole.items()}
        one = Rollout(network, of, ALWAYS, mx.float32)(alone, 0)[NOISY]
        assert mx.abs((one[0] - x[b]) * mask[b]).max().item() < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_lora_dropout_is_off_in_it(model: str) -> None:
    spec = LoRASpec(
        rank=2, dropout=0.5, targets=("cross_attn.to_q",) if model == "v1" else ("self_attn.v_proj",)
    )
    made, network = batch(model), adapted(model, spec)
    step = Rollout(network, objective(model), ALWAYS, mx.float32)
    first = step(made, 0)[NOISY]
    assert all(layer.training for layer in adapter_modules(network).values())
    for layer in adapter_modules(network).values():
        layer.dropout_p = 0.0
    assert mx.array_equal(first, step(made, 0)[NOISY])


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_it_is_traced_once_for_a_shape_whatever_is_drawn(model: str) -> None:
    mx.enable_compile()
    network = adapted(model)
    step = stepped(model, network, replace(ALWAYS, probability=0.7, reflexflow=ReflexFlow()))
    before = tiny.weights(network)
    seen = set()
    for i in range(7):
        made = batch(model, i)
        seen.add(int(ALWAYS.offsets(np.array(made["keys"]), i)[0]))
        mx.eval(step(made, update=True, step=i), step.state)
    assert len(seen) > 2 and tiny.difference(before, tiny.weights(network)) > 0
    assert step.rollout is not None and step.rollout.traces == 2 and step.traces <= 2
    eager = Rollout(network, objective(model), step.rollout.settings, mx.float32, compiled=False)
    x, same = (one(made, 9)[NOISY] for one in (step.rollout, eager))
    assert mx.abs(x - same).max().item() < 1e-5, "weights are no constants in it"


@pytest.mark.slow
def test_it_follows_what_is_trained() -> None:
    """Weights are no constants of the compiled step."""
    network, made = adapted("v1"), batch("v1")
    rollout = Rollout(network, objective("v1"), ALWAYS, mx.float32)
    first = rollout(made, 0)[NOISY]
    for layer in adapter_modules(network).values():
        layer.lora_b = layer.lora_b * 3
    assert mx.abs(first - rollout(made, 0)[NOISY]).max().item() > 1e-6


@pytest.mark.slow
# ── what is learned there ────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize("model", MODELS)
def test_with_probability_0_nothing_changes_bit_for_bit(model: str) -> None:
    mx.enable_compile()
    found = []
    for settings in (None, replace(ALWAYS, probability=0.0), ALWAYS):
        network = adapted(model)
        step = stepped(model, network, settings, accumulate=2)
        results = []
        for i in range(4):
            results.append(step(batch(model, i, B=2), update=i % 2 == 1, step=i // 2))
            mx.eval(results[-1], step.state)
        arrays = {f"{name}|{k}": v for name, group in step.arrays().items() for k, v in group.items()}
        numbers = [(r.loss.item(), r.grad_norm.item()) for r in results]
        found.append((numbers, {**arrays, **tiny.weights(network)}))
    off, never, always = found
    assert off[0] == never[0] != always[0]
    assert all(mx.array_equal(off[1][k], never[1][k]) for k in off[1]) and off[1].keys() == never[1].keys()


@pytest.mark.parametrize("model", MODELS)
def test_a_song_is_to_be_reached_from_where_it_was_led(model: str) -> None:
    """The velocity (x − x0)/σ has no loss there; ε − x0 has, and on the line both are one."""
    made, of = batch(model, B=2), objective(model)
    d = of.draw(made)
    x0, _ = of.clean(made, d)
    s = d.sigma.reshape(-1, *[1] * (x0.ndim - 1))
    x = s * d.noise + (1 - s) * x0 + 0.3
    ways = mx.array([True, True])
    back = of.compared((x - x0) / s, x, made, d, rolled=ways)
    assert back.tolist() == pytest.approx([0, 0], abs=1e-9)
    assert (of.compared(d.noise - x0, x, made, d, rolled=ways) > 1e-3).all()
    line, velocity = x - 0.3, mx.ones_like(x)
    same = [of.compared(velocity, line, made, d, rolled=which) for which in (None, ways)]
    assert same[0].tolist() == pytest.approx(same[1].tolist(), rel=1e-4)
    double = of.compared(velocity, line, made, d, weight=mx.broadcast_to(mx.array(2.0), x.shape))
    assert double.tolist() == pytest.approx((2 * same[0]).tolist(), rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("reflexflow", [None, ReflexFlow(0.0, 1.0, 1.0)])
def test_no_gradient_goes_through_the_rollout(model: str, reflexflow: ReflexFlow | None) -> None:
    """The gradient is that of the loss at latents that stay where they are (finite differences)."""
    far = RolloutSettings(900, "biased_late", 1.0, stride=300, reflexflow=reflexflow)
    made, network = batch(model), adapted(model)
    step = stepped(model, network, far, accumulate=2)
    assert step.rollout is not None
    step(made, update=False)
    gradient, weights = step.gradient(), tiny.weights(network)
    way = {k: mx.random.normal(v.shape, key=mx.random.key(i)) for i, (k, v) in enumerate(weights.items())}
    there, d, h = step.rollout(made, 0), objective(model).draw(made), 2e-3

    def loss(sign: int, again: bool) -> float:
        step.set_parameters({k: v + sign * h * way[k] for k, v in weights.items()})
        at = step.rollout(made, 0) if again else there
        return float(step.rollout.losses(at, d)[0].item())

    frozen, followed = ((loss(1, again) - loss(-1, again)) / (2 * h) for again in (False, True))
    slope = sum((gradient[k] * way[k]).sum().item() for k in way)
    assert slope == pytest.approx(frozen, rel=0.02, abs=2e-4)
    assert abs(followed - frozen) > 10 * abs(slope - frozen)


def test_reflexflow_is_what_five_lines_of_numpy_say() -> None:
    rng = np.random.default_rng(0)
    straight, there, away = rng.normal(size=(3, 2, 3, 4)).astype(np.float32)
    mask = np.array([[[1, 1, 1, 1]], [[1, 1, 0, 0]]], np.float32)
    weight = np.array(frequency_weight(*map(mx.array, (straight, there, mask))))
    adr = np.array(direction_loss(*map(mx.array, (there, away, mask))))
    for b, T in enumerate((4, 2)):
        e, v, d = (y[b, :, :T] for y in (straight - there, there, away))
        np.testing.assert_allclose(weight[b, :, :T], e / np.abs(e).sum(), rtol=1e-5)
        cosine = (v * d).sum() / np.linalg.norm(v) / np.linalg.norm(d)
        assert adr[b] == pytest.approx(2 - 2 * cosine, rel=1e-5)
    assert not weight[1, :, 2:].any()
    for y in (straight, there, away):  # what stands in the padding is nothing
        y[1, :, 2:] = 9.0
    assert (np.array(frequency_weight(*map(mx.array, (straight, there, mask)))) == weight).all()
    assert (np.array(direction_loss(*map(mx.array, (there, away, mask)))) == adr).all()
    assert direction_loss(*map(mx.array, (3 * away, away, mask))).tolist() == pytest.approx([0, 0], abs=1e-6)
    zero = mx.zeros((2, 3, 4))
    assert direction_loss(zero, zero, mx.array(mask)).tolist() == [0, 0]


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_the_terms_of_the_loss(model: str) -> None:
    """Told apart and added up: a batch that was rolled out, and one that was not, which has no FC."""
    made, network, of = batch(model, B=2), adapted(model), objective(model)
    d = of.draw(made)
    x0, mask = of.clean(made, d)
    column = (-1, *[1] * (x0.ndim - 1))
    for probability in (1.0, 0.0):
        reflexflow = ReflexFlow(50.0, 3.0, 0.5)
        rollout = Rollout(
            network, of, replace(ALWAYS, probability=probability, reflexflow=reflexflow), mx.float32
        )
        at = rollout(made, 0)
        losses, terms = rollout.losses(at, d)
        s = d.sigma.reshape(column)
        line = s * d.noise + (1 - s) * x0
        x = at.get(NOISY, line)
        v, straight = (of.velocity(network, made, y, d.sigma, mx.float32) for y in (x, line))
        flow = of.compared(v, x, made, d, rolled=at.get(ROLLED))
        weight = 50 * frequency_weight(straight, v, mask)
        weighted = of.compared(v, x, made, d, rolled=at.get(ROLLED), weight=1 + weight)
        adr = 3 * direction_loss(v, x - x0, mask)
        np.testing.assert_allclose(losses, 0.5 * weighted + adr, rtol=1e-4)
        np.testing.assert_allclose(terms[FLOW], flow, rtol=1e-5)
        np.testing.assert_allclose(terms[ADR], adr, rtol=1e-4)
        np.testing.assert_allclose(terms[FC], 0.5 * (weighted - flow), rtol=5e-2, atol=1e-6)
        assert bool(mx.abs(terms[FC]).min() > 0) == (probability == 1)


@pytest.mark.slow
def test_a_term_of_weight_0_is_not_there() -> None:
    made, network = batch("v1"), adapted("v1")
    for reflexflow, names in (
        (ReflexFlow(0.0, 1.0), (FLOW, ADR)),
        (ReflexFlow(1.0, 0.0), (FLOW, FC)),
    ):
        step = stepped("v1", network, replace(ALWAYS, reflexflow=reflexflow), lr=0.0)
        assert tuple(step(made, update=True).parts) == names


@pytest.mark.slow
def test_padding_changes_nothing() -> None:
    """Of 1.5, whose transformer masks it; v1's norms see it, as upstream's do."""
    made, network, of = batch("v15", 3, B=2), adapted("v15"), objective("v15")
    rollout = Rollout(network, of, replace(ALWAYS, reflexflow=ReflexFlow(50.0, 3.0, 1.0)), mx.float32)
    valid = made["latent_mask"][..., None] > 0
    filled = {**made, **{name: mx.where(valid, made[name], 9.0) for name in ("mean", "source")}}
    terms, again = (rollout.losses(rollout(b, 0), of.draw(b))[1] for b in (made, filled))
    for name in terms:
        np.testing.assert_allclose(again[name], terms[name], rtol=2e-3, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_the_evaluation_loss_is_plain(model: str) -> None:
    network, made = adapted(model), [batch(model)]
    step = stepped(model, network, replace(ALWAYS, reflexflow=ReflexFlow()))
    plain = stepped(model, network, None)
    means = [Evaluation(network, made, one.objective, mx.float32)() for one in (step, plain)]
    assert means[0] == means[1] is not None


@pytest.mark.slow
# ── whatever else a step is ──────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("dtype", [mx.float32, mx.float16])
def test_latents_that_are_led_astray_are_left_out(model: str, dtype: mx.Dtype) -> None:
    network = adapted(model)
    step = stepped(model, network, ALWAYS, compute_dtype=dtype)
    before = tiny.weights(network)
    assert step.rollout is not None
    there = step.rollout._euler
    step.rollout._euler = lambda *given: there(*given) * mx.array(math.inf)
    result = step(batch(model), update=True)
    assert not result.finite.item() and tiny.difference(before, tiny.weights(network)) == 0
    assert dtype == mx.float32 or step.carry["scale"].item() == 2.0**13
    step.rollout._euler = there
    result = step(batch(model, 1), update=True)
    assert result.finite.item() and tiny.difference(before, tiny.weights(network)) > 0


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16])
def test_narrow_numbers_lead_to_about_the_same_place(model: str, dtype: mx.Dtype) -> None:
    made, network = batch(model, B=2), adapted(model)
    wide, narrow = (
        Rollout(network, objective(model), ALWAYS, d)(made, 0)[NOISY] for d in (mx.float32, dtype)
    )
    assert narrow.dtype == mx.float32 and 0 < mx.abs(wide - narrow).max().item() < 1e-2
    step = stepped(model, network, replace(ALWAYS, reflexflow=ReflexFlow()), compute_dtype=dtype)
    assert step(made, update=True).finite.item()


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_of_a_quantised_base(model: str) -> None:
    from mlx.utils import tree_flatten

    made, of = batch(model), objective(model)
    if model == "v1":
        wide = replace(tiny.CONFIG, num_attention_heads=4, attention_head_dim=16)
        network: Any = tiny.transformer(config=wide)
    else:
        network = v15.transformer()
    found = quantize_layers(family(model).components["transformer"], network, Quantization.of(8, 32))
    assert found
    inject(
        network, LoRASpec(rank=2, targets=("cross_attn.to_q",) if model == "v1" else ("self_attn.v_proj",))
    )
    step = stepped(model, network, replace(ALWAYS, reflexflow=ReflexFlow()))
    assert step(made, update=True).finite.item()
    assert NOISY in Rollout(network, of, ALWAYS, mx.float32)(made, 0)
    assert dict(tree_flatten(network.trainable_parameters()))


@pytest.mark.slow
def test_a_further_loss_sees_the_training_pass_alone() -> None:
    """What the model computes there, once, at the latents that the song was led to; both losses' parts."""
    made, network, seen = batch("v1"), adapted("v1"), []

    class Watching:
        parts = ("further/size",)

        def __call__(self, model: Any, batch: Any, run: Any) -> Any:
            with model.watched() as blocks:
                losses = run()
            seen.append(dict(blocks))
            return losses + 1, {"further/size": mx.abs(blocks[1]).mean()}

    step = stepped("v1", network, replace(ALWAYS, reflexflow=ReflexFlow()), lr=0.0)
    alone = step(made, update=True)
    both = TrainStep(
        network, step.groups, step.settings, step.objective, rollout=step.rollout, auxiliary=Watching()
    )(made, update=True)
    assert len(seen) == 1 and set(both.parts) == {FLOW, FC, ADR, "further/size"}
    assert both.loss.item() == pytest.approx(alone.loss.item() + 1, rel=1e-5)
    assert both.parts[ADR].item() == pytest.approx(alone.parts[ADR].item(), rel=1e-5)


# ── settings ─────────────────────────────────────────────────────────────────────────────────────────
def test_every_key_is_read_and_off_by_default() -> None:
    plain = load_config({})
    assert rollout_settings(plain) is None and rollout_lines(plain) == []
    names = [name for name in OPTIONS if name.startswith("scheduled_sampling_")]
    assert len(names) == 15 and set(names) == set(ScheduledSampling.__dataclass_fields__)
    assert all(OPTIONS[name].status in ("supported", "ignored") for name in names)


@pytest.mark.parametrize(("given", "on"), [(None, True), (True, True), (False, False), ("false", False)])
@pytest.mark.parametrize("flavour", ["base", "v15-base"])
def test_reflexflow_is_on_with_an_offset_unless_it_is_refused(given: Any, on: bool, flavour: str) -> None:
    config = load_config({**SETTINGS, "model_flavour": flavour, "scheduled_sampling_reflexflow": given})
    found = rollout_settings(config)
    assert found is not None and (found.reflexflow == ReflexFlow(1.0, 10.0, 1.0)) == on
    assert config.scheduled_sampling_reflexflow is on
    said = rollout_lines(config)[-1]
    assert said.startswith(f"ReflexFlow is {'on' if on else 'off'}") and ("not set" in said) == (
        given is None
    )
    why = "scheduled sampling is off: scheduled_sampling_max_step_offset is 0"
    without = load_config({"scheduled_sampling_reflexflow": given})
    assert without.ignored == ([] if given is None else [("scheduled_sampling_reflexflow", why)])
    assert rollout_settings(without) is None


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("max_step_offset", -1, "between 0 and 999"), ("max_step_offset", 1000, "between 0 and 999"),
        ("max_step_offset", 1.5, "whole number"), ("probability", 1.01, "between 0 and 1"),
        ("prob_start", -0.1, "between 0 and 1"), ("prob_end", 2, "between 0 and 1"),
        ("ramp_steps", -1, "0"),
        ("start_step", -3, "0"), ("ramp_shape", "sine", "linear, cosine"),
        ("strategy", "late", "biased_late"),
        ("sampler", "rk4", "use euler"), ("sampler", "heun", "unipc, euler, dpm"),
        ("order", "two", "whole number"),
        ("reflexflow", "maybe", "true or false"), ("reflexflow_alpha", -1, "0"),
        ("reflexflow_beta1", "nan", "finite"),
        ("reflexflow_beta2", "inf", "finite"), ("stride", 0, "1"), ("stride", 1000, "999"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_in_a_line(key: str, value: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=f"scheduled_sampling_{key}") as error:
        load_config({**SETTINGS, f"scheduled_sampling_{key}": value})
    assert said in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"sampler": "unip"}, "sampler"), ({"sampler": "dpm", "order": 3}, "sampler order"),
        ({"order": 12}, "order"),
        ({"prob_end": 0.5}, "prob_end"), ({"start_step": 5, "ramp_shape": "cosine"}, "start_step ramp_shape"),
        ({"ramp_steps": 5, "prob_start": 0}, "probability"),
        ({"prob_start": 0.0}, "prob_start"),
        ({"reflexflow": False, "reflexflow_alpha": 2}, "reflexflow_alpha"),
        ({"reflexflow_beta1": 2}, ""),
        ({"max_step_offset": 0, "stride": 3, "reflexflow_beta2": 1}, "probability stride"),
        ({"stride": 20}, ""),
    ],
)  # fmt: skip
def test_keys_without_effect_are_named(given: dict[str, Any], named: str) -> None:
    config = load_config({**SETTINGS, **{f"scheduled_sampling_{k}": v for k, v in given.items()}})
    assert {key for key, _ in config.ignored} == {f"scheduled_sampling_{key}" for key in named.split()}
    again = load_config(config.to_dict())
    assert rollout_settings(again) == rollout_settings(config)


def test_what_a_run_will_do_is_said_with_its_cost() -> None:
    said = rollout_lines(load_config(SETTINGS))
    assert "with probability 1, by 0 to 10 timesteps (uniform), in Euler steps of 1" in said[0]
    assert "5.9 forward passes more" in said[1] and "3.7 times its time, 3.1 times" in said[1]
    off = {"scheduled_sampling_reflexflow": False}
    assert "5.0 forward passes more" in rollout_lines(load_config({**SETTINGS, **off}))[1]
    one = rollout_lines(load_config({**SETTINGS, **off, "scheduled_sampling_stride": 10}))
    assert "0.9 forward passes more" in one[1] and "1.4 times" in one[1]
    ramp = {"scheduled_sampling_ramp_steps": 8, "scheduled_sampling_start_step": 2, "train_batch_size": 2}
    lines = rollout_lines(load_config({**SETTINGS, **off, **ramp}))
    assert "with probability 0 at step 2 to 0.5 at step 10 (linear)" in lines[0]
    assert "that is 0.0 to 4.2 forward passes more" in lines[1] and "1.0 to 2.9 times" in lines[1]


@pytest.mark.parametrize("B", [1, 2, 5])
@pytest.mark.parametrize("strategy", ["uniform", "biased_early", "biased_late"])
def test_the_cost_is_the_mean_of_what_is_drawn(strategy: str, B: int) -> None:
    settings = RolloutSettings(9, strategy, 0.6, stride=2, reflexflow=ReflexFlow())
    keys = np.random.default_rng(1).integers(0, 2**32, (500 * B, 2), dtype=np.uint32)
    longest = settings.offsets(keys, 0).reshape(500, B).max(axis=1)
    counted = np.ceil(longest / 2) + (longest > 0)
    assert settings.forwards(0.6, B) == pytest.approx(counted.mean(), abs=4 * counted.std() / math.sqrt(500))


@pytest.mark.parametrize("flavour", ["base", "v15-base"])
def test_memory_counts_it_where_it_takes_more_than_the_step(flavour: str) -> None:
    def parts(**options: Any) -> dict[str, float]:
        config = load_config({"model_flavour": flavour, **options})
        load = of_flavour(flavour).memory.load(10.0, lyrics=1000)
        return dict(memory.estimate(config, load).parts)

    plain, rolling = parts(), parts(**SETTINGS)
    assert rolling.pop("rollout") > 0 and rolling == plain
    assert parts(**SETTINGS, gradient_checkpointing=False)["rollout"] == 0
