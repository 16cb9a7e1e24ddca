"""The transformer of ACE-Step 1.5 against diffusers, random weights, float32."""

from __future__ import annotations

import dataclasses

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from acestep_mlx.families.v15 import layers
from acestep_mlx.families.v15.config import FULL, SLIDING
from acestep_mlx.families.v15.dit import ACEStep15Transformer, TransformerConfig
from acestep_mlx.families.v15.layers import sight

from ..families.tiny import tiny
from .v15 import as_mlx, as_torch, normal, randomise, relative_error, same_weights, torch

pytestmark = pytest.mark.parity
TINY = tiny(TransformerConfig)
OURS_ONLY = ("timestep_mu", "timestep_sigma")


def pair(config: TransformerConfig = TINY) -> tuple[ACEStep15Transformer, torch.nn.Module]:
    from diffusers import AceStepTransformer1DModel

    settings = {k: v for k, v in dataclasses.asdict(config).items() if k not in OURS_ONLY}
    theirs = randomise(AceStepTransformer1DModel(**settings))
    return same_weights("transformer", ACEStep15Transformer(config), theirs), theirs


def inputs(
    frames: int, rows: int = 7, batch: int = 1, config: TransformerConfig = TINY, r_equal_t: bool = True
) -> dict[str, np.ndarray]:
    C, rng = config.audio_acoustic_hidden_dim, np.random.default_rng(2)
    t = rng.uniform(0, 1, batch).astype(np.float32)
    return {
        "hidden_states": normal(batch, frames, C, seed=3),
        "timestep": t,
        "timestep_r": t if r_equal_t else (t * rng.uniform(0, 1, batch)).astype(np.float32),
        "encoder_hidden_states": normal(batch, rows, config.encoder_hidden_size, seed=4),
        "context_latents": normal(batch, frames, 2 * C, seed=5),
    }


@pytest.fixture(scope="module")
def models() -> tuple[ACEStep15Transformer, torch.nn.Module]:
    return pair()


@pytest.mark.parametrize("frames", [1, 2, 9, 10, 24, 25, 33, 67])
def test_velocity_at_every_kind_of_length(frames: int, models: tuple) -> None:
    """Odd lengths, songs shorter than the window of 4 tokens, and long enough for blocks (above 12)."""
    ours, theirs = models
    given = inputs(frames, batch=2)
    with torch.no_grad():
        expected = theirs(**as_torch(given)).sample
    assert relative_error(ours(**as_mlx(given)), expected) <= 1e-5


@pytest.mark.parametrize("r_equal_t", [True, False])
def test_both_times_count(r_equal_t: bool, models: tuple) -> None:
    ours, theirs = models
    given = inputs(17, batch=3, r_equal_t=r_equal_t)
    with torch.no_grad():
        expected = theirs(**as_torch(given)).sample
    velocity = ours(**as_mlx(given))
    assert relative_error(velocity, expected) <= 1e-5
    other = ours(**{**as_mlx(given), "timestep_r": mx.zeros(3)})
    assert relative_error(other, expected) > 1e-3


@pytest.mark.parametrize(
    "change",
    [
        {"sliding_window": 1},
        {"sliding_window": 1000},
        {"layer_types": (FULL, FULL, SLIDING, SLIDING)},
        {"num_key_value_heads": 4},
        {"num_key_value_heads": 1},
        {"attention_bias": True},
        {"rope_theta": 100.0, "rms_norm_eps": 1e-2},
        {"encoder_hidden_size": None},
        {"patch_size": 3},
    ],
    ids=str,
)
def test_every_setting_of_the_config(change: dict) -> None:
    config = dataclasses.replace(TINY, **change)
    if config.encoder_hidden_size is None:
        given = inputs(29, config=dataclasses.replace(config, encoder_hidden_size=config.hidden_size))
    else:
        given = inputs(29, config=config)
    ours, theirs = pair(config)
    with torch.no_grad():
        expected = theirs(**as_torch(given)).sample
    assert relative_error(ours(**as_mlx(given)), expected) <= 1e-5


def test_keys_and_values_of_the_conditions_may_be_kept(models: tuple) -> None:
    ours, _ = models
    given = as_mlx(inputs(11))
    kept = ours.cross_kv(given["encoder_hidden_states"])
    again = ours(**{**given, "encoder_hidden_states": None}, cross_kv=kept)
    assert relative_error(again, np.array(ours(**given))) <= 1e-6


