"""LoRA training and generation for the ACE-Step music models, on MLX."""

from __future__ import annotations

import os
from importlib import import_module
from typing import Any

from .io.backend import check_machine

__version__ = "0.2.0"

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # read by huggingface_hub when it is imported
# Read by MLX before its first product, once: float32 products are float32 on the M5 and on CUDA, too.
os.environ.setdefault("MLX_ENABLE_TF32", "0")

# Loaded on first use, so that `acestep-mlx --help` imports neither MLX nor anything heavy.
_EXPORTS = {
    "ACEStepPipeline": "acestep_mlx.pipeline",
    "convert": "acestep_mlx.convert.converter",
    "train": "acestep_mlx.training.run",
}
__all__ = ["ACEStepPipeline", "__version__", "convert", "train"]


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        check_machine()
        return getattr(import_module(_EXPORTS[name]), name)
    raise AttributeError(f"module 'acestep_mlx' has no attribute {name!r}")
