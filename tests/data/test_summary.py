"""Every number and list of the data set report, read back from its lines."""

from __future__ import annotations

from collections import Counter
from dataclasses import fields
from typing import Any

import pytest

from acestep_mlx.data.summary import DatasetReport, SetReport
from acestep_mlx.families import default

FRAMES = [default().latents.whole_frames(seconds) for seconds in (30, 60)]
#: fields that name songs, with a detail or without, each of another length
LISTS = [f.name for f in fields(SetReport) if str(f.type) in ("Named", "list[str]")]
LENGTHS = {name: 4 + i for i, name in enumerate(LISTS)}


def report(**changes: Any) -> SetReport:
    """A report in which no two numbers are the same."""
    details = {f.name for f in fields(SetReport) if str(f.type) == "Named"}
    named: dict[str, Any] = {
        name: [(f"{name}-{i}", f"why {name}") if name in details else f"{name}-{i}" for i in range(n)]
        for name, n in LENGTHS.items()
    }
    numbers: dict[str, Any] = {
        "files": 131, "songs": 117, "seconds": 8640.0, "captions": 123, "left_out": 105,
        "crop": 45.0, "cropped": 106,
        "lyrics_changed": 104,
        "interval": 2.5, "passes": 1.5,
        "buckets": Counter({FRAMES[0]: 113, FRAMES[1]: 114}),
    }  # fmt: skip
    lyrics = {"x": "[verse]\nhello my old friend, how do you do", "y": "[chorus]\nich liebe dich nicht mehr"}
    facts = {"family": default(), "lyrics": lyrics, "trigger": True, "listed": True, **numbers, **named}
    return SetReport("songs", **{**facts, **changes})


def test_every_number_is_shown() -> None:
    lines = DatasetReport([report()], [("songs", "rate", "it is measured")], ["old", "older"]).lines()
    assert lines[:5] == [
        "data set songs: 117 of 131 songs, 2.40 h, 123 captions, 1.5 times per epoch",
        "  left out by max_num_samples: 105",
        "  lengths (2.5 s steps): 30 s × 113, 60 s × 114",
        "  longer than 45 s, each time a random part of that length: 106",
        "  lyrics: 2 songs, lines by language: en 1, de 1",
    ]
    assert lines[-2:] == ["disabled: old, older", "ignored in data set songs: rate (it is measured)"]


@pytest.mark.parametrize("name", LISTS)
def test_every_list_is_shown_under_a_name_of_its_own(name: str) -> None:
    """With its length; all of it, or as many as are wanted and how many more there are."""
    lines = DatasetReport([report()]).lines(0)
    first = next(i for i, line in enumerate(lines) if line.startswith(f"    {name}-0"))
    n = LENGTHS[name]
    assert f": {n}" in lines[first - 1]
    shown = lines[first : first + n]
    assert [line.split(":")[0] for line in shown] == [f"    {name}-{i}" for i in range(n)]
    heads = [line.split(":")[0] for line in lines if line.startswith("  ") and not line.startswith("    ")]
    assert len(set(heads)) == len(heads)
    few = [line for line in DatasetReport([report()]).lines(3) if line.startswith(f"    {name}-")]
    assert len(few) in (3, n)  # songs that are left out are all named
    if name in ("no_caption", "no_lyrics"):
        meaning = report().without_caption if name == "no_caption" else report().without_lyrics
        assert lines[first - 1].endswith(f": {n}, {meaning}")
    if name == "skipped":
        assert len(few) == n


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(12.34, "12.3 s"), (359.9, "359.9 s"), (360.0, "0.10 h"), (3600.0, "1.00 h"), (90_000.0, "25.00 h")],
)
def test_lengths_are_hours_from_a_tenth_on(seconds: float, said: str) -> None:
    line = DatasetReport([report(seconds=seconds, passes=1.0)]).lines()[0]
    assert line == f"data set songs: 117 of 131 songs, {said}, 123 captions"


def test_what_a_run_says_of_its_data_has_the_same_numbers() -> None:
    said = DatasetReport([report()]).remarks()
    captions, lyrics = LENGTHS["no_caption"], LENGTHS["no_lyrics"]
    for words, level in (
        ("songs, sources-0: why sources", "info"),
        (f"{captions} of 117 songs in songs have no caption (no_caption-0", "warning"),
        (f"{lyrics} of 117 songs in songs have no lyrics (no_lyrics-0", "info"),
        ("lyrics of 104 of 117 songs in songs are read in the model's form", "info"),
        ("left out, no song: no_songs-0 (why no_songs)", "info"),
    ):
        assert [level] == [kind for text, kind in said if text.startswith(words)], words
