"""Trainable LoRA and DoRA layers in a frozen transformer.

    y = W x + bias + s·B A x,   s = alpha/r, or alpha/√r with rsLoRA      (Hu et al. 2021; Kalajdzievski 2023)

DoRA (Liu et al. 2024) adds a magnitude per output row: y = bias + g·(W x + s·B A x) with
g = m/‖W + s·BA‖ and m = ‖W‖ at the start; as in the paper no gradient flows through the norm.

A, B and m are float32 masters, cast to the activations' dtype in the forward pass. B starts at zero and
g at exactly 1, so an untrained adapter changes nothing, bit for bit, on any base.
"""

from __future__ import annotations

import contextlib
import math
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_unflatten

from ..errors import ConfigError, nearest
from ..families import default, of_lora
from ..formatting import listed
from ..nn.recompute import product
from . import lokr
from .formats.keys import describe_unknown
from .linear import (
    Wrapper,
    adapted_norms,
    base_linears,
    linear_shape,
    own_dtype,
    row_norms_squared,
    with_product,
)
from .lokr import LoKrLinear, LoKrSpec, Plan, misfit
from .weights import LoRAModule, LoRAWeights

INIT_TYPES = ("default", "gaussian")
MAX_RANK = 1024
LORA_TRAINABLE = ("lora_a", "lora_b", "m")  # the parameters of a layer, named as mlx-lm names them
TRAINABLE = (*LORA_TRAINABLE, *lokr.TRAINABLE)


@dataclass(frozen=True)
class LoRASpec:
    """What to inject. `alpha` None means alpha = rank; `targets` are module paths or their endings.

    `init_type` as peft calls it: "default" (also True, "true", "kaiming") draws A uniformly within ±1/√in,
    "gaussian" from a normal of deviation 1/r. Raises ConfigError for anything out of range.
    """

    rank: int = 16
    alpha: float | None = None
    use_rslora: bool = False
    use_dora: bool = False
    dropout: float = 0.0
    targets: tuple[str, ...] = field(default_factory=lambda: default().lora.default_targets)
    init_type: str | bool = "default"

    def __post_init__(self) -> None:
        if isinstance(self.rank, bool) or not isinstance(self.rank, int) or not 1 <= self.rank <= MAX_RANK:
            raise ConfigError(f"lora_rank must be a whole number between 1 and {MAX_RANK}, got {self.rank!r}")
        alpha = self.rank if self.alpha is None else self.alpha
        if not isinstance(alpha, (int, float)) or not math.isfinite(alpha) or alpha <= 0:
            raise ConfigError(f"lora_alpha must be a number above 0, got {self.alpha!r}")
        if not isinstance(self.dropout, (int, float)) or not 0 <= self.dropout < 1:
            raise ConfigError(f"lora_dropout must be at least 0 and below 1, got {self.dropout!r}")
        if isinstance(self.targets, str) or not self.targets:
            raise ConfigError(f"LoRA targets must be a list of module names, got {self.targets!r}")
        object.__setattr__(self, "alpha", float(alpha))
        object.__setattr__(self, "targets", tuple(self.targets))
        object.__setattr__(self, "init_type", _init_type(self.init_type))

    @property
    def scale(self) -> float:
        """s: alpha/r, or alpha/√r with rsLoRA."""
        assert self.alpha is not None
        return self.alpha / (math.sqrt(self.rank) if self.use_rslora else self.rank)

    @property
    def facts(self) -> dict[str, Any]:
        """What a file's metadata says about this adapter."""
        return {
            "rank": self.rank,
            "alpha": self.alpha,
            "scale": self.scale,
            "use_rslora": self.use_rslora,
            "use_dora": self.use_dora,
            "dropout": self.dropout,
            "targets": list(self.targets),
        }


def _init_type(value: str | bool) -> str:
    name = str(value).lower()
    if name in ("default", "true", "kaiming"):
        return "default"
    if name == "gaussian":
        return name
    raise ConfigError(
        f"lora_init_type {value!r} is not offered: a LoRA that starts away from zero changes the base model, "
        f"and other loaders could not follow; use one of {', '.join(INIT_TYPES)}"
    )


