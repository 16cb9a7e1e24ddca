"""One guided step of the transformer: ours, the floor of its bare matrix products, and another MLX port.

    python benchmarks/generate.py [--family v15] [--quick] [--port PATH] [--blocks 2] [--frames 645]
        [--tokens 364]

Without `--frames` it is a minute of music; ACE-Step 1.5's two blocks are one of each kind. `--port` is a
checkout of github.com/jaddai0/mlx-music, for v1. Everything runs in one process, alternating, float32, random
weights, so that all have the same machine and the same BLAS. A song's conditions are encoded before its first
step; that time is given beside. The port keeps its cross-attention's keys and values between steps, too, so
that the comparison is one of steps alone.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace

import mlx.core as mx

from acestep_mlx.config.request import Request
from acestep_mlx.families.v1.conditions import Prompt, Velocity, encode_branches
from acestep_mlx.families.v1.dit import ACEStepTransformer, TransformerConfig
from acestep_mlx.families.v15 import generation as v15
from acestep_mlx.families.v15.config import SLIDING
from acestep_mlx.families.v15.dit import ACEStep15Transformer
from acestep_mlx.families.v15.dit import TransformerConfig as TransformerConfig15
from acestep_mlx.nn.device import cache_limit
from acestep_mlx.sampling.denoise import Guided
from acestep_mlx.sampling.guidance import Guidance
from acestep_mlx.sampling.schedulers import move, omega_gain

TEXT = 64  # of the conditioning tokens; one is the speaker's, the rest are lyrics


Step = Callable[[], mx.array]
Products = Callable[[], list[mx.array]]
Shape = tuple[int, ...]


def our_step(transformer: ACEStepTransformer, frames: int, tokens: int) -> tuple[Step, float]:
    """A guided Euler step (APG) at batch 1, and the seconds that encoding a song's conditions took."""
    config, dtype = transformer.config, transformer.dtype
    transformer.eval()
    lyrics = tokens - TEXT - 1
    prompt = Prompt(
        mx.random.normal((1, TEXT, config.text_embedding_dim)).astype(dtype),
        mx.ones((1, TEXT)),
        mx.random.randint(1, 6000, (1, lyrics)),
        mx.ones((1, lyrics)),
    )
    latents = mx.random.normal((1, 8, 16, frames))
    start = time.perf_counter()
    velocity = Velocity(transformer, encode_branches(transformer, prompt))
    encoding = time.perf_counter() - start
    guided = Guided(velocity, Guidance(interval=1.0), 1, 60, 60)

    def step() -> mx.array:
        return move(latents, guided(latents, 0.9, 30), -0.01, omega_gain(10.0))

    return step, encoding


def our_step_v15(transformer: ACEStep15Transformer, frames: int, tokens: int) -> tuple[Step, float]:
    """The same for ACE-Step 1.5; a song's conditions are its cross-attention's keys and values."""
    config = transformer.config
    transformer.eval()
    states = mx.random.normal((1, tokens, config.encoder_hidden_size or config.hidden_size))
    latents = mx.random.normal((1, frames, config.audio_acoustic_hidden_dim))
    silence = mx.random.normal(latents.shape)
    conditions = v15.Conditions(states, None, states[:, :1], lambda frames: silence[:, :frames])
    model = v15.Conditioned(transformer, conditions, Request())
    start = time.perf_counter()
    velocity = model.velocity(2, 1)
    encoding = time.perf_counter() - start
    guided = Guided(velocity, Guidance(interval=1.0, scale=7.0, axes=model.norm_axes), 1, 50, 50)

    def step() -> mx.array:
        return move(latents, guided(latents, 0.9, 30), -0.01)

    return step, encoding


