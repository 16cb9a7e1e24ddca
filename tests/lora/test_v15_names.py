"""What other programs call the modules of ACE-Step 1.5's transformer: read into our paths."""

from __future__ import annotations

import re
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from safetensors.numpy import save_file

from acestep_mlx import families
from acestep_mlx.config.lora_formats import FORMATS
from acestep_mlx.families.v15 import ACEStep15
from acestep_mlx.lora.formats.keys import parse
from acestep_mlx.lora.formats.read import read_lora
from acestep_mlx.lora.formats.recognise import recognise, released
from acestep_mlx.lora.formats.write import write_lora
from acestep_mlx.lora.surgery import LoRASpec, find_targets, inject

from ..families.v15 import transformer

FAMILY = ACEStep15()
FAMILIES = "acestep_mlx.families"


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(families.REGISTRY, "v15", __name__)


OURS = [
    *(f"layers.{i}.{kind}_attn.{x}_proj" for i in (0, 23) for kind in ("self", "cross") for x in "qkvo"),
    *(f"layers.3.mlp.{name}_proj" for name in ("gate", "up", "down")),
]


def diffusers(path: str) -> str:
    for x in "qkv":
        path = path.replace(f"attn.{x}_proj", f"attn.to_{x}")
    return path.replace("o_proj", "to_out.0")


def flat(path: str) -> str:
    return path.replace(".", "_")


#: who writes it → (module → key in front of the ending, endings)
PEFT = (".lora_A.weight", ".lora_B.weight")
DOWN_UP = (".lora_down.weight", ".lora_up.weight", ".alpha")
SPELLINGS = {
    "PEFT folder": (lambda path: f"base_model.model.{path}", PEFT),
    "PEFT folder, adapter named": (
        lambda path: f"base_model.model.{path}", (".lora_A.default.weight", ".lora_B.default.weight"),
    ),
    "PEFT folder of the whole model": (lambda path: f"base_model.model.decoder.{path}", PEFT),
    "ComfyUI": (lambda path: f"diffusion_model.decoder.{path}", PEFT),
    "ComfyUI, down and up": (lambda path: f"diffusion_model.decoder.{path}", DOWN_UP),
    "ComfyUI from a PEFT folder": (lambda path: f"base_model.model.{path}", DOWN_UP),
    "diffusers": (lambda path: f"transformer.{diffusers(path)}", PEFT),
    "diffusers, plain": (diffusers, PEFT),
    "SimpleTuner": (lambda path: f"transformer.{path}", PEFT),
    "SimpleTuner, decoder": (lambda path: f"transformer.decoder.{path}", PEFT),
    "Side-Step": (lambda path: f"base_model.model.{path}", DOWN_UP),
    "LyCORIS": (lambda path: f"lycoris_{flat(path)}", DOWN_UP),
    "LyCORIS of the whole model": (lambda path: f"lycoris_decoder_{flat(path)}", DOWN_UP),
    "kohya": (lambda path: f"lora_unet_{flat(path)}", DOWN_UP),
    "kohya over diffusers": (lambda path: f"lora_transformer_{flat(diffusers(path))}", DOWN_UP),
    "ours": (lambda path: path, (".lora_a", ".lora_b")),
}  # fmt: skip
SPELT = pytest.mark.parametrize("program", SPELLINGS)


@SPELT
def test_every_module_in_every_spelling(program: str) -> None:
    spell, endings = SPELLINGS[program]
    for path in OURS:
        for ending in endings:
            key = parse(spell(path) + ending, FAMILY.lora)
            assert key is not None and key.path == path, spell(path) + ending


def test_every_linear_layer_has_its_spellings() -> None:
    """Those no preset trains, too: an adapter may sit on them."""
    paths = [re.sub(r"\.\d+\.", ".7.", path) for path in released(FAMILY)]
    assert {"condition_embedder", "time_embed_r.time_proj", "layers.7.mlp.up_proj"} <= set(paths)
    for path in dict.fromkeys(paths):
        for name in (f"lycoris_{flat(path)}", f"decoder.{path}", f"lycoris_decoder_{flat(path)}"):
            key = parse(f"{name}.lora_up.weight", FAMILY.lora)
            assert key is not None and key.path == path, name


