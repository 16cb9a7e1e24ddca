"""LoRAs of ACE-Step 1.5 in the programs that load them: diffusers' pipeline, peft on the original's names."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from acestep_mlx.cli.export import notes, programs
from acestep_mlx.families.v15.dit import ACEStep15Transformer
from acestep_mlx.families.v15.lora import ATTENTION, MLP
from acestep_mlx.lora.apply import apply_loras
from acestep_mlx.lora.formats.read import FILE_NAME, PEFT_FILE, read_lora
from acestep_mlx.lora.formats.write import write_lora, write_peft_folder
from acestep_mlx.lora.surgery import LoRASpec, adapter_modules, from_model, inject
from acestep_mlx.lora.weights import LoRAWeights

from ..later import Later
from . import reference
from .test_v15_transformer_parity import inputs, pair
from .v15 import as_mlx, as_torch, relative_error, torch

peft = Later("peft")
pytestmark = [pytest.mark.parity, pytest.mark.slow]

GIVEN = inputs(29)
SPECS = {
    "alpha ≠ rank": LoRASpec(rank=4, alpha=10, targets=ATTENTION),
    "rsLoRA": LoRASpec(rank=8, alpha=2, use_rslora=True, targets=ATTENTION),
    "MLP": LoRASpec(rank=4, alpha=3, targets=(*ATTENTION, *MLP)),
    "MLP alone": LoRASpec(rank=4, alpha=7, targets=MLP),
    "one projection": LoRASpec(rank=2, alpha=5, targets=("layers.1.self_attn.v_proj",)),
    "DoRA": LoRASpec(rank=4, alpha=10, use_dora=True, targets=ATTENTION),
    "DoRA, rsLoRA, MLP": LoRASpec(
        rank=4, alpha=3, use_rslora=True, use_dora=True, targets=(*ATTENTION, *MLP)
    ),
}
# Where diffusers looks for its own names only, it does not see the original's.
UNSEEN = ("MLP alone", "one projection")


def trained(ours: ACEStep15Transformer, spec: LoRASpec) -> LoRAWeights:
    """The LoRA after training of a kind: B and the magnitudes change the velocity visibly."""
    inject(ours, spec, seed=1)
    for i, layer in enumerate(adapter_modules(ours).values()):
        key = mx.random.key(i)
        layer.lora_b = 0.3 * mx.random.normal(layer.lora_b.shape, key=key)
        if "m" in layer:
            layer.m = layer.m * (1 + 0.2 * mx.random.normal(layer.m.shape, key=key))
    return from_model(ours, spec)


def velocity(theirs: Any) -> np.ndarray:
    with torch.no_grad():
        return theirs(**as_torch(GIVEN)).sample.numpy()


def load_in_diffusers(theirs: Any, *where: str, **options: str) -> dict[str, Any]:
    """As its users do; returns the LoRA layers by path."""
    from diffusers import AceStepPipeline

    names = ("vae", "text_encoder", "tokenizer", "condition_encoder", "scheduler")
    pipe = AceStepPipeline(transformer=theirs, **dict.fromkeys(names))
    pipe.load_lora_weights(*where, adapter_name="x", **options)
    layers = {n: m for n, m in theirs.named_modules() if isinstance(m, peft.tuners.lora.LoraLayer)}
    assert all(layer.scaling["x"] == 1.0 for layer in layers.values())
    return layers


def file_of(
    kind: str, weights: LoRAWeights, base: Any, folder: Path
) -> tuple[tuple[str, ...], dict[str, str]]:
    """What diffusers is given: the file of a format, or peft's folder with the file's name."""
    if kind == "peft":
        write_peft_folder(folder / "peft", weights)
        return (str(folder / "peft"),), {"weight_name": PEFT_FILE}
    return (str(write_lora(folder / "x.safetensors", weights, kind, base=base)),), {}


@pytest.mark.parametrize("kind", ["diffusers", "peft"])
@pytest.mark.parametrize("name", SPECS)
def test_diffusers_hears_what_was_trained(kind: str, name: str, tmp_path: Path) -> None:
    ours, theirs = pair()
    plain = velocity(theirs)
    weights = trained(ours, SPECS[name])
    given, options = file_of(kind, weights, ours, tmp_path)
    layers = load_in_diffusers(theirs, *given, **options)
    announced = "diffusers" in programs(weights, kind, False)
    assert announced == (kind == "diffusers" or name not in UNSEEN)
    assert len(layers) == (len(weights.modules) if announced else 0)
    if not announced:
        return
    expected = velocity(theirs)
    assert relative_error(ours(**as_mlx(GIVEN)), expected) <= 1e-5
    assert relative_error(mx.array(plain), expected) > 1e-2  # the LoRA does something here


@pytest.mark.parametrize("name", ["alpha ≠ rank", "DoRA, rsLoRA, MLP"])
def test_diffusers_takes_the_output_of_a_run(name: str, tmp_path: Path) -> None:
    """The file that training leaves behind, by its folder alone."""
    ours, theirs = pair()
    weights = trained(ours, SPECS[name])
    write_lora(tmp_path / FILE_NAME, weights)
    assert len(load_in_diffusers(theirs, str(tmp_path))) == len(weights.modules)
    assert relative_error(ours(**as_mlx(GIVEN)), velocity(theirs)) <= 1e-5


@pytest.mark.parametrize("what", ["FOLDER", "FILE"])
def test_the_readme_says_how_diffusers_loads_it(
    what: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Its lines are run as they stand."""
    from diffusers import AceStepPipeline

    readme = (Path(__file__).resolve().parents[2] / "README.md").read_text(encoding="utf-8")
    (line,) = re.findall(rf'`(pipe\.load_lora_weights\("{what}".*?\))`', readme)
    ours, theirs = pair()
    weights = trained(ours, SPECS["rsLoRA"])
    write_peft_folder(tmp_path / "FOLDER", weights)
    file = write_lora(tmp_path / "x.safetensors", weights, "diffusers")
    names = ("vae", "text_encoder", "tokenizer", "condition_encoder", "scheduler")
    monkeypatch.chdir(tmp_path)
    pipe = AceStepPipeline(transformer=theirs, **dict.fromkeys(names))
    exec(line.replace("FILE", str(file)), {"pipe": pipe})
    assert relative_error(ours(**as_mlx(GIVEN)), velocity(theirs)) <= 1e-5


