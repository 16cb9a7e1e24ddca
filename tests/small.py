"""A model with one block, for tests that make many runs or songs with it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from acestep_mlx.convert.converter import convert
from acestep_mlx.families.v1.geometry import TINY
from acestep_mlx.families.v1.miniature import write_checkpoint

WIDTH = {"num_attention_heads": 2, "inner_dim": 64, "ssl_encoder_depths": [0, 0]}


def small_model(folder: Path, seed: int = 0) -> Path:
    """An MLX folder in float32 whose transformer and lyric encoder have one block each."""
    size = replace(TINY, transformer={**TINY.transformer, "num_layers": 1, **WIDTH}, lyric_layers=1)
    write_checkpoint(folder / "checkpoint", seed=seed, size=size)
    convert(folder / "checkpoint", folder / "model", dtype="float32")
    return folder / "model"
