"""A LoRA in memory: per module A, B and a scale, whatever file or model it came from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ..errors import CheckpointError
from ..families import default, of_lora
from ..families.protocol import Family
from ..formatting import count, listed
from .formats.keys import describe_unknown
from .linear import adapted_norms, base_linears, dense_weight, linear_shape, row_norms_squared


@dataclass
class LoRAModule:
    """ΔW = scale · b @ a of one linear layer: a (r, in), b (out, r), float32.

    `w1` (l, m) makes it LoKr: ΔW = scale · w1 ⊗ (b @ a), with a (r, in/m) and b (out/l, r). `w1_pair` are the
    two whose product w1 is, where it is one.
    `magnitude` (out,) makes it DoRA: W + ΔW is then multiplied per output row by magnitude/‖W + ΔW‖ as peft
    does (`magnitude_over` "adapted"), or by magnitude/‖W‖ as ComfyUI does with its `dora_scale` ("base").
    """

    a: mx.array
    b: mx.array
    scale: float = 1.0
    magnitude: mx.array | None = None
    magnitude_over: str = "adapted"
    w1: mx.array | None = None
    w1_pair: tuple[mx.array, mx.array] | None = None

    @classmethod
    def of_lokr(
        cls,
        w1: Sequence[mx.array],
        w2: Sequence[mx.array],
        scale: float,
        magnitude: mx.array | None = None,
        over: str = "adapted",
    ) -> LoRAModule:
        """w1, w2: a matrix, or the two whose product it is."""
        b, a = (w2[0], mx.eye(w2[0].shape[1])) if len(w2) == 1 else w2
        if len(w1) == 1:
            return cls(a, b, scale, magnitude, over, w1[0])
        return cls(a, b, scale, magnitude, over, w1[0] @ w1[1], (w1[0], w1[1]))

    @property
    def lokr(self) -> dict[str, mx.array]:
        """The factors of a LoKr under LyCORIS's names; without the scale."""
        assert self.w1 is not None
        pair = self.w1_pair
        one = {"w1": self.w1} if pair is None else {"w1_a": pair[0], "w1_b": pair[1]}
        two = {"w2": self.b} if self.is_whole else {"w2_a": self.b, "w2_b": self.a}
        return {f"lokr_{name}": value for name, value in (one | two).items()}

    @property
    def arrays(self) -> list[mx.array]:
        """What it holds."""
        held = [self.a, self.b] if self.w1 is None else list(self.lokr.values())
        return held if self.magnitude is None else [*held, self.magnitude]

    @property
    def is_whole(self) -> bool:
        """Whether `b` is a whole matrix of a LoKr, and `a` an identity."""
        square = self.w1 is not None and self.a.shape[0] == self.a.shape[1]
        return square and bool(mx.array_equal(self.a, mx.eye(self.a.shape[0])).item())

    @property
    def rank(self) -> int:
        return self.a.shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in) of the layer."""
        left, middle = (1, 1) if self.w1 is None else self.w1.shape
        return left * self.b.shape[0], middle * self.a.shape[1]

    def delta(self, strength: float = 1.0) -> mx.array:
        """strength · ΔW (out, in) float32, without the magnitude."""
        product = (strength * self.scale * self.b) @ self.a
        return product if self.w1 is None else mx.kron(self.w1, product)

    def adapted_norms(self, linear: nn.Module) -> mx.array:
        """‖W + ΔW‖ per output row of `linear`, (out,) float32."""
        if self.w1 is not None:
            return mx.maximum(mx.linalg.norm(dense_weight(linear) + self.delta(), axis=1), 1e-15)
        return adapted_norms(linear, row_norms_squared(linear), self.a, self.b, self.scale)

    def gain(self, linear: nn.Module) -> mx.array | None:
        """The factor of every output row of W + ΔW, (out,) float32, or None where it is plain LoRA."""
        if self.magnitude is None:
            return None
        if self.magnitude_over == "base":
            return self.magnitude / mx.sqrt(mx.maximum(row_norms_squared(linear), 1e-30))
        return self.magnitude / self.adapted_norms(linear)

    def adapted_weight(self, linear: nn.Module, strength: float = 1.0) -> mx.array:
        """W + strength · (gain·(W + ΔW) − W), (out, in) float32."""
        weight = dense_weight(linear)
        gain = self.gain(linear)
        if gain is None:
            return weight + self.delta(strength)
        adapted = gain[:, None] * (weight + self.delta())
        return weight + strength * (adapted - weight)

    def times(self, x: mx.array) -> mx.array:
        """ΔW x, (in, n) → (out, n), without ever forming ΔW."""
        if self.w1 is None:
            return (self.scale * self.b) @ (self.a @ x)
        middle, n = self.w1.shape[1], x.shape[1]
        y = (self.scale * self.b) @ (self.a @ x.reshape(middle, -1, n))  # [m, k, n]
        return (self.w1 @ y.reshape(middle, -1)).reshape(-1, n)

    def baked(self, rank: int) -> LoRAModule:
        """The same ΔW with scale 1, the scale in b, zero-padded up to `rank`; in a LoKr's last product."""
        if self.w1 is not None:
            if self.w1_pair is not None and self.is_whole:
                w1 = self.w1_pair[0], self.scale * self.w1_pair[1]
                return replace(self, scale=1.0, w1=self.scale * self.w1, w1_pair=w1)
            if self.is_whole:
                return replace(self, scale=1.0, b=self.scale * self.b)
            return replace(self, scale=1.0, a=self.scale * self.a)
        pad = rank - self.rank
        a = mx.pad(self.a, [(0, pad), (0, 0)]) if pad else self.a
        b = mx.pad(self.scale * self.b, [(0, 0), (0, pad)]) if pad else self.scale * self.b
        return LoRAModule(a, b, 1.0, self.magnitude, self.magnitude_over)