def originals_names(theirs: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The reference with its attentions' modules under the original's names, as the official app has them."""
    for module in list(theirs.modules()):
        if hasattr(module, "to_q"):
            for name in "qkv":
                module.add_module(f"{name}_proj", module._modules.pop(f"to_{name}"))
            module.add_module("o_proj", module._modules.pop("to_out")[0])
            kind = type(module)
    for name in "qkv":
        monkeypatch.setattr(kind, f"to_{name}", property(partial(_part, f"{name}_proj")), raising=False)
    both = property(lambda self: [self.o_proj, torch.nn.Identity()])
    monkeypatch.setattr(kind, "to_out", both, raising=False)
    return theirs


def _part(name: str, module: Any) -> Any:
    return getattr(module, name)


Load = Callable[[Any, Path], Any]


def from_pretrained(theirs: Any, folder: Path) -> Any:
    """What the official app calls."""
    return peft.PeftModel.from_pretrained(theirs, str(folder))


def inject_and_set(theirs: Any, folder: Path) -> Any:
    from safetensors.torch import load_file

    config = peft.LoraConfig.from_pretrained(str(folder))
    model = peft.inject_adapter_in_model(config, theirs)
    state = {k.removeprefix("base_model.model."): v for k, v in load_file(folder / PEFT_FILE).items()}
    result = peft.set_peft_model_state_dict(model, state)
    assert not result.unexpected_keys
    return model


@pytest.mark.parametrize("load", [from_pretrained, inject_and_set])
@pytest.mark.parametrize("name", SPECS)
def test_peft_hears_what_was_trained(
    name: str, load: Load, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The folder's settings say what is left to multiply: nothing, as the scale is in the file."""
    ours, theirs = pair()
    plain = velocity(theirs)
    weights = trained(ours, SPECS[name])
    write_peft_folder(tmp_path / "x", weights)
    model = load(originals_names(theirs, monkeypatch), tmp_path / "x")
    layers = {n: m for n, m in model.named_modules() if isinstance(m, peft.tuners.lora.LoraLayer)}
    assert len(layers) == len(weights.modules)
    expected = velocity(model)
    assert relative_error(ours(**as_mlx(GIVEN)), expected) <= 1e-5
    assert relative_error(mx.array(plain), expected) > 1e-2


def test_mixed_ranks_are_one_rank_in_the_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ours, theirs = pair()
    weights = trained(ours, SPECS["alpha ≠ rank"])
    for i, (path, layer) in enumerate(adapter_modules(ours).items()):
        rank = 1 + i % 4
        layer.lora_a, layer.lora_b = layer.lora_a[:, :rank], layer.lora_b[:rank]
        weights.modules[path].a, weights.modules[path].b = layer.lora_a.T, layer.lora_b.T
    write_peft_folder(tmp_path / "x", weights)
    assert json.loads((tmp_path / "x" / "adapter_config.json").read_text())["r"] == 4
    model = from_pretrained(originals_names(theirs, monkeypatch), tmp_path / "x")
    assert relative_error(ours(**as_mlx(GIVEN)), velocity(model)) <= 1e-5


@pytest.mark.parametrize("kind", ["peft", "comfyui", "diffusers", "simpletuner", "mlx"])
@pytest.mark.parametrize("name", ["alpha ≠ rank", "DoRA, rsLoRA, MLP"])
def test_our_own_files_are_heard_here_as_trained(kind: str, name: str, tmp_path: Path) -> None:
    ours, _ = pair()
    base, _ = pair()
    weights = trained(ours, SPECS[name])
    file = write_lora(tmp_path / "x.safetensors", weights, kind, base=ours)
    apply_loras(base, [(read_lora(file), 1.0)])
    assert relative_error(base(**as_mlx(GIVEN)), np.array(ours(**as_mlx(GIVEN)))) <= 1e-5


@pytest.mark.parametrize("name", ["alpha ≠ rank", "rsLoRA", "DoRA, rsLoRA, MLP"])
def test_simpletuner_starts_from_it(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """`--init_lora` for 1.5: its own function, on the whole model as its trainer has wrapped it, by the
    settings that `export` tells; layers of the encoder stay as they were made.
    """
    adapter = reference.load_training("adapter")
    ours, theirs = pair()
    plain, spec = velocity(theirs), SPECS[name]
    weights = trained(ours, spec)
    file = write_lora(tmp_path / "x.safetensors", weights, "simpletuner")
    (told,) = (line for line in notes(weights, "simpletuner", False) if "its own settings" in line)
    assert f"lora_rank {spec.rank}, lora_alpha {spec.rank} or none" in told
    assert ("use_dora true" in told) == spec.use_dora
    further = re.findall(r"peft_lora_target_modules (.*)", told)
    whole = torch.nn.Module()
    whole.decoder = originals_names(theirs, monkeypatch)
    whole.encoder = torch.nn.ModuleDict({"q_proj": torch.nn.Linear(8, 8)})
    targets = further[0].split() if further else list(ATTENTION)
    config = peft.LoraConfig(
        r=spec.rank, lora_alpha=spec.rank, use_dora=spec.use_dora, target_modules=targets
    )
    model = peft.get_peft_model(whole, config)
    dropped, missing = adapter.load_lora_weights({"transformer": model}, str(file), use_dora=spec.use_dora)
    assert not dropped and all(".encoder." in one for one in missing)
    expected = velocity(whole.decoder)
    assert relative_error(ours(**as_mlx(GIVEN)), expected) <= 1e-5
    assert relative_error(mx.array(plain), expected) > 1e-2


TRAINED = {"r": 4, "lora_alpha": 10, "init_lora_weights": False, "alpha_pattern": {"mlp.up_proj": 3}}


def test_what_peft_saves_is_heard_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As the official trainer and Side-Step end."""
    ours, theirs = pair()
    config = peft.LoraConfig(**TRAINED, target_modules=[*ATTENTION, "up_proj"], rank_pattern={"k_proj": 2})
    model = peft.get_peft_model(originals_names(theirs, monkeypatch), config)
    model.save_pretrained(str(tmp_path))
    weights = read_lora(tmp_path)
    assert len({module.scale for module in weights.modules.values()}) == 3
    apply_loras(ours, [(weights, 1.0)])
    assert relative_error(ours(**as_mlx(GIVEN)), velocity(model)) <= 1e-5


@pytest.mark.parametrize("rslora", [False, True])
def test_what_diffusers_saves_is_heard_here(rslora: bool, tmp_path: Path) -> None:
    """With and without what its newer versions tell of alpha."""
    from diffusers import AceStepPipeline

    ours, theirs = pair()
    targets = ["to_q", "to_k", "to_v", "to_out.0", "up_proj"]
    ranks = {"to_k": 2, "self_attn.to_out.0": 3}
    config = peft.LoraConfig(**TRAINED, target_modules=targets, rank_pattern=ranks, use_rslora=rslora)
    theirs.add_adapter(config, adapter_name="x")
    layers = peft.get_peft_model_state_dict(theirs, adapter_name="x")
    AceStepPipeline.save_lora_weights(
        str(tmp_path), layers, transformer_lora_adapter_metadata=theirs.peft_config["x"].to_dict()
    )
    weights = read_lora(tmp_path)
    assert not weights.unscaled and len({module.scale for module in weights.modules.values()}) == 4
    apply_loras(ours, [(weights, 1.0)])
    assert relative_error(ours(**as_mlx(GIVEN)), velocity(theirs)) <= 1e-5
