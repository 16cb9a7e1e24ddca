"""What a GPU would have to do in a training step or a denoising step: kernels, bytes, products' FLOPs.

    python benchmarks/traffic.py [--family v1] [--seconds 30 60 240] [--bits 8] [--blocks N] [--top 12]

The step is traced by MLX itself at the true geometry, all of it, and fused by its own compiler; the graph is
read, not computed, so that neither a GPU nor the weights' memory is needed. `graph.cpp`, built on the fly
with a C++ compiler (Linux), makes `mx.export_to_dot` write shapes too. Choices between the back ends are a
GPU's. Kernels of `mx.fast`, which a CPU's graph spells out, are stand-ins with the same inputs and outputs;
attention in training is spelled out on Metal as well.

Counted is what the Metal back end launches: views are free unless a layout forces a copy, which is followed
through the graph as MLX's sources do it (`backend/common/common.cpp`, `backend/gpu`, `backend/metal/matmul`).
Bytes are each kernel's inputs once and its outputs; caches make less of it, split products more. The time on
a machine is a roofline: for every kernel the longer of its bytes and its FLOPs at the vendor's figures, and
2 µs each. It is an estimate from counts, not a measurement.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_map

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from generate import TEXT, our_step, our_step_v15
from subjects import add_family, subject

import acestep_mlx.nn.convolution
import acestep_mlx.nn.cpu
import acestep_mlx.nn.windows
from acestep_mlx.families.model_folder import quantizable
from acestep_mlx.lora.surgery import LoRASpec, adapter_modules, inject
from acestep_mlx.nn import device
from acestep_mlx.training import memory as plan
from acestep_mlx.training.optimizers import Group, Schedule, make_optimizer
from acestep_mlx.training.pace import NOMINAL
from acestep_mlx.training.step import StepSettings, TrainStep

#: primitives that nothing else in our graphs uses, and that are fused with nothing
STAND_INS = {"CumMax": "norm", "CumMin": "norm's gradient", "CumProd": "attention"}
VIEWS = {
    "AsStrided", "Broadcast", "BroadcastAxes", "Copy", "CustomTransforms", "Depends", "ExpandDims", "Slice",
    "Split", "Squeeze", "StopGradient", "Transpose", "View",
}  # fmt: skip
RESHAPES = {"Flatten", "Reshape", "Unflatten"}
PRODUCTS = {"AddMM", "Matmul", "QuantizedMatmul"}
BY_ELEMENT = {
    "Abs", "Add", "AsType", "Cos", "Divide", "Equal", "Erf", "Exp", "Greater", "GreaterEqual", "Less",
    "LessEqual", "Log", "LogicalAnd", "LogicalNot", "LogicalOr", "Maximum", "Minimum", "Multiply", "Negative",
    "NotEqual", "Power", "Rsqrt", "Select", "Sigmoid", "Sin", "Sqrt", "Square", "Subtract", "Tanh",
}  # fmt: skip
SEVERAL = {"CumMin": 2, "Pad": 2, "Scatter": 2, "SliceUpdate": 2}  # kernels of one primitive


# ── the graph ────────────────────────────────────────────────────────────────────────────────────────
@dataclass
class Array:
    """Shape, bytes an element, and how it lies in memory."""

    shape: tuple[int, ...]
    itemsize: int
    strides: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        self.strides = self.strides or rows(self.shape)

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        """What reading it takes: a broadcast axis is read once."""
        return math.prod(n for n, s in zip(self.shape, self.strides, strict=True) if s) * self.itemsize

    @property
    def by_rows(self) -> bool:
        return all(
            n == 1 or s == r for n, s, r in zip(self.shape, self.strides, rows(self.shape), strict=True)
        )

    @property
    def dense(self) -> bool:
        """Some order of the axes makes it contiguous."""
        expected = 1
        for stride, n in sorted((s, n) for n, s in zip(self.shape, self.strides, strict=True) if n > 1):
            if stride != expected:
                return False
            expected *= n
        return True


def rows(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Strides of a contiguous array."""
    strides = [1] * len(shape)
    for axis in range(len(shape) - 2, -1, -1):
        strides[axis] = strides[axis + 1] * shape[axis + 1]
    return tuple(strides)


