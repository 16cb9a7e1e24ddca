"""Counts and sizes in words."""

from __future__ import annotations


def count(n: int, one: str, many: str | None = None) -> str:
    """`1 song`, `2 songs`, `2 batches`; thousands are separated."""
    return f"{n:,} {one if n == 1 else many or one + 's'}"


def size(n: float) -> str:
    """Bytes for people."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if n >= factor:
            return f"{n / factor:.2f} {unit}"
    return f"{n:.0f} bytes"


def rate(x: float) -> str:
    """A speed with as many digits as say something: `0.31`, `4.2`, `57`."""
    return f"{x:.0f}" if x >= 9.95 else f"{x:.1f}" if x >= 0.995 else f"{x:.2g}"
