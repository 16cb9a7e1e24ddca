"""Scheduled sampling ("rollout"): songs are trained on what the model's own steps make of them.

In training a song lies on the straight line x_σ = σ·ε + (1 − σ)·x0; when a song is made, it lies wherever the
steps before have led. Here a song begins some timesteps above its noise level σ, the model takes it down to σ
by Euler steps without a gradient, and is trained there: x0 stays what it is to reach. The keys are
SimpleTuner's, and so are ReflexFlow's two terms (after arXiv 2512.04904); timesteps count 1000·σ.

The host draws who is rolled out and how far, from a song's own random key, and calls one compiled Euler step
as often as that takes. LoRA dropout is off in it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ..families.protocol import Batch, Draw, Objective
from ..lora.surgery import evaluating

TIMESTEPS = 1000  # of σ from 0 to 1
_PLAN = 3  # stream of random numbers, beside those of data.batches
#: in a batch that is rolled out: latents (…), who is (B,) bool, and the velocity on the straight line
NOISY, ROLLED, STRAIGHT = "rollout_noisy", "rollout_rolled", "rollout_straight"
FLOW, FC, ADR = "reflexflow/flow", "reflexflow/fc", "reflexflow/adr"  # parts of the loss
#: share of a forward pass in a step, and where all blocks run twice: measured (benchmarks/rollout.py), and a
#: little less where more is trained than the attentions
FORWARD, FORWARD_RECOMPUTED = 0.46, 0.36


@dataclass(frozen=True)
class ReflexFlow:
    """Weights of the loss: L = β2·(flow matching, each squared error times 1 + α·FC) + β1·ADR."""

    alpha: float = 1.0
    beta1: float = 10.0
    beta2: float = 1.0


@dataclass(frozen=True)
class RolloutSettings:
    """Which songs are rolled out, and how far. max_offset, stride: timesteps, at least 1."""

    max_offset: int
    strategy: str = "uniform"
    probability: float = 0.0
    ramp_steps: int = 0
    prob_start: float = 0.0
    prob_end: float = 0.5
    start_step: int = 0
    ramp_shape: str = "linear"
    stride: int = 1
    reflexflow: ReflexFlow | None = None

    @property
    def probabilities(self) -> tuple[float, ...]:
        """At the ends of the ramp, or without one the only one."""
        return (self.prob_start, self.prob_end) if self.ramp_steps else (self.probability,)

    def probability_at(self, step: int) -> float:
        """That a song is eligible, after so many updates."""
        if self.ramp_steps == 0:
            return self.probability
        if step < self.start_step:
            return self.prob_start
        u = min((step - self.start_step) / self.ramp_steps, 1.0)
        if self.ramp_shape == "cosine":
            u = 0.5 - 0.5 * math.cos(math.pi * u)
        return self.prob_start + (self.prob_end - self.prob_start) * u

    def offset(self, u: float) -> int:
        """Timesteps of an eligible song; u is uniform in [0, 1)."""
        K = self.max_offset
        if self.strategy == "biased_early":
            return round(u * u * K)
        return round((1 - u * u) * K) if self.strategy == "biased_late" else math.floor(u * (K + 1))

    def offsets(self, keys: np.ndarray, step: int) -> np.ndarray:
        """Timesteps (B,) of songs with these random keys (B, 2), each from its own, after so many updates."""
        p, found = self.probability_at(step), []
        for key in keys.tolist():
            rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([*key, _PLAN])))
            chance, u = rng.random(2)
            found.append(self.offset(u) if chance < p else 0)
        return np.array(found)

    def at_most(self, offset: int) -> float:
        """The share of eligible songs with no larger offset."""
        K = self.max_offset
        if offset >= K:
            return 1.0
        if self.strategy == "biased_early":
            return math.sqrt((offset + 0.5) / K)
        return (
            1 - math.sqrt((K - offset - 0.5) / K)
            if self.strategy == "biased_late"
            else (offset + 1) / (K + 1)
        )

    def forwards(self, probability: float, batch: int) -> float:
        """The mean number of forward passes before the training pass of a batch of so many songs."""

        def no_more(steps: int) -> float:  # Euler steps of all songs
            return (1 - probability + probability * self.at_most(steps * self.stride)) ** batch

        longest = math.ceil(self.max_offset / self.stride)
        straight = 1 - no_more(0) if self.reflexflow is not None and self.reflexflow.alpha else 0.0
        return straight + sum(1 - no_more(steps) for steps in range(longest))


def noised(x0: mx.array, noise: mx.array, sigma: mx.array) -> mx.array:
    """x_σ, float32; sigma (B,)."""
    s = sigma.reshape(-1, *[1] * (x0.ndim - 1))
    return s * noise + (1 - s) * x0


def level(sigma: mx.array, offsets: mx.array, done: mx.array) -> mx.array:
    """σ (B,) of songs with these offsets (B,) when `done` () of their timesteps are behind them.

    They begin at σ + offset/1000, or at 1 where that is above, and end at σ.
    """
    began = mx.minimum(sigma + offsets / TIMESTEPS, 1.0)
    return mx.where(done < offsets, mx.maximum(began - done / TIMESTEPS, sigma), sigma)


class Rollout:
    """Rolls batches out, and has the loss of what comes of them.

    Args:
        model: the transformer with its adapters, as they are when it is called.
        dtype: of the model's computation; latents add up in float32.
        compiled: False runs the same code eagerly (tests).
    """

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        settings: RolloutSettings,
        dtype: mx.Dtype,
        *,
        compiled: bool = True,
    ) -> None:
        self.model, self.objective, self.settings, self.dtype = model, objective, settings, dtype
        self.traces = 0  # how often a part was traced: each once per batch shape
        run = partial(mx.compile, inputs=model.state, outputs=model.state) if compiled else (lambda f: f)
        self._begin, self._euler = run(self._started), run(self._stepped)

    def __call__(self, batch: Batch, step: int) -> dict[str, mx.array]:
        """The batch, rolled out if one of its songs is to be; step: updates so far.

        Reads the songs' keys, which came from the host, so that nothing waits for the device.
        """
        offsets = self.settings.offsets(np.array(batch["keys"]), step)
        if not offsets.any():
            return dict(batch)
        rolled, stride = mx.array(offsets, dtype=mx.float32), self.settings.stride
        told, sigma, x, straight = self._begin(dict(batch), rolled)
        mx.async_eval(told, x, straight)  # what led to them is let go of
        for done in range(0, int(offsets.max()), stride):
            x = self._euler(told, x, sigma, rolled, mx.array(float(done)))
            mx.async_eval(x)
        return {**batch, NOISY: x, ROLLED: rolled > 0, **straight}

    def _started(self, batch: dict[str, mx.array], offsets: mx.array) -> tuple[Any, ...]:
        """The batch with its conditions encoded, σ, latents at the beginning, and FC's other velocity."""
        self.traces += 1
        with evaluating(self.model):
            d = self.objective.draw(batch)
            x0, _ = self.objective.clean(batch, d)
            told = {**batch, **self.objective.told(self.model, batch, self.dtype)}
            straight = {}
            if self.settings.reflexflow is not None and self.settings.reflexflow.alpha:
                line = noised(x0, d.noise, d.sigma)
                straight[STRAIGHT] = self.objective.velocity(self.model, told, line, d.sigma, self.dtype)
        return told, d.sigma, noised(x0, d.noise, level(d.sigma, offsets, mx.array(0.0))), straight

    def _stepped(
        self, told: dict[str, Any], x: mx.array, sigma: mx.array, offsets: mx.array, done: mx.array
    ) -> mx.array:
        """An Euler step of the songs that are not at σ yet: x ← x + (σ' − σ_j)·v(x, σ_j)."""
        self.traces += 1
        now, then = level(sigma, offsets, done), level(sigma, offsets, done + self.settings.stride)
        with evaluating(self.model):
            velocity = self.objective.velocity(self.model, told, x, now, self.dtype)
        column = (-1, *[1] * (x.ndim - 1))
        moved = x + (then - now).reshape(column) * velocity.astype(mx.float32)
        return mx.where((then < now).reshape(column), moved, x)

    @property
    def parts(self) -> tuple[str, ...]:
        """What of the loss is logged apart: with ReflexFlow the plain loss, and what its terms add."""
        reflexflow = self.settings.reflexflow
        if reflexflow is None:
            return ()
        return FLOW, *((FC,) if reflexflow.alpha else ()), *((ADR,) if reflexflow.beta1 else ())

    def losses(self, batch: Batch, draw: Draw) -> tuple[mx.array, dict[str, mx.array]]:
        """(B,) float32 of a batch that was rolled out or not, and of each of `parts`."""
        objective, reflexflow = self.objective, self.settings.reflexflow
        if reflexflow is None and ROLLED not in batch:
            return objective.losses(self.model, batch, draw, self.dtype), {}
        x0, mask = objective.clean(batch, draw)
        rolled = batch.get(ROLLED)
        x = noised(x0, draw.noise, draw.sigma) if rolled is None else mx.stop_gradient(batch[NOISY])
        velocity = objective.velocity(self.model, batch, x, draw.sigma, self.dtype)
        compared = partial(objective.compared, velocity, x, batch, draw, rolled=rolled)
        flow = compared()
        if reflexflow is None:
            return flow, {}
        found = {FLOW: flow, FC: mx.zeros_like(flow)}
        if rolled is not None and reflexflow.alpha:
            seen = mask * rolled.reshape(-1, *[1] * (x.ndim - 1))
            weight = frequency_weight(batch[STRAIGHT], velocity, seen)
            found[FC] = reflexflow.beta2 * reflexflow.alpha * compared(weight=weight)
        found[ADR] = reflexflow.beta1 * direction_loss(velocity, x - x0, mask)
        parts = {name: found[name] for name in self.parts}
        return reflexflow.beta2 * flow + sum(part for name, part in parts.items() if name != FLOW), parts


