"""Optimizers from `mlx.optimizers` and the learning-rate schedules that PyTorch trainers use.

The learning rate of an update is a plain float that is computed here, outside the compiled step, and put into
the optimizer's state: a schedule therefore never causes a recompilation, and resuming needs only the step.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
import mlx.optimizers as optim

from ..config.optimizers import OPTIMIZERS
from ..errors import ConfigError, nearest
from .rows import Rows


def _linear(schedule: Schedule, at: int, length: int) -> float:
    return max(0.0, (length - at) / max(1, length))


def _cosine(schedule: Schedule, at: int, length: int) -> float:
    return max(0.0, 0.5 * (1.0 + math.cos(math.pi * (at / max(1, length)))))


def _cosine_with_restarts(schedule: Schedule, at: int, length: int) -> float:
    progress = at / max(1, length)
    if progress >= 1.0:
        return 0.0
    return max(0.0, 0.5 * (1.0 + math.cos(math.pi * ((schedule.cycles * progress) % 1.0))))


def _polynomial(schedule: Schedule, at: int, length: int) -> float:
    if at > length or length <= 0:
        return schedule.lowest
    return float((1.0 - schedule.lowest) * (1 - at / length) ** schedule.power + schedule.lowest)


def _sine(schedule: Schedule, at: int, length: int) -> float:
    # A wave between the full rate and `lr_end`; `lr_warmup_steps` is half its period (else the run's length).
    half = schedule.warmup if schedule.warmup > 0 else max(1, schedule.total)
    wave = 1.0 + math.sin(math.pi * (at + schedule.warmup) / half)
    return schedule.lowest + (1.0 - schedule.lowest) * 0.5 * wave


#: name → factor of the base rate, `at` updates after the warm-up, which `length` follow. The definitions are
#: those of transformers/diffusers `get_scheduler` (and, for `sine`, SimpleTuner's).
SCHEDULES: dict[str, Callable[[Schedule, int, int], float]] = {
    "constant": lambda schedule, at, length: 1.0,
    "constant_with_warmup": lambda schedule, at, length: 1.0,
    "linear": _linear,
    "cosine": _cosine,
    "cosine_with_restarts": _cosine_with_restarts,
    "polynomial": _polynomial,
    "sine": _sine,
}
COLD = ("constant", "sine")  # those without a warm-up


@dataclass(frozen=True)
class Schedule:
    """The learning rate as a function of the number of updates already made."""

    name: str
    base: float
    warmup: int
    total: int
    cycles: float = 1.0
    power: float = 1.0
    end: float = 1e-7

    def __post_init__(self) -> None:
        if self.name not in SCHEDULES:
            raise ConfigError(
                f"lr_scheduler {self.name!r} is not known{nearest(self.name, SCHEDULES)}; "
                f"one of {', '.join(SCHEDULES)}"
            )
        if self.name in ("polynomial", "sine") and not self.base > self.end >= 0:
            raise ConfigError(f"lr_end ({self.end}) must be below learning_rate ({self.base})")

    @property
    def lowest(self) -> float:
        """`end` as a factor of the base rate."""
        return self.end / self.base if self.base else 0.0

    def __call__(self, step: int) -> float:
        """Learning rate of the update that follows `step` completed updates."""
        at = step - self.warmup
        if at < 0 and self.name not in COLD:
            return self.base * (step / self.warmup)
        return self.base * SCHEDULES[self.name](self, at, self.total - self.warmup)


def make_optimizer(
    name: str,
    lr: float,
    *,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.01,
    options: Mapping[str, Any] | None = None,
) -> optim.Optimizer:
    """An `mlx.optimizers` optimizer with PyTorch's conventions.

    Args:
        name: a key of OPTIMIZERS.
        options: `optimizer_config`, in the names of mlx.optimizers (and beta1, beta2); wins over the rest.

    Raises:
        ConfigError: an optimizer or an option that is not known.
    """
    if name not in OPTIMIZERS:
        raise ConfigError(
            f"optimizer {name!r} is not available here{nearest(name, OPTIMIZERS)}; "
            f"use one of {', '.join(OPTIMIZERS)}"
        )
    one = OPTIMIZERS[name]
    build = getattr(optim, one.mlx)
    common = {"betas": betas, "eps": eps, "weight_decay": weight_decay}
    given = dict(options or {})
    chosen = {**one.defaults, **{k: common[k] for k in one.takes.split()}}
    if "beta1" in given or "beta2" in given:
        own = (
            given.get("betas") or chosen.get("betas") or inspect.signature(build).parameters["betas"].default
        )
        given["betas"] = (given.pop("beta1", own[0]), given.pop("beta2", own[1]))
    chosen.update(given)
    try:
        made: optim.Optimizer = build(lr, **chosen)
        return made
    except (TypeError, ValueError) as error:
        raise ConfigError(f"optimizer {name}, optimizer_config {dict(options or {})}: {error}") from error


#: optimizers of `mlx.optimizers` that treat each number of a parameter by itself
BY_ELEMENT = (optim.Adam, optim.Lion, optim.SGD)


@dataclass
class Group:
    """Parameters that share an optimizer and a schedule: the LoRA, or what is trained in full.

    `paths` are full parameter paths (`transformer_blocks.0.attn.to_q.lora_a`). The optimizer's state is
    `{"step", "learning_rate", path: {slot: array}}`; one that works element by element has rows in the place
    of parameters.
    """

    name: str
    optimizer: optim.Optimizer
    schedule: Schedule
    paths: list[str]
    rows: Rows = field(init=False)

    def init(self, parameters: Mapping[str, mx.array]) -> None:
        """Create the optimizer's state for this group's parameters."""
        own = {path: parameters[path] for path in self.paths}
        self.rows = Rows.of(own, self.name)
        self.optimizer.init(self.rows.pack(own) if self.by_element else own)
        self.set_rate(0)

    @property
    def by_element(self) -> bool:
        """Whether the optimizer works on rows."""
        return isinstance(self.optimizer, BY_ELEMENT)

    def set_rate(self, step: int) -> float:
        """Put the learning rate of the update after `step` updates into the state; returns it."""
        rate = self.schedule(step)
        self.optimizer.state["learning_rate"] = mx.array(rate, mx.float32)
        return rate

    def updated(
        self, gradient: Mapping[str, mx.array], parameters: Mapping[str, mx.array], useful: mx.array
    ) -> dict[str, mx.array]:
        """The parameters after an update with `gradient`, rows; they and the state stay if not `useful`."""
        own = {path: parameters[path] for path in self.paths}
        mine = {name: gradient[name] for name in self.rows.rows}
        if self.by_element:
            return self._updated_by_rows(mine, own, useful)
        before = [holder[name] for holder, name in self._slots()]
        new = self.optimizer.apply_gradients(self.rows.unpack(mine), own)
        for (holder, name), value in zip(self._slots(), before, strict=True):
            holder[name] = mx.where(useful, holder[name], value)
        return {name: mx.where(useful, new[name], value) for name, value in own.items()}

    def _updated_by_rows(
        self, gradient: Mapping[str, mx.array], own: Mapping[str, mx.array], useful: mx.array
    ) -> dict[str, mx.array]:
        """Row by row, each after the one before it, so that one is in work at a time."""
        optimizer, found, last = self.optimizer, {}, [useful]
        step = optimizer.state["step"]
        optimizer.state["step"] = mx.where(useful, step + 1, step)
        for name, row in self.rows.rows.items():
            moments = optimizer.state[name]
            paths = list(row.shapes)
            given = mx.depends([gradient[name], *(own[path] for path in paths)], last)
            old, before = row.pack(dict(zip(paths, given[1:], strict=True))), dict(moments)
            new = mx.where(useful, optimizer.apply_single(given[0], old, moments), old)
            moments.update({slot: mx.where(useful, value, before[slot]) for slot, value in moments.items()})
            found.update(row.unpack(new))
            last = [new, *moments.values()]
        return found

    def _slots(self) -> list[tuple[dict[str, Any], str]]:
        """Every array of the optimizer's state: the container that holds it, and its name there."""
        found: list[tuple[dict[str, Any], str]] = []
        for name, value in self.optimizer.state.items():
            found += [(value, slot) for slot in value] if isinstance(value, dict) else []
            found += [] if isinstance(value, dict) else [(self.optimizer.state, name)]
        return found

    def state(self) -> dict[str, mx.array]:
        """The optimizer's state as `slot` (step, learning_rate) or `path|slot` → array."""
        flat: dict[str, mx.array] = {}
        for key, value in self.optimizer.state.items():
            if not isinstance(value, dict):
                flat[key] = value
                continue
            for slot, array in value.items():
                parts = self.rows.rows[key].unpack(array) if self.by_element else {key: array}
                flat.update({f"{path}|{slot}": part for path, part in parts.items()})
        return flat

    def load_state(self, state: Mapping[str, mx.array]) -> None:
        """Put back what `state` gave, in place: the compiled step holds these very containers."""
        for key, value in self.optimizer.state.items():
            if not isinstance(value, dict):
                self.optimizer.state[key] = state[key]
                continue
            row = self.rows.rows[key] if self.by_element else None
            for slot in value:
                parts = {path: state[f"{path}|{slot}"] for path in ([key] if row is None else row.shapes)}
                value[slot] = parts[key] if row is None else row.pack(parts)
