"""What each song is trained with, one line of 80 columns each, for one song or hundreds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from acestep_mlx.cli.describe import data_set
from acestep_mlx.data.song_table import COLUMNS, columns_of_text, song_table
from acestep_mlx.data.summary import SongRow

from .songs import song


def test_a_folder_of_songs_is_a_table(tmp_path: Path) -> None:
    song(tmp_path, "ballad", 65.0, lyrics="[verse]\nhello my old friend, how do you do")
    song(tmp_path, "waltz", 4.0, caption=None)
    (tmp_path / "waltz.json").write_text(json.dumps({"caption": "x", "lyrics": "la"}))
    song(tmp_path, "pad", 2.0, caption=None)
    song(tmp_path, "odd", 4.0, caption="[verse]\nla la")
    before = sorted(path.name for path in tmp_path.iterdir())
    lines = data_set(tmp_path, "local")
    assert lines[1:9] == [
        "song                    length  caption       lyrics        lang  problems",
        "-" * 80,
        "odd.wav                 left out: odd.txt looks like lyrics with structure mark…",
        "ballad.wav                1:05  *.txt         *.lyrics      en",
        "pad.wav                   0:02  none          none          -     padded",
        "waltz.wav                 0:04  *.json        *.json        en",
        "-" * 80,
        "3 songs, 1:11; left out: 1",
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def rows(n: int) -> list[SongRow]:
    names = [
        "night.wav",
        "一首很长的歌" * 6 + ".mp3",
        "live at the old town hall, take 12.flac",
        "e\u0301te\u0301.wav",
    ]
    return [
        SongRow(
            f"{i:03} {names[i % 4]}",
            3600.0 * (i % 3),
            "dataset.json",
            "*.lyrics.txt",
            "yue",
            "padded, 12 notes",
        )
        for i in range(n)
    ]


def test_no_line_is_wider_than_a_terminal() -> None:
    lines = song_table(rows(300))
    assert len(lines) == 305 and {columns_of_text(line) <= COLUMNS for line in lines} == {True}
    starts = {columns_of_text(line[: line.index("dataset.json")]) for line in lines if "dataset.json" in line}
    assert starts == {32}, "columns stand below each other, whatever the letters"
    assert any("take 12.flac"[-6:] in line for line in lines), "the end of a long name is kept"
    assert "300 songs" in lines[-2] and "left out: 0" in lines[-2]


@pytest.mark.parametrize("problem", ["", "x" * 200])
def test_a_song_that_is_left_out_says_why(problem: str) -> None:
    lines = song_table([SongRow("a.wav", 3.0, "*.txt", None), SongRow("b.wav", None, problem=problem)])
    assert lines[2].startswith("b.wav") and problem[:20] in lines[2] and len(lines[2]) <= COLUMNS
    assert "1 song, 0:03; left out: 1" in lines


def test_without_songs_there_is_no_table() -> None:
    assert song_table([]) == []
