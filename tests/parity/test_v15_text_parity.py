"""The text encoder of ACE-Step 1.5 against transformers' Qwen3, random weights, float32."""

from __future__ import annotations

import dataclasses
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from acestep_mlx.convert.plan import plan
from acestep_mlx.errors import CheckpointError
from acestep_mlx.families.v15.keymap import KEYMAPS
from acestep_mlx.families.v15.qwen3 import Qwen3Config, Qwen3Encoder
from acestep_mlx.nn.foreign_config import UnknownKeys

from ..families.tiny import tiny
from .v15 import randomise, relative_error, same_weights, torch

pytestmark = pytest.mark.parity

TRUE_LAYER = Qwen3Config(num_hidden_layers=1, vocab_size=64)
#: Qwen3-Embedding-0.6B's file
RELEASED: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
    "bos_token_id": 151643, "eos_token_id": 151643, "head_dim": 128, "hidden_act": "silu",
    "hidden_size": 1024, "initializer_range": 0.02, "intermediate_size": 3072,
    "max_position_embeddings": 32768, "max_window_layers": 28, "model_type": "qwen3",
    "num_attention_heads": 16, "num_hidden_layers": 28, "num_key_value_heads": 8, "rms_norm_eps": 1e-06,
    "rope_scaling": None, "rope_theta": 1000000, "sliding_window": None, "tie_word_embeddings": True,
    "torch_dtype": "bfloat16", "transformers_version": "4.51.3", "use_cache": True,
    "use_sliding_window": False, "vocab_size": 151669,
}  # fmt: skip


def reference(config: Qwen3Config) -> Any:
    from transformers import Qwen3Config as TheirConfig
    from transformers import Qwen3Model

    values = dataclasses.asdict(config)
    rope = {"rope_type": "default", "rope_theta": values.pop("rope_theta")}
    return randomise(Qwen3Model(TheirConfig(**values, rope_parameters=rope)))


@pytest.fixture(scope="module")
def pair() -> tuple[Qwen3Encoder, Any]:
    theirs = reference(tiny(Qwen3Config))
    ours = Qwen3Encoder(Qwen3Config.from_dict(theirs.config.to_dict()))
    assert ours.config == tiny(Qwen3Config)
    return same_weights("text_encoder", ours, theirs), theirs


def batch(config: Qwen3Config, *lengths: int) -> tuple[np.ndarray, np.ndarray]:
    """Ids and mask, padded to the right."""
    rng, longest = np.random.default_rng(0), max(lengths)
    mask = np.arange(longest) < np.array(lengths)[:, None]
    return rng.integers(0, config.vocab_size, mask.shape), mask.astype(np.int32)


def errors(ours: Qwen3Encoder, theirs: Any, ids: np.ndarray, mask: np.ndarray) -> list[float]:
    """Of each text's own tokens; the reference is given no mask, as in the pipeline."""
    with torch.no_grad():
        expected = theirs(input_ids=torch.from_numpy(ids)).last_hidden_state
    got = ours(input_ids=mx.array(ids), attention_mask=mx.array(mask))
    assert mx.isfinite(got).all().item()
    return [relative_error(got[i, :n], expected[i, :n]) for i, n in enumerate(mask.sum(axis=1).tolist())]


@pytest.mark.parametrize("lengths", [(9, 4), (1,), (256, 200, 1)], ids=str)
def test_states(pair: tuple[Qwen3Encoder, Any], lengths: tuple[int, ...]) -> None:
    assert max(errors(*pair, *batch(pair[0].config, *lengths))) <= 1e-4


@pytest.mark.slow
def test_states_at_the_true_width() -> None:
    theirs = reference(TRUE_LAYER)
    ours = same_weights("text_encoder", Qwen3Encoder(TRUE_LAYER), theirs)
    assert max(errors(ours, theirs, *batch(TRUE_LAYER, 40, 17))) <= 1e-4


def test_embedded_lyrics(pair: tuple[Qwen3Encoder, Any]) -> None:
    ours, theirs = pair
    ids, _ = batch(ours.config, 30, 12)
    with torch.no_grad():
        expected = theirs.get_input_embeddings()(torch.from_numpy(ids))
    assert relative_error(ours.embed_tokens(mx.array(ids)), expected) == 0


