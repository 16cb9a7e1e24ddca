"""Semantic tokens of ACE-Step 1.5: 25 Hz latents → 5 Hz tokens of 64,000 codes, and back to 25 Hz.

Five frames are pooled by a small transformer and quantised number by number (FSQ, arXiv 2309.15505). Covers
are generated from what comes back. Source: `AceStepAudioTokenizer` and `AceStepAudioTokenDetokenizer` of
diffusers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import ClassVar

import mlx.core as mx
import mlx.nn as nn

from .config import EncoderConfig, alternating
from .layers import EncoderStack


@dataclass(frozen=True)
class DetokenizerConfig(EncoderConfig):
    """Sizes; the defaults are the released models'."""

    audio_acoustic_hidden_dim: int = 64
    pool_window_size: int = 5
    num_attention_pooler_hidden_layers: int = 2

    NAME: ClassVar = "audio detokenizer"
    REPEATED: ClassVar = ("num_attention_pooler_hidden_layers",)


@dataclass(frozen=True)
class TokenizerConfig(DetokenizerConfig):
    """Sizes; the defaults are the released models'. `fsq_input_levels`: values of each number of a code."""

    fsq_dim: int = 2048
    fsq_input_levels: Sequence[int] = (8, 8, 8, 5, 5, 5)
    fsq_input_num_quantizers: int = 1

    NAME: ClassVar = "audio tokenizer"

    def problems(self) -> list[str]:
        """Sizes that do not go together."""
        problems = super().problems()
        if self.fsq_dim != self.hidden_size:
            problems.append(f"fsq_dim {self.fsq_dim} is not hidden_size {self.hidden_size}")
        if min(self.fsq_input_levels) < 2 or prod(self.fsq_input_levels) > 1 << 24:
            problems.append(f"fsq_input_levels {list(self.fsq_input_levels)} must be 2 or more each")
        if self.fsq_input_num_quantizers != 1:
            problems.append(f"fsq_input_num_quantizers is {self.fsq_input_num_quantizers}, only 1 works")
        return problems


class Quantizer(nn.Module):
    """Finite scalar quantisation: every number of a code becomes one of its levels between −1 and 1."""

    def __init__(self, dim: int, levels: Sequence[int]) -> None:
        super().__init__()
        self._levels = tuple(levels)
        self.project_in = nn.Linear(dim, len(levels))
        self.project_out = nn.Linear(len(levels), dim)

    def ids(self, x: mx.array) -> mx.array:
        """Features (..., D) → the number of the nearest code, (..., 1) int32; computed in float32.

        Soft clamp to a little more than ±1, hard clamp, then ⌊· + ½⌋, also for an even number of levels.
        """
        weight, bias = (p.astype(mx.float32) for p in (self.project_in.weight, self.project_in.bias))
        steps = mx.array(self._levels, dtype=mx.float32) - 1
        room = 1 + 1 / steps
        code = mx.tanh((x.astype(mx.float32) @ weight.T + bias) / room) * room
        level = mx.floor(steps * (mx.clip(code, -1, 1) + 1) / 2 + 0.5).astype(mx.int32)
        return (level * mx.array(self._bases())).sum(axis=-1, keepdims=True)

    def codes(self, ids: mx.array) -> mx.array:
        """Numbers of codes (..., 1) → features (..., D) in the weights' dtype; computed in float32."""
        weight, bias = (p.astype(mx.float32) for p in (self.project_out.weight, self.project_out.bias))
        levels = mx.array(self._levels)
        level = (ids.astype(mx.int32) // mx.array(self._bases())) % levels  # [..., 6]
        code = level.astype(mx.float32) * (2 / (levels.astype(mx.float32) - 1)) - 1
        return (code @ weight.T + bias).astype(self.project_out.weight.dtype)

    def _bases(self) -> list[int]:
        return [prod(self._levels[:i]) for i in range(len(self._levels))]


class Pooler(EncoderStack):
    """Five frames and a token of its own → that token's state."""

    def __init__(self, config: TokenizerConfig) -> None:
        layers = alternating(config.num_attention_pooler_hidden_layers)
        super().__init__(config, config.hidden_size, layers)
        self.special_token = mx.zeros((1, 1, config.hidden_size))

    def __call__(self, x: mx.array) -> mx.array:
        """(B, 5, D) → (B, D)."""
        B, _, D = x.shape
        token = mx.broadcast_to(self.special_token, (B, 1, D))
        return self.run(mx.concatenate([token, self.embed_tokens(x)], axis=1))[:, 0]


class AudioTokenizer(nn.Module):
    """Latents at 25 Hz → tokens at 5 Hz."""

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.config = config
        self.audio_acoustic_proj = nn.Linear(config.audio_acoustic_hidden_dim, config.hidden_size)
        self.attention_pooler = Pooler(config)
        self.quantizer = Quantizer(config.fsq_dim, config.fsq_input_levels)

    def __call__(self, latents: mx.array, silence: mx.array) -> tuple[mx.array, mx.array]:
        """latents (B, T, C), the last token filled up from silence (1, 4 or more, C).

        Gives what the tokens stand for, (B, ⌈T/5⌉, D) in the latents' dtype, and their numbers
        (B, ⌈T/5⌉, 1) int32.
        """
        B, T, C = latents.shape
        P = self.config.pool_window_size
        if T % P:
            filling = mx.broadcast_to(silence[:, : -T % P].astype(latents.dtype), (B, -T % P, C))
            latents = mx.concatenate([latents, filling], axis=1)
        x = self.audio_acoustic_proj(latents.reshape(-1, P, C).astype(self.audio_acoustic_proj.bias.dtype))
        ids = self.quantizer.ids(self.attention_pooler(x)).reshape(B, -1, 1)
        return self.quantizer.codes(ids).astype(latents.dtype), ids


class AudioDetokenizer(EncoderStack):
    """What tokens stand for, at 5 Hz → latents at 25 Hz."""

    def __init__(self, config: DetokenizerConfig) -> None:
        layers = alternating(config.num_attention_pooler_hidden_layers)
        super().__init__(config, config.hidden_size, layers)
        self.config = config
        self.special_tokens = mx.zeros((1, config.pool_window_size, config.hidden_size))
        self.proj_out = nn.Linear(config.hidden_size, config.audio_acoustic_hidden_dim)

    def __call__(self, tokens: mx.array) -> mx.array:
        """(B, N, D) → (B, 5·N, C) in the weights' dtype."""
        B, N, D = tokens.shape
        x = self.embed_tokens(tokens.astype(self.proj_out.bias.dtype)).reshape(B * N, 1, D)
        return self.proj_out(self.run(x + self.special_tokens)).reshape(B, -1, self.proj_out.weight.shape[0])
