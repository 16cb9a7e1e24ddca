"""A block that keeps what its linear layers gave and computes the rest again: its gradients are the same."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.utils import tree_flatten

from acestep_mlx.config.read_run import load_config
from acestep_mlx.families.protocol import Load
from acestep_mlx.families.v1 import FAMILY as V1
from acestep_mlx.families.v1.attention import rope_table as v1_rope
from acestep_mlx.families.v1.attention import within
from acestep_mlx.families.v15 import FAMILY as V15
from acestep_mlx.families.v15.dit import ACEStep15Transformer
from acestep_mlx.families.v15.dit import TransformerConfig as V15Config
from acestep_mlx.families.v15.layers import rope_table as v15_rope
from acestep_mlx.lora.surgery import LoRASpec, adapter_modules, inject, seed_dropout
from acestep_mlx.nn import recompute
from acestep_mlx.nn.recompute import checkpointed
from acestep_mlx.training import memory
from acestep_mlx.training.settings import lora_spec

from ..gpu import gpu_side
from ..training import tiny
from . import v15
from .tiny import tiny as small

B, T, S = 2, 12, 9
LOKR = lora_spec(
    load_config({"lora_type": "lycoris", "lycoris_config": {"algo": "lokr", "linear_dim": 2, "factor": 4}})
)
#: all of them can be quantised
WIDTHS = replace(small(V15Config), hidden_size=64, intermediate_size=96, encoder_hidden_size=64)
ADAPTERS: dict[str, Any] = {
    "LoRA": LoRASpec(rank=2),
    "dropout": LoRASpec(rank=2, dropout=0.3),
    "DoRA": LoRASpec(rank=2, use_dora=True),
    "LoKr": LOKR,
    "in full": None,
}
FAMILIES = {"v1": V1, "v15": V15}


def model_of(family: str, adapter: str, dtype: mx.Dtype = mx.float32, bits: int | None = None) -> Any:
    """A miniature with adapters that do something, on the family's default targets."""
    model = tiny.transformer() if family == "v1" else v15.random(ACEStep15Transformer(WIDTHS))
    model.set_dtype(dtype)
    if bits is not None:
        nn.quantize(model, 32, bits, class_predicate=lambda _, m: isinstance(m, nn.Linear)
                    and not m.weight.shape[1] % 32)  # fmt: skip
        model.freeze()
    if adapter == "in full":
        for block in blocks_of(model):
            block.unfreeze()
        return model
    inject(model, replace(ADAPTERS[adapter], targets=FAMILIES[family].lora.default_targets))
    for i, layer in enumerate(adapter_modules(model).values()):
        layer.train()
        for name, value in layer.trainable_parameters().items():
            if isinstance(value, mx.array) and name != "m":
                layer[name] = value + 0.1 * mx.random.normal(value.shape, key=mx.random.key(i))
    seed_dropout(model, mx.random.key(7))
    return model


def blocks_of(model: Any) -> list[Any]:
    return list(model.layers if hasattr(model, "layers") else model.transformer_blocks)


def call_of(family: str, model: Any) -> tuple[list[mx.array], dict[str, Any]]:
    """Inputs and constants of a block."""
    config = model.config
    D = config.dim if family == "v1" else config.hidden_size
    shapes = [(B, T, D), (B, 6, D), (B, S, D)]
    inputs = [mx.random.normal(s, key=mx.random.key(i)).astype(model.dtype) for i, s in enumerate(shapes)]
    if family == "v1":
        head = config.attention_head_dim
        mask, rope = mx.arange(T)[None] < mx.array([[T], [T - 3]]), v1_rope(T, head, 1e4)
        tables = {"rope": rope, "own_rope": within(mask, rope), "states_rope": v1_rope(S, head, 1e4)}
        return inputs, {"mask": mask, "states_mask": None, **tables}
    rope = v15_rope(T, config.head_dim, 1e4)
    return inputs, {"seen": None, "states_seen": None, "rope": rope}


def gradients(family: str, model: Any, again: Callable[..., Any]) -> dict[str, mx.array]:
    """Of a block's trained parameters and of its inputs."""
    block = blocks_of(model)[0]
    inputs, constants = call_of(family, model)

    def loss(parameters: Any, *inputs: mx.array) -> mx.array:
        block.update(parameters)
        return mx.square(again(block)(*inputs, **constants).astype(mx.float32)).mean()

    before = block.trainable_parameters()
    found = mx.grad(loss, argnums=(0, 1, 2, 3))(before, *inputs)
    block.update(before)
    mx.eval(found)
    return dict(tree_flatten(found))


def keeping(block: nn.Module) -> Callable[..., mx.array]:
    return checkpointed(block, keep_products=True)


def same(family: str, model: Any, rounding: float) -> None:
    """With nothing computed again, and with all but the linear layers."""
    plain, found = (gradients(family, model, way) for way in (lambda block: block, keeping))
    assert plain.keys() == found.keys() and len(plain) > 4
    for name, value in plain.items():
        scale = mx.abs(value).max().item()
        assert scale > 0 and mx.abs(value - found[name]).max().item() <= rounding * scale, name


@pytest.mark.parametrize("side", [contextlib.nullcontext, gpu_side])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.slow_after(2)
def test_gradients_are_those_of_a_block_that_keeps_everything(family: str, adapter: str, side: Any) -> None:
    """Up to the order of sums: what a layer adds to its input's gradient is one summand here. Where that is
    one product, bit for bit.
    """
    with side():
        same(family, model_of(family, adapter), 0 if adapter in ("DoRA", "in full") else 2e-6)


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16, mx.float16], ids=str)
@pytest.mark.parametrize("bits", [None, 8, 4])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.slow_after(1)
def test_at_every_precision(family: str, bits: int | None, dtype: mx.Dtype) -> None:
    same(family, model_of(family, "LoRA", dtype, bits), max(2e-6, 4 * mx.finfo(dtype).eps))


def products(family: str, again: Callable[..., Any]) -> int:
    """Products with quantised weights in the graph of a block's gradient, of which nothing is computed."""
    model = model_of(family, "LoRA", bits=8)
    block, (inputs, constants) = blocks_of(model)[0], call_of(family, model)
    value, gradient = mx.value_and_grad(lambda x: again(block)(x, *inputs[1:], **constants).sum())(inputs[0])
    written = io.StringIO()
    mx.export_to_dot(written, value, gradient)
    return written.getvalue().count('"QuantizedMatmul"')


@pytest.mark.parametrize("family", FAMILIES)
def test_no_linear_layer_is_computed_again(family: str) -> None:
    """And `StepMemory.products`, which the planner counts, says which there are."""
    model = model_of(family, "LoRA")
    layers = FAMILIES[family].memory.products(model.config, Load(T, B, 4, 4))
    plain, wholly, kept = (products(family, way) for way in (lambda block: block, checkpointed, keeping))
    assert kept == plain == wholly - (len(layers) - 1)


@pytest.mark.parametrize("adapter", ["LoRA", "DoRA", "LoKr"])
@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_kept_is_what_the_planner_counts(
    family: str, adapter: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of(family, adapter)
    results: list[mx.array] = []
    recorded = recompute._recorded
    monkeypatch.setattr(recompute, "_recorded", lambda _: recorded(results))
    inputs, constants = call_of(family, model)
    keeping(blocks_of(model)[0])(*inputs, **constants)
    frames = T if family == "v1" else T * model.config.patch_size
    load = Load(frames, B, text=S - 5, lyrics=4)
    assert sum(r.nbytes for r in results) == memory.product_bytes(FAMILIES[family], model.config, load, 4)
