"""LoRAs for generation: they do what training had, add up, and leave no trace when they are taken off."""

from __future__ import annotations

import math

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.utils import tree_flatten

from acestep_mlx.errors import CheckpointError, ConfigError
from acestep_mlx.families.v1.lora import LORA
from acestep_mlx.lora.apply import AppliedLoRA, apply_loras, remove_loras
from acestep_mlx.lora.formats.read import read_lora
from acestep_mlx.lora.formats.write import write_lora
from acestep_mlx.lora.full_modules import full_parameters, set_full
from acestep_mlx.lora.linear import base_linears, dense_weight
from acestep_mlx.lora.surgery import LoRASpec, from_model

from .standin import KINDS, TOKENS, disturb, make, trained

TARGETS = (*LORA.default_targets, "ff.inverted_conv.conv", "ff.point_conv.conv", "final_layer.linear")
LORA = LoRASpec(rank=4, alpha=6, targets=TARGETS)
DORA = LoRASpec(rank=3, alpha=5, use_dora=True, targets=TARGETS)


def snapshot(model: nn.Module) -> dict[str, mx.array]:
    return {name: mx.array(value) for name, value in tree_flatten(model.parameters())}


def assert_untouched(model: nn.Module, before: dict[str, mx.array]) -> None:
    after = dict(tree_flatten(model.parameters()))
    assert after.keys() == before.keys()
    for name, value in before.items():
        assert after[name].dtype == value.dtype, name
        assert mx.array_equal(after[name], value), name
    assert not any(isinstance(module, AppliedLoRA) for module in model.modules())


def weights_of(spec: LoRASpec, kind: str = "float32", seed: int = 1, embedder: bool = False):
    model = trained(spec, kind, seed)
    weights = from_model(model, spec)
    if embedder:
        weights.full = {
            name: value + 0.1 * mx.random.normal(value.shape, key=mx.random.key(i + seed))
            for i, (name, value) in enumerate(full_parameters(model).items())
        }
    return weights


def distance(a: mx.array, b: mx.array) -> float:
    a, b = a.astype(mx.float32), b.astype(mx.float32)
    return float(mx.linalg.norm(a - b) / mx.linalg.norm(b))


@pytest.mark.parametrize("spec", [LORA, DORA], ids=["lora", "dora"])
@pytest.mark.parametrize("kind", KINDS)
def test_applied_equals_the_trained_model(spec, kind):
    expected = trained(spec, kind)(TOKENS)
    model = make(kind)
    plain = model(TOKENS)
    apply_loras(model, [(weights_of(spec, kind), 1.0)])
    rounding = 2e-6 if kind == "float32" else 2e-2
    assert distance(model(TOKENS), expected) < rounding < 0.1 < distance(plain, expected)
    assert model(TOKENS).dtype == plain.dtype
    assert not tree_flatten(model.trainable_parameters())


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_removed_bit_for_bit(kind, fused):
    model = make(kind)
    before, plain = snapshot(model), model(TOKENS)
    loras = [(weights_of(LORA, kind, embedder=True), 0.7), (weights_of(DORA, kind, 2), -1.3)]
    apply_loras(model, loras, fused=fused)
    assert distance(model(TOKENS), plain) > 1e-2
    remove_loras(model)
    assert_untouched(model, before)
    assert mx.array_equal(model(TOKENS), plain)
    remove_loras(model)  # nothing left to remove


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_strength_zero_is_no_lora_bit_for_bit(kind, fused):
    model = make(kind)
    before, plain = snapshot(model), model(TOKENS)
    zero = [(weights_of(LORA, kind, embedder=True), 0.0), (weights_of(DORA, kind), 0)]
    apply_loras(model, zero, fused=fused)
    assert mx.array_equal(model(TOKENS), plain)
    assert_untouched(model, before)
    one = [(weights_of(LORA, kind), 1.0)]
    apply_loras(model, one, fused=fused)
    alone = model(TOKENS)
    apply_loras(model, one + zero, fused=fused)
    assert mx.array_equal(model(TOKENS), alone)


@pytest.mark.parametrize("kind", ["float32", "bfloat16"])
def test_fused_equals_unfused(kind):
    loras = [(weights_of(LORA, kind, embedder=True), 0.7), (weights_of(DORA, kind, 2), 0.5)]
    one, two = make(kind), make(kind)
    apply_loras(one, loras)
    apply_loras(two, loras, fused=True)
    assert distance(two(TOKENS), one(TOKENS)) < (3e-6 if kind == "float32" else 2e-2)
    assert not any(isinstance(m, AppliedLoRA) for m in two.modules())


