"""Layers that the transformer, the condition encoder and the tokenizers of ACE-Step 1.5 share.

Attention is grouped-query attention with a norm on every head's queries and keys. Parameter names are the
original's, so that LoRA paths mean the same here and there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn

from ...nn import cpu, device
from ...nn.activations import RMSNorm, additive, spelled_attention, swiglu, with_gradient
from ...nn.recompute import product
from ...nn.rotary import rotation
from .config import SLIDING, LayerConfig, StackConfig

Rope = tuple[mx.array, mx.array]
KeysValues = tuple[mx.array, mx.array]
SCORES_AT_ONCE = 1 << 24  # of all heads; more of them are worked on group by group (64 MB in float32)


def rope_table(length: int, head_dim: int, theta: float) -> Rope:
    """cos and signed sin, each (length, 2, head_dim / 2) float32, of pos · theta^(−2i / head_dim)."""
    inv_freq = 1.0 / theta ** (mx.arange(0, head_dim, 2, dtype=mx.float32) / head_dim)
    angles = mx.arange(length, dtype=mx.float32)[:, None] * inv_freq[None]
    cos, sin = mx.cos(angles), mx.sin(angles)
    return mx.stack([cos, cos], axis=1), mx.stack([-sin, sin], axis=1)


_turn = rotation(-2)


def apply_rope(x: mx.array, rope: Rope) -> mx.array:
    """x (B, H, L, Dh), channel i turned with channel i + Dh / 2; in float32, returned in x's dtype."""
    turned: mx.array = _turn(x, *rope)
    return turned


class Sight(NamedTuple):
    """What queries see, to be added to scores: 0, or so low that softmax leaves nothing. None: everything.

    Low but finite, so that a query that sees nothing at all (padding) still has finite values.
    """

    full: mx.array | None  # (B, 1, 1, L)
    sliding: mx.array | None  # (B or 1, 1, 1 or L, L); for long sequences in blocks (B or 1, N, 1, W, 3W)


