"""A model with random weights at any precision, for benchmarks and tests."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn

from acestep_mlx.families.model_folder import quantizable
from acestep_mlx.families.protocol import Family


def quantised_model(family: Family, config: Any, bits: int | None, dtype: mx.Dtype) -> Any:
    """A transformer with random weights in the given precision, made layer by layer."""
    transformer = family.components["transformer"]
    model: nn.Module = transformer.module(config)
    for path, module in model.named_modules():
        own = {k: v for k, v in module.items() if isinstance(v, mx.array) and not k.startswith("_")}
        for name, value in own.items():
            module[name] = (mx.random.normal(value.shape) * 0.02).astype(dtype)
        if bits is not None and quantizable(transformer, path, module):
            parent: Any = model
            *outer, leaf = path.split(".")
            for part in outer:
                parent = parent[int(part)] if isinstance(parent, list) else parent[part]
            key = int(leaf) if isinstance(parent, list) else leaf
            parent[key] = module.to_quantized(group_size=64, bits=bits)
            mx.eval(parent[key].parameters())
        else:
            mx.eval(own and [module[name] for name in own])
    model.freeze()
    model.eval()
    return model
