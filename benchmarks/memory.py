"""Peak memory of training steps at the true width, and the fit that the memory estimate uses.

    python benchmarks/memory.py                 fit on one and two blocks of the true width (minutes)
    python benchmarks/memory.py --quick         a small geometry, seconds
    python benchmarks/memory.py --full          the true 24 blocks; needs a machine that computes bfloat16
    fast
    python benchmarks/memory.py --full --bits 8 --seconds 60
    python benchmarks/memory.py --full --bits 8 --shapes-only     where bfloat16 products are slow
    python benchmarks/memory.py --full --bits 8 --generate        the denoising of a guided song instead

`--shapes-only` runs the real compiled step, but products that are not float32 become cheap stand-ins: the
result and the gradients have the shapes and dtypes of the real ones and wait for the same operands, the
weights (quantised ones too) stay allocated, and everything that is no product is computed. Softmax attention
is spelled out as MLX does it where no fused kernel has a gradient; without one (`--generate`) it counts as
the fused kernel, which holds no scores. Numbers mean nothing then, the peak does; scratch memory inside a
product's kernel is not in it.

The peak is MLX's own (`mx.get_peak_memory`), which counts the same arrays on every backend. What is fitted
are
the activations; weights, LoRA and optimizer are counted exactly.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from generate import TEXT, our_step

from acestep_mlx.config.read_run import load_config
from acestep_mlx.families.v1 import FAMILY as V1
from acestep_mlx.families.v1 import attention
from acestep_mlx.families.v1 import memory as step_memory
from acestep_mlx.families.v1.dit import TransformerConfig
from acestep_mlx.families.v1.objective import FlowMatching
from acestep_mlx.lora.surgery import LoRASpec, adapter_modules, inject
from acestep_mlx.nn.activations import masked
from acestep_mlx.training import memory as plan
from acestep_mlx.training.optimizers import Group, Schedule, make_optimizer
from acestep_mlx.training.step import StepSettings, TrainStep
from tests.training.random_model import quantised_model


@mx.custom_function
def _product(a: mx.array, b: mx.array) -> mx.array:
    """(…, M, K), (…, K, N) → (…, M, N), not fused with what surrounds it."""
    return mx.contiguous(a[..., :1] + b[..., :1, :])


@_product.vjp
def _product_vjp(
    primals: tuple[mx.array, mx.array], cotangent: mx.array, _output: mx.array
) -> tuple[mx.array, mx.array]:
    a, b = primals
    da = mx.contiguous(cotangent[..., :1] + b.swapaxes(-1, -2)[..., :1, :])
    db = mx.contiguous(a.swapaxes(-1, -2)[..., :1] + cotangent[..., :1, :])
    while db.ndim > b.ndim:
        db = mx.sum(db, axis=0)
    return da, db


def _frozen_product(x: mx.array, out: int) -> mx.array:
    """x times a frozen (K, out): the gradient is x's alone."""

    @mx.custom_function
    def product(x: mx.array) -> mx.array:
        return mx.contiguous(mx.broadcast_to(x[..., :1], (*x.shape[:-1], out)))

    @product.vjp
    def _(x: mx.array, cotangent: mx.array, _output: mx.array) -> mx.array:
        return mx.contiguous(mx.broadcast_to(cotangent[..., :1], x.shape))

    return product(x)


def _attend(q: mx.array, k: mx.array, v: mx.array, mask: mx.array | None) -> mx.array:
    scores = masked((q * q.shape[-1] ** -0.5) @ k.swapaxes(-1, -2), mask)
    return mx.softmax(scores, axis=-1, precise=True) @ v


def _attend_fused(q: mx.array, k: mx.array, v: mx.array, mask: mx.array | None) -> mx.array:
    return mx.contiguous(mx.broadcast_to(q[..., :1] + k[..., :1, :1] + v[..., :1, :1], q.shape))