@SPELT
def test_files_are_read_to_the_same_change(program: str, registered: None, tmp_path: Path) -> None:
    spell, endings = SPELLINGS[program]
    rng, tensors, expected = np.random.default_rng(0), {}, {}
    for path in OURS:
        a = rng.normal(size=(2, 48)).astype(np.float32)
        b = rng.normal(size=(64 if path.endswith("q_proj") else 48, 2)).astype(np.float32)
        down, up, *alpha = (spell(path) + ending for ending in endings)
        tensors[down], tensors[up] = (a.T, b.T) if program == "ours" else (a, b)
        tensors |= {name: np.float32([3.0]) for name in alpha}
        expected[path] = (1.5 if alpha else 1.0) * b @ a
    save_file({name: np.ascontiguousarray(t) for name, t in tensors.items()}, tmp_path / "a.safetensors")
    lora = read_lora(tmp_path / "a.safetensors")
    assert lora.family is FAMILY and set(lora.modules) == set(OURS)
    for path, module in lora.modules.items():
        np.testing.assert_allclose(module.delta(), expected[path], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("lycoris_layers_0_cross_attn_k_proj.lokr_w1", "LyCORIS LoKr"),
        ("diffusion_model.decoder.layers.0.mlp.up_proj.hada_w1_a", "LyCORIS LoHa"),
        ("base_model.model.layers.1.self_attn.q_proj.lora_A.weight", "LoRA"),
    ],
)
def test_what_it_is_and_whose(name: str, kind: str, registered: None) -> None:
    adapter = recognise([name])
    assert adapter is not None and adapter.family is FAMILY and adapter.model == "ACE-Step 1.5"
    assert adapter.kind == kind and not adapter.strange


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.0.self_attn.q_proj.lora_A.weight",  # a language model's
        "transformer_blocks.0.attn.to_q.lora_A.weight",  # v1's
        "base_model.model.encoder.text_projector.lora_A.weight",
        "encoder.block.0.layer.0.SelfAttention.q.lora_A.weight",
        "layers.0.self_attn.qkv_proj.lora_A.weight",
        "layers.x.self_attn.q_proj.lora_A.weight",
        "lycoris_layers_0_attn_q_proj.lora_down.weight",
    ],
)
def test_modules_of_other_models_are_not_taken_for_ours(name: str, registered: None) -> None:
    adapter = recognise([name, name.replace("lora_A", "lora_B").replace("down", "up")])
    assert adapter is not None and (adapter.family is not FAMILY or adapter.strange)


def test_nothing_changed_for_v1() -> None:
    names = families.family("v1").lora
    for path in ("decoder.transformer_blocks.0.attn.to_q", "layers.0.self_attn.to_q"):
        key = parse(f"{path}.lora_A.weight", names)
        assert key is not None and key.path == path


@pytest.mark.parametrize(("preset", "modules"), [("attn_qkv", 4 * 8), ("attn_qkv+mlp", 4 * 11)])
def test_presets(preset: str, modules: int) -> None:
    found = find_targets(transformer(), FAMILY.lora.presets[preset])
    assert len(found) == modules
    assert FAMILY.lora.default_targets == FAMILY.lora.presets["attn_qkv"]
    assert all(("mlp" in path) <= preset.endswith("mlp") for path in found)


@pytest.mark.parametrize("format", FORMATS)
def test_our_own_files_are_read_back(format: str, registered: None, tmp_path: Path) -> None:
    from acestep_mlx.lora.weights import LoRAModule, LoRAWeights

    model = transformer()
    paths = inject(model, LoRASpec(rank=2, alpha=6.0, targets=FAMILY.lora.default_targets))
    rng = np.random.default_rng(0)
    modules = {
        path: LoRAModule(mx.array(rng.normal(size=(2, 8))), mx.array(rng.normal(size=(6, 2))), 3.0, None)
        for path in paths
    }
    weights = LoRAWeights(modules, {"rank": 2, "alpha": 6.0}, None, {}, "test", (), 0, FAMILY)
    file = write_lora(tmp_path / "a.safetensors", weights, format)
    again = read_lora(file)
    assert again.family is FAMILY and set(again.modules) == set(paths)
