"""Memory is the device's: what each back end says of itself, and what a run makes of it.

The keys are those that `device_info` of MLX's back ends gives: Metal's has a working set, CUDA's the card's
memory, that of the CPU neither.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import pytest

from acestep_mlx.config.read_run import load_config
from acestep_mlx.families.songs import Shape
from acestep_mlx.families.v1 import FAMILY as V1
from acestep_mlx.families.v1.dit import TransformerConfig
from acestep_mlx.training import macos, memory

from . import runs

GB = 10**9
CPU = {"device_name": "Some Processor", "architecture": "x86_64"}


def metal(total: int, working_set: int) -> dict[str, Any]:
    return {
        "device_name": "Apple M2 Max", "architecture": "applegpu_g14s", "max_buffer_length": working_set // 2,
        "max_recommended_working_set_size": working_set, "memory_size": total, "resource_limit": 499_000,
    }  # fmt: skip


def cuda(total: int) -> dict[str, Any]:
    return {
        "device_name": "NVIDIA GeForce RTX 4090", "uuid": "GPU-0", "architecture": "sm_89",
        "pci_bus_id": "0000:01:00.0", "compute_capability_major": 8, "compute_capability_minor": 9,
        "free_memory": total // 2, "total_memory": total,
    }  # fmt: skip


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """MLX on a device that says this of itself, in a machine with `host` bytes of memory."""

    def on(info: dict[str, Any], host: int = 128 * GB) -> None:
        monkeypatch.setattr(mx, "device_info", lambda *_: dict(info))
        pages = {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": host // 4096}
        monkeypatch.setattr(os, "sysconf", lambda name: pages[name])

    return on


@pytest.mark.parametrize(
    ("info", "total", "usable"),
    [
        (metal(64 * GB, 48 * GB), 64, 48),
        (metal(64 * GB, 60 * GB), 64, 60),  # the user raised the wired limit
        (metal(16 * GB, 11 * GB), 16, 11),
        (cuda(24 * GB), 24, 0.9 * 24),
        (cuda(80 * GB), 80, 0.9 * 80),
        (CPU, 128, 0.75 * 128),
    ],
    ids=["Metal", "Metal, raised", "a small Mac", "CUDA", "a large card", "CPU"],
)
def test_the_budget_is_the_devices(
    info: dict[str, Any], total: float, usable: float, device: Callable[..., None]
) -> None:
    """A card of 24 GB in a machine of 128 GB has 24 GB."""
    device(info)
    assert memory.machine_memory() == pytest.approx(total * GB, rel=1e-6)
    assert memory.budget() == pytest.approx(usable * GB, rel=1e-6)


def test_a_run_that_fits_the_machine_but_not_its_card_does_not_fit(device: Callable[..., None]) -> None:
    """And recomputes as many blocks as the card asks for."""
    config, model = load_config({"mixed_precision": "no"}), TransformerConfig()
    shapes = [Shape(V1.memory.load(120.0).frames, 256, 500)]
    found = []
    for info in (cuda(24 * GB), cuda(80 * GB), CPU):
        device(info)
        line = next(one for one in memory.verdict(config) if one.startswith("this machine"))
        loads = memory.loads_of(config, shapes)
        level = memory.checkpointed_blocks(config, loads, model, None).level
        found.append((line.endswith(": fits"), level))
    assert [fits for fits, _ in found] == [True, True, True]
    assert found[0][1] > found[1][1] >= found[2][1]
    device(cuda(12 * GB))
    assert any(one.endswith(": does not fit") for one in memory.verdict(config))


# ── buffers that are kept for reuse ──────────────────────────────────────────────────────────────────
def kept(checkpointed: int = 0) -> tuple[int, memory.Estimate]:
    """What is kept between steps on two minutes of music, and what a step is expected to take."""
    config, model = load_config({"base_model_precision": "int8-quanto"}), TransformerConfig()
    load = V1.memory.load(120.0)
    shape = Shape(load.frames, load.text, load.lyrics)
    small = Shape(100, 256, 0)
    expected = memory.estimate(config, load, model=model, checkpointed=checkpointed)
    return memory.step_cache(config, [small, shape], model, None, checkpointed), expected


@pytest.mark.parametrize("checkpointed", [0, 24])
def test_a_large_mac_keeps_all_that_a_step_frees(checkpointed: int, device: Callable[..., None]) -> None:
    device(metal(128 * GB, 96 * GB))
    limit, expected = kept(checkpointed)
    assert limit == int(expected.parts["activations"])
    assert limit > 2 << 30 or checkpointed


def test_a_smaller_one_keeps_what_is_left(device: Callable[..., None]) -> None:
    """Up to nothing, beside a little that every run needs."""
    _, expected = kept()
    for room in (0.5 * GB, 1 * GB):
        device(metal(64 * GB, int(expected.total + room)))
        assert kept()[0] == pytest.approx(room, abs=2)
    device(metal(8 * GB, 5 * GB))
    assert kept()[0] == memory.LEAST_CACHE < 0.5 * GB


@pytest.mark.slow
def test_a_run_keeps_so_much_while_it_trains(
    tmp_path: Any, tiny_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the process has its own limit again at the end."""
    told: list[int] = []
    setting = mx.set_cache_limit
    monkeypatch.setattr(mx, "set_cache_limit", lambda limit: told.append(limit) or setting(limit))
    monkeypatch.setattr(memory, "LEAST_CACHE", 123_456)
    monkeypatch.setattr(memory, "budget", lambda: 0.0)
    before = setting(7_654_321)
    try:
        runs.run(runs.configuration(tmp_path, tiny_model, "run", max_train_steps=1))
        assert told == [memory.cache_limit(), 123_456, 7_654_321]
    finally:
        setting(before)


# ── what macOS is asked for ──────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize(
    ("info", "asked"), [(metal(64 * GB, 48 * GB), [48 * GB, 5]), (cuda(24 * GB), []), (CPU, [])]
)
def test_only_metal_is_asked_to_keep_its_working_set_resident(
    info: dict[str, Any], asked: list[int], device: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the processor of a Mac is worked on: that device has no working set."""
    device(info)
    told: list[int] = []
    monkeypatch.setattr(mx, "set_wired_limit", lambda limit: told.append(limit) or 5)
    monkeypatch.setattr(mx.metal, "is_available", lambda: True)
    with pytest.raises(KeyError), macos.wired_memory():
        raise KeyError
    assert told == asked


@pytest.mark.parametrize("platform", ["linux", "darwin"])
def test_a_mac_is_kept_awake_and_nothing_else(platform: str, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Any] = []

    class Helper:
        def __init__(self, command: list[str]) -> None:
            started.append(command)

        def terminate(self) -> None:
            started.append("ended")

        def wait(self) -> None:
            pass

    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(macos.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(subprocess, "Popen", Helper)
    with macos.keep_awake():
        assert "ended" not in started
    wanted = [["/usr/bin/caffeinate", "-i", "-s", "-w", str(os.getpid())], "ended"]
    assert started == (wanted if platform == "darwin" else [])


def test_a_mac_that_cannot_be_kept_awake_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(command: list[str]) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(macos.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(subprocess, "Popen", refused)
    with macos.keep_awake():
        pass
