"""Upstream tensors to ours: names, layouts, weight normalisation, and an account that leaves nothing out."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

from acestep_mlx.convert.plan import Plan, plan, translate
from acestep_mlx.errors import CheckpointError
from acestep_mlx.families.keymap import KeyMap
from acestep_mlx.families.v1.keymap import KEYMAPS
from acestep_mlx.formatting import problem_report


class Toy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = [nn.Conv1d(4, 6, 3), nn.Conv1d(4, 4, 3, groups=4)]
        self.up = nn.ConvTranspose1d(4, 5, 8)
        self.image = nn.Conv2d(2, 3, (3, 5))
        self.dense = nn.Linear(4, 6, bias=False)
        self.table = mx.zeros((2, 3))


UPSTREAM = {
    "conv.0.weight": (6, 4, 3),
    "conv.0.bias": (6,),
    "conv.1.weight": (4, 1, 3),
    "conv.1.bias": (4,),
    "up.weight": (4, 5, 8),
    "up.bias": (5,),
    "image.weight": (3, 2, 3, 5),
    "image.bias": (3,),
    "dense.weight": (6, 4, 1),
    "table": (2, 3),
}


def tensors(**extra: tuple[int, ...]) -> dict[str, mx.array]:
    mx.random.seed(0)
    return {name: mx.random.normal(shape) for name, shape in (UPSTREAM | extra).items()}


def plan_of(module: nn.Module, source: dict[str, mx.array]) -> Plan:
    return plan("toy", KeyMap(), module, {name: value.shape for name, value in source.items()})


def test_layout_follows_the_module_not_the_name() -> None:
    source = tensors()
    module = Toy()
    ours, done = translate("toy", KeyMap(), module, source), plan_of(module, source)
    module.load_weights(list(ours.items()), strict=True)
    assert done.converted == {name: name for name in UPSTREAM} and not done.dropped
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in tree_flatten(Toy().parameters())}
    for name, axes in {
        "conv.0.weight": (0, 2, 1),
        "up.weight": (1, 2, 0),
        "image.weight": (0, 2, 3, 1),
    }.items():
        assert np.array_equal(ours[name], np.array(source[name]).transpose(axes))
    assert np.array_equal(ours["dense.weight"], np.array(source["dense.weight"])[..., 0])


@pytest.mark.parametrize("spelling", ["parametrize", "old"])
@pytest.mark.parametrize("layer", ["conv.0", "up"])
def test_weight_normalisation_is_folded_as_pytorch_does(spelling: str, layer: str) -> None:
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    conv = torch.nn.Conv1d(4, 6, 3) if layer == "conv.0" else torch.nn.ConvTranspose1d(4, 5, 8)
    if spelling == "old":
        normed = torch.nn.utils.weight_norm(conv)
        normed.weight_g.data.mul_(1.7)
    else:
        normed = torch.nn.utils.parametrizations.weight_norm(conv)
        normed.parametrizations.weight.original0.data.mul_(1.7)
    source = {k: v for k, v in tensors().items() if not k.startswith(layer + ".")}
    source |= {f"{layer}.{k}": mx.array(v.detach().numpy()) for k, v in normed.state_dict().items()}
    ours, done = translate("toy", KeyMap(), Toy(), source), plan_of(Toy(), source)
    x = torch.randn(2, 4, 20)
    expected = normed(x).detach().numpy().transpose(0, 2, 1)
    module = Toy()
    module.load_weights(list(ours.items()), strict=True)
    target = module.conv[0] if layer == "conv.0" else module.up
    np.testing.assert_allclose(target(mx.array(x.numpy()).transpose(0, 2, 1)), expected, rtol=1e-4, atol=1e-5)
    assert sum(name == f"{layer}.weight" for name in done.converted.values()) == 2


def test_all_problems_are_named_at_once() -> None:
    source = tensors(tabel=(2, 3), mystery=(1,))
    del source["image.bias"]
    source["dense.weight"] = mx.zeros((4, 6))
    source["conv.0.weight"] = mx.zeros((6, 4))  # the wrong number of axes
    with pytest.raises(CheckpointError) as caught:
        translate("dcae", KeyMap(), Toy(), source)
    line = str(caught.value)
    assert "\n" not in line and line.startswith("dcae: 5 problems")
    assert "unknown tensor 'tabel'; did you mean 'table'?" in line and "unknown tensor 'mystery'" in line
    assert "missing tensor 'image.bias'" in line
    assert "'dense.weight' has shape (4, 6)" in line and "'conv.0.weight' has shape (6, 4)" in line


def test_a_long_list_of_problems_is_counted() -> None:
    line = str(problem_report("x", [f"missing tensor 'a{i}'" for i in range(90)] + ["unknown tensor 'b'"]))
    assert line == (
        "x: 91 problems: missing tensor 'a0'; missing tensor 'a1'; missing tensor 'a2'; "
        "unknown tensor 'b' … and 87 more"
    )


def test_no_kind_of_problem_hides_another() -> None:
    shapes = [f"'a{i}' has shape ({i}, 4), in our layout (4, {i}); expected (4, 4)" for i in range(9)]
    line = str(problem_report("x", [*shapes, "'a' and 'b' are both 'c'"]))
    assert line.endswith("'a' and 'b' are both 'c' … and 6 more")


def test_a_magnitude_that_does_not_fit_its_direction_is_named() -> None:
    source = tensors()
    del source["conv.0.weight"]
    source |= {"conv.0.weight_g": mx.ones((5, 1, 1)), "conv.0.weight_v": mx.ones((6, 4, 3))}
    with pytest.raises(CheckpointError, match=r"weight normalisation of 'conv\.0\.weight'"):
        translate("dcae", KeyMap(), Toy(), source)


def test_half_a_weight_norm_pair_is_an_unknown_tensor() -> None:
    source = tensors()
    del source["conv.0.weight"]
    source["conv.0.weight_v"] = mx.ones((6, 4, 3))
    with pytest.raises(CheckpointError, match=r"unknown tensor 'conv\.0\.weight_v'.*missing tensor"):
        translate("dcae", KeyMap(), Toy(), source)


def test_drops_say_why_and_aliases_only_drop_a_second_copy() -> None:
    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shared = nn.Embedding(5, 2)

    one = {"shared.weight": (5, 2), "encoder.embed_tokens.weight": (5, 2), "lm_head.weight": (5, 2)}
    done = plan("text_encoder", KEYMAPS["text_encoder"], Encoder(), one)
    assert done.converted == {"shared.weight": "shared.weight"}
    assert done.dropped["encoder.embed_tokens.weight"] == "the same tensor as shared.weight"
    assert set(done.dropped) == {"encoder.embed_tokens.weight", "lm_head.weight"}
    done = plan("text_encoder", KEYMAPS["text_encoder"], Encoder(), {"encoder.embed_tokens.weight": (5, 2)})
    assert done.converted == {"encoder.embed_tokens.weight": "shared.weight"}
