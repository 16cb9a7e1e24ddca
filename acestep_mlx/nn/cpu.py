"""What only MLX's CPU back end needs, as on Linux: no Mac runs any of it. Each caller asks `on_cpu` once.

That back end has good matrix products and plain element-wise loops of one thread a stream, but unfolds the
whole input for a convolution, has no fast dilated, depthwise or transposed one, and computes exponentials and
sines one element after the other. Here the same sums are arranged differently, and the functions are made of
multiplications and additions that a compiler turns into vector code. Arrays are channels-last. What each
piece brings is in benchmarks/LOG.md.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx

from .device import on_cpu

_lanes = threading.local()


def second_stream() -> mx.Stream:
    """Another stream for this thread, to which alone it belongs."""
    if not hasattr(_lanes, "second"):
        _lanes.second = mx.new_stream(mx.Device(mx.cpu))
    second: mx.Stream = _lanes.second
    return second


# ── functions of float32 ─────────────────────────────────────────────────────────────────────────────
# tanh(x) ≈ x·P(x²)/Q(x²) for |x| ≤ 7.905, the usual minimax coefficients (highest power first).
_TANH_LIMIT = 7.90531110763549805
_TANH_P = (
    -2.76076847742355e-16,
    2.00018790482477e-13,
    -8.60467152213735e-11,
    5.12229709037114e-08,
    1.48572235717979e-05,
    6.37261928875436e-04,
    4.89352455891786e-03,
)
_TANH_Q = (1.19825839466702e-06, 1.18534705686654e-04, 2.26843463243900e-03, 4.89352518554385e-03)
# 2^f for |f| ≤ 1/2: Taylor's ln(2)^k / k!, highest power first.
_EXP2 = (1.53527169e-4, 1.33988717e-3, 9.61846724e-3, 5.55035681e-2, 0.240226507, 0.693147182, 1.0)


def _polynomial(x: mx.array, coefficients: tuple[float, ...]) -> mx.array:
    total = x * coefficients[0] + coefficients[1]
    for c in coefficients[2:]:
        total = total * x + c
    return total


# sin(r) ≈ r · P(r²) for |r| ≤ π/2: Taylor's coefficients, highest power first (error below 1e-9).
_SINE = (1 / 6227020800, -1 / 39916800, 1 / 362880, -1 / 5040, 1 / 120, -1 / 6, 1.0)


def by_arithmetic(x: mx.array) -> bool:
    """Whether functions of `x` are faster as they are here."""
    return x.dtype == mx.float32 and on_cpu()


def sigmoid(x: mx.array) -> mx.array:
    """Of float32, |x| below 1e7, with an error of 2e-7."""
    half = 0.5 * x
    # Clipped without a comparison, which would not be vectorised.
    half = 0.5 * (mx.abs(half + _TANH_LIMIT) - mx.abs(half - _TANH_LIMIT))
    square = half * half
    return 0.5 + 0.5 * (half * _polynomial(square, _TANH_P) / _polynomial(square, _TANH_Q))


def _exp(x: mx.array) -> mx.array:
    """Of float32 between −1e6 and 0, with an error of 2e-6: 2^(whole + fraction)."""
    x = x * 1.44269504
    whole = (x + 12582912.0) - 12582912.0  # rounded: 1.5·2²³ leaves no place for a fraction
    exponent = 0.5 * (whole - 126.0 + mx.abs(whole + 126.0))  # not below −126
    power = ((exponent + 127.0).astype(mx.int32) << 23).view(mx.float32)
    return _polynomial(x - whole, _EXP2) * power


@mx.compile
def exp2_below(x: mx.array, most: mx.array) -> mx.array:
    """2^(x − most) of float32, `most` (…, 1) between x and x + 1e6, with an error of 2e-7.

    In two passes: the compiler takes up to eleven operations in a row into one. What is below 2^−126 is 0, as
    products of such numbers are slow.
    """
    bits = mx.maximum((x - (most - 127.5)).astype(mx.int32), 0) << 23
    fraction = (x - most) - ((bits >> 23).astype(mx.float32) - 127.0)
    square = fraction * fraction
    a, b, c, d, e, f, g = _EXP2
    total = square * (square * (a * square + (b * fraction + c)) + (d * fraction + e)) + (f * fraction + g)
    return total * bits.view(mx.float32)


def softmax(scores: mx.array) -> mx.array:
    """Of float32, over the last axis."""
    weights = _exp(scores - mx.max(scores, axis=-1, keepdims=True))
    return weights / mx.sum(weights, axis=-1, keepdims=True)


def sine_squared(x: mx.array) -> mx.array:
    """sin²(x) of float32, |x| below 1e4."""
    turns = (x * (1 / math.pi) + 12582912.0) - 12582912.0  # rounded: 1.5·2²³ leaves no place for a fraction
    r = (x - turns * 3.140625) - turns * (math.pi - 3.140625)  # π in two parts
    square = r * r
    total = _polynomial(square, _SINE)
    return square * total * total


# ── attention ────────────────────────────────────────────────────────────────────────────────────────
LANES = 32
UNSEEN = -1e5  # added to a score, leaves no weight


def _beside(x: mx.array, column: mx.array | float) -> mx.array:
    """`x` with one more column."""
    column = mx.broadcast_to(mx.array(column, dtype=x.dtype), (*x.shape[:-1], 1))
    return mx.concatenate([x, column], axis=-1)


def grouped_attention(q: mx.array, k: mx.array, v: mx.array, added: mx.array | None) -> mx.array:
    """Softmax attention on the CPU in float32: q (B, H, T, Dh); k, v (B, Hk, S, Dh), each for H / Hk heads.

    added (B, 1, 1 or T, S): to the scores. Few passes over the scores are what makes it fast: a column more
    in the products masks the keys, sums the weights, and takes the inner products from the gradient.
    """
    (B, H, T, Dh), (_, Hk, S, _) = q.shape, k.shape
    if missing := -S % LANES:
        k, v = (mx.pad(x, [(0, 0), (0, 0), (0, missing), (0, 0)]) for x in (k, v))
        added = mx.zeros((1, 1, 1, S)) if added is None else added
        added = mx.pad(added, [(0, 0), (0, 0), (0, 0), (0, missing)], constant_values=mx.array(UNSEEN))
        S += missing
    rows, heads = (B, Hk, H // Hk * T), (B, Hk, H // Hk, T)
    q = q.reshape(*rows, Dh) * (Dh**-0.5 / math.log(2))
    if added is not None and added.shape[2] == 1:
        q, k, added = _beside(q, 1.0), _beside(k, added.swapaxes(-1, -2)), None

    def forward(q: mx.array, k: mx.array, v: mx.array) -> tuple[mx.array, mx.array, mx.array]:
        scores = q @ k.swapaxes(-1, -2)
        if added is not None:
            scores = (scores.reshape(*heads, S) + added[:, :, None]).reshape(*rows, S)
        # Lane by lane first: a maximum along a row is not vectorised.
        most = mx.max(scores.reshape(*rows, -1, LANES), axis=-2)
        weights = exp2_below(scores, mx.max(most, axis=-1, keepdims=True))
        out, total = mx.split(weights @ _beside(v, 1.0), [Dh], axis=-1)
        return out / total, weights, total

    def backward(primals: Any, cotangents: Any, outputs: Any) -> tuple[mx.array, mx.array, mx.array]:
        (q, k, v), (out, weights, total) = primals, outputs
        c = cotangents[0] / total
        inner = mx.sum(c * out, axis=-1, keepdims=True)
        slope = weights * (_beside(c, -inner) @ _beside(v, 1.0).swapaxes(-1, -2)) * math.log(2)
        return slope @ k, slope.swapaxes(-1, -2) @ q, weights.swapaxes(-1, -2) @ c

    function: Any = mx.custom_function(forward)
    function.vjp(backward)
    out: mx.array = function(q, k, v)[0]
    return out.reshape(B, H, T, Dh)


# ── convolutions ─────────────────────────────────────────────────────────────────────────────────────
def convolve_rows(x: mx.array, taps: Sequence[tuple[int, int, mx.array]]) -> mx.array:
    """(B, H, W, C) → (B, H, W, O): Σ x[y + i − 1, x + j − 1] @ w over the taps (i, j, w) with 0 ≤ i, j ≤ 2.

    With a border of zeros, all pixels in one column of rows, a shift in the image is an offset in the rows,
    so that nothing is unfolded. The rows that mix neighbours across the border are computed and discarded.
    """
    B, H, W, _ = x.shape
    x = mx.pad(x, [(0, 0), (1, 2), (1, 1), (0, 0)])
    rows = x.reshape(-1, x.shape[-1])
    count = (B * (H + 3) - 3) * (W + 2)
    total: mx.array | None = None
    for i, j, w in taps:
        offset = i * (W + 2) + j
        part = rows[offset : offset + count]
        total = part @ w if total is None else mx.addmm(total, part, w)
    assert total is not None
    if B > 1:
        total = mx.pad(total, [(0, 3 * (W + 2)), (0, 0)])
    return total.reshape(B, -1, W + 2, total.shape[-1])[:, :H, :W]


def upsampled(x: mx.array, weight: mx.array) -> mx.array:
    """`x` (B, H, W, C) doubled in height and width, then convolved with weight (O, 3, 3, C).

    The kernel meets every pixel up to four times: four 2×2 kernels on the small image do the same.
    """
    B, H, W, _ = x.shape
    phases = []
    for a in range(2):
        for b in range(2):
            kernel = _fold_pairs(_fold_pairs(weight, 1, a), 2, b)  # [O, 2, 2, C]
            taps = [(a + i, b + j, kernel[:, i, j].T) for i in range(2) for j in range(2)]
            phases.append(convolve_rows(x, taps))
    y = mx.stack([mx.stack(phases[:2], axis=3), mx.stack(phases[2:], axis=3)], axis=2)
    return y.reshape(B, 2 * H, 2 * W, -1)


def _fold_pairs(weight: mx.array, axis: int, phase: int) -> mx.array:
    """Three taps on an image with each pixel doubled → two taps on the image, for one of two phases."""
    w = [mx.take(weight, mx.array([k]), axis=axis) for k in range(3)]
    pair = [w[0], w[1] + w[2]] if phase == 0 else [w[0] + w[1], w[2]]
    return mx.concatenate(pair, axis=axis)


@mx.compile
def _add_products(total: mx.array, parts: list[mx.array], weights: list[mx.array]) -> mx.array:
    """total + Σ part · weight, in one pass over memory."""
    for part, weight in zip(parts, weights, strict=True):
        total = total + part * weight
    return total


def depthwise(x: mx.array, weight: mx.array, bias: mx.array | None) -> mx.array:
    """x (B, H, W, C), each channel convolved with its own of weight (C, K, K, 1); same size.

    As in `convolve_rows`, with a border of K // 2.
    """
    B, H, W, C = x.shape
    K, P = weight.shape[1], weight.shape[1] // 2
    weight = mx.contiguous(weight.reshape(C, K * K).T)
    rows = mx.pad(x, [(0, 0), (P, P + 1), (P, P), (0, 0)]).reshape(-1, C)
    count = (B * (H + 2 * P + 1) - 2 * P - 1) * (W + 2 * P)
    parts = [rows[o : o + count] for o in (i * (W + 2 * P) + j for i in range(K) for j in range(K))]
    total = mx.zeros((C,), dtype=x.dtype) if bias is None else bias
    for k in range(0, K * K, 3):  # the pointers of more than three taps do not fit into registers
        total = _add_products(total, parts[k : k + 3], list(weight[k : k + 3]))
    if B > 1:
        total = mx.pad(total, [(0, (2 * P + 1) * (W + 2 * P)), (0, 0)])
    return total.reshape(B, -1, W + 2 * P, C)[:, :H, :W]


def dilated(x: mx.array, weight: mx.array, dilation: int, halo: int) -> mx.array:
    """x (B, L, C), weight (O, K, C) → (B, L, O): the interleaved signals are convolved one by one."""
    d = dilation
    B, L, C = x.shape
    x = mx.pad(x, [(0, 0), (0, -L % d), (0, 0)])
    x = x.reshape(B, -1, d, C).swapaxes(1, 2).reshape(B * d, -1, C)
    y = mx.conv1d(x, weight, padding=halo // d)
    y = y.reshape(B, d, -1, y.shape[-1]).swapaxes(1, 2).reshape(B, -1, y.shape[-1])
    return y[:, :L]


def convolve_by_taps(x: mx.array, weight: mx.array, dilation: int, halo: int) -> mx.array:
    """x (B, L, C), weight (O, K, C) → (B, L, O): a product a tap, so that nothing is unfolded."""
    L = x.shape[1]
    x = mx.pad(x, [(0, 0), (halo, halo), (0, 0)])
    first, *others = (weight[:, k].T for k in range(weight.shape[1]))
    total: mx.array = x[:, :L] @ first
    for k, tap in enumerate(others, start=1):
        total = mx.addmm(total, x[:, k * dilation : k * dilation + L], tap)
    return total


# Winograd's convolution: four neighbouring outputs of a filter g of three taps are linear in products of
# sums, y = A ((G g) ∘ (B d)), where d are the six inputs they see: six products instead of twelve
# (arXiv:1509.09308, F(4, 3); here with the points 0, 1, −1, ½, −2, ∞). It is applied along the height and,
# for each of the six sums of rows, along the width. The float32 error is about three times the plain sum's.
OUTPUTS = 4  # of one tile, from OUTPUTS + 2 inputs

_A = (  # (outputs, products)
    (1.0, 1.0, 1.0, 1.0, 1.0, 0.0),
    (0.0, 1.0, -1.0, 0.5, -2.0, 0.0),
    (0.0, 1.0, 1.0, 0.25, 4.0, 0.0),
    (0.0, 1.0, -1.0, 0.125, -8.0, 1.0),
)
_B = (  # (products, inputs)
    (1.0, -1.5, -2.0, 1.5, 1.0, 0.0),
    (0.0, -1.0, 0.5, 2.5, 1.0, 0.0),
    (0.0, 1.0, -2.5, 0.5, 1.0, 0.0),
    (0.0, -2.0, -1.0, 2.0, 1.0, 0.0),
    (0.0, 0.5, -1.0, -0.5, 1.0, 0.0),
    (0.0, 1.0, -1.5, -2.0, 1.5, 1.0),
)
_G = (  # (products, taps)
    (1.0, 0.0, 0.0),
    (1 / 3, 1 / 3, 1 / 3),
    (-1 / 3, 1 / 3, -1 / 3),
    (-16 / 15, -8 / 15, -4 / 15),
    (1 / 15, -2 / 15, 4 / 15),
    (0.0, 0.0, 1.0),
)


class Winograd:
    """The convolution with padding 1; keeps the transformed weight for as long as the weight is the same."""

    def __init__(self) -> None:
        self._source: mx.array | None = None
        self._weight: list[list[mx.array]] = []

    def __call__(self, x: mx.array, weight: mx.array, bias: mx.array | None) -> mx.array:
        """x (B, H, W, C), weight (O, 3, 3, C), bias (O,) → (B, H, W, O)."""
        if self._source is not weight:
            self._source, self._weight = weight, transform_weight(weight)
        bias = mx.zeros((len(weight),), dtype=x.dtype) if bias is None else bias
        return mx.concatenate([convolve(item, self._weight, bias) for item in x])


def transform_weight(weight: mx.array) -> list[list[mx.array]]:
    """(O, 3, 3, C) → 6 × 6 matrices (C, O): G along the height and along the width."""
    g = mx.array(_G, dtype=weight.dtype)
    found = [[mx.contiguous(mx.einsum("i,j,oijc->co", down, across, weight)) for across in g] for down in g]
    mx.eval(found)
    return found


def convolve(x: mx.array, weight: list[list[mx.array]], bias: mx.array) -> mx.array:
    """One image (H, W, C), a transformed weight and a bias (O,) → (1, H, W, O)."""
    H, W, _ = x.shape
    down, across = -(-H // OUTPUTS), -(-W // OUTPUTS)  # tiles
    x = mx.pad(x, [(1, OUTPUTS * down - H + 1), (1, OUTPUTS * across - W + 1), (0, 0)])
    rows: list[mx.array] = []
    for b, w in zip(_B, weight, strict=True):
        # One after the other: 36 products in work at a time are too many for two windows side by side.
        x = mx.depends([x], [rows[-1]])[0] if rows else x
        rows.append(_convolve_width(_combine(b, _every(x, axis=0, tiles=down)), w, across))
    y = mx.stack([_combine((1.0, *a), [bias, *rows]) for a in _A], axis=1)
    return y.reshape(1, OUTPUTS * down, OUTPUTS * across, -1)[:, :H, :W]


def _convolve_width(x: mx.array, weight: list[mx.array], tiles: int) -> mx.array:
    """(N, OUTPUTS·tiles + 2, C), padded → (N, OUTPUTS·tiles, O)."""
    N, _, C = x.shape
    inputs = _every(x, axis=1, tiles=tiles)
    products = [_combine(b, inputs).reshape(-1, C) @ w for b, w in zip(_B, weight, strict=True)]
    y = mx.stack([_combine(a, products).reshape(N, tiles, -1) for a in _A], axis=2)
    return y.reshape(N, OUTPUTS * tiles, -1)


def _every(x: mx.array, axis: int, tiles: int) -> list[mx.array]:
    """The first, second, … sixth input of every tile along `axis`."""
    stop = OUTPUTS * tiles - OUTPUTS + 1
    where = (slice(None),) * axis
    return [x[(*where, slice(i, i + stop, OUTPUTS))] for i in range(OUTPUTS + 2)]


def _combine(row: Sequence[float], arrays: Sequence[mx.array]) -> mx.array:
    """Σ coefficient · array in one pass, leaving out the zeros."""
    chosen = [(c, a) for c, a in zip(row, arrays, strict=True) if c]
    return _SUMS[tuple(c for c, _ in chosen)]([a for _, a in chosen])


def _weighted(coefficients: tuple[float, ...]) -> Callable[[list[mx.array]], mx.array]:
    def total(arrays: list[mx.array]) -> mx.array:
        terms = [a if c == 1 else c * a for c, a in zip(coefficients, arrays, strict=True)]
        return sum(terms[1:], terms[0])

    return mx.compile(total)


_ROWS = (*_A, *((1.0, *a) for a in _A), *_B)
_SUMS = {key: _weighted(key) for key in (tuple(c for c in row if c) for row in _ROWS)}
