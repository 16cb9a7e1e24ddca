"""Exported LoRAs in diffusers itself, called as the original pipeline calls it, on the reference model."""

from __future__ import annotations

import re
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

from acestep_mlx.cli.export import programs
from acestep_mlx.families.v1.dit import ACEStepTransformer, TransformerConfig
from acestep_mlx.families.v1.lora import LORA
from acestep_mlx.lora.formats.read import FILE_NAME, read_lora
from acestep_mlx.lora.formats.scales import PeftSettings
from acestep_mlx.lora.formats.write import write_lora
from acestep_mlx.lora.full_modules import full_parameters, set_full
from acestep_mlx.lora.surgery import LoRASpec, adapter_modules, from_model, inject
from acestep_mlx.lora.weights import LoRAWeights

from ..families.tiny import tiny
from ..later import Later
from . import reference
from .test_transformer_parity import (
    make_inputs,
    make_ours,
    make_reference,
    relative_error,
    run_ours,
    run_reference,
)

torch = Later("torch")
peft = Later("peft")
pytestmark = pytest.mark.parity

CONFIG = tiny(TransformerConfig)
CONVOLUTIONS = ("ff.inverted_conv.conv", "ff.point_conv.conv", "proj_in.early_conv_layers.2")
SPECS = {
    "alpha = rank": LoRASpec(rank=4),
    "alpha ≠ rank": LoRASpec(rank=4, alpha=10),
    "rsLoRA": LoRASpec(rank=8, alpha=2, use_rslora=True),
    "convolutions": LoRASpec(rank=4, alpha=3, targets=(*LORA.default_targets, *CONVOLUTIONS)),
    "everything else": LoRASpec(
        rank=3, targets=("speaker_embedder", "lyric_proj", "w_1", "linear_pos", "t_block.1")
    ),
    "DoRA": LoRASpec(rank=4, alpha=10, use_dora=True),
    "DoRA, rsLoRA, convolutions": LoRASpec(
        rank=4, alpha=3, use_rslora=True, use_dora=True, targets=(*LORA.default_targets, *CONVOLUTIONS)
    ),
}


def train_a_little(ours: ACEStepTransformer, spec: LoRASpec) -> LoRAWeights:
    """Inject, and give B and the magnitudes values that change the velocity visibly."""
    inject(ours, spec, seed=1)
    for i, layer in enumerate(adapter_modules(ours).values()):
        key = mx.random.key(i)
        layer.lora_b = 0.1 * mx.random.normal(layer.lora_b.shape, key=key)
        if "m" in layer:
            layer.m = layer.m * (1 + 0.2 * mx.random.normal(layer.m.shape, key=key))
    return from_model(ours, spec)


def load(theirs: torch.nn.Module, folder: Path) -> dict[str, torch.nn.Module]:
    """The original pipeline's call; returns the LoRA layers by path."""
    theirs.load_lora_adapter(str(folder / FILE_NAME), adapter_name="x", with_alpha=True, prefix=None)
    layers = {n: m for n, m in theirs.named_modules() if isinstance(m, peft.tuners.lora.LoraLayer)}
    assert all("x" in layer.scaling and layer.scaling["x"] == 1.0 for layer in layers.values())
    return layers


