"""The self-supervised loss against the reference's `proj_losses`: its value, and the gradients of a LoRA."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from acestep_mlx.families.v1.ssl.alignment import Alignment
from acestep_mlx.families.v1.ssl.encoders import length_of
from acestep_mlx.families.v1.ssl.projectors import NAME, Projectors, Tap

from ..later import Later
from . import test_training_parity as training
from .test_transformer_parity import make_inputs, make_ours, make_reference, relative_error

torch = Later("torch")
pytestmark = pytest.mark.parity

DEPTH = 1  # of three blocks: a LoRA in the last learns nothing from it
CONFIG = replace(training.CONFIG, num_layers=3)
TAPS = (("mert", DEPTH, 12), ("m-hubert", DEPTH, 8))
LENGTHS = {"mert": (61, 37), "m-hubert": (40, 9)}  # more and fewer than there are frames
SIZES = ((23, 16), (7, 4), (11, 6))


def projectors_of(theirs: Any) -> Projectors:
    state = {k: mx.array(v.numpy()) for k, v in theirs.state_dict().items() if k.startswith(f"{NAME}.")}
    return Projectors([Tap(*tap) for tap in TAPS], state)


def heard(seed: int) -> dict[str, list[np.ndarray]]:
    rng = np.random.default_rng(seed)
    return {
        name: [rng.standard_normal((L, width)).astype(np.float32) for L in LENGTHS[name]]
        for name, _, width in TAPS
    }


def expected(
    theirs: Any, values: dict[str, Any], features: dict[str, list[np.ndarray]], b: int, padded: bool = False
) -> Any:
    """Encoder → the reference's P of song b alone. padded: the transformer is given its padding, of which the
    last frames hear by the convolutions; what is compared is without it.
    """
    T, L, M = (lengths[b] for lengths in SIZES)
    lengths = {
        "hidden_states": T, "attention_mask": T, "encoder_text_hidden_states": L, "text_attention_mask": L,
        "lyric_token_idx": M, "lyric_mask": M,
    }  # fmt: skip
    alone = {}
    for name, value in values.items():
        own = np.asarray(value)[b : b + 1]
        if name in lengths and not padded:
            own = own[..., : lengths[name]] if name == "hidden_states" else own[:, : lengths[name]]
        alone[name] = torch.from_numpy(np.ascontiguousarray(own))
    given = [torch.from_numpy(songs[b])[None] for songs in features.values()]
    hooks = [one.register_forward_pre_hook(lambda _, args: (args[0][:, :T],)) for one in theirs.projectors]
    found = dict(theirs(**alone, ssl_hidden_states=given).proj_losses)
    for hook in hooks:
        hook.remove()
    return found


def test_losses_of_a_batch_are_those_of_each_song_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = make_reference(CONFIG, monkeypatch, taps=TAPS)
    ours = make_ours(CONFIG, theirs)
    ours._projectors = projectors_of(theirs)
    values, features = make_inputs(CONFIG, lengths=SIZES, seed=3), heard(3)
    call: Any = {k: mx.array(v) for k, v in values.items()}
    found = ours.ssl_losses(**call, ssl_hidden_states=features)
    for b in (0, 1):
        with torch.no_grad():
            wanted = expected(theirs, values, features, b)
        for name in features:
            assert abs(found[name][b].item() - wanted[name].item()) <= 1e-5, (name, b)
    one = ours.ssl_losses(**call, ssl_hidden_states={"mert": features["mert"]})
    assert list(one) == ["mert"] and mx.array_equal(one["mert"], found["mert"])


@pytest.mark.slow_cases("0-8 8-0")
@pytest.mark.parametrize(("recomputed", "bits"), [(0, None), (2, None), (0, 8)])
def test_gradients_of_a_lora(recomputed: int, bits: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of this loss alone, through whole steps of training with it and without it."""
    ours, theirs, paths, layers = training.adapted_pair(monkeypatch, quantize=bits, config=CONFIG, taps=TAPS)
    ours.checkpoint_blocks = recomputed
    batch, draw, values, features = micro_batch(seed=5)
    total = 0.0
    for b in (0, 1):
        found = expected(theirs, values, features, b, padded=True)
        total = total + sum(found.values()) / len(found) / 2
    total.backward()  # type: ignore[attr-defined]
    steps = []
    for auxiliary in (Alignment(projectors_of(theirs), 0.7, tuple(features)), None):
        step = training.train_step(ours, [draw], accumulate=2, auxiliary=auxiliary)
        result = step(batch, update=False)
        steps.append((result, {k: g / step.carry["weight"] for k, g in step.gradient().items()}))
    (result, with_it), (plain, without) = steps
    assert abs(result.loss.item() - plain.loss.item() - 0.7 * total.item()) <= 1e-4  # type: ignore[attr-defined]
    learning = set()
    for path in paths:
        for mine, his in (("lora_a", layers[path].lora_A), ("lora_b", layers[path].lora_B)):
            gradient = (with_it[f"{path}.{mine}"] - without[f"{path}.{mine}"]) / 0.7
            wanted = his["x"].weight.grad
            if wanted is None or not wanted.any():
                assert mx.abs(gradient).max().item() <= 1e-6, path
            else:
                learning.add(path)
                assert relative_error(gradient.T, wanted) <= 1e-3, path
    blocks = {path.split(".")[1] for path in learning if path.startswith("transformer_blocks")}
    assert blocks == {"0", "1"} and any(path.startswith("lyric_encoder") for path in learning)


def micro_batch(seed: int) -> tuple[dict[str, mx.array], Any, dict[str, Any], dict[str, list[np.ndarray]]]:
    """Two songs of other lengths with their features, and the same as the reference is called."""
    batch, draw, values, noise, sigma, _ = training.example(seed, lengths=SIZES)
    features = heard(seed)
    for name, songs in features.items():
        L = max(LENGTHS[name]) + 3  # of the bucket
        batch[name] = mx.stack([mx.pad(mx.array(one), [(0, L - len(one)), (0, 0)]) for one in songs])
        batch[length_of(name)] = mx.array(LENGTHS[name])
    names = {
        "text": "encoder_text_hidden_states", "speaker": "speaker_embeds", "lyric_ids": "lyric_token_idx",
        "lyric_mask": "lyric_mask",
    }  # fmt: skip
    given = {theirs: np.array(batch[ours]) for ours, theirs in names.items()}
    s = sigma[:, None, None, None]
    noisy = (s * noise + (1 - s) * values["hidden_states"]).astype(np.float32)
    given |= {"hidden_states": noisy, "timestep": (sigma * 1000).astype(np.float32)}
    return batch, draw, {**values, **given}, features
