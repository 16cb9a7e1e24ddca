"""Winograd's 3×3 convolution for the CPU: a quarter of the multiplications, all in plain matrix products.

Four neighbouring outputs of a filter g of three taps are linear in products of sums,
y = A ((G g) ∘ (B d)), where d are the six inputs they see: six products instead of twelve
(arXiv:1509.09308, F(4, 3); here with the points 0, 1, −1, ½, −2, ∞). It is applied along the height and, for
each of the six sums of rows, along the width. The float32 error is about three times that of the plain sum.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import mlx.core as mx

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
