"""Conditions and semantic tokens of ACE-Step 1.5 against diffusers, random weights, float32."""

from __future__ import annotations

import dataclasses
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from acestep_mlx.families.v15.conditions import ConditionConfig, ConditionEncoder, pack
from acestep_mlx.families.v15.fsq import AudioDetokenizer, AudioTokenizer, DetokenizerConfig, TokenizerConfig

from ..families.tiny import tiny
from .v15 import as_mlx, as_torch, normal, randomise, relative_error, same_weights, torch

pytestmark = pytest.mark.parity
TINY = tiny(ConditionConfig)


def settings(config: Any, *, without: tuple[str, ...] = ()) -> dict[str, Any]:
    return {
        k: list(v) if isinstance(v, tuple) else v
        for k, v in dataclasses.asdict(config).items()
        if k not in without
    }


@pytest.fixture(scope="module")
def encoders() -> tuple[ConditionEncoder, torch.nn.Module]:
    from diffusers.pipelines.ace_step import AceStepConditionEncoder

    theirs = randomise(AceStepConditionEncoder(**settings(TINY, without=("timbre_fix_frame",))))
    theirs.silence_latent.normal_(generator=torch.Generator().manual_seed(9))
    return same_weights("condition_encoder", ConditionEncoder(TINY), theirs), theirs


def inputs(
    text: tuple[int, ...], lyrics: tuple[int, ...], owners: tuple[int, ...], frames: int = 21
) -> dict[str, np.ndarray]:
    def mask(lengths: tuple[int, ...]) -> np.ndarray:
        return np.arange(max(lengths))[None] < np.array(lengths)[:, None]

    B, E = len(text), TINY.text_hidden_dim
    return {
        "text_hidden_states": normal(B, max(text), E, seed=1),
        "text_attention_mask": mask(text),
        "lyric_hidden_states": normal(B, max(lyrics), E, seed=2),
        "lyric_attention_mask": mask(lyrics),
        "refer_audio_acoustic_hidden_states_packed": normal(
            len(owners), frames, TINY.timbre_hidden_dim, seed=3
        ),
        "refer_audio_order_mask": np.array(owners),
    }


@pytest.mark.parametrize(
    "case",
    [
        {"text": (6,), "lyrics": (9,), "owners": (0,)},
        {"text": (6, 2), "lyrics": (5, 13), "owners": (0, 1)},
        {"text": (3, 6, 1), "lyrics": (40, 1, 17), "owners": (0, 1, 2), "frames": 3},
        {"text": (6, 2), "lyrics": (5, 40), "owners": (1, 0, 1, 1)},
        {"text": (4, 4, 4), "lyrics": (7, 7, 7), "owners": (2, 0, 0, 1, 2, 0), "frames": 30},
    ],
    ids=["one song", "ragged", "long lyrics in blocks", "several references", "out of order"],
)
def test_states_and_mask(case: dict, encoders: tuple) -> None:
    ours, theirs = encoders
    given = inputs(**case)
    with torch.no_grad():
        expected, expected_mask = theirs(**as_torch(given))
    states, mask = ours(**as_mlx(given))
    valid = np.array(mask)
    assert (valid == expected_mask.numpy()).all()
    assert mx.isfinite(states).all()
    rows = mx.array(np.array(states)[valid])
    assert relative_error(rows, expected[expected_mask]) <= 1e-5


def test_a_batch_is_its_songs_alone(encoders: tuple) -> None:
    ours, _ = encoders
    text, lyrics, owners = (6, 2), (5, 40), (1, 0, 1)
    given = inputs(text, lyrics, owners)
    states, mask = ours(**as_mlx(given))
    for song in range(2):
        alone = {
            name: value[song : song + 1, : (text if name.startswith("text") else lyrics)[song]]
            for name, value in given.items()
            if not name.startswith("refer")
        }
        mine = [i for i, owner in enumerate(owners) if owner == song]
        references = given["refer_audio_acoustic_hidden_states_packed"][mine]
        expected, whole = ours(
            **as_mlx(alone),
            refer_audio_acoustic_hidden_states_packed=mx.array(references),
            refer_audio_order_mask=mx.zeros(len(mine), dtype=mx.int32),
        )
        assert whole.all()
        got = np.array(states)[song][np.array(mask)[song]][None]
        assert relative_error(mx.array(got), np.array(expected)) <= 2e-6