def reshaped(given: Array, shape: tuple[int, ...]) -> tuple[int, ...] | None:
    """Strides of `given` in another shape without a copy; None where there are none."""
    if given.by_rows:
        return rows(shape)
    left: list[list[int]] = []  # runs of axes that lie one in the other: [elements, stride of the last]
    for n, s in zip(given.shape, given.strides, strict=True):
        if n == 1:
            continue
        if left and left[-1][1] == s * n:
            left[-1] = [left[-1][0] * n, s]
        else:
            left.append([n, s])
    strides: list[int] = []
    for n in shape:
        if left and left[0][0] % n == 0:
            left[0][0] //= n
            strides.append(left[0][0] * left[0][1])
            if left[0][0] == 1:
                left.pop(0)
        elif n == 1:
            strides.append(strides[-1])
        else:
            return None
    return tuple(strides)


def matrix_lies_well(a: Array) -> bool:
    """A product takes it as it is: by rows or by columns."""
    if a.size <= 1 or len(a.shape) < 2:
        return True
    (m, n), (s, t) = a.shape[-2:], a.strides[-2:]
    return (t == 1 and (s >= n or m == 1)) or (s == 1 and (t >= m or n == 1))


@dataclass
class Count:
    """Kernels of a graph: their number, bytes and FLOPs."""

    kernels: Counter[str] = field(default_factory=Counter)
    bytes: Counter[str] = field(default_factory=Counter)
    flops: float = 0.0
    times: Counter[str] = field(default_factory=Counter)  # by machine, seconds

    def add(self, name: str, nbytes: float, flops: float = 0.0, kernels: int = 1) -> None:
        self.kernels[name] += kernels
        self.bytes[name] += int(nbytes)
        self.flops += flops
        for machine, rates in NOMINAL.items():
            work = max(nbytes / rates.bandwidth, flops / rates.products)
            self.times[machine] += work + rates.launch * kernels

    def copy(self, why: str, a: Array) -> None:
        self.add(f"copy for {why}", 2 * a.size * a.itemsize)


def read(text: str) -> Count:
    """Count what `graph.cpp` wrote."""
    arrays: dict[str, Array] = {}
    waits: dict[str, list[Array]] = {}  # what `mx.depends` gave and what it waited for: a stand-in's inputs
    count = Count()
    for line in text.splitlines():
        if line.startswith("array "):
            _, name, itemsize, *shape = line.split()
            arrays[name] = Array(tuple(map(int, shape)), int(itemsize))
        elif line:
            state, inputs, outputs, kind = (part.strip() for part in line.split("|"))
            given = [arrays[name] for name in inputs.split()]
            made = [arrays[name] for name in outputs.split()]
            if kind in STAND_INS:
                given = waits.get(inputs, given)
            _count(count, kind, [int(n) for n in state.split()], given, made)
            if kind == "Depends":
                waits[outputs] = given
    return count


def _count(count: Count, kind: str, state: list[int], given: list[Array], made: list[Array]) -> None:
    out = made[0]
    if kind in VIEWS:
        _view(kind, state, given, made)
    elif kind in RESHAPES:
        strides = reshaped(given[0], out.shape)
        if strides is None:
            count.copy(kind, out)
        else:
            out.strides = strides
    elif kind == "Contiguous":
        if not given[0].by_rows:
            count.copy(kind, out)
    elif kind == "NumberOfElements" or out.size == 0:
        pass
    elif kind == "Concatenate":
        for part in given:
            count.add(kind, 2 * part.size * part.itemsize)
    elif kind in PRODUCTS:
        _product(count, kind, given, out)
    else:
        if kind.startswith("Compiled") or kind in BY_ELEMENT:
            _keep_layout(given, out)
        elif kind in STAND_INS or kind == "Softmax":
            for a in given[: 3 if kind == "CumProd" else 1]:
                if a.shape and a.strides[-1] != 1 and a.shape[-1] > 1:
                    count.copy(STAND_INS.get(kind, kind), a)
        flops = 0.0
        if kind == "CumProd":
            flops = 4.0 * given[0].size * given[1].shape[-2]
        nbytes = sum(a.bytes for a in given) + sum(a.size * a.itemsize for a in made)
        count.add(STAND_INS.get(kind, kind), nbytes, flops, SEVERAL.get(kind, 1))


