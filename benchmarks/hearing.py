"""The self-supervised loss of v1 at the true size, on random weights: hearing a song, and a step with it.

    python benchmarks/hearing.py --hear     each encoder over --seconds of sound: time, and the peak of memory
    python benchmarks/hearing.py --step     two blocks of the true width: a step without the loss and with it

Steps alternate, so that a busy machine slows both; medians are printed. Nothing is downloaded. On Linux
preload a real BLAS, see train_step.py.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from acestep_mlx.families.protocol import Load
from acestep_mlx.families.v1 import FAMILY
from acestep_mlx.families.v1.latents import LATENTS
from acestep_mlx.families.v1.objective import FlowMatching
from acestep_mlx.families.v1.ssl.alignment import Alignment
from acestep_mlx.families.v1.ssl.encoders import ENCODERS, SOUND_RATE, length_of
from acestep_mlx.families.v1.ssl.features import features
from acestep_mlx.families.v1.ssl.hubert import Hubert, HubertConfig
from acestep_mlx.families.v1.ssl.projectors import Projectors, Tap, shapes
from acestep_mlx.lora.surgery import LoRASpec, inject
from acestep_mlx.training.optimizers import Group, Schedule, make_optimizer
from acestep_mlx.training.step import StepSettings, TrainStep

SIZES = {
    "mert": HubertConfig(1024, 24, 16, 4096, 512, 128, 16, True),
    "m-hubert": HubertConfig(768, 12, 12, 3072, 512, 128, 16, False),
}


def hear(seconds: float) -> None:
    """Each encoder over so much noise."""
    sound = np.random.default_rng(0).standard_normal((round(seconds * SOUND_RATE), 2)).astype(np.float32)
    for name, encoder in ENCODERS.items():
        network = Hubert(SIZES[name])
        mx.eval(network.parameters())
        parameters = sum(value.size for _, value in tree_flatten(network.parameters()))
        mx.reset_peak_memory()
        start = time.perf_counter()
        found = features(network, sound, encoder)
        took = time.perf_counter() - start
        print(
            f"{encoder.title}: {parameters / 1e6:.1f} M parameters, {seconds:g} s heard in {took:.1f} s, "
            f"{found.shape}, peak {mx.get_peak_memory() / 1e9:.2f} GB with the weights"
        )
        del network
        mx.clear_cache()


def batch_of(config: Any, load: Load) -> dict[str, mx.array]:
    """One song, with random features."""
    sizes = {
        "latents": (8, 16, load.frames), "text": (load.text, config.text_embedding_dim),
        "latent_mask": (load.frames,), "text_mask": (load.text,), "lyric_mask": (load.lyrics,),
    }  # fmt: skip
    batch = {
        name: mx.ones((1, *size)) if "mask" in name else mx.random.normal((1, *size))
        for name, size in sizes.items()
    }
    batch["lyric_ids"] = mx.random.randint(1, 6000, (1, load.lyrics))
    for name, encoder in ENCODERS.items():
        L = encoder.length(round(LATENTS.seconds(load.frames) * SOUND_RATE))
        batch[name] = mx.random.normal((1, L, encoder.width)).astype(mx.float16)
        batch[length_of(name)] = mx.array([L])
    batch["keys"] = mx.random.key(0)[None]
    return batch


def step_of(config: Any, auxiliary: Alignment | None) -> TrainStep:
    """A step of two blocks, all recomputed."""
    mx.random.seed(0)
    model = FAMILY.components["transformer"].module(config)
    model.freeze()
    inject(model, LoRASpec(rank=16, targets=FAMILY.lora.default_targets))
    model.train()
    model.checkpoint_blocks = config.num_layers
    mx.eval(model.parameters())
    paths = [k for k, _ in tree_flatten(model.trainable_parameters())]
    group = Group("lora", make_optimizer("adamw", 1e-4), Schedule("constant", 1e-4, 0, 1000), paths)
    return TrainStep(model, [group], StepSettings(), FlowMatching(), auxiliary=auxiliary)


def steps(seconds: float, rounds: int) -> None:
    """Steps without the loss and with it, in turn."""
    config = replace(FAMILY.components["transformer"].config(), num_layers=2)
    load = Load(round(seconds * LATENTS.frame_rate), 1, 256, 192)
    taps = [Tap(name, 1, encoder.width) for name, encoder in ENCODERS.items()]
    tensors = {k: mx.random.normal(shape) * 0.02 for k, shape in shapes(taps, config.dim).items()}
    alignment = Alignment(Projectors(taps, tensors), 1.0, tuple(ENCODERS))
    made = {"without": step_of(config, None), "with it": step_of(config, alignment)}
    batch, times, peaks = batch_of(config, load), {name: [] for name in made}, {}
    for turn in range(rounds + 1):
        for name, step in made.items():
            mx.clear_cache()
            mx.reset_peak_memory()
            start = time.perf_counter()
            result = step(batch, update=True)
            mx.eval(result, step.state)
            if turn:  # the first is compiled
                times[name].append(time.perf_counter() - start)
            peaks[name] = mx.get_peak_memory()
    for name, taken in times.items():
        print(f"{name}: {statistics.median(taken):.2f} s, peak {peaks[name] / 1e9:.2f} GB (both models held)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--hear", action="store_true")
    parser.add_argument("--step", action="store_true")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    if given.hear:
        hear(given.seconds)
    if given.step:
        steps(given.seconds, given.rounds)


if __name__ == "__main__":
    main()
