"""Trainable LoKr layers: an update that is a Kronecker product (Yeh et al. 2023, LyCORIS).

    y = W x + bias + s·(w1 ⊗ w2) x,   w1 (l, m), w2 (k, n), (out, in) = (l·k, m·n)

and w1 and w2 are whole matrices, or products of rank r with s = alpha/r; s = 1 where both are whole.
(w1 ⊗ w2) x is w1 X w2ᵀ of x as a matrix X (m, n), so that the product is never formed.

Factors are float32 masters, cast to the activations' dtype in the forward pass. They begin as LyCORIS begins
them: w2 (or the scalar, where there is one) is zero, so that an untrained LoKr changes nothing, bit for bit,
on any base.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from ..config.lycoris import Factors, LoKrConfig
from ..errors import ConfigError
from ..formatting import listed
from .linear import Wrapper, linear_shape
from .weights import LoRAModule

SCALAR = "lokr_scalar"
#: the parameters of a layer, named as LyCORIS names the tensors of its files
TRAINABLE = ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", SCALAR)


def factorised(size: int, factor: int) -> tuple[int, int]:
    """(small, large) with small · large = size: `factor` where it divides, else the largest divisor below it,
    and at most the root's neighbour; -1: those nearest to the root.
    """
    if factor > 0 and size % factor == 0:
        return min(factor, size // factor), max(factor, size // factor)
    limit = size if factor < 0 else factor
    small, large = 1, size
    for divisor in (d for d in range(2, size + 1) if size % d == 0):
        if small >= large or divisor > limit:
            break
        small, large = divisor, size // divisor
    return min(small, large), max(small, large)


@dataclass(frozen=True)
class Plan:
    """The factors of one layer: w1 (l, m), w2 (k, n), whole, or of rank `dim` where they are products."""

    w1: tuple[int, int]
    w2: tuple[int, int]
    dim: int
    alpha: float
    whole: tuple[bool, bool]
    scalar: bool

    @classmethod
    def of(cls, shape: tuple[int, int], factors: Factors) -> Plan:
        """shape: (out, in) of the layer."""
        (l, k), (m, n) = (factorised(size, factors.factor) for size in shape)
        if factors.unbalanced_factorization:
            l, k = k, l
        dim = factors.dim
        product1 = factors.decompose_both and dim < max(l, m) / 2 and not factors.full_matrix
        product2 = dim < max(k, n) / 2 and not factors.full_matrix
        return cls(
            (l, m), (k, n), dim, factors.alpha or float(dim), (not product1, not product2), factors.use_scalar
        )

    @property
    def scale(self) -> float:
        """s: alpha/dim; 1 where both factors are whole."""
        return 1.0 if all(self.whole) else self.alpha / self.dim

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each parameter, by its name."""
        found: dict[str, tuple[int, ...]] = {}
        for name, (rows, columns), whole in zip(("w1", "w2"), (self.w1, self.w2), self.whole, strict=True):
            if whole:
                found[f"lokr_{name}"] = (rows, columns)
            else:
                found |= {f"lokr_{name}_a": (rows, self.dim), f"lokr_{name}_b": (self.dim, columns)}
        return found | ({SCALAR: ()} if self.scalar else {})

    @property
    def kept(self) -> int:
        """Numbers that a token's forward pass keeps for the backward pass, beside what a LoRA's does."""
        return self.w1[1] * (self.w2[0] if self.whole[1] else self.w2[0] + self.dim)

    @property
    def parameters(self) -> int:
        """How many numbers are trained."""
        return sum(math.prod(shape) for shape in self.shapes.values())


