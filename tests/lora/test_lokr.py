"""LoKr, ΔW = w1 ⊗ w2, from files of LyCORIS and Side-Step: read, applied, fused, refused where it must be."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from safetensors.numpy import save_file

from acestep_mlx.cli import main
from acestep_mlx.errors import CheckpointError, ConfigError
from acestep_mlx.families.v15 import FAMILY
from acestep_mlx.lora.apply import apply_loras
from acestep_mlx.lora.formats.read import read_lora
from acestep_mlx.lora.formats.recognise import recognise
from acestep_mlx.lora.formats.write import write_lora
from acestep_mlx.lora.linear import base_linears, dense_weight
from acestep_mlx.lora.surgery import LoRASpec, check_start
from acestep_mlx.lora.weights import LoRAModule, LoRAWeights

from ..families.v15 import transformer
from .standin import KINDS, TOKENS, make

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


def test_it_is_neither_exported_nor_trained_on(tmp_path: Path) -> None:
    weights = saved(factors(alpha=3), tmp_path)
    for kind in ("peft", "comfyui", "simpletuner", "mlx"):
        with pytest.raises(ConfigError, match="is a LoKr, which no format of export holds"):
            write_lora(tmp_path / "x.safetensors", weights, kind)
    with pytest.raises(ConfigError, match="x is a LoKr, and a LoRA is trained here"):
        check_start(make(), weights, {PATH: LoRASpec().rank}, False, "x")
    assert [path.name for path in tmp_path.iterdir()] == ["lokr_weights.safetensors"]


def test_info_of_whole_matrices(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved(factors(two=True, alpha=10000), tmp_path)
    with pytest.raises(SystemExit):
        main(["info", str(tmp_path / "lokr_weights.safetensors")])
    said = capsys.readouterr().out
    assert "rank: none, as its factors are whole matrices" in said and "use at strength 1.0" in said
