"""Does this machine compute what the reference computes? Miniatures on each device, and its numbers."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten, tree_map

from ..convert.plan import translate
from ..families.known import Example, Examples, Known, StepExample, adapter, error, known_numbers, tensors
from ..families.model_folder import Quantization, quantize_layers
from ..families.protocol import Batch, Draw, Family, Objective
from ..io.backend import fault_of
from ..lora.surgery import LoRASpec, adapter_modules, inject
from ..training.optimizers import Group, Schedule, make_optimizer
from ..training.step import StepSettings, TrainStep

Outputs = dict[str, np.ndarray]
Work = Callable[[], Outputs]
STEP = "training step"
AS_TRAINED = "training step in bfloat16 at 8 bits"
#: of the step in bfloat16 on a quantised base: what leaving digits out makes of its loss and its gradient
COARSE = 0.2
#: that a computation may end with
FAILURES = (RuntimeError, ValueError, MemoryError)


class Check(NamedTuple):
    """One computation on one device.

    error: the largest relative one, against the reference's numbers and, on a GPU, against the CPU. problem:
    what kind of error it ended with, if it did.
    """

    family: str
    what: str
    device: str
    error: float
    limit: float
    problem: str = ""

    @property
    def right(self) -> bool:
        return not self.problem and self.error <= self.limit


def devices() -> list[mx.Device]:
    """The CPU, and the GPU where there is one."""
    return [mx.Device(mx.cpu), *([mx.Device(mx.gpu)] if mx.is_available(mx.gpu) else [])]


def name_of(device: mx.Device) -> str:
    """`CPU` or `GPU`."""
    return "CPU" if device.type == mx.DeviceType.cpu else "GPU"


@contextmanager
def on(device: mx.Device) -> Iterator[None]:
    """Everything that is computed in the block is computed there.

    On the CPU of a machine with a GPU nothing is compiled: a Mac need not have the compiler that MLX calls
    for its processor, and nobody trains there.
    """
    before = mx.default_device()
    eager = name_of(device) == "CPU" and len(devices()) > 1
    mx.set_default_device(device)
    if eager:
        mx.disable_compile()
    try:
        yield
    finally:
        if eager and "MLX_DISABLE_COMPILE" not in os.environ:
            mx.enable_compile()
        mx.set_default_device(before)


def check_family(family: Family) -> Iterator[Check]:
    """Every component and a training step, on every device."""
    examples, known = family.examples(), known_numbers(family.name)
    for one in examples.components:
        work: Work = ComponentWork(family, one)
        yield from check(family.name, one.component, known[one.component], one.limit, work)
    for what, limit, work in (
        (STEP, examples.step.limit, StepWork(family, examples)),
        (AS_TRAINED, COARSE, StepWork(family, examples, mx.bfloat16, Quantization.of(8))),
    ):
        yield from check(family.name, what, known[STEP], limit, work)


def check(family: str, what: str, known: Known, limit: float, work: Work) -> Iterator[Check]:
    """Of one computation on every device, the CPU first."""
    on_cpu: Outputs | None = None
    for device in devices():
        found, problem = _computed(device, work)
        off = float("inf") if found is None else _error(found, known, on_cpu)
        yield Check(family, what, name_of(device), off, limit, problem)
        on_cpu = found


def _computed(device: mx.Device, work: Work) -> tuple[Outputs | None, str]:
    """What the work gives there; or None, and the kind of the error."""
    try:
        with on(device):
            return work(), ""
    except FAILURES as failure:
        return None, problem_of(failure)


def problem_of(failure: Exception) -> str:
    """What kind of error it is: its words may hold a path."""
    return fault_of(failure) or type(failure).__name__


def _error(found: Outputs, known: Known, beside: Outputs | None) -> float:
    """Against the reference, and against another device, where nothing is left out."""
    errors = [error(found[name], summary) for name, summary in known.items()]
    for name, other in (beside or {}).items():
        if found[name].shape == other.shape:
            errors.append(float(np.linalg.norm(found[name] - other) / np.linalg.norm(other)))
    return max(e if np.isfinite(e) else float("inf") for e in errors)


def _arrays(given: Mapping[str, np.ndarray]) -> dict[str, mx.array]:
    return {name: mx.array(value) for name, value in given.items()}


def _float32(value: mx.array) -> np.ndarray:
    return np.array(value.astype(mx.float32))


def build(family: Family, example: Example) -> nn.Module:
    """The miniature, frozen and in evaluation mode."""
    component = family.components[example.component]
    shapes = {spec.name: spec.shape for spec in example.specs}
    config = component.config.from_dict({**example.config, **component.config.sizes_in(shapes)})
    model = component.module(config)
    theirs = _arrays(tensors(example))
    ours = translate(example.component, component.keymap, model, theirs)
    model.load_weights(list(ours.items()), strict=True)
    model.freeze()
    mx.eval(model.parameters())
    return model.eval()


@dataclass(frozen=True)
class ComponentWork:
    family: Family
    example: Example

    def __call__(self) -> Outputs:
        outputs = self.example.run(build(self.family, self.example), _arrays(self.example.given))
        return {name: _float32(value) for name, value in outputs.items()}


class _Drawn:
    """The objective with what the batch carries in place of chance."""

    def __init__(self, objective: Objective) -> None:
        self.objective = objective

    def draw(self, batch: Batch) -> Draw:
        more = {name.partition(".")[2]: value for name, value in batch.items() if name.startswith("more.")}
        return Draw(batch["drawn.noise"], batch["drawn.sigma"], batch["keys"][0], more)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.objective, name)


@dataclass(frozen=True)
class StepWork:
    """An update by plain gradient descent, compiled as a run's is, with a LoRA on the default targets."""

    family: Family
    examples: Examples
    dtype: mx.Dtype = mx.float32
    quantization: Quantization | None = None

    def __call__(self) -> Outputs:
        example = self.examples.step
        model, paths = self._model(example)
        trained = list(dict(tree_flatten(model.trainable_parameters())))
        optimizer = make_optimizer("sgd", 1.0, weight_decay=0.0)
        group = Group("lora", optimizer, Schedule("constant", 1.0, 0, 1), trained)
        settings = StepSettings(max_grad_norm=0.0, compute_dtype=self.dtype)
        objective: Any = _Drawn(example.objective)
        step = TrainStep(model, [group], settings, objective, prepare=self.family.prepare(model))
        before = step.parameters()
        result = step(self._batch(example), update=True)
        after = step.parameters()
        gradient = [before[p] - after[p] for path in paths for p in (f"{path}.lora_a", f"{path}.lora_b")]
        return {
            "loss": _float32(result.loss[None]),
            "gradient": np.concatenate([_float32(g).reshape(-1) for g in gradient]),
            "norms": np.array([np.linalg.norm(_float32(g)) for g in gradient]),
        }

    def _model(self, example: StepExample) -> tuple[nn.Module, list[str]]:
        model = build(self.family, self.examples.transformer)
        if self.quantization is not None:
            quantize_layers(self.family.components["transformer"], model, self.quantization)
        model.update(tree_map(self._cast, model.parameters()))
        spec = LoRASpec(example.rank, example.alpha, targets=self.family.lora.default_targets)
        paths = sorted(inject(model, spec))
        layers: dict[str, Any] = dict(adapter_modules(model))
        for path in paths:
            layer = layers[path]
            inputs, outputs = layer.lora_a.shape[0], layer.lora_b.shape[1]
            pair = adapter(path, inputs, outputs, example.rank)
            layer.lora_a, layer.lora_b = mx.array(pair[0]), mx.array(pair[1])
            layer.train()
        model.checkpoint_blocks = 1  # the others keep their activations
        return model, paths

    def _cast(self, value: mx.array) -> mx.array:
        return value.astype(self.dtype) if mx.issubdtype(value.dtype, mx.floating) else value

    def _batch(self, example: StepExample) -> dict[str, mx.array]:
        drawn = {"drawn.noise": example.noise, "drawn.sigma": example.sigma}
        more = {f"more.{name}": value for name, value in example.more.items()}
        keys = np.zeros((len(example.sigma), 2), np.uint32)
        return _arrays({**example.batch, **drawn, **more, "keys": keys})
