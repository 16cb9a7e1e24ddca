"""What the training loop costs beside the compiled step, and whether memory creeps.

    python benchmarks/loop.py            200 steps of about 0.2 s: share of the wall time inside the step
    python benchmarks/loop.py --creep    500 steps of mixed lengths: peak after 500 against the peak after 50
    python benchmarks/loop.py --quick    fewer steps of a smaller model

The same steps are taken twice in turn, in pieces of ten: bare (the compiled step, nothing else)
and through the trainer with data from a cache, metrics.jsonl and every listener. A busy machine slows both.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from acestep_mlx.report.events import Listeners, MetricsFile, StepDone
from acestep_mlx.training.trainer import Intervals, Trainer
from tests.training import tiny


class Source:
    """Batches read from files one by one, as the data loader does it, of the given lengths in turn."""

    epoch = 0

    def __init__(self, folder: Path, frames: list[int], text_width: int) -> None:
        self.files, self.count = [], 0
        for i, T in enumerate(frames):
            made = tiny.batch(i, T=T, text=32, lyrics=64)
            made["text"] = mx.zeros((1, 32, text_width))
            np.savez(folder / f"{i}.npz", **{k: np.array(v) for k, v in made.items()})
            self.files.append(folder / f"{i}.npz")

    def next(self) -> dict[str, Any]:
        stored = np.load(self.files[self.count % len(self.files)])
        self.count += 1
        return {**{k: mx.array(stored[k]) for k in stored.files}, "seconds": 3.0, "epoch": 0}

    def state(self) -> dict[str, Any]:
        return {}


def overhead(heads: int, frames: int, steps: int) -> None:
    """Print the share of the trainer's wall time that the bare step takes."""
    config = replace(tiny.CONFIG, num_attention_heads=heads, attention_head_dim=64, num_layers=4)
    model = tiny.adapted(config=config)
    model.checkpoint_blocks = 4
    step = tiny.step(model)
    with tempfile.TemporaryDirectory() as name:
        source = Source(Path(name), [frames], config.text_embedding_dim)
        metrics = MetricsFile(Path(name) / "metrics.jsonl")
        seen: list[StepDone] = []
        emit = Listeners([metrics, lambda e: seen.append(e) if isinstance(e, StepDone) else None])
        trainer = Trainer(
            step, source, 0, intervals=Intervals(0), save=lambda health: (Path(), []), emit=emit
        )
        trainer.intervals = _Never()
        batch = source.next()
        arrays = {k: v for k, v in batch.items() if isinstance(v, mx.array)}
        bare, whole = [], []
        for _ in range(2):  # compile and warm up
            mx.eval(step(arrays, update=True), step.state)
        for _ in range(steps // 10):
            started = time.perf_counter()
            previous = None
            for i in range(10):  # one step ahead, as the trainer works, but without data, numbers or files
                result = step(arrays, update=True, step=i)
                mx.async_eval(result, step.state)
                if previous is not None:
                    mx.eval(previous)
                previous = result
            mx.eval(previous, step.state)
            middle = time.perf_counter()
            trainer.total += 10
            trainer.run()
            whole.append(time.perf_counter() - middle)
            bare.append(middle - started)
        metrics.close()
    a, b = sum(bare), sum(whole)
    pairs = [x / y for x, y in zip(bare, whole, strict=True)]
    print(f"{len(bare) * 10} steps of {a / len(bare) / 10:.3f} s: bare {a:.2f} s, trainer {b:.2f} s")
    print(
        f"share of the trainer's time inside the step: {100 * a / b:.1f} % "
        f"(median of pieces {100 * statistics.median(pairs):.1f} %)"
    )
    assert len(seen) == len(whole) * 10


class _Never(Intervals):
    def checkpoint_due(self, step: int, ended: int | None, last: bool) -> bool:
        return False

    def evaluation_due(self, step: int, ended: int | None, last: bool) -> bool:
        return False

    def validation_due(self, step: int, ended: int | None, last: bool) -> bool:
        return False


def creep(steps: int) -> float:
    """Print and return peak memory after all steps over the peak after 50."""
    model = tiny.adapted()
    model.checkpoint_blocks = 1
    step = tiny.step(model, accumulate=2)
    order = np.random.default_rng(0).choice([32, 48, 64, 96], steps).tolist()
    with tempfile.TemporaryDirectory() as name:
        source = Source(Path(name), [32, 48, 64, 96], tiny.CONFIG.text_embedding_dim)
        mx.reset_peak_memory()
        early = 0
        for i, T in enumerate(order):
            source.count = [32, 48, 64, 96].index(T)
            batch = {k: v for k, v in source.next().items() if isinstance(v, mx.array)}
            mx.async_eval(step(batch, update=i % 2 == 1, step=i), step.state)
            if i == 49:
                mx.eval(step.state)
                early = mx.get_peak_memory()
        mx.eval(step.state)
    ratio = mx.get_peak_memory() / early
    late = mx.get_peak_memory()
    print(
        f"{steps} steps of mixed lengths: peak {late / 1e6:.1f} MB, after 50 {early / 1e6:.1f} MB, ratio "
        f"{ratio:.4f}"
    )
    print(f"graphs traced: {step.traces}")
    return ratio


def main() -> None:
    """Parse the command line, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--creep", action="store_true")
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--frames", type=int, default=96)
    parser.add_argument("--steps", type=int, default=200)
    args = parser.parse_args()
    if args.creep:
        creep(100 if args.quick else 500)
    elif args.quick:
        overhead(1, 32, 20)
    else:
        overhead(args.heads, args.frames, args.steps)


if __name__ == "__main__":
    main()
