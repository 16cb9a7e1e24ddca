"""ACE-Step 1.5 beside diffusers: random reference modules, and ours with their weights."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from acestep_mlx.convert.plan import translate
from acestep_mlx.families.v15.keymap import KEYMAPS

from ..later import Later

torch = Later("torch")


def relative_error(ours: mx.array, theirs: Any) -> float:
    """‖ours − theirs‖ / ‖theirs‖ in float64."""
    a = np.array(ours.astype(mx.float32)).astype(np.float64)
    b = theirs.detach().double().numpy() if isinstance(theirs, torch.Tensor) else np.asarray(theirs)
    assert a.shape == b.shape
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def randomise(module: Any, seed: int = 0) -> Any:
    """Every parameter random, of sizes that keep signals alive; norms and tables are not left at 1 and 0."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            leaf = name.rpartition(".")[2]
            if leaf == "weight" and parameter.ndim == 1:
                parameter.copy_(1 + 0.3 * noise)
            elif leaf == "weight_g":
                parameter.copy_(0.35 + 0.1 * noise)  # residual units add up
            elif leaf in ("weight", "weight_v"):
                parameter.copy_(noise / parameter[0].numel() ** 0.5)
            else:
                parameter.copy_(0.3 * noise)
    return module.eval()


def same_weights(component: str, ours: nn.Module, theirs: Any) -> Any:
    """`ours` with the tensors of the reference module, through the key map and strictly."""
    tensors = {name: mx.array(value.numpy()) for name, value in theirs.state_dict().items()}
    ours.load_weights(list(translate(component, KEYMAPS[component], ours, tensors).items()), strict=True)
    return ours.eval()


def normal(*shape: int, seed: int = 1) -> np.ndarray:
    """Standard normal float32."""
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def as_torch(arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    return {name: torch.from_numpy(value) for name, value in arrays.items()}


def as_mlx(arrays: dict[str, np.ndarray]) -> dict[str, mx.array]:
    return {name: mx.array(value) for name, value in arrays.items()}
