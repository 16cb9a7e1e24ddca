"""The rules of other programs' loaders, stated again from their documentation and behaviour, on numpy alone.

Each takes a file and the base weights by upstream name and returns the weights after loading at strength 1.0,
with the keys it did not use. Nothing here knows the product's code.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors import safe_open

Weights = dict[str, np.ndarray]


def tensors(path: Path) -> tuple[Weights, dict[str, str]]:
    with safe_open(path, framework="np") as file:
        return {k: file.get_tensor(k).astype(np.float32) for k in file.keys()}, file.metadata() or {}  # noqa: SIM118


def row_norm(weight: np.ndarray) -> np.ndarray:
    return np.sqrt((weight.astype(np.float64) ** 2).reshape(weight.shape[0], -1).sum(1))


def low_rank(b: np.ndarray, a: np.ndarray) -> np.ndarray:
    return b.reshape(b.shape[0], -1) @ a.reshape(a.shape[0], -1)


def peft_layer(weight: np.ndarray, a: np.ndarray, b: np.ndarray, magnitude: np.ndarray | None) -> np.ndarray:
    """peft with lora_alpha = r."""
    assert a.ndim == b.ndim == weight.ndim, "peft wants a convolution's tensors for a convolution"
    adapted = weight + low_rank(b, a).reshape(weight.shape)
    if magnitude is None:
        return adapted
    gain = (magnitude.reshape(-1) / row_norm(adapted)).reshape(-1, *[1] * (weight.ndim - 1))
    return gain * adapted


def original_pipeline(folder: Path, base: Weights) -> tuple[Weights, list[str]]:
    """Takes the folder; unprefixed keys; alpha and metadata do nothing; raw keys overwrite the base."""
    given, metadata = tensors(folder / "pytorch_lora_weights.safetensors")
    assert "lora_adapter_metadata" not in metadata and not any(k.endswith(".alpha") for k in given)
    ranks = {v.shape[0] for k, v in given.items() if ".lora_A." in k}
    assert len(ranks) == 1, "one rank for all"
    out, used = dict(base), set()
    for key in given:
        name = key.replace(".base_layer.", ".")
        if name in base:
            out[name] = given[key]
            used.add(key)
    for key in given:
        module = key.removesuffix(".lora_A.weight")
        if module == key or f"{module}.weight" not in base:
            continue
        parts = [key, f"{module}.lora_B.weight", f"{module}.lora_magnitude_vector"]
        a, b, magnitude = (given.get(k) for k in parts)
        out[f"{module}.weight"] = peft_layer(out[f"{module}.weight"], a, b, magnitude)
        used |= set(parts)
    return out, sorted(set(given) - used)


def simpletuner(path: Path, base: Weights) -> tuple[Weights, list[str]]:
    """--init_lora: keys begin with `transformer.`; one rank; no alpha; magnitudes under `.weight`."""
    given, _ = tensors(path)
    ours = {k.removeprefix("transformer."): v for k, v in given.items() if k.startswith("transformer.")}
    assert not any(k.endswith(".alpha") for k in ours)
    assert len({v.shape[0] for k, v in ours.items() if ".lora_A." in k}) == 1
    out, used = dict(base), set()
    for key, a in ours.items():
        module = key.removesuffix(".lora_A.weight")
        if module == key or f"{module}.weight" not in base:
            continue
        parts = [key, f"{module}.lora_B.weight", f"{module}.lora_magnitude_vector.weight"]
        out[f"{module}.weight"] = peft_layer(base[f"{module}.weight"], a, ours[parts[1]], ours.get(parts[2]))
        used |= {f"transformer.{k}" for k in parts}
    return out, sorted(set(given) - used)


def comfyui(path: Path, base: Weights, strength: float = 1.0) -> tuple[Weights, list[str]]:
    """Load LoRA (model only): one patch per weight, the last kind found; its map has only `.weight` keys.

    Measured with ComfyUI 0.3.64 and 0.8.0: `dora_scale` is over the base's norm and interpolates below 1.0;
    `lora_magnitude_vector`, whole parameters under their plain names, other prefixes than `diffusion_model.`
    and biases of attention positions (`pos_bias_u/v`) are not loaded.
    """
    given, _ = tensors(path)
    modules = {k.removesuffix(".weight"): k for k in base if k.endswith(".weight")}
    names = {**modules, **{f"diffusion_model.{k}": v for k, v in modules.items()}}
    out, used = dict(base), set()
    for name, key in names.items():
        weight = base[key]
        new = None
        if f"{name}.lora_A.weight" in given:
            a, b = given[f"{name}.lora_A.weight"], given[f"{name}.lora_B.weight"]
            used |= {f"{name}.lora_A.weight", f"{name}.lora_B.weight"}
            scale = 1.0
            if f"{name}.alpha" in given:
                scale = float(given[f"{name}.alpha"]) / a.shape[0]
                used.add(f"{name}.alpha")
            delta = scale * low_rank(b, a).reshape(weight.shape)
            if f"{name}.dora_scale" in given:
                dora = given[f"{name}.dora_scale"]
                used.add(f"{name}.dora_scale")
                norm = row_norm(weight).reshape(-1, *[1] * (weight.ndim - 1))
                assert dora.shape == norm.shape
                new = weight + strength * ((weight + delta) * (dora / norm) - weight)
            else:
                new = weight + strength * delta
        if any(f"{name}.lokr_w{n}" in given for n in ("1", "1_a")):
            new = weight + strength * lokr(given, name, used).reshape(weight.shape)
        if f"{name}.diff" in given:
            assert given[f"{name}.diff"].shape == weight.shape
            new = weight + strength * given[f"{name}.diff"]
            used.add(f"{name}.diff")
        if f"{name}.set_weight" in given:
            new = given[f"{name}.set_weight"]
            used.add(f"{name}.set_weight")
        if new is not None:
            out[key] = new
        if f"{name}.diff_b" in given:
            bias = key.removesuffix("weight") + "bias"
            out[bias] = base[bias] + strength * given[f"{name}.diff_b"]
            used.add(f"{name}.diff_b")
    return out, sorted(set(given) - used)


def lokr(given: Weights, name: str, used: set[str]) -> np.ndarray:
    """w1 ⊗ w2, times alpha over the rank of what is a product; nothing of the kind where both are whole."""
    factors, rank = [], None
    for one in (f"{name}.lokr_w1", f"{name}.lokr_w2"):
        if one in given:
            factors.append(given[one])
            used.add(one)
        else:
            factors.append(given[f"{one}_a"] @ given[f"{one}_b"])
            rank = given[f"{one}_b"].shape[0]
            used |= {f"{one}_a", f"{one}_b"}
    used.add(f"{name}.alpha")
    assert all(factor.ndim == 2 for factor in factors), "ComfyUI multiplies other dimensions wrongly"
    scale = float(given[f"{name}.alpha"]) / rank if rank is not None else 1.0
    return scale * np.kron(*factors)


def acestep_mlx(path: Path, base: Weights) -> tuple[Weights, list[str]]:
    """Our own form: lora_a (in, r), lora_b (r, out), m; scale, and exceptions from it, in the metadata."""
    given, metadata = tensors(path)
    facts = json.loads(metadata["acestep_mlx"])
    assert facts["baked"] is False
    assert facts["scale"] == facts["alpha"] / facts["rank"] ** (0.5 if facts["use_rslora"] else 1)
    out, used = dict(base), set()
    for key in given:
        module = key.removesuffix(".lora_a")
        if module == key:
            continue
        parts = [key, f"{module}.lora_b", f"{module}.m"]
        a, b, magnitude = (given.get(k) for k in parts)
        scale = facts["scales"].get(module, facts["scale"])
        weight = base[f"{module}.weight"]
        adapted = weight + (scale * (a.astype(np.float64) @ b)).T.reshape(weight.shape)
        if magnitude is not None:
            adapted *= (magnitude / row_norm(adapted)).reshape(-1, *[1] * (weight.ndim - 1))
        out[f"{module}.weight"] = adapted
        used |= set(parts)
    return out, sorted(set(given) - used)
