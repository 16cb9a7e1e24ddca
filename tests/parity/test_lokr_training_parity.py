"""LoKr trained here against LyCORIS's own modules, and our files in LyCORIS's own loader."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

from acestep_mlx.config.lycoris import read_lycoris
from acestep_mlx.families.v1.dit import TransformerConfig
from acestep_mlx.lora.formats.write import write_lora
from acestep_mlx.lora.lokr import LoKrLinear, LoKrSpec, Plan, factorised
from acestep_mlx.lora.surgery import adapter_modules, from_model, inject, lokr_plans
from acestep_mlx.training.optimizers import make_optimizer

from ..families.tiny import tiny
from ..later import Later
from .test_transformer_parity import (
    make_inputs,
    make_ours,
    make_reference,
    relative_error,
    run_ours,
    run_reference,
)
from .test_v15_lora_parity import GIVEN, originals_names, velocity
from .test_v15_transformer_parity import pair
from .v15 import as_mlx
from .v15 import relative_error as relative

torch, lycoris, general = Later("torch"), Later("lycoris"), Later("lycoris.functional.general")
pytestmark = [pytest.mark.parity, pytest.mark.slow]

SHAPE = (96, 64)
SETTINGS: dict[str, dict[str, Any]] = {
    "w2 a product": {"linear_dim": 2, "linear_alpha": 3, "factor": 4},
    "automatic factor": {"linear_dim": 1, "linear_alpha": 2},
    "both products": {"linear_dim": 1, "linear_alpha": 3, "decompose_both": True},
    "SimpleTuner's default": {"linear_dim": 10000, "linear_alpha": 1, "factor": 16},
    "full matrix, factor 6": {"full_matrix": True, "factor": 6},
    "scalar": {"linear_dim": 2, "linear_alpha": 3, "factor": 4, "use_scalar": True},
    "scalar, whole": {"full_matrix": True, "use_scalar": True, "linear_alpha": 5},
    "alpha 0": {"linear_dim": 2, "linear_alpha": 0, "factor": 4},
    "unbalanced": {"linear_dim": 2, "linear_alpha": 5, "factor": 2, "unbalanced_factorization": True},
}


def spec_of(settings: dict[str, Any], **preset: Any) -> LoKrSpec:
    content = {"algo": "lokr", **settings, **({"apply_preset": preset} if preset else {})}
    return LoKrSpec(read_lycoris(content, "here"), ("to_q", "q_proj"), "{}")


def names_there(settings: dict[str, Any]) -> dict[str, Any]:
    """As LokrModule calls them."""
    named = {"linear_dim": "lora_dim", "linear_alpha": "alpha"}
    return {"lora_dim": 4, "alpha": 1} | {named.get(k, k): v for k, v in settings.items()}


def modules(name: str, bypass: bool = False) -> tuple[LoKrLinear, Any]:
    """The same layer with the same LoKr here and there, as LyCORIS begins it."""
    torch.manual_seed(3)
    base = torch.nn.Linear(SHAPE[1], SHAPE[0])
    theirs = lycoris.modules.lokr.LokrModule("x", base, bypass_mode=bypass, **names_there(SETTINGS[name]))
    linear = nn.Linear(SHAPE[1], SHAPE[0])
    linear.weight, linear.bias = (mx.array(p.detach().numpy()) for p in (base.weight, base.bias))
    linear.freeze()
    ours = LoKrLinear(linear, Plan.of(SHAPE, spec_of(SETTINGS[name]).config.base), mx.random.key(1))
    return ours, theirs


def parameters(theirs: Any) -> dict[str, Any]:
    """Theirs, under our names."""
    return {n if n != "scalar" else "lokr_scalar": p for n, p in theirs.named_parameters()}


def copy(ours: LoKrLinear, theirs: Any) -> None:
    for name, parameter in parameters(theirs).items():
        ours[name] = mx.array(parameter.detach().numpy())


def test_sizes_are_split_as_there() -> None:
    for size in (*range(1, 130), 1024, 2560, 6144):
        for factor in (-1, 0, 1, 2, 3, 4, 10, 16):
            assert factorised(size, factor) == general.factorization(size, factor), (size, factor)


@pytest.mark.parametrize("name", SETTINGS)
def test_it_begins_as_there(name: str) -> None:
    """The same arrays, zero in the same places, uniform within the same bounds elsewhere."""
    ours, theirs = modules(name)
    there = parameters(theirs)
    mine = {k: v for k, v in ours.items() if k.startswith("lokr_")}
    assert {k: v.shape for k, v in mine.items()} == {k: tuple(v.shape) for k, v in there.items()}
    assert math.isclose(ours.scale, theirs.scale)
    for key, value in there.items():
        largest = value.detach().abs().max().item()
        got = mx.abs(mine[key]).max().item()
        assert (got == 0) == (largest == 0), key
        if largest and value.numel() > 30:
            assert got == pytest.approx(1 / math.sqrt(value.shape[-1]), rel=0.25), key
    x = mx.random.normal((5, SHAPE[1]))
    assert mx.array_equal(ours(x), ours.linear(x))


@pytest.mark.parametrize("bypass", [False, True])
@pytest.mark.parametrize("name", SETTINGS)
def test_outputs_gradients_and_first_steps_are_as_there(name: str, bypass: bool) -> None:
    """From LyCORIS's own beginning: the loss of five steps of Adam, and with weights as if trained."""
    ours, theirs = modules(name, bypass)
    copy(ours, theirs)
    ours.freeze()
    ours.unfreeze(keys=list(parameters(theirs)), recurse=False)
    rng = np.random.default_rng(0)
    x, target = (rng.standard_normal((2, 7, size)).astype(np.float32) for size in reversed(SHAPE))
    optimizer = torch.optim.Adam(theirs.parameters(), lr=1e-2)
    adam = make_optimizer("adam", 1e-2)

    def loss(layer: nn.Module) -> mx.array:
        return ((layer(mx.array(x)) - mx.array(target)) ** 2).mean()

    step = nn.value_and_grad(ours, loss)
    for _ in range(5):
        optimizer.zero_grad()
        there = ((theirs(torch.tensor(x)) - torch.tensor(target)) ** 2).mean()
        there.backward()
        optimizer.step()
        value, gradients = step(ours)
        assert value.item() == pytest.approx(there.item(), rel=1e-5)
        for key, parameter in parameters(theirs).items():
            wanted = parameter.grad.numpy()
            assert np.abs(np.array(gradients[key]) - wanted).max() <= 1e-6 + 1e-4 * np.abs(wanted).max(), key
        adam.update(ours, gradients)
    moved = [np.abs(np.array(ours[k]) - p.detach().numpy()).max() for k, p in parameters(theirs).items()]
    assert max(moved) <= 1e-4
    delta = np.array(ours.to_module().delta())
    with torch.no_grad():
        wanted = (theirs.get_weight(SHAPE) * theirs.scalar).numpy()
    assert np.abs(delta - wanted).max() <= 1e-4 and np.abs(delta).max() > 1e-3


