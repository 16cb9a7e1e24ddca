"""The autoencoder of ACE-Step 1.5: stereo at 48 kHz ↔ 64 numbers, 25 times a second.

A convolutional encoder and decoder with Snake activations (arXiv 2006.08195), upstream's `AutoencoderOobleck`
(Stable Audio Open, arXiv 2407.14358); weight normalisation is folded into plain weights by the key map. Long
audio is worked on in windows whose overlap covers everything that the layers can see, so that the results
are those of one pass, in bounded memory. Arrays are (B, time, channels).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, ClassVar

import mlx.core as mx
import mlx.nn as nn

from ...errors import DataError
from ...io.progress import Progress, silent
from ...nn import cpu
from ...nn.config import MANY, ComponentConfig
from ...nn.convolution import UpsamplingConv1d, by_products
from ...nn.windows import windowed

WINDOW = (
    64  # latent frames in work at a time, 2.6 s; a guess between memory and the overlap of 7 to 10 frames
)
DILATIONS = (1, 3, 9)


@dataclass(frozen=True)
class OobleckConfig(ComponentConfig):
    """Sizes; the defaults are the released autoencoder's. `sampling_rate` in Hz."""

    encoder_hidden_size: int = 128
    downsampling_ratios: Sequence[int] = (2, 4, 4, 6, 10)
    channel_multiples: Sequence[int] = (1, 2, 4, 8, 16)
    decoder_channels: int = 128
    decoder_input_channels: int = 64
    audio_channels: int = 2
    sampling_rate: int = 48000

    NAME: ClassVar = "vae"
    LIMITS: ClassVar = {"sampling_rate": MANY}
    REQUIRED: ClassVar = ("downsampling_ratios",)

    @property
    def hop(self) -> int:
        """Samples a latent frame."""
        return math.prod(self.downsampling_ratios)

    def problems(self) -> list[str]:
        """Sizes that do not go together."""
        problems = []
        if any(ratio % 2 for ratio in self.downsampling_ratios):
            problems.append(f"downsampling_ratios must be even, got {list(self.downsampling_ratios)}")
        if len(self.channel_multiples) != len(self.downsampling_ratios):
            problems.append(
                f"{len(self.channel_multiples)} channel_multiples for "
                f"{len(self.downsampling_ratios)} downsampling_ratios"
            )
        if self.encoder_hidden_size != 2 * self.decoder_input_channels:
            problems.append(
                f"encoder_hidden_size {self.encoder_hidden_size} is not twice "
                f"decoder_input_channels {self.decoder_input_channels}"
            )
        return problems


def _sine_squared(x: mx.array) -> mx.array:
    return cpu.sine_squared(x) if cpu.by_arithmetic(x) else mx.square(mx.sin(x))


@mx.compile
def _snake(x: mx.array, frequency: mx.array, width: mx.array) -> mx.array:
    return x + _sine_squared(frequency * x) * width


class Snake(nn.Module):
    """x + sin²(e^α · x) / e^β, with α and β of each channel."""

    rate, halo = Fraction(1), 0

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.alpha = mx.zeros((channels,))
        self.beta = mx.zeros((channels,))

    def __call__(self, x: mx.array) -> mx.array:
        return _snake(x, mx.exp(self.alpha), 1 / (mx.exp(self.beta) + 1e-9))


