"""What a long run needs from macOS: no idle sleep, and resident weights. Both do nothing elsewhere."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import mlx.core as mx


@contextmanager
def keep_awake() -> Iterator[None]:
    """Hold a power assertion while the block runs. The display may still turn off, which is wanted:
    the GPU watchdog acts for the sake of a display that is on."""
    program = shutil.which("caffeinate") if sys.platform == "darwin" else None
    if program is None:
        yield
        return
    try:  # -w ends it with this process, however this process ends
        helper = subprocess.Popen([program, "-i", "-s", "-w", str(os.getpid())])
    except OSError:  # the run is worth more than the night's certainty
        yield
        return
    try:
        yield
    finally:
        helper.terminate()
        helper.wait()


@contextmanager
def wired_memory() -> Iterator[None]:
    """Ask Metal to keep arrays resident up to the recommended working set (macOS 15 and later)."""
    limit = mx.device_info().get("max_recommended_working_set_size")  # of Metal's devices alone
    if not limit:
        yield
        return
    previous = mx.set_wired_limit(int(limit))
    try:
        yield
    finally:
        mx.synchronize()  # the limit must not drop below what running work still uses
        mx.set_wired_limit(previous)
