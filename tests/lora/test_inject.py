"""Injected layers: an untrained one changes nothing, a trained one is what the formula says."""

from __future__ import annotations

import math

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.utils import tree_flatten

from acestep_mlx.errors import ConfigError
from acestep_mlx.families.v1.lora import LORA
from acestep_mlx.lora.full_modules import train_full
from acestep_mlx.lora.linear import dense_weight
from acestep_mlx.lora.surgery import (
    LoRALinear,
    LoRASpec,
    adapter_modules,
    disabled,
    find_targets,
    from_model,
    idle_targets,
    inject,
    load_adapters,
    seed_dropout,
    unfreeze_adapters,
)

from .standin import KINDS, TOKENS, disturb, make, trained

EVERY_LINEAR = (
    *LORA.presets["attn_qkv+linear_qkv"],
    "inverted_conv.conv",
    "ff.point_conv.conv",
    "lyric_proj",
)


@pytest.mark.slow_after(2)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dora", [False, True])
def test_untrained_adapter_is_a_bit_exact_no_op(kind, dora):
    model = make(kind)
    before = model(TOKENS)
    spec = LoRASpec(rank=4, alpha=32, use_rslora=True, use_dora=dora, targets=EVERY_LINEAR)
    paths = inject(model, spec)
    assert len(paths) == 3 + 2 * 8 + 2 * 2 + 1
    assert mx.array_equal(before, model(TOKENS))
    assert mx.array_equal(before, mx.compile(model)(TOKENS))
    disturb(model)
    assert not mx.array_equal(before, model(TOKENS))
    with disabled(model):
        with disabled(model):
            pass
        assert mx.array_equal(before, model(TOKENS)), "as it was before, not on"
    assert not mx.array_equal(before, model(TOKENS))


@pytest.mark.parametrize("kind", ["float32", "q8", "q4"])
@pytest.mark.parametrize("dora", [False, True])
def test_a_trained_layer_is_the_formula(kind, dora):
    model = trained(LoRASpec(rank=4, alpha=6, use_dora=dora), kind)
    layer = model.transformer_blocks[1].attn.to_out[0]
    x = mx.random.normal((2, 3, 64), key=mx.random.key(9))
    weight = dense_weight(layer.linear).astype(mx.float32)
    adapted = weight + 1.5 * (layer.lora_b.T @ layer.lora_a.T)
    if dora:
        adapted = adapted * (layer.m / mx.linalg.norm(adapted, axis=1))[:, None]
    expected = x @ adapted.T + layer.linear.bias
    assert mx.abs(layer(x) - expected).max() < 3e-6 * mx.abs(expected).max() + (
        1e-5 if kind != "float32" else 0
    )


def test_only_the_adapters_train_in_float32_under_bfloat16():
    model = trained(LoRASpec(rank=4, use_dora=True), "bfloat16")
    names = {name for name, _ in tree_flatten(model.trainable_parameters())}
    assert len(names) == 3 * 19
    assert {name.rsplit(".", 1)[1] for name in names} == {"lora_a", "lora_b", "m"}
    assert all(v.dtype == mx.float32 for _, v in tree_flatten(model.trainable_parameters()))
    assert model(TOKENS).dtype == mx.bfloat16
    model.freeze()
    unfreeze_adapters(model)
    assert names == {name for name, _ in tree_flatten(model.trainable_parameters())}


@pytest.mark.parametrize("kind", ["float32", "q8"])
@pytest.mark.parametrize("dora", [False, True])
def test_every_adapter_gets_a_gradient(kind, dora):
    model = trained(LoRASpec(rank=4, use_dora=dora), kind)
    grads = nn.value_and_grad(model, lambda: model(TOKENS).astype(mx.float32).square().mean())()[1]
    flat = tree_flatten(grads)
    assert len(flat) == (3 if dora else 2) * 19
    assert all(mx.abs(g).max() > 0 for _, g in flat)


