"""Long signals through local layers, piece by piece, with the same numbers as in one go.

A convolution sees only a few frames on each side. A run of such layers is therefore applied to overlapping
windows whose overlap covers everything that the kept frames can see; the rest is cut away. Nothing is
cross-faded, so there is nothing to hear or to measure at a seam, whatever the window.

A layer tells what it needs by two attributes: `halo`, the input frames it looks at on each side, and
`rate`, its output frames per input frame.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from math import ceil
from typing import Any, NamedTuple

import mlx.core as mx


class Window(NamedTuple):
    """Frames `start:stop` are kept of an input that is read from `low` to `high`."""

    start: int
    stop: int
    low: int
    high: int


def reach(layers: Sequence[Any]) -> tuple[int, Fraction]:
    """Of a run of layers: input frames seen on each side of an output frame; output per input frames."""
    halo, rate = Fraction(0), Fraction(1)
    for layer in layers:
        halo += Fraction(layer.halo) / rate
        rate *= layer.rate
    return ceil(halo), rate


def windows(length: int, size: int | None, halo: int, align: int = 1) -> Iterator[Window]:
    """Cut `length` frames into windows of about `size` or less (None: one), on multiples of `align`."""
    count = 1 if size is None else ceil(length / max(size, align))
    # Equal windows: few different shapes, and no tiny last one.
    step = ceil(length / count / align) * align
    halo = ceil(halo / align) * align
    for start in range(0, length, step):
        stop = min(start + step, length)
        yield Window(start, stop, max(0, start - halo), min(length, stop + halo))


def windowed(
    fn: Callable[[int, int], mx.array],
    length: int,
    *,
    axis: int,
    size: int | None,
    halo: int,
    rate: Fraction,
    progress: Callable[[int], None] | None = None,
) -> mx.array:
    """A local function of `length` frames, window by window: `fn(low, high)` is its value for these frames.

    `axis` is the time axis of what `fn` gives. `progress` gets the frames done after each window. `length`
    must be a multiple of `rate.denominator`.
    """
    pieces = []
    for w in windows(length, size, halo, rate.denominator):
        y = fn(w.low, w.high)
        start, stop = int((w.start - w.low) * rate), int((w.stop - w.low) * rate)
        if stop - start < y.shape[axis]:
            y = mx.contiguous(y[(slice(None),) * axis + (slice(start, stop),)])  # lets go of the overlap
        if w.stop - w.start < length:
            mx.eval(y)
        pieces.append(y)
        if progress:
            progress(w.stop - w.start)
    return pieces[0] if len(pieces) == 1 else mx.concatenate(pieces, axis=axis)