def _view(kind: str, state: list[int], given: list[Array], made: list[Array]) -> None:
    source, out = given[0], made[0]
    if kind == "Transpose":
        out.strides = tuple(source.strides[axis] for axis in state)
    elif kind == "Slice":
        out.strides = tuple(s * step for s, step in zip(source.strides, state, strict=True))
    elif kind == "ExpandDims":
        strides = list(source.strides)
        for axis in state:
            strides.insert(axis, 1)
        out.strides = tuple(strides)
    elif kind == "Squeeze":
        out.strides = tuple(s for axis, s in enumerate(source.strides) if axis not in state)
    elif kind.startswith("Broadcast"):
        own = [0] * (len(out.shape) - len(source.shape)) + [
            s if n == wanted else 0
            for n, s, wanted in zip(
                source.shape, source.strides, out.shape[len(out.shape) - len(source.shape) :], strict=True
            )
        ]
        out.strides = tuple(own)
    elif kind == "View":
        out.strides = rows(out.shape)
    else:  # the same arrays: the last of CustomTransforms' inputs, the first of the others'
        sources = given[-len(made) :] if kind == "CustomTransforms" else given
        for one in made:
            found = next((a for a in sources if len(a.shape) == len(one.shape)
                          and (a.shape == one.shape or kind == "Split")), None)  # fmt: skip
            one.strides = found.strides if found else one.strides


def _keep_layout(given: list[Array], out: Array) -> None:
    """Element by element: the inputs' layout, where they all have one and the same."""
    large = [a for a in given if a.size > 1]
    same = all(a.shape == out.shape and a.strides == large[0].strides for a in large)
    if large and same and large[0].dense:
        out.strides = large[0].strides


def _product(count: Count, kind: str, given: list[Array], out: Array) -> None:
    # AddMM: what is added comes last. QuantizedMatmul: weights, scales and biases lie by rows.
    operands = given[:1] if kind == "QuantizedMatmul" else given[:2]
    for a in operands:
        if not (matrix_lies_well(a) and (kind != "QuantizedMatmul" or a.strides[-1] == 1)):
            count.copy("a product", a)
    nbytes = sum(a.bytes for a in given) + out.size * out.itemsize
    count.add(kind, nbytes, 2.0 * out.size * given[0].shape[-1])


# ── what is traced ───────────────────────────────────────────────────────────────────────────────────
def hollow(shape: Any, dtype: mx.Dtype = mx.float32) -> mx.array:
    """An array of any size that takes no memory."""
    found = mx.broadcast_to(mx.zeros((), dtype=dtype), tuple(shape))
    _evaluate(found)
    return found


_evaluate = mx.eval


def _like(x: Any) -> Any:
    return hollow(x.shape, x.dtype) if isinstance(x, mx.array) else x


def _norm(x: mx.array, weight: mx.array | None = None, *_rest: Any, **_options: Any) -> mx.array:
    """A normalisation, of rows or of layers, with its gradient's kernel."""

    @mx.custom_function
    def norm(x: mx.array, *weights: mx.array) -> mx.array:
        found: mx.array = mx.cummax(mx.depends([x], list(weights))[0] if weights else x, axis=-1)
        return found

    @norm.vjp
    def _(primals: Any, cotangent: mx.array, _output: mx.array) -> Any:
        several = isinstance(primals, tuple)
        x, *weights = primals if several else (primals,)
        dx = mx.cummin(mx.depends([x], [cotangent, *weights])[0], axis=-1)
        return (dx, *map(mx.zeros_like, weights)) if several else dx

    return norm(x) if weight is None else norm(x, weight)


def _attention(q: mx.array, k: mx.array, v: mx.array, *, scale: float, mask: mx.array | None) -> mx.array:
    """One kernel; only where there is no gradient."""
    others = [k, v] if mask is None else [k, v, mask]
    found: mx.array = mx.cumprod(mx.depends([q], others)[0], axis=-1)
    return found


