"""What a machine is said to be, on back ends that are not here; and nothing that tells whose it is."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from acestep_mlx.doctor import machine as room
from acestep_mlx.doctor.machine import CODECS, ffmpeg, hub_resolves, machine, surroundings, wired_limit

from ..training.test_device_memory import CPU, GB, cuda, metal


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Any:
    """MLX on a device that says this of itself."""

    def on(info: dict[str, Any], gpu: str) -> None:
        monkeypatch.setattr(mx, "device_info", lambda *_: dict(info))
        kind = mx.gpu if gpu else mx.cpu
        monkeypatch.setattr(mx, "default_device", lambda: mx.Device(kind))
        monkeypatch.setattr(mx.metal, "is_available", lambda: gpu == "Metal")

    return on


@pytest.mark.parametrize(
    ("info", "gpu", "chip", "memory", "usable"),
    [
        (metal(64 * GB, 48 * GB), "Metal", "Apple M2 Max", 64 * GB, 48 * GB),
        (metal(16 * GB, 14 * GB), "Metal", "Apple M2 Max", 16 * GB, 14 * GB),
        (cuda(24 * GB), "CUDA", "NVIDIA GeForce RTX 4090", 24 * GB, int(0.9 * 24 * GB)),
        (CPU, "", "Some Processor", None, None),
    ],
    ids=["Metal", "Metal, raised", "CUDA", "CPU"],
)
def test_a_machine(info: Any, gpu: str, chip: str, memory: int, usable: int, device: Any) -> None:
    device(info, gpu)
    found = machine()
    assert (found.chip, found.gpu) == (chip, gpu)
    if memory:
        assert (found.memory, found.usable) == (memory, usable)
    assert found.versions["mlx"] == mx.__version__
    said = json.dumps(found._asdict())
    assert not [name for name in ("GPU-0", "0000:01:00.0", socket.gethostname()) if name in said]


@pytest.mark.parametrize(("said", "limit"), [("0\n", 0), ("57344\n", 57344 << 20), ("", None)])
def test_the_wired_limit_is_a_mac_s(said: str, limit: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    done = subprocess.CompletedProcess([], 0, stdout=said)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: done)
    monkeypatch.setattr(sys, "platform", "darwin")
    assert wired_limit() == limit
    monkeypatch.setattr(sys, "platform", "linux")
    assert wired_limit() is None


def test_a_mac_without_such_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    for error in (FileNotFoundError(2, "sysctl"), subprocess.CalledProcessError(1, "sysctl")):

        def run(*_: Any, error: Exception = error, **__: Any) -> None:
            raise error

        monkeypatch.setattr(subprocess, "run", run)
        assert wired_limit() is None


def test_ffmpeg_is_loaded_and_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    version, lacking = ffmpeg()
    assert version[:1].isdigit() and lacking == ()
    monkeypatch.setattr(room, "CODECS", ("aac", "no such codec"))
    assert ffmpeg()[1] == ("no such codec",)
    monkeypatch.setitem(sys.modules, "av", None)
    assert ffmpeg() == ("", room.CODECS) and "aac" in CODECS


def test_the_network_is_asked_for_a_name_and_no_longer_than_it_may_take(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[Any] = []

    def known(host: str, port: int) -> list[Any]:
        asked.append(host)
        return [(host, port)]

    def unknown(*_: Any) -> Any:
        raise socket.gaierror(-2, "Name or service not known")

    def silent(*_: Any) -> Any:
        time.sleep(0.3)
        return [1]

    for answer, found in ((known, True), (unknown, False), (silent, False)):
        monkeypatch.setattr(socket, "getaddrinfo", answer)
        assert hub_resolves(wait=0.05) is found
    assert len(asked) == 1 and "." in asked[0]


def test_what_is_around(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "hub_resolves", lambda: pytest.fail("nobody asked"))
    found = surroundings(tmp_path / "not" / "yet", network=False)
    assert found.network is None and found.free is not None and found.free > 0

    def gone(_: Path) -> int:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(room, "free_space", gone)
    assert surroundings(tmp_path, network=False).free is None
