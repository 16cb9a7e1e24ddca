"""LoKr files that LyCORIS and peft have written themselves, against what they do to the reference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten

from acestep_mlx.lora.apply import apply_loras
from acestep_mlx.lora.formats.read import read_lora

from ..later import Later
from .test_v15_lora_parity import GIVEN, originals_names, velocity
from .test_v15_transformer_parity import pair
from .v15 import as_mlx, relative_error, torch

lycoris, peft = Later("lycoris"), Later("peft")
pytestmark = [pytest.mark.parity, pytest.mark.slow]


# Of LyCORIS; which factors are whole and which are products depends on sizes and ranks.
SETTINGS: dict[str, dict[str, Any]] = {
    "w2 a product": {"lora_dim": 2, "alpha": 3, "factor": 4},
    "automatic factor": {"lora_dim": 1, "alpha": 2},
    "both products": {"lora_dim": 1, "alpha": 3, "factor": 4, "decompose_both": True},
    "whole matrices": {"lora_dim": 4, "alpha": 1, "full_matrix": True},
    "rank too large": {"lora_dim": 10000, "alpha": 1},  # as the official trainer's default
    "rsLoRA": {"lora_dim": 4, "alpha": 6, "factor": 4, "rs_lora": True},
    "scalar": {"lora_dim": 2, "alpha": 3, "factor": 2, "use_scalar": True},
    "unbalanced": {"lora_dim": 2, "alpha": 5, "factor": 2, "unbalanced_factorization": True},
    "DoRA": {"lora_dim": 2, "alpha": 3, "factor": 4, "weight_decompose": True},
    "DoRA, whole": {"lora_dim": 10000, "alpha": 1, "weight_decompose": True},
}


def train(theirs: Any, path: Path, **settings: Any) -> None:
    """Leave a LoKr with weights as if trained on the reference, and in a file."""
    lycoris.LycorisNetwork.apply_preset({"target_module": ["AceStepAttention"], "module_algo_map": {}})
    network = lycoris.LycorisNetwork(theirs, network_module="lokr", **settings)
    network.apply_to()
    with torch.no_grad():
        for i, (name, parameter) in enumerate(sorted(network.named_parameters())):
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i))
            parameter.mul_(1 + 0.2 * noise) if "dora_scale" in name else parameter.add_(0.3 * noise)
    network.save_weights(str(path), None, {})


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("names", ["original", "diffusers"])
@pytest.mark.parametrize("name", SETTINGS)
def test_what_lycoris_trains_is_heard_here(
    name: str, names: str, fused: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """By its forward pass, as it was trained; its own merging multiplies the scale in twice (4.1.3)."""
    ours, theirs = pair()
    plain = velocity(theirs)
    if names == "original":  # as the official trainer and Side-Step have it
        originals_names(theirs, monkeypatch)
    train(theirs, tmp_path / "lokr_weights.safetensors", **SETTINGS[name])
    expected = velocity(theirs)
    weights = read_lora(tmp_path)
    assert len(weights.modules) == 32 and weights.is_lokr and not weights.unscaled
    before = dict(tree_flatten(ours.parameters()))
    apply_loras(ours, [(weights, 1.0)], fused=fused)
    assert relative_error(ours(**as_mlx(GIVEN)), expected) <= 2e-5
    assert relative_error(mx.array(plain), expected) > 1e-2
    apply_loras(ours, [])
    assert all(value is before[path] for path, value in tree_flatten(ours.parameters()))


@pytest.mark.parametrize(
    "settings",
    [
        {"r": 2, "alpha": 3, "decompose_factor": 4},
        {"r": 1, "alpha": 3, "decompose_factor": 4, "decompose_both": True},
        {"r": 64, "alpha": 16},
        {
            "r": 2, "alpha": 4, "decompose_factor": 4, "rank_pattern": {"k_proj": 1},
            "alpha_pattern": {"v_proj": 1},
        },
    ],
    ids=str,
)  # fmt: skip
def test_what_peft_trains_is_heard_here(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """peft multiplies alpha/rank in for whole matrices too."""
    ours, theirs = pair()
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "up_proj"]
    config = peft.LoKrConfig(**settings, target_modules=targets, init_weights=False)
    model = peft.get_peft_model(originals_names(theirs, monkeypatch), config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lokr" in name:
                parameter.mul_(0.3)
    model.save_pretrained(str(tmp_path))
    expected = velocity(model)
    weights = read_lora(tmp_path)
    assert weights.is_lokr and not weights.unscaled
    apply_loras(ours, [(weights, 1.0)])
    assert relative_error(ours(**as_mlx(GIVEN)), expected) <= 2e-5