class _Adapter(Wrapper, nn.Module):
    """What the two layers below share: how masters are made, dropout, and being switched off."""

    def __init__(self, linear: nn.Module, spec: LoRASpec, key: mx.array) -> None:
        super().__init__()
        out, inputs = linear_shape(linear)
        self.linear = linear
        self.scale = spec.scale
        self.dropout_p = float(spec.dropout)
        self.enabled = True  # False: the layer is its base again, bit for bit
        self.seeded = False
        if spec.dropout:
            self._dropout_key = mx.random.key(
                0
            )  # here from the start, so that a compiled state keeps its shape
        if spec.init_type == "gaussian":
            self.lora_a = mx.random.normal((inputs, spec.rank), key=key) / spec.rank
        else:
            bound = 1 / math.sqrt(inputs)
            self.lora_a = mx.random.uniform(-bound, bound, (inputs, spec.rank), key=key)
        self.lora_b = mx.zeros((spec.rank, out))

    def _dropped(self, x: mx.array) -> mx.array:
        if self.dropout_p == 0 or not self.training:
            return x
        if not self.seeded:
            raise RuntimeError("LoRA dropout needs seed_dropout(transformer, key) before the forward pass")
        keep = 1 - self.dropout_p
        return mx.where(mx.random.bernoulli(keep, x.shape, key=self._dropout_key), x / keep, 0)

    def to_module(self) -> LoRAModule:
        """Its update as it is now."""
        return LoRAModule(self.lora_a.T, self.lora_b.T, self.scale, self.m if "m" in self else None)

    def _factors(self, x: mx.array) -> tuple[mx.array, mx.array]:
        """A x and s·B in x's dtype; s goes into the small B in float32, as the exported file has it."""
        low = self._dropped(x) @ self.lora_a.astype(x.dtype)
        return low, (self.scale * self.lora_b).astype(x.dtype)

    def _update(self, x: mx.array) -> mx.array:
        """s·B A x in x's dtype."""
        low, b = self._factors(x)
        return low @ b


class LoRALinear(_Adapter):
    """Float32 masters under any activation dtype: lora_a (in, r), lora_b (r, out)."""

    def __call__(self, x: mx.array) -> mx.array:
        y: mx.array
        if not self.enabled or own_dtype(self.linear) != x.dtype:
            y = self.linear(x)
            return y + self._update(x).astype(y.dtype) if self.enabled else y
        return with_product(self.linear, x, *self._factors(x))


class DoRALinear(_Adapter):
    """LoRA with a magnitude m (out,) float32; bit-exact at the start, without dequantising the base."""

    keeps_within = True  # the magnitude's gradient needs what the base gives

    def __init__(self, linear: nn.Module, spec: LoRASpec, key: mx.array) -> None:
        super().__init__(linear, spec, key)
        self._base_sq = row_norms_squared(linear)
        self.m = mx.sqrt(mx.maximum(self._base_sq, 1e-30))
        mx.eval(self.m, self._base_sq)  # so that one dequantised weight is alive at a time

    def norms(self, dtype: mx.Dtype = mx.float32) -> mx.array:
        """‖W + s·BA‖ per output row, (out,) float32; W is multiplied in `dtype`."""
        trained = "weight" in self.linear.trainable_parameters()  # in full: it moves
        base_sq = row_norms_squared(self.linear) if trained else self._base_sq
        a, b = self.lora_a.T.astype(dtype), self.lora_b.T
        return adapted_norms(self.linear, base_sq, a, b, self.scale)

    def __call__(self, x: mx.array) -> mx.array:
        y = product(self.linear, x)
        if not self.enabled:
            return y
        gain = self.m / mx.stop_gradient(self.norms(x.dtype))
        base = y - self.linear.bias if "bias" in self.linear else y
        # g − 1 in float32 before the cast: in bfloat16 a gain of 1.001 would be lost.
        change = (gain - 1).astype(x.dtype) * base + gain.astype(x.dtype) * self._update(x)
        return y + change.astype(y.dtype)


AdapterLayer = LoRALinear | DoRALinear | LoKrLinear
AdapterSpec = LoRASpec | LoKrSpec


