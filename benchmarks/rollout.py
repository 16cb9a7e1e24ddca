"""What scheduled sampling costs a training step: processor seconds of a forward pass and of a step.

    python benchmarks/rollout.py [--family v15]     two blocks of the true width, 60 s of music

Float32 and one thread; see benchmarks/train_step.py for a BLAS. From both times follow the factors that
`--dry-run` guesses. Lyrics are encoded before, as with LoRA on the attentions alone (`attn_qkv`).
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten, tree_map

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from subjects import add_family, subject

from acestep_mlx.families.protocol import Load
from acestep_mlx.lora.surgery import LoRASpec, inject
from acestep_mlx.nn.device import cache_limit
from acestep_mlx.training.optimizers import Group, Schedule, make_optimizer
from acestep_mlx.training.rollout import ReflexFlow, Rollout, RolloutSettings
from acestep_mlx.training.step import StepSettings, TrainStep

#: what is told of: name → settings
PLANS = {
    "offset 10, uniform": RolloutSettings(10, probability=1.0),
    "offset 10, uniform, ReflexFlow": RolloutSettings(10, probability=1.0, reflexflow=ReflexFlow()),
    "offset 30, stride 30": RolloutSettings(30, probability=1.0, stride=30),
    "offset 30, stride 10": RolloutSettings(30, probability=1.0, stride=10),
}


class Fixed(RolloutSettings):
    """Every song by the same offset."""

    def offsets(self, keys: np.ndarray, step: int) -> np.ndarray:
        return np.full(len(keys), self.max_offset)


def timed(run: Callable[[], Any], repeats: int) -> tuple[float, float]:
    """Median processor seconds after a first run, and MLX's peak in GB above what was there before."""
    mx.eval(run())
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    seconds = []
    for _ in range(repeats):
        start = time.process_time()
        mx.eval(run())
        seconds.append(time.process_time() - start)
    return statistics.median(seconds), (mx.get_peak_memory() - before) / 1e9


def main() -> None:
    """Parse the command line, run, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_family(parser)
    parser.add_argument("--blocks", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--text", type=int, default=64, help="prompt tokens")
    parser.add_argument("--lyrics", type=int, default=299, help="lyric tokens")
    parser.add_argument("--steps", type=int, default=2, help="measured of each kind")
    args = parser.parse_args()
    mx.set_cache_limit(cache_limit())
    about = subject(args.family)
    config = about.blocks(about.config, args.blocks)
    load = Load(round(args.seconds * about.family.latents.frame_rate), 1, args.text, args.lyrics)
    model: Any = about.family.components["transformer"].module(config)
    model.update(tree_map(lambda p: 0.02 * mx.random.normal(p.shape), model.parameters()))
    inject(model, LoRASpec(rank=16, targets=about.family.lora.presets["attn_qkv"]))
    model.train()
    mx.eval(model.parameters())
    paths = [k for k, _ in tree_flatten(model.trainable_parameters())]
    prepare = about.family.prepare(model)
    batch = about.batch(config, load)
    batch = batch if prepare is None else prepare(batch)
    for recomputed in (0, args.blocks):
        model.checkpoint_blocks = recomputed
        group = Group("lora", make_optimizer("adamw", 1e-4), Schedule("constant", 1e-4, 0, 1000), paths)
        step = TrainStep(model, [group], StepSettings(), about.objective())
        plain, memory = timed(lambda step=step: (step(batch, update=True).loss, step.state), args.steps)
        print(f"{recomputed} of {args.blocks} blocks recomputed: a step {plain:.2f} s, +{memory:.2f} GB")
        costs = []
        for offset in (1, 4):
            rollout = Rollout(model, about.objective(), Fixed(offset), mx.float32)
            seconds, memory = timed(lambda rollout=rollout: rollout(batch, 0), args.steps)
            costs.append(seconds)
            print(f"  a rollout of {offset}: {seconds:.2f} s, +{memory:.2f} GB")
        forward = (costs[1] - costs[0]) / 3
        first = costs[0] - forward
        print(f"  a forward pass {forward:.2f} s ({forward / plain:.2f} of a step), before it {first:.2f} s")
        for name, plan in PLANS.items():
            some = 1 - plan.at_most(0)
            factor = 1 + (plan.forwards(1.0, 1) * forward + some * first) / plain
            print(f"  {name}: {plan.forwards(1.0, 1):.2f} forward passes, {factor:.2f} times")


if __name__ == "__main__":
    main()
