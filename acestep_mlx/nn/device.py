"""Which back end MLX works on."""

from __future__ import annotations

import mlx.core as mx


def on_cpu() -> bool:
    """Whether work goes to the CPU back end."""
    return mx.default_device().type == mx.DeviceType.cpu
