"""Where the tensors of ACE-Step 1.5 come from: the original's names and diffusers' become ours.

Ours are the original's names wherever they can be. What is dropped is listed with its reason; a tensor that
is in no table is an error, and all errors are named at once. The plan is made of names and shapes alone, so
that it costs nothing at the true size; `Entry.make` then does one tensor at a time.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from ...errors import CheckpointError, nearest

Table = tuple[tuple[str, str], ...]  # (regular expression of a whole name, replacement or reason)

#: the original's single file: prefix → component, and the prefix that is ours
ORIGINAL_PREFIXES: tuple[tuple[str, str, str], ...] = (
    ("decoder.", "transformer", ""),
    ("encoder.", "condition_encoder", ""),
    ("null_condition_emb", "condition_encoder", "null_condition_emb"),
    ("tokenizer.", "audio_tokenizer", ""),
    ("detokenizer.", "audio_token_detokenizer", ""),
)
_DIFFUSERS_ATTENTION: Table = (
    (r"(.*_attn)\.to_([qkv])\.(weight|bias)", r"\1.\2_proj.\3"),
    (r"(.*_attn)\.to_out\.0\.(weight|bias)", r"\1.o_proj.\2"),
    (r"(.*_attn)\.norm_([qk])\.weight", r"\1.\2_norm.weight"),
)
#: component → renames, in either layout: the names differ wherever the layouts do
RENAMES: dict[str, Table] = {
    "transformer": (
        (r"proj_(in|out)(?:\.1|_conv)\.(weight|bias)", r"proj_\1.\2"),
        *_DIFFUSERS_ATTENTION,
    ),
    "condition_encoder": _DIFFUSERS_ATTENTION,
    "audio_tokenizer": _DIFFUSERS_ATTENTION,
    "audio_token_detokenizer": _DIFFUSERS_ATTENTION,
    "vae": (),
}
#: component → what is not converted, with the reason
DROPS: dict[str, Table] = {
    "transformer": (),
    "condition_encoder": (
        (r"timbre_encoder\.special_token", "in the checkpoint, but the forward pass never uses it"),
    ),
    "audio_tokenizer": (),
    "audio_token_detokenizer": (),
    "vae": (),
}
# How weight normalisation is spelt: (suffix of the magnitude g, suffix of the direction v).
WEIGHT_NORM = (
    (".weight_g", ".weight_v"),
    (".parametrizations.weight.original0", ".parametrizations.weight.original1"),
)
NAMED_PROBLEMS = 8  # an error line counts the rest


@dataclass(frozen=True)
class Entry:
    """One tensor of ours: where it comes from and how it is made."""

    target: str
    sources: tuple[str, ...]  # (weight,) or, with weight normalisation, (g, v)
    module: nn.Module
    shape: tuple[int, ...]  # ours

    def make(self, read: Callable[[str], mx.array]) -> mx.array:
        """The converted tensor, in the source's dtype; weight normalisation is folded in float32."""
        parts = [read(name) for name in self.sources]
        value = parts[0] if len(parts) == 1 else fold_weight_norm(*parts)
        return to_layout(self.module, self.target, value)


@dataclass
class Plan:
    """Of one component: every tensor of ours, and what is left out, with the reason."""

    entries: list[Entry] = field(default_factory=list)
    dropped: dict[str, str] = field(default_factory=dict)


def fold_weight_norm(g: mx.array, v: mx.array) -> mx.array:
    """w = g · v / ‖v‖, the norm over the axes where g has size 1; computed in float32, in v's dtype.

    g counts the first axis, which of a transposed convolution is its input.
    """
    wide = v.astype(mx.float32)
    axes = [axis for axis in range(v.ndim) if g.shape[axis] == 1]
    norm = mx.sqrt(mx.sum(wide * wide, axis=axes, keepdims=True))
    return (g.astype(mx.float32) * (wide / norm)).astype(v.dtype)


def to_layout(module: nn.Module, name: str, value: mx.array) -> mx.array:
    """A PyTorch tensor in the layout of the MLX `module` that it goes to (channels last).

    (O, I, K) → (O, K, I) for Conv1d, (I, O, K) → (O, K, I) for ConvTranspose1d; Snake's (1, C, 1) → (C,).
    """
    leaf = name.rpartition(".")[2]
    if leaf == "weight" and isinstance(module, nn.ConvTranspose1d):
        return value.transpose(1, 2, 0)
    if leaf == "weight" and isinstance(module, nn.Conv1d):
        return value.transpose(0, 2, 1)
    if leaf in ("alpha", "beta") and value.ndim == 3 and value.shape[::2] == (1, 1):
        return value.reshape(-1)
    return value