def port_step(path: str, blocks: int, frames: int, tokens: int) -> Callable[[], mx.array]:
    """The port's guided step (its batched CFG) with its own classes, and the same Euler move.

    Its compiled mode is not used: it raises, because its cross-attention evaluates arrays while it is traced.
    """
    sys.path.insert(0, path)
    from mlx_music.models.ace_step.model import ACEStep
    from mlx_music.models.ace_step.transformer import ACEStepConfig
    from mlx_music.models.ace_step.transformer import ACEStepTransformer as PortTransformer

    model = object.__new__(ACEStep)
    model.transformer = PortTransformer(ACEStepConfig(num_layers=blocks))
    model.transformer.disable_compile()
    lyrics = tokens - TEXT - 1
    constants = model._prepare_batched_cfg_constants(
        mx.random.normal((1, TEXT, 768)),
        mx.ones((1, TEXT)),
        mx.zeros((1, 512)),
        mx.random.randint(1, 6000, (1, lyrics)),
        mx.ones((1, lyrics)),
    )
    latents = mx.random.normal((1, 8, 16, frames))
    mx.eval(constants, latents)

    def step() -> mx.array:
        return latents - 0.01 * model._batched_cfg_forward(latents, mx.array([900.0]), constants, 15.0)

    return step


def products(config: TransformerConfig, frames: int, tokens: int, rows: int = 2) -> Products:
    """The matrix products of one step and nothing else, on arrays of the right shapes."""
    D, F, H, d = config.dim, config.ff_dim, config.num_attention_heads, config.attention_head_dim
    L = rows * frames
    shapes: list[tuple[Shape, Shape]] = [
        ((L, 128), (128, 2048)),
        ((L, 2048), (2048, D)),
        ((L, D), (D, 128)),
    ]  # in, in, out
    shapes += [((rows, 256), (256, D)), ((rows, D), (D, D)), ((rows, D), (D, 6 * D))]  # time
    block: list[tuple[Shape, Shape]] = [
        ((L, D), (D, D))
    ] * 6  # self-attention q k v out, cross-attention q out
    block += [((L, D), (D, 2 * F)), ((L, F), (F, D))]  # feed-forward
    heads = (rows, H)
    block += [((*heads, d, frames), (*heads, frames, d)), ((*heads, frames, d), (*heads, d, d))]  # linear
    block += [((*heads, frames, d), (*heads, d, tokens)), ((*heads, frames, tokens), (*heads, tokens, d))]
    return _products(shapes + block * config.num_layers)