@dataclass(frozen=True)
class LoKrSpec:
    """What to inject. targets: the layers where `config` names none; text: the configuration as JSON."""

    config: LoKrConfig
    targets: tuple[str, ...]
    text: str
    dropout: float = 0.0

    @property
    def facts(self) -> dict[str, Any]:
        """What a file's metadata says about this adapter."""
        names = [*self.config.classes, *self.config.names] if self.config.chooses else self.targets
        return {"lycoris_config": self.text, "targets": list(names)}

    @property
    def rank(self) -> int:
        """A LoRA's whose factored moments take no less of its memory."""
        return min(self.config.base.dim, 16)

    def plans(self, transformer: nn.Module, linears: Mapping[str, nn.Module]) -> dict[str, Plan]:
        """Path → plan of each layer that gets a LoKr. linears: all of the model's, by path, or those of
        `targets`. Raises ConfigError where nothing matches.
        """
        config = self.config
        found = {}
        for path, linear in linears.items():
            factors = config.base if not config.chooses else self._factors(transformer, path)
            if factors is not None:
                found[path] = Plan.of(linear_shape(linear), factors)
        if not found:
            names = sorted({name for _, one in transformer.lora.classes for name in one})
            wanted = listed([*config.classes, *config.names], between=", ")
            raise ConfigError(
                f"lycoris_config: no linear layer of this model is in {wanted}; target_module takes "
                f"{', '.join(names)}, target_name patterns like {_pattern(next(iter(linears)))!r}"
            )
        return found

    def unmatched(self, transformer: nn.Module, paths: list[str]) -> list[str]:
        """Names of the configuration that none of the layers answers to, a sentence each."""
        config = self.config
        classes = {name for path in paths for _, one in _holders(transformer, path) for name in one}
        odd = [name for name in config.classes if name not in classes]
        odd += [name for name in config.names if not any(config.matches(name, path) for path in paths)]
        return [
            f"lycoris_config: {name} is no part of this model, and nothing is trained by it" for name in odd
        ]

    def _factors(self, transformer: nn.Module, path: str) -> Factors | None:
        """The settings of a layer, by the rules of LyCORIS: the class of a module that holds it comes before
        its own name, and of several classes with settings the innermost counts; None: it is left out.
        """
        config = self.config
        holders = list(_holders(transformer, path))
        if any(config.matches(pattern, one) for pattern in config.exclude for one, _ in holders if one):
            return None
        by_class = dict(config.by_class)
        for at, (holder, names) in enumerate(holders):
            named = any(config.matches(pattern, holder) for pattern in config.names)
            if not named and any(name in config.classes for name in names):
                inside = [name for _, one in holders[at:] for name in one if name in by_class]
                return by_class[inside[-1]] if inside else config.base
        if not any(config.matches(pattern, path) for pattern in config.names):
            return None
        own = dict(config.by_name).get(path)
        found = (factors for name, factors in config.by_name if config.matches(name, path))
        return own or next(found, by_class.get("Linear", config.base))