def split_original(names: Sequence[str]) -> dict[str, dict[str, str]]:
    """Names of the original's file → component → {name within the component: name in the file}.

    Raises CheckpointError that names all that belong to no component.
    """
    split: dict[str, dict[str, str]] = {}
    unknown = []
    for name in names:
        for prefix, component, ours in ORIGINAL_PREFIXES:
            if name == prefix or (prefix.endswith(".") and name.startswith(prefix)):
                split.setdefault(component, {})[ours + name[len(prefix) :]] = name
                break
        else:
            unknown.append(f"unknown tensor {name!r}{nearest(name, [p for p, _, _ in ORIGINAL_PREFIXES])}")
    if unknown:
        raise problem_report("ACE-Step 1.5", unknown)
    return split


def problem_report(where: str, problems: Sequence[str]) -> CheckpointError:
    """One line that names the first problems and counts the rest."""
    shown, rest = problems[:NAMED_PROBLEMS], len(problems) - NAMED_PROBLEMS
    more = f"; and {rest} more" if rest > 0 else ""
    plural = "s" if len(problems) > 1 else ""
    return CheckpointError(f"{where}: {len(problems)} problem{plural}: {'; '.join(shown)}{more}")


def _pairs(names: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Weight names, with the sources of each: weight-normalised pairs become one `.weight`."""
    known = set(names)
    pairs: dict[str, tuple[str, ...]] = {}
    for name in names:
        for g, v in WEIGHT_NORM:
            if name.endswith(g) and name[: -len(g)] + v in known:
                pairs[name[: -len(g)] + ".weight"] = (name, name[: -len(g)] + v)
            elif not (name.endswith(v) and name[: -len(v)] + g in known):
                continue
            break
        else:
            pairs[name] = (name,)
    return pairs


def _rename(component: str, name: str) -> str:
    for pattern, replacement in RENAMES[component]:
        renamed, n = re.subn(f"^{pattern}$", replacement, name)
        if n:
            return renamed
    return name


def plan(component: str, module: nn.Module, shapes: Mapping[str, tuple[int, ...]]) -> Plan:
    """Which of the component's tensors becomes which of ours, from names and shapes alone.

    shapes: names within the component (of either layout) → PyTorch shapes. Raises CheckpointError that
    names every unknown, missing, doubled or wrongly shaped tensor.
    """
    wanted = {name: tuple(value.shape) for name, value in dict(tree_flatten(module.parameters())).items()}
    modules = dict(module.named_modules())
    found: dict[str, Entry] = {}
    done = Plan()
    problems: list[str] = []
    for name, sources in _pairs(list(shapes)).items():
        reason = next((why for pattern, why in DROPS[component] if re.fullmatch(pattern, name)), None)
        if reason is not None:
            done.dropped.update(dict.fromkeys(sources, reason))
            continue
        target = _rename(component, name)
        if target not in wanted:
            problems.append(f"unknown tensor {name!r}{nearest(name, wanted)}")
            continue
        if target in found:
            problems.append(f"{name!r} and {found[target].sources[-1]!r} are both {target!r}")
            continue
        owner = modules.get(target.rpartition(".")[0], module)
        found[target] = Entry(target, sources, owner, wanted[target])
        shape = tuple(shapes[sources[-1]])
        if len(sources) == 2 and not _scales(tuple(shapes[sources[0]]), shape):
            problems.append(f"{sources[0]!r} of shape {tuple(shapes[sources[0]])} cannot scale {shape}")
            continue
        got = _layout_shape(owner, target, shape)
        if got != wanted[target]:
            problems.append(f"{name!r} has shape {shape}, in our layout {got}; expected {wanted[target]}")
    problems += [f"missing tensor {name!r}" for name in wanted if name not in found]
    if problems:
        raise problem_report(component, problems)
    done.entries = [found[name] for name in wanted]
    return done


def _scales(g: tuple[int, ...], v: tuple[int, ...]) -> bool:
    """Whether a magnitude of shape g can scale a direction of shape v."""
    return len(g) == len(v) and all(a in (1, b) for a, b in zip(g, v, strict=True))


def _layout_shape(module: nn.Module, name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape in our layout; unchanged when the number of axes does not suit the module."""
    try:
        return tuple(to_layout(module, name, mx.zeros(shape)).shape)  # lazy: nothing is computed
    except ValueError:
        return shape


def translate(component: str, module: nn.Module, tensors: Mapping[str, mx.array]) -> dict[str, mx.array]:
    """A component's tensors (of either layout) as ours, ready for `load_weights(…, strict=True)`."""
    planned = plan(component, module, {name: tuple(value.shape) for name, value in tensors.items()})
    return {entry.target: entry.make(tensors.__getitem__) for entry in planned.entries}
