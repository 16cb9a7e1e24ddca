"""Files of every loader: independent readers apply what we write, and we read what others write."""

from __future__ import annotations

import json
import math
import os
import re
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import save_file

from acestep_mlx.cli.export import programs
from acestep_mlx.errors import CheckpointError, ConfigError
from acestep_mlx.families.v1.lora import LORA
from acestep_mlx.lora.formats.keys import parse
from acestep_mlx.lora.formats.metadata import METADATA_KEY
from acestep_mlx.lora.formats.read import FILE_NAME, read_lora
from acestep_mlx.lora.formats.write import FORMATS, TOLERANCES, verify, write_lora
from acestep_mlx.lora.full_modules import (
    full_parameters,
    read_full,
    save_full,
    set_full,
)
from acestep_mlx.lora.linear import base_linears, dense_weight
from acestep_mlx.lora.surgery import LoRASpec, adapter_modules, from_model, inject
from acestep_mlx.lora.weights import LoRAModule, LoRAWeights, relative_difference

from ..families.tiny import tiny
from . import readers
from .standin import StandIn, make, trained

TARGETS = (*LORA.default_targets, "ff.inverted_conv.conv", "ff.point_conv.conv", "speaker_embedder")
SPECS = {
    "lora": LoRASpec(rank=4, alpha=10, targets=TARGETS),
    "rslora": LoRASpec(rank=8, alpha=2, use_rslora=True, targets=TARGETS),
    "dora": LoRASpec(rank=4, alpha=3, use_dora=True, targets=TARGETS),
}


def upstream_weights(model: StandIn) -> readers.Weights:
    """The base model's parameters with upstream's names and shapes."""
    found = {}
    for path, linear in base_linears(model).items():
        weight = np.array(dense_weight(linear))
        found[f"{path}.weight"] = weight.reshape(*weight.shape, *(1,) * LORA.trailing_dims(path))
        if "bias" in linear:
            found[f"{path}.bias"] = np.array(linear.bias.astype(mx.float32))
    for name, value in full_parameters(model).items():
        found.setdefault(name, np.array(value.astype(mx.float32)))
    return found


def adapted(model: StandIn, base: readers.Weights) -> readers.Weights:
    """What training has made of the base: the formula, in float64."""
    out = dict(base)
    for path, layer in adapter_modules(model).items():
        name = f"{path}.weight"
        delta = np.array(layer.lora_b.T, np.float64) @ np.array(layer.lora_a.T, np.float64) * layer.scale
        weight = base[name] + delta.reshape(base[name].shape)
        if "m" in layer:
            gain = np.array(layer.m, np.float64) / readers.row_norm(weight)
            weight = gain.reshape(-1, *[1] * (weight.ndim - 1)) * weight
        out[name] = weight
    return out


def assert_same(got: readers.Weights, wanted: readers.Weights, tolerance: float = 1e-6) -> None:
    assert got.keys() == wanted.keys()
    for name, value in wanted.items():
        assert np.abs(got[name] - value).max() <= tolerance * max(1.0, np.abs(value).max()), name


@pytest.mark.parametrize("spec", SPECS)
def test_every_loader_applies_exactly_the_trained_update(spec, tmp_path):
    model = trained(SPECS[spec])
    base = upstream_weights(model)
    wanted = adapted(model, base)
    weights = from_model(model, SPECS[spec])
    write_lora(tmp_path / FILE_NAME, weights)
    write_lora(tmp_path / "comfyui.safetensors", weights, "comfyui", base=model)
    write_lora(tmp_path / "simpletuner.safetensors", weights, "simpletuner")
    write_lora(tmp_path / "mlx.safetensors", weights, "mlx")
    write_lora(
        tmp_path / "again.safetensors", read_lora(tmp_path / FILE_NAME), "mlx"
    )  # from baked to unbaked
    for got, unused in (
        readers.original_pipeline(tmp_path, base),
        readers.comfyui(tmp_path / "comfyui.safetensors", base),
        readers.simpletuner(tmp_path / "simpletuner.safetensors", base),
        readers.acestep_mlx(tmp_path / "mlx.safetensors", base),
        readers.acestep_mlx(tmp_path / "again.safetensors", base),
    ):
        assert unused == []
        assert_same(got, wanted)
    if spec != "dora":  # the peft file serves ComfyUI too
        got, unused = readers.comfyui(tmp_path / FILE_NAME, base)
        assert unused == []
        assert_same(got, wanted)
    assert max(np.abs(wanted[k] - base[k]).max() for k in base) > 0.01


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("kind", ["peft", "comfyui", "diffusers", "simpletuner"])
@pytest.mark.parametrize("embedder", [False, True])
def test_comfyui_is_announced_where_it_loads_all_of_a_file(spec, kind, embedder, tmp_path):
    """A DoRA's `lora_magnitude_vector`, whole parameters and `transformer.` keys do nothing there."""
    if embedder and kind in ("diffusers", "simpletuner"):
        return  # refused
    base_model, model = make(), trained(SPECS[spec])
    weights = from_model(model, SPECS[spec])
    if embedder:
        weights.full = {n: 1.1 * v for n, v in full_parameters(base_model).items()}
        set_full(model, weights.full)
    path = tmp_path / "x.safetensors"
    write_lora(path, weights, kind, base=base_model, with_full=embedder)
    base, wanted = upstream_weights(base_model), adapted(model, upstream_weights(model))
    got, unused = readers.comfyui(path, base)
    lost = LORA.full.not_loaded("comfyui", weights.full or {})
    whole = not unused and all(np.allclose(got[k], v, atol=1e-5) for k, v in wanted.items() if k not in lost)
    assert ("ComfyUI" in programs(weights, kind, embedder)) == whole
    if spec == "dora" and kind == "peft" and not embedder:
        attention = [k for k in base if "attn" in k and k.endswith(".weight")]
        off = [np.linalg.norm(got[k] - wanted[k]) / np.linalg.norm(wanted[k] - base[k]) for k in attention]
        assert max(off) > 0.3  # of the update, so this pair must never be announced


