"""The transformer by itself: configs, precisions, masks, cached keys and values, checkpointing."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.utils import tree_flatten, tree_map

from acestep_mlx.errors import CheckpointError
from acestep_mlx.families.v1 import dit, lyric_encoder
from acestep_mlx.families.v1.attention import rope_table, within
from acestep_mlx.families.v1.dit import ACEStepTransformer, TransformerConfig
from acestep_mlx.families.v1.lyric_encoder import rel_shift

from .tiny import tiny

CONFIG = tiny(TransformerConfig)
# The released model's file, as upstream writes it.
RELEASED = {
    "_class_name": "Transformer2DModel",
    "_diffusers_version": "0.27.2",
    "in_channels": 8,
    "num_layers": 24,
    "inner_dim": 2560,
    "attention_head_dim": 128,
    "num_attention_heads": 20,
    "mlp_ratio": 2.5,
    "out_channels": 8,
    "max_position": 32768,
    "rope_theta": 1000000.0,
    "speaker_embedding_dim": 512,
    "text_embedding_dim": 768,
    "ssl_encoder_depths": [8, 8],
    "ssl_names": ["mert", "m-hubert"],
    "ssl_latent_dims": [1024, 768],
    "lyric_encoder_vocab_size": 6693,
    "lyric_hidden_size": 1024,
    "patch_size": [16, 1],
    "max_height": 16,
    "max_width": 32768,
}


@pytest.fixture(scope="module")
def model() -> ACEStepTransformer:
    mx.random.seed(0)
    model = ACEStepTransformer(CONFIG)
    model.update(tree_map(lambda p: p + 0.1 * mx.random.normal(p.shape), model.parameters()))
    mx.eval(model.parameters())
    return model


def inputs(batch: int = 2, frames: int = 12, text: int = 5, lyrics: int = 6) -> dict[str, mx.array]:
    key = mx.random.split(mx.random.key(1), 5)
    return {
        "hidden_states": mx.random.normal((batch, 8, 16, frames), key=key[0]),
        "attention_mask": mx.ones((batch, frames)),
        "encoder_text_hidden_states": mx.random.normal((batch, text, CONFIG.text_embedding_dim), key=key[1]),
        "text_attention_mask": mx.ones((batch, text)),
        "speaker_embeds": mx.zeros((batch, CONFIG.speaker_embedding_dim)),
        "lyric_token_idx": mx.random.randint(0, CONFIG.lyric_encoder_vocab_size, (batch, lyrics), key=key[2]),
        "lyric_mask": mx.ones((batch, lyrics)),
        "timestep": mx.array([900.0, 20.0][:batch]),
    }


def test_released_config() -> None:
    config = TransformerConfig.from_dict(RELEASED)
    assert config == TransformerConfig()
    assert (config.dim, config.ff_dim) == (2560, 6400)
    assert TransformerConfig.from_dict(json.loads(json.dumps(asdict(config)))) == config


def test_the_default_model_has_the_released_models_parameters() -> None:
    sizes = {k: v.size for k, v in tree_flatten(ACEStepTransformer(TransformerConfig()).parameters())}
    assert not any("add_" in k for k in sizes)
    assert 2.5e9 < sum(sizes.values()) < 2.7e9


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"qk_norm": "rms_norm"}, "unknown key 'qk_norm'"),
        ({"num_layer": 24}, "did you mean 'num_layers'"),
        ({"patch_size": [16, 2]}, "patch_size"),
        ({"num_layers": 0}, "num_layers must be between 1 and 131072, got 0"),
        ({"rope_theta": "big"}, "rope_theta"),
        ({"num_attention_heads": 2.5}, "num_attention_heads"),
    ],
)
def test_a_config_that_is_not_understood_is_refused(change: dict, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        TransformerConfig.from_dict({**RELEASED, **change})


def test_another_models_config_is_refused() -> None:
    with pytest.raises(CheckpointError, match="num_layers"):
        TransformerConfig.from_dict({"in_channels": 8})


@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16])
def test_half_precision_is_near_float32(model: ACEStepTransformer, dtype: mx.Dtype) -> None:
    half = ACEStepTransformer(CONFIG)
    half.update(tree_map(lambda p: p.astype(dtype), model.parameters()))
    given = inputs()
    given["attention_mask"][1, 7:] = 0
    given["lyric_mask"][1] = 0
    expected, got = model(**given), half(**given)
    assert got.dtype == dtype
    error = mx.linalg.norm((got.astype(mx.float32) - expected).flatten()) / mx.linalg.norm(expected.flatten())
    assert error.item() < (0.05 if dtype == mx.bfloat16 else 0.01)


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16, mx.float16])
def test_gradients_are_finite_where_everything_is_masked(model: ACEStepTransformer, dtype: mx.Dtype) -> None:
    half = ACEStepTransformer(CONFIG)
    half.update(tree_map(lambda p: p.astype(dtype), model.parameters()))
    given = inputs()
    given["attention_mask"][0, 1:] = 0
    given["text_attention_mask"][:] = 0
    given["lyric_mask"][:] = 0

    def loss(params: dict) -> mx.array:
        half.update(params)
        return mx.mean(mx.square(half(**given).astype(mx.float32)))

    value, gradients = mx.value_and_grad(loss)(half.trainable_parameters())
    assert mx.isfinite(value).item()
    for name, g in tree_flatten(gradients):
        assert mx.all(mx.isfinite(g)).item(), name


@pytest.mark.parametrize("layer", ["attn", "cross_attn"])
def test_padding_frames_are_neither_heard_nor_answered(model: ACEStepTransformer, layer: str) -> None:
    """A song's frames attend as they do without the padding behind them; a frame of padding gets nothing."""
    block, width = model.transformer_blocks[0], CONFIG.dim
    attend = getattr(block, layer)
    x, states = (mx.random.normal((1, n, width), key=mx.random.key(n)) for n in (9, 7))
    tables = [rope_table(n, CONFIG.attention_head_dim, CONFIG.rope_theta) for n in (9, 6, 7)]

    def run(x: mx.array, mask: mx.array | None, rope: Any) -> mx.array:
        if layer == "attn":
            return attend(x, within(mask, rope))
        return attend(x, attend.keys_values(states, tables[2]), mask, None, rope)

    padded = run(x, (mx.arange(9) < 6)[None], tables[0])
    assert mx.allclose(padded[:, :6], run(x[:, :6], None, tables[1]), atol=1e-5)
    assert mx.allclose(padded[:, 6:], attend.to_out[0](mx.zeros((1, 3, width))), atol=1e-6)


