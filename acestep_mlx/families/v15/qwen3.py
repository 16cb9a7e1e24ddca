"""The text encoder of ACE-Step 1.5: Qwen3-Embedding (arXiv 2506.05176), a causal transformer.

Its layers are those of the condition encoder; parameter names are transformers' `Qwen3Model`'s. Prompts go
through all of it, lyrics through `embed_tokens` alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import mlx.core as mx
import mlx.nn as nn

from ...errors import CheckpointError
from ...io.schema import show
from ...nn.activations import additive
from ...nn.config import MANY
from ...nn.foreign_config import check_leftover
from .config import FULL, LayerConfig, with_rope_theta
from .layers import EncoderLayer, rope_table

#: keys that choose a computation, and the only value that this file computes
FIXED = {"model_type": "qwen3", "hidden_act": "silu", "use_sliding_window": False, "rope_scaling": None}
#: keys that change nothing here; the last two have no effect where no layer slides
BOOKKEEPING = {
    "architectures", "attention_dropout", "bos_token_id", "chunk_size_feed_forward", "dtype", "eos_token_id",
    "id2label", "initializer_range", "label2id", "max_position_embeddings", "output_attentions",
    "output_hidden_states", "pad_token_id", "problem_type", "return_dict", "tie_word_embeddings",
    "torch_dtype", "transformers_version", "use_cache", "max_window_layers", "sliding_window",
}  # fmt: skip


@dataclass(frozen=True)
class Qwen3Config(LayerConfig):
    """Sizes; the defaults are Qwen3-Embedding-0.6B's."""

    hidden_size: int = 1024
    intermediate_size: int = 3072
    num_hidden_layers: int = 28
    vocab_size: int = 151669

    NAME: ClassVar = "text encoder"
    REPEATED: ClassVar = ("num_hidden_layers",)
    LIMITS: ClassVar = {**LayerConfig.LIMITS, "vocab_size": MANY}
    # transformers' class has other defaults
    REQUIRED: ClassVar = (
        "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
        "head_dim", "vocab_size", "rope_theta",
    )  # fmt: skip

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Qwen3Config:
        """From transformers' config.json (or our own); CheckpointError names what it does not understand."""
        values = with_rope_theta(cls.NAME, values)
        kinds = values.get("layer_types")
        fixed = {**FIXED, "layer_types": [FULL] * (len(kinds) if isinstance(kinds, list) else 1)}
        wrong = [
            f"{key} is {show(values[key])}, only {show(value)} is supported"
            for key, value in fixed.items()
            if values.get(key) is not None and values[key] != value
        ]
        if wrong:
            raise CheckpointError(f"{cls.NAME} config: {'; '.join(wrong)}")
        known = cls.fields()
        sizes = {key: value for key, value in values.items() if key in known}
        done = {*known, *fixed, *BOOKKEEPING}
        leftover = {k: v for k, v in values.items() if k not in done and not k.startswith("_")}
        check_leftover(cls.NAME, leftover, "Qwen3Config", values.get("transformers_version"), list(known))
        return super().from_dict(sizes)


class Qwen3Encoder(nn.Module):
    """Tokens → hidden states. `embed_tokens` gives (B, L, D) of ids (B, L), unscaled."""

    def __init__(self, config: Qwen3Config) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = [EncoderLayer(config) for _ in range(config.num_hidden_layers)]
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def __call__(self, input_ids: mx.array, attention_mask: mx.array | None = None) -> mx.array:
        """ids (B, L) and mask (B, L), 1 where a token counts → states after the last norm (B, L, D).

        A token sees those before it and itself. Rows outside the mask are finite.
        """
        x: mx.array = self.embed_tokens(input_ids)
        L, config = x.shape[1], self.config
        at = mx.arange(L)
        seen = (at[None] <= at[:, None])[None, None]  # [1, 1, L, L]
        if attention_mask is not None:
            seen = seen & (attention_mask > 0)[:, None, None]
        rope, mask = rope_table(L, config.head_dim, config.rope_theta), additive(seen, x.dtype)
        for layer in self.layers:
            x = layer(x, seen=mask, rope=rope)
        x = self.norm(x)
        return x