def test_start_is_set_by_the_seed_and_the_path_alone():
    one, two, three = make(), make(), make()
    inject(one, LoRASpec(rank=4), seed=5)
    mx.random.seed(99)
    inject(two, LoRASpec(rank=4, targets=("to_q",)), seed=5)
    inject(three, LoRASpec(rank=4), seed=6)
    a, b, c = (m.transformer_blocks[0].attn.to_q.lora_a for m in (one, two, three))
    assert mx.array_equal(a, b)
    assert not mx.array_equal(a, c)
    assert not mx.array_equal(a, one.transformer_blocks[1].attn.to_q.lora_a)


def test_injecting_leaves_the_global_random_state_alone():
    model = make()
    mx.random.seed(7)
    expected = mx.random.normal((3,))
    mx.random.seed(7)
    inject(model, LoRASpec(rank=4, use_dora=True))
    assert mx.array_equal(mx.random.normal((3,)), expected)


def test_init_types():
    model = make()
    inject(model, LoRASpec(rank=8))
    a = model.transformer_blocks[0].attn.to_q.lora_a
    assert mx.abs(a).max() <= 1 / math.sqrt(64)
    assert abs(a.std().item() - 1 / math.sqrt(3 * 64)) < 0.01
    model = make()
    inject(model, LoRASpec(rank=8, init_type="gaussian"))
    assert abs(model.transformer_blocks[0].attn.to_q.lora_a.std().item() - 1 / 8) < 0.02
    assert LoRASpec(init_type=True).init_type == LoRASpec(init_type="true").init_type == "default"


def test_scale():
    assert LoRASpec(rank=16).scale == 1
    assert LoRASpec(rank=256, alpha=32).scale == 0.125
    assert LoRASpec(rank=256, alpha=32, use_rslora=True).scale == 2


@pytest.mark.parametrize(
    "bad",
    [
        {"rank": 0},
        {"rank": -1},
        {"rank": True},
        {"rank": 2.5},
        {"rank": 5000},
        {"alpha": 0},
        {"alpha": math.nan},
        {"alpha": math.inf},
        {"alpha": -3},
        {"dropout": 1.0},
        {"dropout": -0.1},
        {"targets": ()},
        {"targets": "to_q"},
        {"init_type": "pissa"},
        {"init_type": "loftq"},
        {"init_type": False},
    ],
)
def test_bad_specs(bad):
    with pytest.raises(ConfigError) as error:
        LoRASpec(**bad)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ("to_qq", "matches no module of this model; did you mean 'to_q'"),
        ("", "empty"),
        ("attn", "not a linear layer but Attention"),
        ("ff.depth_conv", "depthwise"),
        ("ff.depth_conv.conv", "depthwise"),
        ("conv", "not a linear layer but Conv1d"),
        ("lyric_embs", "not a linear layer but Embedding"),
        ("o_q", "matches no module"),
        (
            "nolayer",
            r"\(peft_lora_target_modules\) 'nolayer' matches no module .*; name linear layers of it: .*to_k",
        ),
    ],
)
def test_targets_that_cannot_be(target, says):
    with pytest.raises(ConfigError, match=says):
        inject(make(), LoRASpec(targets=("to_q", target)))


def test_targets_are_suffixes_or_whole_paths():
    assert list(find_targets(make(), ("transformer_blocks.1.attn.to_q",))) == [
        "transformer_blocks.1.attn.to_q"
    ]
    assert len(find_targets(make(), ("cross_attn.to_q", "cross_attn.to_q"))) == 2
    assert len(find_targets(make("q8"), LORA.presets["attn_qkv"])) == 16
    assert list(find_targets(make(), ("final_layer.linear",))) == ["final_layer.linear"]


def test_speaker_embedder_only_when_asked_and_with_a_note():
    assert not idle_targets(make(), LoRASpec().targets)
    assert not any("speaker" in path for path in inject(make(), LoRASpec()))
    spec = LoRASpec(targets=LORA.presets["attn_qkv+linear_qkv+speech_embedder"])
    assert "no gradient" in idle_targets(make(), spec.targets)[0]
    assert "speaker_embedder" in inject(make(), spec)


