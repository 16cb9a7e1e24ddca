"""Dense and quantised linear layers under one set of functions, and what wraps them."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

from ..nn.products import times_weight

QUANTIZED = (nn.QuantizedLinear, nn.QuantizedEmbedding)


class Wrapper:
    """Mix-in of every layer that stands in a linear layer's place and keeps it as `.linear`."""

    linear: nn.Module


def is_linear(module: nn.Module) -> bool:
    return isinstance(module, (nn.Linear, nn.QuantizedLinear))


def base_linears(model: nn.Module) -> dict[str, nn.Module]:
    """Path → the linear layer there, seen through any wrapper."""
    found = {}
    inside = set()
    for path, module in model.named_modules():
        if isinstance(module, Wrapper):
            found[path] = module.linear
            inside.add(f"{path}.linear")
        elif is_linear(module):
            found[path] = module
    return {path: module for path, module in sorted(found.items()) if path not in inside}


def linear_shape(linear: nn.Module) -> tuple[int, int]:
    """(out, in) of a dense or quantised linear layer."""
    if isinstance(linear, nn.QuantizedLinear):
        out, packed = linear.weight.shape
        return out, packed * 32 // linear.bits
    out, inputs = linear.weight.shape
    return out, inputs


def dense_weight(layer: nn.Module) -> mx.array:
    """The weight of a linear or embedding layer, (out, in) float32; dequantising does not round it."""
    if not isinstance(layer, QUANTIZED):
        found: mx.array = layer.weight.astype(mx.float32)
        return found
    scales, biases = layer.scales, layer.get("biases")
    if biases is not None:
        scales, biases = scales.astype(mx.float32), biases.astype(mx.float32)
    weight = mx.dequantize(
        layer.weight, scales, biases, group_size=layer.group_size, bits=layer.bits, mode=layer.mode
    )
    return weight.astype(mx.float32)


def own_dtype(layer: nn.Module) -> mx.Dtype:
    """The precision that the layer computes in: its weight's; a quantised one's scales' or bias's."""
    if not isinstance(layer, QUANTIZED):
        found: mx.Dtype = layer.weight.dtype
        return found
    dtypes = [layer[k].dtype for k in ("scales", "bias") if k in layer]
    floats = [dtype for dtype in dtypes if mx.issubdtype(dtype, mx.floating)]
    return floats[0] if floats else mx.bfloat16


def dense_layer(like: nn.Module, weight: mx.array) -> nn.Module:
    """A frozen dense layer of the kind, precision and bias of `like` with another weight (out, in)."""
    new: nn.Module
    if isinstance(like, (nn.Embedding, nn.QuantizedEmbedding)):
        new = nn.Embedding(1, 1)
    else:
        new = nn.Linear(1, 1, bias="bias" in like)
        if "bias" in like:
            new.bias = like.bias
    new.weight = weight.astype(own_dtype(like))
    new.train(like.training)
    new.freeze()
    return new


def with_product(linear: nn.Module, x: mx.array, low: mx.array, up: mx.array) -> mx.array:
    """linear(x) + low · up, (..., out), all of one dtype; the second product is added within itself.

    A quantised layer adds its bias in a pass of its own, which comes last.
    """
    apart = isinstance(linear, nn.QuantizedLinear) and "bias" in linear
    y: mx.array = mx.addmm(times_weight(x, linear) if apart else linear(x), low, up)
    return y + linear.bias if apart else y


def row_norms_squared(linear: nn.Module) -> mx.array:
    """‖W‖² of every output row, (out,) float32."""
    return dense_weight(linear).square().sum(axis=1)


def adapted_norms(linear: nn.Module, base_sq: mx.array, a: mx.array, b: mx.array, scale: float) -> mx.array:
    """‖W + s·BA‖ of every output row, (out,) float32, without ever forming W + s·BA.

    ‖W + s·BA‖² = ‖W‖² + 2s·Σ_r (W Aᵀ)∘B + s²·Σ_r (B A Aᵀ)∘B, so that B = 0 gives ‖W‖ exactly.
    `a` is (r, in) in the precision to multiply W with, `b` (out, r) float32, `base_sq` of row_norms_squared.
    """
    wide = a.astype(mx.float32)
    cross = (times_weight(a, linear).T.astype(mx.float32) * b).sum(axis=1)
    own = ((b @ (wide @ wide.T)) * b).sum(axis=1)
    squared = base_sq + ((2 * scale) * cross + (scale * scale) * own)
    return mx.sqrt(mx.maximum(squared, 1e-30))