def test_padding_tokens_change_nothing(model: ACEStepTransformer) -> None:
    given = inputs(batch=1)
    expected = model(**given)
    pad = {"encoder_text_hidden_states": (5, "text_attention_mask"), "lyric_token_idx": (6, "lyric_mask")}
    for name, (length, mask) in pad.items():
        given[name] = mx.concatenate([given[name], 0 * given[name][:, :2] + 3], axis=1)
        given[mask] = (mx.arange(length + 2) < length)[None].astype(mx.int32)
    # Text padding moves the lyrics to later positions, so only the lyrics may be padded freely.
    given["encoder_text_hidden_states"] = given["encoder_text_hidden_states"][:, :5]
    given["text_attention_mask"] = given["text_attention_mask"][:, :5]
    assert mx.allclose(model(**given), expected, atol=1e-4)


def test_cached_keys_and_values_are_the_same_computation(model: ACEStepTransformer) -> None:
    given = inputs()
    latents, frames, timestep = (given.pop(k) for k in ("hidden_states", "attention_mask", "timestep"))
    states, mask = model.encode(**given)
    expected = model.decode(latents, frames, states, mask, timestep)
    cached = model.decode(latents, frames, None, mask, timestep, cross_kv=model.cross_kv(states))
    assert mx.array_equal(cached, expected)


def test_masks_may_be_left_out_where_all_counts(model: ACEStepTransformer) -> None:
    given = inputs()
    latents, frames, timestep = (given.pop(k) for k in ("hidden_states", "attention_mask", "timestep"))
    states, mask = model.encode(**given)
    expected = model.decode(latents, frames, states, mask, timestep)
    assert mx.allclose(model.decode(latents, None, states, None, timestep), expected, atol=1e-5)