PRESETS: dict[str, dict[str, Any]] = {
    "classes": {"target_module": ["Attention"]},
    "classes with settings": {
        "target_module": ["Attention", "GLUMBConv", "RelPositionMultiHeadedAttention"],
        "module_algo_map": {"Attention": {"factor": 2}, "PositionwiseFeedForward": {"factor": 8, "dim": 1}},
    },
    "a class within a class": {
        "target_module": ["LinearTransformerBlock"],
        "module_algo_map": {"Attention": {"factor": 2}},
    },
    "everything": {"target_module": ["ACEStepTransformer2DModel"], "exclude_name": ["projectors", "proj_in"]},
    "names": {"name_algo_map": {r"transformer_blocks\.0\.attn": {"factor": 2}}},
    "names as of files": {
        "target_module": [],
        "name_algo_map": {"*.cross_attn.to_k": {"factor": 2}, "*.attn.*": {"full_matrix": True}},
        "exclude_name": ["*.to_out.*"],
        "use_fnmatch": True,
    },
    "a class and names": {
        "target_module": ["Attention"],
        "target_name": [r"final_layer\.linear"],
        "name_algo_map": {r"lyric_encoder.*linear_k": {"factor": 8}},
    },
}


@pytest.mark.parametrize("name", PRESETS)
def test_the_layers_are_those_that_lycoris_takes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """And each has the factors that it has there."""
    config = tiny(TransformerConfig)
    theirs = make_reference(config, monkeypatch)
    ours = make_ours(config, theirs)
    network = lycoris.LycorisNetwork
    empty: dict[str, Any] = {
        "target_module": [], "target_name": [], "module_algo_map": {}, "name_algo_map": {},
        "exclude_name": [], "use_fnmatch": False,
    }  # fmt: skip
    network.apply_preset(empty | PRESETS[name])
    try:
        made = network(theirs, network_module="lokr", lora_dim=2, alpha=3, factor=4, warn_on_unmatched=False)
    finally:
        network.apply_preset(empty)
    paths = {f"lycoris_{path}".replace(".", "_"): path for path, _ in theirs.named_modules()}
    there = {
        paths[one.lora_name]: {n: math.prod(p.shape) for n, p in one.named_parameters()} for one in made.loras
    }
    spec = spec_of({"linear_dim": 2, "linear_alpha": 3, "factor": 4}, **PRESETS[name])
    plans = lokr_plans(ours, spec)
    here = {path: {n: math.prod(s) for n, s in plan.shapes.items()} for path, plan in plans.items()}
    assert here == {path: found for path, found in there.items() if path in here}
    left_out = set(there) - set(here)
    unused = [path for path in left_out if not ours.lora.why_unused(path)]
    assert all("depth_conv" in path or "conv_module" in path for path in unused), unused


