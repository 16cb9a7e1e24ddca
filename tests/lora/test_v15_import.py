"""LoRAs for ACE-Step 1.5 from other programs, and of the other model: what is read, said and refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from acestep_mlx.cli import main
from acestep_mlx.errors import CheckpointError
from acestep_mlx.lora.formats.read import read_lora

from ..families.v15 import transformer
from .standin import make

SIZES = {"2B": (2048, 2048, 1024, 6144), "4B": (2560, 4096, 1024, 9728)}  # model, queries, keys, MLP


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as caught:
        main([str(a) for a in arguments])
    return int(caught.value.code or 0)


def pair(name: str, out: int = 64, inputs: int = 48, rank: int = 2, b: float = 1.0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(len(name))
    return {
        f"{name}.lora_A.weight": rng.standard_normal((rank, inputs), np.float32),
        f"{name}.lora_B.weight": b * rng.standard_normal((out, rank), np.float32),
    }


def released(size: str, prefix: str = "base_model.model.") -> dict[str, np.ndarray]:
    D, Q, K, M = SIZES[size]
    return {
        **pair(f"{prefix}layers.23.self_attn.q_proj", Q, D),
        **pair(f"{prefix}layers.0.cross_attn.k_proj", K, D),
        **pair(f"{prefix}layers.0.cross_attn.o_proj", D, Q),
        **pair(f"{prefix}layers.1.mlp.up_proj", M, D),
    }


# Whose it is -----------------------------------------------------------------------------------------------


@pytest.mark.slow_after(2)
@pytest.mark.parametrize(
    ("size", "says"),
    [("2B", "for v15-base, v15-sft, v15-turbo"), ("4B", "for v15-xl-base, v15-xl-sft, v15-xl-turbo")],
)
@pytest.mark.parametrize("prefix", ["base_model.model.", "diffusion_model.decoder.", "transformer."])
def test_info_and_export_know_it_without_a_model(
    size: str, says: str, prefix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "x.safetensors"
    save_file(released(size, prefix), file)
    assert run("info", file) == 0
    lines = capsys.readouterr().out
    assert "LoRA for ACE-Step 1.5, peft's keys" in lines and says in lines and "rank: 2" in lines
    assert "self_attn.q_proj × 1" in lines and "no alpha is stored" in lines
    assert "upstream's recipe" not in lines and "miniature" not in lines
    assert run("export", file, "--format", "comfyui", "-o", tmp_path / "y.safetensors") == 0


def test_info_tells_the_alpha_of_somebody_elses_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 2, "lora_alpha": 5}))
    save_file(released("2B"), tmp_path / "adapter_model.safetensors")
    assert run("info", tmp_path) == 0
    said = capsys.readouterr().out
    assert "alpha 5 at this rank" in said and "scale 2.5, applied by acestep-mlx itself" in said


def test_a_width_that_no_release_has(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_file(pair("base_model.model.layers.0.self_attn.q_proj", 3072, 3072), tmp_path / "x.safetensors")
    assert run("export", tmp_path / "x.safetensors", "-o", tmp_path / "y") == 1
    errors = capsys.readouterr().err
    assert "is not for ACE-Step 1.5" in errors and "3072×3072" in errors and errors.count("\n") == 1


OF_V1 = pair("transformer_blocks.0.attn.to_q", 64, 64)
OF_V15 = pair("layers.0.self_attn.q_proj")


@pytest.mark.parametrize(
    ("tensors", "model", "says"),
    [
        (OF_V1, transformer, "x.safetensors is for ACE-Step v1, and this model is ACE-Step 1.5"),
        (OF_V15, make, "x.safetensors is for ACE-Step 1.5, and this model is ACE-Step v1"),
    ],
)
def test_a_lora_of_the_other_model(tensors: Any, model: Any, says: str, tmp_path: Path) -> None:
    save_file(tensors, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError) as error:
        read_lora(tmp_path / "x.safetensors").check_against(model())
    assert str(error.value).endswith(says)


@pytest.mark.parametrize(
    ("module", "whose"),
    [
        ("double_blocks.0.img_attn.qkv", "FLUX"),
        ("base_model.model.model.layers.0.self_attn.q_proj", "a language model"),
        ("transformer.layers.0.self_attn.to_qkv", "Stable Audio"),
        ("diffusion_model.blocks.0.self_attn.q", "Wan"),
        ("some.where", "another model"),
    ],
)
def test_a_lora_of_neither(
    module: str, whose: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_file(pair(module), tmp_path / "x.safetensors")
    with pytest.raises(
        CheckpointError, match=f"is for {whose}.*, not for ACE-Step v1 or ACE-Step 1.5: its 1"
    ):
        read_lora(tmp_path / "x.safetensors")
    assert run("info", tmp_path / "x.safetensors") == 0
    assert "not for ACE-Step v1 or ACE-Step 1.5" in capsys.readouterr().out


@pytest.mark.parametrize(("more", "of"), [(OF_V15, "ACE-Step 1.5"), (OF_V1, "ACE-Step v1")])
def test_a_file_with_modules_of_both_is_of_neither(more: Any, of: str, tmp_path: Path) -> None:
    most = {}
    for i in (1, 2):
        most |= pair(
            f"transformer_blocks.{i}.attn.to_q" if more is OF_V15 else f"layers.{i}.self_attn.q_proj"
        )
    save_file(more | most, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match=f"is for {of}, not for .*: 1 of its 3 modules is not in"):
        read_lora(tmp_path / "x.safetensors")


@pytest.mark.parametrize("name", ["lycoris_proj_in_1", "base_model.model.proj_out.1"])
def test_an_adapter_on_a_convolution_is_called_one(name: str, tmp_path: Path) -> None:
    tensors = pair(name)
    key = f"{name}.lora_A.weight"
    save_file(tensors | {key: np.stack([tensors[key]] * 2, -1)}, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match="is no linear layer or 1×1 convolution"):
        read_lora(tmp_path / "x.safetensors")


# What it says ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spelling", ["original", "diffusers"])
def test_patterns_speak_of_the_names_in_the_file(spelling: str, tmp_path: Path) -> None:
    """peft's rank and alpha patterns, in the settings of a folder and in diffusers' metadata."""
    ours = ("layers.0.self_attn.q_proj", "layers.1.cross_attn.o_proj", "layers.1.mlp.up_proj")
    theirs = ours
    if spelling == "diffusers":
        theirs = ("layers.0.self_attn.to_q", "layers.1.cross_attn.to_out.0", "layers.1.mlp.up_proj")
    q, o, _ = (path.split(".", 2)[2] for path in theirs)
    settings = {
        "r": 2,
        "lora_alpha": 4,
        "rank_pattern": {q: 8},
        "alpha_pattern": {q: 4.0, f"^layers.1.{o}": 7},
    }
    prefix = "transformer." if spelling == "diffusers" else "base_model.model."
    tensors = {}
    for path, rank in zip(theirs, (8, 2, 2), strict=True):
        tensors |= pair(prefix + path, rank=rank)
    metadata = None
    if spelling == "diffusers":
        metadata = {"lora_adapter_metadata": json.dumps({f"transformer.{k}": v for k, v in settings.items()})}
    else:
        (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    save_file(tensors, tmp_path / "adapter_model.safetensors", metadata)
    modules = read_lora(tmp_path).modules
    assert [modules[path].scale for path in ours] == [0.5, 3.5, 2.0]


def test_the_output_of_another_trainer_is_no_lora_but_holds_some(tmp_path: Path) -> None:
    """Side-Step keeps the last one and those of epochs in folders."""
    for name in ("final", "checkpoints/epoch_10", "checkpoints/epoch_20"):
        (tmp_path / name).mkdir(parents=True)
        save_file(OF_V15, tmp_path / name / "adapter_model.safetensors")
    with pytest.raises(CheckpointError) as error:
        read_lora(tmp_path)
    assert str(error.value).endswith("a folder in it: checkpoints/epoch_10, checkpoints/epoch_20, final")
    assert set(read_lora(tmp_path / "final").modules) == {"layers.0.self_attn.q_proj"}


OUTSIDE = (
    "encoder.lyric_encoder.layers.0.self_attn.q_proj", "encoder.timbre_encoder.layers.3.self_attn.o_proj",
    "tokenizer.attention_pooler.layers.1.self_attn.v_proj", "detokenizer.layers.0.self_attn.k_proj",
)  # fmt: skip


def test_what_simpletuner_adds_outside_the_decoder_is_untrained(tmp_path: Path) -> None:
    """Its targets match layers of all networks, and it runs only the decoder with gradients."""
    tensors = pair("transformer.decoder.layers.0.self_attn.q_proj")
    for path in OUTSIDE:
        tensors |= pair(f"transformer.{path}", b=0.0)
    save_file(tensors, tmp_path / "x.safetensors")
    lora = read_lora(tmp_path / "x.safetensors")
    assert set(lora.modules) == {"layers.0.self_attn.q_proj"} and set(lora.skipped) == set(OUTSIDE)
    assert lora.left_out[0].startswith(
        "4 modules left out, because nothing outside the transformer is trained"
    )


@pytest.mark.parametrize("path", OUTSIDE)
def test_what_is_trained_outside_the_decoder_is_not_lost(path: str, tmp_path: Path) -> None:
    tensors = pair("transformer.decoder.layers.0.self_attn.q_proj") | pair(f"transformer.{path}")
    save_file(tensors, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match=f"trained modules outside the transformer.*'{path}'"):
        read_lora(tmp_path / "x.safetensors")