def find_targets(transformer: nn.Module, targets: tuple[str, ...]) -> dict[str, nn.Module]:
    """The linear layers whose path is, or ends with, one of `targets`, sorted by path.

    Raises ConfigError for a target that matches nothing, or matches something that is not a linear layer.
    """
    modules = dict(transformer.named_modules())
    linears = {p: m for p, m in modules.items() if isinstance(m, (nn.Linear, nn.QuantizedLinear))}
    found: dict[str, nn.Module] = {}
    problems = []
    for target in targets:
        name = target.strip(".")
        matches = [p for p in modules if p and (p == name or p.endswith("." + name))]
        kinds = sorted({type(modules[p]).__name__ for p in matches if p not in linears})
        last_two = ".".join(name.split(".")[-2:])
        refused = transformer.lora.refused
        reason = refused.get(last_two) or refused.get(name.split(".")[-1])
        if not name or reason:
            problems.append(f"{target!r} cannot carry a LoRA: {reason or 'it is empty'}")
        elif not matches:
            names = {p.split(".")[-1] for p in linears} | {".".join(p.split(".")[-2:]) for p in linears}
            ends = {p.split(".")[-1] for p in linears}
            there = listed(sorted(end for end in ends if not end.isdigit()), 16, ", ")
            hint = nearest(name, sorted(names)) or f"; name linear layers of it: {there}"
            problems.append(f"{target!r} matches no module of this model{hint}")
        elif kinds:
            problems.append(f"{target!r} is not a linear layer but {', '.join(kinds)}")
        found.update({p: linears[p] for p in matches if p in linears})
    if problems:
        raise ConfigError("LoRA target (peft_lora_target_modules) " + "; ".join(problems))
    return dict(sorted(found.items()))


def idle_targets(transformer: nn.Module, targets: Iterable[str]) -> list[str]:
    """What the user should know about these targets, one sentence each."""
    idle = transformer.lora.idle.items()
    return [line for name, line in idle if any(t == name or t.endswith(f".{name}") for t in targets)]


def lokr_plans(transformer: nn.Module, spec: LoKrSpec) -> dict[str, Plan]:
    """Path → plan of each layer that gets a LoKr. Raises ConfigError where none does."""
    chosen = base_linears(transformer) if spec.config.chooses else find_targets(transformer, spec.targets)
    return spec.plans(transformer, chosen)


def target_shapes(transformer: nn.Module, spec: AdapterSpec) -> dict[str, tuple[int, int]]:
    """Path → (out, in) of the layers that get an adapter. Raises ConfigError for what matches nothing."""
    if isinstance(spec, LoRASpec):
        return {p: linear_shape(layer) for p, layer in find_targets(transformer, spec.targets).items()}
    plans = lokr_plans(transformer, spec).items()
    return {p: (plan.w1[0] * plan.w2[0], plan.w1[1] * plan.w2[1]) for p, plan in plans}


def adapter_size(transformer: nn.Module, spec: AdapterSpec) -> int:
    """How many numbers the adapters train."""
    if isinstance(spec, LoRASpec):
        sizes = target_shapes(transformer, spec).values()
        return sum(spec.rank * (out + inputs) + (out if spec.use_dora else 0) for out, inputs in sizes)
    return sum(plan.parameters for plan in lokr_plans(transformer, spec).values())


def adapter_keeps(transformer: nn.Module, spec: AdapterSpec) -> tuple[int, int]:
    """Numbers a token that a LoKr's layers keep in all, and of the largest; a LoRA keeps next to nothing."""
    if isinstance(spec, LoRASpec):
        return 0, 0
    kept = [plan.kept for plan in lokr_plans(transformer, spec).values()]
    return sum(kept), max(kept)


def inject(transformer: nn.Module, spec: AdapterSpec, *, seed: int = 0) -> list[str]:
    """Replace the target layers by trainable ones, in place; everything else is frozen.

    Returns the paths of the replaced modules. The first values of a module depend on `seed` and its path
    alone, not on what else is trained. Raises ConfigError for a target that does not match (see
    find_targets), or where there are adapters already.
    """
    if adapter_modules(transformer):
        raise ConfigError("this model has LoRA layers already; load it again before injecting others")
    layers: dict[str, nn.Module] = {}
    linears = base_linears(transformer)
    plans = lokr_plans(transformer, spec) if isinstance(spec, LoKrSpec) else {}
    for path in plans or find_targets(transformer, spec.targets):
        key = mx.random.key(((seed & 0xFFFFFFFF) << 32) | zlib.crc32(path.encode()))
        if isinstance(spec, LoKrSpec):
            layer: AdapterLayer = LoKrLinear(linears[path], plans[path], key)
        else:
            layer = (DoRALinear if spec.use_dora else LoRALinear)(linears[path], spec, key)
        layer.train(linears[path].training)
        layers[path] = layer
    transformer.freeze()
    transformer.update_modules(tree_unflatten(list(layers.items())))
    unfreeze_adapters(transformer)
    mx.eval([layer.trainable_parameters() for layer in layers.values()])
    return list(layers)


