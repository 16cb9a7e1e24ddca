"""Optimizers from `mlx.optimizers` and the learning-rate schedules that PyTorch trainers use.

The learning rate of an update is a plain float that is computed here, outside the compiled step, and put into
the optimizer's state: a schedule therefore never causes a recompilation, and resuming needs only the step.
"""

from __future__ import annotations

import ast
import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
import mlx.optimizers as optim

from ..errors import ConfigError, nearest


def _constant(step: int, warmup: int, total: int, **_: float) -> float:
    return 1.0


def _constant_with_warmup(step: int, warmup: int, total: int, **_: float) -> float:
    return step / max(1, warmup) if step < warmup else 1.0


def _linear(step: int, warmup: int, total: int, **_: float) -> float:
    if step < warmup:
        return step / max(1, warmup)
    return max(0.0, (total - step) / max(1, total - warmup))


def _cosine(step: int, warmup: int, total: int, **_: float) -> float:
    if step < warmup:
        return step / max(1, warmup)
    progress = (step - warmup) / max(1, total - warmup)
    return max(0.0, 0.5 * (1.0 + math.cos(math.pi * progress)))


def _cosine_with_restarts(step: int, warmup: int, total: int, *, cycles: float, **_: float) -> float:
    if step < warmup:
        return step / max(1, warmup)
    progress = (step - warmup) / max(1, total - warmup)
    if progress >= 1.0:
        return 0.0
    return max(0.0, 0.5 * (1.0 + math.cos(math.pi * ((cycles * progress) % 1.0))))


def _polynomial(step: int, warmup: int, total: int, *, power: float, end: float, **_: float) -> float:
    if step < warmup:
        return step / max(1, warmup)
    if step > total or total <= warmup:
        return end
    remaining = 1 - (step - warmup) / (total - warmup)
    return (1.0 - end) * remaining**power + end


def _sine(step: int, warmup: int, total: int, *, end: float, **_: float) -> float:
    # A wave between the full rate and `lr_end`; `lr_warmup_steps` is half its period (else the run's length).
    half = warmup if warmup > 0 else max(1, total)
    return end + (1.0 - end) * 0.5 * (1.0 + math.sin(math.pi * step / half))


#: name → factor of the base rate at a step; `end` is lr_end as a fraction of the base rate. The definitions are
#: those of transformers/diffusers `get_scheduler` (and, for `sine`, SimpleTuner's).
SCHEDULES: dict[str, Callable[..., float]] = {
    "constant": _constant,
    "constant_with_warmup": _constant_with_warmup,
    "linear": _linear,
    "cosine": _cosine,
    "cosine_with_restarts": _cosine_with_restarts,
    "polynomial": _polynomial,
    "sine": _sine,
}


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
                f"lr_scheduler {self.name!r} is not known{nearest(self.name, SCHEDULES)}; one of {', '.join(SCHEDULES)}"
            )
        if self.name in ("polynomial", "sine") and not self.base > self.end:
            raise ConfigError(f"lr_end ({self.end:g}) must be below learning_rate ({self.base:g})")

    def __call__(self, step: int) -> float:
        """Learning rate of the update that follows `step` completed updates."""
        factor = SCHEDULES[self.name](
            step, self.warmup, self.total, cycles=self.cycles, power=self.power, end=self.end / self.base
        )
        return self.base * factor


def _adamw(options: dict[str, Any], lr: float) -> optim.Optimizer:
    # torch.optim.AdamW corrects the bias of both moments; in MLX that is an option which is off by default.
    return optim.AdamW(lr, bias_correction=True, **options)


def _adam(options: dict[str, Any], lr: float) -> optim.Optimizer:
    options.pop("weight_decay", None)
    return optim.Adam(lr, bias_correction=True, **options)


def _adafactor(options: dict[str, Any], lr: float) -> optim.Optimizer:
    defaults = {"relative_step": False, "scale_parameter": False, "warmup_init": False}
    return optim.Adafactor(lr, **{**defaults, **options})


def _plain(kind: Callable[..., optim.Optimizer]) -> Callable[[dict[str, Any], float], optim.Optimizer]:
    return lambda options, lr: kind(lr, **options)


@dataclass(frozen=True)
class _Kind:
    build: Callable[[dict[str, Any], float], optim.Optimizer]
    signature: Callable[..., Any]
    takes: tuple[str, ...]  # which of betas, eps, weight_decay come from the adam_* options
    aliases: tuple[str, ...] = field(default=())