def test_fused_on_a_quantised_base_stays_quantised_and_close():
    model, exact = make("q8"), make("q8")
    apply_loras(exact, [(weights_of(LORA), 1.0)])
    apply_loras(model, [(weights_of(LORA), 1.0)], fused=True)
    assert all(isinstance(m, nn.QuantizedLinear) for m in base_linears(model).values())
    for path in weights_of(LORA).modules:
        wanted = dense_weight(base_linears(exact)[path]) + weights_of(LORA).modules[path].delta()
        assert distance(dense_weight(base_linears(model)[path]), wanted) < 0.02


def test_several_add_up_and_scale_linearly():
    first, second = weights_of(LORA), weights_of(DORA, seed=2)
    linears = base_linears(make())

    def effective(*loras):
        model = make()
        apply_loras(model, list(loras), fused=True)
        return {path: base_linears(model)[path].weight for path in first.modules}

    one, two = effective((first, 0.5)), effective((second, -2.0))
    both = effective((first, 0.5), (second, -2.0))
    for path, linear in linears.items():
        if path in first.modules:
            wanted = one[path] + two[path] - linear.weight
            assert mx.allclose(both[path], wanted, rtol=1e-5, atol=1e-5), path
            assert mx.allclose(one[path], linear.weight + 0.5 * first.modules[path].delta(), atol=1e-6), path


def test_applying_replaces_what_was_there():
    model, fresh = make(), make()
    before = snapshot(model)
    apply_loras(model, [(weights_of(LORA, embedder=True), 1.0)])
    apply_loras(model, [(weights_of(DORA), 1.0)])
    apply_loras(fresh, [(weights_of(DORA), 1.0)])
    assert mx.array_equal(model(TOKENS), fresh(TOKENS))
    apply_loras(model, [])
    assert_untouched(model, before)


@pytest.mark.parametrize("kind", ["float32", "q8"])
def test_a_lyrics_embedder_comes_along(kind):
    weights = weights_of(LORA, embedder=True)
    expected = trained(LORA, kind)
    set_full(expected, weights.full)
    model = make(kind)
    apply_loras(model, [(weights, 1.0)])
    assert distance(model(TOKENS), expected(TOKENS)) < (2e-6 if kind == "float32" else 2e-2)
    half = make(kind)
    apply_loras(half, [(weights, 0.5)])
    base, whole = full_parameters(make(kind)), weights.full
    for name, value in full_parameters(half).items():
        wanted = 0.5 * (base[name] + whole[name])
        assert distance(value, wanted) < (1e-6 if kind == "float32" else 1e-2), name


def test_comfyui_files_apply_too(tmp_path):
    base = make()
    weights = weights_of(DORA, embedder=True)
    weights.full.pop("lyric_encoder.encoders.0.self_attn.pos_bias_u")  # ComfyUI cannot carry it
    path = write_lora(tmp_path / "x.safetensors", weights, "comfyui", base=base, with_full=True)
    one, two = make(), make()
    apply_loras(one, [(weights, 1.0)])
    apply_loras(two, [(read_lora(path), 1.0)])
    assert distance(two(TOKENS), one(TOKENS)) < 1e-5


@pytest.mark.parametrize("strength", [math.nan, math.inf, "1", None, True])
def test_strengths_that_are_no_numbers(strength):
    with pytest.raises(ConfigError, match="must be a number"):
        apply_loras(make(), [(weights_of(LORA), strength)])


def test_what_does_not_fit_leaves_the_model_alone():
    model = make()
    before = snapshot(model)
    wrong = weights_of(LORA, embedder=True)
    wrong.full["lyric_proj.bias"] = mx.zeros((3,))
    with pytest.raises(CheckpointError, match=r"lyric_proj\.bias has shape"):
        apply_loras(model, [(weights_of(DORA), 1.0), (wrong, 1.0)])
    assert_untouched(model, before)
    with pytest.raises(CheckpointError, match="another size"):
        apply_loras(make(width=32), [(weights_of(LORA), 1.0)])
    with pytest.raises(ConfigError, match="being trained"):
        apply_loras(trained(LORA), [(weights_of(LORA), 1.0)])


def test_a_compiled_model_takes_them_as_state():
    model = make()
    apply_loras(model, [(weights_of(LORA), 1.0)])
    wanted = model(TOKENS)
    assert distance(mx.compile(model)(TOKENS), wanted) < 1e-5
    disturb(model)
