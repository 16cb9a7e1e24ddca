"""Peak memory of training steps at the true width, and the fit that the memory estimate uses.

    python benchmarks/memory.py                 fit on one and two blocks of the true width (minutes)
    python benchmarks/memory.py --quick         a small geometry, seconds
    python benchmarks/memory.py --full          all blocks; needs a machine that computes bfloat16
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
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from generate import TEXT, our_step
from subjects import XL, add_family, subject, subject_of

from acestep_mlx.config.read_run import load_config
from acestep_mlx.lora.surgery import LoRASpec, adapter_modules, inject
from acestep_mlx.nn.activations import masked
from acestep_mlx.training import memory as plan
from acestep_mlx.training.average import AverageSettings
from acestep_mlx.training.optimizers import Group, Schedule, make_optimizer
from acestep_mlx.training.step import StepSettings, TrainStep
from tests.training.random_model import quantised_model


@mx.custom_function
def _product(a: mx.array, b: mx.array) -> mx.array:
    """(…, M, K), (…, K, N) → (…, M, N), not fused with what surrounds it."""
    return mx.contiguous(a[..., :1] + b[..., :1, :])


def _product_vjp(
    primals: tuple[mx.array, mx.array], cotangent: mx.array, _output: mx.array
) -> tuple[mx.array, mx.array]:
    a, b = primals
    da = mx.contiguous(cotangent[..., :1] + b.swapaxes(-1, -2)[..., :1, :])
    db = mx.contiguous(a.swapaxes(-1, -2)[..., :1] + cotangent[..., :1, :])
    while db.ndim > b.ndim:
        db = mx.sum(db, axis=0)
    shared = [axis for axis in range(b.ndim - 2) if db.shape[axis] != b.shape[axis]]
    return da, mx.sum(db, axis=shared, keepdims=True) if shared else db


_product.vjp(_product_vjp)


@mx.custom_function
def _added_product(c: mx.array, a: mx.array, b: mx.array) -> mx.array:
    """`_product` added to c, in one array."""
    return mx.contiguous(a[..., :1] + b[..., :1, :] + c)


def _added_product_vjp(
    primals: tuple[mx.array, ...], cotangent: mx.array, output: mx.array
) -> tuple[mx.array, ...]:
    c, a, b = primals
    dc = cotangent if c.shape == cotangent.shape else mx.zeros_like(c)  # a mask has none
    return dc, *_product_vjp((a, b), cotangent, output)


_added_product.vjp(_added_product_vjp)


def _frozen_product(x: mx.array, out: int) -> mx.array:
    """x times a frozen (K, out): the gradient is x's alone."""

    @mx.custom_function
    def product(x: mx.array) -> mx.array:
        return mx.contiguous(mx.broadcast_to(x[..., :1], (*x.shape[:-1], out)))

    @product.vjp
    def _(x: mx.array, cotangent: mx.array, _output: mx.array) -> mx.array:
        return mx.contiguous(mx.broadcast_to(cotangent[..., :1], x.shape))

    return product(x)


def _attend(q: mx.array, k: mx.array, v: mx.array, *, scale: float, mask: mx.array | None) -> mx.array:
    groups = k.shape[1]
    q = mx.unflatten(q * scale, 1, (groups, -1))
    scores = masked_or_added(q @ k[:, :, None].swapaxes(-1, -2), mask)
    return (mx.softmax(scores, axis=-1, precise=True) @ v[:, :, None]).flatten(1, 2)


def masked_or_added(scores: mx.array, mask: mx.array | None) -> mx.array:
    """scores (B, Hk, H / Hk, L, S) and a mask (B, 1, L or 1, S), boolean or to be added."""
    if mask is None:
        return scores
    return masked(scores, mask[:, :, None]) if mask.dtype == mx.bool_ else scores + mask[:, :, None]


