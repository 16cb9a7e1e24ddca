"""Files that LyCORIS itself has written, against the weights that it makes of the reference model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from acestep_mlx.errors import CheckpointError
from acestep_mlx.families.v1.dit import TransformerConfig
from acestep_mlx.io.safetensors import read_header
from acestep_mlx.lora.formats.read import read_lora
from acestep_mlx.lora.formats.recognise import recognise
from acestep_mlx.lora.formats.write import write_lora
from acestep_mlx.lora.linear import base_linears

from ..families.tiny import tiny
from ..later import Later
from .test_transformer_parity import make_ours, make_reference

torch = Later("torch")
lycoris = Later("lycoris")
pytestmark = pytest.mark.parity

CONFIG = tiny(TransformerConfig)
ATTENTION = {"target_module": ["Attention"], "module_algo_map": {}}  # SimpleTuner's default


def train(theirs: torch.nn.Module, path: Path, **settings: object) -> None:
    """Write a LyCORIS file of the reference's attention with weights as if trained, and merge it."""
    lycoris.LycorisNetwork.apply_preset(ATTENTION)
    network = lycoris.LycorisNetwork(theirs, **settings)
    network.apply_to()
    with torch.no_grad():
        for name, parameter in sorted(network.named_parameters()):
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name)))
            parameter.mul_(1 + 0.2 * noise) if "dora_scale" in name else parameter.add_(0.1 * noise)
    network.save_weights(str(path), None, {})
    network.restore()
    network.merge_to(1.0)


SETTINGS: dict[str, dict[str, object]] = {
    "alpha = rank": {"alpha": 4},
    "alpha ≠ rank": {"alpha": 10},
    "rsLoRA": {"alpha": 10, "rs_lora": True},
    "scalar": {"alpha": 2, "use_scalar": True},
    "DoRA": {"alpha": 10, "weight_decompose": True},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_what_lycoris_writes_changes_the_weights_as_it_does_there(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    theirs = make_reference(CONFIG, monkeypatch)
    ours = make_ours(CONFIG, theirs)
    path = tmp_path / "lycoris.safetensors"
    train(theirs, path, lora_dim=4, **SETTINGS[name])
    weights = read_lora(path)
    assert weights.is_dora == (name == "DoRA")
    linears = base_linears(ours)
    assert {p.split(".")[2] for p in weights.modules} == {"attn", "cross_attn"}
    # what the model never uses is left out and named, and is no reason to refuse the file
    assert {p.rpartition(".")[2] for p in weights.skipped} == {
        "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out",
    }  # fmt: skip
    assert "never uses them" in weights.left_out[0] and not weights.unscaled
    merged = dict(theirs.named_modules())
    for module_path, module in weights.modules.items():
        wanted = merged[module_path].weight.detach().numpy()
        got = np.array(module.adapted_weight(linears[module_path]))
        assert np.abs(got - wanted).max() <= 1e-5 * np.abs(wanted).max(), module_path
        change = wanted - np.array(linears[module_path].weight)
        assert np.abs(change).max() > 1e-2, module_path
    if weights.is_dora:  # and ComfyUI's way where we write it for ComfyUI
        again = read_lora(write_lora(tmp_path / "c.safetensors", weights, "comfyui", base=ours))
        for module_path, module in again.modules.items():
            got = np.array(module.adapted_weight(linears[module_path]))
            wanted = merged[module_path].weight.detach().numpy()
            assert np.abs(got - wanted).max() <= 1e-5 * np.abs(wanted).max(), module_path


def test_dora_of_inputs_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    train(
        make_reference(CONFIG, monkeypatch),
        tmp_path / "x.safetensors",
        weight_decompose=True,
        wd_on_out=False,
    )
    with pytest.raises(CheckpointError, match="factor of inputs"):
        read_lora(tmp_path / "x.safetensors")


@pytest.mark.parametrize("settings", [{}, {"factor": 4, "decompose_both": True}, {"weight_decompose": True}])
def test_lokr_changes_the_weights_as_it_does_there(
    settings: dict[str, object], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """With alpha = rank, as LyCORIS 4.1.3 merges a scale in twice, and hears it once."""
    theirs = make_reference(CONFIG, monkeypatch)
    linears = base_linears(make_ours(CONFIG, theirs))
    train(theirs, tmp_path / "x.safetensors", network_module="lokr", lora_dim=2, alpha=2, **settings)
    weights = read_lora(tmp_path / "x.safetensors")
    assert weights.kind == "LoKr" and weights.skipped and not weights.unscaled
    merged = dict(theirs.named_modules())
    for module_path, module in weights.modules.items():
        wanted = merged[module_path].weight.detach().numpy()
        got = np.array(module.adapted_weight(linears[module_path]))
        assert np.abs(got - wanted).max() <= 1e-5 * np.abs(wanted).max(), module_path
        assert np.abs(wanted - np.array(linears[module_path].weight)).max() > 1e-3, module_path


@pytest.mark.parametrize(
    ("algo", "kind"),
    [("loha", "LyCORIS LoHa"), ("glora", "GLoRA"), ("diag-oft", "OFT")],
)
def test_other_algorithms_are_named(
    algo: str, kind: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "x.safetensors"
    train(make_reference(CONFIG, monkeypatch), path, network_module=algo, lora_dim=4)
    found = recognise(read_header(path).tensors)
    assert found is not None and found.kind == kind and found.model == "ACE-Step v1"
    with pytest.raises(CheckpointError, match=f"holds {kind} .* not supported"):
        read_lora(path)
