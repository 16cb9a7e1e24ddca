"""Long signals through local layers, piece by piece, with the same numbers as in one go.

A convolution sees only a few frames on each side. A run of such layers is therefore applied to overlapping
windows whose overlap covers everything that the kept frames can see; the rest is cut away. Nothing is
cross-faded, so there is nothing to hear or to measure at a seam, whatever the window.

A layer tells what it needs by two attributes: `halo`, the input frames it looks at on each side, and
`rate`, its output frames per input frame.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from fractions import Fraction
from itertools import islice
from math import ceil
from typing import Any, NamedTuple, TypeVar

import mlx.core as mx

from ..io.progress import Advance, Progress, silent
from . import cpu
from .device import on_cpu

Item = TypeVar("Item")
Result = TypeVar("Result")


def streams() -> list[mx.Stream]:
    """Where windows are worked on side by side: two streams on the CPU, the default stream alone on a GPU."""
    default = mx.default_stream(mx.default_device())
    return [default, cpu.second_stream()] if on_cpu() else [default]


def side_by_side(fn: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[list[Result]]:
    """`fn` of each item, as many at a time as there are `streams`; each group comes out computed."""
    lanes, rest = streams(), iter(items)
    while group := list(islice(rest, len(lanes))):
        results = []
        for lane, item in zip(lanes, group, strict=False):
            with mx.stream(lane):
                results.append(fn(item))
        mx.eval(results)
        yield results


def rows_side_by_side(fn: Callable[[slice], mx.array], rows: int) -> mx.array:
    """`fn` of all `rows` of a batch, in as many parts as there are `streams`; its rows do not see each other.

    Element-wise work, which has one thread a stream, is then done beside the other part's products.
    """
    lanes = streams()
    cuts = [-(-rows * i // len(lanes)) for i in range(len(lanes) + 1)]
    parts = []
    for lane, start, stop in zip(lanes, cuts, cuts[1:], strict=False):
        if start < stop:
            with mx.stream(lane):
                parts.append(fn(slice(start, stop)))
    return parts[0] if len(parts) == 1 else mx.concatenate(parts)


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
    """Cut `length` frames into windows of about `size` (None: one), on multiples of `align`.

    Where windows are worked on side by side, none is left to be worked on alone at the end.
    """
    exact = 0 if size is None else length / max(size, align)
    count, lanes = max(1, ceil(exact)), len(streams())
    if count > 1:
        count = lanes * max(1, ceil(exact / lanes - 0.5))
    # Equal windows: few different shapes, and no tiny last one.
    step = ceil(length / count / align) * align
    halo = ceil(halo / align) * align
    for start in range(0, length, step):
        stop = min(start + step, length)
        yield Window(start, stop, max(0, start - halo), min(length, stop + halo))


def windowed(
    fn: Callable[[int, int], mx.array],
    length: int,
    layers: Sequence[Any],
    *,
    axis: int,
    size: int | None,
    progress: Progress = silent,
) -> mx.array:
    """A run of local layers on `length` frames, window by window: `fn(low, high)` is its value for these.

    `axis` is the time axis of what `fn` gives. `progress` is told the frames done after each window. `length`
    must be a multiple of the denominator of the layers' rate.
    """
    halo, rate = reach(layers)

    def piece(w: Window) -> mx.array:
        y = fn(w.low, w.high)
        start, stop = int((w.start - w.low) * rate), int((w.stop - w.low) * rate)
        # A copy lets go of the overlap.
        whole = stop - start == y.shape[axis]
        return y if whole else mx.contiguous(y[(slice(None),) * axis + (slice(start, stop),)])

    cut = list(windows(length, size, halo, rate.denominator))
    pieces: list[mx.array] = []
    for group in side_by_side(piece, cut) if len(cut) > 1 else [[piece(cut[0])]]:
        pieces += group
        for w in cut[len(pieces) - len(group) : len(pieces)]:
            progress(Advance(done=w.stop, total=length))
    return mx.concatenate(pieces, axis=axis)