@pytest.mark.parametrize("strength", [0.5, 0.25, 1.5])
def test_below_and_above_strength_one_comfyui_and_we_interpolate(strength, tmp_path):
    model = trained(SPECS["dora"])
    base = upstream_weights(model)
    path = write_lora(tmp_path / "x.safetensors", from_model(model, SPECS["dora"]), "comfyui", base=model)
    got, _ = readers.comfyui(path, base, strength)
    linears = base_linears(model)
    for name, module in read_lora(path).modules.items():
        mine = np.array(module.adapted_weight(linears[name], strength))
        assert np.allclose(got[f"{name}.weight"].reshape(mine.shape), mine, atol=1e-5), name


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("kind", FORMATS)
def test_what_is_written_reads_back(spec, kind, tmp_path):
    model = trained(SPECS[spec])
    weights = from_model(model, SPECS[spec], step=7)
    write_lora(tmp_path / "x.safetensors", weights, kind, base=model)
    again = read_lora(tmp_path / "x.safetensors")
    again.check_against(model)
    assert again.modules.keys() == weights.modules.keys()
    assert {k: again.metadata[k] for k in ("rank", "alpha", "use_rslora", "step")} == {
        **{k: SPECS[spec].facts[k] for k in ("rank", "alpha", "use_rslora")},
        "step": 7,
    }
    linears = base_linears(model)
    for path, module in weights.modules.items():
        mine, other = (m.adapted_weight(linears[path]) for m in (module, again.modules[path]))
        assert mx.allclose(mine, other, rtol=1e-5, atol=1e-6), path
        if kind == "mlx":  # the masters themselves, bit for bit
            assert mx.array_equal(module.a, again.modules[path].a)
            assert mx.array_equal(module.b, again.modules[path].b)
            assert module.scale == again.modules[path].scale


@pytest.mark.parametrize("kind", FORMATS)
def test_metadata_holds_nothing_that_a_loader_acts_on(kind, tmp_path):
    model = trained(SPECS["rslora"])
    path = write_lora(tmp_path / "x.safetensors", from_model(model, SPECS["rslora"]), kind, base=model)
    with safe_open(path, framework="np") as file:
        assert set(file.metadata()) == {"format", METADATA_KEY}
        assert not any(k.endswith(".alpha") for k in file.keys())  # noqa: SIM118
        facts = json.loads(file.metadata()[METADATA_KEY])
    assert facts["scale"] == pytest.approx(2 / math.sqrt(8))
    assert facts["baked"] == (kind != "mlx")


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16])
@pytest.mark.parametrize("kind", FORMATS)
def test_smaller_dtypes_stay_within_their_rounding(dtype, kind, tmp_path):
    model = trained(SPECS["dora"])
    path = write_lora(tmp_path / "x.safetensors", from_model(model, SPECS["dora"]), kind, dtype, base=model)
    assert {v.dtype for v in mx.load(str(path)).values()} == {dtype}
    assert path.stat().st_size < 0.6 * write_lora(path, from_model(model, SPECS["dora"])).stat().st_size


def test_a_value_too_large_for_float16_is_refused_and_leaves_the_old_file(tmp_path):
    weights = from_model(trained(SPECS["lora"]), SPECS["lora"])
    path = write_lora(tmp_path / "x.safetensors", weights)
    before = path.read_bytes()
    weights.modules["speaker_embedder"].b = weights.modules["speaker_embedder"].b * 1e7
    with pytest.raises(CheckpointError, match="too large for"):
        write_lora(path, weights, dtype=mx.float16)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_mixed_ranks_become_one(tmp_path):
    model = trained(SPECS["lora"])
    base = upstream_weights(model)
    for i, layer in enumerate(adapter_modules(model).values()):
        layer.lora_a, layer.lora_b = layer.lora_a[:, : 1 + i % 4], layer.lora_b[: 1 + i % 4]
    write_lora(tmp_path / FILE_NAME, from_model(model, SPECS["lora"]))
    assert_same(readers.original_pipeline(tmp_path, base)[0], adapted(model, base))
    weights = from_model(model, SPECS["lora"])
    weights.modules["speaker_embedder"].scale = 0.125  # and scales of their own, kept by our own form
    again = read_lora(write_lora(tmp_path / "x.safetensors", weights, "mlx"))
    assert {m.rank for m in again.modules.values()} == {1, 2, 3, 4}
    assert {m.scale for m in again.modules.values()} == {0.125, 2.5}


# What others write ------------------------------------------------------------------------------------------

PATH = "transformer_blocks.1.cross_attn.to_out.0"
FLAT = "transformer_blocks_1_cross_attn_to_out_0"
rng = np.random.default_rng(0)
A, B = rng.standard_normal((4, 64), dtype=np.float32), rng.standard_normal((64, 4), dtype=np.float32)
M = 1 + rng.random(64, dtype=np.float32)


def alpha(value: float) -> np.ndarray:
    return np.array(value, np.float32)


def peft_config(**extra: object) -> dict[str, object]:
    return {"peft_type": "LORA", "r": 4, "lora_alpha": 10, "use_rslora": False, **extra}


