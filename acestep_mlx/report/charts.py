"""Line charts as inline SVG, without any plotting library."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from html import escape
from typing import TypeVar

import numpy as np

T = TypeVar("T")
WIDTH, HEIGHT = 560, 280
LEFT, RIGHT, TOP, BOTTOM = 78, 18, 34, 54
MAX_POINTS = 800
DASHES = 5  # kinds of lines in the style sheet


@dataclass(frozen=True)
class Series:
    """One line: (x, y) points; `css` is a class that the report's style sheet colours. `dash`: one of DASHES
    kinds of lines, as colours alone do not tell two apart.
    """

    name: str
    points: Sequence[tuple[float, float]]
    css: str
    faint: bool = False
    dash: int = 0

    @property
    def classes(self) -> str:
        return f"line {self.css} d{self.dash % DASHES}{' faint' if self.faint else ''}"


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

    def grid(self, unit: str) -> Iterator[str]:
        """Lines across, the numbers along both axes, and what they count."""
        for tick in ticks(self.y0, self.y1):
            _, y = self.place(self.x0, tick)
            yield f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}"/>'
            yield f'<text class="tick" x="{LEFT - 8}" y="{y + 4}" text-anchor="end">{number(tick)}</text>'
        for tick in ticks(self.x0, self.x1, 6):
            x, _ = self.place(tick, self.y0)
            yield f'<text class="tick" x="{x}" y="{HEIGHT - 32}" text-anchor="middle">{number(tick)}</text>'
        yield f'<text class="axis" x="6" y="17">{escape(unit)}</text>'
        x, y = (LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8
        yield f'<text class="axis" x="{x}" y="{y}" text-anchor="middle">step</text>'

    def line(self, one: Series) -> Iterator[str]:
        """A series: its line, with dots where there are few points."""
        spots = [self.place(x, y) for x, y in one.points]
        if len(spots) == 1:
            yield _dot(one, spots[0], 4)
            return
        path = " ".join(f"{x},{y}" for x, y in spots)
        yield f'<polyline class="{one.classes}" points="{path}"/>'
        if len(spots) <= 40 and not one.faint:
            yield from (_dot(one, spot, 3) for spot in spots)

    def mark(self, spot: tuple[float, float], text: str) -> str:
        """A line down through a point, with words at its top, on the side that has room."""
        x, y = self.place(*spot)
        left = x > (LEFT + WIDTH) / 2
        side = "end" if left else "start"
        return (
            f'<line class="mark" x1="{x}" x2="{x}" y1="{TOP - 8}" y2="{HEIGHT - BOTTOM}"/>'
            f'<circle class="ring" cx="{x}" cy="{y}" r="7"/>'
            f'<text class="axis" x="{x - 7 if left else x + 7}" y="{TOP - 2}" '
            f'text-anchor="{side}">{escape(text)}</text>'
        )


def _dot(one: Series, spot: tuple[float, float], radius: float) -> str:
    return f'<circle class="dot {one.css}" cx="{spot[0]}" cy="{spot[1]}" r="{radius}"/>'


def constant(series: Sequence[Series]) -> str:
    """What the lines say where that is one number each, in words; "" where one of them changes."""
    found = [(s.name, {y for _, y in s.points if math.isfinite(y)}) for s in series]
    found = [(name, values) for name, values in found if values]
    if not found or any(len(values) > 1 for _, values in found):
        return ""
    if len(found) == 1:
        return number(found[0][1].pop())
    return ", ".join(f"{name} {number(values.pop())}" for name, values in found)


def line_chart(
    title: str,
    series: Sequence[Series],
    unit: str,
    *,
    note: str = "",
    zero: bool = False,
    best: tuple[float, float] | None = None,
) -> str:
    """A `<figure>` with the chart and its legend; "" when there is nothing to draw. x is the step.

    unit: what y counts. best: the point to mark as the best one.
    """
    series = [replace(s, points=thin(s.points)) for s in series]
    series = [s for s in series if s.points]
    series = [replace(s, dash=sum(not t.faint for t in series[:i])) for i, s in enumerate(series)]
    if not series:
        return ""
    axes = _Axes.around(series, zero)
    drawn = "".join([*axes.grid(unit), *(part for one in series for part in axes.line(one))])
    drawn += axes.mark(best, f"best, step {best[0]:,.0f}") if best else ""
    data = json.dumps([[s.name, [[x, float(f"{y:.6g}")] for x, y in s.points]] for s in series])
    frame = f'data-x="{axes.x0:g},{axes.x1:g}" data-box="{LEFT},{WIDTH - RIGHT},{TOP},{HEIGHT - BOTTOM}"'
    legend = "".join(f"<span>{_sample(s)}{escape(s.name)}</span>" for s in series)
    below = f'<div class="legend">{legend}</div>' if len(series) > 1 else ""
    shown = f' <span class="unit">{escape(note)}</span>' if note else ""
    return (
        f'<figure class="card chart"><figcaption>{escape(title)}'
        f"{shown}</figcaption>"
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(_said(title, series))}" '
        f'{frame} data-title="{escape(title)}" data-s="{escape(data)}">{drawn}</svg>'
        f"{below}</figure>"
    )


def _sample(one: Series) -> str:
    """A piece of a line, for the legend."""
    return (
        f'<svg class="key" viewBox="0 0 30 8" aria-hidden="true">'
        f'<line class="{one.classes}" x1="1" x2="29" y1="4" y2="4"/></svg>'
    )


def _said(title: str, series: Sequence[Series]) -> str:
    """The chart for those who do not see it: each line's first, last and lowest number."""
    parts = []
    for one in series:
        (x0, y0), (x1, y1) = one.points[0], one.points[-1]
        lowest = min(one.points, key=lambda point: point[1])
        parts.append(
            f"{one.name}: {number(y0)} at step {x0:g}, {number(y1)} at step {x1:g}, "
            f"lowest {number(lowest[1])} at step {lowest[0]:g}"
        )
    return f"{title}, by step. {'; '.join(parts)}"
