"""The compiled training step: draw, predict, loss, gradient, accumulate, clip, update.

Everything random about a song comes from its own key in the batch, so that two ranks with one song each draw
what one rank with two draws, and the step has no random state that a checkpoint would have to keep.

The step never leads to a host synchronisation: a micro-batch whose loss or gradient is not finite is left
out on the device (its weight becomes zero), and an update without a finite micro-batch changes nothing.

Several ranks compute the same in two compiled functions and talk to each other between them, outside every
graph: a GPU that waits for another machine within its work is ended by Metal after some seconds.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten

from ..families.protocol import Auxiliary, Batch, Draw, Objective, Prepare
from ..lora.surgery import seed_dropout
from .average import Average, AverageSettings
from .distributed import all_sum
from .optimizers import Group
from .rollout import Rollout
from .rows import Row, Rows, squared_norm

#: what ranks tell each other of every micro-batch, beside the parts of the loss
TOLD = ("loss", "finite", "stop")


@dataclass(frozen=True)
class StepSettings:
    """What the compiled step is specialised on."""

    max_grad_norm: float = 1.0  # 0 = off
    accumulate: int = 1
    compute_dtype: mx.Dtype = mx.float32
    average: AverageSettings | None = None


class StepResult(NamedTuple):
    """Scalars of a micro-step, not yet evaluated."""

    loss: mx.array  # mean over the samples of all ranks
    grad_norm: mx.array  # before clipping; of the update, or of the micro-batch while accumulating
    finite: mx.array  # bool: this micro-batch counted (on every rank)
    stop: mx.array  # bool: some rank was asked to stop
    parts: Mapping[str, mx.array] = MappingProxyType({})  # of the loss, by name; means as the loss is one


def clip(gradient: dict[str, mx.array], norm: mx.array, settings: StepSettings) -> dict[str, mx.array]:
    """Clip to `max_grad_norm` by the global norm (as torch: limit / (norm + 1e-6), at most 1)."""
    limit = settings.max_grad_norm
    if limit <= 0:
        return gradient
    factor = mx.minimum(limit / (norm + 1e-6), 1.0)
    return {k: g * factor for k, g in gradient.items()}


class TrainStep:
    """The compiled step over a model with trainable parameters in `groups`.

    Call it with a batch; `update=True` ends an accumulation round and changes the parameters. All that
    changes is in `arrays()`, which checkpoints save and `load_arrays` restores.

    Args:
        model: transformer with injected LoRA; only its trainable parameters change.
        groups: optimizer groups that together own every trainable parameter.
        objective: what is drawn for a batch, and its loss.
        world: how many ranks train together; their gradients are averaged.
        compiled: False runs the same code eagerly (tests).
        prepare: adds to a batch what nothing that is trained changes.
        auxiliary: a further loss.
        rollout: rolls songs out before they are trained on, and has the objective's losses then.
    """

    #: fp16 only: gradients are computed on loss × scale, which grows after this many finite steps
    GROW_AFTER = 500

    def __init__(
        self,
        model: nn.Module,
        groups: Sequence[Group],
        settings: StepSettings,
        objective: Objective,
        *,
        world: int = 1,
        compiled: bool = True,
        prepare: Prepare | None = None,
        auxiliary: Auxiliary | None = None,
        rollout: Rollout | None = None,
    ) -> None:
        self.model, self.groups, self.settings = model, list(groups), settings
        self.objective, self.prepare = objective, prepare
        self.auxiliary, self.rollout = auxiliary, rollout
        self.parts = tuple(name for one in (rollout, auxiliary) if one is not None for name in one.parts)
        self.told = (*TOLD, *self.parts)
        self.world = world
        self.traces = 0  # how often the step was traced: once per batch shape and kind
        parameters = self.parameters()
        owned = [path for group in groups for path in group.paths]
        if sorted(owned) != sorted(parameters):
            raise ValueError("the optimizer groups do not cover the trainable parameters exactly once")
        for group in self.groups:
            group.init(parameters)
        self.rows = Rows({name: row for group in self.groups for name, row in group.rows.rows.items()})
        self.carry: dict[str, Any] = {"weight": mx.array(0.0)}
        if settings.accumulate > 1:
            self.carry["gradient"] = self.rows.zeros()
        if settings.compute_dtype == mx.float16:
            self.carry["scale"], self.carry["good"] = mx.array(2.0**14), mx.array(0.0)
        self.average = Average(settings.average, parameters) if settings.average is not None else None
        self.state = [model.state, [g.optimizer.state for g in self.groups], self.carry]
        if self.average is not None:
            self.state.append(self.average.state)
        run = partial(mx.compile, inputs=self.state, outputs=self.state) if compiled else (lambda f: f)
        if world == 1:
            self._micro, self._update = run(self._accumulate), run(self._accumulate_and_update)
        else:
            self._micro = self._round(run(self._tell), run(self._hear))
            self._update = self._round(run(self._tell_gradient), run(self._hear_gradient))

    @property
    def scales_loss(self) -> bool:
        """Whether gradients are computed on a scaled loss (fp16)."""
        return "scale" in self.carry

    def parameters(self) -> dict[str, mx.array]:
        """Trainable parameters by full path."""
        return dict(tree_flatten(self.model.trainable_parameters()))

    def set_parameters(self, values: Mapping[str, mx.array]) -> None:
        """Put trained parameters back (as `parameters` gave them)."""
        self.model.update(tree_unflatten(list(values.items())))

    def __call__(self, batch: Batch, *, update: bool, step: int = 0, stop: bool = False) -> StepResult:
        """Run one micro-step. `step`: completed updates so far, for the schedules; `stop`: tell all ranks."""
        for group in self.groups:
            group.set_rate(step)
        if self.average is not None:
            self.average.set_share(step + 1)
        arrays = dict(batch) if self.prepare is None else self.prepare(batch)
        if self.rollout is not None:
            arrays = self.rollout(arrays, step)
        return StepResult(*(self._update if update else self._micro)(arrays, mx.array(stop)))

    def _accumulate(self, batch: dict[str, mx.array], stop: mx.array) -> StepResult:
        """A micro-step that changes no parameter."""
        told, norm, weight, gradient = self._gradient(batch, stop)
        self._keep(gradient, weight)
        return self._result(told, norm)

    def _accumulate_and_update(self, batch: dict[str, mx.array], stop: mx.array) -> StepResult:
        """A micro-step that ends an update."""
        told, _, weight, gradient = self._gradient(batch, stop)
        return self._updated({**told, "weight": weight, **gradient})

    def _round(self, before: Callable[..., Any], after: Callable[..., Any]) -> Callable[..., StepResult]:
        """A micro-step of several ranks: what each tells, the mean of it, what each makes of that.

        One communication: two could run in another order on each rank.
        """

        def run(batch: dict[str, mx.array], stop: mx.array) -> StepResult:
            told, *own = before(batch, stop)
            return StepResult(*after(all_sum(told), *own))

        return run

    def _tell(self, batch: dict[str, mx.array], stop: mx.array) -> tuple[mx.array, mx.array]:
        """Several ranks' `_accumulate` up to the communication: (what is told, this rank's norm)."""
        told, norm, weight, gradient = self._gradient(batch, stop)
        self._keep(gradient, weight)
        return Row.of(told).pack(told), norm

    def _hear(self, total: mx.array, norm: mx.array) -> StepResult:
        """The rest of it. total: the sum over the ranks of what they told."""
        return self._result(Row(dict.fromkeys(self.told, ())).unpack(total / self.world), norm)

    def _tell_gradient(self, batch: dict[str, mx.array], stop: mx.array) -> tuple[mx.array]:
        """Several ranks' `_accumulate_and_update` up to the communication."""
        told, _, weight, gradient = self._gradient(batch, stop)
        shared = {**told, "weight": weight, **gradient}
        return (Row.of(shared).pack(shared),)

    def _hear_gradient(self, total: mx.array) -> StepResult:
        """The rest of it."""
        rows = {name: (row.size,) for name, row in self.rows.rows.items()}
        shared = Row({**dict.fromkeys((*self.told, "weight"), ()), **rows})
        return self._updated(shared.unpack(total / self.world))

    def _updated(self, shared: dict[str, mx.array]) -> StepResult:
        """Update with the mean of what the ranks told; what is accumulated begins at zero again."""
        norm = self._apply({name: shared[name] for name in self.rows.rows}, shared["weight"])
        self._keep(self.rows.zeros(), mx.array(0.0))
        return self._result(shared, norm)

    def _gradient(self, batch: dict[str, mx.array], stop: mx.array) -> tuple[Any, ...]:
        """(what ranks tell each other, norm, weight, gradient): the last two with what was accumulated.

        The gradient is the sum over the samples, and the weight their number, without those of a micro-batch
        that is not finite.
        """
        self.traces += 1
        settings, carry = self.settings, self.carry
        B = batch["keys"].shape[0]
        d = self.objective.draw(batch)
        scale = carry.get("scale", None)

        def mean_loss(batch: dict[str, mx.array], d: Draw) -> tuple[mx.array, dict[str, mx.array]]:
            losses, parts = self._losses(batch, d)
            value = mx.mean(losses)
            return (value if scale is None else value * scale), parts

        seed_dropout(self.model, d.dropout_key)
        (loss, parts), tree = nn.value_and_grad(self.model, mean_loss)(batch, d)
        gradient = self.rows.pack(dict(tree_flatten(tree)))
        if scale is not None:
            loss, gradient = loss / scale, {k: g / scale for k, g in gradient.items()}
        norm = mx.sqrt(squared_norm(gradient))
        finite = mx.isfinite(loss) & mx.isfinite(norm)
        # The weight of a micro-batch is its number of samples, so that uneven batches average correctly.
        weight = mx.where(finite, float(B), 0.0)
        gradient = {k: mx.where(finite, g, 0.0) * float(B) for k, g in gradient.items()}
        if settings.accumulate > 1:
            gradient = {k: carry["gradient"][k] + g for k, g in gradient.items()}
            weight = carry["weight"] + weight
        told = (loss, finite.astype(mx.float32), stop.astype(mx.float32), *(parts[k] for k in self.parts))
        return dict(zip(self.told, told, strict=True)), norm, weight, gradient

    def _losses(self, batch: dict[str, mx.array], d: Draw) -> tuple[mx.array, dict[str, mx.array]]:
        """(B,) float32, and the parts of their mean that are logged."""
        told: dict[str, mx.array] = {}

        def run() -> mx.array:
            if self.rollout is None:
                return self.objective.losses(self.model, batch, d, self.settings.compute_dtype)
            losses, parts = self.rollout.losses(batch, d)
            told.update({name: mx.mean(part) for name, part in parts.items()})
            return losses

        losses, parts = (run(), {}) if self.auxiliary is None else self.auxiliary(self.model, batch, run)
        return losses, {**told, **parts}

    def _keep(self, gradient: dict[str, mx.array], weight: mx.array) -> None:
        """What is accumulated up to the next micro-step."""
        if self.settings.accumulate > 1:
            self.carry["gradient"].update(gradient)
            self.carry["weight"] = weight

    def _result(self, shared: dict[str, mx.array], norm: mx.array) -> StepResult:
        """The numbers of all ranks; the loss scale (fp16) follows them."""
        everywhere, carry = shared["finite"] > 1 - 1e-6, self.carry
        if self.scales_loss:
            scale, grow = carry["scale"], carry["good"] + 1 >= self.GROW_AFTER
            carry["scale"] = mx.where(
                everywhere, mx.where(grow, scale * 2, scale), mx.maximum(scale / 2, 1.0)
            )
            carry["good"] = mx.where(everywhere & ~grow, carry["good"] + 1, 0.0)
        parts = {name: shared[name] for name in self.parts}
        return StepResult(shared["loss"], norm, everywhere, shared["stop"] > 0, parts)

    def _apply(self, summed: dict[str, mx.array], weight: mx.array) -> mx.array:
        """Average, clip and update; returns the norm before clipping. Nothing changes when `weight` is 0."""
        gradient = {k: g / mx.maximum(weight, 1e-6) for k, g in summed.items()}
        norm = mx.sqrt(squared_norm(gradient))
        gradient = clip(gradient, norm, self.settings)
        useful, parameters = weight > 0, self.parameters()
        for group in self.groups:
            self.set_parameters(group.updated(gradient, parameters, useful))
        if self.average is not None:
            self.average.move(self.parameters(), useful)
        return norm

    def gradient(self) -> dict[str, mx.array]:
        """What is accumulated, by path."""
        rows = self.carry.get("gradient")
        return {} if rows is None else self.rows.unpack(rows)

    def loss_scale(self) -> dict[str, mx.array]:
        """What changes of the loss scale (fp16) with every micro-step."""
        return {name: self.carry[name] for name in ("scale", "good") if name in self.carry}

    def begin_round(self, loss_scale: Mapping[str, mx.array]) -> None:
        """Forget what was accumulated since the last update; the loss scale is what it was then."""
        self.carry["weight"] = mx.array(0.0)
        if "gradient" in self.carry:
            self.carry["gradient"] = self.rows.zeros()
        self.carry.update(loss_scale)

    def arrays(self) -> dict[str, dict[str, mx.array]]:
        """What a resumed run needs, by file: `optimizer`, `sampler` (accumulation, loss scale), and `average`
        where there is one.
        """
        optimizer = {
            f"{group.name}|{name}": value for group in self.groups for name, value in group.state().items()
        }
        sampler = {k: v for k, v in self.carry.items() if k != "gradient"}
        sampler.update({f"gradient|{k}": v for k, v in self.gradient().items()})
        average = {} if self.average is None else {"average": self.average.values}
        return {"optimizer": optimizer, "sampler": sampler, **average}

    def load_arrays(
        self,
        optimizer: Mapping[str, mx.array],
        sampler: Mapping[str, mx.array],
        average: Mapping[str, mx.array] | None = None,
    ) -> list[str]:
        """Restore what `arrays` returned. Returns what does not fit (then nothing was changed)."""
        files = {"optimizer": optimizer, "sampler": sampler, "average": average or {}}
        problems = []
        for kind, expected in self.arrays().items():
            given = files[kind]
            problems += [f"{kind} state lacks {k}" for k in expected if k not in given]
            problems += [f"{kind} state has an unknown {k}" for k in given if k not in expected]
            problems += [
                f"{kind} state {k} is {given[k].dtype} {tuple(given[k].shape)}, expected {v.dtype} "
                f"{tuple(v.shape)}"
                for k, v in expected.items()
                if k in given and (given[k].shape, given[k].dtype) != (v.shape, v.dtype)
            ]
        if problems:
            return problems
        for group in self.groups:
            group.load_state({name: optimizer[f"{group.name}|{name}"] for name in group.state()})
        self.carry.update(
            {name: value for name, value in sampler.items() if not name.startswith("gradient|")}
        )
        if "gradient" in self.carry:
            self.carry["gradient"] = self.rows.pack({k: sampler[f"gradient|{k}"] for k in self.rows.paths})
        if self.average is not None:
            self.average.load(average or {})
        return []

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """The model with the average in place of what is trained; it is as before after the block."""
        if self.average is None:
            raise ValueError("this step takes no average")
        trained = self.parameters()
        self.set_parameters(self.average.values)
        try:
            yield
        finally:
            self.set_parameters(trained)
