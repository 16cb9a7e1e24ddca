"""The memory estimate against what MLX counts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten

from acestep_mlx.config.optimizers import OPTIMIZERS
from acestep_mlx.config.read_run import load_config
from acestep_mlx.families import of_flavour
from acestep_mlx.families.songs import Shape
from acestep_mlx.families.v1 import FAMILY as V1
from acestep_mlx.families.v1 import memory as v1_memory
from acestep_mlx.families.v1.dit import ACEStepTransformer, TransformerConfig
from acestep_mlx.families.v1.objective import FlowMatching
from acestep_mlx.formatting import size
from acestep_mlx.lora.full_modules import train_full
from acestep_mlx.lora.surgery import inject, lokr_plans
from acestep_mlx.training import build, settings
from acestep_mlx.training import memory as plan
from acestep_mlx.training.distributed import World
from acestep_mlx.training.step import TrainStep

from .random_model import quantised_model

WIDE = TransformerConfig(
    num_layers=3,
    num_attention_heads=2,
    lyric_hidden_size=128,
    lyric_encoder_layers=2,
    lyric_encoder_heads=4,
    lyric_encoder_ff=256,
)


@pytest.mark.slow_after(2)
@pytest.mark.parametrize("bits", [None, 8, 4])
@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
def test_weights_are_counted_exactly(bits, dtype):
    model = quantised_model(V1, WIDE, bits, dtype)
    actual = sum(v.nbytes for _, v in tree_flatten(model.parameters()))
    assert plan.weight_bytes(V1, WIDE, bits, 64, dtype.size) == actual


LOKR = {"algo": "lokr", "linear_dim": 2, "use_scalar": True, "apply_preset": {"target_module": ["Attention"]}}
LYCORIS = {"lora_type": "lycoris", "lycoris_config": LOKR}


@pytest.mark.parametrize("options", [{"lora_rank": 5}, {"lora_rank": 5, "use_dora": True}, LYCORIS], ids=str)
def test_adapters_are_counted_exactly(options):
    model = quantised_model(V1, WIDE, None, mx.float32)
    spec = plan.lora_spec(load_config(options))
    paths = inject(model, spec)
    actual = sum(v.size for _, v in tree_flatten(model.trainable_parameters()))
    counted, _, shapes = plan.adapter_parameters(V1, WIDE, spec)
    assert counted == actual and sorted(shapes) == sorted(paths)


def test_released_model_has_its_known_size():
    # 2.588 billion parameters without the unused projections
    assert plan.weight_bytes(V1, TransformerConfig(), None, 64, 2) == pytest.approx(2 * 2.588e9, rel=0.01)
    assert plan.weight_bytes(V1, TransformerConfig(), 8, 64, 2) == pytest.approx(2.588e9 * 8.5 / 8, rel=0.03)


@pytest.mark.parametrize("more", [{"frames": 900}, {"batch": 2}, {"lyrics": 900}])
def test_more_work_takes_more_memory(more):
    config = load_config({"base_model_precision": "int8-quanto"})
    small = plan.Load(600, 1, 256, 300)
    assert plan.estimate(config, replace(small, **more)).total > plan.estimate(config, small).total


def test_precision_and_checkpointing_order():
    load = V1.memory.load(60)

    def total(**options):
        return plan.estimate(load_config(options), load).total

    assert total(base_model_precision="int4-quanto") < total(base_model_precision="int8-quanto") < total()
    assert total() < total(gradient_checkpointing=False)
    assert total(mixed_precision="bf16") < total(mixed_precision="no")


def test_blocks_are_chosen_by_the_budget():
    config, load = load_config({"base_model_precision": "int8-quanto"}), V1.memory.load(60)
    model = TransformerConfig()
    everything = plan.estimate(config, load, checkpointed=0).total
    least = plan.estimate(config, load, checkpointed=24).total
    results = plan.product_bytes(V1, model, load, 2)

    def chosen(room):
        return plan.choose_blocks(config, load, model, room, None)

    assert chosen(everything + 1) == (0, 0)
    assert chosen(0) == (24, 0)
    # First the results of linear layers are kept, of one block after the other, and then all of a block.
    assert chosen(least + 10.5 * results) == (13, 11)
    wholly, but_products = chosen((everything + least + 23 * results) / 2)
    assert wholly == 0 < but_products < 24


@pytest.mark.parametrize("blocks", [1, 3, 24])
def test_from_level_to_level_more_is_computed_again(blocks):
    levels = [plan.Recomputed.of(level, blocks) for level in range(2 * blocks + 1)]
    assert levels[0] == (0, 0) and levels[blocks] == (0, blocks) and levels[-1] == (blocks, 0)
    assert [one.level for one in levels] == list(range(2 * blocks + 1))
    assert all(0 <= sum(one) <= blocks for one in levels)


@pytest.mark.parametrize("seconds", [30, 60, 240])
@pytest.mark.parametrize("flavour", ["base", "v15-base"])
def test_results_of_linear_layers_save_more_for_a_byte_than_all_the_rest_of_a_block(flavour, seconds):
    """Which the order of the levels counts on. The rest that has products is attention."""
    config = load_config({"model_flavour": flavour})
    family, model = of_flavour(flavour), plan.released_sizes(config)
    load = family.memory.load(seconds)
    layers = family.memory.products(model, load)[:-1]
    results = plan.product_bytes(family, model, load, 2)
    all_again, none = (family.memory.activations(model, load, 2, n) for n in (model.blocks, 0))
    rest = (none - all_again) / model.blocks - results
    rows = family.memory.tokens(model, load)
    keys = 1 + load.text + load.lyrics + rows * (family is not V1)  # v1's self-attention is linear
    attention = 4 * rows * keys * layers[0].outputs
    assert sum(one.flops for one in layers) / results > 1.5 * attention / rest


def test_what_the_run_chooses_and_what_it_saves_is_said(monkeypatch):
    config = load_config({"base_model_precision": "int8-quanto", "mixed_precision": "bf16"})
    load = V1.memory.load(60)
    least = plan.estimate(config, load).total
    results = plan.product_bytes(V1, TransformerConfig(), load, 2)

    def said(room, **options):
        monkeypatch.setattr(plan, "budget", lambda: room / plan.CAUTION)
        run = load_config({**config.to_dict(), **options})
        return [line for line in plan.verdict(run) if line.startswith("computed again")]

    (some,), (none,), (all_of_them,) = (said(room) for room in (least + 23.1 * results, 1e12, 0))
    assert "on this machine: of 24 blocks 0 wholly, 24 but for their linear layers" in some
    assert size(24 * results) in some and size(least + 23 * results) in some and "29 % less" in some
    assert "0 wholly, 0 but" in none and "24 not at all" in none and "24 wholly, 0 but" in all_of_them
    assert " 0 % less" in all_of_them and size(least) in all_of_them
    assert not said(0, gradient_checkpointing=False)
    state = {"checkpointed_blocks": 4, "product_blocks": 12}
    line = next(one for one in plan.verdict(config, state=state) if one.startswith("computed again"))
    assert "as the checkpoint's run began: of 24 blocks 4 wholly, 12 but" in line and "8 not at all" in line


@pytest.mark.parametrize(
    ("state", "blocks"),
    [
        (None, (1, 2)),
        ({}, (1, 2)),  # gradient_checkpointing was off, and there was nothing to choose
        ({"checkpointed_blocks": 2, "product_blocks": 1}, (2, 1)),
        ({"checkpointed_blocks": 2}, (2, 0)),  # of a version that kept no results
        ({"checkpointed_blocks": 0}, (0, 0)),
        ({"checkpointed_blocks": 1, "product_blocks": 99}, (1, WIDE.num_layers - 1)),
        ({"checkpointed_blocks": 99, "product_blocks": 99}, (WIDE.num_layers, 0)),
    ],
    ids=str,
)
def test_a_resumed_run_checkpoints_as_many_blocks_as_it_did(state, blocks, monkeypatch):
    """Whatever this machine would choose now; as many as the model has."""
    monkeypatch.setattr(build.memory, "checkpointed_blocks", lambda *given: plan.Recomputed(1, 2))
    config = load_config({"gradient_checkpointing": True})
    resumed = None if state is None else SimpleNamespace(state=state)
    job: Any = SimpleNamespace(config=config, world=World())
    prepared: Any = SimpleNamespace(resumed=resumed, folder=SimpleNamespace(quantization=None))
    model: Any = SimpleNamespace(config=WIDE)
    found = build._recomputed(job, prepared, model, SimpleNamespace(shapes=[]))
    assert found == blocks
    job.config = load_config({"gradient_checkpointing": False})
    assert build._recomputed(job, prepared, model, SimpleNamespace(shapes=[])) == (0, 0)


@pytest.mark.parametrize(("free", "kept"), [(0, 0.0), (1, 0.4), (2, 1.0), (3, 2.0), (24, 23.0)])
def test_blocks_that_are_not_checkpointed_keep_their_arrays_but_the_one_in_work(free, kept):
    """Of a single one some stay beside those that are counted."""
    config, load = TransformerConfig(), plan.Load(100, 2, 50, 60)
    terms = v1_memory.features(config, load, 2, config.num_layers - free)
    assert terms["kept"] == pytest.approx(kept * terms["frames"])
    assert terms["kept_scores"] == pytest.approx(kept * terms["scores"])
    assert v1_memory.block_inputs(config, load, 2, 7) == 7 * 2 * (100 + 1 + 50 + 60) * config.dim * 2


def test_the_song_that_takes_most_decides_not_the_longest(monkeypatch):
    def chosen(*shapes):
        loads = plan.loads_of(load_config({}), shapes)
        return plan.checkpointed_blocks(load_config({}), loads, TransformerConfig(), 8).level

    monkeypatch.setattr(plan, "machine_memory", lambda: 12 * plan.GB)
    longest, wordiest = Shape(700, 256, 0), Shape(650, 256, 2000)
    assert 0 < chosen(longest) < chosen(wordiest) == chosen(longest, wordiest)


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("rank", [4, 16])
@pytest.mark.parametrize("own", [None, "sgd", "adafactor"], ids=str)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_what_is_trained_is_counted_with_what_its_optimizers_keep(
    optimizer: str, own: str | None, rank: int, accumulate: int
) -> None:
    """LoRA, moments and the gradient under accumulation, in bytes, against a real step's arrays; `own`: the
    lyrics embedder is trained too, with this optimizer."""
    options = {"optimizer": optimizer, "lora_rank": rank, "gradient_accumulation_steps": accumulate}
    options |= {"acestep_lora_target": "attn_qkv", "mixed_precision": "no"}
    if own is not None:
        options |= {"lyrics_embedder_train": True, "lyrics_embedder_optimizer": own}
    config = load_config(options)
    model = ACEStepTransformer(WIDE)
    inject(model, settings.lora_spec(config))
    if own is not None:
        train_full(model)
    step = TrainStep(
        model, build.optimizer_groups(config, model, 10), settings.step_settings(config), FlowMatching()
    )
    kept = [*step.parameters().values(), *(v for part in step.arrays().values() for v in part.values())]
    actual = sum(v.nbytes for v in kept)
    parts = plan.estimate(config, plan.Load(8), model=WIDE).parts
    assert parts["LoRA and optimizer"] == pytest.approx(actual, rel=0.06)


@pytest.mark.parametrize(("memory", "share"), [(8e9, 2 / 3), (36e9, 2 / 3), (36e9 + 1, 3 / 4), (64e9, 3 / 4)])
def test_what_a_mac_lets_the_gpu_use(memory, share):
    """Two thirds up to 36 GB, three quarters above."""
    assert plan.usable(memory) == memory * share


def test_verdict_speaks_of_every_mac():
    lines = "\n".join(plan.verdict(load_config({"base_model_precision": "int8-quanto"})))
    assert all(f"{mac} GB" in lines for mac in (8, 16, 24, 36, 64)) and "base weights" in lines


@pytest.mark.parametrize(
    ("row", "precision"), [("bf16", "no_change"), ("8 bits", "int8-quanto"), ("4 bits", "int4-quanto")]
)
def test_readme_says_what_the_estimate_says(row, precision):
    config = load_config({"base_model_precision": precision, "mixed_precision": "bf16", "lora_rank": 16})
    cells = []
    for seconds in (30, 60, 120, 240):
        total = plan.estimate(config, V1.memory.load(seconds)).total
        mac = next(mac for mac in plan.MACS if total <= plan.usable(mac * plan.GB))
        cells.append(f"{total / plan.GB:.1f} GB ({mac} GB)")
    readme = (Path(__file__).resolve().parents[2] / "README.md").read_text(encoding="utf-8")
    assert f"| {row} | {' | '.join(cells)} |" in readme


@pytest.mark.slow
@pytest.mark.parametrize("checkpointed", [0, 1, 3])
@pytest.mark.parametrize(
    "load", [plan.Load(256, 1, 64, 64), plan.Load(512, 1, 64, 64)], ids=["short", "long"]
)
def test_estimate_is_close_to_a_measured_peak(checkpointed, load):
    """At a width of its own, so that the fit is not tested on what it was fitted to."""
    expected, peak = _estimate_and_peak(load, checkpointed)
    assert 0.85 * peak < expected < 1.15 * peak


@pytest.mark.slow
@pytest.mark.parametrize(("checkpointed", "products"), [(0, 3), (1, 2), (0, 2)])
def test_so_is_that_of_blocks_that_keep_the_results_of_linear_layers(checkpointed, products):
    expected, peak = _estimate_and_peak(plan.Load(512, 1, 64, 64), checkpointed, products=products)
    assert 0.85 * peak < expected < 1.15 * peak


@pytest.mark.slow
@pytest.mark.parametrize(("checkpointed", "above"), [(1, 1.25), (0, 1.6)])  # rather too much than too little
def test_estimate_of_many_lyrics_is_not_below_the_peak(checkpointed, above):
    expected, peak = _estimate_and_peak(plan.Load(64, 1, 64, 256), checkpointed)
    assert 0.95 * peak < expected < above * peak


@pytest.mark.slow
@pytest.mark.parametrize("rank", [256, 1024])
def test_estimate_of_a_large_lora_counts_the_optimizers_step_once(rank):
    expected, peak = _estimate_and_peak(plan.Load(8, 1, 8, 8), 3, rank)
    assert 0.9 * peak < expected < 1.15 * peak


def _estimate_and_peak(
    load: plan.Load, checkpointed: int, rank: int = 16, products: int = 0
) -> tuple[float, float]:
    import sys

    sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
    import memory

    blocks = {"checkpointed": checkpointed, "products": products}
    peak, _, _ = memory.measure(WIDE, load, bits=None, dtype=mx.float32, rank=rank, **blocks)
    options = {"mixed_precision": "no", "gradient_checkpointing": checkpointed > 0, "lora_rank": rank}
    config = load_config(options)
    parts = plan.estimate(config, load, model=WIDE, **blocks).parts
    return sum(v for k, v in parts.items() if k != "program"), peak


@pytest.mark.parametrize(
    ("settings", "more"), [({}, 0), ({"beta_1": None}, 0), ({"beta_1": 0.9}, 1)], ids=str
)
def test_a_factored_optimizer_keeps_a_moment_only_with_beta_1(settings, more):
    rank = 8
    assert OPTIMIZERS["adafactor"].kept(settings, rank) == pytest.approx(1 / rank + more)
    config = load_config({"optimizer": "adafactor", "lora_rank": rank, "optimizer_config": settings or None})
    load = plan.Load(60, 1, 64, 0)
    lora, *_ = plan.adapter_parameters(V1, TransformerConfig(), plan.lora_spec(config))
    plain = plan.estimate(load_config({"optimizer": "sgd", "lora_rank": rank}), load)
    found = plan.estimate(config, load)
    here, there = (one.parts["LoRA and optimizer"] for one in (found, plain))
    assert here - there == pytest.approx(4 * lora * (1 / rank + more - 1))


def test_what_a_lokr_keeps_for_its_gradients_is_a_part_of_its_own():
    """Of the blocks that keep their activations, and of one beside them; a LoRA has no such part."""
    load = plan.Load(100, 2, 64, 0)
    config = load_config(LYCORIS | {"mixed_precision": "no"})
    of = [plan.estimate(config, load, model=WIDE, checkpointed=n).parts for n in range(WIDE.num_layers + 1)]
    name = "LoKr's products"
    layer = next(
        iter(lokr_plans(quantised_model(V1, WIDE, None, mx.float32), plan.lora_spec(config)).values())
    )
    block = 200 * 4 * 8 * layer.kept  # eight equal layers in each
    assert of[0][name] - of[1][name] == 0 and of[-1][name] == pytest.approx(block + 200 * 4 * 3 * layer.kept)
    assert of[1][name] - of[2][name] == pytest.approx(block)
    assert name not in plan.estimate(load_config({}), load, model=WIDE).parts
