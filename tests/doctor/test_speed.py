"""What is timed is also right; what this MLX lacks is told from what it computes wrongly."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from acestep_mlx.doctor import speed as room
from acestep_mlx.doctor.expectation import PRECISIONS, expected
from acestep_mlx.doctor.speed import LIMITS, Speed, measure
from acestep_mlx.families import families
from acestep_mlx.families.model_folder import MODES
from acestep_mlx.families.work import SECONDS, Work, step_work
from acestep_mlx.training import memory

from .standin import GB, speed


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of products that take no time."""
    for name, value in {"WIDTH": 320, "ROWS": 16, "PATIENCE": 0.0, "CHAIN": 3}.items():
        monkeypatch.setattr(room, name, value)
    monkeypatch.setattr(room, "_seconds", lambda work: mx.eval(work()) or 0.5)


MODE_NAMES = {f"{mode} {bits}" for mode, (all_bits, _) in MODES.items() for bits in all_bits}


def test_everything_is_measured_and_right(small: None) -> None:
    found = measure()
    assert found.products == dict.fromkeys(("float32", "bfloat16", "4 bits", "8 bits"), 2 * 16 * 320**2 / 0.5)
    assert found.bandwidth == 2 * (64 << 20) / 0.5 and found.launch == 0.5 / 3
    assert found.modes == dict.fromkeys(MODE_NAMES, True)
    assert [one for one in found.checks if not one.right] == []
    assert len(found.checks) == len(LIMITS) + len(MODE_NAMES)


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
def test_a_step_waits_for_arithmetic_for_memory_and_for_kernels() -> None:
    work = Work(kernels=1000, bytes=50e9, product_bytes=20e9, flops=4e12)
    assert work.seconds(products=2e12, bandwidth=1e12, launch=1e-5) == pytest.approx(2 + 0.03 + 0.01)
    assert work.seconds(products=1e18, bandwidth=1e10, launch=0) == pytest.approx(5)


def test_the_table_has_every_step_that_is_asked_for() -> None:
    for family in families():
        for bits in PRECISIONS:
            rows = [step_work(family.name, bits, seconds, 1.0) for seconds in SECONDS]
            assert all(a.flops < b.flops and a.bytes < b.bytes for a, b in pairwise(rows))
            kept, half, again = (step_work(family.name, bits, 60, share) for share in (0.0, 0.5, 1.0))
            assert kept.flops < half.flops < again.flops and kept.bytes < half.bytes < again.bytes
        assert step_work(family.name, 4, 60, 1.0).bytes < step_work(family.name, 16, 60, 1.0).bytes


@pytest.mark.slow
def test_expectations_follow_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    def on(room: float, found: Speed) -> dict[tuple[str, int, int], Any]:
        monkeypatch.setattr("acestep_mlx.doctor.expectation.budget", lambda: room)
        return {(e.family, e.bits, e.seconds): e for e in expected(found)}

    large, small = on(96.0 * GB, speed()), on(5.0 * GB, speed())
    assert len(large) == len(list(families())) * len(PRECISIONS) * len(SECONDS)
    assert all(e.fits and e.recomputed == 0 for e in large.values())
    assert all(e.recomputed == 1 for e in small.values() if e.family == "v1" and e.bits == 16)
    assert not small["v1", 16, 240].fits and small["v1", 4, 30].fits
    for key, e in small.items():
        assert e.step_seconds >= large[key].step_seconds and e.memory <= large[key].memory
        assert e.fits == (e.memory <= 5 * GB)
    slower = speed()
    slower.products = {kind: rate / 10 for kind, rate in slower.products.items()}
    assert on(96.0 * GB, slower)["v1", 8, 60].step_seconds > 5 * large["v1", 8, 60].step_seconds
    assert memory.budget() > 0
