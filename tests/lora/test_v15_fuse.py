"""`fuse`, `info` and `load_lora` on folders of ACE-Step 1.5, dense and quantised, with every kind of LoRA."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten
from safetensors.numpy import save_file

from acestep_mlx.cli import main
from acestep_mlx.convert.converter import convert
from acestep_mlx.convert.fused import fuse
from acestep_mlx.errors import CheckpointError
from acestep_mlx.families.model_folder import ModelFolder
from acestep_mlx.families.v15.lora import ATTENTION, MLP
from acestep_mlx.families.v15.miniature import write_checkpoint
from acestep_mlx.lora.apply import apply_loras
from acestep_mlx.lora.formats.read import read_lora
from acestep_mlx.lora.formats.write import write_lora, write_peft_folder
from acestep_mlx.lora.surgery import LoRASpec, from_model, inject
from acestep_mlx.pipeline import ACEStepPipeline

from .standin import disturb

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """MLX folders of the miniature, in float32 and in 4 bits."""
    root = tmp_path_factory.mktemp("v15")
    checkpoint = write_checkpoint(root / "checkpoint")
    convert(checkpoint, root / "float32", dtype="float32")
    convert(checkpoint, root / "q4", quantize=True, q_bits=4, q_group_size=32)
    return {name: root / name for name in ("float32", "q4")}


@pytest.fixture(scope="module")
def loras(models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A LoRA in peft's folder, a DoRA of the MLPs as diffusers has it, and a LoKr."""
    root = tmp_path_factory.mktemp("loras")
    for name, targets, dora in (("lora", ATTENTION, False), ("dora", MLP, True)):
        model = ModelFolder.open(models["float32"]).load("transformer")
        spec = LoRASpec(rank=3, alpha=7, use_dora=dora, targets=targets)
        inject(model, spec)
        disturb(model, len(name))
        if dora:
            write_lora(root / name / "pytorch_lora_weights.safetensors", from_model(model, spec), "diffusers")
        else:
            write_peft_folder(root / name, from_model(model, spec))
    width, out = model.config.hidden_size, model.config.num_attention_heads * model.config.head_dim
    rng = np.random.default_rng(0)
    key = "lycoris_layers_1_self_attn_q_proj"
    lokr = {"lokr_w1": (4, 4), "lokr_w2_a": (out // 4, 2), "lokr_w2_b": (2, width // 4)}
    tensors = {f"{key}.{n}": 0.3 * rng.standard_normal(shape, np.float32) for n, shape in lokr.items()}
    (root / "lokr").mkdir()
    save_file(tensors | {f"{key}.alpha": np.array(3, np.float32)}, root / "lokr" / "lokr_weights.safetensors")
    return {path.name: path for path in root.iterdir()}


def velocity(folder: Path, *used: tuple[Path, float]) -> mx.array:
    transformer = ModelFolder.open(folder).load("transformer")
    apply_loras(transformer, [(read_lora(path), strength) for path, strength in used])
    config, key = transformer.config, mx.random.key(0)
    C, E = config.audio_acoustic_hidden_dim, config.encoder_hidden_size or config.hidden_size
    return transformer(
        hidden_states=mx.random.normal((1, 11, C), key=key),
        timestep=mx.array([0.6]),
        timestep_r=mx.array([0.6]),
        encoder_hidden_states=mx.random.normal((1, 5, E), key=key),
        context_latents=mx.random.normal((1, 11, 2 * C), key=key),
    ).astype(mx.float32)


def distance(a: mx.array, b: mx.array) -> float:
    return float(mx.linalg.norm(a - b) / mx.linalg.norm(b))


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as caught:
        main([str(a) for a in arguments])
    return int(caught.value.code or 0)


def test_a_fused_folder_is_the_model_with_its_loras(
    models: dict[str, Path], loras: dict[str, Path], tmp_path: Path
) -> None:
    used = [(loras["lora"], 1.0), (loras["dora"], 0.5), (loras["lokr"], 0.8)]
    report = fuse(models["float32"], used, tmp_path / "new")
    model = ModelFolder.open(models["float32"]).skeleton("transformer")
    assert report.layers == len(model.layers) * (len(ATTENTION) * 2 + len(MLP))
    assert distance(velocity(tmp_path / "new"), velocity(models["float32"], *used)) < 1e-5
    for one in used:
        others = [other for other in used if other is not one]
        assert distance(velocity(tmp_path / "new"), velocity(models["float32"], *others)) > 1e-3, one
    new = ModelFolder.open(tmp_path / "new")
    new.check_contents()
    assert new.family.name == "v15" and [e["lora"] for e in new.config["fused"]] == ["lora", "dora", "lokr"]


def test_a_quantised_folder_stays_quantised(
    models: dict[str, Path], loras: dict[str, Path], tmp_path: Path
) -> None:
    report = fuse(models["q4"], [(loras["lora"], 1.0), (loras["lokr"], 1.0)], tmp_path / "new")
    new = ModelFolder.open(tmp_path / "new")
    assert new.quantization == ModelFolder.open(models["q4"]).quantization and report.quantized
    wanted = velocity(models["q4"], (loras["lora"], 1.0), (loras["lokr"], 1.0))
    assert distance(velocity(tmp_path / "new"), wanted) < distance(velocity(models["q4"]), wanted)
    assert 0 < report.whole.weight < 0.2


def test_the_commands(
    models: dict[str, Path], loras: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    new = tmp_path / "new"
    assert run("fuse", "--model", models["float32"], "--lora", loras["lokr"], "-o", new) == 0
    assert "1 LoRA in 1 layer" in capsys.readouterr().out
    assert run("info", new) == 0
    assert "at 1, SHA-256" in capsys.readouterr().out
    assert run("info", loras["lora"], "--model", models["float32"]) == 0
    assert f"fits {models['float32']}" in capsys.readouterr().out
    file = tmp_path / "x.safetensors"
    assert run("export", loras["dora"], "--format", "comfyui", "--model", models["float32"], "-o", file) == 0
    exported, own = (velocity(models["float32"], (path, 1.0)) for path in (file, loras["dora"]))
    assert distance(exported, own) < 1e-5


def test_a_lora_of_v1_is_named_by_every_command(
    models: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = np.ones((2, 64), np.float32), np.ones((64, 2), np.float32)
    path = "transformer_blocks.0.attn.to_q"
    file = tmp_path / "x.safetensors"
    save_file({f"{path}.lora_A.weight": a, f"{path}.lora_B.weight": b}, file)
    says = f"{file} is for ACE-Step v1, and this model is ACE-Step 1.5"
    model = models["float32"]
    for arguments in (
        ("fuse", "--model", model, "--lora", file, "-o", tmp_path / "new"),
        ("export", file, "--model", model, "-o", tmp_path / "y.safetensors"),
        ("generate", "--model", model, "--prompt", "x", "--lora", file, "-o", tmp_path / "x.wav"),
    ):
        assert run(*arguments) == 1
        errors = capsys.readouterr().err
        assert says in errors and errors.count("\n") == 1, arguments
    assert run("info", file, "--model", model) == 0
    assert says in capsys.readouterr().out
    assert [p.name for p in tmp_path.iterdir()] == ["x.safetensors"]


def test_loras_of_the_pipeline_come_and_go(models: dict[str, Path], loras: dict[str, Path]) -> None:
    pipe = ACEStepPipeline.from_pretrained(models["q4"])
    before = dict(tree_flatten(pipe.transformer.parameters()))
    for name in loras:
        pipe.load_lora(loras[name], scale=0.5)
    layer = pipe.transformer.layers[1].self_attn.q_proj
    assert {"lora_a", "lokrs"} <= set(layer) and [lora.scale for lora in pipe.loras] == [0.5] * 3
    pipe.unload_loras()
    after = dict(tree_flatten(pipe.transformer.parameters()))
    assert before.keys() == after.keys() and all(after[path] is before[path] for path in before)
    with pytest.raises(CheckpointError, match="no such LoRA"):
        pipe.load_lora("nowhere")
