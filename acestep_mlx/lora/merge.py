"""One layer with LoRAs merged into its weight; a quantised one is dequantised, fused and quantised again."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ..errors import ConfigError
from .linear import QUANTIZED, dense_layer, dense_weight
from .weights import LoRAModule, LoRAWeights

Part = tuple[LoRAModule, float]  # a module of one LoRA, and the strength to use it with


MAX_SCALE = 100.0  # of a LoRA's strength: beyond it there is no music left


def check_strengths(loras: Sequence[tuple[LoRAWeights, float]]) -> None:
    """Raises ConfigError for a strength that is not a number of -MAX_SCALE to MAX_SCALE."""
    for weights, strength in loras:
        if (
            isinstance(strength, bool)
            or not isinstance(strength, (int, float))
            or not math.isfinite(strength)
        ):
            raise ConfigError(f"the scale of {weights.source} must be a number, got {strength!r}")
        if abs(strength) > MAX_SCALE:
            raise ConfigError(
                f"the scale of {weights.source} must be between -{MAX_SCALE:g} and {MAX_SCALE:g}, "
                f"got {strength:g}"
            )


def parts_by_path(loras: Sequence[tuple[LoRAWeights, float]]) -> dict[str, list[Part]]:
    """Module path → what is to be merged there; LoRAs of strength 0 leave no trace."""
    parts: dict[str, list[Part]] = {}
    for weights, strength in loras:
        if strength:
            for path, module in weights.modules.items():
                parts.setdefault(path, []).append((module, float(strength)))
    return parts


def parameter_changes(
    loras: Sequence[tuple[LoRAWeights, float]], here: dict[str, mx.array]
) -> dict[str, mx.array]:
    """New values of the whole parameters that the LoRAs carry, by upstream name.

    `here` are the model's own values. Several LoRAs add up: W + Σ strength·(W' − W), float32; one at strength
    1 gives exactly its W'.
    """
    changes: dict[str, mx.array] = {}
    for weights, strength in loras:
        if not strength:
            continue
        for name, value in (weights.full or {}).items():
            own = here[name].astype(mx.float32)
            if strength == 1 and name not in changes:
                changes[name] = value.astype(mx.float32)
            else:
                changes[name] = changes.get(name, own) + strength * (value.astype(mx.float32) - own)
        for name, diff in weights.diffs.items():
            changes[name] = changes.get(name, here[name].astype(mx.float32)) + strength * diff
    return changes


def fused_weight(layer: nn.Module, parts: Sequence[Part]) -> mx.array:
    """W + Σ strength·(W' − W), (out, in) float32, where W' is what each LoRA alone makes of W."""
    weight = dense_weight(layer)
    total = weight
    for module, strength in parts:
        if module.magnitude is None:
            total = total + module.delta(strength)
        else:
            total = total + (module.adapted_weight(layer, strength) - weight)
    return total


def with_weight(layer: nn.Module, weight: mx.array) -> nn.Module:
    """A frozen layer of the same kind, precision and bias as `layer` with another weight (out, in)."""
    new = dense_layer(layer, weight)
    if isinstance(layer, QUANTIZED):
        new = new.to_quantized(group_size=layer.group_size, bits=layer.bits, mode=layer.mode)
        new.train(layer.training)
        new.freeze()
    return new


@dataclass(frozen=True)
class FuseError:
    """What storing the fused weight lost: Frobenius norms of stored − W', of W' and of ΔW."""

    lost: float
    size: float
    changed: float

    @classmethod
    def together(cls, errors: Collection[FuseError]) -> FuseError:
        """Of several layers as if they were one matrix."""
        return cls(
            math.hypot(*(e.lost for e in errors)),
            math.hypot(*(e.size for e in errors)),
            math.hypot(*(e.changed for e in errors)),
        )

    @property
    def weight(self) -> float:
        """The loss as a share of the weight."""
        return self.lost / (self.size or 1.0)

    @property
    def update(self) -> float:
        """The loss as a share of what the LoRA changed; 0 where that is next to nothing."""
        return self.lost / self.changed if self.changed > 1e-6 * self.size else 0.0


def fuse_layer(layer: nn.Module, parts: Sequence[Part]) -> tuple[nn.Module, FuseError]:
    """`layer` with the parts merged in, and what its precision lost of them."""
    weight = fused_weight(layer, parts)
    new = with_weight(layer, weight)
    difference, change = dense_weight(new) - weight, weight - dense_weight(layer)
    norms = mx.stack([mx.linalg.norm(x) for x in (difference, weight, change)])
    mx.eval(new.parameters(), norms)
    lost, size, changed = (float(x) for x in np.array(norms))
    return new, FuseError(lost, size, changed)
