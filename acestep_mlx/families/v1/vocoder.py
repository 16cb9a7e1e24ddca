"""Vocoder: log-mel spectrogram → waveform; a ConvNeXt backbone (arXiv:2201.03545) and a HiFi-GAN head
(arXiv:2010.05646), upstream's `ADaMoSHiFiGANV1`.

Parameters carry the upstream names, with weight norm folded into plain weights. Arrays inside are
(B, frames, channels).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from math import prod
from typing import Any, ClassVar

import mlx.core as mx
import mlx.nn as nn

from ...io.progress import Progress, part, silent
from ...io.schema import number
from ...nn.activations import silu_value
from ...nn.config import MANY, ComponentConfig
from ...nn.convolution import Conv1d, UpsamplingConv1d
from ...nn.windows import windowed

TIME = 1  # the axis of (B, frames, channels) that may be cut into windows


@dataclass
class VocoderConfig(ComponentConfig):
    """Upstream's config of the vocoder and of the log-mel spectrogram it was trained on (Hz, samples)."""

    input_channels: int = 128
    depths: Sequence[int] = (3, 3, 9, 3)
    dims: Sequence[int] = (128, 256, 384, 512)
    drop_path_rate: float = 0.0  # training only
    kernel_sizes: Sequence[int] = (7,)
    upsample_rates: Sequence[int] = (4, 4, 2, 2, 2, 2, 2)
    upsample_kernel_sizes: Sequence[int] = (8, 8, 4, 4, 4, 4, 4)
    resblock_kernel_sizes: Sequence[int] = (3, 7, 11, 13)
    resblock_dilation_sizes: Sequence[Sequence[int]] = ((1, 3, 5), (1, 3, 5), (1, 3, 5), (1, 3, 5))
    num_mels: int = 512
    upsample_initial_channel: int = 1024
    use_template: bool = False
    pre_conv_kernel_size: int = 13
    post_conv_kernel_size: int = 13
    sampling_rate: int = 44100
    n_fft: int = 2048
    win_length: int = 2048
    hop_length: int = 512
    f_min: float = 40
    f_max: float = 16000
    n_mels: int = 128

    NAME: ClassVar = "vocoder"
    REPEATED: ClassVar = ("depths",)
    LIMITS: ClassVar = {
        "drop_path_rate": number(0, 1), "f_min": number(0, 1e6), "f_max": number(0, 1e6),
        "sampling_rate": MANY,
    }  # fmt: skip

    def problems(self) -> list[str]:
        """Sizes that do not go together."""
        problems = []
        if self.use_template:
            problems.append("use_template needs a pitch input, which ACE-Step does not have")
        if self.win_length > self.n_fft or self.hop_length > self.n_fft:
            problems.append(f"win_length and hop_length must not exceed n_fft {self.n_fft}")
        if self.f_min >= self.f_max:
            problems.append(f"f_min {self.f_min:g} is not below f_max {self.f_max:g}")
        if len(self.depths) != len(self.dims):
            problems.append(f"{len(self.depths)} depths for {len(self.dims)} dims")
        if prod(self.upsample_rates) != self.hop_length:
            problems.append(
                f"upsample_rates multiply to {prod(self.upsample_rates)}, not to hop_length {self.hop_length}"
            )
        if len(self.upsample_rates) != len(self.upsample_kernel_sizes):
            problems.append("upsample_rates and upsample_kernel_sizes differ in length")
        elif any(
            k < u or (k - u) % 2 for u, k in zip(self.upsample_rates, self.upsample_kernel_sizes, strict=True)
        ):
            problems.append("an upsample kernel must exceed its rate by an even number")
        if len(self.resblock_kernel_sizes) != len(self.resblock_dilation_sizes):
            problems.append("resblock_kernel_sizes and resblock_dilation_sizes differ in length")
        odd = (
            *self.kernel_sizes,
            *self.resblock_kernel_sizes,
            self.pre_conv_kernel_size,
            self.post_conv_kernel_size,
        )
        if any(k % 2 == 0 for k in odd):
            problems.append("convolution kernels must be odd")
        if self.dims[-1] != self.num_mels:
            problems.append(f"num_mels {self.num_mels} is not the backbone's width {self.dims[-1]}")
        if self.upsample_initial_channel % 2 ** len(self.upsample_rates):
            problems.append(f"upsample_initial_channel cannot be halved {len(self.upsample_rates)} times")
        return problems


class ConvNeXtBlock(nn.Module):
    """Depthwise convolution → norm → MLP → per-channel scale, without the residual."""

    def __init__(self, dims: int, kernel_size: int) -> None:
        super().__init__()
        self.dwconv = Conv1d(dims, dims, kernel_size, groups=dims)
        self.norm = nn.LayerNorm(dims, eps=1e-6)
        self.pwconv1 = nn.Linear(dims, 4 * dims)
        self.pwconv2 = nn.Linear(4 * dims, dims)
        self.gamma = mx.full((dims,), 1e-6)

    def branch(self, x: mx.array) -> mx.array:
        return self.gamma * self.pwconv2(nn.gelu(self.pwconv1(self.norm(self.dwconv(x)))))

    def __call__(self, x: mx.array) -> mx.array:
        return x + self.branch(x)


class ParallelConvNeXtBlock(nn.Module):
    """Blocks of several kernel sizes side by side."""

    def __init__(self, dims: int, kernel_sizes: Sequence[int]) -> None:
        super().__init__()
        self.blocks = [ConvNeXtBlock(dims, k) for k in kernel_sizes]

    def __call__(self, x: mx.array) -> mx.array:
        return x + sum(block.branch(x) for block in self.blocks)


