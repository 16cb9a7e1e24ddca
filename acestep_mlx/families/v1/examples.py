"""v1's miniatures with known numbers: see `families.known`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import mlx.core as mx
import numpy as np

from ..known import Example, Examples, StepExample, integers, lengths, spread, uniform
from ..random_weights import Spec
from . import miniature_tensors
from .geometry import TINY
from .objective import STEPS, FlowMatching

FRAMES, TEXT, LYRICS = 23, 7, 11
CONDITIONS = (
    "encoder_text_hidden_states",
    "text_attention_mask",
    "speaker_embeds",
    "lyric_token_idx",
    "lyric_mask",
)


def examples() -> Examples:
    """Two songs, of which one is shorter, in everything that has a mask."""
    text = {"input_ids": integers("v1.ids", (2, 9), TINY.text_encoder["vocab_size"])}
    image, latents = spread("v1.image", (1, 2, 16, 24)), spread("v1.image latents", (1, 8, 4, 6))
    mels = {"mel": spread("v1.mel", (1, TINY.vocoder["input_channels"], 6))}
    return Examples(
        (
            Example("transformer", TINY.transformer, _transformer(), _song(), _velocity),
            Example(
                "text_encoder",
                TINY.text_encoder,
                tuple(miniature_tensors.text_encoder(TINY)),
                {**text, "attention_mask": lengths(9, 9, 4)},
                lambda model, given: {"states": model(**given)},
            ),
            Example(
                "dcae",
                TINY.dcae,
                tuple(miniature_tensors.dcae(TINY)),
                {"image": image, "latents": latents},
                lambda model, given: {
                    "latents": model.encode(given["image"]),
                    "image": model.decode(given["latents"]),
                },
            ),
            Example(
                "vocoder",
                TINY.vocoder,
                tuple(miniature_tensors.vocoder(TINY)),
                mels,
                lambda model, given: {"sound": model(given["mel"])},
                1e-3,
            ),
        ),
        _step(),
    )


def _transformer() -> tuple[Spec, ...]:
    """Without the projectors of the self-supervised losses, which are kept apart."""
    return tuple(
        spec for spec in miniature_tensors.transformer(TINY) if not spec.name.startswith("projectors")
    )


def _song() -> dict[str, np.ndarray]:
    sizes = TINY.transformer
    return {
        "hidden_states": spread("v1.hidden_states", (2, 8, 16, FRAMES)),
        "attention_mask": lengths(FRAMES, FRAMES, 16),
        "encoder_text_hidden_states": spread("v1.text", (2, TEXT, sizes["text_embedding_dim"])),
        "text_attention_mask": lengths(TEXT, TEXT, 4),
        "speaker_embeds": spread("v1.speaker", (2, sizes["speaker_embedding_dim"])),
        "lyric_token_idx": integers("v1.lyrics", (2, LYRICS), sizes["lyric_encoder_vocab_size"]),
        "lyric_mask": lengths(LYRICS, LYRICS, 6),
        "timestep": uniform("v1.timestep", (2,)) * np.float32(STEPS),
    }


def _velocity(model: Any, given: Mapping[str, mx.array]) -> dict[str, mx.array]:
    states, mask = model.encode(*(given[name] for name in CONDITIONS))
    return {"velocity": model(**given), "states": states * mask[..., None]}


def _step() -> StepExample:
    song = _song()
    batch = {
        "latents": song["hidden_states"],
        "latent_mask": song["attention_mask"],
        "text": song["encoder_text_hidden_states"],
        "text_mask": song["text_attention_mask"],
        "speaker": song["speaker_embeds"],
        "lyric_ids": song["lyric_token_idx"],
        "lyric_mask": song["lyric_mask"],
    }
    noise, sigma = spread("v1.noise", song["hidden_states"].shape), np.array([0.75, 0.3125], np.float32)
    return StepExample(FlowMatching(), batch, noise, sigma, {})