@dataclass
class LoRAWeights:
    """All modules of a LoRA by upstream path, and what goes with them.

    `metadata` are the trainer's own facts (rank, alpha, targets, base fingerprint, …), `full` the
    parameters trained in full (upstream names → values), `diffs` additions to whole parameters, `source` the
    name for messages. Of a file: `skipped` are its modules that change nothing, and are left out; `unscaled`
    of its modules do not say with what scale they were trained. `family`: of the model that it is for.
    """

    modules: dict[str, LoRAModule]
    metadata: dict[str, Any] = field(default_factory=dict)
    full: dict[str, mx.array] | None = None
    diffs: dict[str, mx.array] = field(default_factory=dict)
    source: str = "this LoRA"
    skipped: tuple[str, ...] = ()
    unscaled: int = 0
    family: Family = field(default_factory=default)

    @property
    def rank(self) -> int:
        """The largest rank of its modules."""
        return max((m.rank for m in self.modules.values()), default=0)

    @property
    def shapes(self) -> dict[str, tuple[int, int]]:
        """Path → (out, in) of the layers."""
        return {path: module.shape for path, module in self.modules.items()}

    @property
    def is_dora(self) -> bool:
        return any(m.magnitude is not None for m in self.modules.values())

    @property
    def is_lokr(self) -> bool:
        return any(m.w1 is not None for m in self.modules.values())

    @property
    def kind(self) -> str:
        """LoRA, DoRA or LoKr."""
        return "LoKr" if self.is_lokr else "DoRA" if self.is_dora else "LoRA"

    @property
    def left_out(self) -> list[str]:
        """A line for each reason why modules of the file are left out."""
        lines = []
        unused = self.family.lora.why_unused
        for why in dict.fromkeys(unused(path) for path in self.skipped):
            paths = [path for path in self.skipped if unused(path) == why]
            lines.append(f"{count(len(paths), 'module')} left out, because {why}: {describe_unknown(paths)}")
        return lines

    @property
    def notes(self) -> list[str]:
        """What a user should know about the file, a line each."""
        if not self.unscaled:
            return self.left_out
        some = "" if self.unscaled == len(self.modules) else f" for {count(self.unscaled, 'module')}"
        recipe = self.family.lora.recipes.get(self.rank)
        example = f"2 (upstream's recipe for rank {self.rank}: {recipe})" if recipe else "alpha/rank"
        line = (
            f"no alpha is stored{some}: the scale that it was trained with is unknown, and 1.0 is taken, "
            f"which is right if alpha was the rank; else the strength is alpha/rank: --lora-scale {example}"
        )
        return [*self.left_out, line]

    @property
    def is_trained(self) -> bool:
        """Whether it changes anything: some B is not zero, or there are magnitudes or whole parameters."""
        whole = self.is_dora or bool(self.full) or bool(self.diffs)
        factors = ([m.b] if m.w1 is None else [m.b, m.w1] for m in self.modules.values())
        return whole or any(all(bool(mx.any(x != 0).item()) for x in both) for both in factors)

    @property
    def parameter_count(self) -> int:
        arrays = [x for m in self.modules.values() for x in m.arrays]
        return sum(x.size for x in [*arrays, *(self.full or {}).values(), *self.diffs.values()])

    def check_finite(self) -> None:
        """Raises CheckpointError naming the modules that hold NaN or infinity."""
        named = [(p, x) for p, m in self.modules.items() for x in m.arrays]
        named += [*(self.full or {}).items(), *self.diffs.items()]
        finite = [mx.isfinite(x).all() for _, x in named]
        mx.eval(finite)
        bad = list(dict.fromkeys(p for (p, _), ok in zip(named, finite, strict=True) if not ok.item()))
        if bad:
            raise CheckpointError(f"{self.source}: NaN or infinite weights in {describe_unknown(bad)}")

    def check_against(self, transformer: nn.Module, where: str | None = None) -> None:
        """Raises CheckpointError naming keys where it is not for this model; `where` is its name there."""
        where = where or self.source
        if transformer.lora is not self.family.lora:
            here = of_lora(transformer.lora).title
            raise CheckpointError(f"{where} is for {self.family.title}, and this model is {here}")
        linears = base_linears(transformer)
        unknown = [path for path in self.modules if path not in linears]
        if unknown:
            raise CheckpointError(
                f"{where} is for another model: {len(unknown)} of its {count(len(self.modules), 'module')} "
                f"{'is no linear layer' if len(unknown) == 1 else 'are no linear layers'} here: "
                f"{describe_unknown(unknown)}"
            )
        wrong = [
            f"{path} is {module.shape[0]}×{module.shape[1]} there and {'×'.join(map(str, shape))} here"
            for path, module in self.modules.items()
            if module.shape != (shape := linear_shape(linears[path]))
        ]
        if wrong:
            raise CheckpointError(f"{where} is for a model of another size: {listed(wrong, 1)}")


