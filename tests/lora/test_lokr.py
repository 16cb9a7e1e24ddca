"""LoKr, ΔW = w1 ⊗ w2, trained here and of LyCORIS and Side-Step: read, applied, fused, exported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten
from safetensors.numpy import save_file

from acestep_mlx.cli import main
from acestep_mlx.config.lycoris import as_text, read_lycoris
from acestep_mlx.errors import CheckpointError, ConfigError
from acestep_mlx.families.v1.lora import LORA
from acestep_mlx.families.v15 import FAMILY
from acestep_mlx.lora.apply import apply_loras
from acestep_mlx.lora.formats.read import read_lora
from acestep_mlx.lora.formats.recognise import recognise
from acestep_mlx.lora.formats.write import write_lora
from acestep_mlx.lora.linear import base_linears, dense_weight
from acestep_mlx.lora.lokr import LoKrSpec
from acestep_mlx.lora.surgery import (
    LoRASpec,
    adapter_modules,
    check_start,
    check_start_of,
    from_model,
    inject,
    load_adapters,
)
from acestep_mlx.lora.weights import LoRAModule, LoRAWeights

from ..families.v15 import transformer
from . import readers
from .standin import KINDS, TOKENS, StandIn, make

PATH = "transformer_blocks.1.cross_attn.to_k"  # 64×64 in the stand-in
KEY = "lycoris_transformer_blocks_1_cross_attn_to_k"
Tensors = dict[str, np.ndarray]


def factors(key: str = KEY, *, one: bool = True, two: bool = False, rank: int = 2, **more: float) -> Tensors:
    """w1 4×8 and w2 16×8 of a layer of 64×64; one, two: whether they are whole. more: alpha, dora_scale."""
    rng = np.random.default_rng(5)

    def normal(*shape: int) -> np.ndarray:
        return 0.3 * rng.standard_normal(shape).astype(np.float32)

    found = {"w1": normal(4, 8)} if one else {"w1_a": normal(4, rank), "w1_b": normal(rank, 8)}
    found |= {"w2": normal(16, 8)} if two else {"w2_a": normal(16, rank), "w2_b": normal(rank, 8)}
    tensors = {f"{key}.lokr_{name}": value for name, value in found.items()}
    if "alpha" in more:
        tensors[f"{key}.alpha"] = np.array(more["alpha"], np.float32)
    if "dora" in more:
        tensors[f"{key}.dora_scale"] = np.linspace(0.5, 2, 64, dtype=np.float32).reshape(64, 1)
    return tensors


def delta(tensors: Tensors, key: str = KEY) -> np.ndarray:
    """In float64, with the scale."""
    found = {name.removeprefix(f"{key}.lokr_"): value.astype(np.float64) for name, value in tensors.items()}
    w1 = found["w1"] if "w1" in found else found["w1_a"] @ found["w1_b"]
    w2 = found["w2"] if "w2" in found else found["w2_a"] @ found["w2_b"]
    scale = 1.0
    if f"{key}.alpha" in found and not ("w1" in found and "w2" in found):
        scale = float(found[f"{key}.alpha"]) / found["w2_b" if "w2_b" in found else "w1_b"].shape[0]
    return scale * np.kron(w1, w2)


def saved(tensors: Tensors, folder: Path, name: str = "lokr_weights.safetensors") -> LoRAWeights:
    save_file(tensors, folder / name)
    return read_lora(folder)


FORMS = {
    "w2 a product": {"alpha": 3},
    "both products": {"one": False, "alpha": 5},
    "w1 a product": {"one": False, "two": True, "alpha": 1},
    "whole": {"two": True, "alpha": 7},
    "as many ranks as inputs": {"rank": 8, "alpha": 3},
    "no alpha": {},
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_its_kronecker_product(form: str, tmp_path: Path) -> None:
    tensors = factors(**FORMS[form])  # type: ignore[arg-type]
    weights = saved(tensors, tmp_path)
    module = weights.modules[PATH]
    assert module.shape == (64, 64) and weights.kind == "LoKr" and weights.is_trained
    np.testing.assert_allclose(module.delta(), delta(tensors), atol=1e-6)
    assert weights.unscaled == (form == "no alpha")
    if f"{KEY}.lokr_w1" in tensors:  # else their product is kept
        assert weights.parameter_count == sum(t.size for name, t in tensors.items() if "lokr" in name)


@pytest.mark.slow_after(2)
@pytest.mark.parametrize("form", ["w2 a product", "whole", "DoRA"])
@pytest.mark.parametrize("kind", KINDS)
def test_applied_it_is_what_fusing_makes(form: str, kind: str, tmp_path: Path) -> None:
    """Beside a LoRA on the same layer, each with a strength; and off again bit for bit."""
    more = {"alpha": 3, "dora": 1} if form == "DoRA" else FORMS[form]
    lokr = saved(factors(**more), tmp_path)  # type: ignore[arg-type]
    a, b = (mx.random.normal(shape, key=mx.random.key(1)) for shape in ((3, 64), (64, 3)))
    loras = [(lokr, 0.7), (LoRAWeights({PATH: LoRAModule(a, 0.02 * b)}), 1.0)]
    model, fused = make(kind), make(kind)
    before = model(TOKENS)
    weight = np.array(dense_weight(base_linears(model)[PATH]))
    apply_loras(model, loras)
    apply_loras(fused, loras, fused=True)
    x = mx.random.normal((2, 5, 64), key=mx.random.key(2)).astype(before.dtype)
    adapted = weight + delta(factors(**more))  # type: ignore[arg-type]
    if form == "DoRA":
        gain = np.linspace(0.5, 2, 64)[:, None] / np.linalg.norm(adapted, axis=1, keepdims=True)
        adapted = gain * adapted
    change = 0.7 * (adapted - weight) + 0.02 * np.array(b @ a)
    layer = model.transformer_blocks[1].cross_attn.to_k
    got, plain = (np.array(y.astype(mx.float32)) for y in (layer(x), layer.linear(x)))
    wanted = np.array(x.astype(mx.float32)) @ change.T
    tolerance = 1e-5 if kind == "float32" else 2e-2
    assert np.linalg.norm(got - plain - wanted) <= tolerance * np.linalg.norm(wanted)
    heard, also = (np.array(m(TOKENS).astype(mx.float32)) for m in (model, fused))
    assert np.linalg.norm(heard - also) <= (1e-5 if kind == "float32" else 0.3) * np.linalg.norm(also)
    apply_loras(model, [])
    assert mx.array_equal(model(TOKENS), before)


@pytest.mark.slow_after(1)
@pytest.mark.parametrize(
    "spell",
    [
        "lycoris_layers_0_cross_attn_k_proj", "lycoris_decoder_layers_0_cross_attn_k_proj",
        "base_model.model.layers.0.cross_attn.k_proj", "diffusion_model.decoder.layers.0.cross_attn.k_proj",
        "transformer.layers.0.cross_attn.to_k",
    ],
)  # fmt: skip
def test_in_every_spelling_of_the_other_model(
    spell: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tensors = factors(spell, alpha=3, dora=1)
    weights = saved(tensors, tmp_path)
    assert weights.family is FAMILY and set(weights.modules) == {"layers.0.cross_attn.k_proj"}
    np.testing.assert_allclose(
        weights.modules["layers.0.cross_attn.k_proj"].delta(), delta(tensors, spell), atol=1e-6
    )
    with pytest.raises(SystemExit) as done:
        main(["info", str(tmp_path)])
    said = capsys.readouterr().out
    assert done.value.code == 0 and "lokr_weights.safetensors: LoKr for ACE-Step 1.5, LyCORIS's keys" in said
    assert "rank: 2\n" in said and "alpha 3 at this rank" in said
    with pytest.raises(CheckpointError, match=r"is for a model of another size: .* is 64×64 there and 32×48"):
        weights.check_against(transformer())


def test_a_lora_beside_it_in_one_file(tmp_path: Path) -> None:
    """As LyCORIS writes where an algorithm is set for each kind of layer."""
    other = "lycoris_transformer_blocks_0_attn_to_q"
    tensors = factors(alpha=3) | {
        f"{other}.lora_down.weight": np.ones((3, 64), np.float32),
        f"{other}.lora_up.weight": np.ones((64, 3), np.float32),
        f"{other}.alpha": np.array(3, np.float32),
    }
    weights = saved(tensors, tmp_path)
    assert [m.w1 is None for m in weights.modules.values()] == [True, False]
    assert recognise(tensors).kind == "LoRA and LyCORIS LoKr"  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"lokr_w1": None}, "has w2_a, w2_b; a LoKr has"),
        ({"lokr_w2_b": None}, "has w1, w2_a; a LoKr has"),
        ({"lokr_w2": np.ones((16, 8), np.float32)}, "has w1, w2, w2_a, w2_b; a LoKr has"),
        ({"lora_down.weight": np.ones((2, 64), np.float32)}, "has w1, w2_a, w2_b, a; a LoKr has"),
        ({"lokr_w2_b": np.ones((3, 8), np.float32)}, "ranks .* differ: 2, 3"),
        ({"lokr_w1": np.ones((4, 8, 3), np.float32)}, "no linear layer or 1×1 convolution"),
        ({"lokr_t2": np.ones((2, 2, 3), np.float32)}, "holds LyCORIS LoKr of a convolution"),
        ({"lokr_w1": np.full((4, 8), np.nan, np.float32)}, "NaN"),
        (
            {"lokr_w2_a": np.ones((16, 8), np.float32), "lokr_w2_b": np.full((8, 8), np.nan, np.float32)},
            "NaN",
        ),
        ({"alpha": np.array(-1, np.float32)}, "alpha of .* gives the scale -0.5"),
        ({"dora_scale": np.ones((1, 64), np.float32)}, "factor of inputs"),
        ({"dora_scale": np.ones((63,), np.float32)}, "63 magnitudes for 64 outputs"),
    ],
)
def test_what_is_none_is_said_in_one_line(
    change: dict[str, np.ndarray | None], says: str, tmp_path: Path
) -> None:
    changed = factors(alpha=3) | {f"{KEY}.{name}": value for name, value in change.items()}
    with pytest.raises(CheckpointError, match=says) as error:
        saved({name: value for name, value in changed.items() if value is not None}, tmp_path)
    assert "\n" not in str(error.value)


def test_lokr_for_another_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is for FLUX or a model built like it, not for ACE-Step v1"):
        saved(factors("lycoris_double_blocks_0_img_attn_qkv"), tmp_path)


def test_what_no_format_holds_is_told(tmp_path: Path) -> None:
    weights = saved(factors(alpha=3), tmp_path)
    for kind in ("peft", "simpletuner", "mlx"):
        with pytest.raises(ConfigError, match=f"LoKr, which the format '{kind}' does not hold; .* lycoris"):
            write_lora(tmp_path / "x.safetensors", weights, kind)
    with pytest.raises(ConfigError, match="is a LoRA, and 'lycoris' is for LoKr"):
        lora = LoRAWeights({PATH: LoRAModule(mx.ones((1, 64)), mx.ones((64, 1)))})
        write_lora(tmp_path / "x.safetensors", lora, "lycoris")
    dora = saved(factors(alpha=3, dora=1), tmp_path)
    with pytest.raises(ConfigError, match="LoKr with magnitudes, which no format"):
        write_lora(tmp_path / "x.safetensors", dora, "comfyui")
    with pytest.raises(ConfigError, match="x is a LoKr, and a LoRA is trained here"):
        check_start(make(), weights, {PATH: LoRASpec().rank}, False, "x")
    assert [path.name for path in tmp_path.iterdir()] == ["lokr_weights.safetensors"]


# ── trained here ──────────────────────────────────────────────────────────────────────────────────────
LAYERS = {"target_module": ["Attention", "GLUMBConv"]}
TRAINED: dict[str, dict[str, Any]] = {
    "w2 a product": {"linear_dim": 2, "linear_alpha": 3, "factor": 4},
    "both products": {"linear_dim": 1, "linear_alpha": 5, "decompose_both": True},
    "w1 a product": {"linear_dim": 2, "factor": 8, "decompose_both": True, "unbalanced_factorization": True},
    "whole": {"linear_dim": 10000, "linear_alpha": 1, "factor": 4},
    "scalar": {"linear_dim": 2, "factor": 4, "use_scalar": True},
}


def spec(settings: dict[str, Any], **preset: Any) -> LoKrSpec:
    content = {"algo": "lokr", **settings, "apply_preset": preset or LAYERS}
    return LoKrSpec(read_lycoris(content, "here"), (), as_text(content))


def trained(settings: dict[str, Any], kind: str = "float32", **preset: Any) -> tuple[StandIn, LoRAWeights]:
    model, made = make(kind), spec(settings, **preset)
    inject(model, made, seed=1)
    for i, layer in enumerate(adapter_modules(model).values()):
        for key in [key for key in layer if key.startswith("lokr_")]:
            layer[key] = layer[key] + 0.2 * mx.random.normal(layer[key].shape, key=mx.random.key(i))
    return model, from_model(model, made)


@pytest.mark.slow_after(2)
@pytest.mark.parametrize("form", ["w2 a product", "scalar"])
@pytest.mark.parametrize("kind", KINDS)
def test_untrained_it_changes_nothing_bit_for_bit(form: str, kind: str) -> None:
    model = make(kind)
    before = model(TOKENS)
    paths = inject(model, spec(TRAINED[form]), seed=3)
    assert len(paths) == 2 * (8 + 2) and mx.array_equal(model(TOKENS), before)
    names = {path.rpartition(".")[2] for path, _ in tree_flatten(model.trainable_parameters())}
    assert names == {"lokr_w1", "lokr_w2_a", "lokr_w2_b"} | ({"lokr_scalar"} if form == "scalar" else set())
    again = make(kind)
    inject(again, spec(TRAINED[form], target_name=[PATH]), seed=3)  # as many values as a layer has, no more
    one, other = (adapter_modules(m)[PATH] for m in (model, again))
    assert mx.array_equal(one["lokr_w1"], other["lokr_w1"])


@pytest.mark.slow_after(1)
@pytest.mark.parametrize("form", TRAINED)
def test_programs_make_of_the_file_what_was_trained(form: str, tmp_path: Path) -> None:
    """ComfyUI's rule, LyCORIS's keys, ours; on convolutions as well."""
    _, weights = trained(TRAINED[form])
    base = {}
    for path, linear in base_linears(make()).items():
        weight = np.array(linear.weight)
        base[f"{path}.weight"] = weight.reshape(*weight.shape, *(1,) * LORA.trailing_dims(path))
    file = write_lora(tmp_path / "c.safetensors", weights, "comfyui")
    heard, unread = readers.comfyui(file, base)
    assert not unread
    for path, module in weights.modules.items():
        change = heard[f"{path}.weight"] - base[f"{path}.weight"]
        np.testing.assert_allclose(change.reshape(module.shape), module.delta(), atol=1e-6)
        assert np.abs(change).max() > 1e-3
    for kind in ("comfyui", "lycoris"):
        again = read_lora(write_lora(tmp_path / f"{kind}.safetensors", weights, kind))
        assert again.modules.keys() == weights.modules.keys() and not again.unscaled
        for path, module in weights.modules.items():
            np.testing.assert_allclose(again.modules[path].delta(), module.delta(), atol=1e-6)
            assert again.modules[path].scale == 1


@pytest.mark.slow_after(1)
@pytest.mark.parametrize("form", TRAINED)
def test_going_on_from_a_file_it_is_the_same_update(form: str, tmp_path: Path) -> None:
    _, weights = trained(TRAINED[form])
    start = read_lora(write_lora(tmp_path / "x.safetensors", weights, "lycoris"))
    more = TRAINED[form] | {"linear_alpha": 7}
    model = make()
    inject(model, spec(more), seed=9)
    load_adapters(model, start)
    found = from_model(model, spec(more)).modules
    for path, module in weights.modules.items():
        np.testing.assert_allclose(found[path].delta(), module.delta(), atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "preset", "says"),
    [
        ({"linear_dim": 1, "factor": 4}, LAYERS, "has rank 2, and linear_dim is 1; set linear_dim=2"),
        ({"linear_dim": 2, "factor": 2}, LAYERS, "has w1 4×4 and w2 .* and this run makes them 2×2 and"),
        (
            {"factor": 4, "linear_dim": 2},
            {"target_module": ["Attention"]},
            "has modules that this run does not",
        ),
    ],
)
def test_what_cannot_be_gone_on_from_says_what_to_set(
    settings: dict[str, Any], preset: dict[str, Any], says: str
) -> None:
    _, weights = trained(TRAINED["w2 a product"])
    with pytest.raises(ConfigError, match=says) as error:
        check_start_of(make(), weights, spec(settings, **preset), "x")
    assert "\n" not in str(error.value)
    whole = trained(TRAINED["whole"])[1]
    with pytest.raises(ConfigError, match="whole matrices where this run has products; set full_matrix=true"):
        check_start_of(make(), whole, spec(TRAINED["w2 a product"]), "x")
    lora = LoRAWeights({PATH: LoRAModule(mx.ones((1, 64)), mx.ones((64, 1)))})
    with pytest.raises(ConfigError, match="x is a LoRA, and a plain LoKr is trained here"):
        check_start_of(make(), lora, spec(settings, **preset), "x")


def test_export_and_info_of_one_trained_here(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a format it is LyCORIS's; info says how it was trained."""
    _, weights = trained(TRAINED["w2 a product"])
    source = write_lora(tmp_path / "pytorch_lora_weights.safetensors", weights, "comfyui")
    out = tmp_path / "out"
    out.mkdir()
    for command in (["export", str(source), "-o", str(out)], ["info", str(out)]):
        with pytest.raises(SystemExit) as done:
            main(command)
        assert done.value.code == 0
    said = capsys.readouterr().out
    assert f"{out / 'lokr_weights.safetensors'}: LoKr of 20 modules, float32" in said
    assert "for LyCORIS and the programs that load with it" in said and "use at strength 1.0" in said
    assert 'trained with {"algo": "lokr"' in said and "lycoris_config" not in said
    with pytest.raises(SystemExit) as done:
        main(["export", str(source), "--format", "peft", "-o", str(tmp_path / "x.safetensors")])
    assert done.value.code == 1 and "choose comfyui or lycoris" in capsys.readouterr().err


def test_two_songs_together_are_the_two_alone() -> None:
    model, _ = trained(TRAINED["w2 a product"])
    both = model(TOKENS)
    alone = mx.concatenate([model(TOKENS[:1]), model(TOKENS[1:])])
    np.testing.assert_allclose(both, alone, atol=1e-5)


def test_info_of_whole_matrices(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved(factors(two=True, alpha=10000), tmp_path)
    with pytest.raises(SystemExit):
        main(["info", str(tmp_path / "lokr_weights.safetensors")])
    said = capsys.readouterr().out
    assert "rank: none, as its factors are whole matrices" in said and "use at strength 1.0" in said
