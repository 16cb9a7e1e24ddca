"""Convolutions that are fast on every backend.

On a GPU these are MLX's own kernels; on the CPU the same sums are arranged differently (`cpu`). Arrays are
channels-last.
"""

from __future__ import annotations

import functools
from fractions import Fraction

import mlx.core as mx
import mlx.nn as nn

from . import cpu
from .device import on_cpu


def by_products(x: mx.array) -> bool:
    """Whether matrix products convolve x (…, C): on the CPU, where unfolding costs more unless C is small."""
    return on_cpu() and x.shape[-1] >= 16


class Conv2d(nn.Conv2d):
    """A 3×3 convolution of stride 1 that keeps the size."""

    halo, rate = 1, Fraction(1)

    def __init__(self, in_channels: int, out_channels: int, bias: bool = True) -> None:
        super().__init__(in_channels, out_channels, 3, padding=1, bias=bias)
        self._winograd = cpu.Winograd()

    def __call__(self, x: mx.array) -> mx.array:
        if not by_products(x):
            found: mx.array = super().__call__(x)
            return found
        if x.dtype == mx.float32:
            return self._winograd(x, self.weight, self.bias if "bias" in self else None)
        # Other types are too coarse for sums of inputs.
        y = cpu.convolve_rows(x, [(i, j, self.weight[:, i, j].T) for i in range(3) for j in range(3)])
        return y + self.bias if "bias" in self else y


class UpsampledConv2d(Conv2d):
    """Nearest-neighbour upsampling by 2, then a 3×3 convolution."""

    rate = Fraction(2)

    def __call__(self, x: mx.array) -> mx.array:
        if not on_cpu():
            return super().__call__(mx.repeat(mx.repeat(x, 2, axis=1), 2, axis=2))
        return cpu.upsampled(x, self.weight) + self.bias


class DepthwiseConv2d(nn.Conv2d):
    """A k×k convolution of each channel on its own, same size."""

    def __init__(self, channels: int, kernel_size: int, bias: bool = True) -> None:
        super().__init__(
            channels, channels, kernel_size, padding=kernel_size // 2, groups=channels, bias=bias
        )

    def __call__(self, x: mx.array) -> mx.array:
        if not on_cpu():
            found: mx.array = super().__call__(x)
            return found
        return cpu.depthwise(x, self.weight, self.bias if "bias" in self else None)


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
        if self.dilation == 1 or not on_cpu():
            found: mx.array = super().__call__(x)
            return found
        return cpu.dilated(x, self.weight, self.dilation, self.halo) + self.bias


class StridedConv1d(nn.Conv1d):
    """A convolution without padding or bias: (B, L, C) → (B, (L − kernel) // stride + 1, O)."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, bias=False)

    def __call__(self, x: mx.array) -> mx.array:
        if not by_products(x):
            found: mx.array = super().__call__(x)
            return found
        K, S = self.weight.shape[1], self.stride
        length = (x.shape[1] - K) // S + 1
        taps = (x[:, k : k + S * (length - 1) + 1 : S] @ self.weight[:, k].T for k in range(K))
        return functools.reduce(mx.add, taps)


class GroupedConv1d(nn.Conv1d):
    """A convolution in groups that keeps the length; an even window K sees t − K/2 … t + K/2 − 1."""

    def __init__(self, channels: int, kernel_size: int, groups: int) -> None:
        super().__init__(channels, channels, kernel_size, padding=kernel_size // 2, groups=groups)

    def __call__(self, x: mx.array) -> mx.array:
        B, L, C = x.shape
        if not by_products(x):
            found: mx.array = super().__call__(x)
            return found[:, :L]
        G, K = self.groups, self.weight.shape[1]
        padded = mx.pad(x, [(0, 0), (K // 2, K // 2), (0, 0)])
        parts = padded.reshape(B, -1, G, C // G).transpose(0, 2, 1, 3)  # [B, G, L + K, C / G]
        weight = self.weight.reshape(G, C // G, K, C // G).transpose(2, 0, 3, 1)  # [K, G, in, out]
        total = functools.reduce(mx.add, (parts[:, :, k : k + L] @ weight[k] for k in range(K)))
        return total.transpose(0, 2, 1, 3).reshape(B, L, C) + self.bias


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