@pytest.mark.parametrize("name", SPECS)
def test_same_update_and_velocity(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    theirs = make_reference(CONFIG, monkeypatch)
    ours = make_ours(CONFIG, theirs)
    inputs = make_inputs(CONFIG)
    plain, _ = run_ours(ours, inputs)
    weights = train_a_little(ours, SPECS[name])
    velocity, states = run_ours(ours, inputs)
    write_lora(tmp_path / FILE_NAME, weights)

    layers = load(theirs, tmp_path)
    assert layers.keys() == weights.modules.keys()
    for path, layer in layers.items():
        delta = layer.get_delta_weight("x").detach().numpy()
        difference = delta.reshape(delta.shape[:2]) - np.array(weights.modules[path].delta())
        assert np.abs(difference).max() <= 1e-6, path
        assert np.abs(delta).max() > 1e-3, path
    expected, expected_states = run_reference(theirs, inputs)
    assert relative_error(velocity, expected) <= 1e-4
    assert relative_error(states, expected_states) <= 1e-4
    if name != "everything else":
        assert relative_error(plain, expected) > 1e-2  # the LoRA does something here


def test_the_readme_says_how_diffusers_loads_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Its line is run as it stands; the folder alone, or the default prefix, would load nothing."""
    readme = (Path(__file__).resolve().parents[2] / "README.md").read_text(encoding="utf-8")
    (line,) = re.findall(r"^\| diffusers \| `(model\.load_lora_adapter\(.*?\))`", readme, re.M)
    theirs = make_reference(CONFIG, monkeypatch)
    weights = train_a_little(make_ours(CONFIG, theirs), SPECS["rsLoRA"])
    write_lora(tmp_path / "FOLDER" / FILE_NAME, weights)
    monkeypatch.chdir(tmp_path)
    exec(line, {"model": theirs})
    layers = {n: m for n, m in theirs.named_modules() if isinstance(m, peft.tuners.lora.LoraLayer)}
    assert layers.keys() == weights.modules.keys()
    for path, layer in layers.items():
        (name,) = layer.scaling
        delta = layer.get_delta_weight(name).detach().numpy()
        assert np.abs(delta - np.array(weights.modules[path].delta())).max() <= 1e-6, path


@pytest.mark.parametrize("name", ["alpha ≠ rank", "DoRA, rsLoRA, convolutions"])
def test_diffusers_takes_its_own_names_as_it_is_called_first(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """`--format diffusers`: the README's line, without a prefix named."""
    readme = (Path(__file__).resolve().parents[2] / "README.md").read_text(encoding="utf-8")
    (line,) = re.findall(r'`(model\.load_lora_adapter\("FILE"\))`', readme)
    theirs = make_reference(CONFIG, monkeypatch)
    ours = make_ours(CONFIG, theirs)
    weights = train_a_little(ours, SPECS[name])
    file = write_lora(tmp_path / "x.safetensors", weights, "diffusers")
    exec(line.replace("FILE", str(file)), {"model": theirs})
    layers = [n for n, m in theirs.named_modules() if isinstance(m, peft.tuners.lora.LoraLayer)]
    assert set(layers) == weights.modules.keys()
    velocity, _ = run_ours(ours, make_inputs(CONFIG))
    assert relative_error(velocity, run_reference(theirs, make_inputs(CONFIG))[0]) <= 1e-4


@pytest.mark.parametrize("name", SPECS)
def test_simpletuner_starts_from_it(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """`--init_lora` by the reference's own function, on the adapter that its trainer makes; and what `export`
    announces is what it takes.
    """
    adapter = reference.load_training("adapter")
    theirs = make_reference(CONFIG, monkeypatch)
    weights = train_a_little(make_ours(CONFIG, theirs), SPECS[name])
    path = write_lora(tmp_path / "x.safetensors", weights, "simpletuner")
    spec = SPECS[name]
    config = peft.LoraConfig(
        r=spec.rank, lora_alpha=spec.rank, use_dora=spec.use_dora, target_modules=list(weights.modules)
    )
    theirs.add_adapter(config, adapter_name="default")
    dropped, missing = adapter.load_lora_weights({"transformer": theirs}, str(path), use_dora=spec.use_dora)
    layers = {n: m for n, m in theirs.named_modules() if isinstance(m, peft.tuners.lora.layer.Linear)}
    assert not missing and len(layers) > 5
    for module_path, layer in layers.items():
        delta = layer.get_delta_weight("default").detach().numpy()
        assert np.abs(delta - np.array(weights.modules[module_path].delta())).max() <= 1e-6, module_path
        if spec.use_dora:
            magnitude = layer.lora_magnitude_vector["default"].weight.detach().numpy()
            assert np.allclose(magnitude, np.array(weights.modules[module_path].magnitude)), module_path
    told = programs(weights, "simpletuner", False)
    assert ("not --init_lora" in told) == bool(dropped) == ("convolutions" in name)


def test_mixed_ranks_are_padded_to_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    theirs = make_reference(CONFIG, monkeypatch)
    ours = make_ours(CONFIG, theirs)
    weights = train_a_little(ours, LoRASpec(rank=8, alpha=4))
    for i, (path, layer) in enumerate(adapter_modules(ours).items()):
        rank = 1 + i % 8
        layer.lora_a, layer.lora_b = layer.lora_a[:, :rank], layer.lora_b[:rank]
        weights.modules[path].a, weights.modules[path].b = layer.lora_a.T, layer.lora_b.T
    write_lora(tmp_path / FILE_NAME, weights)
    layers = load(theirs, tmp_path)
    assert {layer.r["x"] for layer in layers.values()} == {8}
    velocity, _ = run_ours(ours, make_inputs(CONFIG))
    assert relative_error(velocity, run_reference(theirs, make_inputs(CONFIG))[0]) <= 1e-4


def test_what_diffusers_saves_reads_back_with_its_scale(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Upstream's trainer ends in this call; newer diffusers add alpha and rsLoRA as metadata."""
    theirs = make_reference(CONFIG, monkeypatch)
    config = peft.LoraConfig(
        r=8,
        lora_alpha=2,
        use_rslora=True,
        target_modules=list(LORA.default_targets),
        rank_pattern={"attn.to_q": 4},
        alpha_pattern={"attn.to_k": 5.0},
        init_lora_weights=False,
    )
    theirs.add_adapter(config, adapter_name="x")
    theirs.save_lora_adapter(str(tmp_path), adapter_name="x")
    weights = read_lora(tmp_path)
    layers = {n: m for n, m in theirs.named_modules() if isinstance(m, peft.tuners.lora.LoraLayer)}
    assert layers.keys() == weights.modules.keys()
    assert len({round(m.scale, 6) for m in weights.modules.values()}) == 3
    for path, layer in layers.items():
        delta = layer.get_delta_weight("x").detach().numpy()
        assert np.abs(delta - np.array(weights.modules[path].delta())).max() <= 1e-6, path


@pytest.mark.parametrize("rslora", [False, True])
def test_a_peft_folder_reads_with_its_config(
    rslora: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    theirs = make_reference(CONFIG, monkeypatch)
    config = peft.LoraConfig(
        r=4,
        lora_alpha=10,
        use_rslora=rslora,
        use_dora=True,
        target_modules=["to_q", "linear_v", "point_conv.conv"],
        init_lora_weights=False,
    )
    wrapped = peft.get_peft_model(theirs, config)
    wrapped.save_pretrained(str(tmp_path))
    weights = read_lora(tmp_path)
    layers = {n: m for n, m in theirs.named_modules() if isinstance(m, peft.tuners.lora.LoraLayer)}
    assert layers.keys() == weights.modules.keys() and weights.is_dora
    for path, layer in layers.items():
        delta = layer.get_delta_weight("default").detach().numpy()
        mine = np.array(weights.modules[path].delta())
        assert np.abs(delta.reshape(mine.shape) - mine).max() <= 1e-6, path
        magnitude = layer.lora_magnitude_vector["default"].weight.detach().numpy().reshape(-1)
        assert np.array_equal(magnitude, np.array(weights.modules[path].magnitude)), path


def test_what_peft_takes_where_its_settings_say_nothing() -> None:
    settings = PeftSettings.from_dict({"peft_type": "LORA"}, "x")
    assert (settings.rank, settings.alpha) == (peft.LoraConfig().r, peft.LoraConfig().lora_alpha)


def test_the_lyrics_embedder_in_a_file_overwrites_the_base(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    theirs = make_reference(CONFIG, monkeypatch)
    ours = make_ours(CONFIG, theirs)
    weights = train_a_little(ours, LoRASpec(rank=4, alpha=10))
    trained = {
        name: value + 0.05 * mx.random.normal(value.shape, key=mx.random.key(i))
        for i, (name, value) in enumerate(full_parameters(ours).items())
    }
    _, plain = run_ours(ours, make_inputs(CONFIG))
    set_full(ours, trained)
    weights.full = trained
    write_lora(tmp_path / FILE_NAME, weights, with_full=True)
    load(theirs, tmp_path)
    velocity, states = run_ours(ours, make_inputs(CONFIG))
    expected, expected_states = run_reference(theirs, make_inputs(CONFIG))
    assert relative_error(plain, expected_states) > 1e-2
    assert relative_error(states, expected_states) <= 1e-4
    assert relative_error(velocity, expected) <= 1e-4


@pytest.mark.parametrize("name", ["rsLoRA", "DoRA", "convolutions"])
def test_gradients_equal_peft(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Of A, B and the magnitudes, from the same loss on the same file."""
    theirs = make_reference(CONFIG, monkeypatch)
    ours = make_ours(CONFIG, theirs)
    weights = train_a_little(ours, SPECS[name])
    write_lora(tmp_path / FILE_NAME, weights)
    layers = load(theirs, tmp_path)
    inputs = make_inputs(CONFIG)
    probe = np.random.default_rng(3).standard_normal(inputs["hidden_states"].shape, dtype=np.float32)

    given = {k: mx.array(v) for k, v in inputs.items()}
    grads = nn.value_and_grad(ours, lambda: (ours(**given) * mx.array(probe)).sum())()[1]
    flat = dict(tree_flatten(grads))

    for parameter in theirs.parameters():
        parameter.requires_grad_(False)
    for layer in layers.values():
        for part in ("lora_A", "lora_B", "lora_magnitude_vector"):
            for module in getattr(layer, part).values():
                module.requires_grad_(True)
    velocity = theirs(**{k: torch.from_numpy(v) for k, v in inputs.items()}).sample
    (velocity * torch.from_numpy(probe)).sum().backward()

    scale = SPECS[name].scale  # B is stored as scale·B there
    for path, layer in layers.items():
        expected = {
            f"{path}.lora_a": layer.lora_A["x"].weight.grad.flatten(1).T,
            f"{path}.lora_b": scale * layer.lora_B["x"].weight.grad.flatten(1).T,
        }
        if SPECS[name].use_dora:
            expected[f"{path}.m"] = layer.lora_magnitude_vector["x"].weight.grad.reshape(-1)
        for key, value in expected.items():
            assert relative_error(flat.pop(key), value) <= 1e-3, key
    assert not flat
