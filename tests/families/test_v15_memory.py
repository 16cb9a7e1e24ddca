"""What a training step of ACE-Step 1.5 is thought to take: an order of magnitude, and which way it goes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from acestep_mlx.families.protocol import Load
from acestep_mlx.families.v15 import ACEStep15
from acestep_mlx.families.v15.dit import TransformerConfig
from acestep_mlx.families.v15.prompt import format_prompt

from .v15 import Letters

MEMORY = ACEStep15().memory
BASE = TransformerConfig()
MINUTE = MEMORY.load(60.0)
GB = 1e9


def test_a_song() -> None:
    assert Load(1500, 1, 256, 180) == MINUTE
    assert MEMORY.load(240.0, 2, lyrics=7) == Load(6000, 2, 256, 7)
    assert MEMORY.load(10_000.0).lyrics == 2048, "longer lyrics are cut"
    assert MEMORY.kept(MINUTE, ["layers.0.self_attn.q_proj"]) == {}


@pytest.mark.parametrize(
    "more",
    [
        {"load": replace(MINUTE, frames=3000)},
        {"load": replace(MINUTE, batch=2)},
        {"load": replace(MINUTE, text=512)},
        {"load": replace(MINUTE, lyrics=2000)},
        {"size": 4},
        {"checkpointed": 23},
        {"config": replace(BASE, num_hidden_layers=32), "checkpointed": 24},
        {"config": replace(BASE, intermediate_size=9728)},
        {"config": replace(BASE, hidden_size=2560, num_attention_heads=32)},
    ],
    ids=str,
)
def test_more_of_anything_takes_more(more: dict[str, Any]) -> None:
    given = {"config": BASE, "load": MINUTE, "size": 2, "checkpointed": 24}
    assert MEMORY.activations(**{**given, **more}) > 1.01 * MEMORY.activations(**given)


def test_a_long_song_takes_time_more_and_not_its_square() -> None:
    """The scores of all heads are never alive at once."""
    short, long = (MEMORY.activations(BASE, MEMORY.load(s, lyrics=100), 2, 24) for s in (120.0, 480.0))
    assert 3 * short < long < 8 * short


def test_checkpointing_leaves_a_fraction() -> None:
    every, none = (MEMORY.activations(BASE, MINUTE, 2, n) for n in (24, 0))
    assert 0.1 * GB < every < 1 * GB and 4 * every < none


def test_lyrics_are_counted_with_the_models_tokenizer_or_guessed() -> None:
    class Folder:
        def prompt_tokenizer(self) -> Letters:
            return Letters()

    lyrics = "[verse]\n" + "la la la\n" * 10
    counted: Any = MEMORY.lyric_counter(Folder())  # type: ignore[arg-type]
    assert counted(lyrics) == len(format_prompt("", lyrics)[1]) + 1
    guess = MEMORY.lyric_counter(None)
    assert 10 < guess(lyrics) < counted(lyrics) and guess("歌" * 40) > guess("l" * 40) + 20
    assert guess("la " * 9999) == counted("la " * 9999) == 2048
