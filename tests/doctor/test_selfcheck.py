"""A machine that computes something else than the reference is found out, and one that does not is not."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from acestep_mlx.doctor import selfcheck
from acestep_mlx.doctor.selfcheck import STEP, Check, ComponentWork, check, check_family
from acestep_mlx.families import families, family
from acestep_mlx.families.known import SAMPLES, error, integers, known_numbers, spread, summary, uniform
from acestep_mlx.families.protocol import Family

from ..gpu import gpu_side

ALL = pytest.mark.parametrize("one", list(families()), ids=lambda one: one.name)
WHAT = "audio_token_detokenizer"  # the smallest


# ── numbers ──────────────────────────────────────────────────────────────────────────────────────────
def test_numbers_are_the_same_everywhere() -> None:
    """Integers, computed here with Python's own."""

    def bits(seed: int) -> int:
        z = seed * 0x9E3779B97F4A7C15 % 2**64
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1)):
            z = (z ^ z >> shift) * factor % 2**64
        return z

    import zlib

    first = zlib.crc32(b"x") << 32
    assert integers("x", (2, 3), 1000).reshape(-1).tolist() == [bits(first + i) % 1000 for i in range(6)]
    assert uniform("x", (3,)).tolist() == [(bits(first + i) >> 40) / 2**24 for i in range(3)]


def test_numbers_are_spread_as_they_are_asked_to_be() -> None:
    x, y = spread("x", (100, 100), 2.0, 3.0), spread("y", (100, 100), 2.0, 3.0)
    assert x.dtype == np.float32 and abs(x.mean() - 3) < 0.05 and abs(x.std() - 2) < 0.05
    assert abs(np.corrcoef(x.reshape(-1), y.reshape(-1))[0, 1]) < 0.03


def test_a_summary_finds_what_is_wrong() -> None:
    x = spread("x", (50, 40))
    known = summary(x)
    assert len(known["sample"]) == SAMPLES and error(x, known) < 1e-7
    assert error(x * np.float32(1.001), known) == pytest.approx(1e-3, rel=1e-2)
    assert error(x[::-1], known) > 0.5, "the same numbers elsewhere"
    assert error(x.T, known) == error(np.where(x == x.max(), np.nan, x), known) == float("inf")
    small = summary(x[0, :5])
    assert error(x[0, :5], small) < 1e-7 < 1e-3 < error(x[0, :5] + np.float32([0, 0, 0, 0, 0.01]), small)


@ALL
def test_every_component_has_known_numbers(one: Family) -> None:
    """And nothing else has."""
    examples = [example.component for example in one.examples().components]
    assert set(examples) == set(one.components) and len(examples) == len(one.components)
    assert known_numbers(one.name).keys() == {*examples, STEP}


# ── faults ───────────────────────────────────────────────────────────────────────────────────────────
@pytest.fixture
def work() -> ComponentWork:
    v15 = family("v15")
    example = next(one for one in v15.examples().components if one.component == WHAT)
    return ComponentWork(v15, example)