def adapter_modules(transformer: nn.Module) -> dict[str, AdapterLayer]:
    """Path → trainable LoRA, DoRA or LoKr layer."""
    return {p: m for p, m in transformer.named_modules() if isinstance(m, AdapterLayer)}


def unfreeze_adapters(transformer: nn.Module) -> None:
    """Make what adapters train trainable again after a `transformer.freeze()`."""
    for layer in adapter_modules(transformer).values():
        layer.unfreeze(keys=[k for k in TRAINABLE if k in layer], recurse=False)


def seed_dropout(transformer: nn.Module, key: mx.array) -> None:
    """Give every adapter its own dropout key for one forward and backward pass.

    Call it inside the compiled step with a key that the step is given or draws: a checkpointed block runs its
    forward pass twice and must drop the same elements both times, which the global random state would not do.
    """
    layers = [layer for layer in adapter_modules(transformer).values() if layer.dropout_p > 0]
    if layers:
        for layer, one in zip(layers, mx.random.split(key, len(layers)), strict=True):
            layer._dropout_key = one
            layer.seeded = True


@contextlib.contextmanager
def evaluating(transformer: nn.Module) -> Iterator[None]:
    """Adapters without dropout inside the `with`; in training mode after it."""
    layers = list(adapter_modules(transformer).values())
    for layer in layers:
        layer.eval()
    try:
        yield
    finally:
        for layer in layers:
            layer.train()


@contextlib.contextmanager
def disabled(transformer: nn.Module) -> Iterator[None]:
    """The base model inside the `with`, bit for bit; functions compiled outside keep their adapters."""
    layers = list(adapter_modules(transformer).values())
    before = [layer.enabled for layer in layers]
    for layer in layers:
        layer.enabled = False
    try:
        yield
    finally:
        for layer, enabled in zip(layers, before, strict=True):
            layer.enabled = enabled


def from_model(transformer: nn.Module, spec: AdapterSpec, **facts: Any) -> LoRAWeights:
    """The adapters as they are now, to be written with `write_lora`; `facts` go into the file's metadata."""
    modules = {path: layer.to_module() for path, layer in adapter_modules(transformer).items()}
    return LoRAWeights(modules, spec.facts | facts, family=of_lora(transformer.lora))


def check_start_of(transformer: nn.Module, weights: LoRAWeights, spec: AdapterSpec, where: str) -> None:
    """`check_start`, or the same for a LoKr, of adapters that `spec` describes."""
    if isinstance(spec, LoKrSpec):
        check_lokr_start(transformer, weights, lokr_plans(transformer, spec), where)
    else:
        paths = find_targets(transformer, spec.targets)
        check_start(transformer, weights, dict.fromkeys(paths, spec.rank), spec.use_dora, where)


def check_lokr_start(
    transformer: nn.Module, weights: LoRAWeights, plans: Mapping[str, Plan], where: str
) -> None:
    """Whether LoKr layers of these plans (by path) can start from `weights`; raises as `check_start`."""
    weights.check_against(transformer, where)
    if weights.is_dora or any(module.w1 is None for module in weights.modules.values()):
        kind = "LoKr with magnitudes" if weights.is_lokr and weights.is_dora else weights.kind
        raise ConfigError(f"{where} is a {kind}, and a plain LoKr is trained here: it cannot be gone on from")
    if extra := [path for path in weights.modules if path not in plans]:
        raise ConfigError(
            f"{where} has modules that this run does not train: {describe_unknown(extra)}; name them in "
            "apply_preset of lycoris_config"
        )
    for path, module in weights.modules.items():
        if reason := misfit(module, plans[path]):
            raise ConfigError(f"{where} {reason} ({path})")


