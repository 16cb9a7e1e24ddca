"""Rollouts against PyTorch: latents, losses and LoRA gradients, with upstream's transformers through peft.

The formulas are written out once more here, song by song, in the plainest way: unit Euler steps from
σ_s = min(σ + o/1000, 1) down to σ, the target x0 kept (T1), ReflexFlow's terms over frames that count.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from acestep_mlx.training.optimizers import Group, Schedule, make_optimizer
from acestep_mlx.training.rollout import NOISY, ROLLED, ReflexFlow, Rollout, RolloutSettings
from acestep_mlx.training.step import StepSettings, TrainStep

from ..later import Later
from . import test_training_parity as v1
from . import test_v15_training_parity as v15
from .test_transformer_parity import relative_error
from .test_v15_training_parity import conditions  # noqa: F401

torch = Later("torch")
pytestmark = [pytest.mark.parity, pytest.mark.slow]

WEIGHTS = ReflexFlow(40.0, 2.0, 0.5)


class Fixed(RolloutSettings):
    """With a given offset for each song."""

    given: tuple[int, ...] = ()

    def offsets(self, keys: np.ndarray, step: int) -> np.ndarray:
        return np.array(self.given)


def fixed(given: tuple[int, ...], reflexflow: ReflexFlow | None) -> Fixed:
    settings = Fixed(max(1, *given), probability=1.0, reflexflow=reflexflow)
    object.__setattr__(settings, "given", given)
    return settings


def led(velocity: Callable[[Any, float], Any], x0: Any, noise: Any, sigma: float, offset: int) -> Any:
    """Where a song (1, …) is led from `offset` timesteps above σ."""
    t, source = 1000 * sigma, min(1000 * sigma + offset, 1000.0)
    levels = [max(t, source - j) / 1000 for j in range(math.ceil(source - t - 1e-9) + 1)]
    x = levels[0] * noise + (1 - levels[0]) * x0
    with torch.no_grad():
        for now, then in itertools.pairwise(levels):
            x = x + (then - now) * velocity(x, now)
    return x


def reflexed(
    error: Any, v: Any, straight: Any, x: Any, x0: Any, mask: Any, mean: Callable[[Any], Any]
) -> Any:
    """The loss of a song with ReflexFlow. error: its squared errors; mean: of those that count."""
    e = ((straight - v) * mask).detach()
    fc = e / e.abs().sum().clamp(min=1e-6)
    a, b = (y.flatten() / y.norm().clamp(min=1e-6) for y in (v * mask, (x - x0) * mask))
    return WEIGHTS.beta2 * mean(error * (1 + WEIGHTS.alpha * fc)) + WEIGHTS.beta1 * ((a - b) ** 2).sum()


def compared(
    ours: Any, of: Any, batch: dict[str, mx.array], settings: RolloutSettings, theirs: list[Any], loss: Any
) -> tuple[TrainStep, dict[str, mx.array]]:
    """Our step's latents and loss against theirs; the step, which has kept the gradient, and the batch."""
    trained = [path for path, _ in tree_flatten(ours.trainable_parameters())]
    group = Group("lora", make_optimizer("adamw", 1e-3), Schedule("constant", 1e-3, 0, 1), trained)
    rollout = Rollout(ours, of, settings, mx.float32, compiled=False)
    step = TrainStep(ours, [group], StepSettings(accumulate=2), of, compiled=False, rollout=rollout)
    there = rollout(batch, 0)
    if NOISY in there:
        mask = of.clean(batch, of.draw(batch))[1]
        for b, x in enumerate(theirs):
            x = x.detach().numpy()
            x = np.pad(x, [(0, to - n) for n, to in zip(x.shape, (1, *there[NOISY].shape[1:]), strict=True)])
            valid = np.broadcast_to(np.array(mask[b]), x[0].shape)
            assert relative_error(there[NOISY][b] * mask[b], torch.from_numpy(x[0] * valid)) <= 1e-4
    result = step(batch, update=False)
    assert abs(result.loss.item() - loss.item()) <= 1e-4 * max(1.0, loss.item())
    return step, there


CASES = [((0, 0), None), ((7, 1), None), ((1, 7), WEIGHTS), ((0, 7), WEIGHTS)]


