"""Line charts as inline SVG, without any plotting library."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from html import escape
from typing import TypeVar

import numpy as np

T = TypeVar("T")
WIDTH, HEIGHT = 640, 250
LEFT, RIGHT, TOP, BOTTOM = 58, 14, 12, 30
MAX_POINTS = 800


@dataclass(frozen=True)
class Series:
    """One line: (x, y) points; `css` is a class that the report's style sheet colours."""

    name: str
    points: Sequence[tuple[float, float]]
    css: str
    faint: bool = False


def evenly(items: Sequence[T], limit: int) -> list[T]:
    """At most `limit` of them, evenly chosen, with the first and the last."""
    if len(items) <= limit:
        return list(items)
    return [items[round(i * (len(items) - 1) / (limit - 1))] for i in range(limit)]


def thin(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """As many as a chart shows of the points that are finite."""
    return evenly([p for p in points if math.isfinite(p[1])], MAX_POINTS)


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Round numbers that cover low … high."""
    span = high - low
    if span <= 0:
        return [low]
    step = 10 ** math.floor(math.log10(span / count))
    for factor in (1, 2, 2.5, 5, 10):
        if span / (step * factor) <= count:
            step *= factor
            break
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def number(value: float) -> str:
    """Short: 0.0123, 1.2e-05, 1,500."""
    if value == 0:
        return "0"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.1e}" if abs(value) < 1e-3 else f"{value:.4g}"


def _range(series: Sequence[Series], zero: bool) -> tuple[float, float]:
    """What the y axis shows; a few outliers of a faint raw curve do not flatten the rest."""
    low, high = math.inf, -math.inf
    for one in series:
        values = np.array([y for _, y in one.points if math.isfinite(y)])
        if len(values):
            a, b = (
                np.percentile(values, [1, 99])
                if one.faint and len(values) > 30
                else (values.min(), values.max())
            )
            low, high = min(low, float(a)), max(high, float(b))
    if not math.isfinite(low):
        return 0.0, 1.0
    low = min(0.0, low) if zero else low
    margin = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
    return (low if zero and low == 0 else low - margin), high + margin


@dataclass(frozen=True)
class _Axes:
    """What part of the plane a chart shows: x0 … x1, y0 … y1."""

    x0: float
    x1: float
    y0: float
    y1: float

    @classmethod
    def around(cls, series: Sequence[Series], zero: bool) -> _Axes:
        xs = [x for s in series for x, _ in s.points]
        x0, x1 = min(xs), max(xs)
        return cls(x0, x1 if x1 > x0 else x0 + 1, *_range(series, zero))

    def place(self, x: float, y: float) -> tuple[float, float]:
        """A point in the picture; one above or below stands at its edge."""
        px = LEFT + (x - self.x0) / (self.x1 - self.x0) * (WIDTH - LEFT - RIGHT)
        share = (min(max(y, self.y0), self.y1) - self.y0) / (self.y1 - self.y0)
        return round(px, 1), round(TOP + (1 - share) * (HEIGHT - TOP - BOTTOM), 1)

    def grid(self) -> Iterator[str]:
        """Lines across, and the numbers along both axes."""
        for tick in ticks(self.y0, self.y1):
            _, y = self.place(self.x0, tick)
            yield f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}"/>'
            yield f'<text class="tick" x="{LEFT - 8}" y="{y + 4}" text-anchor="end">{number(tick)}</text>'
        for tick in ticks(self.x0, self.x1, 6):
            x, _ = self.place(tick, self.y0)
            yield f'<text class="tick" x="{x}" y="{HEIGHT - 8}" text-anchor="middle">{number(tick)}</text>'

    def line(self, one: Series) -> Iterator[str]:
        """A series: its line, with dots where there are few points."""
        spots = [self.place(x, y) for x, y in one.points]
        if len(spots) == 1:
            yield _dot(one, spots[0], 3.5)
            return
        path = " ".join(f"{x},{y}" for x, y in spots)
        yield f'<polyline class="line {one.css}{" faint" if one.faint else ""}" points="{path}"/>'
        if len(spots) <= 40:
            yield from (_dot(one, spot, 2.5) for spot in spots)


def _dot(one: Series, spot: tuple[float, float], radius: float) -> str:
    return f'<circle class="dot {one.css}" cx="{spot[0]}" cy="{spot[1]}" r="{radius}"/>'


def line_chart(title: str, series: Sequence[Series], *, unit: str = "", zero: bool = False) -> str:
    """A `<figure>` with the chart and its legend; "" when there is nothing to draw. x is the step."""
    series = [replace(s, points=thin(s.points)) for s in series]
    series = [s for s in series if s.points]
    if not series:
        return ""
    axes = _Axes.around(series, zero)
    drawn = "".join([*axes.grid(), *(part for one in series for part in axes.line(one))])
    data = "|".join(
        f"{escape(s.name)};{s.css};" + ",".join(f"{x:g}:{y:.6g}" for x, y in s.points) for s in series
    )
    legend = "".join(f'<span><i class="chip {s.css}"></i>{escape(s.name)}</span>' for s in series)
    unit = f' <span class="unit">{escape(unit)}</span>' if unit else ""
    frame = f'data-x="{axes.x0:g},{axes.x1:g}" data-box="{LEFT},{WIDTH - RIGHT},{TOP},{HEIGHT - BOTTOM}"'
    return (
        f'<figure class="card chart"><figcaption>{escape(title)}{unit}</figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}" '
        f'{frame} data-s="{data}">'
        f"{drawn}</svg>"
        f"{f'<div class=legend>{legend}</div>' if len(series) > 1 else ''}</figure>"
    )