def check_start(
    transformer: nn.Module, weights: LoRAWeights, ranks: Mapping[str, int], use_dora: bool, where: str
) -> None:
    """Whether adapters of these ranks (by path) can start from `weights`; needs the model's shapes only.

    Raises CheckpointError for another model's LoRA, ConfigError where modules, rank or kind do not fit; it
    names all the settings that would make them fit.
    """
    weights.check_against(transformer, where)
    if weights.is_lokr:
        raise ConfigError(
            f"{where} is a LoKr, and a LoRA is trained here: it cannot be gone on from but with "
            "lora_type=lycoris"
        )
    problems, advice = [], []
    if extra := [path for path in weights.modules if path not in ranks]:
        problems.append(f"has modules that this run does not train: {describe_unknown(extra)}")
        advice.append(_targets_advice(transformer, set(weights.modules), set(ranks)))
    larger = {path: m.rank for path, m in weights.modules.items() if m.rank > ranks.get(path, m.rank)}
    if larger:
        path, rank = max(larger.items(), key=lambda item: item[1])
        problems.append(f"has rank {rank} at {path}, and lora_rank is {ranks[path]}")
        advice.append(f"lora_rank={rank}")
    if weights.is_dora and not use_dora:
        problems.append("is a DoRA")
        advice.append("use_dora=true")
    if problems:
        raise ConfigError(f"{where} {', and '.join(problems)}; to start from it set {', '.join(advice)}")


def _targets_advice(transformer: nn.Module, wanted: set[str], trained: set[str]) -> str:
    """The setting that trains the modules `wanted` too: a preset where the run uses one, else a list."""
    linears, names = list(base_linears(transformer)), transformer.lora

    def covered(targets: tuple[str, ...]) -> set[str]:
        return {p for p in linears if any(p == t or p.endswith(f".{t}") for t in targets)}

    if any(trained == covered(targets) for targets in names.presets.values()):
        for name, targets in names.presets.items():
            if wanted <= covered(targets):
                return f"{names.option}={name}"
    endings = dict.fromkeys(map(_ending, sorted(wanted | trained)))
    return f"peft_lora_target_modules={','.join(endings)}"


def _ending(path: str) -> str:
    """The end of a path that names this kind of module: `attn.to_out.0` → `to_out.0`, `….w_1` → `w_1`."""
    parts = path.split(".")
    plain = len(parts) == 1 or not (parts[-1].isdigit() or parts[-1] in ("conv", "linear"))
    return parts[-1] if plain else ".".join(parts[-2:])


def load_adapters(transformer: nn.Module, weights: LoRAWeights, where: str | None = None) -> None:
    """Start the injected adapters from a LoRA, rescaled to their own alpha and rank: the same ΔW.

    Rows of A beyond the file's rank keep their random start (with zeros in B), so that they can learn.
    Raises CheckpointError for another model's LoRA, ConfigError where modules, rank or kind do not fit.
    """
    where = where or weights.source
    layers = adapter_modules(transformer)
    lokrs = {path: layer for path, layer in layers.items() if isinstance(layer, LoKrLinear)}
    if lokrs:
        check_lokr_start(transformer, weights, {p: layer.plan for p, layer in lokrs.items()}, where)
        started = (lokrs[path].start_from(module, path) for path, module in weights.modules.items())
        _update(transformer, [pair for pairs in started for pair in pairs])
        return
    ranks = {path: layer.lora_a.shape[1] for path, layer in layers.items()}
    check_start(transformer, weights, ranks, all("m" in layer for layer in layers.values()), where)
    updates: list[tuple[str, mx.array]] = []
    for path, module in weights.modules.items():
        layer = layers[path]
        rank = layer.lora_a.shape[1]
        a = mx.concatenate([module.a.T, layer.lora_a[:, module.rank :]], axis=1)
        b = mx.pad((module.scale / layer.scale) * module.b.T, [(0, rank - module.rank), (0, 0)])
        updates += [(f"{path}.lora_a", a), (f"{path}.lora_b", b)]
        if "m" in layer:
            gain = module.gain(layer.linear)
            adapted = module.adapted_norms(layer.linear)
            updates.append((f"{path}.m", adapted if gain is None else gain * adapted))
    _update(transformer, updates)


def _update(transformer: nn.Module, updates: list[tuple[str, mx.array]]) -> None:
    transformer.update(tree_unflatten(updates))
    mx.eval([value for _, value in updates])
