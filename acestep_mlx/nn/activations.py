"""SiLU, softmax, norm and the gated depthwise convolution: values in one pass, gradients by hand.

The gradients keep only the inputs, so that a checkpointed block does not compute these functions a second
time, and every array that is held is in the activations' dtype; float32 appears inside fused kernels only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import mlx.core as mx
import mlx.nn as nn

from . import cpu, device

Function = TypeVar("Function", bound=Callable[..., mx.array])


def with_gradient(function: Function, vjp: Callable[..., Any]) -> Function:
    """`function`, whose gradient is `vjp(primals, cotangent, output)`."""
    wrapped = mx.custom_function(function)
    wrapped.vjp(vjp)
    return cast(Function, wrapped)


def _float(x: mx.array) -> mx.array:
    return x.astype(mx.float32)


def _sigmoid(x: mx.array) -> mx.array:
    """In float32."""
    return cpu.sigmoid(x) if cpu.by_arithmetic(x) else mx.sigmoid(_float(x))


def _silu(x: mx.array) -> mx.array:
    """x · sigmoid(x) in x's dtype, computed in float32."""
    return (_float(x) * _sigmoid(x)).astype(x.dtype)


def _silu_vjp(x: mx.array, cotangent: mx.array, _output: mx.array) -> mx.array:
    return (_float(cotangent) * _silu_slope(x)).astype(x.dtype)


silu = with_gradient(_silu, _silu_vjp)
silu_value = mx.compile(_silu)  # for models that have no gradient and are not compiled as a whole


def _silu_slope(x: mx.array) -> mx.array:
    s = _sigmoid(x)
    return s + _float(x) * s * (1 - s)


def _relu(x: mx.array) -> mx.array:
    """max(x, 0) as float32."""
    wide = _float(x)
    return 0.5 * (wide + mx.abs(wide))


def _relu_vjp(x: mx.array, cotangent: mx.array, _output: mx.array) -> mx.array:
    return ((x > 0) * cotangent).astype(x.dtype)


relu = with_gradient(_relu, _relu_vjp)


def masked(scores: mx.array, mask: mx.array | None) -> mx.array:
    """`scores` where the boolean mask is true, elsewhere so low that `softmax` gives nothing."""
    if mask is None:
        return scores
    return mx.where(mask, scores, max(-1e5, mx.finfo(scores.dtype).min))


def _swiglu(gate: mx.array, up: mx.array) -> mx.array:
    """silu(gate) · up, in one pass."""
    return (_float(gate) * _sigmoid(gate) * _float(up)).astype(gate.dtype)


def _swiglu_vjp(
    primals: tuple[mx.array, mx.array], cotangent: mx.array, _output: mx.array
) -> tuple[mx.array, mx.array]:
    gate, up = primals
    s, c = _sigmoid(gate), _float(cotangent)
    x = _float(gate)
    d_gate = c * _float(up) * (s + x * s * (1 - s))
    return d_gate.astype(gate.dtype), (c * x * s).astype(up.dtype)


swiglu = with_gradient(mx.compile(_swiglu), mx.compile(_swiglu_vjp))


def _softmax(scores: mx.array) -> mx.array:
    """Over the last axis, in scores' dtype, computed in float32."""
    if cpu.by_arithmetic(scores):
        return cpu.softmax(scores)
    return mx.softmax(scores, axis=-1, precise=True)


def _softmax_vjp(scores: mx.array, cotangent: mx.array, output: mx.array) -> mx.array:
    inner = mx.sum(_float(output) * _float(cotangent), axis=-1, keepdims=True)
    return (_float(output) * (_float(cotangent) - inner)).astype(scores.dtype)


softmax = with_gradient(_softmax, _softmax_vjp)


def attend(
    q: mx.array, k: mx.array, v: mx.array, mask: mx.array | None, *, gradient: bool = False
) -> mx.array:
    """Softmax attention, scale 1/√Dh: q (B, H, T, Dh); k, v (B, H, S, Dh); boolean mask → (B, H, T, Dh).

    mask: of keys, (B, 1, 1, S). gradient: whether one will be asked for, which only some back ends have in a
    kernel. On a GPU float32 may be computed as TF32 (see `device`).
    """
    if cpu.by_arithmetic(q):
        return cpu.grouped_attention(q, k, v, None if mask is None else additive(mask, q.dtype))
    if gradient and not device.attention_gradient_is_fused():
        return spelled_attention(q, k, v, None if mask is None else additive(mask, q.dtype))
    return mx.fast.scaled_dot_product_attention(q, k, v, scale=q.shape[-1] ** -0.5, mask=mask)


def additive(seen: mx.array, dtype: mx.Dtype) -> mx.array:
    """A boolean mask as numbers of `dtype` to add to scores: low but finite where it is false."""
    return mx.where(seen, 0.0, max(-1e5, mx.finfo(dtype).min / 2)).astype(dtype)


