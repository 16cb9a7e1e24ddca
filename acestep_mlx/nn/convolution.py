"""Convolutions that are fast on every backend.

On a GPU these are MLX's own kernels. On the CPU MLX has good matrix products and plain element-wise loops,
but unfolds the whole input for a convolution, and has no fast dilated, depthwise or transposed one; there
the same sums are arranged differently. Arrays are channels-last.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction

import mlx.core as mx
import mlx.nn as nn

from .device import on_cpu
from .winograd import Winograd

KEPT_BYTES = 1 << 29


@contextmanager
def kept_buffers() -> Iterator[None]:
    """On the CPU, let MLX keep up to KEPT_BYTES of freed memory for reuse while this lasts.

    By default it keeps 32 MB there, so that every large array comes fresh from the system, page by page:
    that costs several times as much as adding two of them.
    """
    if not on_cpu():
        yield
        return
    before = mx.set_cache_limit(KEPT_BYTES)
    if before > KEPT_BYTES:
        mx.set_cache_limit(before)
    try:
        yield
    finally:
        mx.set_cache_limit(before)


def _convolve_rows(x: mx.array, taps: Sequence[tuple[int, int, mx.array]]) -> mx.array:
    """(B, H, W, C) → (B, H, W, O): Σ x[y + i − 1, x + j − 1] @ w over the taps (i, j, w) with 0 ≤ i, j ≤ 2.

    With a border of zeros, all pixels in one column of rows, a shift in the image is an offset in the rows,
    so that nothing is unfolded. The rows that mix neighbours across the border are computed and discarded.
    """
    B, H, W, _ = x.shape
    x = mx.pad(x, [(0, 0), (1, 2), (1, 1), (0, 0)])
    rows = x.reshape(-1, x.shape[-1])
    count = (B * (H + 3) - 3) * (W + 2)
    total: mx.array | None = None
    for i, j, w in taps:
        offset = i * (W + 2) + j
        part = rows[offset : offset + count]
        total = part @ w if total is None else mx.addmm(total, part, w)
    assert total is not None
    if B > 1:
        total = mx.pad(total, [(0, 3 * (W + 2)), (0, 0)])
    return total.reshape(B, -1, W + 2, total.shape[-1])[:, :H, :W]


class Conv2d(nn.Conv2d):
    """A 3×3 convolution of stride 1 that keeps the size."""

    halo, rate = 1, Fraction(1)

    def __init__(self, in_channels: int, out_channels: int, bias: bool = True) -> None:
        super().__init__(in_channels, out_channels, 3, padding=1, bias=bias)
        self._winograd = Winograd()

    def __call__(self, x: mx.array) -> mx.array:
        if not on_cpu() or x.shape[-1] < 16:  # few channels: unfolding costs less than thin products
            return super().__call__(x)
        if x.dtype == mx.float32:
            return self._winograd(x, self.weight, self.bias if "bias" in self else None)
        # Other types are too coarse for sums of inputs.
        y = _convolve_rows(x, [(i, j, self.weight[:, i, j].T) for i in range(3) for j in range(3)])
        return y + self.bias if "bias" in self else y


class UpsampledConv2d(Conv2d):
    """Nearest-neighbour upsampling by 2, then a 3×3 convolution."""

    rate = Fraction(2)

    def __call__(self, x: mx.array) -> mx.array:
        if not on_cpu():
            return super().__call__(mx.repeat(mx.repeat(x, 2, axis=1), 2, axis=2))
        # The kernel meets every pixel up to four times: four 2×2 kernels on the small image do the same.
        B, H, W, _ = x.shape
        phases = []
        for a in range(2):
            for b in range(2):
                kernel = _fold_pairs(_fold_pairs(self.weight, 1, a), 2, b)  # [O, 2, 2, C]
                taps = [(a + i, b + j, kernel[:, i, j].T) for i in range(2) for j in range(2)]
                phases.append(_convolve_rows(x, taps))
        y = mx.stack([mx.stack(phases[:2], axis=3), mx.stack(phases[2:], axis=3)], axis=2)
        return y.reshape(B, 2 * H, 2 * W, -1) + self.bias


def _fold_pairs(weight: mx.array, axis: int, phase: int) -> mx.array:
    """Three taps on an image with each pixel doubled → two taps on the image, for one of two phases."""
    w = [mx.take(weight, mx.array([k]), axis=axis) for k in range(3)]
    pair = [w[0], w[1] + w[2]] if phase == 0 else [w[0] + w[1], w[2]]
    return mx.concatenate(pair, axis=axis)


@mx.compile
def _add_products(total: mx.array, parts: list[mx.array], weights: list[mx.array]) -> mx.array:
    """total + Σ part · weight, in one pass over memory."""
    for part, weight in zip(parts, weights, strict=True):
        total = total + part * weight
    return total


class DepthwiseConv2d(nn.Conv2d):
    """A k×k convolution of each channel on its own, same size."""

    def __init__(self, channels: int, kernel_size: int, bias: bool = True) -> None:
        super().__init__(
            channels, channels, kernel_size, padding=kernel_size // 2, groups=channels, bias=bias
        )

    def __call__(self, x: mx.array) -> mx.array:
        if not on_cpu():
            return super().__call__(x)
        # As in `_convolve_rows`, with a border of K // 2.
        B, H, W, C = x.shape
        K, P = self.weight.shape[1], self.weight.shape[1] // 2
        weight = mx.contiguous(self.weight.reshape(C, K * K).T)
        rows = mx.pad(x, [(0, 0), (P, P + 1), (P, P), (0, 0)]).reshape(-1, C)
        count = (B * (H + 2 * P + 1) - 2 * P - 1) * (W + 2 * P)
        parts = [rows[o : o + count] for o in (i * (W + 2 * P) + j for i in range(K) for j in range(K))]
        total = self.bias if "bias" in self else mx.zeros((C,), dtype=x.dtype)
        for k in range(0, K * K, 3):  # the pointers of more than three taps do not fit into registers
            total = _add_products(total, parts[k : k + 3], list(weight[k : k + 3]))
        if B > 1:
            total = mx.pad(total, [(0, (2 * P + 1) * (W + 2 * P)), (0, 0)])
        return total.reshape(B, -1, W + 2 * P, C)[:, :H, :W]


class Conv1d(nn.Conv1d):
    """A convolution that keeps the length, dilated or in groups."""

    rate = Fraction(1)

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, dilation: int = 1, groups: int = 1
    ) -> None:
        self.halo = dilation * (kernel_size - 1) // 2
        super().__init__(
            in_channels, out_channels, kernel_size, padding=self.halo, dilation=dilation, groups=groups
        )

    def __call__(self, x: mx.array) -> mx.array:
        d = self.dilation
        if d == 1 or not on_cpu():
            return super().__call__(x)
        # The d interleaved signals are convolved one by one.
        B, L, C = x.shape
        x = mx.pad(x, [(0, 0), (0, -L % d), (0, 0)])
        x = x.reshape(B, -1, d, C).swapaxes(1, 2).reshape(B * d, -1, C)
        y = mx.conv1d(x, self.weight, padding=self.padding // d)
        y = y.reshape(B, d, -1, y.shape[-1]).swapaxes(1, 2).reshape(B, -1, y.shape[-1])
        return y[:, :L] + self.bias


class UpsamplingConv1d(nn.ConvTranspose1d):
    """A transposed convolution (B, L, C) → (B, rate·L, O): one matrix product and an overlap-add."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, rate: int) -> None:
        super().__init__(
            in_channels, out_channels, kernel_size, stride=rate, padding=(kernel_size - rate) // 2
        )
        self.rate = Fraction(rate)
        self.halo = max((kernel_size - 1 - self.padding) // rate, (rate - 1 + self.padding) // rate)

    def __call__(self, x: mx.array) -> mx.array:
        B, L, C = x.shape
        O, K, _ = self.weight.shape
        U = self.stride
        M = -(-K // U)  # output blocks that an input frame reaches, from its own on
        w = mx.pad(self.weight, [(0, 0), (0, M * U - K), (0, 0)])
        z = (x @ w.reshape(O, M * U, C).transpose(2, 1, 0).reshape(C, -1)).reshape(B, L, M, U * O)
        y = mx.zeros((B, L + M - 1, U * O), dtype=z.dtype)
        for m in range(M):
            y = y + mx.pad(z[:, :, m], [(0, 0), (m, M - 1 - m), (0, 0)])
        y = y.reshape(B, -1, O)
        return y[:, self.padding : self.padding + L * U] + self.bias
