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
    # -w ends it with this process, however this process ends.
    helper = subprocess.Popen([program, "-i", "-s", "-w", str(os.getpid())])
    try:
        yield
    finally:
        helper.terminate()
        helper.wait()


@contextmanager
def wired_memory() -> Iterator[None]:
    """Ask Metal to keep arrays resident up to the recommended working set (macOS 15 and later)."""
    if not mx.metal.is_available():
        yield
        return
    previous = mx.set_wired_limit(int(mx.device_info()["max_recommended_working_set_size"]))
    try:
        yield
    finally:
        mx.synchronize()  # the limit must not drop below what running work still uses
        mx.set_wired_limit(previous)
