"""One checkpoint on disk, read by the PyTorch classes and converted by us: the same numbers come out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from acestep_mlx.convert.converter import convert
from acestep_mlx.families.model_folder import ModelFolder
from acestep_mlx.families.v1.geometry import TINY
from acestep_mlx.families.v1.miniature import write_checkpoint

from ..later import Later
from . import reference

torch = Later("torch")
pytestmark = pytest.mark.parity


@pytest.fixture(scope="module", params=["new", "old"])
def pair(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, ModelFolder]:
    """A checkpoint (sharded, either weight-norm spelling) and its conversion in float32."""
    folder = tmp_path_factory.mktemp("pair")
    source = write_checkpoint(folder / "source", seed=5, shards=2, new_weight_norm=request.param == "new")
    convert(source, folder / "model")
    return source, ModelFolder.open(folder / "model")


def tensors(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return {k: v for path in sorted(folder.glob("*.safetensors")) for k, v in load_file(path).items()}


def config(folder: Path) -> dict[str, Any]:
    content = json.loads((folder / "config.json").read_text())
    return {key: value for key, value in content.items() if not key.startswith("_")}


def relative_error(ours: mx.array, theirs: Any) -> float:
    a, b = np.array(ours), theirs.detach().numpy()
    assert a.shape == b.shape
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def test_transformer(pair: tuple[Path, ModelFolder], monkeypatch: pytest.MonkeyPatch) -> None:
    source, folder = pair
    module = reference.load("transformer")
    build = module.LyricEncoder
    sizes = {
        "attention_heads": TINY.lyric_heads, "linear_units": TINY.lyric_ff, "num_blocks": TINY.lyric_layers,
    }  # fmt: skip
    monkeypatch.setattr(
        module,
        "LyricEncoder",
        lambda input_size, **options: build(input_size, output_size=input_size, **sizes, **options),
    )
    theirs = module.ACEStepTransformer2DModel(**config(source / "ace_step_transformer")).eval()
    theirs.load_state_dict(tensors(source / "ace_step_transformer"))
    rng = np.random.default_rng(0)
    inputs = {
        "hidden_states": rng.standard_normal((2, 8, 16, 21), np.float32),
        "attention_mask": np.ones((2, 21), np.float32),
        "encoder_text_hidden_states": rng.standard_normal((2, 6, 64), np.float32),
        "text_attention_mask": np.ones((2, 6), np.float32),
        "speaker_embeds": rng.standard_normal((2, 64), np.float32),
        "lyric_token_idx": rng.integers(0, 6693, (2, 9)),
        "lyric_mask": np.ones((2, 9), np.int64),
        "timestep": np.array([900.0, 20.0], np.float32),
    }
    with torch.no_grad():
        expected = theirs(**{k: torch.from_numpy(v) for k, v in inputs.items()}).sample
    ours = folder.load("transformer")(**{k: mx.array(v) for k, v in inputs.items()})
    assert relative_error(ours, expected) < 1e-4


def test_text_encoder(pair: tuple[Path, ModelFolder]) -> None:
    from transformers import UMT5EncoderModel

    source, folder = pair
    theirs = UMT5EncoderModel.from_pretrained(source / "umt5-base", dtype=torch.float32).eval()
    ids, mask = folder.prompt_tokenizer()(["slow jazz ballad", "techno"])
    with torch.no_grad():
        expected = theirs(
            input_ids=torch.from_numpy(np.array(ids)).long(), attention_mask=torch.from_numpy(np.array(mask))
        ).last_hidden_state
    ours = folder.load("text_encoder")(ids, mask)
    valid = np.array(mask)[..., None]
    assert relative_error(ours * mx.array(valid), expected * torch.from_numpy(valid)) < 1e-4


def test_dcae(pair: tuple[Path, ModelFolder]) -> None:
    from diffusers import AutoencoderDC

    source, folder = pair
    theirs = AutoencoderDC.from_pretrained(source / "music_dcae_f8c8").eval()
    ours = folder.load("dcae")
    mel = np.random.default_rng(0).standard_normal((1, 2, 128, 24)).astype(np.float32)
    with torch.no_grad():
        latents = theirs.encode(torch.from_numpy(mel)).latent
        expected = theirs.decode(latents).sample
    assert relative_error(ours.encode(mx.array(mel)), latents) < 1e-4
    assert relative_error(ours.decode(mx.array(latents.numpy())), expected) < 1e-4


def test_vocoder(pair: tuple[Path, ModelFolder], monkeypatch: pytest.MonkeyPatch) -> None:
    source, folder = pair
    module = reference.load("music_dcae.music_vocoder")
    state = tensors(source / "music_vocoder")
    if "head.conv_pre.parametrizations.weight.original0" in state:
        monkeypatch.setattr(module, "weight_norm", torch.nn.utils.parametrizations.weight_norm)
    theirs = module.ADaMoSHiFiGANV1(**config(source / "music_vocoder"))
    theirs.load_state_dict(state)
    mel = np.random.default_rng(0).standard_normal((2, 128, 12)).astype(np.float32) - 4
    expected = theirs.decode(torch.from_numpy(mel))
    assert relative_error(folder.load("vocoder")(mx.array(mel)), expected) < 1e-4