def trained(model: Any, settings: dict[str, Any], **preset: Any) -> Any:
    """A LoKr with weights as if trained, on the model."""
    spec = spec_of(settings, **preset)
    inject(model, spec, seed=1)
    for i, layer in enumerate(adapter_modules(model).values()):
        for j, (key, value) in enumerate(sorted(layer.items())):
            if key.startswith("lokr_"):
                noise = mx.random.normal(value.shape, key=mx.random.key(100 * i + j))
                layer[key] = value + 0.3 * noise
    return from_model(model, spec)


def load(theirs: Any, path: Path, merged: bool) -> int:
    """LyCORIS's own loader; how many modules it found."""
    lycoris.LycorisNetwork.apply_preset({"lora_prefix": "lycoris"})
    network, _ = lycoris.create_lycoris_from_weights(1.0, str(path), theirs)
    if merged:
        with torch.no_grad():
            network.merge_to(1.0)
    else:
        network.apply_to()
    return len(network.loras)


LOADABLE = [name for name in SETTINGS if name != "unbalanced"]


@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize("name", LOADABLE)
def test_lycoris_loads_what_was_trained_on_1_5(
    name: str, merged: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ours, theirs = pair()
    plain = velocity(theirs)
    weights = trained(ours, SETTINGS[name], target_module=["Attention", "FeedForward"])
    path = write_lora(tmp_path / "lokr_weights.safetensors", weights, "lycoris")
    assert load(originals_names(theirs, monkeypatch), path, merged) == len(weights.modules)
    expected = velocity(theirs)
    assert relative(ours(**as_mlx(GIVEN)), expected) <= 2e-5
    assert relative(mx.array(plain), expected) > 1e-2


@pytest.mark.parametrize("name", ["w2 a product", "both products", "full matrix, factor 6"])
def test_lycoris_loads_what_was_trained_on_v1(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Convolutions included, which are linear layers here."""
    config = tiny(TransformerConfig)
    theirs = make_reference(config, monkeypatch)
    ours = make_ours(config, theirs)
    inputs = make_inputs(config)
    plain, _ = run_ours(ours, inputs)
    weights = trained(ours, SETTINGS[name], target_module=["Attention", "GLUMBConv"])
    path = write_lora(tmp_path / "x.safetensors", weights, "lycoris")
    assert load(theirs, path, merged=False) == len(weights.modules)
    expected, _ = run_reference(theirs, inputs)
    assert relative_error(run_ours(ours, inputs)[0], expected) <= 1e-4
    assert relative_error(plain, expected) > 1e-2


def test_a_quantised_base_has_the_same_update() -> None:
    ours, _ = pair()
    fits = [p for p, m in ours.named_modules() if isinstance(m, nn.Linear) and m.weight.shape[1] % 32 == 0]
    nn.quantize(ours, group_size=32, bits=8, class_predicate=lambda path, _: path in fits)
    weights = trained(ours, SETTINGS["w2 a product"], target_module=["Attention"])
    layers = adapter_modules(ours)
    path = next(path for path, one in layers.items() if isinstance(one.linear, nn.QuantizedLinear))
    layer = layers[path]
    x = mx.random.normal((3, weights.shapes[path][1]))
    change = x @ weights.modules[path].delta().T
    assert relative(layer(x) - layer.linear(x), np.array(change)) <= 1e-5
    assert all("lokr" in path for path, _ in tree_flatten(ours.trainable_parameters()))
