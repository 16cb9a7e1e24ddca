"""When lines are sung: every form of time stamp, in seconds, beside the lyrics without them."""

from __future__ import annotations

import pytest

from acestep_mlx.text.sheet import read_sheet, untimed
from acestep_mlx.text.stamps import Timed

FORMS = {
    "[00:12.50]one\n[01:02]two": [("one", 12.5, None), ("two", 62.0, None)],
    "[offset:+500]\n[00:12.50]one": [("one", 12.0, None)],
    "[offset:-250]\n[00:12.50]one": [("one", 12.75, None)],
    "[00:12.00]<00:12.10>one <00:13>more": [("one more", 12.0, None)],
    "[00:12.00 --> 00:14.50] one": [("one", 12.0, 14.5)],
    "[00:12:34] one\n[03:15:00] two": [("one", 12.34, None), ("two", 195.0, None)],
    "[00:00:12] one\n[00:01:15] two": [("one", 12.0, None), ("two", 75.0, None)],
    "0:12 one\n0:15 two\n0:20 three": [("one", 12.0, None), ("two", 15.0, None), ("three", 20.0, None)],
    "one 0:12\ntwo 0:15\nthree 0:33": [("one", 12.0, None), ("two", 15.0, None), ("three", 33.0, None)],
    "(0:12) one\n(1:05) two": [("one", 12.0, None), ("two", 65.0, None)],
    "[12.5s] one\n[1m 20s] two\n[1'25\"] three\n[90 s] four": [
        ("one", 12.5, None), ("two", 80.0, None), ("three", 85.0, None), ("four", 90.0, None),
    ],
    "12.500\t15.250\tone\n16.000\t17.000\ttwo": [("one", 12.5, 15.25), ("two", 16.0, 17.0)],
    "1\n00:00:10,000 --> 00:00:12,500\none\ntwo\n\n2\n00:01:14,000 --> 00:01:16,000\nthree": [
        ("one", 10.0, 12.5), ("two", 10.0, 12.5), ("three", 74.0, 76.0),
    ],
    "WEBVTT\n\n00:10.000 --> 00:12.000 align:start\none\n\n00:14.000 --> 00:15.000\ntwo": [
        ("one", 10.0, 12.0), ("two", 14.0, 15.0),
    ],
}  # fmt: skip


@pytest.mark.parametrize("text", FORMS)
def test_a_time_is_the_seconds_that_it_means(text: str) -> None:
    expected = [Timed(line, ((start, end),)) for line, start, end in FORMS[text]]
    sheet = read_sheet(text)
    assert sheet.lines == expected == untimed(text).lines
    assert sheet.text == "\n".join(line.text for line in expected)


def test_a_line_that_is_sung_several_times_has_all_of_them() -> None:
    lines = read_sheet("[00:10.00][01:20.30]again\n[00:20.00]\n[Verse 2]\n[00:30]once").lines
    assert lines == [
        Timed("again", ((10.0, None), (80.3, None))), Timed("", ((20.0, None),)),
        Timed("[verse]"), Timed("once", ((30.0, None),)),
    ]  # fmt: skip


def test_lines_without_times_have_none() -> None:
    text = "[verse]\nAt 7:30 in the morning\nwe go\n"
    assert [line.spans for line in read_sheet(text).lines] == [(), (), ()] and untimed(text).lines == []


def test_marks_stay_as_they_are_written_where_only_times_are_read() -> None:
    assert untimed("[Verse 1 - soft]\n[00:10.00]one\n").lines == [
        Timed("[Verse 1 - soft]"), Timed("one", ((10.0, None),))
    ]  # fmt: skip
