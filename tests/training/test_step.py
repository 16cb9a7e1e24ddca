"""The compiled step: equal to the eager one, exact accumulation, skipped faults, no recompilation,
resumable."""

from __future__ import annotations

from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest

from acestep_mlx.families.v1.objective import FlowMatching
from acestep_mlx.lora.surgery import LoRASpec

from . import tiny


def run(step, batches, accumulate=1, start=0):
    results = []
    for i, batch in enumerate(batches, start):
        results.append(step(batch, update=(i + 1) % accumulate == 0, step=i // accumulate))
        mx.eval(results[-1], step.state)
    return results


def test_compiled_equals_eager():
    batches = [tiny.batch(i, B=2) for i in range(3)]
    models = []
    for compiled in (True, False):
        model = tiny.adapted()
        run(tiny.step(model, compiled=compiled), batches)
        models.append(tiny.weights(model))
    assert tiny.difference(*models) < 1e-5


@pytest.mark.parametrize("blocks", [1, 2])
def test_block_checkpointing_changes_nothing(blocks):
    plain, checkpointed = tiny.adapted(), tiny.adapted()
    checkpointed.checkpoint_blocks = blocks
    for model in (plain, checkpointed):
        run(tiny.step(model), [tiny.batch(i, B=2) for i in range(2)])
    assert tiny.difference(tiny.weights(plain), tiny.weights(checkpointed)) < 1e-5


@pytest.mark.parametrize("blocks", [1, 2])
def test_some_blocks_are_computed_again_and_several_are_not(blocks):
    """As on a machine that has room for a part: an expression that the others share is not lost."""
    config = replace(tiny.CONFIG, num_layers=4)
    losses = []
    for again in (0, blocks):
        model = tiny.adapted(config=config)
        model.checkpoint_blocks = again
        losses.append(run(tiny.step(model), [tiny.batch(0, B=2)])[0].loss.item())
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)


def test_learning_rate_changes_and_lengths_that_came_before_do_not_recompile():
    model = tiny.adapted()
    step = tiny.step(model)
    lengths = [12, 18, 12, 18, 12, 18, 12]
    run(step, [tiny.batch(i, T=T) for i, T in enumerate(lengths)])
    assert step.traces == 2


def test_only_trainable_parameters_change():
    model, same = tiny.adapted(), tiny.adapted()
    run(tiny.step(model), [tiny.batch(0)])
    changed = dict(tiny.tree(model))
    for name, before in tiny.tree(same):
        moved = not mx.array_equal(before, changed[name])
        assert moved == name.endswith(("lora_a", "lora_b")), name


def test_accumulation_equals_one_large_batch():
    whole = tiny.batch(0, B=4)
    large, small = tiny.adapted(), tiny.adapted()
    run(tiny.step(large, max_grad_norm=0.5), [whole])
    parts = [
        tiny.rows(whole, 0, 1),
        tiny.rows(whole, 1, 4),
    ]  # uneven: a batch weighs as much as it has samples
    run(tiny.step(small, max_grad_norm=0.5, accumulate=2), parts, accumulate=2)
    assert tiny.difference(tiny.weights(large), tiny.weights(small)) < 1e-5


def test_a_non_finite_batch_changes_nothing_and_is_reported():
    model = tiny.adapted()
    step = tiny.step(model)
    run(step, [tiny.batch(0)])
    before, arrays = tiny.weights(model), {k: dict(v) for k, v in step.arrays().items()}
    bad = tiny.batch(1)
    bad["latents"] = bad["latents"] * mx.array(float("nan"))
    (result,) = run(step, [bad])
    assert not result.finite.item()
    assert tiny.difference(before, tiny.weights(model)) == 0
    for name, value in step.arrays()["optimizer"].items():
        assert mx.array_equal(value, arrays["optimizer"][name]), name
    (result,) = run(step, [tiny.batch(2)])
    assert result.finite.item() and tiny.difference(before, tiny.weights(model)) > 0


def test_a_non_finite_micro_batch_is_left_out_of_the_average():
    bad = tiny.batch(1)
    bad["latents"] = bad["latents"] * mx.array(float("inf"))
    faulty, plain = tiny.adapted(), tiny.adapted()
    run(tiny.step(faulty, accumulate=2), [tiny.batch(0), bad], accumulate=2)
    # the first micro-batch of both draws from the same key
    run(tiny.step(plain), [tiny.batch(0)])
    assert tiny.difference(tiny.weights(faulty), tiny.weights(plain)) < 1e-6


def test_float16_scales_the_loss_and_lowers_the_scale_after_an_overflow():
    model = tiny.adapted()
    step = tiny.step(model, compute_dtype=mx.float16)
    plain = tiny.adapted()
    run(step, [tiny.batch(0)])
    run(tiny.step(plain), [tiny.batch(0)])
    assert tiny.difference(tiny.weights(model), tiny.weights(plain)) < 1e-2  # the scale is taken out again
    assert step.carry["scale"].item() == 2.0**14
    bad = tiny.batch(1)
    bad["latents"] = bad["latents"] * mx.array(float("inf"))
    (result,) = run(step, [bad])
    assert not result.finite.item() and step.carry["scale"].item() == 2.0**13
    step.carry["good"] = mx.array(float(step.GROW_AFTER - 1))
    run(step, [tiny.batch(2)])
    assert step.carry["scale"].item() == 2.0**14 and step.carry["good"].item() == 0


def test_noise_and_timesteps_are_independent():
    keys = mx.random.split(mx.random.key(0), 800)
    d = FlowMatching().draw({"keys": keys, "latents": mx.zeros((800, 1, 1, 1))})
    correlation = np.corrcoef(np.concatenate([np.array(d.noise).reshape(1, -1), np.array(d.sigma)[None]]))
    assert np.abs(correlation - np.eye(2)).max() < 0.15
    assert abs(np.array(d.noise).std() - 1) < 0.1
    assert np.array(d.sigma).min() > 0 and np.array(d.sigma).max() <= 1


def test_a_sample_draws_the_same_alone_and_in_a_batch():
    keys = mx.random.split(mx.random.key(1), 3)
    together = FlowMatching().draw({"keys": keys, "latents": mx.zeros((3, 8, 16, 7))})
    alone = FlowMatching().draw({"keys": keys[1:2], "latents": mx.zeros((1, 8, 16, 7))})
    for a, b in zip(together[:2], alone[:2], strict=True):
        assert mx.array_equal(a[1:2], b)


def losses(batch):
    objective = FlowMatching()
    return np.array(objective.losses(tiny.adapted(), batch, objective.draw(batch), mx.float32))


@pytest.mark.parametrize(("name", "mask"), [("text", "text_mask"), ("lyric_ids", "lyric_mask")])
def test_what_stands_in_the_padding_changes_no_loss_and_what_counts_does(name, mask):
    plain = tiny.batch(0, B=3)
    counts = plain[mask] if name == "lyric_ids" else plain[mask][..., None]
    other = 1 + plain[name] % 63 if name == "lyric_ids" else plain[name] + 0.5  # others that there are
    padding, sound = (mx.where(counts == at, other, plain[name]) for at in (0, 1))
    expected = losses(plain)
    np.testing.assert_allclose(losses({**plain, name: padding})[1:], expected[1:], rtol=1e-5)
    assert np.abs(losses({**plain, name: sound}) - expected).min() > 1e-6


@pytest.mark.parametrize(("name", "mask"), [("text", "text_mask"), ("lyric_ids", "lyric_mask")])
def test_longer_padding_changes_no_loss(name, mask):
    # lyrics stand behind the text: what pads it moves their places, as upstream
    plain = tiny.batch(0, B=2, lyrics=0 if name == "text" else 6)
    longer = dict(plain)
    for key, filled in ((name, 1), (mask, 0)):
        widths = [(0, 0), (0, 7), *[(0, 0)] * (plain[key].ndim - 2)]
        longer[key] = mx.pad(plain[key], widths, constant_values=filled)
    np.testing.assert_allclose(losses(longer), losses(plain), rtol=1e-5)


@pytest.mark.slow_after(2)
@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("spec", [LoRASpec(rank=2, dropout=0.3), LoRASpec(rank=2, use_dora=True)])
def test_saved_arrays_continue_bit_for_bit(accumulate, spec):
    batches = [tiny.batch(i) for i in range(8)]
    straight = tiny.adapted(spec=spec)
    run(tiny.step(straight, accumulate=accumulate), batches, accumulate)
    first, again = tiny.adapted(spec=spec), tiny.adapted(seed=0, spec=spec)
    step = tiny.step(first, accumulate=accumulate)
    run(step, batches[:4], accumulate)
    saved, parameters = step.arrays(), tiny.weights(first)
    resumed = tiny.step(again, accumulate=accumulate)
    resumed.set_parameters(parameters)
    assert resumed.load_arrays(saved["optimizer"], saved["sampler"]) == []
    run(resumed, batches[4:], accumulate, start=4)
    assert tiny.difference(tiny.weights(straight), tiny.weights(again)) == 0


def test_state_of_another_run_is_refused_by_name():
    step, other = tiny.step(tiny.adapted()), tiny.step(tiny.adapted(), optimizer="lion")
    saved = other.arrays()
    assert any("lacks" in p for p in step.load_arrays(saved["optimizer"], saved["sampler"]))