OPTIMIZERS: dict[str, _Kind] = {
    "adamw": _Kind(
        _adamw,
        optim.AdamW,
        ("betas", "eps", "weight_decay"),
        (
            "adamw_bf16",
            "optimi-adamw",
            "torch-adamw",
            "adamw_torch",
            "adamw_torch_fused",
            "adamw8bit",
            "adamw_8bit",
            "adamw-8bit",
            "ao-adamw8bit",
            "ao-adamw4bit",
            "ao-adamwfp8",
            "bnb-adamw",
            "bnb-adamw8bit",
            "bnb-adamw8bit-paged",
            "bnb-adamw-paged",
        ),
    ),
    "adam": _Kind(_adam, optim.Adam, ("betas", "eps"), ("torch-adam", "optimi-adam")),
    "adafactor": _Kind(_adafactor, optim.Adafactor, ("weight_decay",)),
    "lion": _Kind(
        _plain(optim.Lion),
        optim.Lion,
        ("weight_decay",),
        ("optimi-lion", "bnb-lion", "bnb-lion8bit", "bnb-lion-paged", "bnb-lion8bit-paged"),
    ),
    "sgd": _Kind(_plain(optim.SGD), optim.SGD, ("weight_decay",), ("optimi-sgd", "torch-sgd")),
    "muon": _Kind(_plain(optim.Muon), optim.Muon, ("weight_decay",)),
}

ALIASES = {alias: name for name, kind in OPTIMIZERS.items() for alias in kind.aliases}


def parse_options(text: str | Mapping[str, Any] | None) -> dict[str, Any]:
    """`optimizer_config`: a mapping, or `"betas=(0.9, 0.99),weight_decay=0.1"` as SimpleTuner writes it.

    Raises ConfigError when an entry is not `name=value`.
    """
    if text is None or text == "":
        return {}
    if isinstance(text, Mapping):
        return dict(text)
    options: dict[str, Any] = {}
    depth, start = 0, 0
    parts: list[str] = []
    for i, char in enumerate(text + ","):
        depth += (char in "([") - (char in ")]")
        if char == "," and depth == 0:
            parts.append(text[start:i])
            start = i + 1
    for part in filter(None, (p.strip() for p in parts)):
        name, equals, value = part.partition("=")
        if not equals:
            raise ConfigError(f"optimizer_config must be name=value pairs, got {part!r}")
        lowered = value.strip()
        lowered = {"true": "True", "false": "False", "none": "None"}.get(lowered.lower(), lowered)
        try:
            options[name.strip()] = ast.literal_eval(lowered)
        except (ValueError, SyntaxError):
            raise ConfigError(f"optimizer_config: {name.strip()} has the unreadable value {value!r}") from None
    return options


def make_optimizer(
    name: str,
    lr: float,
    *,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.01,
    options: str | Mapping[str, Any] | None = None,
) -> optim.Optimizer:
    """An `mlx.optimizers` optimizer with PyTorch's conventions.

    Args:
        name: a key of OPTIMIZERS or one of the spellings that mean the same update rule (8-bit and bf16 variants
            of AdamW are AdamW: only the LoRA has optimizer state here, so there is nothing to save).
        options: `optimizer_config`, which wins over the other arguments.

    Raises:
        ConfigError: an optimizer or an option that is not known.
    """
    key = ALIASES.get(name.lower(), name.lower())
    if key not in OPTIMIZERS:
        raise ConfigError(
            f"optimizer {name!r} is not available here{nearest(key, OPTIMIZERS)}; use one of {', '.join(OPTIMIZERS)}"
        )
    kind = OPTIMIZERS[key]
    common = {"betas": list(betas), "eps": eps, "weight_decay": weight_decay}
    chosen = {k: v for k, v in common.items() if k in kind.takes}
    given = parse_options(options)
    allowed = [p for p in inspect.signature(kind.signature).parameters if p not in ("learning_rate", "bias_correction")]
    for option, value in given.items():
        if option not in allowed:
            raise ConfigError(
                f"optimizer_config: {key} has no option {option!r}{nearest(option, allowed)}; it takes {', '.join(allowed)}"
            )
        chosen[option] = list(value) if isinstance(value, tuple) and option == "betas" else value
    try:
        return kind.build(chosen, lr)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"optimizer {name}: {error}") from error


@dataclass
class Group:
    """Parameters that share an optimizer and a schedule: the LoRA, or the lyrics embedder.

    `paths` are full parameter paths (`transformer_blocks.0.attn.to_q.lora_a`); the optimizer works on a flat
    mapping from path to array, so its state is `{"step", "learning_rate", path: {slot: array}}`.
    """

    name: str
    optimizer: optim.Optimizer
    schedule: Schedule
    paths: list[str]

    def init(self, parameters: Mapping[str, mx.array]) -> None:
        """Create the optimizer's state for this group's parameters."""
        self.optimizer.init({path: parameters[path] for path in self.paths})
        self.set_rate(0)

    def set_rate(self, step: int) -> float:
        """Put the learning rate of the update after `step` updates into the state; returns it."""
        rate = self.schedule(step)
        self.optimizer.state["learning_rate"] = mx.array(rate, mx.float32)
        return rate
