"""What a step takes is counted work at a machine's rates; one estimate for `doctor`, `new` and the README."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from acestep_mlx.config.read_run import load_config
from acestep_mlx.families import families
from acestep_mlx.families.protocol import Family
from acestep_mlx.families.work import SECONDS, Work, step_work
from acestep_mlx.training.memory import CAUTION, released_sizes
from acestep_mlx.training.pace import COUNTED_BITS, NOMINAL, SLACK, Rates, expected_step, step_seconds

GB = 1e9
RATES = Rates(1e12, 1e11, 1e-6)
ALL = pytest.mark.parametrize("one", list(families()), ids=lambda one: one.name)


def test_a_step_waits_for_arithmetic_for_memory_and_for_kernels() -> None:
    work = Work(kernels=1000, bytes=50e9, product_bytes=20e9, flops=4e12)
    assert work.seconds(products=2e12, bandwidth=1e12, launch=1e-5) == pytest.approx(2 + 0.03 + 0.01)
    assert work.seconds(products=1e18, bandwidth=1e10, launch=0) == pytest.approx(5)


@ALL
def test_every_family_has_every_step(one: Family) -> None:
    for bits in COUNTED_BITS:
        rows = [step_work(one.name, bits, seconds, 1.0) for seconds in SECONDS]
        assert all(a.flops < b.flops and a.bytes < b.bytes for a, b in pairwise(rows))
        found = [step_work(one.name, bits, 60, *shares) for shares in ((0, 0), (0, 1), (0.5, 0.5), (1, 0))]
        assert all(a.flops < b.flops and a.bytes < b.bytes for a, b in pairwise(found))
    assert step_work(one.name, 4, 60, 1.0).bytes < step_work(one.name, 16, 60, 1.0).bytes


@ALL
def test_lengths_that_were_not_counted_lie_between(one: Family) -> None:
    """And beyond; a short song costs something, too."""
    times = [
        step_seconds(one, 8, s, 1.0, RATES) for s in (1, 5, 30, 31, 59.9, 60, 61, 119, 120, 239, 240, 300)
    ]
    assert times[0] > 0 and all(a < b for a, b in pairwise(times))
    between = step_seconds(one, 8, 90, 1.0, RATES)
    assert 2 * between == pytest.approx(sum(step_seconds(one, 8, s, 1.0, RATES) for s in (60, 120)), rel=0.05)


@ALL
def test_bits_that_were_not_counted_take_the_next_ones(one: Family) -> None:
    slow = RATES._replace(bandwidth=1e9)
    times = {bits: step_seconds(one, bits, 60, 1.0, slow) for bits in (2, 3, 4, 5, 6, 8, 16)}
    assert times[2] == times[3] == times[4] < times[5] == times[6] == times[8] < times[16]


@ALL
def test_a_step_of_the_run_s_own_model(one: Family) -> None:
    flavour = next(iter(one.variants))
    config, load = load_config({"model_flavour": flavour}), one.memory.load(60.0)
    model = released_sizes(config)
    roomy, tight = (expected_step(config, load, RATES, room * GB, model=model) for room in (90, 5))
    assert roomy.recomputed == 0 and tight.recomputed == 1
    between = expected_step(config, load, RATES, (tight.memory + 0.3 * GB) / CAUTION, model=model)
    assert between.recomputed + between.products_kept == 1 > between.recomputed
    assert tight.seconds > between.seconds > roomy.seconds and tight.memory < between.memory < roomy.memory
    assert roomy.seconds == pytest.approx(step_seconds(one, 16, 60, 0.0, RATES), rel=0.01)
    packed = expected_step(config, load, RATES, 90 * GB, model=model, stored_bits=4)
    assert packed.seconds == pytest.approx(step_seconds(one, 4, 60, 0.0, RATES), rel=0.01)
    never = expected_step(replace(config, gradient_checkpointing=False), load, RATES, 5 * GB, model=model)
    assert never.recomputed == 0 and never.seconds == roomy.seconds


@ALL
def test_another_size_takes_another_time(one: Family) -> None:
    """By its weights."""
    sizes = [released_sizes(load_config({"model_flavour": flavour})) for flavour in one.variants]
    first = step_seconds(one, 8, 60, 1.0, RATES)
    for model in sizes:
        found = step_seconds(one, 8, 60, 1.0, RATES, model)
        assert found == first if model == sizes[0] else first < found < 4 * first


# ── the README ───────────────────────────────────────────────────────────────────────────────────────
def test_the_readme_s_table_is_this_estimate() -> None:
    """Twice what the kernels need at the vendors' figures."""
    text = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    table = text.split("| Mac (float32 rate) |")[1].split("\n\n")[0].splitlines()[2:]
    assert len(table) > 4
    for line in table:
        mac, *cells = (cell.strip() for cell in line.strip("|").split("|"))
        rates = NOMINAL[mac.split(",")[0]]
        assert f"({rates.products / 1e12:g}" in mac
        times = [step_seconds(one, 8, s, 1.0, rates.reached()) for one in families() for s in (30, 60, 240)]
        assert [float(re.split(" ", cell)[0]) for cell in cells] == [float(f"{t:.2g}") for t in times]
    work = step_work("v1", 8, 60, 1.0)
    assert SLACK * work.seconds(*rates.reached()) == pytest.approx(2 * work.seconds(*rates))
    counted = f"{work.kernels:,.0f} kernels,\n{work.bytes / 1e9:.0f} GB, {work.flops / 1e12:.1f} TFLOP"
    assert f"v1 at 60 s: {counted}" in text