def products_v15(config: TransformerConfig15, frames: int, tokens: int, rows: int = 2) -> Products:
    """The same for ACE-Step 1.5, whose sliding layers see three windows at a time."""
    D, F, H, Hk, d = (
        config.hidden_size, config.intermediate_size, config.num_attention_heads, config.num_key_value_heads,
        config.head_dim,
    )  # fmt: skip
    P, C, W = config.patch_size, config.audio_acoustic_hidden_dim, config.sliding_window
    T = -(-frames // P)
    L, N = rows * T, -(-T // W)
    shapes: list[tuple[Shape, Shape]] = [((L, 3 * P * C), (3 * P * C, D)), ((L, D), (D, P * C))]
    shapes += [((rows, 256), (256, D)), ((rows, D), (D, D)), ((rows, D), (D, 6 * D))] * 2  # times
    linear: list[tuple[Shape, Shape]] = [((L, D), (D, H * d)), ((L, H * d), (H * d, D))] * 2
    linear += [((L, D), (D, Hk * d))] * 2 + [((L, D), (D, F))] * 2 + [((L, F), (F, D))]

    def attention(batch: int, queries: int, keys: int) -> list[tuple[Shape, Shape]]:
        heads = (batch, H)
        return [((*heads, queries, d), (*heads, d, keys)), ((*heads, queries, keys), (*heads, keys, d))]

    for kind in config.kinds:
        near = kind == SLIDING and T > 3 * W
        own = attention(rows * N, W, 3 * W) if near else attention(rows, T, T)
        shapes += [*linear, *own, *attention(rows, T, tokens)]
    return _products(shapes)


def _products(shapes: list[tuple[Shape, Shape]]) -> Products:
    made = {shape: mx.random.normal(shape) for pair in shapes for shape in pair}
    # As in the model, weights are stored transposed.
    weights = {pair: made[pair[1]].swapaxes(-1, -2) for pair in shapes}
    weights = {pair: mx.contiguous(w).swapaxes(-1, -2) for pair, w in weights.items()}
    mx.eval(made, list(weights.values()))
    return lambda: [made[pair[0]] @ weights[pair] for pair in shapes]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--family", choices=("v1", "v15"), default="v1")
    parser.add_argument("--quick", action="store_true", help="a small model, in seconds")
    parser.add_argument("--port", help="checkout of github.com/jaddai0/mlx-music")
    parser.add_argument("--blocks", type=int, default=2)
    parser.add_argument("--frames", type=int)
    parser.add_argument("--tokens", type=int, default=364)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    frames, rounds = (64, 3) if args.quick else (args.frames, args.rounds)
    runs: dict[str, Callable[[], object]]
    if args.family == "v15":
        config15 = TransformerConfig15(num_hidden_layers=args.blocks)
        if args.quick:
            config15 = replace(config15, hidden_size=256, intermediate_size=512, num_attention_heads=2,
                               num_key_value_heads=1)  # fmt: skip
        frames, width = frames or 1500, config15.hidden_size
        transformer15 = ACEStep15Transformer(config15)
        mx.eval(transformer15.parameters())
        ours, encoding = our_step_v15(transformer15, frames, args.tokens)
        runs = {"ours": ours, "matrix products": products_v15(config15, frames, args.tokens)}
    else:
        config = TransformerConfig(num_layers=args.blocks)
        if args.quick:
            config = TransformerConfig(
                num_layers=args.blocks,
                num_attention_heads=2,
                lyric_hidden_size=64,
                lyric_encoder_layers=1,
                lyric_encoder_heads=2,
                lyric_encoder_ff=64,
            )
        frames, width = frames or 645, config.dim
        transformer = ACEStepTransformer(config)
        mx.eval(transformer.parameters())
        ours, encoding = our_step(transformer, frames, args.tokens)
        runs = {"ours": ours, "matrix products": products(config, frames, args.tokens)}
    if args.port and not args.quick and args.family == "v1":
        runs["port"] = port_step(args.port, args.blocks, frames, args.tokens)
    mx.eval(runs["matrix products"]())
    weights = mx.get_active_memory()
    mx.reset_peak_memory()
    mx.eval(ours())
    peak = mx.get_peak_memory() - weights
    mx.set_cache_limit(cache_limit())  # as the pipeline does on a CPU: MLX's default on a CPU is 32 MB
    for run in runs.values():  # compilation, pages
        mx.eval(run())
    times: dict[str, list[float]] = {name: [] for name in runs}
    work: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            start, processor = time.perf_counter(), time.process_time()
            mx.eval(run())
            times[name].append(time.perf_counter() - start)
            work[name].append(time.process_time() - processor)
    size = f"{args.family}, {args.blocks} block(s) {width} wide, {frames} frames, {args.tokens} tokens"
    print(f"one guided step: {size}, float32, median of {rounds}")
    for name, seconds in times.items():
        spread = f"({min(seconds):.3f} … {max(seconds):.3f})"
        processor = statistics.median(work[name])
        print(f"  {name:24s} {statistics.median(seconds):7.3f} s   {spread}, processor {processor:.3f} s")
    print(f"  {'conditions, once a song':24s} {encoding:7.3f} s")
    print(f"  {'ours, above the weights':24s} {peak / 1e9:7.3f} GB")
    for what, taken in (("time", times), ("processor time", work)):
        median = {name: statistics.median(seconds) for name, seconds in taken.items()}
        print(f"  {what}: ours / matrix products {median['ours'] / median['matrix products']:.2f}")
        if "port" in median:
            print(f"  {what}: port / ours {median['port'] / median['ours']:.2f}")


if __name__ == "__main__":
    main()
