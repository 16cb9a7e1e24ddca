"""The UMT5 encoder that reads the prompt (Chung et al., arXiv 2304.09151).

Unlike T5, every layer has its own relative position bias. Attention scores are not scaled. Parameter names
are transformers' `UMT5EncoderModel`'s.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import mlx.core as mx
import mlx.nn as nn

from ...errors import CheckpointError
from ...io.schema import number, show, whole
from ...nn.config import MANY, ComponentConfig
from ...nn.foreign_config import check_leftover, transformers_defaults

# Keys of a Hugging Face config that say nothing about the encoder's computation, whatever their value: names,
# training, results, and what belongs to the decoder. The rest is for transformers' own class to judge.
BOOKKEEPING = {
    "architectures", "bos_token_id", "chunk_size_feed_forward", "classifier_dropout", "dropout_rate", "dtype",
    "eos_token_id", "id2label", "initializer_factor", "is_decoder", "is_encoder_decoder", "label2id",
    "output_attentions", "output_hidden_states", "output_past", "pad_token_id", "problem_type", "return_dict",
    "tie_word_embeddings", "tokenizer_class", "torch_dtype", "transformers_version", "use_cache",
}  # fmt: skip
DECODER = {"decoder_start_token_id", "num_decoder_layers", "scale_decoder_outputs"}
# Other names of our sizes in transformers' classes.
ALIASES = {
    "hidden_size": "d_model",
    "num_attention_heads": "num_heads",
    "num_hidden_layers": "num_layers",
    "head_dim": "d_kv",
}
# Keys that choose a computation, and the only values that this file computes.
FIXED: dict[str, tuple[Any, ...]] = {
    "model_type": ("umt5",),
    "feed_forward_proj": ("gated-gelu",),
    "is_gated_act": (True,),
    "dense_act_fn": ("gelu_new",),
    "scalable_attention": (True, False),  # in umt5-base's file, read by nothing
}


@dataclass(frozen=True)
class UMT5Config(ComponentConfig):
    """Sizes; the defaults are umt5-base's."""

    vocab_size: int = 256384
    d_model: int = 768
    d_kv: int = 64
    d_ff: int = 2048
    num_layers: int = 12
    num_heads: int = 12
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    layer_norm_epsilon: float = 1e-6

    NAME: ClassVar = "text encoder"
    REPEATED: ClassVar = ("num_layers",)
    LIMITS: ClassVar = {
        "vocab_size": MANY, "layer_norm_epsilon": number(0, 1),
        "relative_attention_num_buckets": whole(4, 4096), "relative_attention_max_distance": whole(2, 65536),
    }  # fmt: skip

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> UMT5Config:
        """From transformers' config.json (or our own); CheckpointError names what it does not understand.

        Keys that our tables leave over are judged by the installed transformers' `UMT5Config`; a size that
        the file leaves out has that class's default.
        """
        known = list(cls.fields())
        sizes: dict[str, Any] = {}
        leftover: dict[str, Any] = {}
        for key, value in values.items():
            name = ALIASES.get(key, key)
            if name in known:
                if sizes.setdefault(name, value) != value:
                    raise CheckpointError(
                        f"text encoder config: {key} is {show(value)}, but {name} is {show(sizes[name])}"
                    )
            elif key in FIXED:
                if value not in FIXED[key]:
                    raise CheckpointError(
                        f"text encoder config: {key} is {show(value)}, only {FIXED[key][0]!r} is supported"
                    )
            elif not key.startswith("_") and key not in BOOKKEEPING | DECODER:
                leftover[key] = value
        if "d_model" not in sizes:
            raise CheckpointError("text encoder config: 'd_model' is missing; is this a UMT5 encoder?")
        check_leftover("text encoder", leftover, "UMT5Config", values.get("transformers_version"), known)
        if missing := [name for name in known if name not in sizes]:
            _, defaults, _ = transformers_defaults("UMT5Config")
            sizes.update((name, defaults[name]) for name in missing)
        return super().from_dict(sizes)

    def stored(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """The sizes: what transformers' class has judged need not be judged again."""
        return asdict(self)

    def problems(self) -> list[str]:
        """Buckets that would be the same."""
        if self.relative_attention_max_distance > self.relative_attention_num_buckets // 4:
            return []
        return ["relative_attention_max_distance must exceed a quarter of the buckets"]


def distance_buckets(buckets: int, max_distance: int) -> list[int]:
    """Bucket of each distance 0 … max_distance, for one direction: exact while small, then logarithmic."""
    half = buckets // 2
    exact = half // 2
    table = list(range(exact))
    for distance in range(exact, max_distance + 1):
        step = math.log(distance / exact) / math.log(max_distance / exact) * (half - exact)
        table.append(min(exact + int(step), half - 1))
    return table


class SelfAttention(nn.Module):
    """Unscaled attention plus a learned bias by distance."""

    def __init__(self, config: UMT5Config) -> None:
        super().__init__()
        inner = config.num_heads * config.d_kv
        self.heads = config.num_heads
        self.q = nn.Linear(config.d_model, inner, bias=False)
        self.k = nn.Linear(config.d_model, inner, bias=False)
        self.v = nn.Linear(config.d_model, inner, bias=False)
        self.o = nn.Linear(inner, config.d_model, bias=False)
        self.relative_attention_bias = nn.Embedding(config.relative_attention_num_buckets, config.num_heads)

    def __call__(self, x: mx.array, mask: mx.array, buckets: mx.array, query_scale: float = 1.0) -> mx.array:
        """x (B, L, D), mask (B, 1, 1, L) boolean, buckets (L, L) int32 → (B, L, D)."""
        B, L, _ = x.shape
        q, k, v = (proj(x).reshape(B, L, self.heads, -1).swapaxes(1, 2) for proj in (self.q, self.k, self.v))
        if query_scale != 1.0:
            q = q * query_scale
        bias = self.relative_attention_bias(buckets).transpose(2, 0, 1)[None]  # (1, H, L, L)
        bias = mx.where(mask, bias.astype(x.dtype), mx.finfo(x.dtype).min)
        out = mx.fast.scaled_dot_product_attention(q, k, v, scale=1.0, mask=bias)
        return self.o(out.swapaxes(1, 2).reshape(B, L, -1))


class AttentionLayer(nn.Module):
    """Pre-norm attention (`layer.0` upstream)."""

    def __init__(self, config: UMT5Config) -> None:
        super().__init__()
        self.SelfAttention = SelfAttention(config)
        self.layer_norm = nn.RMSNorm(config.d_model, eps=config.layer_norm_epsilon)


class GatedGelu(nn.Module):
    """gelu(wi_0 x) · wi_1 x, projected back; the tanh form of GELU."""

    def __init__(self, config: UMT5Config) -> None:
        super().__init__()
        self.wi_0 = nn.Linear(config.d_model, config.d_ff, bias=False)
        self.wi_1 = nn.Linear(config.d_model, config.d_ff, bias=False)
        self.wo = nn.Linear(config.d_ff, config.d_model, bias=False)

    def __call__(self, x: mx.array) -> mx.array:
        return self.wo(nn.gelu_approx(self.wi_0(x)) * self.wi_1(x))


class FeedForwardLayer(nn.Module):
    """Pre-norm feed-forward (`layer.1` upstream)."""

    def __init__(self, config: UMT5Config) -> None:
        super().__init__()
        self.DenseReluDense = GatedGelu(config)
        self.layer_norm = nn.RMSNorm(config.d_model, eps=config.layer_norm_epsilon)


def _bounded(x: mx.array) -> mx.array:
    """UMT5 was trained in bfloat16 and leaves float16's range: stay within it, as transformers does."""
    return mx.clip(x, -65504.0, 65504.0) if x.dtype == mx.float16 else x


class Block(nn.Module):
    """Attention and feed-forward, each with its residual."""

    def __init__(self, config: UMT5Config) -> None:
        super().__init__()
        self.layer = [AttentionLayer(config), FeedForwardLayer(config)]

    def __call__(self, x: mx.array, mask: mx.array, buckets: mx.array, query_scale: float) -> mx.array:
        attention, feed_forward = self.layer
        x = _bounded(x + attention.SelfAttention(attention.layer_norm(x), mask, buckets, query_scale))
        return _bounded(x + feed_forward.DenseReluDense(feed_forward.layer_norm(x)))


class Stack(nn.Module):
    """The blocks and the last norm (`encoder` upstream)."""

    def __init__(self, config: UMT5Config) -> None:
        super().__init__()
        self.block = [Block(config) for _ in range(config.num_layers)]
        self.final_layer_norm = nn.RMSNorm(config.d_model, eps=config.layer_norm_epsilon)


class UMT5Encoder(nn.Module):
    """Prompt tokens → hidden states."""

    def __init__(self, config: UMT5Config) -> None:
        super().__init__()
        self.config = config
        self.shared = nn.Embedding(config.vocab_size, config.d_model)
        self.encoder = Stack(config)
        self._distance_buckets = mx.array(
            distance_buckets(config.relative_attention_num_buckets, config.relative_attention_max_distance)
        )

    def _buckets(self, length: int) -> mx.array:
        """(L, L): the row of the bias table for query i and key j; keys to the right have their half."""
        at = mx.arange(length)
        distance = at[None] - at[:, None]
        one_side = self._distance_buckets[mx.minimum(mx.abs(distance), self._distance_buckets.size - 1)]
        return one_side + (distance > 0) * (self.config.relative_attention_num_buckets // 2)

    def __call__(
        self,
        input_ids: mx.array,
        attention_mask: mx.array,
        *,
        query_scale: tuple[float, int, int] | None = None,
    ) -> mx.array:
        """ids (B, L) and mask (B, L), 1 where a token counts → last hidden states (B, L, d_model).

        `query_scale` (factor, first, last) scales the queries of blocks first … last−1.
        """
        x = self.shared(input_ids)
        mask = (attention_mask > 0)[:, None, None]
        buckets = self._buckets(input_ids.shape[1])
        factor, first, last = query_scale or (1.0, 0, 0)
        for i, block in enumerate(self.encoder.block):
            x = block(x, mask, buckets, factor if first <= i < last else 1.0)
        states: mx.array = self.encoder.final_layer_norm(x)
        return states
