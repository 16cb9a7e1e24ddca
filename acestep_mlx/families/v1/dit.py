"""The ACE-Step transformer: noisy latents, text, lyrics and a timestep in, velocity out.

Every frame of the latents is one token. Blocks are Sana's linear-attention blocks with adaptive norms, a
cross-attention to [speaker, text, lyrics] and a gated convolutional feed-forward. Parameter names are
upstream's, so that LoRA paths mean the same here and there. Arrays at the edge are laid out as upstream,
(B, C, H, T); inside everything is (B, T, D).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import mlx.core as mx
import mlx.nn as nn

from ...errors import CheckpointError
from ...io.schema import number
from ...nn.activations import gated_conv
from ...nn.config import MANY, ComponentConfig
from ...nn.recompute import checkpointed, product
from .attention import CrossAttention, LinearAttention, Rope, rope_table, within
from .lora import LORA
from .lyric_encoder import LyricEncoder

if TYPE_CHECKING:
    from ..protocol import Folder
    from .ssl.projectors import Projectors

QueryScale = tuple[float | mx.array, int, int]  # the factor may be (B, 1, 1), one for each row


@dataclass(frozen=True)
class TransformerConfig(ComponentConfig):
    """Sizes; the defaults are the released 3.5B model's."""

    num_layers: int = 24
    attention_head_dim: int = 128
    num_attention_heads: int = 20
    mlp_ratio: float = 2.5
    in_channels: int = 8
    out_channels: int = 8
    patch_size: tuple[int, int] = (16, 1)
    max_position: int = 32768
    rope_theta: float = 1000000.0
    speaker_embedding_dim: int = 512
    text_embedding_dim: int = 768
    lyric_encoder_vocab_size: int = 6693
    lyric_hidden_size: int = 1024
    # Not in upstream's config.json; the converter reads them from the tensors' shapes.
    lyric_encoder_layers: int = 6
    lyric_encoder_heads: int = 16
    lyric_encoder_ff: int = 4096

    NAME: ClassVar = "transformer"
    REPEATED: ClassVar = ("num_layers", "lyric_encoder_layers")
    LIMITS: ClassVar = {
        "lyric_encoder_vocab_size": MANY, "max_position": MANY, "mlp_ratio": number(1e-3, 64),
        "rope_theta": number(1, 1e12),
    }  # fmt: skip
    # The width is heads × head size, whatever inner_dim says; SSL projectors are kept apart, with what they
    # are for; max_height and max_width are never read.
    IGNORED: ClassVar = {
        "inner_dim", "ssl_encoder_depths", "ssl_names", "ssl_latent_dims", "max_height", "max_width",
    }  # fmt: skip
    REQUIRED: ClassVar = ("num_layers", "attention_head_dim", "num_attention_heads")

    @property
    def blocks(self) -> int:
        """Blocks that can be checkpointed."""
        return self.num_layers

    @property
    def dim(self) -> int:
        """Width of the token sequence."""
        return self.num_attention_heads * self.attention_head_dim

    @property
    def ff_dim(self) -> int:
        """Width of the feed-forward after its gate."""
        return int(self.dim * self.mlp_ratio)

    @classmethod
    def sizes_in(cls, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
        """The lyric encoder's."""
        layer, inner = "lyric_encoder.encoders.", "lyric_encoder.encoders.0."
        try:
            return {
                "lyric_encoder_layers": len({n.split(".")[2] for n in shapes if n.startswith(layer)}),
                "lyric_encoder_heads": shapes[f"{inner}self_attn.pos_bias_u"][0],
                "lyric_encoder_ff": shapes[f"{inner}feed_forward.w_1.weight"][0],
            }
        except (KeyError, IndexError):
            raise CheckpointError("not ACE-Step's transformer: it has no lyric encoder") from None

    def problems(self) -> list[str]:
        """Sizes that do not go together."""
        problems = []
        if self.patch_size[1] != 1:
            problems.append(f"patch_size must be [height, 1], got {list(self.patch_size)}")
        if self.lyric_hidden_size % self.lyric_encoder_heads or self.attention_head_dim % 4:
            problems.append(
                "lyric_hidden_size must be a multiple of the lyric encoder's heads, attention_head_dim of 4"
            )
        return problems


def rms_norm(x: mx.array) -> mx.array:
    """RMSNorm without a weight, eps 1e-6."""
    return mx.fast.rms_norm(x, None, 1e-6)


def modulate(x: mx.array, shift: mx.array, scale: mx.array) -> mx.array:
    """Adaptive norm: the normalised x, scaled and shifted; shift and scale are (B, 1, D)."""
    return rms_norm(x) * (1 + scale) + shift


def timestep_features(timestep: mx.array, channels: int = 256) -> mx.array:
    """(B,) in [0, 1000] → (B, channels) float32: cosines, then sines, of falling frequencies."""
    half = channels // 2
    rates = mx.exp(mx.arange(half, dtype=mx.float32) * (-math.log(10000.0) / half))
    angles = timestep.astype(mx.float32)[:, None] * rates[None]
    return mx.concatenate([mx.cos(angles), mx.sin(angles)], axis=-1)


def _nothing(block: int, hidden: mx.array) -> None:
    """What becomes of a block's output where nobody watches."""


class PatchEmbed(nn.Module):
    """Latents (B, C, H, T) → tokens (B, T, D): one patch is one frame."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        hidden = config.in_channels * 256
        self.early_conv_layers = [
            nn.Conv2d(config.in_channels, hidden, config.patch_size, stride=config.patch_size),
            nn.GroupNorm(32, hidden, eps=1e-6, pytorch_compatible=True),
            nn.Linear(hidden, config.dim),  # a 1×1 convolution upstream
        ]

    def __call__(self, latents: mx.array) -> mx.array:
        conv, norm, project = self.early_conv_layers
        B, C, H, T = latents.shape
        # Kernel and stride are the whole patch, so the convolution is a matrix product.
        patches = latents.transpose(0, 3, 2, 1).reshape(B, T, H * C)
        weight = conv.weight.reshape(conv.weight.shape[0], -1)  # (O, H, 1, C) → (O, H·C)
        tokens: mx.array = project(norm(mx.addmm(conv.bias, patches, weight.T)))
        return tokens


class TimestepEmbedding(nn.Module):
    """Linear, SiLU, linear."""

    def __init__(self, channels: int, dim: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(channels, dim)
        self.linear_2 = nn.Linear(dim, dim)

    def __call__(self, x: mx.array) -> mx.array:
        return self.linear_2(nn.silu(self.linear_1(x)))


class Conv(nn.Module):
    """Holds `conv`, so that names are upstream's."""

    def __init__(self, conv: nn.Module) -> None:
        super().__init__()
        self.conv = conv


class GatedConv(nn.Module):
    """Feed-forward: expand, SiLU, depthwise convolution of three frames, gate, project back."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.inverted_conv = Conv(nn.Linear(dim, 2 * hidden))
        self.depth_conv = Conv(nn.Conv1d(2 * hidden, 2 * hidden, 3, padding=1, groups=2 * hidden))
        self.point_conv = Conv(nn.Linear(hidden, dim, bias=False))

    def __call__(self, x: mx.array) -> mx.array:
        """x (B, T, D) → (B, T, D)."""
        depth = self.depth_conv.conv
        x = self.point_conv.conv(
            gated_conv(*_without_bias(self.inverted_conv.conv, x), depth.weight, depth.bias)
        )
        return x


def _without_bias(linear: nn.Module, x: mx.array) -> tuple[mx.array, mx.array]:
    """x times a quantised weight, and the bias, a pass less; of any other layer its result, and zeros."""
    if type(linear) is not nn.QuantizedLinear or "bias" not in linear:
        y = product(linear, x)
        return y, mx.zeros((y.shape[-1],), y.dtype)
    return product(linear, x, bias=False), linear.bias


class Block(nn.Module):
    """Linear self-attention, cross-attention, gated convolution."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.attn = LinearAttention(config.dim, config.num_attention_heads)
        self.cross_attn = CrossAttention(config.dim, config.num_attention_heads)
        self.ff = GatedConv(config.dim, config.ff_dim)
        self.scale_shift_table = mx.zeros((6, config.dim))

    def __call__(
        self,
        x: mx.array,
        temb: mx.array,
        states: mx.array | tuple[mx.array, mx.array],
        *,
        mask: mx.array | None,
        states_mask: mx.array | None,
        rope: Rope,
        own_rope: Rope,
        states_rope: Rope,
        query_scale: float | mx.array = 1.0,
    ) -> mx.array:
        """x (B, T, D), temb (B, 6, D), states (B, S, D) or its keys and values → (B, T, D).

        own_rope: `rope` within the mask, for self-attention.
        """
        table = (self.scale_shift_table + temb)[:, :, None]  # (B, 6, 1, D)
        shift, scale, gate, shift_ff, scale_ff, gate_ff = (table[:, i] for i in range(6))
        x = x + gate * self.attn(modulate(x, shift, scale), own_rope, query_scale)
        kept = isinstance(states, tuple)  # of a song that is generated
        kv = states if isinstance(states, tuple) else self.cross_attn.keys_values(states, states_rope)
        x = x + self.cross_attn(x, kv, mask, states_mask, rope, query_scale, gradient=not kept)
        return x + gate_ff * self.ff(modulate(x, shift_ff, scale_ff))


class FinalLayer(nn.Module):
    """Tokens → velocity (B, C, H, T), modulated by the embedded timestep itself."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.height, self.channels = config.patch_size[0], config.out_channels
        self.linear = nn.Linear(config.dim, self.height * self.channels)
        self.scale_shift_table = mx.zeros((2, config.dim))

    def __call__(self, x: mx.array, embedded_timestep: mx.array) -> mx.array:
        table = (self.scale_shift_table + embedded_timestep[:, None])[:, :, None]  # (B, 2, 1, D)
        x = self.linear(modulate(x, table[:, 0], table[:, 1]))
        B, T, _ = x.shape
        return x.reshape(B, T, self.height, self.channels).transpose(0, 3, 2, 1)


class ACEStepTransformer(nn.Module):
    """The 3.5B diffusion transformer with its lyric encoder.

    `checkpoint_blocks`: how many of the blocks compute their activations again in the backward pass instead
    of keeping them. `product_blocks`: how many after those do so too, but keep what their linear layers gave.
    With any of them the lyric encoder computes its activations again.
    """

    lora: ClassVar = LORA

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.checkpoint_blocks = 0
        self.product_blocks = 0
        self._watch: Callable[[int, mx.array], object] = _nothing
        self._folder: Folder | None = None  # that it was read from
        self._projectors: Projectors | None = None
        D = config.dim
        self.proj_in = PatchEmbed(config)
        self.timestep_embedder = TimestepEmbedding(256, D)
        self.t_block = [nn.SiLU(), nn.Linear(D, 6 * D)]
        self.speaker_embedder = nn.Linear(config.speaker_embedding_dim, D)
        self.genre_embedder = nn.Linear(config.text_embedding_dim, D)
        self.lyric_embs = nn.Embedding(config.lyric_encoder_vocab_size, config.lyric_hidden_size)
        self.lyric_encoder = LyricEncoder(
            config.lyric_hidden_size,
            config.lyric_hidden_size,
            config.lyric_encoder_heads,
            config.lyric_encoder_ff,
            config.lyric_encoder_layers,
        )
        self.lyric_proj = nn.Linear(config.lyric_hidden_size, D)
        self.transformer_blocks = [Block(config) for _ in range(config.num_layers)]
        self.final_layer = FinalLayer(config)

    @contextmanager
    def watched(self) -> Iterator[dict[int, mx.array]]:
        """While it lasts: block → what it gave last, (B, T, D)."""
        seen: dict[int, mx.array] = {}
        self._watch = seen.__setitem__
        try:
            yield seen
        finally:
            self._watch = _nothing

    @property
    def dtype(self) -> mx.Dtype:
        """The compute dtype: that of a weight which is never quantised."""
        return self.final_layer.scale_shift_table.dtype

    def ssl_losses(self, *, ssl_hidden_states: Mapping[str, Any], **call: Any) -> dict[str, mx.array]:
        """How far this model's states are from what self-supervised encoders hear: encoder → (B,) float32.

        `call`: the arguments of a call. ssl_hidden_states: encoder → features (L, d) of each song. Each song
        is run alone and without its padding, up to the block that is compared. From 0, the same direction,
        to 2.
        CheckpointError where the model folder has no projectors.
        """
        from .ssl.alignment import losses_of_songs

        return losses_of_songs(self, self.projectors, call, ssl_hidden_states)

    @property
    def projectors(self) -> Projectors:
        """Read from the model folder when they are first asked for."""
        if self._projectors is None:
            from .ssl.projectors import APART, Projectors

            if self._folder is None:
                raise CheckpointError(
                    "this transformer was not read from a model folder: it has no projectors"
                )
            self._projectors = Projectors.read(self._folder.file_apart(APART), self.config)
        return self._projectors

    def encode_lyrics(
        self, ids: mx.array, mask: mx.array, *, query_scale: tuple[float, int, int] | None = None
    ) -> mx.array:
        """Lyric ids and mask (B, Ll), Ll > 0 → states (B, Ll, H) before their projection; see `encode`."""
        return self.lyric_encoder(
            self.lyric_embs(ids),
            mask,
            query_scale=query_scale,
            checkpoint=self.checkpoint_blocks + self.product_blocks > 0,
        )

    def encode(
        self,
        encoder_text_hidden_states: mx.array,
        text_attention_mask: mx.array,
        speaker_embeds: mx.array,
        lyric_token_idx: mx.array,
        lyric_mask: mx.array,
        *,
        lyric_states: mx.array | None = None,
        query_scale: tuple[float, int, int] | None = None,
    ) -> tuple[mx.array, mx.array]:
        """What the blocks attend to: [speaker, text, lyrics].

        Text states (B, Lt, 768) and mask (B, Lt), speaker (B, 512), lyric ids and mask (B, Ll) with Ll ≥ 0
        → states (B, 1 + Lt + Ll, D) in the compute dtype and mask (B, 1 + Lt + Ll) float32.
        `lyric_states` (B, Ll, H): what `encode_lyrics` made of the ids before, which are then not read.
        `query_scale` (factor, first, last) scales the queries of lyric-encoder layers first … last−1.
        """
        B = encoder_text_hidden_states.shape[0]
        speaker = self.speaker_embedder(speaker_embeds.astype(self.dtype))[:, None]
        text = self.genre_embedder(encoder_text_hidden_states.astype(self.dtype))
        parts = [speaker, text]
        if lyric_token_idx.shape[1]:  # quantised products of no rows at all end the process on some back ends
            if lyric_states is None:
                lyric_states = self.encode_lyrics(lyric_token_idx, lyric_mask, query_scale=query_scale)
            parts.append(self.lyric_proj(lyric_states))
        masks = [mx.ones((B, 1)), text_attention_mask, lyric_mask]
        return mx.concatenate(parts, axis=1), mx.concatenate([m.astype(mx.float32) for m in masks], axis=1)

    def _rope(self, length: int, what: str) -> Rope:
        if length > self.config.max_position:
            raise ValueError(f"{length} {what} exceed the model's {self.config.max_position} positions")
        return rope_table(length, self.config.attention_head_dim, self.config.rope_theta)

    def cross_kv(self, encoder_hidden_states: mx.array) -> list[tuple[mx.array, mx.array]]:
        """Each block's cross-attention keys (with RoPE) and values, (B, H, S, Dh); once per song will do."""
        rope = self._rope(encoder_hidden_states.shape[1], "encoder tokens")
        return [b.cross_attn.keys_values(encoder_hidden_states, rope) for b in self.transformer_blocks]

    def decode(
        self,
        hidden_states: mx.array,
        attention_mask: mx.array | None,
        encoder_hidden_states: mx.array | None,
        encoder_hidden_mask: mx.array | None,
        timestep: mx.array,
        *,
        cross_kv: list[tuple[mx.array, mx.array]] | None = None,
        query_scale: QueryScale | None = None,
    ) -> mx.array:
        """Velocity (B, 8, 16, T) of noisy latents (B, 8, 16, T) at timestep (B,) in [0, 1000].

        Masks are (B, T) and (B, S), 1 where a frame or token counts; None means all do. With `cross_kv` the
        encoder states are not needed. `query_scale` (factor, first, last) scales the queries of both
        attentions in blocks first … last−1.
        """
        hidden = self.timestep_embedder(timestep_features(timestep).astype(self.dtype))
        temb = self.t_block[1](self.t_block[0](hidden)).reshape(timestep.shape[0], 6, -1)
        x = self.proj_in(hidden_states.astype(self.dtype))
        per_block: Sequence[mx.array | tuple[mx.array, mx.array]]
        if cross_kv is not None:
            per_block, S = cross_kv, cross_kv[0][0].shape[2]
        elif encoder_hidden_states is not None:
            per_block = [encoder_hidden_states.astype(self.dtype)] * len(self.transformer_blocks)
            S = encoder_hidden_states.shape[1]
        else:
            raise ValueError("decode needs encoder_hidden_states or cross_kv")
        rope = self._rope(x.shape[1], "frames")
        constants: dict[str, Any] = {
            "mask": attention_mask,
            "states_mask": None if encoder_hidden_mask is None else (encoder_hidden_mask > 0)[:, None, None],
            "rope": rope,
            "own_rope": within(attention_mask, rope),
            "states_rope": self._rope(S, "encoder tokens"),
        }
        factor, first, last = query_scale or (1.0, 0, 0)
        for i, (block, states) in enumerate(zip(self.transformer_blocks, per_block, strict=True)):
            run: Callable[..., mx.array] = block
            if i < self.checkpoint_blocks:
                run = checkpointed(block)
            elif i < self.checkpoint_blocks + self.product_blocks:
                run = checkpointed(block, keep_products=True)
            x = run(x, temb, states, **constants, query_scale=factor if first <= i < last else 1.0)
            self._watch(i, x)
        return self.final_layer(x, hidden)

    def __call__(
        self,
        hidden_states: mx.array,
        attention_mask: mx.array | None,
        encoder_text_hidden_states: mx.array,
        text_attention_mask: mx.array,
        speaker_embeds: mx.array,
        lyric_token_idx: mx.array,
        lyric_mask: mx.array,
        timestep: mx.array,
        *,
        lyric_states: mx.array | None = None,
    ) -> mx.array:
        """Velocity (B, 8, 16, T): `decode` of what `encode` makes of the conditions."""
        states, mask = self.encode(
            encoder_text_hidden_states,
            text_attention_mask,
            speaker_embeds,
            lyric_token_idx,
            lyric_mask,
            lyric_states=lyric_states,
        )
        return self.decode(hidden_states, attention_mask, states, mask, timestep)