def test_too_many_frames_are_refused() -> None:
    small = ACEStepTransformer(replace(CONFIG, max_position=8))
    with pytest.raises(ValueError, match="12 frames exceed the model's 8 positions"):
        small(**inputs())


@pytest.mark.parametrize("length", [1, 2, 5])
def test_rel_shift_is_its_formula(length: int) -> None:
    x = mx.random.normal((2, 3, length, 2 * length - 1))
    got = rel_shift(x)
    for i in range(length):
        for j in range(length):
            assert mx.array_equal(got[:, :, i, j], x[:, :, i, length - 1 - i + j])


class _Adapter(nn.Module):
    """A frozen linear layer with a trainable low-rank part and dropout from a key of its own."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.linear = linear
        self.a = mx.random.normal((linear.weight.shape[1], 3))
        self.b = mx.random.normal((3, linear.weight.shape[0]))
        self._key = mx.random.key(linear.weight.size)

    def __call__(self, x: mx.array) -> mx.array:
        keep = mx.random.bernoulli(0.7, x.shape, key=self._key)
        return self.linear(x) + ((x * keep) @ self.a) @ self.b


@pytest.fixture(scope="module")
def adapted(model: ACEStepTransformer) -> ACEStepTransformer:
    adapted = ACEStepTransformer(CONFIG)
    adapted.update(model.parameters())
    adapted.freeze()
    mx.random.seed(5)
    for block in adapted.transformer_blocks:
        block.attn.to_q = _Adapter(block.attn.to_q)
        block.cross_attn.to_k = _Adapter(block.cross_attn.to_k)
        block.ff.inverted_conv.conv = _Adapter(block.ff.inverted_conv.conv)
    for layer in adapted.lyric_encoder.encoders:
        layer.self_attn.linear_q = _Adapter(layer.self_attn.linear_q)
    for module in adapted.modules():
        if isinstance(module, _Adapter):
            module.unfreeze(keys=["a", "b"], recurse=False)
    adapted.train()
    mx.eval(adapted.parameters())
    return adapted


@pytest.mark.parametrize("compiled", [False, True])
def test_checkpointing_changes_memory_only(adapted: ACEStepTransformer, compiled: bool) -> None:
    """Same loss and gradients with 0, 1 or all blocks checkpointed; only the adapters get gradients."""
    given = inputs()
    runs = []
    for blocks in (0, 1, 2):
        adapted.checkpoint_blocks = blocks
        step = nn.value_and_grad(adapted, lambda given: mx.mean(mx.square(adapted(**given))))
        if compiled:
            step = mx.compile(step, inputs=[adapted.state], outputs=[adapted.state])
        value, gradients = step(given)
        runs.append((value.item(), dict(tree_flatten(gradients))))
    assert runs[0][1] and all(name.endswith((".a", ".b")) for name in runs[0][1])
    for value, gradients in runs[1:]:
        assert value == pytest.approx(runs[0][0], rel=1e-6)
        assert gradients.keys() == runs[0][1].keys()
        for name, g in gradients.items():
            expected = runs[0][1][name]
            assert mx.linalg.norm(g - expected).item() <= 1e-4 * mx.linalg.norm(expected).item(), name


@pytest.mark.parametrize("blocks", [0, 1, 2, 5])
def test_as_many_blocks_are_checkpointed_as_asked_for(
    adapted: ACEStepTransformer, blocks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first ones, and the whole lyric encoder with any of them."""
    seen: list[nn.Module] = []
    for module in (dit, lyric_encoder):
        monkeypatch.setattr(module, "checkpointed", lambda one: seen.append(one) or one)
    monkeypatch.setattr(adapted, "checkpoint_blocks", blocks)
    adapted(**inputs())
    lyrics = adapted.lyric_encoder.encoders if blocks else []
    wanted = [*lyrics, *adapted.transformer_blocks[:blocks]]
    assert len(seen) == len(wanted) and all(a is b for a, b in zip(seen, wanted, strict=True))
