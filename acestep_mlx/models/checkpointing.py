"""Gradient checkpointing of one module: its activations are computed again in the backward pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn


def checkpointed(module: nn.Module) -> Callable[..., mx.array]:
    """A function that runs `module` and keeps nothing of it for the backward pass but its inputs.

    Differentiated are the module's trainable parameters and the positional arguments. Keyword arguments and
    frozen weights are constants, so no gradient is ever formed for them.

    The module runs twice, so whatever random it does must come from keys that it holds: `nn.Dropout`, which
    draws from the global state, would differ between the two runs and spoil the gradient.
    """

    def run(*inputs: mx.array | tuple[mx.array, ...], **constants: Any) -> mx.array:
        parameters = module.trainable_parameters()

        def inner(params: dict[str, Any], *inputs: mx.array) -> mx.array:
            module.update(params)
            try:
                return module(*inputs, **constants)
            finally:
                module.update(parameters)  # leave no traced array behind

        return mx.checkpoint(inner)(parameters, *inputs)

    return run