def sight(length: int, window: int, valid: mx.array | None, dtype: mx.Dtype) -> Sight:
    """For self-attention over `length` positions, of which a sliding layer sees |i − j| ≤ window.

    valid (B, length) bool: keys that count; None: all do.
    """
    full = None if valid is None else additive(valid[:, None, None], dtype)
    if length <= window + 1:
        return Sight(full, full)
    if length <= 3 * window:  # blocks would not save anything
        at = mx.arange(length)
        seen = (mx.abs(at[:, None] - at[None]) <= window)[None, None]  # [1, 1, L, L]
        return Sight(full, additive(seen if valid is None else seen & valid[:, None, None], dtype))
    W, N = window, -(-length // window)
    # Queries of block n are at nW + a, the keys of it and its neighbours at (n − 1)W + c.
    a, c = mx.arange(W), mx.arange(3 * W)
    band = mx.abs(a[:, None] + W - c[None]) <= W  # [W, 3W]
    keys = mx.ones((1, length), dtype=mx.bool_) if valid is None else valid
    keys = _neighbours(keys[:, None, :, None], N, W)[:, 0, :, :, 0]  # [B, N, 3W]
    return Sight(full, additive(band & keys[:, :, None, None], dtype))


def _neighbours(x: mx.array, blocks: int, width: int) -> mx.array:
    """(B, H, L, D) → (B, H, N, 3W, D): each block of positions with the one before and the one after."""
    B, H, L, D = x.shape
    x = mx.pad(x, [(0, 0), (0, 0), (width, (blocks + 1) * width - L), (0, 0)])
    x = x.reshape(B, H, blocks + 2, width, D)
    return mx.concatenate([x[:, :, :-2], x[:, :, 1:-1], x[:, :, 2:]], axis=3)


def _softmax_attention(
    q: mx.array, k: mx.array, v: mx.array, seen: mx.array | None, gradient: bool
) -> mx.array:
    """q (B, H, L, Dh); k, v (B, Hk, S, Dh) → (B, H, L, Dh), as a GPU does it best."""
    if gradient and not device.attention_gradient_is_fused():
        return spelled_attention(q, k, v, seen)
    return mx.fast.scaled_dot_product_attention(q, k, v, scale=q.shape[-1] ** -0.5, mask=seen)


def _in_turn(
    attention: Callable[..., mx.array], scores: int, q: mx.array, k: mx.array, v: mx.array
) -> mx.array:
    """`attention` of all heads at once, unless that makes too many scores.

    No kernel keeps them out of memory on the CPU or in training. The heads that share keys are then worked on
    in turn, so that the scores of one group are alive at a time.
    """
    Hk = k.shape[1]
    if scores <= SCORES_AT_ONCE or Hk == 1:
        return attention(q, k, v)

    def group(h: int, *arrays: mx.array) -> list[mx.array]:
        return [x[:, h * x.shape[1] // Hk : (h + 1) * x.shape[1] // Hk] for x in arrays]

    def forward(q: mx.array, k: mx.array, v: mx.array) -> mx.array:
        outputs: list[mx.array] = []
        for h in range(Hk):
            outputs.append(attention(*mx.depends(group(h, q, k, v), outputs[-1:])))
        return mx.concatenate(outputs, axis=1)

    def backward(primals: tuple[mx.array, ...], cotangent: mx.array, _output: mx.array) -> list[mx.array]:
        gradients: list[list[mx.array]] = []
        for h in range(Hk):
            *inputs, c = mx.depends(
                group(h, *primals, cotangent), [g for last in gradients[-1:] for g in last]
            )
            gradients.append(mx.vjp(lambda *inputs: [attention(*inputs)], inputs, [c])[1])
        return [mx.concatenate(list(parts), axis=1) for parts in zip(*gradients, strict=True)]

    return with_gradient(forward, backward)(q, k, v)


def attend(
    q: mx.array, k: mx.array, v: mx.array, seen: mx.array | None, *, gradient: bool = True
) -> mx.array:
    """Softmax attention, scale 1/√Dh: q (B, H, L, Dh); k, v (B, Hk, S, Dh) → (B, H, L, Dh).

    `seen` as in `Sight`; in blocks, time and memory grow with L and not with its square. gradient: whether
    one may be asked for.
    """
    B, H, L, Dh = q.shape
    held = gradient or not device.attention_is_fused()  # scores are arrays
    if seen is None or seen.ndim == 4:

        def plain(q: mx.array, k: mx.array, v: mx.array) -> mx.array:
            if cpu.by_arithmetic(q):
                return cpu.grouped_attention(q, k, v, seen)
            return _softmax_attention(q, k, v, seen, gradient)

        return _in_turn(plain, B * H * L * k.shape[2] if held else 0, q, k, v)
    _, N, _, W, _ = seen.shape
    scores = B * N * H * W * 3 * W if held else 0
    if cpu.by_arithmetic(q):
        return _in_turn(lambda q, k, v: cpu.sliding_attention(q, k, v, seen), scores, q, k, v)
    q = mx.pad(q, [(0, 0), (0, 0), (0, N * W - L), (0, 0)]).reshape(B, H, N, W, Dh)
    q, k, v = (x.swapaxes(1, 2).flatten(0, 1) for x in (q, _neighbours(k, N, W), _neighbours(v, N, W)))
    blocks = mx.broadcast_to(seen, (B, *seen.shape[1:])).flatten(0, 1)  # [BN, 1, W, 3W]
    out = _in_turn(
        lambda q, k, v: _softmax_attention(q, k, v, blocks, gradient), scores, q, k, v
    )  # [BN, H, W, Dh]
    return out.reshape(B, N, H, W, Dh).swapaxes(1, 2).reshape(B, H, N * W, Dh)[:, :, :L]


class Attention(nn.Module):
    """Grouped-query attention: as many queries' heads share one of keys and values as the config says."""

    def __init__(self, config: LayerConfig) -> None:
        super().__init__()
        D, H, Hk, Dh = (
            config.hidden_size,
            config.num_attention_heads,
            config.num_key_value_heads,
            config.head_dim,
        )
        bias, eps = config.attention_bias, config.rms_norm_eps
        self.head_dim = Dh
        self.q_proj = nn.Linear(D, H * Dh, bias=bias)
        self.k_proj = nn.Linear(D, Hk * Dh, bias=bias)
        self.v_proj = nn.Linear(D, Hk * Dh, bias=bias)
        self.o_proj = nn.Linear(H * Dh, D, bias=bias)
        self.q_norm = RMSNorm(Dh, eps=eps)
        self.k_norm = RMSNorm(Dh, eps=eps)

    def _heads(self, x: mx.array) -> mx.array:
        """(B, L, H·Dh) → (B, L, H, Dh)."""
        return x.reshape(*x.shape[:2], -1, self.head_dim)

    def keys_values(self, states: mx.array, rope: Rope | None = None) -> KeysValues:
        """states (B, S, D) → keys and values, (B, Hk, S, Dh) each."""
        k = self.k_norm(self._heads(product(self.k_proj, states))).swapaxes(1, 2)
        v = self._heads(product(self.v_proj, states)).swapaxes(1, 2)
        return k if rope is None else apply_rope(k, rope), v

    def __call__(
        self,
        x: mx.array,
        keys_values: KeysValues | None = None,
        *,
        seen: mx.array | None = None,
        rope: Rope | None = None,
        gradient: bool = True,
    ) -> mx.array:
        """x (B, L, D) → (B, L, D), over x itself or over given keys and values; the rest as in `attend`."""
        q = self.q_norm(self._heads(product(self.q_proj, x))).swapaxes(1, 2)  # [B, H, L, Dh]
        if rope is not None:
            q = apply_rope(q, rope)
        k, v = self.keys_values(x, rope) if keys_values is None else keys_values
        found = attend(q, k, v, seen, gradient=gradient).swapaxes(1, 2).flatten(2)
        return product(self.o_proj, found)


class MLP(nn.Module):
    """SwiGLU."""

    def __init__(self, config: LayerConfig) -> None:
        super().__init__()
        D, F = config.hidden_size, config.intermediate_size
        self.gate_proj = nn.Linear(D, F, bias=False)
        self.up_proj = nn.Linear(D, F, bias=False)
        self.down_proj = nn.Linear(F, D, bias=False)

    def __call__(self, x: mx.array) -> mx.array:
        """(B, L, D) → (B, L, D)."""
        return self.down_proj(swiglu(product(self.gate_proj, x), product(self.up_proj, x)))


class EncoderLayer(nn.Module):
    """Pre-norm self-attention and MLP."""

    def __init__(self, config: LayerConfig) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.mlp = MLP(config)

    def __call__(self, x: mx.array, *, seen: mx.array | None, rope: Rope) -> mx.array:
        """x (B, L, D) → (B, L, D)."""
        x = x + self.self_attn(self.input_layernorm(x), seen=seen, rope=rope, gradient=False)
        return x + self.mlp(self.post_attention_layernorm(x))


class EncoderStack(nn.Module):
    """Projection, layers, final norm: what the lyric and timbre encoders and both poolers are made of.

    channels: width of what goes in. layer_types: of every layer.
    """

    def __init__(self, config: StackConfig, channels: int, layer_types: tuple[str, ...]) -> None:
        super().__init__()
        self._config, self._layer_types = config, layer_types
        self.embed_tokens = nn.Linear(channels, config.hidden_size)
        self.layers = [EncoderLayer(config) for _ in layer_types]
        self.norm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def run(self, x: mx.array, valid: mx.array | None = None) -> mx.array:
        """The layers and the norm on x (B, L, D), already projected; valid (B, L) bool → (B, L, D)."""
        config = self._config
        rope = rope_table(x.shape[1], config.head_dim, config.rope_theta)
        full, sliding = sight(x.shape[1], config.sliding_window, valid, x.dtype)
        for layer, kind in zip(self.layers, self._layer_types, strict=True):
            x = layer(x, seen=sliding if kind == SLIDING else full, rope=rope)
        x = self.norm(x)
        return x