def test_injecting_twice_is_refused():
    model = trained(LoRASpec(rank=4))
    with pytest.raises(ConfigError, match="already"):
        inject(model, LoRASpec(rank=4))


def test_dropout_follows_its_key_also_through_a_checkpoint():
    model = trained(LoRASpec(rank=4, dropout=0.5))
    quiet = model(TOKENS)
    model.train()
    with pytest.raises(RuntimeError, match="seed_dropout"):
        model(TOKENS)

    def run(key, checkpointed):
        seed_dropout(model, mx.random.key(key))

        def loss(parameters):
            model.update(parameters)
            return model(TOKENS).square().mean()

        f = mx.checkpoint(loss) if checkpointed else loss
        return mx.value_and_grad(lambda p: f(p))(model.trainable_parameters())

    first, again, other = run(1, False), run(1, True), run(2, False)
    assert mx.array_equal(first[0], again[0])
    assert first[0] != other[0]
    for (name, a), (_, b) in zip(tree_flatten(first[1]), tree_flatten(again[1]), strict=True):
        assert mx.allclose(a, b, rtol=1e-5, atol=1e-7), name
    model.eval()
    assert mx.array_equal(quiet, model(TOKENS))


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_what_dropout_keeps_makes_up_for_what_it_drops(p):
    """A and B the identity: the change is the input itself, a share p of it zero and the rest 1/(1 − p)."""
    linear = nn.Linear(16, 16)
    layer = LoRALinear(linear, LoRASpec(rank=16, dropout=p), mx.random.key(0))
    layer.lora_a, layer.lora_b = mx.eye(16), mx.eye(16)
    seed_dropout(layer, mx.random.key(3))
    x = mx.ones((400, 16))
    change = layer(x) - linear(x)
    kept = mx.abs(change) > 1e-3
    assert mx.allclose(change, mx.where(kept, 1 / (1 - p), 0.0), atol=1e-5)
    assert abs(kept.mean().item() - (1 - p)) < 0.03


@pytest.mark.parametrize("kind", ["float32", "q8"])
@pytest.mark.parametrize("dora", [False, True])
def test_init_lora_is_the_same_update_under_another_rank_and_alpha(kind, dora):
    source = trained(LoRASpec(rank=3, alpha=7, use_rslora=True, use_dora=dora), kind)
    weights = from_model(source, LoRASpec(rank=3))
    model = make(kind)
    inject(model, LoRASpec(rank=8, alpha=2, use_dora=dora), seed=4)
    load_adapters(model, weights)
    wanted, got = source(TOKENS).astype(mx.float32), model(TOKENS).astype(mx.float32)
    assert mx.abs(wanted - got).max() < (1e-5 if kind == "float32" else 0.05) * mx.abs(wanted).max()
    layer = adapter_modules(model)["transformer_blocks.0.attn.to_q"]
    assert mx.abs(layer.lora_a[:, 3:]).max() > 0 and mx.abs(layer.lora_b[3:]).max() == 0


def test_plain_lora_starts_a_dora_exactly():
    source = trained(LoRASpec(rank=4))
    model = make()
    inject(model, LoRASpec(rank=4, use_dora=True))
    load_adapters(model, from_model(source, LoRASpec(rank=4)))
    assert mx.allclose(source(TOKENS), model(TOKENS), rtol=1e-5, atol=1e-6)


def test_dora_follows_a_base_that_is_trained_too():
    """A lyrics embedder under DoRA: ‖W‖ is not what it was when the adapter came."""
    model = make()
    inject(model, LoRASpec(rank=4, use_dora=True))
    train_full(model)
    before = model(TOKENS)
    assert mx.array_equal(before, make()(TOKENS))
    disturb(model)
    layer = adapter_modules(model)["lyric_encoder.encoders.0.self_attn.linear_q"]
    layer.linear.weight = 3 * layer.linear.weight
    x = mx.random.normal((5, 64), key=mx.random.key(2))
    adapted = layer.linear.weight + layer.scale * (layer.lora_b.T @ layer.lora_a.T)
    adapted = adapted * (layer.m / mx.linalg.norm(adapted, axis=1))[:, None]
    assert mx.allclose(layer(x), x @ adapted.T + layer.linear.bias, rtol=1e-4, atol=1e-5)
    assert "lyric_encoder.encoders.0.self_attn.linear_q.linear.weight" in dict(
        tree_flatten(model.trainable_parameters())
    )


