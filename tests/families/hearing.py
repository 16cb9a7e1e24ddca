"""Encoders of milliseconds for the self-supervised loss, in files like those of transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from acestep_mlx.families.v1.ssl.alignment import Alignment
from acestep_mlx.families.v1.ssl.encoders import ENCODERS, length_of
from acestep_mlx.families.v1.ssl.hubert import KERNELS
from acestep_mlx.families.v1.ssl.projectors import Projectors, Tap
from acestep_mlx.families.v1.ssl.projectors import shapes as projector_shapes

from ..training import tiny

#: of the miniature's projectors
WIDTHS = {"mert": 24, "m-hubert": 16}
OPTIONS = {encoder.name: encoder.option for encoder in ENCODERS.values()}


def shapes(width: int, channels: int = 4, layers: int = 1) -> dict[str, tuple[int, ...]]:
    """Of a small network with four groups of positions."""
    found: dict[str, tuple[int, ...]] = {"masked_spec_embed": (width,)}
    for i, kernel in enumerate(KERNELS):
        conv = f"feature_extractor.conv_layers.{i}"
        found[f"{conv}.conv.weight"] = (channels, channels if i else 1, kernel)
    norm, conv = "feature_extractor.conv_layers.0.layer_norm", "encoder.pos_conv_embed.conv"
    found |= {f"{norm}.{leaf}": (channels,) for leaf in ("weight", "bias")}
    found |= {f"feature_projection.layer_norm.{leaf}": (channels,) for leaf in ("weight", "bias")}
    dense = {"feature_projection.projection": (width, channels)}
    found |= {f"{conv}.weight_g": (1, 1, 128), f"{conv}.weight_v": (width, width // 4, 128)}
    found |= {f"{conv}.bias": (width,)}
    norms = ["encoder.layer_norm"]
    for i in range(layers):
        layer = f"encoder.layers.{i}"
        dense |= {f"{layer}.attention.{name}_proj": (width, width) for name in ("q", "k", "v", "out")}
        dense[f"{layer}.feed_forward.intermediate_dense"] = (2 * width, width)
        dense[f"{layer}.feed_forward.output_dense"] = (width, 2 * width)
        norms += [f"{layer}.layer_norm", f"{layer}.final_layer_norm"]
    for name, shape in dense.items():
        found |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    return found | {f"{name}.{leaf}": (width,) for name in norms for leaf in ("weight", "bias")}


def write(folder: Path, name: str, *, seed: int = 0, width: int | None = None, **change: Any) -> Path:
    """`model.safetensors` and a config.json of the encoder called so; its folder. change: of the config."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for key, shape in shapes(width or WIDTHS[name]).items():
        value = rng.standard_normal(shape) / max(1.0, np.prod(shape[1:])) ** 0.5
        norm = key.endswith("norm.weight") or key.endswith("weight_g")
        tensors[key] = mx.array((value * 0.1 + 1 if norm else value).astype(np.float32))
    mx.save_safetensors(str(folder / "model.safetensors"), tensors, {"format": "pt"})
    config = {"num_attention_heads": 4, "do_stable_layer_norm": ENCODERS[name].pre_norm, **change}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def options(folder: Path, weight: float = 0.5, **change: Any) -> dict[str, Any]:
    """Of a run with both encoders, which are written into `folder` where they are not there yet."""
    files = {OPTIONS[name]: folder / name for name in WIDTHS}
    for name in WIDTHS:
        if not (folder / name).is_dir():
            write(folder / name, name)
    return {"ace_step_ssl_loss_weight": weight, **{k: str(v) for k, v in files.items()}, **change}


def alignment(weight: float = 1.0) -> Alignment:
    """The loss of `training.tiny`'s model, with random projectors behind its first block."""
    taps = [Tap("mert", 0, 6), Tap("m-hubert", 0, 5)]
    tensors = {
        k: mx.random.normal(shape) * 0.2 for k, shape in projector_shapes(taps, tiny.CONFIG.dim).items()
    }
    return Alignment(Projectors(taps, tensors), weight, ("mert", "m-hubert"))


def heard(batch: dict[str, mx.array], lengths: dict[str, list[int]]) -> dict[str, mx.array]:
    """A batch with random features of these lengths."""
    found = dict(batch)
    for (name, own), width in zip(lengths.items(), (6, 5), strict=True):
        found[name] = mx.random.normal((len(own), 60, width)).astype(mx.float16)
        found[length_of(name)] = mx.array(own)
    return found
