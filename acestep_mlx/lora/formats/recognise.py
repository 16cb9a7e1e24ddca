"""Which adapter a file holds and which model it was made for, from names and shapes alone."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache

import mlx.nn as nn

from ...errors import CheckpointError
from ...families import families
from ...families.protocol import Family
from ...formatting import count, listed
from ..full_modules import full_parameters
from ..linear import base_linears, linear_shape
from .keys import (
    FLAT_PREFIXES,
    PREFIXES,
    describe_unknown,
    module_of,
    other_kind,
    parse,
)

Shapes = Mapping[str, tuple[int, int]]
LOKR_KIND = "LyCORIS LoKr"
READ = ("LoRA", "DoRA", LOKR_KIND, f"LoRA and {LOKR_KIND}", f"DoRA and {LOKR_KIND}")  # kinds of adapters
MINIATURE = 1024  # no model that people use is narrower; ours for tests and the demo are

# Other models by how their modules are called, dots written as underscores; the first that is found counts.
OTHERS: tuple[tuple[str, str], ...] = (
    (r"model_layers_\d+_(self_attn|mlp)_", "a language model"),
    (r"layers_\d+_(self_attn|cross_attn)_to_(qkv|kv)$", "Stable Audio"),
    (r"layers_\d+_(attention|feed_forward|adaLN)", "Lumina or Z-Image"),
    (r"joint_transformer_blocks_\d+_", "AuraFlow"),
    (r"(double_stream_blocks|single_stream_blocks)_\d+_", "HiDream"),
    (r"(double_blocks|single_blocks|single_transformer_blocks)_\d+_", "FLUX or a model built like it"),
    (r"(input_blocks|output_blocks|middle_block|down_blocks|up_blocks|mid_block)_", "Stable Diffusion"),
    (r"joint_blocks_\d+_", "Stable Diffusion 3"),
    (r"transformer_blocks_\d+_(img|txt)_(mlp|mod)", "Qwen-Image"),
    (
        r"transformer_blocks_\d+_(attn_(add_[qkv]_proj|to_add_out|norm_)|ff_context_|norm1_)",
        "FLUX, Stable Diffusion 3 or Qwen-Image",
    ),
    (r"transformer_blocks_\d+_(attn[12]_|ff_net_)", "another diffusers transformer (PixArt, LTX-Video, …)"),
    (r"blocks_\d+_(self_attn|cross_attn|ffn)_", "Wan"),
    (r"(te\d?_)?text_model_encoder_|text_encoder", "the text encoder of an image model"),
    (r"encoder_block_\d+_layer_", "a T5 text encoder"),
)


@dataclass(frozen=True)
class Adapter:
    """What a file's keys say: `kind` of adapter, the `model` it is for, and its modules as they are spelt.

    `family` is the one of ours that has most of them, `strange` those that it does not have; `model` is None
    where they are nobody's that we know.
    """

    kind: str
    family: Family
    model: str | None
    modules: tuple[str, ...]
    strange: tuple[str, ...]

    @property
    def usable(self) -> bool:
        """Whether it can be read, and is on modules of the family."""
        return self.kind in READ and not self.strange

    @property
    def problem(self) -> str | None:
        """Why it cannot be used, as the end of a sentence that begins with the file's name."""
        if self.strange:
            nothing = self.strange == self.modules  # of any family's
            titles = [one.title for one in families()] if nothing else [self.family.title]
            for_model = f"is for {self.model or 'another model'}, not for {' or '.join(titles)}"
            kind = "" if self.kind in READ else f" (and {self.kind} is not supported)"
            verb = "is" if len(self.strange) == 1 else "are"
            some = "" if self.strange == self.modules else f"{len(self.strange)} of "
            return (
                f"{for_model}{kind}: {some}its {count(len(self.modules), 'module')} {verb} not in that "
                f"model: {describe_unknown(list(self.strange))}"
            )
        if self.usable:
            return None
        return (
            f"holds {self.kind} ({count(len(self.modules), 'module')}), which is not supported; train a "
            "LoRA, or let the program that made it convert it to one"
        )


def recognise(names: Iterable[str]) -> Adapter | None:
    """The adapter that tensors of these names make up, or None where they are no adapter."""
    names = list(names)
    modules = tuple(dict.fromkeys(path for path in map(module_of, names) if path))
    strangers = {
        family: tuple(path for path in modules if not is_ours(path, family)) for family in families()
    }
    family, strange = min(strangers.items(), key=lambda item: len(item[1]))
    roles = {key.role for key in (parse(name, family.lora) for name in names) if key is not None}
    low_rank = any(re.search(r"\.(lora_(A|B|a|b|down|up)|lora\.(down|up))(\.|$)", name) for name in names)
    kinds = list(dict.fromkeys(kind for kind in map(other_kind, names) if kind))
    lokr = any(".lokr_w" in name for name in names)
    if not low_rank and not lokr and not kinds:
        if not roles & {"diff", "set_weight"}:
            return None
        kinds = ["whole weights"]
    kind = "DoRA" if roles & {"magnitude", "dora_scale"} else "LoRA"
    if lokr:
        kind = f"{kind} and {LOKR_KIND}" if low_rank else LOKR_KIND
    if kinds:
        both = low_rank and not any(one.startswith("Lo") for one in kinds)
        kind = " and ".join(["LoRA", *kinds] if both else kinds)
    return Adapter(kind, family, _whose(strange) if strange else family.title, modules, strange)


