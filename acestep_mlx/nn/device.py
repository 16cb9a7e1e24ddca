"""Which back end MLX works on: the one place where code for the CPU and code for a GPU part; and its memory.

Tests take the GPU's side on the CPU, where both give the same up to float32's rounding. On a GPU two things
are less exact than that: functions of `mx.fast` and fused kernels use fast exponentials (about 1e-6), and
products, convolutions and attention of float32 arrays are made of TF32 parts (ten bits, about 1e-3) on the M5
and on CUDA, unless MLX_ENABLE_TF32 is 0 before MLX's first product. Importing `acestep_mlx` sets it, because
conversion, encoding and fusing count on float32; whoever sets it to 1 has them less exact, and faster.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import mlx.core as mx


def on_cpu() -> bool:
    """Whether work goes to the CPU back end."""
    return mx.default_device().type == mx.DeviceType.cpu


def attention_is_fused() -> bool:
    """Whether `mx.fast`'s attention holds no scores where no gradient is asked for, as on Metal."""
    return not on_cpu() and mx.metal.is_available()


def attention_gradient_is_fused() -> bool:
    """Whether `mx.fast`'s attention has a gradient in one kernel, as on CUDA; on Metal it is spelled out."""
    return not on_cpu() and not mx.metal.is_available()


def machine_memory() -> int:
    """Bytes of memory of the device that MLX works on: a Mac's, an NVIDIA card's own, or the processor's."""
    info = mx.device_info()
    found = info.get("memory_size", info.get("total_memory"))  # Metal, CUDA; the CPU's says neither
    return int(found) if found else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def cache_limit() -> int:
    """Bytes of freed buffers that MLX may keep for reuse while songs are encoded or made."""
    return min(2 << 30, machine_memory() // 16)


@contextmanager
def buffers_kept() -> Iterator[None]:
    """For steps that are all alike: at least `cache_limit` bytes of freed buffers are kept, afterwards none.

    On a GPU MLX keeps more by itself; on a CPU 32 MB, and fresh pages are slow there.
    """
    limit = cache_limit()
    before = mx.set_cache_limit(limit)
    if before >= limit:
        mx.set_cache_limit(before)
    try:
        yield
    finally:
        if before < limit:
            mx.set_cache_limit(before)
            mx.clear_cache()
