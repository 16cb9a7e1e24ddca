"""`export` of a LoRA of ACE-Step 1.5: what each program is given, and when nothing is written."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from acestep_mlx.cli import main
from acestep_mlx.families.v15.lora import ATTENTION, LORA, MLP
from acestep_mlx.lora.formats import write as writing
from acestep_mlx.lora.formats.read import read_lora
from acestep_mlx.lora.formats.write import write_lora, write_peft_folder
from acestep_mlx.lora.linear import base_linears
from acestep_mlx.lora.surgery import LoRASpec, from_model, inject
from acestep_mlx.lora.weights import LoRAWeights, relative_difference

from ..families.v15 import transformer
from . import readers
from .standin import disturb

SPEC = LoRASpec(rank=2, alpha=6, targets=(*ATTENTION, *MLP))


@cache
def made(spec: LoRASpec) -> LoRAWeights:
    model = transformer()
    inject(model, spec)
    disturb(model)
    return from_model(model, spec)


def weights(spec: LoRASpec = SPEC) -> LoRAWeights:
    """One that may be changed."""
    found = made(spec)
    return replace(found, modules={path: replace(module) for path, module in found.modules.items()})


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_lora(tmp_path / "checkpoint" / "pytorch_lora_weights.safetensors", weights())


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as caught:
        main([str(a) for a in arguments])
    return int(caught.value.code or 0)


# Of one attention and one MLP layer, where each format has it.
NAMES = {
    "comfyui": (
        "diffusion_model.decoder.layers.1.cross_attn.o_proj", "diffusion_model.decoder.layers.1.mlp.up_proj",
    ),
    "diffusers": ("transformer.layers.1.cross_attn.to_out.0", "transformer.layers.1.mlp.up_proj"),
    "simpletuner": (
        "transformer.base_model.model.decoder.layers.1.cross_attn.o_proj",
        "transformer.base_model.model.decoder.layers.1.mlp.up_proj",
    ),
    "mlx": ("layers.1.cross_attn.o_proj", "layers.1.mlp.up_proj"),
}  # fmt: skip


# What the line ends with, and the next one.
SAID = {
    "comfyui": "for ComfyUI\nread back",
    "diffusers": "for diffusers\nread back",
    "simpletuner": "for SimpleTuner's --init_lora\nnote: SimpleTuner takes it in where its own settings are "
    "lora_rank 2, lora_alpha 2 or none, peft_lora_target_modules k_proj mlp.down_proj mlp.gate_proj "
    "mlp.up_proj o_proj q_proj v_proj\nread back",
    "mlx": "for acestep-mlx, with the trained A, B and scale apart\nread back",
}


@pytest.mark.slow_after(1)
@pytest.mark.parametrize("kind", NAMES)
def test_each_program_has_its_own_names(
    kind: str, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "x.safetensors"
    assert run("export", source, "--format", kind, "-o", file) == 0
    said = capsys.readouterr().out
    assert SAID[kind] in said and ("SimpleTuner" in said) == (kind == "simpletuner")
    tensors = load_file(file)
    assert not any(name.endswith(".alpha") for name in tensors)
    trained = weights()
    for name, path in zip(NAMES[kind], NAMES["mlx"], strict=True):
        if kind == "mlx":
            continue
        delta = tensors[f"{name}.lora_B.weight"] @ tensors[f"{name}.lora_A.weight"]
        np.testing.assert_allclose(delta, np.array(trained.modules[path].delta()), atol=1e-5)
    assert len(tensors) == 2 * len(trained.modules)


def test_peft_is_a_folder_that_leaves_nothing_to_be_multiplied(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("export", source) == 0
    said = capsys.readouterr().out
    assert "checkpoint-peft: LoRA of 44 modules, rank 2" in said
    assert "for the official app, peft, diffusers, ComfyUI" in said and "note" not in said
    folder = tmp_path / "checkpoint-peft"
    assert {p.name for p in folder.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    settings = json.loads((folder / "adapter_config.json").read_text())
    assert settings["r"] == settings["lora_alpha"] == 2 and settings["peft_type"] == "LORA"
    assert not settings["use_rslora"] and not settings["use_dora"]
    assert "layers.3.cross_attn.q_proj" in settings["target_modules"]
    tensors = load_file(folder / "adapter_model.safetensors")
    assert {name.split(".lora_")[0] for name in tensors} == {
        f"base_model.model.{path}" for path in settings["target_modules"]
    }
    again = read_lora(folder)
    for path, module in weights().modules.items():
        assert relative_difference(module, again.modules[path]) <= 1e-6


def test_without_our_own_facts_the_folder_means_the_same(tmp_path: Path) -> None:
    """As other programs read it: from the tensors and adapter_config.json alone."""
    trained = weights(LoRASpec(rank=2, alpha=6, use_rslora=True, use_dora=True, targets=ATTENTION))
    file = write_peft_folder(tmp_path / "x", trained)
    save_file(load_file(file), file)
    again = read_lora(tmp_path / "x")
    assert not again.metadata and not again.unscaled and again.is_dora
    for path, module in trained.modules.items():
        assert relative_difference(module, again.modules[path]) <= 1e-6


def test_a_folder_takes_the_place_of_nothing_else(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, music = tmp_path / "x", tmp_path / "music"
    music.mkdir()
    (music / "song.wav").write_bytes(b"")
    (tmp_path / "file").write_bytes(b"")
    assert run("export", source, "-o", folder) == 0
    first = (folder / "adapter_model.safetensors").read_bytes()
    for where, force, says in (
        (folder, (), "--force"),
        (music, ("--force",), "song.wav"),
        (tmp_path / "file", ("--force",), "cannot be a folder"),
        (tmp_path / "y.safetensors", (), "cannot be a folder"),
    ):
        capsys.readouterr()
        assert run("export", source, "-o", where, *force) == 1
        errors = capsys.readouterr().err
        assert says in errors and errors.count("\n") == 1
    assert run("export", source, "-o", folder, "--force", "--dtype", "bfloat16") == 0
    assert len((folder / "adapter_model.safetensors").read_bytes()) < len(first)
    assert {p.name for p in tmp_path.iterdir()} == {"checkpoint", "x", "music", "file"}


def test_a_folder_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    trained = weights()
    monkeypatch.setattr(writing, "peft_settings", full)
    with pytest.raises(writing.CheckpointError, match=r"/x cannot be written: the disk is full"):
        write_peft_folder(tmp_path / "x", trained)
    monkeypatch.undo()
    trained.modules["layers.0.self_attn.q_proj"].b = mx.full((64, 2), float("nan"))
    with pytest.raises(writing.CheckpointError, match="NaN"):
        write_peft_folder(tmp_path / "x", trained)
    assert not [*tmp_path.iterdir()]


@pytest.mark.slow
def test_a_program_is_named_only_where_it_sees_the_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """diffusers knows the original's names by queries and keys; and ComfyUI no DoRA of peft's."""
    for targets, dora, who in (
        (MLP, False, "for the official app, peft, ComfyUI"),
        (ATTENTION, True, "for the official app, peft, diffusers\n"),
    ):
        spec = LoRASpec(rank=2, use_dora=dora, targets=targets)
        file = write_lora(tmp_path / "x.safetensors", weights(spec))
        assert run("export", file, "-o", tmp_path / str(dora)) == 0
        assert who in capsys.readouterr().out


def test_training_and_the_family_write_for_the_same_programs(tmp_path: Path) -> None:
    """What a run leaves behind knows whose it is, in every format."""
    trained = weights()
    assert trained.family.lora is LORA
    assert set(load_file(write_lora(tmp_path / "x.safetensors", trained))) == {
        f"base_model.model.{path}.lora_{x}.weight" for path in trained.modules for x in "AB"
    }


def test_what_this_model_has_not_is_not_exported(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("export", source, "--with-lyrics-embedder", "-o", tmp_path / "x") == 1
    assert "no layers trained in full" in capsys.readouterr().err and not (tmp_path / "x").exists()


@pytest.mark.parametrize("kind", ["comfyui", "peft"])
@pytest.mark.parametrize("dora", [False, True])
def test_comfyui_applies_exactly_what_was_trained(kind: str, dora: bool, tmp_path: Path) -> None:
    """Its rule for this model: any weight by its name, and the decoder's as peft names them."""
    model = transformer()
    spec = LoRASpec(rank=2, alpha=6, use_dora=dora, targets=(*ATTENTION, *MLP))
    inject(model, spec)
    disturb(model)
    trained = from_model(model, spec)
    file = write_lora(tmp_path / "x.safetensors", trained, kind, base=model)
    linears = base_linears(model)
    front = "decoder." if kind == "comfyui" else "base_model.model."
    base = {f"{front}{path}.weight": np.array(linears[path].weight) for path in trained.modules}
    got, unused = readers.comfyui(file, base)
    if dora and kind == "peft":  # which `programs` does not announce
        assert all("lora_magnitude_vector" in name for name in unused)
        return
    assert unused == []
    for path, module in trained.modules.items():
        wanted = np.array(module.adapted_weight(linears[path]))
        assert np.abs(got[f"{front}{path}.weight"] - wanted).max() <= 1e-5 * np.abs(wanted).max(), path
        assert np.abs(wanted - base[f"{front}{path}.weight"]).max() > 1e-3, path
