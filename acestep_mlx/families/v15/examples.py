"""1.5's miniatures with known numbers: see `families.known`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import mlx.core as mx
import numpy as np

from ..known import Example, Examples, StepExample, integers, lengths, spread, uniform
from .miniature import CHANNELS, TINY, parts
from .objective import FlowMatching

FRAMES, ROWS, HOP = 33, 7, 1920
WIDTH = TINY.model["hidden_size"]


def examples() -> Examples:
    """Two songs, of which one is shorter, where there are masks."""
    questions = _questions()
    found = [
        Example(component, config, specs, *questions[component]) for component, config, specs in parts("base")
    ]
    return Examples(found, _step())


def _questions() -> dict[str, tuple[dict[str, np.ndarray], Any, float]]:
    """Component → inputs, what is asked, and the limit."""
    return {
        "transformer": (_song(), lambda model, given: {"velocity": model(**given)}, 1e-4),
        "condition_encoder": (_texts(), _states, 1e-4),
        "audio_tokenizer": (
            {
                "latents": spread("v15.latents", (1, 8, CHANNELS)),
                "silence": spread("v15.silence", (1, 30, CHANNELS)),
            },
            lambda model, given: {"quantised": model(given["latents"], given["silence"])[0]},
            1e-4,
        ),
        "audio_token_detokenizer": (
            {"tokens": spread("v15.tokens", (1, 3, WIDTH))},
            lambda model, given: {"latents": model(given["tokens"])},
            1e-4,
        ),
        "vae": (
            {
                "sound": spread("v15.sound", (1, 2 * HOP + 7, 2), 0.3),
                "latents": spread("v15.vae", (1, 2, CHANNELS)),
            },
            _sound,
            1e-3,
        ),
        "text_encoder": (
            {
                "input_ids": integers("v15.ids", (2, 9), int(TINY.text_encoder["vocab_size"])),
                "attention_mask": lengths(9, 9, 4),
            },
            lambda model, given: {"states": model(**given) * given["attention_mask"][..., None]},
            1e-4,
        ),
    }


def _song() -> dict[str, np.ndarray]:
    time = uniform("v15.time", (2,))
    return {
        "hidden_states": spread("v15.hidden_states", (2, FRAMES, CHANNELS)),
        "timestep": time,
        "timestep_r": time * np.float32(0.5),
        "encoder_hidden_states": spread("v15.states", (2, ROWS, WIDTH)),
        "context_latents": spread("v15.context", (2, FRAMES, 2 * CHANNELS)),
    }


def _texts() -> dict[str, np.ndarray]:
    width = TINY.model["text_hidden_dim"]
    return {
        "text_hidden_states": spread("v15.text", (2, 6, width)),
        "text_attention_mask": lengths(6, 6, 2) > 0,
        "lyric_hidden_states": spread("v15.lyrics", (2, 13, width)),
        "lyric_attention_mask": lengths(13, 5, 13) > 0,
        "refer_audio_acoustic_hidden_states_packed": spread("v15.reference", (2, 21, CHANNELS)),
        "refer_audio_order_mask": np.array([0, 1], np.int32),
    }


def _states(model: Any, given: Mapping[str, mx.array]) -> dict[str, mx.array]:
    states, mask = model(**given)
    return {"states": states * mask[..., None]}


def _sound(model: Any, given: Mapping[str, mx.array]) -> dict[str, mx.array]:
    mean, std = model.encode(given["sound"])
    return {"mean": mean, "std": std, "sound": model.decode(given["latents"])}


def _step() -> StepExample:
    shape = (2, FRAMES, CHANNELS)
    batch = {
        "mean": spread("v15.mean", shape),
        "std": uniform("v15.std", shape),
        "source": spread("v15.source", shape),
        "latent_mask": lengths(FRAMES, FRAMES, 20),
        "states": spread("v15.states", (2, ROWS, WIDTH)),
        "states_mask": lengths(ROWS, ROWS, 3),
    }
    sigma = np.array([0.75, 0.3125], np.float32)
    more = {"latents": spread("v15.near", shape)}
    return StepExample(FlowMatching(), batch, spread("v15.noise", shape), sigma, more)