def _whose(modules: tuple[str, ...]) -> str | None:
    """The model that has all of these modules, one of ours or another that is known."""
    ours = (one.title for one in families() if all(is_ours(path, one) for path in modules))
    return next(ours, None) or other_model(modules)


def is_ours(path: str, family: Family) -> bool:
    """Whether the family's model has such a module, in whatever spelling the file has it."""
    names = family.lora
    key = parse(f"{path}.alpha", names)
    if key is None:
        return False
    full = names.full.holds(key.path)  # may be trained as a whole, with norms and biases
    return full or names.numberless(key.path) in _kinds(family) or names.why_unused(key.path) is not None


def other_model(paths: Iterable[str]) -> str | None:
    """The model that these modules belong to, or None."""
    flat = [_flat(path) for path in paths]
    return next((name for pattern, name in OTHERS if any(re.match(pattern, one) for one in flat)), None)


def _flat(path: str) -> str:
    """`base_model.model.layers.0.self_attn.q_proj` → `layers_0_self_attn_q_proj`."""
    for prefix in (*PREFIXES, "unet.", *FLAT_PREFIXES, "lora_"):
        path = path.removeprefix(prefix)
    return path.replace(".", "_")


@cache
def _skeleton(family: Family, flavour: str) -> nn.Module:
    """The released transformer; lazy: takes no memory."""
    component = family.components["transformer"]
    return component.module(component.config(**family.variants[flavour].transformer))


@cache
def sizes(family: Family) -> Mapping[str, Shapes]:
    """`model_flavour` → (path → (out, in)) of every linear layer of the released model."""
    found: dict[str, Shapes] = {}
    for flavour, variant in family.variants.items():
        same = next((one for one in found if family.variants[one].transformer == variant.transformer), None)
        if same is None:
            linears = base_linears(_skeleton(family, flavour))
            found[flavour] = {path: linear_shape(linear) for path, linear in linears.items()}
        else:
            found[flavour] = found[same]
    return found


def released(family: Family) -> Shapes:
    """Those of the default one."""
    return next(iter(sizes(family).values()))


def fitting(shapes: Shapes, family: Family) -> list[str]:
    """The `model_flavour`s whose released models have all of these modules."""
    return [flavour for flavour, known in sizes(family).items() if shapes.items() <= known.items()]


def is_full_parameter(name: str, family: Family) -> bool:
    """Whether what may be trained in full has a parameter of this upstream name, in whatever layer."""
    return family.lora.numberless(name) in _full_kinds(family)


@cache
def _full_kinds(family: Family) -> frozenset[str]:
    parameters = full_parameters(_skeleton(family, next(iter(family.variants))))
    return frozenset(map(family.lora.numberless, parameters))


@cache
def _kinds(family: Family) -> frozenset[str]:
    return frozenset([*map(family.lora.numberless, released(family)), *family.lora.others])


def other_size(shapes: Shapes, family: Family) -> str | None:
    """How the modules (path → (out, in)) differ from every released model's, or None where they do not; from
    those of the one that has most of them.
    """

    def differing(known: Shapes) -> int:
        return sum(known.get(path) != shape for path, shape in shapes.items())

    known = min(sizes(family).values(), key=differing)
    wrong = [
        f"{path} is {shape[0]}×{shape[1]} there and "
        + (f"{known[path][0]}×{known[path][1]} here" if path in known else "not in the model at all")
        for path, shape in sorted(shapes.items(), key=lambda item: item[0] in known)
        if known.get(path) != shape
    ]
    return listed(wrong, 1) if wrong else None


def is_miniature(shapes: Shapes, family: Family) -> bool:
    """Whether these can be modules of a miniature model for tests, which has a size of its own.

    It has no layers beyond the released model's.
    """
    known = {path for one in sizes(family).values() for path in one}
    if any(path not in known and family.lora.numberless(path) != path for path in shapes):
        return False
    return max((min(shape) for shape in shapes.values()), default=0) < MINIATURE


def lookalike(shapes: Shapes, family: Family) -> str | None:
    """The other model whose layers are called as ours and have this width, or None."""
    first = f"{family.lora.numbered[0]}."
    widths = Counter(shape[1] for path, shape in shapes.items() if path.startswith(first))
    return family.lora.lookalikes.get(widths.most_common(1)[0][0]) if widths else None


def check_model(shapes: Shapes, family: Family, where: str) -> None:
    """CheckpointError where the modules are of no size that the family has; miniatures pass."""
    wrong = other_size(shapes, family)
    if wrong is None or is_miniature(shapes, family):
        return
    other = lookalike(shapes, family)
    whose = f" (the width of {other})" if other else ""
    raise CheckpointError(
        f"{where} is not for {family.title}: {wrong}{whose}; if its model has another size than the released "
        "one, name it with --model MLX_FOLDER"
    )
