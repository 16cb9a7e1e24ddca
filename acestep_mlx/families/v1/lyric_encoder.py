"""The lyric encoder: a Conformer without convolutions, relative positions as in Transformer-XL.

Follows ESPnet's `rel_pos_espnet` attention (Dai et al., arXiv 1901.02860, appendix B). Parameter names are
upstream's.
"""

from __future__ import annotations

import math

import mlx.core as mx
import mlx.nn as nn

from ...nn.activations import masked, silu, softmax, with_gradient
from ...nn.recompute import checkpointed


def relative_positions(length: int, dim: int) -> mx.array:
    """(2·length − 1, dim) in float32: sin and cos in turn of the distances length−1 … −(length−1)."""
    distance = mx.arange(length - 1, -length, -1, dtype=mx.float32)[:, None]
    rate = mx.exp(mx.arange(0, dim, 2, dtype=mx.float32) * (-math.log(10000.0) / dim))
    angles = distance * rate
    return mx.stack([mx.sin(angles), mx.cos(angles)], axis=-1).reshape(-1, dim)


def rel_shift(x: mx.array) -> mx.array:
    """(B, H, L, 2L−1) by distance → (B, H, L, L) by key: out[i, j] = x[i, L−1−i+j].

    In the flat array row i begins 2L−2 after row i−1, so a view does it.
    """
    found: mx.array = _shifted(x)
    return found


def _shift(x: mx.array) -> mx.array:
    B, H, L, W = x.shape
    return mx.as_strided(x, (B, H, L, L), (H * L * W, L * W, W - 1, 1), L - 1)


def _shift_vjp(x: mx.array, cotangent: mx.array, _output: mx.array) -> mx.array:
    B, H, L, _ = x.shape
    rows = mx.pad(cotangent, [(0, 0), (0, 0), (0, 0), (0, max(L - 2, 0))]).reshape(B, H, -1)
    return mx.pad(rows, [(0, 0), (0, 0), (L - 1, x[0, 0].size - (L - 1) - rows.shape[-1])]).reshape(x.shape)


_shifted = with_gradient(_shift, _shift_vjp)


class RelativeAttention(nn.Module):
    """Self-attention with content and position biases u and v."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.linear_q = nn.Linear(dim, dim)
        self.linear_k = nn.Linear(dim, dim)
        self.linear_v = nn.Linear(dim, dim)
        self.linear_out = nn.Linear(dim, dim)
        self.linear_pos = nn.Linear(dim, dim, bias=False)
        self.pos_bias_u = mx.zeros((heads, dim // heads))
        self.pos_bias_v = mx.zeros((heads, dim // heads))

    def __call__(
        self, x: mx.array, positions: mx.array, mask: mx.array | None, query_scale: float = 1.0
    ) -> mx.array:
        """x (B, L, D), positions (2L−1, D), mask (B, 1, 1, L) true where a token counts → (B, L, D)."""
        B, L, D = x.shape
        H, Dh = self.heads, D // self.heads
        q = self.linear_q(x).reshape(B, L, H, Dh)
        if query_scale != 1.0:
            q = q * query_scale
        k = self.linear_k(x).reshape(B, L, H, Dh).transpose(0, 2, 3, 1)
        v = self.linear_v(x).reshape(B, L, H, Dh).swapaxes(1, 2)
        p = self.linear_pos(positions).reshape(1, 2 * L - 1, H, Dh).transpose(0, 2, 3, 1)
        scale = Dh**-0.5
        content = ((q + self.pos_bias_u) * scale).swapaxes(1, 2) @ k  # (B, H, L, L)
        position = ((q + self.pos_bias_v) * scale).swapaxes(1, 2) @ p  # (B, H, L, 2L−1)
        scores = content + rel_shift(position)
        out = softmax(masked(scores, mask)) @ v
        if mask is not None:  # nothing to attend to gives zeros, not the mean of the padding
            out = mx.where(mx.any(mask, axis=-1, keepdims=True), out, 0)
        return self.linear_out(out.swapaxes(1, 2).reshape(B, L, D))


class FeedForward(nn.Module):
    """Linear, Swish, linear."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.w_1 = nn.Linear(dim, hidden)
        self.w_2 = nn.Linear(hidden, dim)

    def __call__(self, x: mx.array) -> mx.array:
        return self.w_2(silu(self.w_1(x)))


class Layer(nn.Module):
    """Pre-norm attention and feed-forward, each with its residual."""

    def __init__(self, dim: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.norm_mha = nn.LayerNorm(dim, eps=1e-5)
        self.self_attn = RelativeAttention(dim, heads)
        self.norm_ff = nn.LayerNorm(dim, eps=1e-5)
        self.feed_forward = FeedForward(dim, hidden)

    def __call__(
        self, x: mx.array, *, positions: mx.array, mask: mx.array | None, query_scale: float = 1.0
    ) -> mx.array:
        """x (B, L, D) → (B, L, D)."""
        x = x + self.self_attn(self.norm_mha(x), positions, mask, query_scale)
        return x + self.feed_forward(self.norm_ff(x))


class Embed(nn.Module):
    """Linear and LayerNorm before the first layer (`out.0`, `out.1` upstream)."""

    def __init__(self, dim_in: int, dim: int) -> None:
        super().__init__()
        self.out = [nn.Linear(dim_in, dim), nn.LayerNorm(dim, eps=1e-5)]

    def __call__(self, x: mx.array) -> mx.array:
        x = self.out[1](self.out[0](x))
        return x


class LyricEncoder(nn.Module):
    """Embedded lyric tokens (B, L, D) → states (B, L, D); L may be 0."""

    def __init__(self, dim_in: int, dim: int, heads: int, hidden: int, layers: int) -> None:
        super().__init__()
        self.embed = Embed(dim_in, dim)
        self.encoders = [Layer(dim, heads, hidden) for _ in range(layers)]
        self.after_norm = nn.LayerNorm(dim, eps=1e-5)

    def __call__(
        self,
        x: mx.array,
        mask: mx.array | None,
        *,
        query_scale: tuple[float, int, int] | None = None,
        checkpoint: bool = False,
    ) -> mx.array:
        """x (B, L, dim_in), mask (B, L), 1 where a token counts → (B, L, D), finite even if none counts.

        `query_scale` (factor, first, last) multiplies the queries of layers first … last−1; `checkpoint`
        recomputes each layer's activations in the backward pass.
        """
        L = x.shape[1]
        x = self.embed(x)
        if L == 0:
            x = self.after_norm(x)
            return x
        D = x.shape[-1]
        x = x * math.sqrt(D)
        positions = relative_positions(L, D).astype(x.dtype)
        keep = None if mask is None else (mask > 0)[:, None, None, :]
        factor, first, last = query_scale or (1.0, 0, 0)
        for i, layer in enumerate(self.encoders):
            run = checkpointed(layer) if checkpoint else layer
            x = run(x, positions=positions, mask=keep, query_scale=factor if first <= i < last else 1.0)
        x = self.after_norm(x)
        return x
