"""From upstream tensors to ours: one plan per component, checked as a whole before any weight is read.

The plan knows shapes only, so it costs nothing at the true size; `Entry.make` then does one tensor at a time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import mlx.core as mx
import mlx.nn as nn

from ..errors import nearest
from ..families.keymap import KeyMap, keeps_rows, to_layout
from ..families.model_folder import parameters_of
from ..formatting import problem_report

# How weight normalisation is spelt: (suffix of the magnitude g, suffix of the direction v).
WEIGHT_NORM = (
    (".parametrizations.weight.original0", ".parametrizations.weight.original1"),
    (".weight_g", ".weight_v"),
)


@dataclass(frozen=True)
class Entry:
    """One tensor of ours: where it comes from and how it is made."""

    target: str
    sources: tuple[str, ...]  # (weight,) or, with weight normalisation, (g, v)
    module: nn.Module
    leaf: str
    shape: tuple[int, ...]  # ours
    swapped: bool = False  # the last two axes, beside what the module asks for

    @property
    def by_rows(self) -> bool:
        """Whether a slice of the source's rows becomes the same slice of ours, so that it may be cut."""
        return len(self.sources) == 1 and len(self.shape) > 0 and keeps_rows(self.module)

    def make(self, read: Callable[[str], mx.array]) -> mx.array:
        """The converted tensor, in the source's dtype; weight normalisation is folded in float32."""
        values = [read(name) for name in self.sources]
        value = values[0] if len(values) == 1 else fold_weight_norm(*values)
        return to_layout(self.module, self.leaf, value.swapaxes(-1, -2) if self.swapped else value)


@dataclass
class Plan:
    """Of one component: every tensor of ours, in the module's order, and where each of upstream's went."""

    entries: list[Entry] = field(default_factory=list)
    converted: dict[str, str] = field(default_factory=dict)  # upstream name → ours
    dropped: dict[str, str] = field(default_factory=dict)  # upstream name → reason

    def reasons(self) -> dict[str, int]:
        """How many tensors were dropped for each reason."""
        return dict(Counter(self.dropped.values()))


def fold_weight_norm(g: mx.array, v: mx.array) -> mx.array:
    """w = g · v / ‖v‖, the norm taken over the axes that g does not have (PyTorch's `weight_norm`).

    g has size 1 on those axes, or no axes at all (`dim=None`); so a transposed convolution, whose first
    axis is its input, needs no case of its own. Computed in float32, returned in v's dtype.
    """
    v32, g32 = v.astype(mx.float32), g.astype(mx.float32)
    axes = [axis for axis in range(v.ndim) if g.ndim == 0 or g.shape[axis] == 1]
    norm = mx.sqrt(mx.sum(v32 * v32, axis=axes, keepdims=True))
    return (g32 * (v32 / norm)).astype(v.dtype)


def _pairs(names: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Weight names, with the sources of each: weight-normalised pairs become one `.weight`."""
    pairs: dict[str, tuple[str, ...]] = {}
    known = set(names)
    for name in names:
        for g, v in WEIGHT_NORM:
            if name.endswith(g) and name[: -len(g)] + v in known:
                pairs[name[: -len(g)] + ".weight"] = (name, name[: -len(g)] + v)
                break
            if name.endswith(v) and name[: -len(v)] + g in known:
                break
        else:
            pairs[name] = (name,)
    return pairs


def _scales(g: tuple[int, ...], v: tuple[int, ...]) -> bool:
    """Whether a magnitude of shape g can scale a direction of shape v."""
    return not g or (len(g) == len(v) and all(a in (1, b) for a, b in zip(g, v, strict=True)))


def _layout_shape(module: nn.Module, leaf: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape in our layout; unchanged when the number of axes does not suit the module."""
    try:
        return tuple(to_layout(module, leaf, mx.zeros(shape)).shape)  # lazy: nothing is computed
    except ValueError:
        return shape


def plan(component: str, keymap: KeyMap, module: nn.Module, shapes: Mapping[str, tuple[int, ...]]) -> Plan:
    """Which upstream tensor becomes which of ours, from names and shapes alone.

    component: its name, for messages. module: the target, built from the same config. shapes: upstream's, by
    upstream's names. Raises `CheckpointError` that lists every unknown, missing, doubled or wrongly shaped
    tensor.
    """
    wanted = {name: value.shape for name, value in parameters_of(module).items()}
    modules = dict(module.named_modules())
    entries: dict[str, Entry] = {}
    done = Plan()
    problems: list[str] = []
    pairs = _pairs(list(shapes))
    for name, sources in pairs.items():
        reason = keymap.dropped(name, pairs)
        if reason is not None:
            done.dropped.update(dict.fromkeys(sources, reason))
            continue
        target = keymap.rename(name)
        if target not in wanted:
            problems.append(f"unknown tensor {name!r}{nearest(name, wanted)}")
            continue
        if target in entries:
            problems.append(f"{name!r} and {entries[target].sources[-1]!r} are both {target!r}")
            continue
        parent, _, leaf = target.rpartition(".")
        owner = modules.get(parent, module)
        swapped = name in keymap.swapped and len(shapes[name]) > 2
        entries[target] = Entry(target, sources, owner, leaf, tuple(wanted[target]), swapped)
        done.converted.update(dict.fromkeys(sources, target))
        shape = shapes[sources[-1]]
        if len(sources) == 2 and not _scales(shapes[sources[0]], shape):
            g = f"{sources[0]!r} of shape {shapes[sources[0]]}"
            problems.append(f"weight normalisation of {name!r}: {g} cannot scale {shape}")
            continue
        got = _layout_shape(owner, leaf, (*shape[:-2], *shape[:-3:-1]) if swapped else shape)
        if got != wanted[target]:
            problems.append(f"{name!r} has shape {shape}, in our layout {got}; expected {wanted[target]}")
    problems += [f"missing tensor {name!r}" for name in wanted if name not in entries]
    if problems:
        raise problem_report(component, problems)
    done.entries = [entries[name] for name in wanted]
    return done


def translate(
    component: str, keymap: KeyMap, module: nn.Module, tensors: Mapping[str, mx.array]
) -> dict[str, mx.array]:
    """Upstream tensors of one component as ours, ready for `module.load_weights(list(...), strict=True)`.

    tensors: upstream's names and layout, any float dtype (kept). Raises `CheckpointError` as `plan` does.
    """
    done = plan(component, keymap, module, {name: tuple(t.shape) for name, t in tensors.items()})
    return {entry.target: entry.make(tensors.__getitem__) for entry in done.entries}
