"""Counts, sizes and long lists in words."""

from __future__ import annotations

import pytest

from acestep_mlx.formatting import brief, count, listed, rate, size


def test_counts() -> None:
    assert [count(n, "song") for n in (0, 1, 2, 1234)] == ["0 songs", "1 song", "2 songs", "1,234 songs"]
    assert count(1, "batch", "batches") == "1 batch" and count(3, "batch", "batches") == "3 batches"


@pytest.mark.parametrize(
    ("n", "text"),
    [(0, "0 bytes"), (999, "999 bytes"), (1500, "1.50 kB"), (72e6, "72.00 MB"), (3e9, "3.00 GB")],
)
def test_sizes(n: float, text: str) -> None:
    assert size(n) == text


def test_rates() -> None:
    assert [rate(x) for x in (0.3104, 4.21, 57.3, 0.0)] == ["0.31", "4.2", "57", "0"]


def test_long_lists_say_how_many_more() -> None:
    names = [f"n{i}" for i in range(15)]
    assert listed(names) == "n0; n1; n2 … and 12 more"
    assert listed(names[:3]) == "n0; n1; n2" and listed([]) == ""
    assert listed(names[:2], 1, ", ") == "n0 … and 1 more"


def test_foreign_texts_are_cut_between_words() -> None:
    assert brief("one\n  two") == "one two"
    assert brief("several words of it", 14) == "several …"
    assert brief("x" * 300) == "x" * 160
