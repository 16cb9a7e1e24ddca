"""The prompt encoder by itself: configs and precisions; its numbers are held in tests/parity."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import mlx.core as mx
import pytest
from mlx.utils import tree_map

from acestep_mlx.errors import CheckpointError
from acestep_mlx.families.v1.umt5 import UMT5Config, UMT5Encoder

from .tiny import tiny

# umt5-base's file, as the checkpoint carries it.
RELEASED = {
    "architectures": ["UMT5ForConditionalGeneration"],
    "d_ff": 2048,
    "d_kv": 64,
    "d_model": 768,
    "decoder_start_token_id": 0,
    "dense_act_fn": "gelu_new",
    "dropout_rate": 0.1,
    "eos_token_id": 1,
    "feed_forward_proj": "gated-gelu",
    "initializer_factor": 1.0,
    "is_encoder_decoder": True,
    "is_gated_act": True,
    "layer_norm_epsilon": 1e-06,
    "model_type": "umt5",
    "num_decoder_layers": 12,
    "num_heads": 12,
    "num_layers": 12,
    "output_past": True,
    "pad_token_id": 0,
    "relative_attention_max_distance": 128,
    "relative_attention_num_buckets": 32,
    "scalable_attention": True,
    "tie_word_embeddings": False,
    "tokenizer_class": "T5Tokenizer",
    "torch_dtype": "float32",
    "transformers_version": "4.31.0",
    "use_cache": True,
    "vocab_size": 256384,
}


def test_released_config() -> None:
    config = UMT5Config.from_dict(RELEASED)
    assert config == UMT5Config() == UMT5Config.from_dict(asdict(config))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"feed_forward_proj": "relu"}, "feed_forward_proj is 'relu'"),
        ({"dense_act_fn": "silu"}, "dense_act_fn"),
        ({"model_type": "t5"}, "model_type is 't5'"),
        ({"num_layer": 3}, "unknown key 'num_layer'"),
        ({"d_kv": -1}, "d_kv must be between 1 and 131072, got -1"),
    ],
)
def test_a_config_that_is_not_understood_is_refused(change: dict, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        UMT5Config.from_dict({**RELEASED, **change})


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16, mx.float16])
def test_finite_in_every_precision_also_with_nothing_to_read(dtype: mx.Dtype) -> None:
    mx.random.seed(0)
    model = UMT5Encoder(tiny(UMT5Config))
    model.update(tree_map(lambda p: p.astype(dtype), model.parameters()))
    ids = mx.random.randint(0, 384, (2, 7))
    out = model(ids, mx.array([[1] * 7, [0] * 7]))
    assert out.dtype == dtype and out.shape == (2, 7, 32)
    assert mx.all(mx.isfinite(out)).item()


@pytest.mark.parametrize("weight", ["SelfAttention.o", "DenseReluDense.wo"])
def test_sums_beyond_float16_stay_within_it(weight: str) -> None:
    """A residual of 60,000 twice over: in float16 it is held at the largest number, and all that follows is
    finite; in float32 it is what it is."""
    mx.random.seed(0)
    model = UMT5Encoder(tiny(UMT5Config))
    layer, name = model.encoder.block[0].layer["SelfAttention" not in weight], weight.split(".")
    projection = getattr(getattr(layer, name[0]), name[1])
    projection.weight = projection.weight * (3e4 / mx.abs(projection.weight).mean())
    ids, mask = mx.random.randint(0, 384, (1, 7)), mx.ones((1, 7))
    seen: list[float] = []
    block = type(model.encoder.block[0])
    original = block.__call__

    def watched(self: Any, *arguments: Any) -> mx.array:
        out = original(self, *arguments)
        seen.append(mx.abs(out.astype(mx.float32)).max().item())
        return out

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(block, "__call__", watched)
        for dtype in (mx.float32, mx.float16):
            model.update(tree_map(lambda p, dtype=dtype: p.astype(dtype), model.parameters()))
            assert mx.all(mx.isfinite(model(ids, mask))).item()
    layers = len(seen) // 2
    assert seen[0] > 2 * 65504 and seen[layers] == 65504, "the clamp had something to do"


def test_padding_changes_nothing() -> None:
    mx.random.seed(0)
    model = UMT5Encoder(tiny(UMT5Config))
    ids = mx.random.randint(0, 384, (1, 9))
    short = model(ids[:, :6], mx.ones((1, 6)))
    padded = model(ids, mx.array([[1] * 6 + [0] * 3]))[:, :6]
    assert mx.allclose(short, padded, atol=1e-5)
