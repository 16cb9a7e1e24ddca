"""A measured training step beside what `doctor`, `new` and `--dry-run` expect of it.

    python benchmarks/pace.py --bits 8 --seconds 60     all blocks, every one recomputed; random weights
    python benchmarks/pace.py --family v15 --seconds 10 --blocks 2     where bfloat16 products are slow

Rates are measured before and after each step, as other work on the machine changes them. The last number is
what `acestep_mlx.training.pace.SLACK` stands for: the step's time by what its counted work needs at the
measured rates. With fewer blocks the counts are scaled by the weights.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import mlx.core as mx

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from memory import measure
from subjects import add_family, subject

from acestep_mlx.doctor.speed import glance
from acestep_mlx.nn.device import buffers_kept
from acestep_mlx.training.pace import SLACK, step_seconds


def main() -> None:
    """Parse the command line, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_family(parser)
    parser.add_argument("--seconds", type=float, default=60.0, help="of music")
    parser.add_argument("--bits", type=int, choices=(4, 8), help="quantised base")
    parser.add_argument("--blocks", type=int, help="fewer than the model has")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    about = subject(args.family)
    blocks = args.blocks or about.config.blocks
    config, load = about.blocks(about.config, blocks), about.family.memory.load(args.seconds)
    for _ in range(args.rounds):
        before = glance(args.bits)
        with buffers_kept():
            *_, taken = measure(config, load, bits=args.bits, dtype=mx.bfloat16, checkpointed=blocks, steps=2)
        needed = [
            step_seconds(about.family, args.bits or 16, args.seconds, 1.0, rates, config) / SLACK
            for rates in (before, glance(args.bits))
        ]
        print(
            f"{args.family}, {blocks} blocks, {args.bits or 16} bits, {args.seconds:g} s of music: "
            f"{taken:.2f} s a step; at {before.products / 1e12:.3g} TFLOP/s and "
            f"{before.bandwidth / 1e9:.0f} GB/s its work needs {needed[0]:.2f} (then {needed[1]:.2f}) s: "
            f"{2 * taken / sum(needed):.2f} times",
            flush=True,
        )


if __name__ == "__main__":
    main()
