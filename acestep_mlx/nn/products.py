"""Products with a layer's weight, dense or quantised."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn


def times_weight(x: mx.array, linear: nn.Module) -> mx.array:
    """x Wᵀ without the bias, (..., in) → (..., out); a quantised weight stays packed."""
    if isinstance(linear, nn.QuantizedLinear):
        return mx.quantized_matmul(
            x,
            linear.weight,
            scales=linear.scales,
            biases=linear.get("biases"),
            transpose=True,
            group_size=linear.group_size,
            bits=linear.bits,
            mode=linear.mode,
        )
    found: mx.array = x @ linear.weight.astype(x.dtype).T
    return found