OTHERS = {
    "unprefixed": ({f"{PATH}.lora_A.weight": A, f"{PATH}.lora_B.weight": B}, {}, 1.0),
    "transformer.": (
        {f"transformer.{PATH}.lora_A.weight": A, f"transformer.{PATH}.lora_B.weight": B}, {}, 1.0,
    ),
    "model.diffusion_model. with alpha": (
        {
            f"model.diffusion_model.{PATH}.lora_A.weight": A,
            f"model.diffusion_model.{PATH}.lora_B.weight": B,
            f"model.diffusion_model.{PATH}.alpha": alpha(2),
        },
        {},
        0.5,
    ),
    "diffusion_model. with alpha": (
        {
            f"diffusion_model.{PATH}.lora_A.weight": A,
            f"diffusion_model.{PATH}.lora_B.weight": B,
            f"diffusion_model.{PATH}.alpha": alpha(2),
        },
        {},
        0.5,
    ),
    "base_model.model.": (
        {f"base_model.model.{PATH}.lora_A.weight": A, f"base_model.model.{PATH}.lora_B.weight": B}, {}, 1.0,
    ),
    "adapter name": (
        {f"{PATH}.lora_A.default.weight": A, f"{PATH}.lora_B.default.weight": B}, {}, 1.0,
    ),
    "lora_down": (
        {f"{PATH}.lora_down.weight": A, f"{PATH}.lora_up.weight": B, f"{PATH}.alpha": alpha(1)}, {}, 0.25,
    ),
    "kohya": (
        {
            f"lora_unet_{FLAT}.lora_down.weight": A,
            f"lora_unet_{FLAT}.lora_up.weight": B,
            f"lora_unet_{FLAT}.alpha": alpha(6),
        },
        {},
        1.5,
    ),
    "as a convolution": (
        {f"{PATH}.lora_A.weight": A[..., None], f"{PATH}.lora_B.weight": B[..., None, None]}, {}, 1.0,
    ),
    "lora_adapter_metadata": (
        {f"{PATH}.lora_A.weight": A, f"{PATH}.lora_B.weight": B},
        {"lora_adapter_metadata": json.dumps(peft_config())},
        2.5,
    ),
    "lora_adapter_metadata of a pipeline, rsLoRA": (
        {f"transformer.{PATH}.lora_A.weight": A, f"transformer.{PATH}.lora_B.weight": B},
        {
            "lora_adapter_metadata": json.dumps(
                {f"transformer.{k}": v for k, v in peft_config(use_rslora=True).items()}
            )
        },
        5.0,
    ),
    "alpha_pattern": (
        {f"{PATH}.lora_A.weight": A, f"{PATH}.lora_B.weight": B},
        {
            "lora_adapter_metadata": json.dumps(
                peft_config(r=8, rank_pattern={"to_out.0": 4}, alpha_pattern={"cross_attn.to_out.0": 2})
            )
        },
        0.5,
    ),
    "flat metadata of older SimpleTuner": (
        {f"{PATH}.lora_A.weight": A, f"{PATH}.lora_B.weight": B},
        {k: str(v) for k, v in peft_config(use_rslora=True, rank_pattern={}, alpha_pattern={}).items()},
        5.0,
    ),
    "alpha and metadata that agree": (
        {f"{PATH}.lora_A.weight": A, f"{PATH}.lora_B.weight": B, f"{PATH}.alpha": alpha(10)},
        {"lora_adapter_metadata": json.dumps(peft_config())},
        2.5,
    ),
    "alpha and metadata that agree, rsLoRA": (
        {f"{PATH}.lora_A.weight": A, f"{PATH}.lora_B.weight": B, f"{PATH}.alpha": alpha(10)},
        {"lora_adapter_metadata": json.dumps(peft_config(use_rslora=True))},
        5.0,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_others_files(name, dtype, tmp_path):
    tensors, metadata, scale = OTHERS[name]
    tensors = {k: v.astype(dtype) for k, v in tensors.items()}
    save_file(tensors, tmp_path / "x.safetensors", metadata)
    weights = read_lora(tmp_path / "x.safetensors")
    assert list(weights.modules) == [PATH]
    a, b = A.astype(dtype).astype(np.float32), B.astype(dtype).astype(np.float32)
    assert np.allclose(np.array(weights.modules[PATH].delta()), scale * b @ a, rtol=1e-5, atol=1e-5)
    weights.check_against(make())


@pytest.mark.parametrize("file", [FILE_NAME, "adapter_model.safetensors"])
def test_folders_with_adapter_config(file, tmp_path):
    save_file(
        {f"base_model.model.{PATH}.lora_A.weight": A, f"base_model.model.{PATH}.lora_B.weight": B},
        tmp_path / file,
    )
    (tmp_path / "adapter_config.json").write_text(json.dumps(peft_config(use_rslora=True)))
    assert read_lora(tmp_path).modules[PATH].scale == 5.0
    assert read_lora(tmp_path / file).modules[PATH].scale == 5.0
    for text in ("{", "[]", '{"r": 4, "r": 8}', "[" * 100_000, '{"r": NaN}'):
        (tmp_path / "adapter_config.json").write_text(text)
        with pytest.raises(CheckpointError, match=r"adapter_config\.json"):
            read_lora(tmp_path)
    (tmp_path / "adapter_config.json").unlink()
    os.mkfifo(tmp_path / "adapter_config.json")
    with pytest.raises(CheckpointError, match="it is a named pipe"):
        read_lora(tmp_path)


@pytest.mark.parametrize(
    "key",
    [
        "lora_magnitude_vector",
        "lora_magnitude_vector.weight",
        "lora_magnitude_vector.default.weight",
        "lora_magnitude_vector.default",
        "dora_scale",
    ],
)
@pytest.mark.parametrize("writer", [None, "comfyui", "peft"])
def test_magnitudes(key, writer, tmp_path):
    """Over ‖W + ΔW‖ whoever wrote them, and over ‖W‖ only in a file that we have written for ComfyUI."""
    magnitude = M[:, None] if key == "dora_scale" else M
    save_file(
        {f"{PATH}.lora_A.weight": A, f"{PATH}.lora_B.weight": B, f"{PATH}.{key}": magnitude},
        tmp_path / "x.safetensors",
        {METADATA_KEY: json.dumps({"file_format": writer, "baked": True})} if writer else None,
    )
    model = make()
    module = read_lora(tmp_path / "x.safetensors").modules[PATH]
    linear = base_linears(model)[PATH]
    base = {f"{PATH}.weight": np.array(linear.weight)}
    if key == "dora_scale" and writer == "comfyui":
        wanted = readers.comfyui(tmp_path / "x.safetensors", base)[0][f"{PATH}.weight"]
    else:
        wanted = readers.peft_layer(base[f"{PATH}.weight"], A, B, M)
    assert np.allclose(np.array(module.adapted_weight(linear)), wanted, rtol=1e-5, atol=1e-6)


def test_every_underscored_path_is_found():
    import re

    from acestep_mlx.families.v1.dit import ACEStepTransformer, TransformerConfig

    model = ACEStepTransformer(tiny(TransformerConfig))
    for path in base_linears(model):
        flat = path.replace(".", "_")
        key = parse(f"lora_unet_{flat}.lora_down.weight", LORA)
        assert key is not None and key.path == path
    assert parse("lora_unet_double_blocks_0_img_attn.lora_down.weight", LORA) is None
    assert all(re.compile(pattern) for pattern, _ in LORA.flat)


def with_alpha(value: object, how: str, folder: Path) -> Path:
    """A file whose alpha is `value`, said in one of the places where programs say it."""
    tensors = {f"{PATH}.lora_A.weight": A, f"{PATH}.lora_B.weight": B}
    metadata: dict[str, str] = {}
    if how == ".alpha":
        tensors[f"{PATH}.alpha"] = np.array(value, np.float32)
    elif how == "adapter_config.json":
        (folder / how).write_text(json.dumps(peft_config(lora_alpha=value)))
    elif how == "alpha_pattern":
        metadata["lora_adapter_metadata"] = json.dumps(peft_config(alpha_pattern={"to_out.0": value}))
    elif how == "lora_adapter_metadata":
        metadata["lora_adapter_metadata"] = json.dumps(peft_config(lora_alpha=value))
    elif how == "flat metadata":
        metadata |= {k: str(v) for k, v in peft_config(lora_alpha=value).items()}
    elif how == "our scale":
        metadata[METADATA_KEY] = json.dumps({"baked": False, "rank": 4, "scale": value})
    elif how == "our scales":
        metadata[METADATA_KEY] = json.dumps({"baked": False, "rank": 4, "scale": 1, "scales": {PATH: value}})
    else:
        metadata[METADATA_KEY] = json.dumps({"baked": True, "rank": 4, "alpha": value})
    save_file(tensors, folder / FILE_NAME, metadata or None)
    return folder / FILE_NAME


PLACES = (
    ".alpha", "adapter_config.json", "alpha_pattern", "lora_adapter_metadata", "flat metadata", "our scale",
    "our scales", "our alpha",
)  # fmt: skip


@pytest.mark.parametrize("how", PLACES)
@pytest.mark.parametrize("value", [1e38, 1e30, 1e7, math.nan, math.inf, 0, -4, 1e-30, 10**400, "many", True])
def test_alphas_that_no_training_has_used(how, value, tmp_path):
    if how == ".alpha" and (isinstance(value, (str, bool)) or value == 10**400):
        return  # no tensor
    if how == "flat metadata" and isinstance(value, float) and not math.isfinite(value):
        return  # not a literal: read as text, like "many"
    path = with_alpha(value, how, tmp_path)
    for place in (path, tmp_path):
        with pytest.raises(CheckpointError) as error:
            read_lora(place)
        assert "\n" not in str(error.value) and str(path) in str(error.value)


@pytest.mark.parametrize(
    ("how", "says"),
    [
        (".alpha", f"alpha of {PATH} gives"),
        ("adapter_config.json", f"alpha of {PATH} in adapter_config.json gives"),
        ("alpha_pattern", f"alpha of {PATH} in lora_adapter_metadata gives"),
        ("lora_adapter_metadata", f"alpha of {PATH} in lora_adapter_metadata gives"),
        ("flat metadata", f"alpha of {PATH} in its metadata gives"),
    ],
)
def test_where_a_wrong_alpha_stands_is_named(how, says, tmp_path):
    with pytest.raises(CheckpointError, match=re.escape(f"{says} the scale -1")):
        read_lora(with_alpha(-4, how, tmp_path))


@pytest.mark.parametrize("how", PLACES)
@pytest.mark.parametrize("value", [0.01, 1, 4, 512])
def test_alphas_that_some_training_has_used(how, value, tmp_path):
    weights = read_lora(with_alpha(value, how, tmp_path))
    scale = {"our scale": value, "our scales": value, "our alpha": 1.0}.get(how, value / 4)
    assert weights.modules[PATH].scale == pytest.approx(scale)
    assert weights.unscaled == 0 and weights.notes == []


def test_where_no_alpha_is_stored_the_scale_is_unknown(tmp_path):
    path = tmp_path / "x.safetensors"
    other = "transformer_blocks.0.attn.to_q"
    bare = {f"{p}.lora_{part}.weight": x for p in (PATH, other) for part, x in (("A", A), ("B", B))}
    save_file(bare, path)
    weights = read_lora(path)
    assert weights.unscaled == 2 and {m.scale for m in weights.modules.values()} == {1.0}
    assert "no alpha is stored: the scale that it was trained with is unknown" in weights.notes[0]
    again = read_lora(write_lora(tmp_path / "y.safetensors", weights))  # an export does not make it known
    assert again.unscaled == 2 and again.notes == weights.notes
    save_file(bare | {f"{PATH}.alpha": alpha(4)}, path)  # known for one of two
    assert read_lora(path).unscaled == 1 and "stored for 1 module:" in read_lora(path).notes[0]
    for rank, try_this in (
        (16, "2 (upstream's recipe for rank 16: alpha 32)"),
        (8, "--lora-scale alpha/rank"),
    ):
        a, b = np.ones((rank, 64), np.float32), np.ones((64, rank), np.float32)
        save_file({f"{PATH}.lora_A.weight": a, f"{PATH}.lora_B.weight": b}, path)
        assert try_this in read_lora(path).notes[0]


@pytest.mark.parametrize(
    ("fact", "value"),
    [
        ("rank", 0), ("rank", "4"), ("rank", 2.5), ("alpha", None), ("alpha", "x"), ("alpha", [1]),
        ("step", -1), ("step", "last"), ("targets", "to_q"), ("targets", [1]), ("scales", [1.0]),
        ("scales", {"x": "y"}), ("baked", "yes"), ("use_rslora", 1), ("base", 3),
        ("base_fingerprint", {}), ("file_format", 7), ("dropout", 2), ("scale_known", "no"), 
    ],
)  # fmt: skip
def test_our_own_facts_have_a_schema(fact, value, tmp_path):
    from acestep_mlx.lora.formats.metadata import SCHEMA

    facts = {"baked": True, "rank": 4, "alpha": 4.0, fact: value, "of a newer version": [1]}
    path = tmp_path / "x.safetensors"
    save_file(good(), path, {METADATA_KEY: json.dumps(facts)})
    if value is None:  # said to be unknown
        assert read_lora(path).metadata["of a newer version"] == [1]
        return
    assert fact in SCHEMA
    with pytest.raises(CheckpointError, match=rf"metadata is damaged: {fact}\S* must be ") as error:
        read_lora(path)
    assert str(path) in str(error.value)


def test_whole_alphas_may_be_integers(tmp_path):
    """As LyCORIS stores them."""
    save_file({**good(), f"{PATH}.alpha": np.array(8, np.int64)}, tmp_path / "x.safetensors")
    assert read_lora(tmp_path / "x.safetensors").modules[PATH].scale == 2.0


def test_magnitudes_of_inputs_are_refused(tmp_path):
    """LyCORIS with wd_on_out=False: on a square layer they have as many values as outputs."""
    save_file({**good(), f"{PATH}.dora_scale": M[None]}, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match="factor of inputs"):
        read_lora(tmp_path / "x.safetensors")


# Bad files --------------------------------------------------------------------------------------------------


def good() -> dict[str, np.ndarray]:
    return {f"{PATH}.lora_A.weight": A.copy(), f"{PATH}.lora_B.weight": B.copy()}


BAD = {
    "nothing": ({}, {}, "holds no tensors"),
    "NaN": ({**good(), f"{PATH}.lora_B.weight": B * np.nan}, {}, f"NaN or infinite weights in '{PATH}'"),
    "infinity": ({**good(), f"{PATH}.lora_A.weight": A + np.inf}, {}, "NaN or infinite"),
    "NaN magnitude": ({**good(), f"{PATH}.lora_magnitude_vector": M * np.nan}, {}, f"NaN .* in '{PATH}'"),
    "infinite dora_scale": ({**good(), f"{PATH}.dora_scale": M[:, None] + np.inf}, {}, f"NaN .* in '{PATH}'"),
    "NaN in a difference": ({**good(), "lyric_proj.diff": B * np.nan}, {}, "NaN .* in 'lyric_proj.weight'"),
    "NaN in a whole weight": ({**good(), "lyric_proj.weight": B * np.nan}, {}, "NaN .* in 'lyric_proj.we"),
    "rank 0": ({f"{PATH}.lora_A.weight": A[:0], f"{PATH}.lora_B.weight": B[:, :0]}, {}, "rank 0"),
    "ranks differ": ({**good(), f"{PATH}.lora_B.weight": B[:, :3]}, {}, "ranks of .* differ"),
    "no B": ({f"{PATH}.lora_A.weight": A}, {}, r"has no B \(up\)"),
    "no A": ({f"{PATH}.lora_B.weight": B}, {}, r"has no A \(down\)"),
    "alpha alone": ({**good(), "transformer_blocks.0.attn.to_q.alpha": alpha(4)}, {}, "has no A .* and no B"),
    "alpha 0": ({**good(), f"{PATH}.alpha": alpha(0)}, {}, "would do nothing"),
    "alpha NaN": ({**good(), f"{PATH}.alpha": alpha(np.nan)}, {}, "scale"),
    "alpha of many": ({**good(), f"{PATH}.alpha": np.ones(3, np.float32)}, {}, "not one number"),
    "alpha 0 in metadata": (
        good(), {"lora_adapter_metadata": json.dumps(peft_config(lora_alpha=0))}, "would do nothing",
    ),
    "unknown key": ({**good(), f"{PATH}.lora_C.weight": A}, {}, f"1 key .*'{PATH}.lora_C.weight'"),
    "a checkpoint": ({"transformer_blocks.0.attn.to_q.weight": B}, {}, "no known LoRA format"),
    "LoKr of nobody's": ({"lycoris_x.lokr_w1": A}, {}, "another model.*lycoris_x"),
    "LoHa": ({"lycoris_x.hada_w1_a": A}, {}, "LoHa is not supported"),
    "another model, kohya": ({"lora_unet_input_blocks_1.lora_down.weight": A}, {}, "lora_unet_input_bl"),
    "two adapters": (
        {f"{PATH}.lora_A.one.weight": A, f"{PATH}.lora_B.two.weight": B}, {}, "more than one adapter",
    ),
    "twice": ({**good(), f"transformer.{PATH}.lora_A.weight": A}, {}, "more than one adapter"),
    "a real convolution": ({**good(), f"{PATH}.lora_A.weight": np.ones((4, 64, 3), np.float32)}, {}, "1×1"),
    "vectors": ({**good(), f"{PATH}.lora_A.weight": A[0]}, {}, "no linear layer"),
    "integers": ({**good(), f"{PATH}.lora_A.weight": A.astype(np.int32)}, {}, "must be floats"),
    "magnitudes of another size": ({**good(), f"{PATH}.lora_magnitude_vector": M[:5]}, {}, "5 magnitudes"),
    "DoRA without magnitudes": (
        good(), {"lora_adapter_metadata": json.dumps(peft_config(use_dora=True))}, "no magnitudes",
    ),
    "rank said otherwise": (
        good(), {"lora_adapter_metadata": json.dumps(peft_config(r=16))}, "says rank 16 .* have rank 4",
    ),
    "scales that disagree": (
        {**good(), f"{PATH}.alpha": alpha(4)},
        {"lora_adapter_metadata": json.dumps(peft_config())},
        "contradictory: .alpha says 1 and lora_adapter_metadata says 2.5",
    ),
    "metadata that is no JSON": (good(), {"lora_adapter_metadata": "{"}, "cannot be used"),
    "metadata that is a list": (good(), {"lora_adapter_metadata": "[1]"}, "JSON object"),
    "metadata with nonsense": (
        good(), {"lora_adapter_metadata": json.dumps(peft_config(r="many"))}, "must be numbers",
    ),
    "patterns with nonsense": (
        good(), {"lora_adapter_metadata": json.dumps(peft_config(alpha_pattern=["x"]))}, "alpha_pattern",
    ),
    "a pattern that is none": (
        good(), {"lora_adapter_metadata": json.dumps(peft_config(alpha_pattern={"to_q(": 2}))}, "no regular",
    ),
    "a pattern that never ends": (
        good(), {"lora_adapter_metadata": json.dumps(peft_config(rank_pattern={"([a-z_.]+)+!": 4}))}, "compl",
    ),
    "a pattern of many repeats": (
        good(), {"lora_adapter_metadata": json.dumps(peft_config(rank_pattern={".*" * 30: 4}))}, "compl",
    ),
    "rsLoRA that is neither": (
        good(), {"lora_adapter_metadata": json.dumps(peft_config(use_rslora="perhaps"))}, "true or false",
    ),
    "PiSSA": (
        good(), {"lora_adapter_metadata": json.dumps(peft_config(init_lora_weights="pissa_niter_16"))},
        "changes the base model too",
    ),
    "our metadata, damaged": (good(), {METADATA_KEY: "[]"}, "damaged"),
    "our own form without its scale": (
        {f"{PATH}.lora_a": A.T.copy(), f"{PATH}.lora_b": B.T.copy()},
        {METADATA_KEY: '{"baked": false}'},
        "no scale",
    ),
    "two kinds of magnitude": (
        {**good(), f"{PATH}.lora_magnitude_vector": M, f"{PATH}.dora_scale": M[:, None]}, {}, "both a dora",
    ),
    "an alpha that is a truth value": ({**good(), f"{PATH}.alpha": np.array(True)}, {}, "must be floats"),
    "only a lyrics embedder": ({"lyric_proj.weight": B}, {}, "no LoRA modules"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_one_line(name, tmp_path):
    tensors, metadata, says = BAD[name]
    path = tmp_path / "x.safetensors"
    save_file({k: np.ascontiguousarray(v) for k, v in tensors.items()}, path, metadata or None)
    with pytest.raises(CheckpointError, match=says) as error:
        read_lora(path)
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)


def test_files_that_are_not_whole(tmp_path):
    path = tmp_path / "x.safetensors"
    save_file(good(), path)
    whole = path.read_bytes()
    for broken in (
        b"", b"\0" * 7, whole[:-1], whole[:100], b"\xff" * 8 + whole[8:], whole + b"x",
        (10**9).to_bytes(8, "little") + whole[8:], whole.replace(b'"F32"', b'"F99"'), b"PK" + bytes(200),
    ):  # fmt: skip
        path.write_bytes(broken)
        with pytest.raises(CheckpointError) as error:
            read_lora(path)
        assert "\n" not in str(error.value)


def test_paths_that_are_no_lora(tmp_path):
    for name, says in (("none.safetensors", "no such"), (".", "holds no LoRA")):
        with pytest.raises(CheckpointError, match=says):
            read_lora(tmp_path / name)
    (tmp_path / "adapter_model.bin").write_bytes(b"\x80\x02}q\x00.")
    for path in (tmp_path, tmp_path / "adapter_model.bin"):
        with pytest.raises(CheckpointError, match="pickle"):
            read_lora(path)
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(CheckpointError, match=r"not a \.safetensors"):
        read_lora(tmp_path / "notes.txt")


@pytest.mark.parametrize(
    "name", ["../../etc.lora_A.weight", "__class__.lora_A.weight", ".lora_A.weight", "x" * 5000]
)
def test_hostile_names_reach_nothing(name, tmp_path):
    other = name.replace("lora_A", "lora_B")
    save_file({name: A, other: B} if name != other else {name: A}, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError) as error:
        read_lora(tmp_path / "x.safetensors").check_against(make())
    assert len(str(error.value)) < 1000


def test_a_lora_for_another_model_names_its_keys(tmp_path):
    other = trained(LoRASpec(rank=4), "float32")
    weights = from_model(other, LoRASpec(rank=4))
    deeper = {path.replace("blocks.1.", "blocks.20."): module for path, module in weights.modules.items()}
    weights.modules = deeper
    weights = read_lora(write_lora(tmp_path / "x.safetensors", weights))
    with pytest.raises(
        CheckpointError, match=r"another model: 8 of its 19 .*'transformer_blocks\.20\.attn\.to_k'"
    ):
        weights.check_against(make())
    with pytest.raises(CheckpointError, match=r"another size: .* is 64×64 there and 32×32 here"):
        from_model(other, LoRASpec(rank=4)).check_against(make(width=32))


def test_writing_where_it_cannot_be(tmp_path):
    weights = from_model(trained(SPECS["dora"]), SPECS["dora"])
    for arguments, says in (
        ((tmp_path / "x.bin", weights), "must end in .safetensors"),
        ((tmp_path / "x.safetensors", weights, "kohya"), "format must be one of"),
        ((tmp_path / "x.safetensors", weights, "comfyui"), "--model"),
        ((tmp_path / "x.safetensors", weights, "peft", mx.int8), "dtype must be one of"),
    ):
        with pytest.raises(ConfigError, match=says):
            write_lora(*arguments)
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot be written"):
        write_lora(tmp_path / "file" / "x.safetensors", weights)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


# The lyrics embedder ----------------------------------------------------------------------------------------


def with_embedder() -> tuple[StandIn, StandIn, LoRAWeights]:
    """A base, a model whose lyrics embedder was trained under its LoRA, and both as weights."""
    base, model = make(), trained(SPECS["lora"])
    changed = {
        name: value + 0.05 * mx.random.normal(value.shape, key=mx.random.key(i))
        for i, (name, value) in enumerate(full_parameters(model).items())
    }
    set_full(model, changed)
    weights = from_model(model, SPECS["lora"])
    weights.full = full_parameters(model)
    return base, model, weights


def test_full_parameters_have_upstream_names_under_lora():
    plain, injected = make(), trained(SPECS["lora"])
    assert full_parameters(plain).keys() == full_parameters(injected).keys()
    assert len(full_parameters(plain)) == 1 + 3 * 2 + 1 + 2 + 2
    quantised = make("q8")
    names = {n for n, _ in full_parameters(quantised).items()}
    assert names == set(full_parameters(plain))
    for name, value in full_parameters(quantised).items():
        assert value.shape == full_parameters(plain)[name].shape


@pytest.mark.parametrize("kind", ["float32", "bfloat16", "q8"])
def test_saved_embedder_goes_back_into_any_base(kind, tmp_path):
    _, _, weights = with_embedder()
    write_lora(tmp_path / FILE_NAME, weights)
    save_full(tmp_path, weights.full, LORA.full)
    again = read_lora(tmp_path)
    assert again.full.keys() == weights.full.keys()
    target = make(kind)
    inject(target, SPECS["lora"])
    set_full(target, again.full)
    for name, value in full_parameters(target).items():
        wanted = weights.full[name]
        assert mx.allclose(value.astype(mx.float32), wanted, rtol=1e-2 if kind != "float32" else 0), name


def test_the_file_for_each_loader_carries_the_embedder(tmp_path):
    base_model, model, weights = with_embedder()
    base = upstream_weights(base_model)
    wanted = adapted(model, upstream_weights(model))
    write_lora(tmp_path / FILE_NAME, weights, with_full=True)
    got, unused = readers.original_pipeline(tmp_path, base)
    assert unused == []
    assert_same(got, wanted)

    path = tmp_path / "comfyui.safetensors"
    write_lora(path, weights, "comfyui", base=base_model, with_full=True)
    got, unused = readers.comfyui(path, base)
    assert unused == []
    lost = LORA.full.not_loaded("comfyui", weights.full)
    assert lost == ["lyric_encoder.encoders.0.self_attn.pos_bias_u"]
    assert_same({**got, **{n: wanted[n] for n in lost}}, wanted)

    again = read_lora(path)
    assert again.diffs and again.modules.keys() < weights.modules.keys()
    write_lora(tmp_path / "back" / FILE_NAME, again, base=base_model, with_full=True)
    got, _ = readers.original_pipeline(tmp_path / "back", base)
    assert_same({**got, **{n: wanted[n] for n in lost}}, wanted)


def test_embedder_exports_that_cannot_be(tmp_path):
    base, _, weights = with_embedder()
    path = tmp_path / "x.safetensors"
    with pytest.raises(ConfigError, match="SimpleTuner"):
        write_lora(path, weights, "simpletuner", with_full=True)
    with pytest.raises(ConfigError, match=r"'diffusers' holds no lyrics embedder; .* --format peft"):
        write_lora(path, weights, "diffusers", with_full=True)
    with pytest.raises(ConfigError, match="--model"):
        write_lora(path, weights, "comfyui", with_full=True)
    weights.full = None
    with pytest.raises(ConfigError, match="has no lyrics embedder"):
        write_lora(path, weights, "comfyui", base=base, with_full=True)
    assert not path.exists()


def test_bad_embedders(tmp_path):
    tensors = full_parameters(make())
    with pytest.raises(CheckpointError, match=r"lyric_proj\.bias is missing"):
        set_full(make(), {k: v for k, v in tensors.items() if k != "lyric_proj.bias"})
    with pytest.raises(CheckpointError, match="has shape"):
        set_full(make(width=32), tensors)
    folder = tmp_path / "lyrics_embedder"
    folder.mkdir()
    with pytest.raises(CheckpointError, match="found 0"):
        read_full(tmp_path, LORA)
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x02.")
    with pytest.raises(CheckpointError, match="pickle"):
        read_full(tmp_path, LORA)
    save_file({"something.weight": A}, folder / "x.safetensors")
    with pytest.raises(CheckpointError, match="no lyrics embedder"):
        read_full(tmp_path, LORA)


# Properties -------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    ranks=st.lists(st.integers(1, 6), min_size=1, max_size=4),
    scale=st.floats(1e-3, 1e3),
    kind=st.sampled_from(sorted(FORMATS)),
    dtype=st.sampled_from([mx.float32, mx.bfloat16]),
    seed=st.integers(0, 2**31),
)
def test_any_lora_survives_any_format(ranks, scale, kind, dtype, seed, tmp_path):
    keys = iter(mx.random.split(mx.random.key(seed), 2 * len(ranks)))
    modules = {
        f"transformer_blocks.{i}.attn.to_q": LoRAModule(
            mx.random.normal((rank, 5), key=next(keys)), mx.random.normal((7, rank), key=next(keys)), scale
        )
        for i, rank in enumerate(ranks)
    }
    again = read_lora(write_lora(tmp_path / "x.safetensors", LoRAWeights(modules), kind, dtype))
    for path, module in modules.items():
        wanted, got = module.delta(), again.modules[path].delta()
        error = mx.linalg.norm(got - wanted) / mx.linalg.norm(wanted)
        assert error < 4 * TOLERANCES[dtype]


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=60))
def test_parsing_any_key_ends(text):
    for name in (
        text,
        f"lora_unet_{text}.alpha",
        f"transformer.{text}.lora_A.weight",
        f"{text}.lora_A.{text}.weight",
    ):
        key = parse(name, LORA)
        assert key is None or key.path


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=300))
def test_any_bytes_are_refused_in_one_line(tmp_path, data):
    path = Path(tmp_path) / "x.safetensors"
    path.write_bytes(data)
    with pytest.raises(CheckpointError):
        read_lora(path)
    path.write_bytes(len(data).to_bytes(8, "little") + data)
    with pytest.raises(CheckpointError):
        read_lora(path)