@contextlib.contextmanager
def as_on_a_gpu(gradient: bool) -> Iterator[None]:
    """Choices between the back ends are a GPU's; nothing is computed."""
    users = [acestep_mlx.nn.convolution, acestep_mlx.nn.cpu, acestep_mlx.nn.windows]
    names: list[tuple[Any, str, Any]] = [(user, "on_cpu", lambda: False) for user in users]
    names.append((device, "attention_gradient_is_fused", lambda: False))  # Metal
    names.append((device, "attention_is_fused", lambda: True))
    names += [(mx.fast, "rms_norm", _norm), (mx.fast, "layer_norm", _norm)]
    names += [(mx, "eval", lambda *_: None), (mx, "async_eval", lambda *_: None)]
    if not gradient:
        names.append((mx.fast, "scaled_dot_product_attention", _attention))
        names.append((mx.random, "normal", lambda shape, **_: hollow(shape)))
        names.append((mx.random, "randint", lambda low, high, shape, **_: hollow(shape, mx.int32)))
    before = [(where, name, getattr(where, name)) for where, name, _ in names]
    for where, name, new in names:
        setattr(where, name, new)
    try:
        yield
    finally:
        for where, name, old in before:
            setattr(where, name, old)


def graph(*outputs: Any) -> str:
    """What `graph.cpp` writes of unevaluated arrays."""
    written = io.StringIO()
    mx.export_to_dot(written, *[a for _, a in tree_flatten(outputs) if isinstance(a, mx.array)])
    return written.getvalue()


def hollow_model(family: Any, config: Any, bits: int | None, dtype: mx.Dtype) -> Any:
    """A transformer in the given precision without a weight in memory."""
    transformer = family.components["transformer"]
    model = transformer.module(config)
    model.update(tree_map(lambda x: hollow(x.shape, dtype), model.parameters()))
    if bits is not None:
        nn.quantize(model, 64, bits, class_predicate=lambda path, m: quantizable(transformer, path, m))
        model.update(tree_map(_like, model.parameters()))
    model.freeze()
    model.eval()
    return model


def training_step(
    name: str, load: plan.Load, *, bits: int | None, blocks: int | None, kept: int = 0, products: int = 0
) -> Count:
    """A compiled update at 16 bits; `kept` blocks keep their activations, others their products' results."""
    about = subject(name)
    config = about.blocks(about.config, blocks) if blocks else about.config
    model = hollow_model(about.family, config, bits, mx.bfloat16)
    inject(model, LoRASpec(rank=16, targets=about.family.lora.default_targets))
    for layer in adapter_modules(model).values():
        layer.train()
    model.update(tree_map(_like, model.trainable_parameters()))
    model.checkpoint_blocks, model.product_blocks = config.blocks - kept - products, products
    paths = [k for k, _ in tree_flatten(model.trainable_parameters())]
    group = Group("lora", make_optimizer("adamw", 1e-4), Schedule("constant", 1e-4, 0, 1), paths)
    step = TrainStep(model, [group], StepSettings(compute_dtype=mx.bfloat16), about.objective())
    shapes = about.arrays(config, load)
    batch = {key: hollow(shape, mx.int32 if key.endswith("ids") else mx.float32)
             for key, shape in shapes.items()}  # fmt: skip
    batch["keys"] = hollow((load.batch, 2), mx.uint32)
    prepare = about.family.prepare(model)
    if prepare is not None and "lyric_ids" in shapes:  # v1: lyrics are encoded before the step, once a song
        batch["lyric_states"] = hollow((*shapes["lyric_ids"], config.lyric_hidden_size), mx.bfloat16)
    elif prepare is not None:
        batch = dict(prepare(batch))
    with as_on_a_gpu(gradient=True):
        result = step(batch, update=True)
        return read(graph(list(result), step.state))


def denoising_step(name: str, load: plan.Load, *, bits: int | None, blocks: int | None) -> Count:
    """A guided step, conditions encoded before it."""
    about = subject(name)
    config = about.blocks(about.config, blocks) if blocks else about.config
    model = hollow_model(about.family, config, bits, mx.bfloat16)
    make: Callable[..., Any] = our_step if name == "v1" else our_step_v15
    with as_on_a_gpu(gradient=False):
        step, _ = make(model, load.frames, 1 + TEXT + load.lyrics)
        return read(graph(step()))