@pytest.mark.parametrize(("offsets", "reflexflow"), CASES)
def test_v1(offsets: tuple[int, ...], reflexflow: ReflexFlow | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two songs, one of them padded; with T2's target the same velocity has the reference's loss too."""
    ours, reference, paths, layers = v1.adapted_pair(monkeypatch)
    batch, d, values, noise, sigma, keep = v1.example(1)
    B = len(sigma)
    assert B == 2 and len({*np.array(batch["latent_mask"].sum(axis=1)).tolist()}) == 2
    t = {k: torch.from_numpy(np.asarray(value)) for k, value in values.items()}
    text, speaker, lyrics = (torch.from_numpy(k) for k in keep)
    found, straight_target, theirs = [], [], []
    for b in range(B):
        one = {k: value[b : b + 1] for k, value in t.items()}
        x0, eps, s = one["hidden_states"], torch.from_numpy(noise[b : b + 1]), float(sigma[b])

        def velocity(x: Any, level: float, one: dict[str, Any] = one, b: int = b) -> Any:
            return reference(
                hidden_states=x,
                attention_mask=one["attention_mask"],
                encoder_text_hidden_states=one["encoder_text_hidden_states"] * text[b],
                text_attention_mask=one["text_attention_mask"],
                speaker_embeds=one["speaker_embeds"] * speaker[b],
                lyric_token_idx=one["lyric_token_idx"] * lyrics[b],
                lyric_mask=one["lyric_mask"] * lyrics[b],
                timestep=torch.tensor([1000 * level]),
            ).sample

        x = led(velocity, x0, eps, s, offsets[b])
        v, mask = velocity(x, s), one["attention_mask"][:, None, None].expand_as(x0)
        with torch.no_grad():
            straight = velocity(s * eps + (1 - s) * x0, s)

        def mean(error: Any, mask: Any = mask) -> Any:
            return error.mean() * mask.mean()

        error = (((x - s * v) - x0) * mask) ** 2
        found.append(reflexed(error, v, straight, x, x0, mask, mean) if reflexflow else mean(error))
        straight_target.append(mean((s * (v - (eps - x0)) * mask) ** 2))
        theirs.append(x)
    loss = torch.stack(found).mean()
    loss.backward()
    of = v1.Drawn([])
    object.__setattr__(of, "draw", lambda batch: d)
    step, there = compared(ours, of, batch, fixed(offsets, reflexflow), theirs, loss)
    gradient = {k: g / step.carry["weight"] for k, g in step.gradient().items()}
    v1.compare_gradients(gradient, paths, layers)
    x = there.get(NOISY)
    if x is None:
        x = v1.flow.add_noise(batch["latents"], d.noise, d.sigma)
    ours_v = of.velocity(ours, batch, x, d.sigma, mx.float32)
    error = mx.square(d.sigma[:, None, None, None] * (ours_v - (d.noise - batch["latents"])))
    error = (error * batch["latent_mask"][:, None, None]).mean(axis=(1, 2, 3)) * batch["latent_mask"].mean(
        axis=1
    )
    np.testing.assert_allclose(error, torch.stack(straight_target).detach().numpy(), rtol=1e-4)


@pytest.mark.parametrize(("offsets", "reflexflow"), CASES)
def test_v15(
    offsets: tuple[int, ...],
    reflexflow: ReflexFlow | None,
    conditions: Any,  # noqa: F811
    tmp_path: Path,
) -> None:
    """Three songs of three lengths, each alone in the reference; offsets in 1000·t, the target (x − x0)/t."""
    offsets = (*offsets, offsets[1])
    example = v15.Example(conditions, tmp_path)
    ours, reference, paths = v15.adapted(None)
    found, theirs = [], []
    for i, (words, T, dropped) in enumerate(v15.SONGS):
        mean, std, noise, near = (
            torch.from_numpy(x)[None] for x in (*example.sound[i], example.noise[i, :T], example.near[i, :T])
        )
        x0, t = mean + std * near, float(example.time[i])
        states = example.condition(words)
        if dropped:
            states = example.encoder.null_condition_emb.detach().expand_as(states)
        silence = example.encoder.silence_latent[:, :T]
        context = torch.cat([silence, torch.ones_like(silence)], dim=-1)

        def velocity(x: Any, level: float, states: Any = states, context: Any = context) -> Any:
            time = torch.tensor([level])
            return reference(
                hidden_states=x,
                timestep=time,
                timestep_r=time,
                encoder_hidden_states=states,
                context_latents=context,
            ).sample

        x = led(velocity, x0, noise, t, offsets[i])
        v = velocity(x, t)
        with torch.no_grad():
            straight = velocity(t * noise + (1 - t) * x0, t)
        error = (v - (x - x0) / t) ** 2
        one = torch.ones_like(x)
        found.append(reflexed(error, v, straight, x, x0, one, torch.mean) if reflexflow else error.mean())
        theirs.append(x)
    loss = torch.stack(found).mean()
    loss.backward()
    of = v15.Drawn(example.draw)
    step, there = compared(ours, of, example.batch, fixed(offsets, reflexflow), theirs, loss)
    assert (ROLLED in there) == any(offsets)
    layers = dict(reference.named_modules())
    for path in paths:
        other = layers[v15.their_name(path)]
        for name, weight in (("lora_a", other.lora_A["x"].weight), ("lora_b", other.lora_B["x"].weight)):
            got = step.gradient()[f"{path}.{name}"].T / len(v15.SONGS)
            assert relative_error(got, weight.grad) <= 1e-3, (path, name)
