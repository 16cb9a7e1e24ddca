"""What a training step of ACE-Step 1.5 is thought to take, against what MLX counts, and which way it goes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from acestep_mlx import families
from acestep_mlx.config.read_run import load_config
from acestep_mlx.families.protocol import Load
from acestep_mlx.families.v15 import ACEStep15
from acestep_mlx.families.v15.dit import TransformerConfig
from acestep_mlx.families.v15.prompt import format_prompt
from acestep_mlx.training import memory as plan

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
        peak, _, _ = memory.measure(SMALL, load, bits=8, dtype=mx.bfloat16, checkpointed=checkpointed)
    weights = memory.exact(SMALL, load, bits, mx.bfloat16, checkpointed)
    expected = weights + MEMORY.activations(SMALL, load, 2, checkpointed)
    assert 0.85 * peak < expected < 1.15 * peak, f"{expected / peak:.3f}"


def test_xl_takes_more_by_its_widths() -> None:
    xl = replace(BASE, hidden_size=2560, intermediate_size=9728, num_attention_heads=32, num_hidden_layers=32)
    base, large = (MEMORY.activations(one, MINUTE, 2, one.blocks) for one in (BASE, xl))
    assert 1.4 * base < large < 2.0 * base


def config(**options: Any) -> Any:
    return load_config({"model_flavour": "v15-base", "mixed_precision": "bf16", **options})


def test_clips_through_another_model_are_in_the_estimate() -> None:
    """Its weights and what a guided clip takes, as far as they exceed the step, which is over then."""
    clip, run = MEMORY.load(30.0, 2), config()
    name, weights = "clips through validation_model", plan.weight_bytes(ACEStep15(), BASE, None, 64, 2)

    def parts(load: Load, bits: int | None = None, run: Any = run) -> dict[str, float]:
        return dict(plan.estimate(run, load, model=BASE, heard=plan.Heard(BASE, bits, clip)).parts)

    short = Load(100, 1, 16, 16)
    without = plan.estimate(run, short, model=BASE)
    assert name not in without.parts
    found = parts(short)
    assert {k: v for k, v in found.items() if k != name} == without.parts
    assert found["base weights"] + found[name] > 1.9 * weights
    eighth = parts(short, 8)[name]
    assert 0.4 * weights < found[name] - eighth < 0.5 * weights
    assert parts(short, run=config(base_model_precision="int8-quanto"))[name] == eighth
    long = parts(Load(6000, 8, 256, 2000), run=config(gradient_checkpointing=False))
    assert long[name] == 0.0, "the step's activations are more"
    shown = plan.verdict(run, BASE, [short], heard=plan.Heard(BASE, None, clip))
    assert any(line.startswith(f"  {name}: ") for line in shown)


@pytest.mark.slow
def test_clips_through_another_model_are_close_to_a_measured_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two layers of the true width that are trained, and as many that a guided clip is made through."""
    monkeypatch.setitem(families.REGISTRY, "v15", "acestep_mlx.families.v15")
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[2] / "benchmarks"))
    import generate
    import memory

    monkeypatch.setattr(memory, "our_step", generate.our_step_v15)
    sizes, clip = replace(BASE, num_hidden_layers=2), Load(750, 1, 256, 90)
    held: list[Any] = []
    build = memory.quantised_model
    monkeypatch.setattr(memory, "quantised_model", lambda *given: held.append(build(*given)) or held[-1])
    before = mx.get_active_memory()
    with memory.shapes_only():
        memory.measure(sizes, Load(50, 1, 16, 16), bits=8, dtype=mx.bfloat16, checkpointed=2)
    trained = mx.get_active_memory() - before  # its weights and LoRA
    with memory.shapes_only(gradient=False):
        peak = trained + memory.measure_generation(sizes, clip, bits=8, dtype=mx.bfloat16)[0]
    run = config(base_model_precision="int8-quanto", optimizer="sgd", lora_rank=16)
    heard = plan.Heard(sizes, None, replace(clip, batch=2))
    expected = plan.estimate(run, Load(50, 1, 16, 16), model=sizes, heard=heard).total - plan.FIXED
    print(f"expected {expected / GB:.3f} GB, measured {peak / GB:.3f} GB")
    assert peak < expected < 1.35 * peak, f"{expected / peak:.3f}"
