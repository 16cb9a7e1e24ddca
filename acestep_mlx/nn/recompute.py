"""Gradient checkpointing of one module: its activations are computed again in the backward pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_map

from .activations import with_gradient


def _leaves(tree: Any) -> list[mx.array]:
    return [cast(mx.array, pair[1]) for pair in tree_flatten(tree)]


def _refill(tree: Any, leaves: Sequence[mx.array]) -> Any:
    """`tree` with its arrays replaced, in order."""
    rest = iter(leaves)
    return tree_map(lambda _: next(rest), tree)


def checkpointed(module: nn.Module) -> Callable[..., mx.array]:
    """A function that runs `module` and keeps nothing of it for the backward pass but its inputs.

    Differentiated are the module's trainable parameters and the positional arguments. Keyword arguments and
    frozen weights are constants, so no gradient is ever formed for them.

    `mx.checkpoint` leaves open when things are computed, and a lazy graph may then run all the second passes
    first, or put off the parameters' gradients; either way every block's activations are held at once. Here
    the second pass waits for the gradient of the output, and the gradients of the inputs wait for those of
    the parameters, so that one block at a time is in memory.

    The module runs twice, so whatever random it does must come from keys that it holds: `nn.Dropout`, which
    draws from the global state, would differ between the two runs and spoil the gradient.
    """

    def run(*inputs: mx.array | tuple[mx.array, ...], **constants: Any) -> mx.array:
        parameters = module.trainable_parameters()

        def plain(params: dict[str, Any], *inputs: Any) -> mx.array:
            module.update(params)
            try:
                found: mx.array = module(*inputs, **constants)
                return found
            finally:
                module.update(parameters)  # leave no traced array behind

        def backward(primals: tuple[Any, ...], cotangent: mx.array, _output: mx.array) -> tuple[Any, ...]:
            leaves = list(mx.depends(_leaves(primals), [cotangent]))
            _, gradients = mx.vjp(lambda *leaves: [plain(*_refill(primals, leaves))], leaves, [cotangent])
            count = len(_leaves(primals[0]))
            first, rest = gradients[:count], gradients[count:]
            if first:  # one by one, or a gradient that nobody asks for would be computed with the others
                rest = [mx.depends([g], first)[0] for g in rest]
            refilled: tuple[Any, ...] = _refill(primals, first + rest)
            return refilled

        forward = with_gradient(plain, backward)
        return forward(parameters, *inputs)

    return run
