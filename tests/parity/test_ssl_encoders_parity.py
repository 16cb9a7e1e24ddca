"""HuBERT in both of its forms, and what is done to a song before and behind it, against PyTorch."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from acestep_mlx.families.v1.ssl.encoders import ENCODERS, MERT, MHUBERT, Encoder
from acestep_mlx.families.v1.ssl.features import features, resampled
from acestep_mlx.families.v1.ssl.hubert import Hubert, frames, open_hubert

from ..later import Later

torch = Later("torch")
pytestmark = pytest.mark.parity

ODD = (1, 119_999, 120_000, 120_001)


def reference(encoder: Encoder) -> Any:
    """transformers' network in the encoder's form, small and with random weights."""
    from transformers import HubertConfig, HubertModel

    torch.manual_seed(0)
    config = HubertConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, conv_dim=[16] * 7,
        num_conv_pos_embeddings=128, num_conv_pos_embedding_groups=16,
        conv_bias=False, feat_extract_norm="group", feat_proj_layer_norm=True, apply_spec_augment=False,
        do_stable_layer_norm=encoder.pre_norm, attn_implementation="eager",
    )  # fmt: skip
    model = HubertModel(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:  # norms and biases that are told apart
                parameter.add_(0.1 * torch.randn_like(parameter))
            elif "conv_layers" in name:
                parameter.mul_(1.5)
    return model


def ours(theirs: Any, encoder: Encoder, folder: Path) -> Hubert:
    """The same, through the files that transformers writes."""
    theirs.save_pretrained(folder)
    return open_hubert(folder / "model.safetensors", encoder.pre_norm).load()


@pytest.fixture(scope="module", params=list(ENCODERS))
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    encoder = ENCODERS[request.param]
    theirs = reference(encoder)
    return encoder, theirs, ours(theirs, encoder, tmp_path_factory.mktemp(encoder.name))


def difference(a: Any, b: Any) -> float:
    return float(np.abs(np.asarray(a) - np.asarray(b)).max() / max(1.0, np.abs(np.asarray(b)).max()))


@pytest.mark.parametrize("samples", [400, 719, 720, 4321])
def test_network(pair: Any, samples: int) -> None:
    _, theirs, network = pair
    sound = np.random.default_rng(samples).standard_normal((2, samples)).astype(np.float32)
    with torch.no_grad():
        expected = theirs(torch.from_numpy(sound)).last_hidden_state.numpy()
    found = network(mx.array(sound))
    assert found.shape == expected.shape and expected.shape[1] == frames(samples)
    assert difference(found, expected) <= 1e-4


def of_upstream(network: Any, sound: np.ndarray, encoder: Encoder) -> np.ndarray:
    """Resampling, normalisation, chunks and frames in PyTorch, in float64 up to the network."""
    mono = torch.from_numpy(sound.mean(axis=1)).double()
    r, f = encoder.down, 0.99
    W = math.ceil(6 * r / f)
    tau = torch.clip(torch.arange(-W, W + r).double() * f / r, -6, 6)
    taps = torch.sinc(tau) * torch.cos(torch.pi * tau / 12) ** 2 * f / r
    padded = torch.nn.functional.pad(mono[None, None], (W, W + r))
    heard = torch.nn.functional.conv1d(padded, taps[None, None], stride=r)[0, 0, : math.ceil(len(mono) / r)]
    n = len(mono) // r
    heard = heard[:n]
    heard = (heard - heard.mean()) / torch.sqrt(heard.var() + 1e-7) if n > 1 else heard * 0
    rows = []
    for at in range(0, n, encoder.chunk_samples):
        own = heard[at : at + encoder.chunk_samples]
        whole = torch.nn.functional.pad(own, (0, encoder.chunk_samples - len(own))).float()
        with torch.no_grad():
            states = network(whole[None]).last_hidden_state[0]
        rows.append(states[: math.ceil(len(own) / 320)])
    found = torch.cat(rows)
    return (found / found.norm(dim=1, keepdim=True).clamp_min(1e-12)).numpy()


@pytest.mark.slow
@pytest.mark.slow_cases(
    "119999-m-hubert 120000-m-hubert 120001-m-hubert 119999-mert 480001-mert 480001-m-hubert "
    "m-hubert-119999 m-hubert-120000 m-hubert-120001 mert-119999 mert-480001 m-hubert-480001"
)
@pytest.mark.parametrize("samples", [*ODD, 480_001])
def test_songs_of_odd_lengths(pair: Any, samples: int) -> None:
    """`samples` of the encoder's rate, at the boundaries of its chunks; the song has an odd number."""
    encoder, theirs, network = pair
    sound = np.random.default_rng(samples).standard_normal((samples * encoder.down + 1, 2)).astype(np.float32)
    found = features(network, sound, encoder)
    assert len(found) == encoder.length(len(sound))
    assert difference(found, of_upstream(theirs, sound, encoder)) <= 1e-4


@pytest.mark.parametrize("down", [2, 3])
def test_resampling_keeps_what_the_new_rate_can_hold(down: int) -> None:
    time = np.arange(4801) / 48_000
    low, high = np.sin(2 * np.pi * 440 * time), np.sin(2 * np.pi * (48_000 / down * 0.75) * time)
    found = resampled((low + high).astype(np.float32), down)
    assert len(found) == -(-4801 // down)
    inner = slice(40, -40)
    assert np.abs(found - low[::down])[inner].max() <= 2e-2


def test_resampling_is_that_of_torchaudio() -> None:
    """Its own numbers where it is installed; else what its formula gives in float64, tap by tap."""
    sound = np.random.default_rng(0).standard_normal(1001).astype(np.float32)
    for down in (2, 3):
        expected = [
            sum(
                float(sound[at]) * _tap(at - down * i, down)
                for at in range(max(0, down * i - 40), min(1001, down * i + 40))
            )
            for i in range(-(-1001 // down))
        ]
        assert difference(resampled(sound, down), expected) <= 1e-5


def _tap(k: int, r: int) -> float:
    tau = 0.99 * k / r
    if abs(tau) >= 6:
        return 0.0
    window = math.cos(math.pi * tau / 12) ** 2
    return (math.sin(math.pi * tau) / (math.pi * tau) if tau else 1.0) * window * 0.99 / r


def test_frames_of_a_minute() -> None:
    assert (MERT.length(60 * 48_000), MHUBERT.length(60 * 48_000)) == (4488, 2998)
    assert frames(MERT.chunk_samples) == 374 and frames(MHUBERT.chunk_samples) == 1499