def _holders(transformer: nn.Module, path: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    """(path, classes) of the model, of each module that holds the one at `path`, and of itself."""
    parts = path.split(".")
    for at in range(len(parts)):
        holder = ".".join(parts[:at])
        yield (
            holder,
            next((names for p, names in transformer.lora.classes if re.fullmatch(p, holder)), ()),
        )
    yield path, ("Linear",)


def _pattern(path: str) -> str:
    """`transformer_blocks.3.attn.to_q` → `transformer_blocks.\\d+.attn.to_q`."""
    return re.sub(r"\.\d+\.", r".\\d+.", path, count=1)


class LoKrLinear(Wrapper, nn.Module):
    """Float32 masters under any activation dtype; see `Plan.shapes`."""

    def __init__(self, linear: nn.Module, plan: Plan, key: mx.array) -> None:
        super().__init__()
        self.linear = linear
        self.scale = plan.scale
        self.enabled = True  # False: the layer is its base again, bit for bit
        self.dropout_p = 0.0
        zero = SCALAR if plan.scalar else "lokr_w2" if plan.whole[1] else "lokr_w2_b"
        shapes = plan.shapes
        for (name, shape), one in zip(shapes.items(), mx.random.split(key, len(shapes)), strict=True):
            bound = 1 / math.sqrt(shape[-1]) if shape else 0.0  # Kaiming's with a = √5
            start = mx.zeros(shape) if name == zero else mx.random.uniform(-bound, bound, shape, key=one)
            self[name] = start

    @property
    def plan(self) -> Plan:
        """What it was made by, but for dim and alpha of whole factors, which count for nothing."""
        dim = next((self[n].shape[1] for n in ("lokr_w1_a", "lokr_w2_a") if n in self), 1)
        (l, m), (k, n) = (self.factor(name).shape for name in ("w1", "w2"))
        whole = "lokr_w1" in self, "lokr_w2" in self
        return Plan((l, m), (k, n), dim, self.scale * dim, whole, SCALAR in self)

    def factor(self, name: str) -> mx.array:
        """w1 or w2, as a whole matrix."""
        if f"lokr_{name}" in self:
            found: mx.array = self[f"lokr_{name}"]
            return found
        product: mx.array = self[f"lokr_{name}_a"] @ self[f"lokr_{name}_b"]
        return product

    def _small(self) -> mx.array:
        """w1 in float32, with s and the scalar: the smallest array that they can go into."""
        w1 = self.scale * self.factor("w1")
        return w1 * self[SCALAR] if SCALAR in self else w1

    def _update(self, x: mx.array) -> mx.array:
        """s·(w1 ⊗ w2) x, (..., in) → (..., out), in x's dtype."""
        w1 = self._small().astype(x.dtype)
        y = x.reshape(-1, w1.shape[1], x.shape[-1] // w1.shape[1])  # [N, m, n]
        for name in ("lokr_w2",) if "lokr_w2" in self else ("lokr_w2_b", "lokr_w2_a"):
            y = y @ self[name].astype(x.dtype).T
        return (w1 @ y).reshape(*x.shape[:-1], -1)  # [N, l, k]

    def __call__(self, x: mx.array) -> mx.array:
        y: mx.array = self.linear(x)
        return y + self._update(x).astype(y.dtype) if self.enabled else y

    def to_module(self) -> LoRAModule:
        """Its update as it is now; the scalar goes into w1, as LyCORIS saves it."""
        scalar = self.get(SCALAR, 1.0)
        w2 = (self["lokr_w2"],) if "lokr_w2" in self else (self["lokr_w2_a"], self["lokr_w2_b"])
        w1 = (self["lokr_w1"],) if "lokr_w1" in self else (self["lokr_w1_a"], self["lokr_w1_b"])
        return LoRAModule.of_lokr((w1[0] * scalar, *w1[1:]), w2, self.scale)

    def start_from(self, module: LoRAModule, path: str) -> list[tuple[str, mx.array]]:
        """New values of its parameters that give the module's ΔW; `misfit` has been asked."""
        found: dict[str, mx.array] = {}
        lost = module.scale / self.scale
        assert module.w1 is not None
        for name, whole, pair in (
            ("lokr_w1", module.w1, module.w1_pair),
            ("lokr_w2", module.b @ module.a, (module.b, module.a)),
        ):
            if name in self:
                found[name] = whole
                continue
            assert pair is not None
            a, b = pair
            rank = a.shape[1]  # what lies beyond keeps its random start, with zeros in b
            found[f"{name}_a"] = mx.concatenate([a, self[f"{name}_a"][:, rank:]], axis=1)
            found[f"{name}_b"] = mx.pad(b, [(0, self[f"{name}_b"].shape[0] - rank), (0, 0)])
        last = next(n for n in ("lokr_w2_b", "lokr_w1_b", "lokr_w2") if n in self)
        found[last] = lost * found[last]
        if SCALAR in self:
            found[SCALAR] = mx.array(1.0)
        return [(f"{path}.{name}", value) for name, value in found.items()]


def misfit(module: LoRAModule, plan: Plan) -> str | None:
    """Why a layer with this plan cannot start from the module, with the setting that would make it fit."""
    assert module.w1 is not None
    w2 = (module.b.shape[0], module.a.shape[1])
    if (tuple(module.w1.shape), w2) != (plan.w1, plan.w2):
        (l, m), (k, n) = module.w1.shape, w2
        return f"has w1 {l}×{m} and w2 {k}×{n}, and this run makes them {_size(plan.w1)} and " + (
            f"{_size(plan.w2)}; set factor (and unbalanced_factorization) as it was trained"
        )
    ranks = []
    if not plan.whole[1]:
        ranks.append(None if module.is_whole else module.rank)
    if not plan.whole[0]:
        ranks.append(module.w1_pair[0].shape[1] if module.w1_pair else None)
    if None in ranks:
        return "has whole matrices where this run has products; set full_matrix=true, or decompose_both=false"
    largest = max((rank for rank in ranks if rank is not None), default=0)
    if largest > plan.dim:
        return f"has rank {largest}, and linear_dim is {plan.dim}; set linear_dim={largest}"
    return None


def _size(shape: tuple[int, int]) -> str:
    return "×".join(map(str, shape))