def relative_difference(ours: LoRAModule, other: LoRAModule, probes: int = 8) -> float:
    """‖ΔW' − ΔW‖ / ‖ΔW‖ (Frobenius), estimated from what both do to random vectors.

    E‖D x‖² = ‖D‖² for x of independent unit normals (Hutchinson), so ΔW itself is never formed.
    """
    if ours.w1 is not None or other.w1 is not None:
        x = mx.random.normal((ours.shape[1], probes), key=mx.random.key(0))
        return _share(mx.linalg.norm(other.times(x) - ours.times(x)), mx.linalg.norm(ours.times(x)))
    a0, b0, a1, b1 = ours.a, ours.scale * ours.b, other.a, other.scale * other.b
    rank = max(ours.rank, other.rank)
    a0, a1 = (mx.pad(a, [(0, rank - a.shape[0]), (0, 0)]) for a in (a0, a1))
    b0, b1 = (mx.pad(b, [(0, 0), (0, rank - b.shape[1])]) for b in (b0, b1))
    x = mx.random.normal((a0.shape[1], probes), key=mx.random.key(0))
    # b'a' − ba = (b' − b)a' + b(a' − a) loses nothing to cancellation.
    difference = mx.linalg.norm((b1 - b0) @ (a1 @ x) + b0 @ ((a1 - a0) @ x))
    return _share(difference, mx.linalg.norm(b0 @ (a0 @ x)))


def _share(difference: mx.array, whole: mx.array) -> float:
    lost, size = (float(n) for n in np.array(mx.stack([difference, whole])))
    if size:
        return lost / size
    return 0.0 if lost == 0 else math.inf