def test_a_song_without_lyrics_and_without_a_reference(encoders: tuple) -> None:
    """Only its text is left, and nothing becomes infinite."""
    ours, _ = encoders
    given = as_mlx(inputs((6, 3), (5, 8), (1,)))
    given["lyric_attention_mask"] = mx.array([[False] * 8, [True] * 8])
    states, mask = ours(**given)
    assert mx.isfinite(states).all()
    assert mask.sum(axis=1).tolist() == [6, 8 + 1 + 3]
    expected = ours.text_projector(given["text_hidden_states"][:1])
    assert relative_error(states[:1, :6], np.array(expected)) <= 1e-6


def test_a_reference_of_no_song_is_an_error(encoders: tuple) -> None:
    ours, _ = encoders
    with pytest.raises(ValueError, match=r"songs 0 to 1, got \[0, 2\]"):
        ours(**as_mlx(inputs((6, 2), (5, 13), (0, 2))))


def test_packing_keeps_the_order() -> None:
    states = mx.arange(10)[None, :, None]
    mask = mx.array([[1, 0, 1, 1, 0, 0, 1, 0, 1, 0]])
    packed, valid = pack((states[:, :4], mask[:, :4]), (states[:, 4:], mask[:, 4:]))
    assert packed[0, :, 0].tolist() == [0, 2, 3, 6, 8, 1, 4, 5, 7, 9]
    assert valid[0].tolist() == [True] * 5 + [False] * 5


def test_silence_and_null(encoders: tuple) -> None:
    ours, theirs = encoders
    whole = theirs.silence_latent.numpy()
    assert (np.array(ours.silence(70)) == whole[:, :70]).all()
    assert (np.array(ours.silence(15003))[:, 15000:] == whole[:, :3]).all()
    assert ours.silent_reference().shape == (1, 750, TINY.timbre_hidden_dim)
    null = ours.null(mx.zeros((2, 5, TINY.hidden_size)))
    expected = theirs.null_condition_emb.expand(2, 5, -1)
    assert (np.array(null) == expected.detach().numpy()).all()


@pytest.fixture(scope="module")
def tokenizers() -> tuple[AudioTokenizer, torch.nn.Module]:
    from diffusers.pipelines.ace_step import AceStepAudioTokenizer

    config = tiny(TokenizerConfig)
    theirs = randomise(AceStepAudioTokenizer(**settings(config)))
    with torch.no_grad():  # codes from all over their range
        theirs.quantizer.project_in.weight.mul_(4)
    return same_weights("audio_tokenizer", AudioTokenizer(config), theirs), theirs


@pytest.mark.parametrize("frames", [1, 5, 23, 250])
def test_tokens(frames: int, tokenizers: tuple) -> None:
    """Numbers equal, what they stand for too, the last token filled up from silence."""
    ours, theirs = tokenizers
    latents, silence = normal(2, frames, 8, seed=4), normal(1, 30, 8, seed=5)
    with torch.no_grad():
        expected, expected_ids = theirs.tokenize(torch.from_numpy(latents), torch.from_numpy(silence))
    quantized, ids = ours(mx.array(latents), mx.array(silence))
    assert ids.tolist() == expected_ids.tolist()
    assert relative_error(quantized, expected) <= 1e-5
    if frames == 250:
        assert len(np.unique(np.array(ids))) > 50


def test_codes_of_numbers(tokenizers: tuple) -> None:
    """Every code there is: its features, as the reference makes them, lead back to distinct levels."""
    ours, theirs = tokenizers
    ids = np.arange(0, 64000, 7)[None, :, None]
    with torch.no_grad():
        expected = theirs.quantizer.get_output_from_indices(torch.from_numpy(ids))
    assert relative_error(ours.quantizer.codes(mx.array(ids)), expected) <= 1e-5


def test_back_to_latents() -> None:
    from diffusers.pipelines.ace_step import AceStepAudioTokenDetokenizer

    config = tiny(DetokenizerConfig)
    theirs = randomise(AceStepAudioTokenDetokenizer(**settings(config)))
    ours = same_weights("audio_token_detokenizer", AudioDetokenizer(config), theirs)
    tokens = normal(2, 7, config.hidden_size)
    with torch.no_grad():
        expected = theirs(torch.from_numpy(tokens))
    assert expected.shape == (2, 35, 8)
    assert relative_error(ours(mx.array(tokens)), expected) <= 1e-5