@contextlib.contextmanager
def shapes_only(gradient: bool = True) -> Iterator[None]:
    """Products that are not float32 become stand-ins of the same shape and dtype (see above)."""
    real = mx.array.__matmul__, nn.Linear.__call__, nn.QuantizedLinear.__call__, attention.attend

    def multiply(a: mx.array, b: mx.array) -> mx.array:
        return real[0](a, b) if a.dtype == mx.float32 else _product(a, b)

    def linear(self: nn.Linear, x: mx.array) -> mx.array:
        return real[1](self, x) if x.dtype == mx.float32 else _frozen_product(x, self.weight.shape[0])

    def quantized(self: nn.QuantizedLinear, x: mx.array) -> mx.array:
        y = _frozen_product(x, self.scales.shape[0])
        return y + self.bias if "bias" in self else y  # the real one adds it apart, too

    mx.array.__matmul__, nn.Linear.__call__, nn.QuantizedLinear.__call__ = multiply, linear, quantized
    attention.attend = _attend if gradient else _attend_fused
    try:
        yield
    finally:
        mx.array.__matmul__, nn.Linear.__call__, nn.QuantizedLinear.__call__, attention.attend = real


def batch(config: TransformerConfig, load: plan.Load, seed: int = 0) -> dict[str, mx.array]:
    """Random arrays as data.batches makes them."""
    keys = mx.random.split(mx.random.key(seed), load.batch + 2)
    B, T, L, M = load.batch, load.frames, load.text, load.lyrics
    made = {
        "latents": mx.random.normal((B, 8, 16, T), key=keys[0]),
        "latent_mask": mx.ones((B, T)),
        "text": mx.random.normal((B, L, config.text_embedding_dim), key=keys[1]),
        "text_mask": mx.ones((B, L)),
        "lyric_ids": mx.ones((B, M), mx.int32),
        "lyric_mask": mx.ones((B, M)),
        "keys": keys[2:],
    }
    mx.eval(made)
    return made


def measure(
    config: TransformerConfig,
    load: plan.Load,
    *,
    bits: int | None,
    dtype: mx.Dtype,
    checkpointed: int,
    rank: int = 16,
    steps: int = 1,
) -> tuple[float, float, float]:
    """(peak bytes of a step, bytes that stay between steps, seconds of the last step)."""
    gc.collect()
    mx.clear_cache()
    before = mx.get_active_memory()  # what else this process holds
    model = quantised_model(V1, config, bits, dtype)
    inject(model, LoRASpec(rank=rank))
    for layer in adapter_modules(model).values():
        layer.train()
    model.checkpoint_blocks = checkpointed
    paths = [k for k, _ in tree_flatten(model.trainable_parameters())]
    group = Group("lora", make_optimizer("adamw", 1e-4), Schedule("constant", 1e-4, 0, 1), paths)
    step = TrainStep(model, [group], StepSettings(compute_dtype=dtype), FlowMatching())
    given = batch(config, load)
    seconds = 0.0
    mx.eval(step.state)
    mx.reset_peak_memory()
    for i in range(steps):
        started = time.perf_counter()
        result = step(given, update=True, step=i)
        mx.eval(result, step.state)
        seconds = time.perf_counter() - started
    found = float(mx.get_peak_memory() - before), float(mx.get_active_memory() - before), seconds
    del model, step, group, given, result
    gc.collect()
    mx.clear_cache()
    return found


def measure_generation(
    config: TransformerConfig, load: plan.Load, *, bits: int | None, dtype: mx.Dtype
) -> tuple[float, float, float]:
    """(peak bytes of conditions and two guided steps, bytes held between steps, seconds of the last step)."""
    gc.collect()
    mx.clear_cache()
    before = mx.get_active_memory()
    model = quantised_model(V1, config, bits, dtype)
    mx.reset_peak_memory()
    step, _ = our_step(model, load.frames, 1 + TEXT + load.lyrics)
    seconds = 0.0
    for _ in range(2):
        started = time.perf_counter()
        mx.eval(step())
        seconds = time.perf_counter() - started
    return float(mx.get_peak_memory() - before), float(mx.get_active_memory() - before), seconds


