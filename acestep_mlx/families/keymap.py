"""From the tensors of other programs to ours: names by tables, layout by the target module's type.

Our modules keep the upstream names wherever they can, so most keys map to themselves.
"""

from __future__ import annotations

import re
from collections.abc import Container
from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn


@dataclass(frozen=True)
class KeyMap:
    """Tables of one component; patterns are regular expressions matched against the whole key."""

    renames: tuple[tuple[str, str], ...] = ()
    drops: tuple[tuple[str, str], ...] = ()  # (pattern, reason)
    aliases: tuple[tuple[str, str], ...] = ()  # (key, the same tensor under its proper name)
    swapped: tuple[str, ...] = ()  # keys of tensors whose last two axes we have the other way round

    def rename(self, key: str) -> str:
        key = dict(self.aliases).get(key, key)
        for pattern, replacement in self.renames:
            key, n = re.subn(f"^{pattern}$", replacement, key)
            if n:
                return key
        return key

    def dropped(self, key: str, present: Container[str] = ()) -> str | None:
        """Why this upstream tensor is not converted, or None if it is. `present`: all upstream names."""
        proper = dict(self.aliases).get(key)
        if proper is not None and proper in present:
            return f"the same tensor as {proper}"
        return next((reason for pattern, reason in self.drops if re.fullmatch(pattern, key)), None)


def to_layout(module: nn.Module, leaf: str, value: mx.array) -> mx.array:
    """A PyTorch weight in the layout of the MLX `module` that it goes to (channels last).

    (O, I, K) → (O, K, I) for Conv1d, (O, I, H, W) → (O, H, W, I) for Conv2d, (I, O, K) → (O, K, I) for
    ConvTranspose1d, (O, I, 1[, 1]) → (O, I) for a linear layer that is a 1×1 convolution upstream;
    (1, C, 1) → (C,) for another parameter that has one axis with us.
    """
    if leaf != "weight":
        flat = value.ndim == 3 and value.shape[::2] == (1, 1) and getattr(module.get(leaf), "ndim", 3) == 1
        return value.reshape(-1) if flat else value
    if isinstance(module, nn.ConvTranspose1d):
        return value.transpose(1, 2, 0)
    if isinstance(module, nn.Conv1d):
        return value.transpose(0, 2, 1)
    if isinstance(module, nn.Conv2d):
        return value.transpose(0, 2, 3, 1)
    if isinstance(module, nn.Linear) and value.ndim > 2 and all(n == 1 for n in value.shape[2:]):
        return value.reshape(value.shape[:2])
    return value


def keeps_rows(module: nn.Module) -> bool:
    """Whether `to_layout` leaves the first axis where it is."""
    return not isinstance(module, nn.ConvTranspose1d)
