"""The miniature checkpoint: what it holds, and that its random weights behave."""

from __future__ import annotations

import filecmp
import json
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from acestep_mlx.families.model_folder import ModelFolder
from acestep_mlx.families.v1.codec import Codec
from acestep_mlx.families.v1.geometry import TRUE
from acestep_mlx.families.v1.lyrics.tokenizer import LyricTokenizer
from acestep_mlx.families.v1.miniature import write_checkpoint
from acestep_mlx.families.v1.miniature_text import miniature_vocabulary
from acestep_mlx.io.safetensors import read_header

WEIGHTS = ("ace_step_transformer", "music_dcae_f8c8", "music_vocoder")


def test_upstream_layout(tiny_checkpoint: Path) -> None:
    for name in WEIGHTS:
        assert (tiny_checkpoint / name / "config.json").is_file()
        assert (tiny_checkpoint / name / "diffusion_pytorch_model.safetensors").is_file()
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        assert (tiny_checkpoint / "umt5-base" / name).is_file()
    names = read_header(tiny_checkpoint / WEIGHTS[0] / "diffusion_pytorch_model.safetensors").tensors
    assert "transformer_blocks.0.cross_attn.add_q_proj.weight" in names and "projectors.1.4.bias" in names


def test_same_seed_same_bytes(tiny_checkpoint: Path, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "again", seed=0)
    write_checkpoint(tmp_path / "other", seed=1)
    for path in (p for p in tiny_checkpoint.rglob("*") if p.is_file()):
        name = path.relative_to(tiny_checkpoint)
        assert filecmp.cmp(path, tmp_path / "again" / name, shallow=False)
        if path.suffix == ".safetensors":
            assert not filecmp.cmp(path, tmp_path / "other" / name, shallow=False)


def test_the_true_geometry_is_the_released_one() -> None:
    from acestep_mlx.families.v1 import miniature_tensors as specs

    sizes = {
        "transformer": sum(int(np.prod(s.shape)) for s in specs.transformer(TRUE)),
        "unused": sum(
            int(np.prod(s.shape))
            for s in specs.transformer(TRUE)
            if "cross_attn" in s.name and ("add_" in s.name)
        ),
    }
    assert 3.2e9 < sizes["transformer"] < 3.5e9
    assert sizes["unused"] == 24 * 4 * (2560 * 2560 + 2560)


def test_lyric_vocabulary_has_the_ids_the_model_relies_on(tiny_model: Path) -> None:
    ids = miniature_vocabulary()["model"]["vocab"]
    assert [ids[token] for token in ("[STOP]", "[UNK]", "[SPACE]", "[en]", "[de]", "[START]")] == [
        0, 1, 2, 259, 260, 261,
    ]  # fmt: skip
    assert sorted(ids.values()) == list(range(len(ids)))
    folder = ModelFolder.open(tiny_model)
    tokenizer = LyricTokenizer(folder.lyric_vocab())
    tokens = tokenizer.tokenize("[verse]\nHarbour lights are turning low")
    assert tokens[0] == 261 and 1 not in tokens
    assert max(tokens) < folder.component_config("transformer").lyric_encoder_vocab_size


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_random_weights_make_sane_sound(seed: int, tmp_path: Path) -> None:
    """Latents near unit variance, a wav that is finite, audible and not clipped."""
    from acestep_mlx.convert.converter import convert

    write_checkpoint(tmp_path / "checkpoint", seed=seed)
    convert(tmp_path / "checkpoint", tmp_path / "model")
    folder = ModelFolder.open(tmp_path / "model")
    codec = Codec(folder.load("dcae"), folder.load("vocoder"))
    time = np.arange(44100) / 44100
    song = 0.3 * np.sin(2 * np.pi * 220 * time) * (1 + np.sin(2 * np.pi * 2 * time)) / 2
    latents = codec.encode(np.stack([song, song], axis=-1).astype(np.float32))
    assert latents.shape[:3] == (1, 8, 16)
    assert 0.3 < mx.std(latents).item() < 3 and abs(mx.mean(latents).item()) < 1
    for given in (latents, mx.random.normal(latents.shape, key=mx.random.key(0))):
        wav = np.array(codec.decode(given))
        assert np.isfinite(wav).all() and np.abs(wav).max() < 0.999
        assert wav.std() > 0.02


def test_sharded_half_precision_and_old_weight_norm(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, dtype="bfloat16", shards=3, new_weight_norm=False)
    folder = tmp_path / "ace_step_transformer"
    index = json.loads((folder / "diffusion_pytorch_model.safetensors.index.json").read_text())
    files = set(index["weight_map"].values())
    assert len(files) == 3
    headers = {name: read_header(folder / name).tensors for name in files}
    assert all(tensor in headers[name] for tensor, name in index["weight_map"].items())
    assert {info.dtype for header in headers.values() for info in header.values()} == {"BF16"}
    vocoder = read_header(tmp_path / "music_vocoder" / "diffusion_pytorch_model.safetensors").tensors
    assert "head.conv_pre.weight_g" in vocoder