def exact(
    config: TransformerConfig, load: plan.Load, bits: int | None, dtype: mx.Dtype, checkpointed: int
) -> float:
    """The parts of the estimate that need no fit."""
    precision = {None: "no_change", 8: "int8-quanto", 4: "int4-quanto"}[bits]
    mixed = {mx.float32: "no", mx.bfloat16: "bf16"}[dtype]
    run = load_config({"base_model_precision": precision, "mixed_precision": mixed, "lora_rank": 16})
    parts = plan.estimate(run, load, model=config, checkpointed=checkpointed).parts
    return sum(v for k, v in parts.items() if k not in ("activations", "optimizer's step", "program"))


Case = tuple[int, plan.Load, int]  # blocks, batch, checkpointed blocks


def cases(frames: list[int], text: int, tokens: list[int]) -> tuple[list[Case], list[Case], list[Case]]:
    """Steps whose peak lies in a block, steps whose peak lies in the lyric encoder, and others as a check."""
    few, middle, many = frames
    blocks = [
        (2, plan.Load(T, 1, text, M), 2) for T, M in ((few, 16), (middle, 16), (many, 16), (many, tokens[0]))
    ]
    blocks += [(2, plan.Load(middle, 1, 16, 16), 2), (2, plan.Load(middle, 2, text, 16), 2)]
    blocks += [(4, plan.Load(T, 1, text, M), 1) for T, M in ((few, 16), (middle, 16), (many, tokens[0]))]
    lyrics = [(2, plan.Load(16, 1, 16, M), 2) for M in tokens]
    others = [(2, plan.Load(many, 2, text, 16), 1), (3, plan.Load(middle, 1, text, tokens[0]), 3)]
    return blocks, lyrics, others


def fit(config: TransformerConfig, frames: list[int], text: int, tokens: list[int], dtype: mx.Dtype) -> None:
    """Measure both moments of the model apart, fit each one's coefficients, and check them on other cases."""
    blocks, lyrics, others = cases(frames, text, tokens)
    measured = {case: _measured(config, case, dtype) for case in (*blocks, *lyrics, *others)}
    fitted: dict[str, float] = {}
    for names, part in ((BLOCK, blocks), (LYRICS, lyrics)):
        rows = [[_features(config, case, dtype)[name] for name in names] for case in part]
        inputs = [
            step_memory.block_inputs(config, case[1], dtype.size, case[2]) * (part is blocks) for case in part
        ]
        found = positive_least_squares(np.array(rows), np.array([measured[c] for c in part]) - inputs)
        fitted.update(zip(names, found.tolist(), strict=True))
    step_memory.FITTED[dtype.size] = step_memory.Coefficients(**fitted)
    print(step_memory.FITTED[dtype.size])
    for case, found in measured.items():
        n, load, checkpointed = case
        expected = step_memory.activations(replace(config, num_layers=n), load, dtype.size, checkpointed)
        kind = "not fitted" if case in others else "fitted"
        print(
            f"{_words(case)}: activations {found / 1e9:.3f} GB, model {expected / 1e9:.3f} GB "
            f"({100 * (expected / found - 1):+.0f} %, {kind})"
        )


BLOCK, LYRICS = ("frames", "scores", "kept", "kept_scores"), ("lyric_scores", "lyrics")


def _words(case: Case) -> str:
    n, load, checkpointed = case
    return (
        f"{n} blocks ({checkpointed} checkpointed), {load.frames} frames, {load.text} text and "
        f"{load.lyrics} lyric tokens, batch {load.batch}"
    )


def _features(config: TransformerConfig, case: Case, dtype: mx.Dtype) -> dict[str, float]:
    n, load, checkpointed = case
    return step_memory.features(replace(config, num_layers=n), load, dtype.size, checkpointed)


def _measured(config: TransformerConfig, case: Case, dtype: mx.Dtype) -> float:
    """What the step took above what stays and its gradients."""
    n, load, checkpointed = case
    geometry = replace(config, num_layers=n)
    peak, resident, seconds = measure(geometry, load, bits=None, dtype=dtype, checkpointed=checkpointed)
    print(
        f"{_words(case)}: peak {peak / 1e9:.3f} GB, resident {resident / 1e9:.3f} GB, {seconds:.1f} s",
        flush=True,
    )
    return peak - exact(geometry, load, None, dtype, checkpointed)


