"""Line charts as inline SVG, without any plotting library."""

from __future__ import annotations

import math
from collections.abc import Sequence
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


def line_chart(title: str, series: Sequence[Series], *, unit: str = "", zero: bool = False) -> str:
    """A `<figure>` with the chart and its legend; "" when there is nothing to draw. x is the step."""
    series = [replace(s, points=thin(s.points)) for s in series]
    series = [s for s in series if s.points]
    if not series:
        return ""
    xs = [x for s in series for x, _ in s.points]
    x0, x1 = min(xs), max(xs)
    x1 = x1 if x1 > x0 else x0 + 1
    y0, y1 = _range(series, zero)

    def place(x: float, y: float) -> tuple[float, float]:
        px = LEFT + (x - x0) / (x1 - x0) * (WIDTH - LEFT - RIGHT)
        py = TOP + (1 - (min(max(y, y0), y1) - y0) / (y1 - y0)) * (HEIGHT - TOP - BOTTOM)
        return round(px, 1), round(py, 1)

    parts = []
    for tick in ticks(y0, y1):
        _, y = place(x0, tick)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 8}" y="{y + 4}" text-anchor="end">{number(tick)}</text>')
    for tick in ticks(x0, x1, 6):
        x, _ = place(tick, y0)
        parts.append(
            f'<text class="tick" x="{x}" y="{HEIGHT - 8}" text-anchor="middle">{number(tick)}</text>'
        )
    for one in series:
        spots = [place(x, y) for x, y in one.points]
        faint = " faint" if one.faint else ""
        if len(spots) == 1:
            parts.append(f'<circle class="dot {one.css}" cx="{spots[0][0]}" cy="{spots[0][1]}" r="3.5"/>')
        else:
            path = " ".join(f"{x},{y}" for x, y in spots)
            parts.append(f'<polyline class="line {one.css}{faint}" points="{path}"/>')
            if len(spots) <= 40:
                parts += [f'<circle class="dot {one.css}" cx="{x}" cy="{y}" r="2.5"/>' for x, y in spots]
    data = "|".join(
        f"{escape(s.name)};{s.css};" + ",".join(f"{x:g}:{y:.6g}" for x, y in s.points) for s in series
    )
    legend = "".join(f'<span><i class="chip {s.css}"></i>{escape(s.name)}</span>' for s in series)
    unit = f' <span class="unit">{escape(unit)}</span>' if unit else ""
    frame = f'data-x="{x0:g},{x1:g}" data-box="{LEFT},{WIDTH - RIGHT},{TOP},{HEIGHT - BOTTOM}"'
    return (
        f'<figure class="card chart"><figcaption>{escape(title)}{unit}</figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}" '
        f'{frame} data-s="{data}">'
        f"{''.join(parts)}</svg>"
        f"{f'<div class=legend>{legend}</div>' if len(series) > 1 else ''}</figure>"
    )
