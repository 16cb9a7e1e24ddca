"""Gradient checkpointing of one module: its activations are computed again in the backward pass.

All of them, or all but the results of its linear layers, which are kept: those take most of a block's time
and a third of its memory (selective recomputation, arXiv 2205.05198).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_map

from .activations import with_gradient
from .products import times_weight

Product = Callable[[nn.Module, mx.array, bool], mx.array]
_product: ContextVar[Product | None] = ContextVar("product", default=None)  # of the block that is run


def product(layer: nn.Module, x: mx.array, *, bias: bool = True) -> mx.array:
    """layer(x) of a linear layer, adapted or not, whose result may be kept for the backward pass.

    bias: whether to add it; without, the layer is not an adapted one.

    A block calls it for all its linear layers but the last, whose result its own gradient does not need. A
    layer whose gradient needs the result of one within it says so (`keeps_within`) and calls it for that.
    """
    run = _product.get()
    if run is None or getattr(layer, "keeps_within", False):
        return _applied(layer, x, bias)
    return run(layer, x, bias)


def _applied(layer: nn.Module, x: mx.array, bias: bool) -> mx.array:
    found: mx.array = layer(x) if bias else times_weight(x, layer)
    return found


def _leaves(tree: Any) -> list[mx.array]:
    return [cast(mx.array, pair[1]) for pair in tree_flatten(tree)]


def _refill(tree: Any, leaves: Sequence[mx.array]) -> Any:
    """`tree` with its arrays replaced, in order."""
    rest = iter(leaves)
    return tree_map(lambda _: next(rest), tree)


def _called(
    module: nn.Module, params: dict[str, Any], call: Callable[..., mx.array], *inputs: Any, **constants: Any
) -> mx.array:
    """`call` while the module has these parameters; it keeps its own, so that no traced array is left."""
    own = module.trainable_parameters()
    module.update(params)
    try:
        return call(*inputs, **constants)
    finally:
        module.update(own)


def _recorded(results: list[mx.array]) -> Product:
    """Adds each result to `results`."""

    def run(layer: nn.Module, x: mx.array, bias: bool) -> mx.array:
        results.append(_applied(layer, x, bias))
        return results[-1]

    return run


def _replayed(results: Sequence[mx.array]) -> Product:
    """Gives the results that were recorded, in order; their gradients are the layers'."""
    rest = iter(results)

    def run(layer: nn.Module, x: mx.array, bias: bool) -> mx.array:
        result = next(rest)

        def known(_params: dict[str, Any], _x: mx.array) -> mx.array:
            return result

        def backward(primals: tuple[Any, ...], cotangent: mx.array, _output: mx.array) -> Any:
            def again(*leaves: mx.array) -> list[mx.array]:  # its value is asked for by nobody
                params, x = _refill(primals, leaves)
                return [_called(layer, params, _applied, layer, x, bias)]

            return _refill(primals, mx.vjp(again, _leaves(primals), [cotangent])[1])

        return with_gradient(known, backward)(layer.trainable_parameters(), x)

    return run


def checkpointed(module: nn.Module, *, keep_products: bool = False) -> Callable[..., mx.array]:
    """A function that runs `module` and keeps nothing of it for the backward pass but its inputs.

    keep_products: and what `product` gives within it, so that only the rest is computed again.

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
        def plain(products: Product | None, params: dict[str, Any], *inputs: Any) -> mx.array:
            before = _product.set(products)
            try:
                return _called(module, params, module, *inputs, **constants)
            finally:
                _product.reset(before)

        def forward(params: dict[str, Any], *inputs: Any) -> list[mx.array]:
            results: list[mx.array] = []
            out = plain(_recorded(results) if keep_products else None, params, *inputs)
            return [out, *results]

        def backward(primals: tuple[Any, ...], cotangents: Any, outputs: Any) -> tuple[Any, ...]:
            cotangent, leaves = cotangents[0], _leaves(primals)
            waiting = mx.depends([*leaves, *outputs[1:]], [cotangent])
            leaves, results = waiting[: len(leaves)], waiting[len(leaves) :]

            def again(*leaves: mx.array) -> list[mx.array]:
                return [plain(_replayed(results) if keep_products else None, *_refill(primals, leaves))]

            _, gradients = mx.vjp(again, leaves, [cotangent])
            count = len(_leaves(primals[0]))
            first, rest = gradients[:count], gradients[count:]
            if first:  # one by one, or a gradient that nobody asks for would be computed with the others
                rest = [mx.depends([g], first)[0] for g in rest]
            refilled: tuple[Any, ...] = _refill(primals, first + rest)
            return refilled

        function: Any = mx.custom_function(forward)
        function.vjp(backward)
        out: mx.array = function(module.trainable_parameters(), *inputs)[0]
        return out

    return run