def test_the_estimate_of_the_difference_is_near_the_truth():
    keys = mx.random.split(mx.random.key(0), 4)
    one = LoRAModule(mx.random.normal((4, 50), key=keys[0]), mx.random.normal((40, 4), key=keys[1]), 2.0)
    padded = LoRAModule(mx.pad(one.a, [(0, 2), (0, 0)]), mx.pad(2 * one.b, [(0, 0), (0, 2)]))
    assert relative_difference(one, padded) == relative_difference(padded, one) == 0
    for size in (1e-6, 1e-3, 0.1):
        other = LoRAModule(
            one.a + size * mx.random.normal(one.a.shape, key=keys[2]),
            one.b + size * mx.random.normal(one.b.shape, key=keys[3]),
            2.0,
        )
        a, b = (m.scale * np.array(m.b, np.float64) @ np.array(m.a, np.float64) for m in (one, other))
        truth = np.linalg.norm(b - a) / np.linalg.norm(a)
        assert 0.7 * truth < relative_difference(one, other) < 1.4 * truth
    untrained = LoRAModule(one.a, 0 * one.b)
    assert relative_difference(untrained, untrained) == 0
    assert relative_difference(untrained, one) == math.inf


def test_a_file_of_a_newer_version(tmp_path):
    path = tmp_path / "newer.safetensors"
    save_file(good(), path, {METADATA_KEY: json.dumps({"format_version": 2, "baked": True, "rank": 4})})
    with pytest.raises(CheckpointError, match=r"newer\.safetensors: the LoRA was written by a newer version"):
        read_lora(path)
    save_file(good(), path, {METADATA_KEY: json.dumps({"baked": True, "rank": 4})})
    assert read_lora(path).modules, "a file of before versions were written"


