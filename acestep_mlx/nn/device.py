"""Which back end MLX works on: the one place where code for the CPU and code for a GPU part.

Tests take the GPU's side on the CPU, where both give the same up to float32's rounding. On a GPU two things
are less exact than that: functions of `mx.fast` and fused kernels use fast exponentials (about 1e-6), and
products, convolutions and attention of float32 arrays are made of TF32 parts (ten bits, about 1e-3) on the M5
and on CUDA, unless MLX_ENABLE_TF32 is 0 before MLX's first product. Importing `acestep_mlx` sets it, because
conversion, encoding and fusing count on float32; whoever sets it to 1 has them less exact, and faster.
"""

from __future__ import annotations

import mlx.core as mx


def on_cpu() -> bool:
    """Whether work goes to the CPU back end."""
    return mx.default_device().type == mx.DeviceType.cpu
