"""The written checkpoints have exactly the tensors that the PyTorch classes save."""

from __future__ import annotations

import warnings
from typing import Any

import pytest

from acestep_mlx.families.v1 import miniature_tensors as written
from acestep_mlx.families.v1.geometry import SIZES

from . import reference

pytestmark = pytest.mark.parity


def shapes(specs: Any) -> dict[str, tuple[int, ...]]:
    return {spec.name: spec.shape for spec in specs}


def public(config: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if not key.startswith("_")}


@pytest.fixture(scope="module")
def torch() -> Any:
    return pytest.importorskip("torch")


@pytest.mark.parametrize("size", SIZES)
def test_transformer(size: str, torch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    module, wanted = reference.load("transformer"), SIZES[size]
    build = module.LyricEncoder

    def lyric_encoder(input_size: int, static_chunk_size: int) -> Any:
        return build(
            input_size,
            output_size=input_size,
            attention_heads=wanted.lyric_heads,
            linear_units=wanted.lyric_ff,
            num_blocks=wanted.lyric_layers,
            static_chunk_size=static_chunk_size,
        )

    monkeypatch.setattr(module, "LyricEncoder", lyric_encoder)
    with torch.device("meta"):
        model = module.ACEStepTransformer2DModel(**public(wanted.transformer))
    assert shapes(written.transformer(wanted)) == {k: tuple(v.shape) for k, v in model.state_dict().items()}


@pytest.mark.parametrize("size", SIZES)
def test_text_encoder(size: str, torch: Any) -> None:
    from transformers import UMT5Config, UMT5EncoderModel

    with torch.device("meta"):
        model = UMT5EncoderModel(UMT5Config(**SIZES[size].text_encoder))
    saved = {k: tuple(v.shape) for k, v in model.state_dict().items() if k != "encoder.embed_tokens.weight"}
    assert shapes(written.text_encoder(SIZES[size])) == saved


@pytest.mark.parametrize("size", SIZES)
def test_dcae(size: str, torch: Any) -> None:
    from diffusers import AutoencoderDC

    with torch.device("meta"):
        model = AutoencoderDC(**public(SIZES[size].dcae))
    assert shapes(written.dcae(SIZES[size])) == {k: tuple(v.shape) for k, v in model.state_dict().items()}


@pytest.mark.slow_after(1)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("new", [False, True])
def test_vocoder(size: str, new: bool, torch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    module = reference.load("music_dcae.music_vocoder")
    if new:
        monkeypatch.setattr(module, "weight_norm", torch.nn.utils.parametrizations.weight_norm)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        model = module.ADaMoSHiFiGANV1(**public(SIZES[size].vocoder))
    saved = {k: tuple(v.shape) for k, v in model.state_dict().items()}
    assert shapes(written.vocoder(SIZES[size], new_weight_norm=new)) == saved
