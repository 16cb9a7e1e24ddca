"""The transformer's two attentions and the rotary embedding that both use.

Self-attention is linear with a ReLU kernel (Sana, arXiv 2410.10629): its cost grows with the number of
frames, not with its square. Cross-attention is the ordinary softmax kind.
"""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

from ...nn.activations import attend, relu, with_gradient
from ...nn.recompute import product
from ...nn.rotary import rotation

Rope = tuple[mx.array, mx.array]


def rope_table(length: int, head_dim: int, theta: float) -> Rope:
    """cos and signed sin, each (length, head_dim / 2, 2) in float32, of pos · theta^(-2i / head_dim).

    The table lists all angles and then repeats them, while neighbouring channels are turned: channel 2i is
    turned by angle 2i mod (head_dim / 2) and channel 2i+1 by the next one. That is not a rotation, and it
    is what the released weights were trained with.
    """
    inv_freq = theta ** (-mx.arange(0, head_dim, 2, dtype=mx.float32) / head_dim)
    angles = mx.arange(length, dtype=mx.float32)[:, None] * inv_freq[None]
    angles = mx.concatenate([angles, angles], axis=-1).reshape(length, -1, 2)
    return mx.cos(angles), mx.sin(angles) * mx.array([-1.0, 1.0])


_turn = rotation(-1)


def apply_rope(x: mx.array, rope: Rope) -> mx.array:
    """x (B, H, L, Dh) with neighbouring channels turned; computed in float32, returned in x's dtype."""
    turned: mx.array = _turn(x, *rope)
    return turned


def within(mask: mx.array | None, rope: Rope) -> Rope:
    """The tables with zeros where the frames' mask (B, T) has them.

    For self-attention: a key of zeros takes its value out of both sums. Made once for all blocks. In each of
    them it would be the same expression, which `mx.compile` folds into what uses it, and loses, where the
    blocks are not all computed again.
    """
    if mask is None:
        return rope
    keep = mask[:, None, :, None, None].astype(mx.float32)
    return rope[0] * keep, rope[1] * keep


def _linear_attention(q: mx.array, k: mx.array, v: mx.array) -> mx.array:
    """relu(q) · Σ relu(k) vᵀ over relu(q) · Σ relu(k), everything (B, H, T, Dh); sums in float32.

    A query without a positive channel (a masked frame) gives zeros. The backward pass computes it again
    from q, k and v: it is cheap, and its float32 arrays are large.
    """
    dtype = q.dtype
    q, k, v = relu(q), relu(k), v.astype(mx.float32)
    total = mx.sum(k, axis=-2, keepdims=True)  # (B, H, 1, Dh)
    weight = q @ total.swapaxes(-1, -2)  # (B, H, T, 1)
    values = q @ (k.swapaxes(-1, -2) @ v)
    # Upstream adds 1e-15 everywhere; where the weight is zero so are the values, and dividing by one
    # keeps the gradient finite. Divided as (B, T, H, Dh), which is how heads are merged.
    values, weight = values.swapaxes(1, 2), weight.swapaxes(1, 2)
    return (values / mx.where(weight > 0, weight + 1e-15, 1.0)).astype(dtype).swapaxes(1, 2)


def _linear_attention_vjp(
    primals: tuple[mx.array, mx.array, mx.array], cotangent: mx.array, _output: mx.array
) -> list[mx.array]:
    def compute(q: mx.array, k: mx.array, v: mx.array) -> list[mx.array]:
        return [_linear_attention(q, k, v)]

    return mx.vjp(compute, list(mx.depends(list(primals), [cotangent])), [cotangent])[1]


linear_attention = with_gradient(_linear_attention, _linear_attention_vjp)


class _Projections(nn.Module):
    """to_q, to_k, to_v and to_out.0 under their upstream names."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(dim, dim)
        self.to_k = nn.Linear(dim, dim)
        self.to_v = nn.Linear(dim, dim)
        self.to_out = [nn.Linear(dim, dim)]

    def scaled(self, q: mx.array, factor: float | mx.array) -> mx.array:
        """q times `factor`, a number or (B, 1, 1), in q's dtype."""
        if isinstance(factor, mx.array):
            return q * factor.astype(q.dtype)
        return q if factor == 1.0 else q * factor

    def split(self, x: mx.array) -> mx.array:
        """(B, L, D) → (B, H, L, Dh)."""
        B, L, _ = x.shape
        return x.reshape(B, L, self.heads, -1).swapaxes(1, 2)

    def merge(self, x: mx.array) -> mx.array:
        """(B, H, L, Dh) → (B, L, D)."""
        B, _, L, _ = x.shape
        return x.swapaxes(1, 2).reshape(B, L, -1)


class LinearAttention(_Projections):
    """Self-attention over the frames."""

    def __call__(self, x: mx.array, rope: Rope, query_scale: float | mx.array = 1.0) -> mx.array:
        """x (B, T, D), tables `within` the frames → (B, T, D)."""
        q, k, v = (product(layer, x) for layer in (self.to_q, self.to_k, self.to_v))
        q = self.scaled(q, query_scale)
        q, k = apply_rope(self.split(q), rope), apply_rope(self.split(k), rope)
        return product(self.to_out[0], self.merge(linear_attention(q, k, self.split(v))))


class CrossAttention(_Projections):
    """From the frames to [speaker, text, lyrics]."""

    def keys_values(self, states: mx.array, rope: Rope) -> tuple[mx.array, mx.array]:
        """states (B, S, D) → keys with RoPE and values, (B, H, S, Dh) each."""
        k, v = (self.split(product(layer, states)) for layer in (self.to_k, self.to_v))
        return apply_rope(k, rope), v

    def __call__(
        self,
        x: mx.array,
        keys_values: tuple[mx.array, mx.array],
        mask: mx.array | None,
        states_mask: mx.array | None,
        rope: Rope,
        query_scale: float | mx.array = 1.0,
        *,
        gradient: bool = False,
    ) -> mx.array:
        """x (B, T, D); mask (B, T) of the frames; states_mask (B, 1, 1, S), true where a token counts.

        gradient: whether one will be asked for.
        """
        q = apply_rope(self.split(self.scaled(product(self.to_q, x), query_scale)), rope)
        k, v = keys_values
        out = self.merge(attend(q, k, v, states_mask, gradient=gradient))
        if mask is not None:  # upstream masks padding frames against every token, which leaves zeros
            out = out * mask[..., None].astype(out.dtype)
        return product(self.to_out[0], out)
