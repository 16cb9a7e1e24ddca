"""The ACE-Step 1.5 transformer: noisy latents, their context, conditions and two times in, velocity out.

Two frames of the latents are one token. Layers alternate between self-attention to the neighbourhood and to
the whole song, each followed by cross-attention to [lyrics, timbre, text] and a SwiGLU. Source:
`AceStepTransformer1DModel` of diffusers and the original's `modeling_acestep_v15_base.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import mlx.core as mx
import mlx.nn as nn

from ...io.schema import choice, items, number, optional, text
from ...nn.activations import RMSNorm, additive
from ...nn.config import WIDTH
from ...nn.recompute import checkpointed
from ..v1.dit import timestep_features
from .config import FULL, SLIDING, StackConfig, alternating
from .layers import MLP, Attention, KeysValues, Rope, rope_table, sight
from .lora import LORA

TIME_CHANNELS = 256


@dataclass(frozen=True)
class TransformerConfig(StackConfig):
    """Sizes; the defaults are the released 2 B models'. `timestep_mu` and `_sigma`: of training."""

    num_hidden_layers: int = 24
    in_channels: int = 192
    audio_acoustic_hidden_dim: int = 64
    patch_size: int = 2
    layer_types: Sequence[str] | None = None  # None: alternating
    encoder_hidden_size: int | None = None  # width of the conditions; None: hidden_size
    is_turbo: bool = False
    model_version: str | None = None
    timestep_mu: float = -0.4
    timestep_sigma: float = 1.0

    NAME: ClassVar = "transformer"
    REPEATED: ClassVar = ("num_hidden_layers",)
    LIMITS: ClassVar = {
        **StackConfig.LIMITS, "timestep_mu": number(-20, 20), "timestep_sigma": number(0, 20),
        "layer_types": optional(items(choice(FULL, SLIDING), 1, 1024)),
        "encoder_hidden_size": optional(WIDTH), "model_version": optional(text),
    }  # fmt: skip
    REQUIRED: ClassVar = ("hidden_size", "num_hidden_layers")

    @property
    def blocks(self) -> int:
        """Layers that can be checkpointed."""
        return self.num_hidden_layers

    @property
    def kinds(self) -> tuple[str, ...]:
        """Of each layer: sliding or full."""
        return tuple(self.layer_types) if self.layer_types else alternating(self.num_hidden_layers)

    def stored(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Also which layers slide: the original says it, diffusers may leave it out."""
        return {**super().stored(given), "layer_types": list(self.kinds)}

    def problems(self) -> list[str]:
        """Sizes that do not go together."""
        problems = super().problems()
        C, layers = self.audio_acoustic_hidden_dim, self.num_hidden_layers
        if self.in_channels != 3 * C:
            problems.append(f"in_channels {self.in_channels} is not 3 · audio_acoustic_hidden_dim {C}")
        if len(self.kinds) != layers:
            problems.append(f"{len(self.kinds)} layer_types for {layers} layers")
        return problems


class TimestepEmbedding(nn.Module):
    """A time in [0, 1] as a vector, and as six vectors that modulate the layers."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(TIME_CHANNELS, dim)
        self.linear_2 = nn.Linear(dim, dim)
        self.time_proj = nn.Linear(dim, 6 * dim)

    def __call__(self, time: mx.array) -> tuple[mx.array, mx.array]:
        """time (B,) float32, which bfloat16 would round → (B, D) and (B, 6, D) in the weights' dtype."""
        features = timestep_features(1000.0 * time.astype(mx.float32), TIME_CHANNELS)
        hidden = self.linear_2(nn.silu(self.linear_1(features.astype(self.linear_1.bias.dtype))))
        return hidden, self.time_proj(nn.silu(hidden)).reshape(time.shape[0], 6, -1)


class Layer(nn.Module):
    """Self-attention and MLP, both modulated by the time, with cross-attention in between."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        D, eps = config.hidden_size, config.rms_norm_eps
        self.self_attn_norm = RMSNorm(D, eps=eps)
        self.self_attn = Attention(config)
        self.cross_attn_norm = RMSNorm(D, eps=eps)
        self.cross_attn = Attention(config)
        self.mlp_norm = RMSNorm(D, eps=eps)
        self.mlp = MLP(config)
        self.scale_shift_table = mx.zeros((1, 6, D))

    def __call__(
        self,
        x: mx.array,
        time: mx.array,
        states: mx.array | KeysValues,
        *,
        seen: mx.array | None,
        states_seen: mx.array | None,
        rope: Rope,
    ) -> mx.array:
        """x (B, L, D), time (B, 6, D), states (B, S, D) or their keys and values → (B, L, D)."""
        table = (self.scale_shift_table + time)[:, :, None]  # [B, 6, 1, D]
        shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = (table[:, i] for i in range(6))
        kv = states if isinstance(states, tuple) else self.cross_attn.keys_values(states)
        gradient = not isinstance(states, tuple)  # those of a song that is generated are kept
        moved = self.self_attn_norm(x) * (1 + scale) + shift
        x = x + gate * self.self_attn(moved, seen=seen, rope=rope, gradient=gradient)
        x = x + self.cross_attn(self.cross_attn_norm(x), kv, seen=states_seen, gradient=gradient)
        return x + gate_mlp * self.mlp(self.mlp_norm(x) * (1 + scale_mlp) + shift_mlp)


class ACEStep15Transformer(nn.Module):
    """The diffusion transformer of ACE-Step 1.5.

    `checkpoint_blocks`: how many of the layers compute their activations again in the backward pass instead
    of keeping them. `product_blocks`: how many after those do so too, but keep what their linear layers gave.
    """

    lora: ClassVar = LORA

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.checkpoint_blocks = 0
        self.product_blocks = 0
        D, C, P = config.hidden_size, config.audio_acoustic_hidden_dim, config.patch_size
        self.proj_in = nn.Conv1d(config.in_channels, D, P, stride=P)
        self.time_embed = TimestepEmbedding(D)
        self.time_embed_r = TimestepEmbedding(D)
        self.condition_embedder = nn.Linear(config.encoder_hidden_size or D, D)
        self.layers = [Layer(config) for _ in range(config.num_hidden_layers)]
        self.norm_out = RMSNorm(D, eps=config.rms_norm_eps)
        self.proj_out = nn.ConvTranspose1d(D, C, P, stride=P)
        self.scale_shift_table = mx.zeros((1, 2, D))

    @property
    def dtype(self) -> mx.Dtype:
        """The compute dtype: that of a weight which is never quantised."""
        return self.scale_shift_table.dtype

    def _patchify(self, frames: mx.array) -> mx.array:
        """(B, T, 3C) → (B, ⌈T/P⌉, D); kernel and stride are the patch, so it is a matrix product."""
        B, T, C = frames.shape
        P = self.config.patch_size
        patches = mx.pad(frames, [(0, 0), (0, -T % P), (0, 0)]).reshape(B, -1, P * C)
        return patches @ self.proj_in.weight.reshape(-1, P * C).T + self.proj_in.bias

    def _unpatchify(self, x: mx.array, frames: int) -> mx.array:
        """(B, L, D) → (B, frames, C)."""
        B, _, D = x.shape
        C, _, _ = self.proj_out.weight.shape  # [C, P, D]
        y = x @ self.proj_out.weight.swapaxes(0, 1).reshape(-1, D).T  # [B, L, P·C]
        return (y.reshape(B, -1, C) + self.proj_out.bias)[:, :frames]

    def cross_kv(self, encoder_hidden_states: mx.array) -> list[KeysValues]:
        """Each layer's keys and values of the conditions (B, S, D); once per song will do."""
        states = self.condition_embedder(encoder_hidden_states.astype(self.dtype))
        return [layer.cross_attn.keys_values(states) for layer in self.layers]

    def __call__(
        self,
        hidden_states: mx.array,
        timestep: mx.array,
        timestep_r: mx.array,
        encoder_hidden_states: mx.array | None,
        context_latents: mx.array,
        attention_mask: mx.array | None = None,
        encoder_attention_mask: mx.array | None = None,
        *,
        cross_kv: list[KeysValues] | None = None,
    ) -> mx.array:
        """Velocity ε − x0 (B, T, C) of noisy latents (B, T, C) at times t and r, (B,) in [0, 1].

        encoder_hidden_states (B, S, E), or their `cross_kv`; context_latents (B, T, 2C): source latents and
        the mask of what is to be generated. attention_mask (B, T) and encoder_attention_mask (B, S), 1 where
        a frame or row counts: with them a batch gives its songs' own numbers on their frames. Without them
        everything counts, padding too, as in the reference.
        """
        B, T, _ = hidden_states.shape
        frames = mx.concatenate([context_latents, hidden_states], axis=-1).astype(self.dtype)
        valid = None
        if attention_mask is not None:
            P, kept = self.config.patch_size, attention_mask > 0
            frames = mx.where(kept[..., None], frames, 0)  # what a song alone is padded with
            valid = mx.pad(kept, [(0, 0), (0, -T % P)]).reshape(B, -1, P).any(axis=-1)
        embedded, time = (a + b for a, b in zip(
            self.time_embed(timestep), self.time_embed_r(timestep - timestep_r), strict=True
        ))  # fmt: skip
        x = self._patchify(frames)  # [B, L, D]
        per_layer: Sequence[mx.array | KeysValues]
        if cross_kv is not None:
            per_layer = cross_kv
        elif encoder_hidden_states is not None:
            states = self.condition_embedder(encoder_hidden_states.astype(self.dtype))
            per_layer = [states] * len(self.layers)
        else:
            raise ValueError("the transformer needs encoder_hidden_states or cross_kv")
        mask = encoder_attention_mask
        states_seen = None if mask is None else additive((mask > 0)[:, None, None], self.dtype)
        L, config = x.shape[1], self.config
        full, sliding = sight(L, config.sliding_window, valid, self.dtype)
        rope = rope_table(L, config.head_dim, config.rope_theta)
        for i, (layer, kind, states_i) in enumerate(zip(self.layers, config.kinds, per_layer, strict=True)):
            run: Callable[..., mx.array] = layer
            if i < self.checkpoint_blocks:
                run = checkpointed(layer)
            elif i < self.checkpoint_blocks + self.product_blocks:
                run = checkpointed(layer, keep_products=True)
            seen = sliding if kind == SLIDING else full
            x = run(x, time, states_i, seen=seen, states_seen=states_seen, rope=rope)
        table = self.scale_shift_table + embedded[:, None]  # [B, 2, D]
        return self._unpatchify(self.norm_out(x) * (1 + table[:, 1:]) + table[:, :1], T)