def test_padding_and_neighbours_change_nothing(pair: tuple[Qwen3Encoder, Any]) -> None:
    """On the left too, but for the positions: there the mask has something to do."""
    ours, _ = pair
    ids, _ = batch(ours.config, 6)
    alone = ours(mx.array(ids))
    wide = mx.array(np.pad(ids, ((0, 1), (0, 5)), constant_values=7))
    together = ours(wide, mx.array([[1] * 6 + [0] * 5, [0] * 11]))
    assert mx.isfinite(together).all().item() and mx.allclose(together[:1, :6], alone, atol=1e-5)
    hidden = ours(wide[:1], mx.array([[0] * 2 + [1] * 9]))
    wide[:1, :2] = 9
    assert mx.allclose(ours(wide[:1], mx.array([[0] * 2 + [1] * 9]))[:, 2:], hidden[:, 2:], atol=1e-5)


def test_names_with_and_without_the_prefix_of_a_language_model(pair: tuple[Qwen3Encoder, Any]) -> None:
    ours, theirs = pair
    shapes = {name: tuple(value.shape) for name, value in theirs.state_dict().items()}
    bare = plan("text_encoder", KEYMAPS["text_encoder"], ours, shapes)
    prefixed = {f"model.{name}": shape for name, shape in shapes.items()} | {"lm_head.weight": (512, 32)}
    model = plan("text_encoder", KEYMAPS["text_encoder"], ours, prefixed)
    assert [e.target for e in model.entries] == [e.target for e in bare.entries]
    assert not bare.dropped and model.dropped == {
        "lm_head.weight": "hidden states are used, and no next token"
    }


def test_every_tensor_of_the_true_sizes_has_its_place() -> None:
    from transformers import AutoConfig, Qwen3Model

    config = Qwen3Config.from_dict(RELEASED)
    with torch.device("meta"):
        theirs = Qwen3Model(AutoConfig.for_model(**RELEASED))
    shapes = {name: tuple(value.shape) for name, value in theirs.state_dict().items()}
    assert not plan("text_encoder", KEYMAPS["text_encoder"], Qwen3Encoder(config), shapes).dropped


def test_configs() -> None:
    assert Qwen3Config.from_dict(RELEASED) == Qwen3Config()
    assert Qwen3Config.from_dict(dataclasses.asdict(tiny(Qwen3Config))) == tiny(Qwen3Config)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "llama"}, "model_type is 'llama', only 'qwen3' is supported"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu', only 'silu' is supported"),
        ({"use_sliding_window": True}, "use_sliding_window is true, only false is supported"),
        ({"rope_scaling": {"rope_type": "yarn"}}, "rope_scaling is .*, only null is supported"),
        ({"layer_types": ["full_attention"] * 27 + ["sliding_attention"]}, "layer_types is "),
        ({"layer_types": 28}, "layer_types is 28, only"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e6}}, "rope_parameters .* not supported"),
        ({"num_key_value_heads": 5}, "16 is not a multiple of num_key_value_heads 5"),
        ({"vocab_size": 0}, "vocab_size must be between"),
        ({"is_encoder_decoder": True}, "is_encoder_decoder is True, only False is supported"),
    ],
    ids=str,
)  # fmt: skip
def test_refused_configs(change: dict, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        Qwen3Config.from_dict({**RELEASED, **change})


def test_an_unknown_and_a_missing_key() -> None:
    with pytest.raises(UnknownKeys, match="'qk_scale' may change the computation"):
        Qwen3Config.from_dict({**RELEASED, "qk_scale": 2})
    for key in Qwen3Config.REQUIRED:
        with pytest.raises(CheckpointError, match=f"'{key}' is missing"):
            Qwen3Config.from_dict({k: v for k, v in RELEASED.items() if k != key})


@pytest.mark.parametrize(("bits", "limit"), [(8, 0.03), (4, 0.4)])
def test_quantised(bits: int, limit: float) -> None:
    """Linear layers only; nearer to full precision with more bits."""
    config = dataclasses.replace(tiny(Qwen3Config), hidden_size=64)
    theirs = reference(config)
    ours = same_weights("text_encoder", Qwen3Encoder(config), theirs)
    nn.quantize(ours, 64, bits, class_predicate=lambda _, m: isinstance(m, nn.Linear))
    assert isinstance(ours.layers[0].self_attn.q_proj, nn.QuantizedLinear)
    found = errors(ours, theirs, *batch(config, 9, 4))
    assert 1e-4 < max(found) <= limit
