"""The prompt encoder against transformers' UMT5, random weights, float32."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from acestep_mlx.convert.plan import translate
from acestep_mlx.families.v1.keymap import KEYMAPS
from acestep_mlx.families.v1.umt5 import UMT5Config, UMT5Encoder, distance_buckets

from ..families.tiny import tiny
from ..later import Later

torch = Later("torch")
pytestmark = pytest.mark.parity


@pytest.fixture(scope="module")
def theirs() -> torch.nn.Module:
    from transformers import UMT5Config as TheirConfig
    from transformers import UMT5EncoderModel

    config = tiny(UMT5Config)
    model = UMT5EncoderModel(
        TheirConfig(
            vocab_size=config.vocab_size,
            d_model=config.d_model,
            d_kv=config.d_kv,
            d_ff=config.d_ff,
            num_layers=config.num_layers,
            num_heads=config.num_heads,
        )
    ).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            size = parameter.shape[-1] ** -0.5 if parameter.ndim == 2 and parameter.shape[1] > 4 else 0.5
            parameter.copy_(size * torch.randn(parameter.shape, generator=generator))
    return model


@pytest.fixture(scope="module")
def ours(theirs: torch.nn.Module) -> UMT5Encoder:
    model = UMT5Encoder(UMT5Config.from_dict(theirs.config.to_dict()))
    tensors = translate(
        "text_encoder",
        KEYMAPS["text_encoder"],
        model,
        {k: mx.array(v.numpy()) for k, v in theirs.state_dict().items()},
    )
    model.load_weights(list(tensors.items()), strict=True)
    return model


def inputs(length: int, valid: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    ids = np.random.default_rng(length).integers(0, 384, (len(valid), length))
    return ids, (np.arange(length)[None] < np.array(valid)[:, None]).astype(np.int64)


def error(got: mx.array, expected: torch.Tensor) -> float:
    b = expected.numpy()
    return float(np.linalg.norm(np.array(got) - b) / np.linalg.norm(b))


@pytest.mark.parametrize(("length", "valid"), [(9, (9, 4)), (1, (1,)), (256, (256, 200))])
def test_hidden_states(
    ours: UMT5Encoder, theirs: torch.nn.Module, length: int, valid: tuple[int, ...]
) -> None:
    ids, mask = inputs(length, valid)
    with torch.no_grad():
        expected = theirs(torch.from_numpy(ids), torch.from_numpy(mask)).last_hidden_state
    assert error(ours(mx.array(ids), mx.array(mask)), expected) <= 1e-4


def test_scaled_queries(ours: UMT5Encoder, theirs: torch.nn.Module) -> None:
    """ERG: `query_scale` against the forward hook that upstream registers."""
    ids, mask = inputs(9, (9, 4))
    handle = (
        theirs.encoder.block[1].layer[0].SelfAttention.q.register_forward_hook(lambda m, i, out: out * 0.01)
    )
    try:
        with torch.no_grad():
            expected = theirs(torch.from_numpy(ids), torch.from_numpy(mask)).last_hidden_state
    finally:
        handle.remove()
    got = ours(mx.array(ids), mx.array(mask), query_scale=(0.01, 1, 2))
    assert error(got, expected) <= 1e-4
    assert error(ours(mx.array(ids), mx.array(mask)), expected) > 1e-3


def test_buckets_of_every_distance(theirs: torch.nn.Module) -> None:
    attention = theirs.encoder.block[0].layer[0].SelfAttention
    expected = attention._relative_position_bucket(-torch.arange(200))
    table = distance_buckets(32, 128)
    assert [table[min(d, 128)] for d in range(200)] == expected.tolist()
