"""Lyrics that are too long for their song: said with what would do, and only then."""

from __future__ import annotations

import pytest

from acestep_mlx.text.singable import too_many

LINE = "many words are sung in each line\n"  # seven


@pytest.mark.parametrize(
    ("lyrics", "seconds", "longest", "words"),
    [
        (LINE * 60, 30, 240, "too long: 420 words in 0:30; the end will not be heard; such a song lasts some "
         "6:00, and the model makes 4:00 at most"),
        (LINE * 60, 30, 600, "a duration of 6:00 would do"),
        (LINE * 13, 30, 240, "91 words in 0:30; the end will not be heard; a duration of 1:20 would do"),
        ("我爱你你爱我\n" * 30, 30, 240, "180 characters in 0:30"),
        (LINE * 5 + "사랑해요\n" * 40, 30, 240, "35 words and 160 characters"),
        ("[00:01.00]" + "[00:02.00]".join([LINE] * 20), 30, 600, "140 words"),
    ],
)  # fmt: skip
def test_too_long(lyrics: str, seconds: float, longest: float, words: str) -> None:
    said = too_many(lyrics, seconds, longest)
    assert said is not None and words in said and "\n" not in said


@pytest.mark.parametrize(
    "lyrics",
    ["", "\n\n", "[verse]\n[chorus]\n" * 500, LINE * 12, "我爱你你爱我\n" * 25, "♪ … !\n" * 400,
     "[00:01.00]" + LINE],
)  # fmt: skip
def test_as_long_as_can_be_sung(lyrics: str) -> None:
    assert too_many(lyrics, 30, 240) is None