@pytest.mark.parametrize("longest", [9, 41])
def test_a_batch_is_its_songs_alone(longest: int, models: tuple) -> None:
    """Songs of odd and of even lengths, with masks, next to garbage in the padding."""
    ours, _ = models
    frames, rows = (longest, longest - 4, longest // 2, 1), (7, 3, 6, 1)
    batch = as_mlx(inputs(longest, rows=7, batch=4))
    masked = ours(
        **batch,
        attention_mask=mx.array(np.arange(longest)[None] < np.array(frames)[:, None]),
        encoder_attention_mask=mx.array(np.arange(7)[None] < np.array(rows)[:, None]).astype(mx.int32),
    )
    assert mx.isfinite(masked).all()
    for i, (T, S) in enumerate(zip(frames, rows, strict=True)):
        alone = ours(
            batch["hidden_states"][i : i + 1, :T],
            batch["timestep"][i : i + 1],
            batch["timestep_r"][i : i + 1],
            batch["encoder_hidden_states"][i : i + 1, :S],
            batch["context_latents"][i : i + 1, :T],
        )
        assert relative_error(masked[i : i + 1, :T], np.array(alone)) <= 2e-6
    assert relative_error(ours(**batch), np.array(masked)) > 1e-2  # padding is seen without masks


def test_masks_that_keep_everything_change_nothing(models: tuple) -> None:
    ours, _ = models
    given = as_mlx(inputs(41, batch=2))
    masked = ours(**given, attention_mask=mx.ones((2, 41)), encoder_attention_mask=mx.ones((2, 7)))
    assert relative_error(masked, np.array(ours(**given))) <= 2e-6


@pytest.mark.parametrize(("checkpoint_blocks", "scores_at_once"), [(0, 1 << 24), (0, 0), (3, 0)])
def test_gradients_of_the_attentions(
    checkpoint_blocks: int, scores_at_once: int, models: tuple, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of q, k, v, o of both attentions and of the MLP, with t ≠ r, through blocks and full layers.

    All heads at once, and group by group.
    """
    ours, theirs = models
    monkeypatch.setattr(layers, "SCORES_AT_ONCE", scores_at_once)
    ours.checkpoint_blocks = checkpoint_blocks
    given, weight = (
        inputs(33, batch=2, r_equal_t=False),
        normal(2, 33, TINY.audio_acoustic_hidden_dim, seed=6),
    )
    theirs.zero_grad()
    (theirs(**as_torch(given)).sample * torch.from_numpy(weight)).sum().backward()
    arrays = as_mlx(given)

    def loss(parameters: dict) -> mx.array:
        ours.update(parameters)
        return mx.sum(ours(**arrays) * mx.array(weight))

    parameters = ours.trainable_parameters()
    gradients = dict(tree_flatten(mx.grad(loss)(parameters)))
    ours.update(parameters)  # the module is shared
    ours.checkpoint_blocks = 0
    names = {"q_proj": "to_q", "k_proj": "to_k", "v_proj": "to_v", "o_proj": "to_out.0"}
    expected = {name: p.grad for name, p in theirs.named_parameters()}
    checked = 0
    for name, gradient in gradients.items():
        leaf = name.rpartition(".")[0].rpartition(".")[2]
        if name.startswith("layers.") and leaf.endswith("_proj"):
            theirs_name = name.replace(leaf, names.get(leaf, leaf))
            assert relative_error(gradient, expected[theirs_name]) <= 1e-4, name
            checked += 1
    assert checked == 4 * (4 + 4 + 3)


def test_sliding_layers_grow_with_the_length_alone() -> None:
    """Scores of a sliding layer: three windows a position, however long the song is."""
    sizes = [sight(length, 128, None, mx.float32).sliding.size for length in (1280, 2560, 5120)]
    assert sizes == [1280 * 384, 2560 * 384, 5120 * 384]
    assert sight(5120, 128, None, mx.float32).full is None


def test_scores_of_all_heads_are_never_alive_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory of the backward pass of a full layer of 8 groups; the values are the same to rounding."""
    q, cotangent = (mx.array(normal(1, 16, 512, 16, seed=i)) for i in (1, 2))
    k, v = (mx.array(normal(1, 8, 512, 16, seed=i)) for i in (3, 4))

    def measure(scores_at_once: int) -> tuple[int, list[mx.array]]:
        monkeypatch.setattr(layers, "SCORES_AT_ONCE", scores_at_once)
        mx.eval(q, k, v, cotangent)
        mx.reset_peak_memory()
        before = mx.get_active_memory()
        outputs, gradients = mx.vjp(lambda *x: [layers.attend(*x, None)], [q, k, v], [cotangent])
        mx.eval(outputs, gradients)
        return mx.get_peak_memory() - before, [*outputs, *gradients]

    (whole, expected), (grouped, got) = measure(1 << 40), measure(0)
    assert grouped < whole / 2
    for a, b in zip(got, expected, strict=True):
        assert relative_error(a, np.array(b)) <= 2e-6


@pytest.mark.slow
def test_one_layer_at_the_true_width() -> None:
    """The XL models' sizes, where queries (4096) are wider than the model (2560)."""
    config = TransformerConfig(
        hidden_size=2560, intermediate_size=9728, num_attention_heads=32, num_hidden_layers=1,
        encoder_hidden_size=2048, sliding_window=8,
    )  # fmt: skip
    ours, theirs = pair(config)
    given = inputs(65, rows=9, config=config)  # 33 tokens in blocks of 8
    with torch.no_grad():
        expected = theirs(**as_torch(given)).sample
    assert relative_error(ours(**as_mlx(given)), expected) <= 1e-5