def show(title: str, count: Count, top: int) -> None:
    """A line, the roofline, and the kinds of kernels that there are most of."""
    kernels, moved = count.kernels.total(), count.bytes.total()
    print(
        f"{title}: {kernels} kernels, {moved / 1e9:.2f} GB moved, {count.flops / 1e12:.2f} TFLOP in products"
    )
    print("    roofline: " + ", ".join(f"{name} {t:.3f} s" for name, t in count.times.items()))
    for name, n in count.kernels.most_common(top):
        print(f"    {n:6d} × {name[:70]:70s} {count.bytes[name] / 1e9:8.3f} GB")


def row(count: Count) -> list[float]:
    """As `families.work.Work` has it."""
    products = sum(count.bytes[kind] for kind in PRODUCTS)
    return [count.kernels.total(), count.bytes.total(), products, count.flops]


def write_table(path: Path, name: str, all_seconds: list[float], blocks: int | None) -> None:
    """See `families.work`."""
    about = subject(name)
    free = blocks or about.config.blocks
    parts = []
    for bits in (None, 8, 4):
        lines = []
        for seconds in all_seconds:
            load = about.family.memory.load(seconds)
            ways = {"recomputed": {}, "products": {"products": free}, "kept": {"kept": free}}
            counts = {
                what: row(training_step(name, load, bits=bits, blocks=blocks, **way))
                for what, way in ways.items()
            }
            lines.append(f'    "{seconds:.0f}": {json.dumps(counts)}')
        parts.append(f'  "{bits or 16}": {{\n' + ",\n".join(lines) + "\n  }")
    path.write_text("{\n" + ",\n".join(parts) + "\n}\n")


def with_shapes() -> None:
    """Start again with `graph.cpp` in the way of MLX's export, unless it is already."""
    if os.environ.get("TRACED"):
        return
    compiler = shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        sys.exit("a C++ compiler is needed (apt-get install g++)")
    include = Path(mx.__file__).parent / "include"
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "graph.so"
        source = Path(__file__).with_name("graph.cpp")
        subprocess.run(
            [compiler, "-std=c++20", "-O1", "-fPIC", "-shared", f"-I{include}", source, "-o", library],
            check=True,
        )
        env = {**os.environ, "LD_PRELOAD": str(library), "TRACED": "1"}
        sys.exit(subprocess.run([sys.executable, *sys.argv], env=env).returncode)


def main() -> None:
    """Parse the command line, count, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_family(parser)
    parser.add_argument("--seconds", type=float, nargs="+", default=[30.0, 60.0, 120.0, 240.0])
    parser.add_argument("--bits", type=int, choices=(4, 8), help="quantised base")
    parser.add_argument("--blocks", type=int, help="fewer than the model has")
    parser.add_argument("--top", type=int, default=0, help="kinds of kernels to list")
    parser.add_argument("--json", action="store_true", help="a line of JSON for each step")
    parser.add_argument("--table", type=Path, metavar="FILE", help="write the family's work.json (minutes)")
    args = parser.parse_args()
    with_shapes()
    about = subject(args.family)
    blocks = args.blocks or about.config.blocks
    if args.table:
        write_table(args.table, args.family, args.seconds, args.blocks)
        return
    precision = {"bits": args.bits, "blocks": args.blocks}
    for seconds in args.seconds:
        load = about.family.memory.load(seconds)
        counts = {
            "step": training_step(args.family, load, **precision),
            "step, products kept": training_step(args.family, load, products=blocks, **precision),
            "step, everything kept": training_step(args.family, load, kept=blocks, **precision),
            "guided step": denoising_step(args.family, load, **precision),
        }
        for what, count in counts.items():
            if args.json:
                numbers = {
                    "kernels": count.kernels.total(),
                    "bytes": count.bytes.total(),
                    "row": row(count),
                    "flops": count.flops,
                }
                print(json.dumps({"what": what, "seconds": seconds, **numbers}))
            else:
                show(f"{what}: {args.family}, {blocks} blocks, {args.bits or 16} bits, {seconds:.0f} s",
                     count, args.top)  # fmt: skip


if __name__ == "__main__":
    main()