def spelled_attention(q: mx.array, k: mx.array, v: mx.array, added: mx.array | None) -> mx.array:
    """Softmax attention with a gradient, scale 1/√Dh: q (B, H, T, Dh); k, v (B, Hk, S, Dh) → (B, H, T, Dh).

    Each head of k and v is for H / Hk of q, as rows of one product. added (B, 1, 1 or T, S): to the scores.
    """
    (B, H, T, Dh), Hk = q.shape, k.shape[1]
    if added is None:
        added = mx.zeros((1, 1, 1, 1), q.dtype)
    elif added.shape[2] > 1:
        added = mx.tile(added, (1, 1, H // Hk, 1))
    found: mx.array = _attention(q.reshape(B, Hk, -1, Dh), k, v, added)[0]
    return found.reshape(B, H, T, Dh)


def _weighted(q: mx.array, k: mx.array, v: mx.array, added: mx.array) -> tuple[mx.array, mx.array]:
    """The output and its weights, in few passes over them: the mask is added within the product."""
    scores = mx.addmm(added, q, k.swapaxes(-1, -2), alpha=q.shape[-1] ** -0.5)
    weights = mx.softmax(scores, axis=-1, precise=True)
    return weights @ v, weights


def _weighted_vjp(
    primals: tuple[mx.array, ...], cotangents: tuple[mx.array, ...], outputs: tuple[mx.array, ...]
) -> tuple[mx.array, ...]:
    (q, k, v, added), (out, weights), c = primals, outputs, cotangents[0]
    # Σ over the keys of weight · gradient is the inner product of the output and its gradient.
    inner = mx.sum(_float(c) * _float(out), axis=-1, keepdims=True)
    slope = _float(weights) * (_float(c @ v.swapaxes(-1, -2)) - inner) * q.shape[-1] ** -0.5
    slope = slope.astype(q.dtype)
    return slope @ k, slope.swapaxes(-1, -2) @ q, weights.swapaxes(-1, -2) @ c, mx.zeros_like(added)


_attention: Any = mx.custom_function(_weighted)
_attention.vjp(_weighted_vjp)


def rms_norm(x: mx.array, weight: mx.array | None, eps: float) -> mx.array:
    """x / √(mean(x²) + eps) · weight over the last axis."""
    return cpu.rms_norm(x, weight, eps) if cpu.by_arithmetic(x) else mx.fast.rms_norm(x, weight, eps)


class RMSNorm(nn.RMSNorm):
    """MLX's, fast on every back end."""

    def __call__(self, x: mx.array) -> mx.array:
        return rms_norm(x, self.weight, self.eps)


def _taps(x: mx.array, weight: mx.array, bias: mx.array | float) -> mx.array:
    """Depthwise convolution of width 3 without padding, (B, T + 2, C) → (B, T, C), summed in float32."""
    w = mx.contiguous(_float(weight)[:, :, 0].T)  # (3, C): reading along the channels is what is fast
    before, at, after = _float(x[:, :-2]), _float(x[:, 1:-1]), _float(x[:, 2:])
    return (before * w[0] + at * w[1] + after * w[2] + bias).astype(x.dtype)


def _padded(x: mx.array, frames: int) -> mx.array:
    return mx.pad(x, [(0, 0), (frames, frames), (0, 0)])


def _gated_conv(x: mx.array, shift: mx.array, weight: mx.array, bias: mx.array) -> mx.array:
    """value · silu(gate), the halves of a depthwise convolution of silu(x + shift): (B, T, 2F) → (B, T, F).

    shift (2F,): the bias of the product that x is. weight (2F, 3, 1) and bias (2F,) as in `nn.Conv1d`; one
    frame of padding on each side.
    """
    value, gate = mx.split(_taps(_padded(_shifted_silu(x, shift), 1), weight, _float(bias)), 2, axis=-1)
    return (_float(value) * _float(gate) * _sigmoid(gate)).astype(x.dtype)


def _shifted(x: mx.array, shift: mx.array) -> tuple[mx.array, mx.array]:
    """x + shift and its sigmoid, float32 inside of kernels."""
    moved = _float(x) + _float(shift)
    return moved, cpu.sigmoid(moved) if cpu.by_arithmetic(x) else mx.sigmoid(moved)


def _shifted_silu(x: mx.array, shift: mx.array) -> mx.array:
    moved, sigmoid = _shifted(x, shift)
    return (moved * sigmoid).astype(x.dtype)


def _gated_conv_vjp(
    primals: tuple[mx.array, ...], cotangent: mx.array, _output: mx.array
) -> tuple[mx.array, ...]:
    x, shift, weight, bias = primals
    T = x.shape[1]
    # One frame more on each side, where the cotangent is zero: so the gradient comes out padded.
    s = _padded(_shifted_silu(x, shift), 2)
    value, gate = mx.split(_taps(s, weight, _float(bias)), 2, axis=-1)
    c = _padded(cotangent, 1)
    d_value = (_float(c) * _float(gate) * _sigmoid(gate)).astype(x.dtype)
    # What two lines have in common is not held in between: but for the CPU, where it takes longest.
    apart: Any = (lambda given, _after: given) if cpu.by_arithmetic(x) else mx.depends
    c, value, gate = apart([c, value, gate], [d_value])
    d_gate = (_float(c) * _float(value) * _silu_slope(gate)).astype(x.dtype)
    d_conv = mx.concatenate([d_value, d_gate], axis=-1)  # (B, T + 2, 2F)
    again, sigmoid = _shifted(apart([x], [d_conv])[0], shift)
    slope = sigmoid + again * sigmoid * (1 - sigmoid)
    dx = (_float(_taps(d_conv, weight[:, ::-1], 0.0)) * slope).astype(x.dtype)
    inner = _float(d_conv[:, 1:-1])
    d_weight = mx.stack([mx.sum(inner * _float(s[:, k : k + T]), axis=(0, 1)) for k in (1, 2, 3)], axis=-1)
    d_shift, d_bias = mx.sum(_float(dx), axis=(0, 1)), mx.sum(inner, axis=(0, 1))
    return (dx, d_shift.astype(shift.dtype), d_weight[..., None].astype(weight.dtype),
            d_bias.astype(bias.dtype))  # fmt: skip


gated_conv = with_gradient(mx.compile(_gated_conv), _gated_conv_vjp)