def _attend_fused(q: mx.array, k: mx.array, v: mx.array, *, scale: float, mask: mx.array | None) -> mx.array:
    k, v = k[:, :, :1, :1], v[:, :, :1, :1]
    if k.shape[1] != q.shape[1]:
        k, v = (mx.repeat(x, q.shape[1] // x.shape[1], axis=1) for x in (k, v))
    return mx.contiguous(mx.broadcast_to(q[..., :1] + k + v, q.shape))


@contextlib.contextmanager
def shapes_only(gradient: bool = True) -> Iterator[None]:
    """Products that are not float32 become stand-ins of the same shape and dtype (see above)."""
    attention = mx.fast.scaled_dot_product_attention
    real = mx.array.__matmul__, nn.Linear.__call__, mx.quantized_matmul, mx.addmm

    def multiply(a: mx.array, b: mx.array) -> mx.array:
        return real[0](a, b) if a.dtype == mx.float32 else _product(a, b)

    def linear(self: nn.Linear, x: mx.array) -> mx.array:
        return real[1](self, x) if x.dtype == mx.float32 else _frozen_product(x, self.weight.shape[0])

    def quantized(x: mx.array, weight: mx.array, scales: mx.array, *rest: Any, **options: Any) -> mx.array:
        if x.dtype == mx.float32:
            return real[2](x, weight, scales, *rest, **options)
        return _frozen_product(x, scales.shape[0])

    def add(c: mx.array, a: mx.array, b: mx.array, **factors: float) -> mx.array:
        return real[3](c, a, b, **factors) if a.dtype == mx.float32 else _added_product(c, a, b)

    mx.array.__matmul__, nn.Linear.__call__, mx.quantized_matmul, mx.addmm = multiply, linear, quantized, add
    mx.fast.scaled_dot_product_attention = _attend if gradient else _attend_fused
    try:
        yield
    finally:
        mx.array.__matmul__, nn.Linear.__call__, mx.quantized_matmul, mx.addmm = real
        mx.fast.scaled_dot_product_attention = attention


def measure(
    config: Any,
    load: plan.Load,
    *,
    bits: int | None,
    dtype: mx.Dtype,
    checkpointed: int,
    products: int = 0,
    rank: int = 16,
    steps: int = 1,
    average: AverageSettings | None = None,
) -> tuple[float, float, float]:
    """(peak bytes of a step, bytes that stay between steps, seconds of the last step)."""
    gc.collect()
    mx.clear_cache()
    before = mx.get_active_memory()  # what else this process holds
    about = subject_of(config)
    model = quantised_model(about.family, config, bits, dtype)
    inject(model, LoRASpec(rank=rank, targets=about.family.lora.default_targets))
    for layer in adapter_modules(model).values():
        layer.train()
    model.checkpoint_blocks, model.product_blocks = checkpointed, products
    paths = [k for k, _ in tree_flatten(model.trainable_parameters())]
    group = Group("lora", make_optimizer("adamw", 1e-4), Schedule("constant", 1e-4, 0, 1), paths)
    settings = StepSettings(compute_dtype=dtype, average=average)
    prepare = about.family.prepare(model)
    step = TrainStep(model, [group], settings, about.objective(), prepare=prepare)
    given = about.batch(config, load)
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
    config: Any, load: plan.Load, *, bits: int | None, dtype: mx.Dtype
) -> tuple[float, float, float]:
    """(peak bytes of conditions and two guided steps, bytes held between steps, seconds of the last step)."""
    gc.collect()
    mx.clear_cache()
    before = mx.get_active_memory()
    model = quantised_model(subject_of(config).family, config, bits, dtype)
    mx.reset_peak_memory()
    step, _ = our_step(model, load.frames, 1 + TEXT + load.lyrics)
    seconds = 0.0
    for _ in range(2):
        started = time.perf_counter()
        mx.eval(step())
        seconds = time.perf_counter() - started
    return float(mx.get_peak_memory() - before), float(mx.get_active_memory() - before), seconds


def exact(
    config: Any, load: plan.Load, bits: int | None, dtype: mx.Dtype, checkpointed: int, ema: bool = False
) -> float:
    """The parts of the estimate that need no fit."""
    precision = {None: "no_change", 8: "int8-quanto", 4: "int4-quanto"}[bits]
    mixed = {mx.float32: "no", mx.bfloat16: "bf16"}[dtype]
    run = load_config({"base_model_precision": precision, "mixed_precision": mixed, "lora_rank": 16})
    about = subject_of(config)
    run = replace(
        run, model_flavour=about.flavour, acestep_lora_target=about.family.lora.default, use_ema=ema
    )
    parts = plan.estimate(run, load, model=config, checkpointed=checkpointed).parts
    return sum(v for k, v in parts.items() if k not in ("activations", "optimizer's step", "program"))


Case = tuple[int, plan.Load, int]  # blocks, batch, checkpointed blocks


class Fit(NamedTuple):
    """Steps that a family's coefficients are fitted to, and others as a check.

    moments: of a step, of which the worst is its peak: names of features, cases whose peak lies there, and
    whether what checkpointed blocks keep is then alive.
    """

    moments: list[tuple[tuple[str, ...], list[Case], bool]]
    others: list[Case]


def fit_v1(frames: list[int], text: int, tokens: list[int]) -> Fit:
    """The moments: a block, the lyric encoder."""
    few, middle, many = frames
    blocks = [
        (2, plan.Load(T, 1, text, M), 2) for T, M in ((few, 16), (middle, 16), (many, 16), (many, tokens[0]))
    ]
    blocks += [(2, plan.Load(middle, 1, 16, 16), 2), (2, plan.Load(middle, 2, text, 16), 2)]
    blocks += [(4, plan.Load(T, 1, text, M), 1) for T, M in ((few, 16), (middle, 16), (many, tokens[0]))]
    lyrics = [(2, plan.Load(16, 1, 16, M), 2) for M in tokens]
    others = [(2, plan.Load(many, 2, text, 16), 1), (3, plan.Load(middle, 1, text, tokens[0]), 3)]
    moments = [
        (("frames", "scores", "kept", "kept_scores"), blocks, True),
        (("lyric_scores", "lyrics"), lyrics, False),
    ]
    return Fit(moments, others)


def fit_v15(frames: list[int], text: int, tokens: list[int]) -> Fit:
    """The moments: a layer whose heads are worked on all at once, and one in which they take turns."""
    few, middle, many, most = frames
    some, lots = tokens
    layers = [(2, plan.Load(T, 1, text, some), 2) for T in (few, middle, many)]
    layers += [(2, plan.Load(middle, 1, 16, 16), 2), (2, plan.Load(middle, 1, text, lots), 2)]
    layers += [(2, plan.Load(middle, 2, text, some), 2), (4, plan.Load(many, 1, text, some), 1)]
    layers += [(n, plan.Load(middle, 1, text, some), kept) for n, kept in ((3, 0), (3, 2), (4, 0), (4, 2))]
    turns = [(2, plan.Load(most, B, 16, 16), 2) for B in (1, 2)]
    others = [(2, plan.Load(many, 2, text, some), 1), (2, plan.Load(most, 1, text, 4 * some), 2)]
    others += [(3, plan.Load(3 * most // 4, 1, text, lots // 2), 3)]
    names = ("layer", "scores", "states", "kept", "kept_scores")
    return Fit([(names, layers, True), (("turn", "group"), turns, True)], others)


FITS = {"v1": fit_v1, "v15": fit_v15}


def fit(config: Any, frames: list[int], text: int, tokens: list[int], dtype: mx.Dtype) -> None:
    """Measure each moment of the model apart, fit its coefficients, and check them on other cases."""
    about = subject_of(config)
    step_memory = about.memory
    cases = FITS[about.family.name](frames, text, tokens)
    every = [*(case for _, part, _ in cases.moments for case in part), *cases.others]
    measured = {case: _measured(config, case, dtype) for case in every}
    fitted: dict[str, float] = {}
    for names, part, inputs_alive in cases.moments:
        given = [(about.blocks(config, n), load, dtype.size, kept) for n, load, kept in part]
        rows = [[step_memory.features(*one)[name] for name in names] for one in given]
        inputs = [step_memory.block_inputs(*one) * inputs_alive for one in given]
        target = np.array([measured[c] for c in part]) - inputs
        found = positive_least_squares(np.array(rows), target)
        fitted.update(zip(names, found.tolist(), strict=True))
    step_memory.FITTED[dtype.size] = step_memory.Coefficients(**fitted)
    print(step_memory.FITTED[dtype.size])
    for case, found in measured.items():
        n, load, checkpointed = case
        expected = step_memory.activations(about.blocks(config, n), load, dtype.size, checkpointed)
        kind = "not fitted" if case in cases.others else "fitted"
        print(
            f"{_words(case)}: activations {found / 1e9:.3f} GB, model {expected / 1e9:.3f} GB "
            f"({100 * (expected / found - 1):+.0f} %, {kind})"
        )


def _words(case: Case) -> str:
    n, load, checkpointed = case
    return (
        f"{n} blocks ({checkpointed} checkpointed), {load.frames} frames, {load.text} text and "
        f"{load.lyrics} lyric tokens, batch {load.batch}"
    )


def _measured(config: Any, case: Case, dtype: mx.Dtype) -> float:
    """What the step took above what stays and its gradients."""
    n, load, checkpointed = case
    geometry = subject_of(config).blocks(config, n)
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
    geometry: Any, lengths: list[float], bits: int | None, dtype: mx.Dtype, stand_ins: bool
) -> None:
    """Print the peak of guided denoising, song by song."""
    for seconds in lengths:
        load = subject_of(geometry).family.memory.load(seconds)
        with shapes_only(gradient=False) if stand_ins else contextlib.nullcontext():
            peak, held, took = measure_generation(geometry, load, bits=bits, dtype=dtype)
        print(
            f"{geometry.blocks} blocks, {bits or dtype} base, a guided song of {seconds:.0f} s "
            f"({load.frames} frames, {load.lyrics} lyrics): peak {peak / 1e9:.2f} GB, between steps "
            f"{held / 1e9:.2f} GB, step {took:.2f} s",
            flush=True,
        )


def main() -> None:
    """Parse the command line, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_family(parser)
    parser.add_argument("--xl", action="store_true", help="ACE-Step 1.5's XL geometry")
    parser.add_argument("--quick", action="store_true", help="small geometry, seconds")
    parser.add_argument(
        "--full", action="store_true", help="all blocks; one point, measured against the estimate"
    )
    parser.add_argument("--bits", type=int, choices=(4, 8), help="quantised base")
    parser.add_argument("--seconds", type=float, nargs="+", default=[60.0], help="lengths for --full")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--lyrics", type=int, help="tokens (default: what such a song tends to have)")
    parser.add_argument("--blocks", type=int, help="fewer blocks for --full")
    parser.add_argument("--keep", type=int, default=0, help="blocks of --full that are not checkpointed")
    parser.add_argument(
        "--products", type=int, default=0, help="blocks of --full that keep their linear layers' results"
    )
    parser.add_argument(
        "--shapes-only", action="store_true", help="--full with stand-ins for matrix products"
    )
    parser.add_argument("--ema", action="store_true", help="--full with averaged weights")
    parser.add_argument("--generate", action="store_true", help="--full for a guided song's denoising")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16", help="of --full")
    args = parser.parse_args()
    dtype = getattr(mx, args.dtype)
    about = subject(args.family)
    config = replace(about.config, **XL) if args.xl else about.config
    if args.full:
        geometry = about.blocks(config, args.blocks or config.blocks)
        if args.generate:
            generation(geometry, args.seconds, args.bits, dtype, args.shapes_only)
            return
        for seconds in args.seconds:
            load = about.family.memory.load(seconds, args.batch, args.lyrics)
            checkpointed = geometry.blocks - args.keep - args.products
            with shapes_only() if args.shapes_only else contextlib.nullcontext():
                peak, resident, took = measure(
                    geometry,
                    load,
                    bits=args.bits,
                    dtype=dtype,
                    checkpointed=checkpointed,
                    products=args.products,
                    steps=2 if args.ema else 1,  # the first average is the parameters themselves
                    average=AverageSettings(0.995) if args.ema else None,
                )
            base = exact(geometry, load, args.bits, dtype, checkpointed, ema=args.ema)
            again = checkpointed + args.products
            expected = base + about.memory.activations(geometry, load, dtype.size, again)
            held = args.products - (not args.keep and args.products > 0)
            expected += held * plan.product_bytes(about.family, geometry, load, dtype.size)
            print(
                f"{geometry.blocks} blocks, {args.bits or dtype} base, {seconds:.0f} s "
                f"({load.frames} frames, {load.lyrics} lyrics) × {load.batch}, {checkpointed} checkpointed, "
                f"{args.products} keep products: "
                f"peak {peak / 1e9:.2f} GB, resident {resident / 1e9:.2f} GB, step {took:.2f} s; "
                f"estimate {expected / 1e9:.2f} GB "
                f"({100 * (expected / peak - 1):+.0f} %)",
                flush=True,
            )
    elif args.quick:
        small = replace(config, **about.narrow)
        sizes = {"v1": ([64, 128, 192], 32, [96, 192]), "v15": ([128, 256, 512, 1024], 32, [32, 256])}
        fit(small, *sizes[args.family], mx.float32)
    elif args.family == "v1":
        fit(config, [144, 288, 645], 256, [192, 512], mx.float32)
        with shapes_only():
            fit(config, [323, 645, 1292], 256, [384, 768], mx.bfloat16)
    else:  # a quarter of the true width is enough: what a layer holds grows with it
        narrow = {"hidden_size": 512, "intermediate_size": 1536, "num_attention_heads": 4}
        config = replace(config, **narrow, num_key_value_heads=2)
        fit(config, [750, 1500, 3000, 6000], 256, [180, 2000], mx.float32)
        with shapes_only():
            fit(config, [750, 1500, 3000, 6000], 256, [180, 2000], mx.bfloat16)


if __name__ == "__main__":
    main()
