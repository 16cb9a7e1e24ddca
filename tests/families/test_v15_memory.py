"""What a training step of ACE-Step 1.5 is thought to take, against what MLX counts, and which way it goes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from acestep_mlx import families
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


#: of a width of its own, so that the fit is not tested on what it was fitted to
SMALL = replace(
    BASE, num_hidden_layers=3, hidden_size=256, intermediate_size=768, num_attention_heads=4,
    num_key_value_heads=2, head_dim=64,
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("load", "checkpointed", "bits"),
    [
        (Load(500, 1, 256, 100), 3, None),
        (Load(500, 1, 256, 100), 0, 8),
        (Load(1500, 1, 256, 180), 3, 8),
        (Load(1500, 1, 256, 180), 1, 4),
        (Load(1500, 1, 256, 180), 0, None),
        (Load(1500, 2, 64, 64), 3, 4),
        (Load(1500, 1, 256, 1500), 3, 8),
        (Load(3000, 1, 256, 360), 2, None),
    ],
    ids=str,
)
def test_the_estimate_is_close_to_a_measured_peak(
    load: Load, checkpointed: int, bits: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(families.REGISTRY, "v15", "acestep_mlx.families.v15")
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[2] / "benchmarks"))
    import memory

    with memory.shapes_only():
        peak, _, _ = memory.measure(SMALL, load, bits=bits, dtype=mx.bfloat16, checkpointed=checkpointed)
    weights = memory.exact(SMALL, load, bits, mx.bfloat16, checkpointed)
    expected = weights + MEMORY.activations(SMALL, load, 2, checkpointed)
    assert 0.85 * peak < expected < 1.15 * peak, f"{expected / peak:.3f}"


def test_xl_takes_more_by_its_widths() -> None:
    xl = replace(BASE, hidden_size=2560, intermediate_size=9728, num_attention_heads=32, num_hidden_layers=32)
    base, large = (MEMORY.activations(one, MINUTE, 2, one.blocks) for one in (BASE, xl))
    assert 1.4 * base < large < 2.0 * base