class SameConv1d(nn.Conv1d):
    """A convolution that keeps the length; the decoder's last has no bias."""

    rate = Fraction(1)

    def __init__(
        self, inputs: int, outputs: int, kernel_size: int, dilation: int = 1, bias: bool = True
    ) -> None:
        self.halo = dilation * (kernel_size // 2)
        super().__init__(inputs, outputs, kernel_size, padding=self.halo, dilation=dilation, bias=bias)

    def __call__(self, x: mx.array) -> mx.array:
        if not by_products(x):
            whole: mx.array = super().__call__(x)
            return whole
        y = cpu.convolve_by_taps(x, self.weight, self.dilation, self.halo)
        return y + self.bias if "bias" in self else y


class DownsamplingConv1d(nn.Conv1d):
    """Kernel 2s, stride s, padding s/2: (B, L, C) → (B, ⌊L/s⌋, O), as two matrix products."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        self.rate, self.halo = Fraction(1, stride), stride // 2
        super().__init__(inputs, outputs, 2 * stride, stride=stride, padding=stride // 2)

    def __call__(self, x: mx.array) -> mx.array:
        B, L, C = x.shape
        s = self.stride
        T = L // s
        x = mx.pad(x, [(0, 0), (s // 2, s), (0, 0)])[:, : (T + 1) * s].reshape(B, T + 1, s * C)
        O = self.weight.shape[0]
        first, second = self.weight.reshape(O, 2, s * C).swapaxes(0, 1)
        return x[:, :-1] @ first.T + x[:, 1:] @ second.T + self.bias


class ResidualUnit(nn.Module):
    """Snake, dilated convolution, Snake, 1×1 convolution, added to the input."""

    rate = Fraction(1)

    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        self.snake1 = Snake(channels)
        self.conv1 = SameConv1d(channels, channels, 7, dilation)
        self.snake2 = Snake(channels)
        self.conv2 = SameConv1d(channels, channels, 1)
        self.halo = self.conv1.halo

    def __call__(self, x: mx.array) -> mx.array:
        x = x + self.conv2(self.snake2(self.conv1(self.snake1(x))))
        return x


class EncoderBlock(nn.Module):
    """Three residual units, then fewer frames of more channels."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.res_unit1, self.res_unit2, self.res_unit3 = (ResidualUnit(inputs, d) for d in DILATIONS)
        self.snake1 = Snake(inputs)
        self.conv1 = DownsamplingConv1d(inputs, outputs, stride)

    def steps(self) -> list[Any]:
        """What is applied, in order."""
        return [self.res_unit1, self.res_unit2, self.res_unit3, self.snake1, self.conv1]


class DecoderBlock(nn.Module):
    """More frames of fewer channels, then three residual units."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.snake1 = Snake(inputs)
        self.conv_t1 = UpsamplingConv1d(inputs, outputs, 2 * stride, stride)
        self.res_unit1, self.res_unit2, self.res_unit3 = (ResidualUnit(outputs, d) for d in DILATIONS)

    def steps(self) -> list[Any]:
        """What is applied, in order."""
        return [self.snake1, self.conv_t1, self.res_unit1, self.res_unit2, self.res_unit3]


class _Half(nn.Module):
    """A convolution, blocks, Snake and a last convolution."""

    conv1: nn.Module
    block: Sequence[Any]
    snake1: Snake
    conv2: nn.Module

    def steps(self) -> list[Any]:
        """What is applied, in order."""
        inner = [step for block in self.block for step in block.steps()]
        return [self.conv1, *inner, self.snake1, self.conv2]

    def __call__(self, x: mx.array) -> mx.array:
        for step in self.steps():
            x = step(x)
        return x


class Encoder(_Half):
    """(B, samples, 2) → (B, frames, 2·C): means, and what gives the deviations."""

    def __init__(self, config: OobleckConfig) -> None:
        super().__init__()
        D = config.encoder_hidden_size
        widths = [D * m for m in (1, *config.channel_multiples)]
        self.conv1 = SameConv1d(config.audio_channels, D, 7)
        self.block = [
            EncoderBlock(a, b, s)
            for a, b, s in zip(widths[:-1], widths[1:], config.downsampling_ratios, strict=True)
        ]
        self.snake1 = Snake(widths[-1])
        self.conv2 = SameConv1d(widths[-1], D, 3)


class Decoder(_Half):
    """(B, frames, C) → (B, samples, 2)."""

    def __init__(self, config: OobleckConfig) -> None:
        super().__init__()
        D = config.decoder_channels
        widths = [D * m for m in (1, *config.channel_multiples)][::-1]
        self.conv1 = SameConv1d(config.decoder_input_channels, widths[0], 7)
        self.block = [
            DecoderBlock(a, b, s)
            for a, b, s in zip(widths[:-1], widths[1:], config.downsampling_ratios[::-1], strict=True)
        ]
        self.snake1 = Snake(D)
        self.conv2 = SameConv1d(D, config.audio_channels, 7, bias=False)


class Oobleck(nn.Module):
    """Waveform ↔ latents. There is no scaling factor: a latent is mean + deviation · noise."""

    def __init__(self, config: OobleckConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)

    @property
    def dtype(self) -> mx.Dtype:
        """The compute dtype."""
        return self.decoder.snake1.alpha.dtype

    def encode(
        self, wav: mx.array, window: int | None = WINDOW, progress: Progress = silent
    ) -> tuple[mx.array, mx.array]:
        """Mean and deviation, each (B, samples // 1920, C) float32, of wav (B, samples, 2) at 48 kHz.

        window: latent frames in work at a time; None: all. progress is told the samples done. DataError for
        another shape, and for audio that is shorter than a frame.
        """
        channels, hop = self.config.audio_channels, self.config.hop
        if wav.ndim != 3 or wav.shape[2] != channels or wav.shape[1] < hop:
            raise DataError(f"audio must be (B, {hop} or more samples, {channels}), got {tuple(wav.shape)}")
        samples = wav.shape[1]
        length = samples // hop * hop
        wav = wav.astype(self.dtype)

        def piece(low: int, high: int) -> mx.array:
            # Samples beyond the last whole frame are still seen by it.
            return self.encoder(wav[:, low : samples if high == length else high])

        size = None if window is None else window * hop
        y = windowed(piece, length, self.encoder.steps(), axis=1, size=size, progress=progress)
        mean, scale = mx.split(y.astype(mx.float32), 2, axis=-1)
        return mean, mx.logaddexp(scale, 0.0) + 1e-4  # softplus

    def decode(self, latents: mx.array, window: int | None = WINDOW, progress: Progress = silent) -> mx.array:
        """Waveform (B, 1920·T, 2) float32 at 48 kHz, not clipped, of latents (B, T, C).

        window: latent frames in work at a time; None: all. progress is told the frames done. DataError for
        another shape.
        """
        C = self.config.decoder_input_channels
        if latents.ndim != 3 or latents.shape[2] != C or latents.shape[1] == 0:
            raise DataError(f"latents must be (B, T, {C}), got {tuple(latents.shape)}")
        z = latents.astype(self.dtype)

        def piece(low: int, high: int) -> mx.array:
            return self.decoder(z[:, low:high])

        y = windowed(piece, z.shape[1], self.decoder.steps(), axis=1, size=window, progress=progress)
        return y.astype(mx.float32)
