"""What every loader calls the tensors of a LoRA: tables, and one function that reads a key.

Measured against diffusers, peft, the original pipeline, SimpleTuner and ComfyUI.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from ...families.protocol import LoRANames
from ...formatting import listed

# In front of a module path; stripped again and again ("base_model.model.transformer." too).
PREFIXES = ("base_model.model.", "model.diffusion_model.", "diffusion_model.", "transformer.")
# In front of a path whose dots became underscores.
FLAT_PREFIXES = ("lora_unet_", "lora_transformer_", "lycoris_")

# (ending, role); `.default` may be any adapter name.
ROLES: tuple[tuple[str, str], ...] = (
    (r"\.lora_A(?:\.(?P<adapter>\w+))?\.weight", "a"),
    (r"\.lora_B(?:\.(?P<adapter>\w+))?\.weight", "b"),
    (r"\.lora_down(?:\.(?P<adapter>\w+))?\.weight", "a"),
    (r"\.lora_up(?:\.(?P<adapter>\w+))?\.weight", "b"),
    (r"\.lora\.down\.weight", "a"),
    (r"\.lora\.up\.weight", "b"),
    (r"\.lora_a", "a_in_r"),  # our own and mlx-lm's: (in, r)
    (r"\.lora_b", "b_r_out"),  # (r, out)
    (r"\.m", "magnitude"),
    (r"\.lora_magnitude_vector(?:\.(?!weight$)(?P<adapter>\w+))?(?:\.weight)?", "magnitude"),
    (r"\.dora_scale", "dora_scale"),
    (r"\.alpha", "alpha"),
    (r"\.diff", "diff"),
    (r"\.diff_b", "diff_b"),
    (r"\.set_weight", "set_weight"),
    (r"\.lokr_w1", "w1"),  # LoKr: ΔW = w1 ⊗ w2, and either may be a product
    (r"\.lokr_w1_a", "w1_a"),
    (r"\.lokr_w1_b", "w1_b"),
    (r"\.lokr_w2", "w2"),
    (r"\.lokr_w2_a", "w2_a"),
    (r"\.lokr_w2_b", "w2_b"),
)

_ROLES = tuple((re.compile(f"(?P<path>.+?){ending}"), role) for ending, role in ROLES)

# Endings of adapters that are not LoRAs: (ending, what it is).
OTHER_KINDS: tuple[tuple[str, str], ...] = (
    (r"\.lokr_t\w+", "LyCORIS LoKr of a convolution"),
    (r"\.hada_(w1|w2|t1|t2)\w*", "LyCORIS LoHa"),
    (r"\.oft_\w+(\.weight)?", "OFT"),
    (r"\.(a1|a2|b1|b2|bm)\.weight", "GLoRA"),
    (r"\.ia3_l(\.\w+)*|\.on_input", "IA3"),
    (r"\.vera_lambda_[bd]", "VeRA"),
    (r"\.lora_mid(\.\w+)*", "LoCon with a middle convolution"),
    (r"\.lora_embedding_[AB](\.\w+)*", "LoRA on an embedding"),
    (r"\.lora_B(\.\w+)?\.bias", "LoRA with biases"),
    (r"\.(w_norm|b_norm)", "LoRA with norm layers"),
)
_OTHER_KINDS = tuple((re.compile(f"(?P<path>.+?)(?:{ending})"), kind) for ending, kind in OTHER_KINDS)


@dataclass(frozen=True)
class Key:
    """One tensor's place: dotted upstream path of its module, its role, the adapter's name if given."""

    path: str
    role: str
    adapter: str | None = None


def strip_prefix(name: str) -> str:
    """The upstream path without any loader's prefix."""
    stripped = next((name.removeprefix(p) for p in PREFIXES if name.startswith(p)), name)
    return stripped if stripped == name else strip_prefix(stripped)


def parse(name: str, names: LoRANames) -> Key | None:
    """Where the tensor `name` belongs, or None. Role "full": a plain parameter name."""
    for pattern, role in _ROLES:
        if match := pattern.fullmatch(name):
            path = _dotted(match["path"], names)
            groups = match.groupdict()
            return Key(path, role, groups.get("adapter")) if path else None
    plain = strip_prefix(name).replace(".base_layer.", ".")
    if names.full.holds(plain):
        return Key(plain, "full")
    return None


def _dotted(path: str, names: LoRANames) -> str | None:
    flat = next((path.removeprefix(p) for p in FLAT_PREFIXES if path.startswith(p)), None)
    if flat is None:
        return names.ours(strip_prefix(path).replace(".base_layer", ""))
    for pattern, replacement in names.flat:
        if re.fullmatch(pattern, flat):
            return re.sub(pattern, replacement, flat)
    return None


def describe_unknown(names: list[str]) -> str:
    """A line that names unknown keys and says what they look like."""
    shown = listed([repr(n if len(n) < 120 else n[:117] + "...") for n in names], between=", ")
    kind = next((kind for kind in map(other_kind, names) if kind), None)
    return shown + (f" ({kind} is not supported)" if kind else "")


def other_kind(name: str) -> str | None:
    """What adapter a tensor of this name belongs to, where that is no LoRA that can be read."""
    return next((kind for pattern, kind in _OTHER_KINDS if pattern.fullmatch(name)), None)


def spelled_path(name: str) -> str:
    """The path of a tensor's module as the file spells it, without any loader's prefix."""
    return strip_prefix(module_of(name) or name).replace(".base_layer", "")


def module_of(name: str) -> str | None:
    """The path in front of an adapter's ending, as the file spells it; None for any other tensor."""
    for pattern, _ in (*_ROLES, *_OTHER_KINDS):
        if match := pattern.fullmatch(name):
            return match["path"]
    return None
