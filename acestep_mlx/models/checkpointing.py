"""Gradient checkpointing of one module: its activations are computed again in the backward pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn


def _draws_random_numbers(module: nn.Module) -> bool:
    return module.training and any(
        isinstance(m, nn.Dropout) and m.training and m._p_1 < 1 for m in module.modules()
    )


def checkpointed(module: nn.Module) -> Callable[..., mx.array]:
    """A function that runs `module` and keeps nothing of it for the backward pass but its inputs.

    Differentiated are the module's trainable parameters and the positional arguments. Keyword arguments
    and frozen weights are constants, so no gradient is ever formed for them. Dropout draws the same numbers
    in both passes.
    """

    def run(*inputs: mx.array | tuple[mx.array, ...], **constants: Any) -> mx.array:
        key = mx.random.split(mx.random.state[0]) if _draws_random_numbers(module) else None

        def inner(params: dict, *inputs: mx.array) -> mx.array:
            outer_params, outer_key = module.trainable_parameters(), mx.random.state[0]
            module.update(params)
            if key is not None:
                mx.random.state[0] = key[0]
            try:
                return module(*inputs, **constants)
            finally:
                module.update(outer_params)
                mx.random.state[0] = outer_key

        out = mx.checkpoint(inner)(module.trainable_parameters(), *inputs)
        if key is not None:
            mx.random.state[0] = key[1]
        return out

    return run
