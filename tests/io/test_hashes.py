"""Keys of what was computed: every part counts, and their order does not."""

from __future__ import annotations

from typing import Any

from acestep_mlx.io.hashes import cache_key, content_hash

PARTS: dict[str, Any] = {"kind": "text", "sizes": {"a": 1, "b": [2, 3]}, "caption": "é"}


def test_a_key_is_of_its_parts_and_their_values_not_of_their_order() -> None:
    key = cache_key(**PARTS)
    assert key == cache_key(caption="é", sizes={"b": [2, 3], "a": 1}, kind="text")
    for change in (
        {"sizes": {"a": 1, "b": [3, 2]}}, {"sizes": {"a": "1", "b": [2, 3]}}, {"caption": "e"},
        {"kind": "lyrics"}, {"more": None},
    ):  # fmt: skip
        assert cache_key(**{**PARTS, **change}) != key
    assert cache_key(kind="text") != cache_key(sort="text")


def test_a_content_is_the_same_in_another_order() -> None:
    assert content_hash(PARTS) == content_hash(dict(reversed(PARTS.items())))
    assert content_hash(PARTS) != content_hash({**PARTS, "caption": "e"})