@pytest.fixture
def two_devices(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A GPU beside the CPU; its name is in the list while it computes."""
    at_work: list[str] = []

    @contextlib.contextmanager
    def on(device: str) -> Any:
        at_work.append(device)
        yield
        at_work.remove(device)

    monkeypatch.setattr(selfcheck, "devices", lambda: ["CPU", "GPU"])
    monkeypatch.setattr(selfcheck, "name_of", str)
    monkeypatch.setattr(selfcheck, "on", on)
    return at_work


def checked(work: Callable[[], Any], limit: float = 1e-4) -> list[Check]:
    return list(check("v15", WHAT, known_numbers("v15")[WHAT], limit, work))


def test_a_component_that_computes_rightly_is_right(work: ComponentWork, two_devices: list[str]) -> None:
    found = checked(work)
    assert [(one.device, one.right) for one in found] == [("CPU", True), ("GPU", True)]
    assert 0 <= found[0].error < 1e-5


def refuse(_: mx.array) -> mx.array:
    raise RuntimeError("[metal::Device] Unable to load kernel from /Users/somebody/x.metallib")


FAULTS: dict[str, Callable[[mx.array], mx.array]] = {
    "a thousandth too large": lambda x: x * 1.001,
    "not a number": lambda x: mx.where(x == x.max(), mx.nan, x),
    "infinite": lambda x: mx.where(x == x.max(), mx.inf, x),
    "zero": mx.zeros_like,
    "another order": lambda x: x[:, ::-1],
    "another shape": lambda x: x[:, 1:],
    "one element": lambda x: mx.where(x == x.min(), 0, x),
    "an error": refuse,
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_the_gpu_is_found_there(
    fault: str, work: ComponentWork, two_devices: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In what a layer inside the component gives."""
    module = family("v15").components[WHAT].module
    right = module.__call__

    def call(self: Any, tokens: mx.array) -> mx.array:
        x = right(self, tokens)
        return FAULTS[fault](x) if two_devices == ["GPU"] else x

    monkeypatch.setattr(module, "__call__", call)
    cpu, gpu = checked(work)
    assert cpu.right and not gpu.right
    assert gpu.problem == ("RuntimeError" if fault == "an error" else ""), "and no path of the message"


def test_a_fault_of_every_device_is_found(work: ComponentWork, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the reference's numbers: there is nothing else to compare with."""
    import mlx.nn as nn

    right = nn.Linear.__call__
    monkeypatch.setattr(nn.Linear, "__call__", lambda self, x: right(self, x) * 1.01)
    assert [one.right for one in checked(work)] == [False]


def test_out_of_memory_is_called_so(two_devices: list[str]) -> None:
    def work() -> Any:
        raise RuntimeError("[metal::malloc] Unable to allocate 8 bytes")

    assert [one.problem for one in checked(work)] == ["memory", "memory"]


def test_work_goes_to_the_device_that_is_asked_for() -> None:
    before = mx.default_device()
    assert selfcheck.name_of(selfcheck.devices()[0]) == "CPU"
    with pytest.raises(KeyError), selfcheck.on(mx.Device(mx.cpu)):
        assert mx.default_device() == mx.Device(mx.cpu)
        raise KeyError
    assert mx.default_device() == before


@pytest.mark.parametrize("gpu", [False, True])
def test_a_processor_beside_a_gpu_needs_no_compiler(gpu: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which a Mac may not have; a processor alone computes as it does in a run."""
    monkeypatch.setattr(selfcheck, "devices", lambda: [mx.Device(mx.cpu)] * (1 + gpu))
    traced: list[int] = []

    def plus(x: mx.array) -> mx.array:
        traced.append(1)
        return x + 1

    compiled = mx.compile(plus)
    with selfcheck.on(mx.Device(mx.cpu)):
        for _ in range(3):
            compiled(mx.ones(2))
    assert len(traced) == (3 if gpu else 1)
    for _ in range(3):
        compiled(mx.ones(2))
    assert len(traced) == (4 if gpu else 1), "compiled again afterwards"


# ── all of it ────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.slow
@ALL
def test_this_machine_is_right(one: Family) -> None:
    found = list(check_family(one))
    assert [c for c in found if not c.right] == []
    assert len(found) == (len(one.components) + 2) * len(selfcheck.devices())
    assert all(c.error < c.limit / 3 for c in found if c.device == "CPU"), "no limit is as close as rounding"


@pytest.mark.slow
@ALL
def test_a_gpu_s_code_is_right(one: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a Mac computes, on the CPU: no limit is too close for it."""
    places = {"CPU": contextlib.nullcontext, "GPU": gpu_side}
    monkeypatch.setattr(selfcheck, "devices", lambda: list(places))
    monkeypatch.setattr(selfcheck, "name_of", str)
    monkeypatch.setattr(selfcheck, "on", lambda device: places[device]())
    found = list(check_family(one))
    assert [c for c in found if c.error > c.limit / 3] == []
    assert {c.device for c in found} == {"CPU", "GPU"}


@pytest.mark.slow
def test_a_wrong_gradient_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The LoRA that is trained has another scale than the reference's."""
    right = selfcheck.LoRASpec
    monkeypatch.setattr(selfcheck, "LoRASpec", lambda rank, alpha, **more: right(rank, alpha * 1.01, **more))
    v15 = family("v15")
    work = selfcheck.StepWork(v15, v15.examples())
    assert [one.right for one in check("v15", STEP, known_numbers("v15")[STEP], 1e-3, work)] == [False]