def test_init_lora_that_does_not_fit():
    weights = from_model(trained(LoRASpec(rank=8, use_dora=True)), LoRASpec(rank=8))
    for spec, says in (
        (LoRASpec(rank=4, use_dora=True), "lora_rank"),
        (LoRASpec(rank=8), "use_dora"),
        (LoRASpec(rank=8, use_dora=True, targets=("to_q",)), "does not train"),
    ):
        model = make()
        inject(model, spec)
        with pytest.raises(ConfigError, match=says):
            load_adapters(model, weights)
    assert adapter_modules(make()) == {}


def test_init_lora_names_all_the_settings_that_it_needs():
    """Upstream's recipe trains the speaker embedder too, at rank 256."""
    official = LoRASpec(rank=16, targets=LORA.presets["attn_qkv+linear_qkv+speech_embedder"], use_dora=True)
    weights = from_model(trained(official), official)
    model = make()
    inject(model, LoRASpec(rank=4))
    with pytest.raises(ConfigError) as error:
        load_adapters(model, weights, "init_lora=official.safetensors")
    message = str(error.value)
    assert "\n" not in message and "modules that this run does not train: 'speaker_embedder'" in message
    wanted = "acestep_lora_target=attn_qkv+linear_qkv+speech_embedder, lora_rank=16, use_dora=true"
    assert message.endswith(f"; to start from it set {wanted}")


@pytest.mark.parametrize(
    ("file", "run", "advice"),
    [
        (("linear_q", "to_q"), LORA.presets["attn_qkv"], "acestep_lora_target=attn_qkv+linear_qkv"),
        (
            ("speaker_embedder",),
            LORA.default_targets,
            "acestep_lora_target=attn_qkv+linear_qkv+speech_embedder",
        ),
        (("lyric_proj", "to_q"), ("to_q",), "peft_lora_target_modules=lyric_proj,to_q"),
        (("inverted_conv.conv", "to_out.0"), LORA.default_targets, "to_v,inverted_conv.conv"),
    ],
)
def test_the_targets_that_init_lora_names_are_enough(file, run, advice):
    weights = from_model(trained(LoRASpec(rank=4, targets=file)), LoRASpec(rank=4))
    model = make()
    inject(model, LoRASpec(rank=4, targets=run))
    with pytest.raises(ConfigError, match="to start from it set") as error:
        load_adapters(model, weights)
    assert advice in str(error.value)
    key, _, value = str(error.value).rpartition(" set ")[2].partition("=")
    targets = LORA.presets[value] if key == "acestep_lora_target" else tuple(value.split(","))
    model = make()
    inject(model, LoRASpec(rank=4, targets=targets))
    load_adapters(model, weights)


def test_the_largest_rank_of_init_lora_is_named():
    weights = from_model(trained(LoRASpec(rank=8)), LoRASpec(rank=8))
    for i, module in enumerate(weights.modules.values()):
        module.a, module.b = module.a[: 5 + i % 4], module.b[:, : 5 + i % 4]
    model = make()
    inject(model, LoRASpec(rank=4))
    with pytest.raises(ConfigError, match=r"to start from it set lora_rank=8$"):
        load_adapters(model, weights)


def test_no_two_layers_drop_the_same_inputs():
    model = trained(LoRASpec(rank=4, dropout=0.5))
    seed_dropout(model, mx.random.key(7))
    keys = [tuple(layer._dropout_key.tolist()) for layer in adapter_modules(model).values()]
    assert len(keys) > 8 and len(set(keys)) == len(keys)
