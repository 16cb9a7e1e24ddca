"""A module whose activations are computed again: the same numbers, and the module is left as it was."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.utils import tree_flatten

from acestep_mlx.nn.recompute import checkpointed

X = mx.random.normal((3, 5), key=mx.random.key(1))


class Stumbles(nn.Linear):
    def __call__(self, x: mx.array) -> mx.array:
        raise ValueError("no")


def layers() -> nn.Module:
    module = nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 2))
    module.layers[1].freeze()
    mx.eval(module.parameters())
    return module


def ids(module: nn.Module) -> dict[str, int]:
    return {name: id(value) for name, value in tree_flatten(module.parameters())}


@pytest.mark.parametrize("what", ["value", "gradient of inputs", "gradient of parameters"])
def test_the_module_keeps_its_own_arrays(what: str) -> None:
    """A traced array that stays in it holds what led to it, and is trained on in the next step."""
    module = layers()
    before = dict(tree_flatten(module.parameters()))
    seen: list[dict[str, int]] = []

    def loss(module: nn.Module, x: mx.array) -> mx.array:
        own = ids(module)
        result = mx.sum(mx.square(checkpointed(module)(x)))
        seen.append(own == ids(module))
        return result

    if what == "value":
        mx.eval(loss(module, X))
    elif what == "gradient of inputs":
        mx.eval(mx.grad(lambda x: loss(module, x))(X))
        assert {name: id(value) for name, value in before.items()} == ids(module)
    else:
        _, gradient = nn.value_and_grad(module, loss)(module, X)
        mx.eval(gradient)
    assert seen == [True]
    for name, value in tree_flatten(module.parameters()):
        assert mx.array_equal(value, before[name]), name


def test_an_error_leaves_the_module_as_it_was() -> None:
    module = Stumbles(5, 4)
    before = ids(module)
    with pytest.raises(ValueError, match="no"):
        mx.eval(checkpointed(module)(X))
    assert ids(module) == before


def test_the_gradients_are_those_of_the_plain_module() -> None:
    module = layers()

    def gradients(run) -> dict[str, mx.array]:
        return dict(tree_flatten(nn.value_and_grad(module, lambda x: mx.sum(mx.square(run(x))))(X)[1]))

    plain, again = gradients(module), gradients(checkpointed(module))
    assert plain.keys() == again.keys()
    assert all(mx.allclose(plain[name], again[name], rtol=1e-5) for name in plain)
