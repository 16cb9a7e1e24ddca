"""LoRAs on a model for generation: several at once, on any base, taken off again bit for bit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_unflatten

from ..errors import ConfigError
from .full_modules import check_parameters, full_parameters, make_dense
from .linear import Wrapper, base_linears, own_dtype, with_product
from .merge import Part, check_strengths, fuse_layer, parameter_changes, parts_by_path
from .weights import LoRAWeights

_RECORD = "applied_loras"  # the attribute of the transformer that remembers what stood where


@dataclass
class _Originals:
    """What `remove_loras` puts back."""

    modules: dict[str, nn.Module] = field(default_factory=dict)
    parameters: dict[str, mx.array] = field(default_factory=dict)


class Kronecker(nn.Module):
    """x ↦ (w1 ⊗ w2) x without the product: w1 (l, m), w2 (out/l, in/m) as factors of its transpose; frozen.

    rows: (out,) factors, where it is a DoRA.
    """

    def __init__(
        self, w1: mx.array, lora_a: mx.array, lora_b: mx.array, rows: mx.array | None, dtype: mx.Dtype
    ) -> None:
        super().__init__()
        self.w1 = w1.astype(dtype)
        whole = lora_a.shape[1] >= min(lora_a.shape[0], lora_b.shape[1])
        self.w2 = [x.astype(dtype) for x in ([lora_a @ lora_b] if whole else [lora_a, lora_b])]
        if rows is not None:
            self.rows = rows.astype(dtype)

    def __call__(self, x: mx.array) -> mx.array:
        y = x.reshape(*x.shape[:-1], self.w1.shape[1], -1)  # [..., m, in/m]
        for factor in self.w2:
            y = y @ factor
        y = (self.w1 @ y).reshape(*x.shape[:-1], -1)
        return y * self.rows if "rows" in self else y


class AppliedLoRA(Wrapper, nn.Module):
    """A linear layer with any number of LoRAs as one pair of small matrices, in the layer's precision.

    y = W x + bias + B (A x) + (g − 1)·W x; lora_a (in, Σr) and lora_b (Σr, out) hold every scale and
    strength, `gain` (out,) is g − 1 where a DoRA is among them. `lokrs` are LoKrs, each by itself.
    """

    def __init__(self, linear: nn.Module, parts: Sequence[Part]) -> None:
        super().__init__()
        self.linear = linear
        dtype = own_dtype(linear)
        downs, ups, lokrs, gain = [], [], [], None
        for module, strength in parts:
            up = (strength * module.scale) * module.b.T
            row_gain = module.gain(linear)
            if row_gain is not None:
                change = strength * (row_gain - 1)
                gain = change if gain is None else gain + change
            if module.w1 is not None:
                lokrs.append(Kronecker(module.w1, module.a.T, up, row_gain, dtype))
                continue
            downs.append(module.a.T)
            ups.append(up if row_gain is None else up * row_gain)
        if downs:
            self.lora_a = mx.concatenate(downs, axis=1).astype(dtype)
            self.lora_b = mx.concatenate(ups, axis=0).astype(dtype)
        if lokrs:
            self.lokrs = lokrs
        if gain is not None:
            self.gain = gain.astype(dtype)
        self.freeze()
        self.train(linear.training)

    def __call__(self, x: mx.array) -> mx.array:
        if "lora_a" in self and "lokrs" not in self and "gain" not in self and self.lora_a.dtype == x.dtype:
            return with_product(self.linear, x, x @ self.lora_a, self.lora_b)
        y: mx.array = self.linear(x)
        change = (x @ self.lora_a) @ self.lora_b if "lora_a" in self else mx.zeros_like(y)
        for lokr in self.get("lokrs", ()):
            change = change + lokr(x)
        if "gain" in self:
            base = y - self.linear.bias if "bias" in self.linear else y
            change = change + self.gain * base
        return y + change.astype(y.dtype)


def apply_loras(
    transformer: nn.Module, loras: Sequence[tuple[LoRAWeights, float]], *, fused: bool = False
) -> None:
    """Put `loras` (weights, strength) on the transformer in place of those that are there now.

    A strength of 0 leaves the model as it was, bit for bit. `fused` merges them into the weights: the speed
    of the bare model, while the originals of the changed layers stay in memory so that they can be put back.
    Functions compiled before must be compiled again. Raises CheckpointError for a LoRA of another model,
    ConfigError for a strength that is no number or a model with trainable adapters.
    """
    check_strengths(loras)
    if any(isinstance(m, Wrapper) and not isinstance(m, AppliedLoRA) for m in transformer.modules()):
        raise ConfigError(
            "this model is being trained; LoRAs can be applied to a model loaded for generation"
        )
    for weights, _ in loras:
        weights.check_against(transformer)
    remove_loras(transformer)
    originals = _Originals()
    _set_parameters(transformer, loras, originals)
    linears = base_linears(transformer)
    layers: dict[str, nn.Module] = {}
    for path, parts in sorted(parts_by_path(loras).items()):
        layer = fuse_layer(linears[path], parts)[0] if fused else AppliedLoRA(linears[path], parts)
        mx.eval(layer.parameters())
        originals.modules.setdefault(path, linears[path])
        layers[path] = layer
    if layers:
        transformer.update_modules(tree_unflatten(list(layers.items())))
    if originals.modules or originals.parameters:
        setattr(transformer, _RECORD, originals)


def _set_parameters(
    transformer: nn.Module, loras: Sequence[tuple[LoRAWeights, float]], originals: _Originals
) -> None:
    """Set the parameters that LoRAs bring whole; quantised layers among them become dense."""
    if not any(strength and (w.full or w.diffs) for w, strength in loras):
        return
    here = full_parameters(transformer)
    for weights, _ in loras:
        check_parameters(here, weights, weights.source)
    changes = parameter_changes(loras, here)
    originals.modules.update(make_dense(transformer, {name.rpartition(".")[0] for name in changes}))
    here = full_parameters(transformer)
    replaced = {f"{path}." for path in originals.modules}
    kept = {name: value for name, value in here.items() if name in changes}
    originals.parameters.update({n: v for n, v in kept.items() if f"{n.rpartition('.')[0]}." not in replaced})
    new = [(name, value.astype(here[name].dtype)) for name, value in changes.items()]
    transformer.update(tree_unflatten(new))
    mx.eval([value for _, value in new])


def remove_loras(transformer: nn.Module) -> None:
    """The model as it was before `apply_loras`: the very same layers and arrays."""
    originals = getattr(transformer, _RECORD, None)
    if originals is None:
        return
    if originals.modules:
        transformer.update_modules(tree_unflatten(list(originals.modules.items())))
    if originals.parameters:
        transformer.update(tree_unflatten(list(originals.parameters.items())))
    delattr(transformer, _RECORD)
