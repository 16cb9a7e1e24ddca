"""What is timed is also right; what this MLX lacks is told from what it computes wrongly."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from acestep_mlx.config.read_run import load_config
from acestep_mlx.doctor import speed as room
from acestep_mlx.doctor.expectation import PRECISIONS, expected
from acestep_mlx.doctor.speed import LIMITS, Speed, measure
from acestep_mlx.families import families, family
from acestep_mlx.families.model_folder import MODES
from acestep_mlx.families.work import SECONDS
from acestep_mlx.training import memory
from acestep_mlx.training.pace import Rates

from .standin import GB, speed


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of products that take no time."""
    for name, value in {"WIDTH": 320, "ROWS": 1, "COPIED": 4096, "CHAIN": 3}.items():
        monkeypatch.setattr(room, name, value)
    monkeypatch.setattr(room, "_seconds", lambda work, patience: mx.eval(work()) or 0.5)


MODE_NAMES = {f"{mode} {bits}" for mode, (all_bits, _) in MODES.items() for bits in all_bits}


def test_everything_is_measured_and_right(small: None) -> None:
    found = measure()
    assert found.products == dict.fromkeys(("float32", "bfloat16", "4 bits", "8 bits"), 2 * 320**2 / 0.5)
    assert found.bandwidth == 2 * 4096 / 0.5 and found.launch == 0.5 / 3
    assert found.modes == dict.fromkeys(MODE_NAMES, True)
    assert [one for one in found.checks if not one.right] == []
    assert len(found.checks) == len(LIMITS) + len(MODE_NAMES)


@pytest.mark.parametrize("bits", [None, 4, 8, 3])
def test_a_glance_tells_the_same_rates(bits: int | None, small: None) -> None:
    found, glanced = measure(), room.glance(bits)
    assert glanced == found.rates(bits or 16) == Rates(2 * 320**2 / 0.5, 2 * 4096 / 0.5, 0.5 / 3)


def test_at_least_one_run_is_timed() -> None:
    ran: list[int] = []
    assert 0 <= room._seconds(lambda: ran.append(1) or mx.zeros(1), patience=0.0) < 60
    assert len(ran) == 2, "the first time it is compiled"


def test_a_mode_that_mlx_lacks_is_no_fault(small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    right = mx.quantize

    def quantize(w: mx.array, group_size: int, bits: int, mode: str) -> Any:
        if mode == "nvfp4":
            raise ValueError("[quantize] Invalid quantization mode 'nvfp4'")
        return right(w, group_size, bits, mode=mode)

    monkeypatch.setattr(mx, "quantize", quantize)
    found = measure()
    assert found.modes == {**dict.fromkeys(MODE_NAMES, True), "nvfp4 4": False}
    assert all(one.right and "nvfp4" not in one.what for one in found.checks)


def test_a_mode_that_computes_something_else_is_one(small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    right = mx.quantized_matmul

    def product(*given: Any, **settings: Any) -> mx.array:
        return right(*given, **settings) * (2.0 if settings["bits"] == 3 else 1.0)

    monkeypatch.setattr(mx, "quantized_matmul", product)
    assert [one.what for one in measure().checks if not one.right] == ["product of affine 3 bits"]


def test_a_gpu_that_runs_out_of_memory_lacks_no_mode(small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def quantize(*_: Any, **__: Any) -> None:
        raise RuntimeError("[metal::malloc] Unable to allocate")

    monkeypatch.setattr(mx, "quantize", quantize)
    with pytest.raises(RuntimeError, match="allocate"):
        measure()


def test_products_of_tf32_parts_are_not_float32() -> None:
    """As on an M5 and on CUDA where MLX_ENABLE_TF32 is not 0."""
    weight, rows = room._weight(640)
    exact = rows.astype(np.float64) @ weight.astype(np.float64).T

    def coarse(x: np.ndarray) -> np.ndarray:
        """Ten bits after the first."""
        return (x.view(np.uint32) + 0x1000 & 0xFFFFE000).view(np.float32)

    fine = room._compared("product", mx.array(rows) @ mx.array(weight).T, exact, LIMITS["float32"])
    tf32 = mx.array(coarse(rows)) @ mx.array(coarse(weight)).T
    assert fine.right and not room._compared("product", tf32, exact, LIMITS["float32"]).right
    assert not room._compared("product", tf32 * mx.nan, exact, LIMITS["float32"]).right


# ── what a step would take ───────────────────────────────────────────────────────────────────────────
@pytest.mark.slow
def test_expectations_follow_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    def on(room: float, found: Speed) -> dict[tuple[str, int, int], Any]:
        monkeypatch.setattr("acestep_mlx.doctor.expectation.budget", lambda: room)
        return {(e.family, e.bits, e.seconds): e for e in expected(found)}

    large, small = on(96.0 * GB, speed()), on(5.0 * GB, speed())
    assert len(large) == len(list(families())) * len(PRECISIONS) * len(SECONDS)
    assert all(e.fits and e.recomputed == e.products_kept == 0 for e in large.values())
    assert all(e.recomputed == 1 for e in small.values() if e.family == "v1" and e.bits == 16)
    assert {0 < e.products_kept <= 1 for e in on(12.0 * GB, speed()).values()} == {True, False}
    assert not small["v1", 16, 240].fits and small["v1", 4, 30].fits
    for key, e in small.items():
        assert e.step_seconds >= large[key].step_seconds and e.memory <= large[key].memory
        assert e.fits == (e.memory <= 5 * GB)
    slower = speed()
    slower.products = {kind: rate / 10 for kind, rate in slower.products.items()}
    assert on(96.0 * GB, slower)["v1", 8, 60].step_seconds > 5 * large["v1", 8, 60].step_seconds
    assert memory.budget() > 0


@pytest.mark.slow
def test_the_memory_is_the_planner_s(monkeypatch: pytest.MonkeyPatch) -> None:
    """The estimate of `--dry-run`, with the blocks that a run would recompute here."""
    for usable in (6.0 * GB, 20.0 * GB):
        for place in ("doctor.expectation", "training.memory"):
            monkeypatch.setattr(f"acestep_mlx.{place}.budget", lambda usable=usable: usable)
        for one in expected(speed()):
            flavour = next(iter(family(one.family).variants))
            config = load_config(
                {"model_flavour": flavour, "base_model_precision": PRECISIONS[one.bits], "lora_rank": 16}
            )
            model, load = memory.released_sizes(config), family(one.family).memory.load(float(one.seconds))
            again, products = memory.checkpointed_blocks(config, [load], model, None)
            assert (one.recomputed, one.products_kept) == (again / model.blocks, products / model.blocks)
            planned = memory.estimate(config, load, checkpointed=again, products=products)
            assert one.memory == int(planned.total)