def frequency_weight(straight: mx.array, rolled: mx.array, mask: mx.array) -> mx.array:
    """ReflexFlow's FC: the difference of the two velocities over the sum of its sizes, a song each, float32.

    Without a gradient; zero where the mask is.
    """
    e = mx.stop_gradient((straight.astype(mx.float32) - rolled.astype(mx.float32)) * mask)
    return e / mx.maximum(mx.abs(e).sum(axis=tuple(range(1, e.ndim)), keepdims=True), 1e-6)


def direction_loss(velocity: mx.array, away: mx.array, mask: mx.array) -> mx.array:
    """ReflexFlow's ADR (B,) float32: ‖a − b‖² of the directions of v and `away`, x − x0, in the mask."""

    def direction(y: mx.array) -> mx.array:
        y = (y.astype(mx.float32) * mask).reshape(y.shape[0], -1)
        return y / mx.maximum(mx.sqrt(mx.square(y).sum(axis=1, keepdims=True)), 1e-6)

    return mx.square(direction(velocity) - direction(away)).sum(axis=1)


def described(settings: RolloutSettings, batch: int, chosen: bool) -> list[str]:
    """Lines for people: what a run will do, and what its steps will cost.

    batch: songs in one. chosen: whether the configuration says whether there is ReflexFlow.
    """
    s, ends = settings, settings.probabilities
    often = f"with probability {ends[0]:g}"
    if s.ramp_steps:
        first, last = s.start_step, s.start_step + s.ramp_steps
        often = f"with probability {ends[0]:g} at step {first} to {ends[1]:g} at step {last} ({s.ramp_shape})"
    costs = [s.forwards(p, batch) for p in ends]
    plain, again = (_range(1 + cost * share for cost in costs) for share in (FORWARD, FORWARD_RECOMPUTED))
    lines = [
        f"scheduled sampling: songs are rolled out {often}, by 0 to {s.max_offset} timesteps ({s.strategy}), "
        f"in Euler steps of {s.stride}; without a gradient and without LoRA dropout",
        f"that is {_range(costs)} forward passes more in a step on average: about {plain} times its time, "
        f"{again} times where all blocks compute their activations again",
    ]
    if s.reflexflow is None:
        return [*lines, "ReflexFlow is off, as scheduled_sampling_reflexflow says"]
    why = "says" if chosen else "is not set (false: off)"
    weights = f"alpha {s.reflexflow.alpha:g}, beta1 {s.reflexflow.beta1:g}, beta2 {s.reflexflow.beta2:g}"
    reflexflow = (
        f"ReflexFlow is on, as scheduled_sampling_reflexflow {why}: {weights}; the training loss holds"
    )
    return [*lines, f"{reflexflow} its terms, for every song, and the evaluation loss does not"]


def _range(numbers: Iterable[float]) -> str:
    return " to ".join(dict.fromkeys(f"{number:.1f}" for number in numbers))