def positive_least_squares(matrix: np.ndarray, target: np.ndarray) -> np.ndarray:
    """min ‖Ax − b‖ over x ≥ 0, rows weighted by 1/b, by dropping negative coefficients one after the
    other."""
    weight = 1 / np.maximum(np.abs(target), 1e6)
    columns = list(range(matrix.shape[1]))
    while True:
        found = np.linalg.lstsq(matrix[:, columns] * weight[:, None], target * weight, rcond=None)[0]
        if (found >= 0).all():
            break
        columns.pop(int(found.argmin()))
    solution = np.zeros(matrix.shape[1])
    solution[columns] = found
    return solution


def generation(
    geometry: TransformerConfig, lengths: list[float], bits: int | None, dtype: mx.Dtype, stand_ins: bool
) -> None:
    """Print the peak of guided denoising, song by song."""
    for seconds in lengths:
        load = V1.memory.load(seconds)
        with shapes_only(gradient=False) if stand_ins else contextlib.nullcontext():
            peak, held, took = measure_generation(geometry, load, bits=bits, dtype=dtype)
        print(
            f"{geometry.num_layers} blocks, {bits or dtype} base, a guided song of {seconds:.0f} s "
            f"({load.frames} frames, {load.lyrics} lyrics): peak {peak / 1e9:.2f} GB, between steps "
            f"{held / 1e9:.2f} GB, step {took:.2f} s",
            flush=True,
        )


def main() -> None:
    """Parse the command line, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="small geometry, seconds")
    parser.add_argument(
        "--full", action="store_true", help="24 blocks; one point, measured against the estimate"
    )
    parser.add_argument("--bits", type=int, choices=(4, 8), help="quantised base")
    parser.add_argument("--seconds", type=float, nargs="+", default=[60.0], help="lengths for --full")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--blocks", type=int, help="fewer blocks for --full")
    parser.add_argument("--keep", type=int, default=0, help="blocks of --full that are not checkpointed")
    parser.add_argument(
        "--shapes-only", action="store_true", help="--full with stand-ins for matrix products"
    )
    parser.add_argument("--generate", action="store_true", help="--full for a guided song's denoising")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16", help="of --full")
    args = parser.parse_args()
    dtype = getattr(mx, args.dtype)
    config = TransformerConfig()
    if args.full:
        geometry = replace(config, num_layers=args.blocks or config.num_layers)
        if args.generate:
            generation(geometry, args.seconds, args.bits, dtype, args.shapes_only)
            return
        for seconds in args.seconds:
            load = V1.memory.load(seconds, args.batch)
            checkpointed = geometry.num_layers - args.keep
            with shapes_only() if args.shapes_only else contextlib.nullcontext():
                peak, resident, took = measure(
                    geometry, load, bits=args.bits, dtype=dtype, checkpointed=checkpointed
                )
            base = exact(geometry, load, args.bits, dtype, checkpointed)
            expected = base + step_memory.activations(geometry, load, dtype.size, checkpointed)
            print(
                f"{geometry.num_layers} blocks, {args.bits or dtype} base, {seconds:.0f} s "
                f"({load.frames} frames, {load.lyrics} lyrics) × {load.batch}, {checkpointed} checkpointed: "
                f"peak {peak / 1e9:.2f} GB, resident {resident / 1e9:.2f} GB, step {took:.2f} s; "
                f"estimate {expected / 1e9:.2f} GB "
                f"({100 * (expected / peak - 1):+.0f} %)",
                flush=True,
            )
    elif args.quick:
        small = replace(
            config, num_attention_heads=3, lyric_hidden_size=128, lyric_encoder_heads=4, lyric_encoder_ff=256
        )
        fit(small, [64, 128, 192], 32, [96, 192], mx.float32)
    else:
        fit(config, [144, 288, 645], 256, [192, 512], mx.float32)
        with shapes_only():
            fit(config, [323, 645, 1292], 256, [384, 768], mx.bfloat16)


if __name__ == "__main__":
    main()
