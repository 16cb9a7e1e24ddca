"""Adapters of other kinds and LoRAs of other models are known by their keys and shapes, without a model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from acestep_mlx.cli import main
from acestep_mlx.errors import CheckpointError
from acestep_mlx.families.v1 import FAMILY as V1
from acestep_mlx.lora.formats.read import read_lora
from acestep_mlx.lora.formats.recognise import is_ours, recognise, released
from acestep_mlx.lora.formats.scales import PeftSettings

ENDINGS = {"peft": ("lora_A.weight", "lora_B.weight"), "kohya": ("lora_down.weight", "lora_up.weight")}


def lora(paths: list[str], out: int = 64, inputs: int = 64, ending: str = "peft") -> dict[str, np.ndarray]:
    a, b = ENDINGS[ending]
    made = {}
    for path in paths:
        made[f"{path}.{a}"] = np.ones((4, inputs), np.float32)
        made[f"{path}.{b}"] = np.ones((out, 4), np.float32)
    return made


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as caught:
        main([str(a) for a in arguments])
    return int(caught.value.code or 0)


# Modules as the LoRAs of other models spell them, and the word that must be said about them.
OTHERS = {
    "FLUX, kohya": (["lora_unet_double_blocks_0_img_attn_qkv", "lora_unet_single_blocks_3_linear1"], "FLUX"),
    "FLUX, diffusers": (
        [
            "transformer.transformer_blocks.0.attn.to_q",
            "transformer.transformer_blocks.0.attn.add_q_proj",
            "transformer.transformer_blocks.0.ff.net.0.proj",
            "transformer.single_transformer_blocks.0.attn.to_q",
        ],
        "FLUX",
    ),
    "FLUX, ComfyUI": (["diffusion_model.double_blocks.0.img_attn.qkv"], "FLUX"),
    "SD, kohya": (["lora_unet_down_blocks_0_attentions_0_proj_in"], "Stable Diffusion"),
    "SD, text encoder": (["lora_te_text_model_encoder_layers_0_self_attn_q_proj"], "text encoder"),
    "SDXL, diffusers": (["unet.up_blocks.0.attentions.0.proj_in"], "Stable Diffusion"),
    "SDXL, original": (["lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q"], "Stable Diffusion"),
    "SD3": (
        ["transformer.transformer_blocks.1.attn.to_q", "transformer.transformer_blocks.1.attn.add_k_proj"],
        "Stable Diffusion 3",
    ),
    "SD3, original": (["lora_unet_joint_blocks_0_x_block_attn_qkv"], "Stable Diffusion 3"),
    "Qwen-Image": (["transformer_blocks.3.attn.to_q", "transformer_blocks.3.img_mlp.net.2"], "Qwen-Image"),
    "LTX": (["transformer_blocks.3.attn1.to_q", "transformer_blocks.3.attn2.to_k"], "LTX"),
    "Wan": (["diffusion_model.blocks.0.self_attn.q", "diffusion_model.blocks.0.ffn.2"], "Wan"),
    "Stable Audio": (
        ["transformer.layers.0.cross_attn.to_q", "transformer.layers.0.self_attn.to_qkv"], "Stable Audio",
    ),
    "Llama": (["base_model.model.model.layers.0.self_attn.q_proj"], "language model"),
    "AuraFlow": (["joint_transformer_blocks.0.attn.to_q", "single_transformer_blocks.0.x"], "AuraFlow"),
    "T5": (["encoder.block.0.layer.0.SelfAttention.q"], "T5"),
    "nobody's": (["some.where.linear_9"], "another model"),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("ending", ENDINGS)
def test_loras_of_other_models(name, ending, tmp_path, capsys):
    paths, word = OTHERS[name]
    file = tmp_path / "x.safetensors"
    save_file(lora(paths, ending=ending), file)
    found = recognise(lora(paths, ending=ending))
    assert found is not None and not found.usable and found.kind == "LoRA"
    with pytest.raises(CheckpointError, match=f"is for .*{word}.*, not for ACE-Step"):
        read_lora(file)
    assert run("info", file) == 0
    out = capsys.readouterr().out
    assert word in out and "not for ACE-Step" in out and "strength" not in out
    assert run("export", file, "-o", tmp_path / "y.safetensors") == 1
    errors = capsys.readouterr().err
    assert word in errors and errors.count("\n") == 1
    assert [p.name for p in tmp_path.iterdir()] == ["x.safetensors"]


@pytest.mark.parametrize(
    ("width", "block", "word"),
    [
        (3072, 0, "FLUX"),
        (1536, 3, "Stable Diffusion 3"),
        (1280, 0, "1280×1280"),
        (2560, 30, "not in the model"),
    ],
)
def test_the_same_names_in_another_size(width, block, word, tmp_path, capsys):
    """FLUX and others call their attention layers as ours: the width tells them apart."""
    file = tmp_path / "x.safetensors"
    paths = [f"transformer_blocks.{block}.attn.to_{n}" for n in "qkv"]
    known = {f"{path}.alpha": np.array(4, np.float32) for path in paths}
    save_file(lora(paths, width, width) | known, file)
    assert run("info", file) == 0
    out = capsys.readouterr().out
    assert "not for ACE-Step v1" in out and word in out and "use at strength" not in out
    assert run("export", file, "-o", tmp_path / "y.safetensors") == 1
    assert word in capsys.readouterr().err
    assert not (tmp_path / "y.safetensors").exists()


def test_the_released_model_and_miniatures_pass(tmp_path, capsys):
    for name, width in (("true", 2560), ("tiny", 128)):
        file = tmp_path / f"{name}.safetensors"
        save_file(lora(["transformer_blocks.23.attn.to_q", "transformer_blocks.0.cross_attn.to_out.0"],
                       width, width), file)  # fmt: skip
        assert run("info", file) == 0
        out = capsys.readouterr().out
        assert "no alpha is stored" in out and "not for" not in out and "use at strength" not in out
        assert ("for a miniature model" in out) == (name == "tiny")
        assert run("export", file, "-o", tmp_path / name / "y.safetensors") == 0


def test_wide_layers_of_a_narrow_model_are_a_miniatures(tmp_path, capsys):
    """A model 256 wide has feed-forwards of 1280: what counts is how narrow a layer is."""
    file = tmp_path / "x.safetensors"
    save_file(lora(["transformer_blocks.0.ff.inverted_conv.conv"], 1280, 256), file)
    assert run("info", file) == 0
    assert "for a miniature model" in capsys.readouterr().out
    assert run("export", file, "-o", tmp_path / "y.safetensors") == 0


def test_every_module_of_the_model_is_known_in_every_spelling():
    others = ("transformer_blocks.0.ff.depth_conv.conv", "projectors.0.2", "proj_in.early_conv_layers.0")
    norms = ("lyric_encoder.encoders.3.norm_ff", "lyric_encoder.after_norm", "proj_in.early_conv_layers.1")
    for path in [*released(V1), *others, *norms, "lyric_encoder.embed.out.1", "lyric_embs"]:
        dotted = ("", "transformer.", "diffusion_model.", "base_model.model.")
        flat = ("lora_unet_", "lycoris_", "lora_transformer_")
        spellings = [prefix + path for prefix in dotted] + [f + path.replace(".", "_") for f in flat]
        assert [spelt for spelt in spellings if not is_ours(spelt, V1)] == []
    for path in (
        "transformer_blocks.0.attn.to_x",
        "to_q",
        "speaker_embedder.0",
        "encoders.0.self_attn.linear_q",
    ):
        assert not is_ours(path, V1), path


KINDS = {
    "LyCORIS LoKr of a convolution": ("lokr_w1", "lokr_w2_a", "lokr_w2_b", "lokr_t2", "alpha"),
    "LyCORIS LoHa": ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"),
    "OFT": ("oft_blocks", "alpha"),
    "GLoRA": ("a1.weight", "a2.weight", "b1.weight", "b2.weight"),
    "whole weights": ("diff",),
    "LoRA with norm layers": ("lora_down.weight", "lora_up.weight", "w_norm"),
    "LoRA with biases": ("lora_A.weight", "lora_B.weight", "lora_B.bias"),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "prefix", ["lycoris_transformer_blocks_0_attn_to_q", "transformer_blocks.0.attn.to_q"]
)
def test_other_kinds_are_called_by_their_name(kind, prefix, tmp_path, capsys):
    file = tmp_path / "x.safetensors"
    save_file({f"{prefix}.{end}": np.ones((4, 4), np.float32) for end in KINDS[kind]}, file)
    assert run("info", file) == 0
    out = capsys.readouterr().out
    assert f"{kind} for ACE-Step v1, 1 module" in out and "not supported" in out
    with pytest.raises(CheckpointError, match=rf"holds {kind} \(1 module\), which is not supported"):
        read_lora(file)


@pytest.mark.parametrize("ending", ["peft", "kohya"])
@pytest.mark.parametrize(
    "path",
    [
        "base_model.model.layers.0.self_attn.q_proj", "base_model.model.layers.23.cross_attn.v_proj",
        "diffusion_model.decoder.layers.0.self_attn.o_proj", "transformer.layers.0.cross_attn.to_q",
        "lycoris_layers_0_mlp_gate_proj",
    ],
)  # fmt: skip
def test_loras_of_1_5_are_its_own(path: str, ending: str) -> None:
    found = recognise(lora([path], ending=ending))
    assert found is not None and found.usable and found.family.name == "v15"


def test_a_lokr_of_another_model_is_both(tmp_path, capsys):
    file = tmp_path / "x.safetensors"
    save_file({"lycoris_blocks_0_cross_attn_k.lokr_w1": np.ones((4, 4), np.float32)}, file)
    assert run("info", file) == 0
    out = capsys.readouterr().out
    assert "LyCORIS LoKr for Wan" in out and "not for ACE-Step v1" in out


def test_modules_that_the_model_never_uses_are_left_out_and_named(tmp_path: Path, capsys):
    used, idle = "transformer_blocks.0.cross_attn.to_q", "transformer_blocks.0.cross_attn.add_q_proj"
    file = tmp_path / "x.safetensors"
    save_file(lora([used, idle, "projectors.1.0"]), file)
    weights = read_lora(file)
    assert list(weights.modules) == [used] and weights.skipped == ("projectors.1.0", idle)
    assert len(weights.left_out) == 2
    assert run("info", file) == 0
    assert f"1 module left out, because the model never uses them: '{idle}'" in capsys.readouterr().out
    assert run("export", file, "-o", tmp_path / "y.safetensors") == 0
    assert "note: 1 module left out" in capsys.readouterr().out
    assert list(read_lora(tmp_path / "y.safetensors").modules) == [used]
    save_file(lora([idle]), file)
    with pytest.raises(CheckpointError, match="only modules that change nothing"):
        read_lora(file)


@pytest.mark.parametrize("end", ["diff", "diff_b", "set_weight"])
def test_whole_weights_outside_the_lyrics_embedder_are_not_lost(end, tmp_path):
    file = tmp_path / "x.safetensors"
    path = "transformer_blocks.0.attn.to_q"
    save_file({**lora([path]), f"transformer_blocks.1.attn.to_q.{end}": np.ones((64, 64), np.float32)}, file)
    with pytest.raises(CheckpointError, match=r"whole weights of 1 parameter outside the lyrics embedder"):
        read_lora(file)


def test_files_that_are_no_adapters():
    assert recognise([]) is None
    assert recognise(["encoder.block.0.layer.0.SelfAttention.q.weight", "lyric_proj.bias"]) is None
    assert recognise(["transformer_blocks.0.attn.to_q.weight"]) is None


EMBEDDED = "lyric_encoder.encoders.0.self_attn.linear_q"


@pytest.mark.parametrize(
    "extra", ["scale", "default_lora_latent_mapping.weight", "lora_E", "lora_gate.weight", "weight_scale"]
)
def test_what_hangs_on_the_lyrics_embedder_without_being_of_it_is_unknown(
    extra: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Adapters of other kinds are not taken for a lyrics embedder that was trained, and left out."""
    file = tmp_path / "lora.safetensors"
    save_file(lora([EMBEDDED]) | {f"{EMBEDDED}.{extra}": np.ones((4, 4), np.float32)}, file)
    assert run("export", file, "-o", tmp_path / "out.safetensors") == 1
    said = capsys.readouterr().err
    assert extra in said and "no known LoRA format" in said
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize(
    "path",
    [
        "transformer_blocks.24.attn.to_q",
        "transformer_blocks.99.cross_attn.to_k",
        "transformer_blocks.00.attn.to_q",
        "lyric_encoder.encoders.6.self_attn.linear_q",
    ],
)
def test_layers_that_the_model_does_not_have(
    path: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "lora.safetensors"
    save_file(lora([path, "transformer_blocks.0.attn.to_q"]), file)
    assert run("export", file, "-o", tmp_path / "out.safetensors") == 1
    assert path in capsys.readouterr().err
    run("info", file)
    said = "".join(capsys.readouterr())
    assert path in said and "use at strength 1.0" not in said


@pytest.mark.parametrize("kind", ["LOHA", "lora", None, 3, ["LORA"]])
def test_another_adapters_settings_are_not_a_loras(kind: object) -> None:
    with pytest.raises(ValueError, match="peft_type must be LORA or LOKR"):
        PeftSettings.from_dict({"peft_type": kind, "r": 4, "lora_alpha": 4}, "x")
