"""What MLX runs on, and what its back ends say when they give up. Imports nothing, so that all may ask it."""

from __future__ import annotations

import importlib.util
import platform
import sys
from typing import Literal

from ..errors import AceStepError

OLDEST_MACOS = (14, 0)  # for which MLX is built
#: What a Python that was built for an old macOS is told on any newer one.
UNKNOWN_MACOS = (10, 16)

# Pieces of what Metal, CUDA and the allocators say in a RuntimeError, in lower case.
_OUT_OF_MEMORY = (
    "unable to allocate",
    "out of memory",
    "outofmemory",
    "insufficient memory",
    "maximum allowed buffer size",
    "[metal::malloc] resource limit",
    "cudamalloc",
    "bad_alloc",
)
_WATCHDOG = ("gpu timeout", "impacting interactivity", "callbackerrortimeout")
_PEER_LOST = ("[ring]", "connection to a peer", "[mpi]", "[nccl]", "[jaccl]")
_GPU_LOST = ("command buffer execution failed", "cuda error", "an illegal memory access")

Fault = Literal["memory", "watchdog", "peer", "gpu"]


def fault_of(error: BaseException) -> Fault | None:
    """What has happened to a computation: too little memory, Metal's watchdog, another rank lost, or
    something else on the GPU; None where the error is of none of these kinds.
    """
    if isinstance(error, MemoryError):
        return "memory"
    if not isinstance(error, RuntimeError):
        return None
    said = str(error).lower()
    kinds: tuple[tuple[Fault, tuple[str, ...]], ...] = (
        ("memory", _OUT_OF_MEMORY),
        ("watchdog", _WATCHDOG),
        ("peer", _PEER_LOST),
        ("gpu", _GPU_LOST),
    )
    return next((kind for kind, pieces in kinds if any(piece in said for piece in pieces)), None)


#: What to do about a fault where no configuration says more; `{error}` is what the back end said.
ADVICE: dict[Fault, str] = {
    "memory": "out of memory ({error}). What helps: a quantised model (convert -q --q-bits 8, or 4), "
    "something shorter, closing other programs",
    "watchdog": "macOS stopped the GPU because one piece of work took too long (its watchdog). What helps: "
    "let the display sleep, close what draws on it, something shorter; see docs/mac.md",
    "peer": "another machine or process of this run ended or lost its connection ({error})",
    "gpu": "the GPU gave up ({error}). Start again; where that happens again, restart the machine",
}


def check_machine() -> None:
    """AceStepError where MLX cannot work: on an Intel Mac, an old macOS, or a Linux without its back end."""
    if sys.platform == "darwin":
        _check_mac(platform.machine(), platform.mac_ver()[0])
    if importlib.util.find_spec("mlx") is None:
        what = (
            "acestep-mlx" if sys.platform == "darwin" else "acestep-mlx[cpu] (or [cuda13] with an NVIDIA GPU)"
        )
        raise AceStepError(f"MLX is not installed; install {what}")


def _check_mac(machine: str, version: str) -> None:
    if machine != "arm64":
        raise AceStepError(
            f"this Python runs on {machine or 'an unknown processor'}, and MLX needs Apple silicon (M1 or "
            "newer); on such a Mac install a Python for arm64 (this one is for Intel, under Rosetta)"
        )
    found = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    if found and found[:2] != UNKNOWN_MACOS and found < OLDEST_MACOS:
        raise AceStepError(f"this is macOS {version}, and MLX needs {OLDEST_MACOS[0]} or newer; update macOS")
