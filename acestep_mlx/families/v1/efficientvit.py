"""The attention block of the autoencoder (EfficientViT, arXiv:2205.14756) and its norms.

Arrays are (B, height, width, channels), width being time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction

import mlx.core as mx
import mlx.nn as nn

from ...nn.activations import silu_value
from ...nn.convolution import DepthwiseConv2d
from ...nn.windows import Window, side_by_side, windows


@mx.compile
def _sum(residual: mx.array, x: mx.array, bias: mx.array) -> mx.array:
    return residual + (x + bias)


class RMSNorm(nn.Module):
    """Root-mean-square norm over the channels with weight *and* bias, computed in float32."""

    def __init__(self, dims: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = mx.ones((dims,))
        self.bias = mx.zeros((dims,))
        self.eps = eps

    def __call__(self, x: mx.array, residual: mx.array | None = None) -> mx.array:
        """The norm of x, added to `residual`."""
        y = mx.fast.rms_norm(x, self.weight, self.eps)
        return y + self.bias if residual is None else _sum(residual, y, self.bias)


class BatchNorm(nn.Module):
    """Batch norm with its stored statistics, as in evaluation."""

    def __init__(self, dims: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight, self.bias = mx.ones((dims,)), mx.zeros((dims,))
        self.running_mean, self.running_var = mx.zeros((dims,)), mx.ones((dims,))
        self.eps = eps

    def __call__(self, x: mx.array, residual: mx.array | None = None) -> mx.array:
        """The norm of x, added to `residual`."""
        scale = self.weight * mx.rsqrt(self.running_var + self.eps)
        y = x * scale + (self.bias - self.running_mean * scale)
        return y if residual is None else residual + y


NORMS: dict[str, Callable[[int], nn.Module]] = {"rms_norm": RMSNorm, "batch_norm": BatchNorm}


class GroupedLinear(nn.Linear):
    """A 1×1 convolution in groups: weight (O, I / groups)."""

    def __init__(self, dims: int, groups: int) -> None:
        super().__init__(dims // groups, dims, bias=False)
        self.groups = groups

    def __call__(self, x: mx.array) -> mx.array:
        """(B, N, I) → (B, groups, N, O / groups)."""
        B, N, _ = x.shape
        weight = self.weight.reshape(self.groups, -1, self.weight.shape[-1])
        return x.reshape(B, N, self.groups, -1).swapaxes(1, 2) @ weight.swapaxes(1, 2)


class MultiscaleProjection(nn.Module):
    """Queries, keys and values of a neighbourhood: depthwise convolution, then a linear map per head."""

    def __init__(self, dims: int, heads: int, kernel_size: int) -> None:
        super().__init__()
        self.proj_in = DepthwiseConv2d(3 * dims, kernel_size, bias=False)
        self.proj_out = GroupedLinear(3 * dims, groups=3 * heads)

    def __call__(self, qkv: mx.array) -> mx.array:
        """(B, H, W, 3·dims) → (B, 3·heads, H·W, head_dim)."""
        return self.proj_out(self.proj_in(qkv).reshape(qkv.shape[0], -1, qkv.shape[-1]))


class MultiscaleLinearAttention(nn.Module):
    """ReLU linear attention over all positions, in float32.

    The keys and values of all positions meet in one matrix per head, the context, so that a long input can
    be surveyed window by window first and attended to window by window afterwards.
    """

    def __init__(self, channels: int, head_dim: int, kernel_sizes: Sequence[int], norm_type: str) -> None:
        super().__init__()
        heads = channels // head_dim
        inner = heads * head_dim
        self.to_q = nn.Linear(channels, inner, bias=False)
        self.to_k = nn.Linear(channels, inner, bias=False)
        self.to_v = nn.Linear(channels, inner, bias=False)
        self.to_qkv_multiscale = [MultiscaleProjection(inner, heads, k) for k in kernel_sizes]
        self.to_out = nn.Linear(inner * (1 + len(kernel_sizes)), channels, bias=False)
        self.norm_out = NORMS[norm_type](channels)
        self.head_dim = head_dim
        self.halo = max((k // 2 for k in kernel_sizes), default=0)

    def _qkv(self, x: mx.array) -> mx.array:
        """(B, G, 3, H, W, D) float32. A head is 3·D channels in a row, wherever they come from."""
        B, H, W, _ = x.shape
        D = self.head_dim
        qkv = mx.concatenate([self.to_q(x), self.to_k(x), self.to_v(x)], axis=-1)
        scales = [qkv.reshape(B, H * W, -1, D).swapaxes(1, 2)] + [f(qkv) for f in self.to_qkv_multiscale]
        return mx.concatenate(scales, axis=1).astype(mx.float32).reshape(B, -1, 3, H, W, D)

    def survey(self, x: mx.array, size: int | None) -> tuple[mx.array, mx.array]:
        """Queries (B, G, H, W, D) and context Σ kᵀ[v, 1] (B, G, D, D + 1) of all positions, both float32.

        `size` columns W are in work at a time.
        """

        def part(w: Window) -> tuple[mx.array, mx.array]:
            qkv = self._qkv(x[:, :, w.low : w.high])[:, :, :, :, w.start - w.low : w.stop - w.low]
            q, k, v = (qkv[:, :, i] for i in range(3))
            B, G, H, W, D = q.shape
            k, v = nn.relu(k).reshape(B, G, H * W, D), v.reshape(B, G, H * W, D)
            context = mx.concatenate([k.swapaxes(2, 3) @ v, k.sum(axis=2)[..., None]], axis=-1)
            return nn.relu(q), context

        queries, context = [], mx.array(0.0)
        for group in side_by_side(part, windows(x.shape[2], size, self.halo)):
            for q, share in group:
                queries.append(q)
                context = context + share
            mx.eval(context)
        return (queries[0] if len(queries) == 1 else mx.concatenate(queries, axis=3)), context

    def __call__(self, x: mx.array, queries: mx.array, context: mx.array) -> mx.array:
        """(B, H, W, C) → the same, given the queries of these positions and the context of all."""
        B, G, H, W, D = queries.shape
        y = queries.reshape(B, G, H * W, D) @ context  # the last column is the normaliser
        y = y[..., :D] / (y[..., D:] + 1e-15)
        y = y.swapaxes(1, 2).reshape(B, H, W, G * D)
        y = self.to_out(y.astype(x.dtype))
        x = self.norm_out(y, x)
        return x


@mx.compile
def _gated(x: mx.array, gate: mx.array) -> mx.array:
    return x * silu_value(gate)


class GLUMBConv(nn.Module):
    """Gated feed-forward with a depthwise 3×3 convolution, added to the input."""

    def __init__(self, channels: int, expand_ratio: int = 4) -> None:
        super().__init__()
        hidden = expand_ratio * channels
        self.conv_inverted = nn.Linear(channels, 2 * hidden)
        self.conv_depth = DepthwiseConv2d(2 * hidden, 3)
        self.conv_point = nn.Linear(hidden, channels, bias=False)
        self.norm = RMSNorm(channels)

    def __call__(self, x: mx.array) -> mx.array:
        h, gate = mx.split(self.conv_depth(silu_value(self.conv_inverted(x))), 2, axis=-1)
        return self.norm(self.conv_point(_gated(h, gate)), x)


class EfficientViTBlock(nn.Module):
    """Global linear attention, then a local feed-forward. Its activation is SiLU whatever the config says."""

    halo, rate = 1, Fraction(1)  # after the survey, only the feed-forward looks at its neighbours

    def __init__(self, channels: int, head_dim: int, kernel_sizes: Sequence[int], norm_type: str) -> None:
        super().__init__()
        self.attn = MultiscaleLinearAttention(channels, head_dim, kernel_sizes, norm_type)
        self.conv_out = GLUMBConv(channels)

    def __call__(self, x: mx.array, queries: mx.array, context: mx.array) -> mx.array:
        return self.conv_out(self.attn(x, queries, context))
