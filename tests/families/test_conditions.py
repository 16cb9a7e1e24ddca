"""What stands for "no text", by what a request says: nothing, a negative prompt, or the prompt weakened."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import pytest

from acestep_mlx.config.request import Request
from acestep_mlx.families.v1.conditions import read

PLAIN, WEAKENED = 1.0, 2.0


def tokenizer(text: str) -> tuple[mx.array, mx.array]:
    return mx.array([[ord(letter) for letter in text]]), mx.ones((1, len(text)))


def encoder(ids: mx.array, mask: mx.array, query_scale: Any = None) -> mx.array:
    kind = PLAIN if query_scale is None else WEAKENED
    return mx.stack([ids.astype(mx.float32), mx.full(ids.shape, kind)], axis=-1)


MODELS: Any = SimpleNamespace(prompt_tokenizer=tokenizer, text_encoder=encoder)
EDIT = {"task": "edit", "source": "a.wav", "edit_prompt": "ab"}


@pytest.mark.parametrize(
    ("given", "null"),
    [
        ({}, ("jazz", WEAKENED)),
        ({"erg_tag": False}, None),
        ({"negative_prompt": "noise"}, ("noise", PLAIN)),
        ({"negative_prompt": "noise", "erg_tag": False}, ("noise", PLAIN)),
        (EDIT, None),  # an edit has a loop of its own, without ERG
        ({**EDIT, "erg_tag": False}, None),
        ({"task": "retake"}, ("jazz", WEAKENED)),
    ],
    ids=str,
)
def test_what_stands_for_no_text(given: dict[str, Any], null: tuple[str, float] | None) -> None:
    found = read(Request(prompt="jazz", **given), MODELS)
    for prompt in filter(None, (found.prompt, found.target)):
        if null is None:
            assert prompt.null_text is None and prompt.null_mask is None
            continue
        text, kind = null
        assert prompt.null_text is not None and prompt.null_mask is not None
        assert prompt.null_text[0, :, 0].tolist() == [float(ord(letter)) for letter in text]
        assert prompt.null_text[0, 0, 1].item() == kind and prompt.null_mask.shape == (1, len(text))
    assert found.prompt.text[0, 0, 1].item() == PLAIN
    assert (found.target is None) == (given.get("task") != "edit")