class Backbone(nn.Module):
    """ConvNeXt encoder, (B, F, input_channels) → (B, F, dims[-1])."""

    rate = Fraction(1)

    def __init__(self, config: VocoderConfig) -> None:
        super().__init__()
        dims, kernels = config.dims, config.kernel_sizes
        self.channel_layers = [
            [nn.Conv1d(config.input_channels, dims[0], 7), nn.LayerNorm(dims[0], eps=1e-6)]
        ]
        for a, b in pairwise(dims):
            self.channel_layers.append([nn.LayerNorm(a, eps=1e-6), nn.Linear(a, b)])
        self.stages = [
            [
                ConvNeXtBlock(d, kernels[0]) if len(kernels) == 1 else ParallelConvNeXtBlock(d, kernels)
                for _ in range(n)
            ]
            for n, d in zip(config.depths, dims, strict=True)
        ]
        self.norm = nn.LayerNorm(dims[-1], eps=1e-6)
        self.halo = 3 + sum(config.depths) * (max(kernels) // 2)

    def __call__(self, x: mx.array) -> mx.array:
        x = mx.concatenate([mx.repeat(x[:, :1], 3, axis=1), x, mx.repeat(x[:, -1:], 3, axis=1)], axis=1)
        for channel_layer, stage in zip(self.channel_layers, self.stages, strict=True):
            for layer in (*channel_layer, *stage):
                x = layer(x)
        x = self.norm(x)
        return x


class ResBlock(nn.Module):
    """Pairs of a dilated and a plain convolution, each pair added to its input."""

    def __init__(self, channels: int, kernel_size: int, dilations: Sequence[int]) -> None:
        super().__init__()
        self.convs1 = [Conv1d(channels, channels, kernel_size, d) for d in dilations]
        self.convs2 = [Conv1d(channels, channels, kernel_size) for _ in dilations]
        self.halo = sum(conv.halo for conv in (*self.convs1, *self.convs2))

    def __call__(self, x: mx.array) -> mx.array:
        for dilated, plain in zip(self.convs1, self.convs2, strict=True):
            x = x + plain(silu_value(dilated(silu_value(x))))
        return x


class _Stage:
    """SiLU, upsampling, and the mean of several blocks; the parameters belong to the head."""

    def __init__(self, up: UpsamplingConv1d, blocks: Sequence[ResBlock]) -> None:
        self.up, self.blocks = up, blocks
        self.rate = up.rate
        self.halo = up.halo + max(block.halo for block in blocks) / up.rate

    def __call__(self, x: mx.array) -> mx.array:
        x = self.up(silu_value(x))
        total = self.blocks[0](x)
        for block in self.blocks[1:]:
            total = total + block(x)
        return total / len(self.blocks)


class Head(nn.Module):
    """HiFi-GAN generator, (B, F, num_mels) → (B, hop·F, 1) in [−1, 1]."""

    def __init__(self, config: VocoderConfig) -> None:
        super().__init__()
        widths = [config.upsample_initial_channel // 2**i for i in range(len(config.upsample_rates) + 1)]
        self.conv_pre = Conv1d(config.num_mels, widths[0], config.pre_conv_kernel_size)
        self.ups = [
            UpsamplingConv1d(a, b, k, u)
            for a, b, k, u in zip(
                widths, widths[1:], config.upsample_kernel_sizes, config.upsample_rates, strict=False
            )
        ]
        kernels, dilations = config.resblock_kernel_sizes, config.resblock_dilation_sizes
        self.resblocks = [
            ResBlock(width, k, d) for width in widths[1:] for k, d in zip(kernels, dilations, strict=True)
        ]
        self.conv_post = Conv1d(widths[-1], 1, config.post_conv_kernel_size)

    def layers(self) -> list[Any]:
        """What is applied, in order; SiLU comes before `conv_post` and tanh after."""
        n = len(self.resblocks) // len(self.ups)
        stages = (_Stage(up, self.resblocks[i * n : (i + 1) * n]) for i, up in enumerate(self.ups))
        return [self.conv_pre, *stages, self.conv_post]

    def __call__(self, x: mx.array) -> mx.array:
        *layers, last = self.layers()
        for layer in layers:
            x = layer(x)
        return mx.tanh(last(silu_value(x)))


class Vocoder(nn.Module):
    """Log-mel spectrogram → waveform."""

    def __init__(self, config: VocoderConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = Backbone(config)
        self.head = Head(config)

    def __call__(self, mel: mx.array, window: int | None = None, progress: Progress = silent) -> mx.array:
        """(B, n_mels, F) → (B, 1, hop·F) in the dtype of the weights.

        `window` bounds the memory: that many frames are in work at a time; the result is the same.
        """
        x = mel.swapaxes(1, 2).astype(self.backbone.norm.weight.dtype)
        total = x.shape[TIME]
        parts: list[tuple[Any, Sequence[Any]]] = [
            (self.backbone, [self.backbone]),
            (self.head, self.head.layers()),
        ]
        for i, (network, layers) in enumerate(parts):

            def piece(low: int, high: int, network: Any = network, x: mx.array = x) -> mx.array:
                x = network(x[:, low:high])
                return x

            share = part(progress, i, len(parts))
            x = windowed(piece, total, layers, axis=TIME, size=window, progress=share)
        return x.swapaxes(1, 2)
