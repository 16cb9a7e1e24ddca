"""How fast this machine is where a training step spends its time, and which quantised products it has.

Every product that is timed is compared with NumPy's, in float64.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
import numpy as np

from ..families.known import spread
from ..families.model_folder import MODES, Quantization
from ..io.backend import fault_of
from ..nn.device import buffers_kept
from ..training.pace import Rates
from .selfcheck import Check, name_of

WIDTH = 2560  # of the product's weight, as in the models
ROWS = 4096  # at most
WORTH = 0.02  # seconds that a product must take to be timed; shorter ones get more rows
PATIENCE = 0.3  # seconds for a measurement
GLANCE = 0.05  # and where somebody waits for something else
COPIED = 256 << 20  # bytes, more than the caches of most machines hold
CHAIN = 300  # kernels one after the other, to time what lies between them
#: relative errors that rounding makes: float32 shows products of TF32 parts
LIMITS = {"float32": 2e-5, "bfloat16": 1e-2}
#: of a quantised product in bfloat16 beside its own dequantised weight's; MLX's CPU adds up in bfloat16 too
QUANTISED = {"CPU": 1e-1, "GPU": 1e-2}


Product = Callable[[mx.array], mx.array]


@dataclass
class Speed:
    """products: kind (`bfloat16`, `float32`, `8 bits`, `4 bits`) → FLOPs a second. bandwidth: bytes a second.
    launch: seconds from one kernel to the next. modes: `affine 4` → whether MLX has it here.
    """

    products: dict[str, float] = field(default_factory=dict)
    bandwidth: float = 0.0
    launch: float = 0.0
    modes: dict[str, bool] = field(default_factory=dict)
    checks: list[Check] = field(default_factory=list)

    def rates(self, bits: int) -> Rates:
        """With a weight of so many bits; of what is there, where its products could not be timed."""
        kind = "bfloat16" if bits == 16 else f"{bits} bits"
        products = self.products.get(kind, self.products["float32"])
        return Rates(products, self.bandwidth, self.launch)


def measure() -> Speed:
    """Of the default device."""
    with buffers_kept():  # as in a run
        speed = Speed(bandwidth=_bandwidth(PATIENCE), launch=_launch(PATIENCE))
        for name in LIMITS:
            _dense(speed, name)
        for mode, (all_bits, _) in MODES.items():
            for bits in sorted(all_bits):
                _quantised(speed, Quantization.of(bits, mode=mode))
        return speed


def glance(bits: int | None) -> Rates:
    """Of the default device, with a weight of so many bits (None: 16), in a moment."""
    with buffers_kept():
        weight = mx.random.normal((WIDTH, WIDTH), key=mx.random.key(1)).astype(mx.bfloat16)
        products = _rate(_times(weight, None if bits is None else Quantization.of(bits)), mx.bfloat16, GLANCE)
        return Rates(products, _bandwidth(GLANCE), _launch(GLANCE))


def _seconds(work: Callable[[], mx.array], patience: float) -> float:
    """The shortest of several runs."""
    mx.eval(work())
    best, until = float("inf"), time.perf_counter() + patience
    while best == float("inf") or time.perf_counter() < until:
        started = time.perf_counter()
        mx.eval(work())
        best = min(best, time.perf_counter() - started)
    return best


def _rate(product: Product, dtype: mx.Dtype, patience: float) -> float:
    """FLOPs a second of `product`, (rows, WIDTH) → (rows, WIDTH), with as many rows as it takes."""
    rows = 1
    while True:
        x = mx.random.normal((rows, WIDTH), key=mx.random.key(0)).astype(dtype)
        mx.eval(x)
        taken = _seconds(lambda x=x: product(x), patience)  # type: ignore[misc]
        if taken >= WORTH or rows >= ROWS:
            return 2.0 * rows * WIDTH * WIDTH / taken
        rows *= 4


def _times(weight: mx.array, quantization: Quantization | None) -> Product:
    """The product with this weight, which is quantised first."""
    if quantization is None:
        return lambda x: x @ weight.T
    settings: Any = quantization.as_dict()
    packed = mx.quantize(weight, **settings)
    mx.eval(packed)
    return lambda x: mx.quantized_matmul(x, *packed, transpose=True, **settings)


def _bandwidth(patience: float) -> float:
    """Read and written."""
    x = mx.zeros(COPIED // 4)
    mx.eval(x)
    return 2 * x.nbytes / _seconds(lambda: x + 1, patience)


def _launch(patience: float) -> float:
    """Of kernels that each wait for the one before."""
    one = mx.ones((64,))

    def chain() -> mx.array:
        x = one
        for _ in range(CHAIN):
            x = x + one
        return x

    return _seconds(chain, patience) / CHAIN


def _weight(width: int) -> tuple[np.ndarray, np.ndarray]:
    """(width, width), and a few rows to multiply with it."""
    weight = spread("doctor.weight", (width, width), width**-0.5)
    return weight, spread("doctor.rows", (8, width))


def _compared(what: str, found: mx.array, expected: np.ndarray, limit: float) -> Check:
    got = np.array(found.astype(mx.float32)).astype(np.float64)
    error = float(np.linalg.norm(got - expected) / np.linalg.norm(expected))
    error = error if np.isfinite(error) else float("inf")
    return Check("MLX", what, name_of(mx.default_device()), error, limit)


def _dense(speed: Speed, name: str) -> None:
    dtype = getattr(mx, name)
    weight, rows = _weight(WIDTH)
    w, x = (mx.array(a).astype(dtype) for a in (weight, rows))
    mx.eval(w, x)
    exact = [np.array(a.astype(mx.float32)).astype(np.float64) for a in (w, x)]
    speed.checks.append(_compared(f"product in {name}", x @ w.T, exact[1] @ exact[0].T, LIMITS[name]))
    speed.products[name] = _rate(_times(w, None), dtype, PATIENCE)


def _quantised(speed: Speed, one: Quantization) -> None:
    """A mode that MLX does not have on this device is no fault; one that computes something else is."""
    name = f"{one.mode} {one.bits}"
    settings: Any = one.as_dict()
    weight, rows = _weight(WIDTH // 5)
    x = mx.array(rows).astype(mx.bfloat16)
    try:
        packed = mx.quantize(mx.array(weight).astype(mx.bfloat16), **settings)
        found = mx.quantized_matmul(x, *packed, transpose=True, **settings)
        dense = np.array(mx.dequantize(*packed, **settings).astype(mx.float32)).astype(np.float64)
        exact = np.array(x.astype(mx.float32)).astype(np.float64) @ dense.T
        check = _compared(f"product of {name} bits", found, exact, QUANTISED[name_of(mx.default_device())])
    except (RuntimeError, ValueError) as error:
        if fault_of(error) is not None:
            raise
        speed.modes[name] = False
        return
    speed.modes[name] = True
    speed.checks.append(check)
    if one.mode == "affine" and one.bits in (4, 8):
        dense_weight = mx.array(_weight(WIDTH)[0]).astype(mx.bfloat16)
        speed.products[f"{one.bits} bits"] = _rate(_times(dense_weight, one), mx.bfloat16, PATIENCE)