@pytest.mark.parametrize("broken", ["a", "b"])
def test_what_is_no_number_never_compares_as_equal(broken, tmp_path):
    weights = from_model(trained(LoRASpec(rank=4)), LoRASpec(rank=4))
    path = write_lora(tmp_path / FILE_NAME, weights)
    name, module = next(iter(weights.modules.items()))
    wrong = replace(module, **{broken: getattr(module, broken) * mx.array(float("nan"))})
    expected = replace(weights, modules={**weights.modules, name: wrong})
    with pytest.raises(CheckpointError, match="reads back differently"):
        verify(path, expected, mx.float32)


@pytest.mark.parametrize("format", FORMATS)
def test_a_file_that_does_not_read_back_never_gets_its_name(format, tmp_path, monkeypatch):
    """What was there before stays."""
    weights = from_model(trained(LoRASpec(rank=4)), LoRASpec(rank=4))
    path = tmp_path / FILE_NAME
    path.write_bytes(b"before")
    save = mx.save_safetensors

    def damaged(file, tensors, metadata):
        save(file, {name: value + 1 for name, value in tensors.items()}, metadata)

    monkeypatch.setattr(mx, "save_safetensors", damaged)
    with pytest.raises(CheckpointError, match="reads back differently"):
        write_lora(path, weights, format)
    assert path.read_bytes() == b"before" and list(tmp_path.iterdir()) == [path]
