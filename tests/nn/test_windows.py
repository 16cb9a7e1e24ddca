"""Work on several streams."""

from __future__ import annotations

import mlx.core as mx
import pytest

from acestep_mlx.nn import windows


@pytest.mark.parametrize(("rows", "parts"), [(1, [(0, 1)]), (2, [(0, 1), (1, 2)]), (3, [(0, 2), (2, 3)])])
def test_rows_of_a_batch_are_shared_out(
    rows: int, parts: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One part for each stream, in order, none of them empty; on a GPU, all of them in one."""
    x, seen = mx.random.normal((rows, 5)), []

    def fn(part: slice) -> mx.array:
        seen.append((part.start, part.stop, mx.default_stream(mx.default_device())))
        return 2 * x[part]

    lanes = [mx.default_stream(mx.cpu), mx.new_stream(mx.cpu)]
    monkeypatch.setattr(windows, "streams", lambda: lanes)
    assert mx.array_equal(windows.rows_side_by_side(fn, rows), 2 * x)
    assert seen == [(*part, lane) for part, lane in zip(parts, lanes, strict=False)]
    seen.clear()
    monkeypatch.setattr(windows, "streams", lambda: lanes[:1])
    assert mx.array_equal(windows.rows_side_by_side(fn, rows), 2 * x)
    assert [part[:2] for part in seen] == [(0, rows)]
