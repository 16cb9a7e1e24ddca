"""AutoencoderDC: log-mel spectrogram ↔ latents, the deep-compression autoencoder of arXiv:2410.10733.

Parameters carry the names of diffusers' `AutoencoderDC`, and everything that its config allows is here,
except `layer_norm`, which does not run there either. Inside, arrays are channels-last: (B, height, width,
channels), with mel bins as height and time as width; at the edge they are (B, channels, height, width).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, ClassVar

import mlx.core as mx
import mlx.nn as nn

from ...errors import CheckpointError
from ...io.progress import Advance, Progress, silent
from ...io.schema import items, number, whole
from ...nn.activations import silu_value
from ...nn.config import LEVELS, ComponentConfig
from ...nn.convolution import Conv2d, UpsampledConv2d
from ...nn.windows import reach, windowed
from .efficientvit import NORMS, EfficientViTBlock, RMSNorm

TIME = 2  # the axis of (B, height, width, channels) that may be cut into windows
ACTIVATIONS: dict[str, Callable[[mx.array], mx.array]] = {
    "silu": silu_value,
    "swish": silu_value,
    "relu": nn.relu,
    "gelu": nn.gelu,
    "mish": nn.mish,
}


@dataclass
class DCAEConfig(ComponentConfig):
    """diffusers' `AutoencoderDC` config; per-level values may be given once for all levels."""

    in_channels: int = 3
    latent_channels: int = 32
    attention_head_dim: int = 32
    encoder_block_types: str | Sequence[str] = "ResBlock"
    decoder_block_types: str | Sequence[str] = "ResBlock"
    encoder_block_out_channels: Sequence[int] = (128, 256, 512, 512, 1024, 1024)
    decoder_block_out_channels: Sequence[int] = (128, 256, 512, 512, 1024, 1024)
    encoder_layers_per_block: Sequence[int] = (2, 2, 2, 3, 3, 3)
    decoder_layers_per_block: Sequence[int] = (3, 3, 3, 3, 3, 3)
    encoder_qkv_multiscales: Sequence[Sequence[int]] = ((), (), (), (5,), (5,), (5,))
    decoder_qkv_multiscales: Sequence[Sequence[int]] = ((), (), (), (5,), (5,), (5,))
    upsample_block_type: str = "pixel_shuffle"
    downsample_block_type: str = "pixel_unshuffle"
    decoder_norm_types: str | Sequence[str] = "rms_norm"
    decoder_act_fns: str | Sequence[str] = "silu"
    encoder_out_shortcut: bool = True
    decoder_in_shortcut: bool = True
    decoder_conv_act_fn: str = "relu"
    scaling_factor: float = 1.0  # diffusers keeps it for pipelines; encode and decode do not use it

    NAME: ClassVar = "autoencoder"
    REPEATED: ClassVar = ("encoder_layers_per_block", "decoder_layers_per_block")
    LIMITS: ClassVar = {
        "encoder_layers_per_block": items(whole(0, 1 << 17), 1, LEVELS),
        "decoder_layers_per_block": items(whole(0, 1 << 17), 1, LEVELS),
        "scaling_factor": number(),
    }

    def problems(self) -> list[str]:
        """Sizes that do not go together. Makes a tuple of what was given once for all levels."""
        problems: list[str] = []
        for side in ("encoder", "decoder"):
            channels = tuple(getattr(self, f"{side}_block_out_channels"))
            layers = tuple(getattr(self, f"{side}_layers_per_block"))
            setattr(self, f"{side}_block_out_channels", channels)
            setattr(self, f"{side}_layers_per_block", layers)
            per_level = ["block_types", "qkv_multiscales"] + ["norm_types", "act_fns"] * (side == "decoder")
            for name in (f"{side}_{leaf}" for leaf in per_level):
                value = getattr(self, name)
                value = (value,) * len(channels) if isinstance(value, str) else tuple(value)
                setattr(self, name, value)
                if len(value) < len(channels):
                    problems.append(f"{name} has {len(value)} entries for {len(channels)} levels")
            if not channels or len(layers) != len(channels):
                problems.append(
                    f"{side}_layers_per_block has {len(layers)} entries for {len(channels)} levels"
                )
            attended = [
                c
                for c, t in zip(channels, getattr(self, f"{side}_block_types"), strict=False)
                if t != "ResBlock"
            ]
            if any(c < self.attention_head_dim for c in attended):
                problems.append(
                    f"attention_head_dim {self.attention_head_dim} exceeds the {min(attended)} channels of "
                    "a level"
                )
        known = {
            "encoder_block_types": ("ResBlock", "EfficientViTBlock"),
            "decoder_block_types": ("ResBlock", "EfficientViTBlock"),
            "decoder_norm_types": ("rms_norm", "batch_norm"),
            "decoder_act_fns": tuple(ACTIVATIONS),
            "decoder_conv_act_fn": tuple(ACTIVATIONS),
            "upsample_block_type": ("pixel_shuffle", "interpolate"),
            "downsample_block_type": ("pixel_unshuffle", "Conv", "conv"),
        }
        for name, allowed in known.items():
            value = getattr(self, name)
            for entry in (value,) if isinstance(value, str) else value:
                if entry not in allowed:
                    problems.append(f"{name}: {entry!r} is not one of {', '.join(allowed)}")
        return problems


