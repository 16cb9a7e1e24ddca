"""What MLX runs on: machines that it does not know say so in a line, and what a GPU says becomes one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import acestep_mlx
from acestep_mlx.cli import main
from acestep_mlx.errors import AceStepError
from acestep_mlx.io import backend

PROJECT = Path(__file__).resolve().parents[2]


def mac(patch: pytest.MonkeyPatch, machine: str, version: str) -> None:
    """As if on a Mac with this processor and macOS."""
    patch.setattr(sys, "platform", "darwin")
    patch.setattr(backend.platform, "machine", lambda: machine)
    patch.setattr(backend.platform, "mac_ver", lambda: (version, ("", "", ""), machine))


@pytest.mark.parametrize(
    ("machine", "version", "said"),
    [
        ("x86_64", "15.1", "MLX needs Apple silicon"),
        ("x86_64", "12.7.6", "MLX needs Apple silicon"),
        ("i386", "10.13", "MLX needs Apple silicon"),
        ("arm64", "13.6.9", "this is macOS 13.6.9, and MLX needs 14 or newer"),
        ("arm64", "11", "this is macOS 11, and MLX needs 14 or newer"),
        ("arm64", "12.0.1", "this is macOS 12.0.1, and MLX needs 14 or newer"),
    ],
)
def test_a_mac_without_mlx_is_told_so_by_commands_and_by_imports(
    machine: str, version: str, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    mac(monkeypatch, machine, version)
    with pytest.raises(AceStepError, match=said):
        _ = acestep_mlx.train
    with pytest.raises(SystemExit) as ended:
        main(["info", "song.wav"])
    told = capsys.readouterr().err
    assert ended.value.code == 1 and told.startswith("error: ") and said in told and told.count("\n") == 1


@pytest.mark.parametrize("version", ["14.0", "14.7.1", "15", "26.2", "10.16", ""])
def test_a_mac_that_mlx_knows_passes(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """10.16 is what a Python of old says on every newer macOS."""
    mac(monkeypatch, "arm64", version)
    backend.check_machine()


@pytest.mark.parametrize(("platform", "said"), [("linux", r"acestep-mlx\[cpu\]"), ("darwin", "acestep-mlx$")])
def test_without_mlx_the_line_says_what_to_install(
    platform: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    mac(monkeypatch, "arm64", "15.0")
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(backend.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(AceStepError, match=said):
        backend.check_machine()


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["--version"]])
def test_help_is_there_on_every_machine(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    mac(monkeypatch, "x86_64", "12.0")
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 0


# ── float32 products ─────────────────────────────────────────────────────────────────────────────────
@pytest.mark.slow_after(1)
@pytest.mark.parametrize(("given", "found"), [(None, "0"), ("1", "1"), ("0", "0")])
def test_products_in_float32_are_exact_in_every_command_unless_the_user_says_otherwise(
    given: str | None, found: str
) -> None:
    """MLX reads it once, before its first product: so it is there before MLX is."""
    environment = {k: v for k, v in os.environ.items() if k != "MLX_ENABLE_TF32"}
    environment |= {"PYTHONPATH": str(PROJECT)} | ({"MLX_ENABLE_TF32": given} if given else {})
    code = "import acestep_mlx, os, sys; print(os.environ['MLX_ENABLE_TF32'], 'mlx' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.stdout.split() == [found, "False"], done.stderr


def test_they_are_in_these_tests() -> None:
    assert os.environ["MLX_ENABLE_TF32"] == "0"


# ── what back ends say ───────────────────────────────────────────────────────────────────────────────
SAID = "[METAL] Command buffer execution failed: "
FAULTS = {
    f"{SAID}Insufficient Memory (00000008:kIOGPUCommandBufferCallbackErrorOutOfMemory).": "memory",
    "[malloc] Unable to allocate 34359738368 bytes.": "memory",
    "[metal::malloc] Resource limit (499000) exceeded.": "memory",
    "[metal::malloc] Attempting to allocate 9 bytes which is greater than the maximum allowed buffer size of "
    "8 bytes.": "memory",
    "cudaMallocAsync(&data, size, stream) failed: out of memory": "memory",
    f"{SAID}Caused GPU Timeout Error (00000002:kIOGPUCommandBufferCallbackErrorTimeout).": "watchdog",
    f"{SAID}Impacting Interactivity (0000000e:kIOGPUCommandBufferCallbackErrorImpactingInteractivity).":
        "watchdog",
    f"{SAID}Discarded (victim of GPU error/recovery) (00000005:...ErrorInnocentVictim).": "gpu",
    f"{SAID}Caused GPU Hang Error (00000003:kIOGPUCommandBufferCallbackErrorHang).": "gpu",
    "[ring] connection to a peer was lost": "peer",
    "shapes (3) and (4) cannot be broadcast": None,
}  # fmt: skip


@pytest.mark.parametrize(("text", "kind"), FAULTS.items(), ids=lambda x: str(x)[-30:])
def test_what_a_back_end_says_is_known_for_what_it_is(
    text: str, kind: backend.Fault | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And is one line with the way on in every command."""
    assert backend.fault_of(RuntimeError(text)) == kind
    assert backend.fault_of(ValueError(text)) is None

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError(text)

    monkeypatch.setattr("acestep_mlx.cli.cli.main", broken)
    if kind is None:
        with pytest.raises(RuntimeError):
            main(["info", "x"])
        return
    with pytest.raises(SystemExit) as ended:
        main(["info", "x"])
    told = capsys.readouterr().err
    assert ended.value.code == 1 and told.startswith("error: ") and told.count("\n") == 1
    words = {
        "memory": "--q-bits 8",
        "watchdog": "let the display sleep",
        "gpu": "Start again",
        "peer": "another",
    }
    assert words[kind] in told
    with pytest.raises(RuntimeError):
        main(["--debug", "info", "x"])
