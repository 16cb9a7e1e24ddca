"""Rotary position embeddings in one pass: each channel times its cosine, plus its partner times its sine."""

from __future__ import annotations

from typing import Any

import mlx.core as mx

from .activations import with_gradient


def rotation(axis: int) -> Any:
    """A function (x, cos, sin) → x turned, in x's dtype, computed in float32.

    x (B, H, L, Dh); cos and sin float32 (L, Dh / 2, 2) for axis −1, where neighbouring channels are partners,
    or (L, 2, Dh / 2) for axis −2, where channel i's is i + Dh / 2; or (B, 1, L, …). sin has its sign: minus
    for the first of two that turn as in a plane. Partners are read backwards from the same memory, so that
    nothing is copied; nor is it for the gradient, which is the same sum with the partners' sines.
    """

    def swapped(x: mx.array) -> mx.array:
        return x[..., ::-1] if axis == -1 else x[..., ::-1, :]

    def turn(x: mx.array, cos: mx.array, sin: mx.array) -> mx.array:
        pairs = x.reshape(*x.shape[:-1], *cos.shape[-2:])
        wide = pairs.astype(mx.float32), swapped(pairs).astype(mx.float32)
        return (wide[0] * cos + wide[1] * sin).astype(x.dtype).reshape(x.shape)

    def gradient(
        primals: tuple[mx.array, ...], cotangent: mx.array, _output: mx.array
    ) -> tuple[mx.array, ...]:
        _, cos, sin = primals
        return turn(cotangent, cos, swapped(sin)), mx.zeros_like(cos), mx.zeros_like(sin)

    return with_gradient(mx.compile(turn), gradient)