class ResBlock(nn.Module):
    """conv → activation → conv → norm, added to the input."""

    halo, rate = 2, Fraction(1)

    def __init__(self, channels: int, norm_type: str = "rms_norm", act_fn: str = "silu") -> None:
        super().__init__()
        self.conv1 = Conv2d(channels, channels)
        self.conv2 = Conv2d(channels, channels, bias=False)
        self.norm = NORMS[norm_type](channels)
        self._act = ACTIVATIONS[act_fn]

    def __call__(self, x: mx.array) -> mx.array:
        x = self.norm(self.conv2(self._act(self.conv1(x))), x)
        return x


class Down(nn.Module):
    """Half the resolution; beside the convolution, the mean of neighbouring values."""

    halo, rate = 1, Fraction(1, 2)

    def __init__(
        self, in_channels: int, out_channels: int, *, unshuffle: bool, shortcut: bool = True
    ) -> None:
        super().__init__()
        if out_channels % (4 if unshuffle else 1) or (shortcut and 4 * in_channels % out_channels):
            raise CheckpointError(
                f"autoencoder config: cannot go down from {in_channels} to {out_channels} channels"
            )
        if unshuffle:
            self.conv: nn.Module = Conv2d(in_channels, out_channels // 4)
        else:
            self.conv = nn.Conv2d(in_channels, out_channels, 3, stride=2, padding=1)
        self.unshuffle, self.shortcut, self.out_channels = unshuffle, shortcut, out_channels

    def __call__(self, x: mx.array) -> mx.array:
        y: mx.array = self.conv(x)
        if self.unshuffle:
            y = pixel_unshuffle(y)
        if self.shortcut:
            s = pixel_unshuffle(x)
            y = y + s.reshape(*s.shape[:-1], self.out_channels, -1).mean(axis=-1)
        return y


class Up(nn.Module):
    """Twice the resolution; beside the convolution, the repeated input."""

    halo, rate = 1, Fraction(2)

    def __init__(
        self, in_channels: int, out_channels: int, *, interpolate: bool, shortcut: bool = True
    ) -> None:
        super().__init__()
        if shortcut and 4 * out_channels % in_channels:
            raise CheckpointError(
                f"autoencoder config: cannot go up from {in_channels} to {out_channels} channels"
            )
        self.conv = (
            UpsampledConv2d(in_channels, out_channels)
            if interpolate
            else Conv2d(in_channels, 4 * out_channels)
        )
        self.interpolate, self.shortcut = interpolate, shortcut
        self.repeats = 4 * out_channels // in_channels

    def __call__(self, x: mx.array) -> mx.array:
        y = self.conv(x) if self.interpolate else pixel_shuffle(self.conv(x))
        if self.shortcut:
            y = y + pixel_shuffle(mx.repeat(x, self.repeats, axis=-1))
        return y


def pixel_unshuffle(x: mx.array) -> mx.array:
    """(B, 2H, 2W, C) → (B, H, W, 4C), channel order c, dy, dx."""
    B, H, W, C = x.shape
    x = x.reshape(B, H // 2, 2, W // 2, 2, C).transpose(0, 1, 3, 5, 2, 4)
    return x.reshape(B, H // 2, W // 2, 4 * C)


def pixel_shuffle(x: mx.array) -> mx.array:
    """(B, H, W, 4C) → (B, 2H, 2W, C), the inverse of `pixel_unshuffle`."""
    B, H, W, C = x.shape
    x = x.reshape(B, H, W, C // 4, 2, 2).transpose(0, 1, 4, 2, 5, 3)
    return x.reshape(B, 2 * H, 2 * W, C // 4)


class _Local:
    """A function of a few frames as a layer for `windows.reach`; it has no parameters of its own."""

    def __init__(self, fn: Callable[[mx.array], mx.array], halo: int, rate: Fraction) -> None:
        self.fn, self.halo, self.rate = fn, halo, rate

    def __call__(self, x: mx.array) -> mx.array:
        return self.fn(x)


def _block(config: DCAEConfig, side: str, level: int) -> nn.Module:
    channels = getattr(config, f"{side}_block_out_channels")[level]
    norm, act = ("rms_norm", "silu")
    if side == "decoder":
        norm, act = config.decoder_norm_types[level], config.decoder_act_fns[level]
    if getattr(config, f"{side}_block_types")[level] == "ResBlock":
        return ResBlock(channels, norm, act)
    kernel_sizes = getattr(config, f"{side}_qkv_multiscales")[level]
    return EfficientViTBlock(channels, config.attention_head_dim, kernel_sizes, norm)


class Encoder(nn.Module):
    """(B, H, W, in_channels) → (B, H/f, W/f, latent_channels)."""

    def __init__(self, config: DCAEConfig) -> None:
        super().__init__()
        channels, layers = config.encoder_block_out_channels, config.encoder_layers_per_block
        unshuffle = config.downsample_block_type == "pixel_unshuffle"
        if layers[0] > 0:
            self.conv_in: nn.Module = Conv2d(config.in_channels, channels[0])
        else:
            self.conv_in = Down(config.in_channels, channels[1], unshuffle=unshuffle, shortcut=False)
        self.down_blocks = []
        for i, n in enumerate(layers):
            blocks = [_block(config, "encoder", i) for _ in range(n)]
            if n > 0 and i < len(layers) - 1:
                blocks.append(Down(channels[i], channels[i + 1], unshuffle=unshuffle))
            self.down_blocks.append(blocks)
        self.conv_out = Conv2d(channels[-1], config.latent_channels)
        self.out_shortcut = config.encoder_out_shortcut

    def layers(self) -> list[Any]:
        """What is applied, in order."""
        return [
            self.conv_in,
            *(b for level in self.down_blocks for b in level),
            _Local(self._tail, 1, Fraction(1)),
        ]

    def _tail(self, x: mx.array) -> mx.array:
        y = self.conv_out(x)
        if self.out_shortcut:
            y = y + x.reshape(*y.shape, -1).mean(axis=-1)
        return y


class Decoder(nn.Module):
    """(B, h, w, latent_channels) → (B, f·h, f·w, in_channels)."""

    def __init__(self, config: DCAEConfig) -> None:
        super().__init__()
        channels, layers = config.decoder_block_out_channels, config.decoder_layers_per_block
        interpolate = config.upsample_block_type == "interpolate"
        self.conv_in = Conv2d(config.latent_channels, channels[-1])
        self.up_blocks = []
        for i, n in enumerate(layers):
            blocks: list[nn.Module] = []
            if n > 0 and i < len(layers) - 1:
                blocks.append(Up(channels[i + 1], channels[i], interpolate=interpolate))
            self.up_blocks.append(blocks + [_block(config, "decoder", i) for _ in range(n)])
        width = channels[0] if layers[0] > 0 else channels[1]
        self.norm_out = RMSNorm(width)
        if layers[0] > 0:
            self.conv_out: nn.Module = Conv2d(width, config.in_channels)
        else:
            self.conv_out = Up(width, config.in_channels, interpolate=interpolate, shortcut=False)
        self.in_shortcut = config.decoder_in_shortcut
        self._act = ACTIVATIONS[config.decoder_conv_act_fn]

    def layers(self) -> list[Any]:
        """What is applied, in order."""
        blocks = (b for level in reversed(self.up_blocks) for b in level)
        tail = _Local(self._tail, self.conv_out.halo, self.conv_out.rate)
        return [_Local(self._stem, 1, Fraction(1)), *blocks, tail]

    def _stem(self, z: mx.array) -> mx.array:
        y = self.conv_in(z)
        if self.in_shortcut:
            y = y + mx.repeat(z, y.shape[-1] // z.shape[-1], axis=-1)
        return y

    def _tail(self, x: mx.array) -> mx.array:
        x = self.conv_out(self._act(self.norm_out(x)))
        return x


def apply_layers(
    layers: Sequence[Any], x: mx.array, window: int | None, progress: Progress = silent
) -> mx.array:
    """(B, H, W, C) through `layers`; `window` input frames at a time along W (None: all at once).

    Attention sees all frames: they are surveyed in a first pass over the windows. So the result does not
    depend on the window, up to the order of float32 sums.
    """
    runs: list[list[Any]] = [[]]
    for layer in layers:
        if isinstance(layer, EfficientViTBlock):
            runs.append([])
        runs[-1].append(layer)
    runs = [run for run in runs if run]
    scale = Fraction(1)  # frames here per frame of the input
    for n, run in enumerate(runs):
        size = None if window is None else max(1, int(window * scale))
        x = _apply_run(run, x, size)
        scale *= reach(run)[1]
        progress(Advance(done=n + 1, total=len(runs)))
    return x


def _apply_run(run: Sequence[Any], x: mx.array, size: int | None) -> mx.array:
    """Local layers, the first of which may be an attention block."""
    surveyed = run[0].attn.survey(x, size) if isinstance(run[0], EfficientViTBlock) else None

    def piece(low: int, high: int) -> mx.array:
        y = x[:, :, low:high]
        for i, layer in enumerate(run):
            if i == 0 and surveyed is not None:
                queries, context = surveyed
                y = layer(y, queries[:, :, :, low:high], context)
            else:
                y = layer(y)
        return y

    return windowed(piece, x.shape[TIME], run, axis=TIME, size=size)


class AutoencoderDC(nn.Module):
    """The autoencoder; `encode` and `decode` take and give upstream's (B, channels, height, width)."""

    def __init__(self, config: DCAEConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)

    @property
    def compression(self) -> int:
        """Input frames per latent frame."""
        return int(1 / reach(self.encoder.layers())[1])

    def encode(self, x: mx.array, window: int | None = None, progress: Progress = silent) -> mx.array:
        """(B, in_channels, H, W) → (B, latent_channels, H/f, W/f) in the dtype of the weights.

        `window` bounds the memory: that many latent frames are in work at a time. H and W must be multiples
        of f = `compression`.
        """
        x = x.transpose(0, 2, 3, 1).astype(self.encoder.conv_out.weight.dtype)
        size = None if window is None else window * self.compression
        return apply_layers(self.encoder.layers(), x, size, progress).transpose(0, 3, 1, 2)

    def decode(self, z: mx.array, window: int | None = None, progress: Progress = silent) -> mx.array:
        """(B, latent_channels, h, w) → (B, in_channels, f·h, f·w); `window` as in `encode`."""
        z = z.transpose(0, 2, 3, 1).astype(self.decoder.conv_in.weight.dtype)
        return apply_layers(self.decoder.layers(), z, window, progress).transpose(0, 3, 1, 2)
