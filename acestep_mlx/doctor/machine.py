"""What this machine is: chip, memory, versions, libraries, disk, network. Nothing tells whose it is."""

from __future__ import annotations

import platform
import socket
import subprocess
import sys
import threading
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import mlx.core as mx

from .. import __version__
from ..io.disk import free_space
from ..nn.device import machine_memory
from ..training.memory import budget

#: what only FFmpeg's libraries decode
CODECS = ("aac", "alac", "wmav2", "ape", "ac3")
RESOLVED = 3.0  # seconds that a name server may take


class Machine(NamedTuple):
    """chip: as the device calls itself. gpu: `Metal`, `CUDA`, or "" without one. memory, usable: bytes of the
    device, and what a run may take of them. wired_limit: bytes that macOS was told to let the GPU hold; 0
    for its own choice, None elsewhere.
    """

    chip: str
    gpu: str
    system: str
    memory: int
    usable: int
    wired_limit: int | None
    versions: dict[str, str]


class Surroundings(NamedTuple):
    """ffmpeg: its libraries' version, "" without them. undecoded: what they cannot read. free: bytes on the
    disk where models are kept, None where it cannot be asked. network: whether the hub's name is known; None
    where that was not asked.
    """

    ffmpeg: str
    undecoded: tuple[str, ...]
    free: int | None
    network: bool | None


def machine() -> Machine:
    """Of the device that MLX works on."""
    info = mx.device_info()
    gpu = ""
    if mx.default_device().type == mx.DeviceType.gpu:
        gpu = "Metal" if mx.metal.is_available() else "CUDA"
    chip = str(info.get("device_name") or info.get("architecture") or platform.machine())
    return Machine(chip, gpu, system(), machine_memory(), int(budget()), wired_limit(), versions())


def system() -> str:
    """`macOS 15.5 arm64`, `Linux x86_64`."""
    name = f"macOS {platform.mac_ver()[0]}" if sys.platform == "darwin" else platform.system()
    return f"{name} {platform.machine()}"


def wired_limit() -> int | None:
    """See `Machine`."""
    if sys.platform != "darwin":
        return None
    command = ["/usr/sbin/sysctl", "-n", "iogpu.wired_limit_mb"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True).stdout
        return int(said) << 20
    except (OSError, ValueError, subprocess.SubprocessError):  # macOS has no such limit
        return None


def versions() -> dict[str, str]:
    """Of this program, Python, and what computes."""
    found = {"acestep-mlx": __version__, "python": platform.python_version()}
    for package in ("mlx", "mlx-metal", "mlx-lm", "numpy", "transformers"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def surroundings(models: Path, *, network: bool) -> Surroundings:
    """models: where they are kept. network: whether to ask."""
    try:
        free: int | None = free_space(models)
    except OSError:
        free = None
    return Surroundings(*ffmpeg(), free, hub_resolves() if network else None)


def ffmpeg() -> tuple[str, tuple[str, ...]]:
    """Its version, and which of CODECS it lacks; "" and all of them where it cannot be loaded."""
    try:
        import av
        from av.codec import Codec
    except (ImportError, OSError):
        return "", CODECS
    lacking = []
    for name in CODECS:
        try:
            Codec(name, "r")
        except ValueError:
            lacking.append(name)
    return str(av.ffmpeg_version_info), tuple(lacking)


def hub_resolves(wait: float = RESOLVED) -> bool:
    """Whether a name server knows the hub: asked in a thread, for it may take minutes to say no."""
    from huggingface_hub import constants

    host = urlsplit(constants.ENDPOINT).hostname
    found: list[bool] = []

    def ask() -> None:
        try:
            found.append(bool(socket.getaddrinfo(host, 443)))
        except OSError:
            found.append(False)

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(wait)
    return found == [True]
