"""Tempo, key, metre and language of songs reach ACE-Step 1.5's prompt in its own words, and v1 as before."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from acestep_mlx.data.manifest import Manifest
from acestep_mlx.families.songs import Words
from acestep_mlx.families.v15 import FAMILY
from acestep_mlx.families.v15.song_facts import read
from acestep_mlx.families.v15.songs import texts

from ..data.songs import manifest, song

KNOWN = {"bpm": 96, "keyscale": "F# minor", "timesignature": "3", "language": "de"}


@pytest.fixture
def songs(tmp_path: Path) -> Path:
    folder = tmp_path / "songs"
    folder.mkdir()
    song(folder, "a", 1.0, caption="waltz", lyrics="[verse]\nla")
    song(folder, "b", 1.2, caption="pop")
    return folder


def beside(songs: Path, name: str, content: Any) -> None:
    text = content if isinstance(content, str) else json.dumps(content)
    (songs / f"{name}.json").write_text(text)


def found(
    root: Path, *entries: dict[str, Any], flavour: str = "v15-base"
) -> tuple[Manifest, dict[str, Words]]:
    """The manifest, and the words of each song by its name."""
    made = manifest(root, *entries, model_flavour=flavour)
    return made, {sample.id.rpartition("/")[2]: sample.words() for sample in made.samples}


def known(words: Words) -> dict[str, Any]:
    return {name: value for name in KNOWN if (value := getattr(words, name)) is not None}


@pytest.mark.parametrize(
    ("name", "written", "wanted"),
    [
        ("bpm", 120, 120), ("bpm", "120", 120), ("bpm", 127.96, 128), ("bpm", " 98.4 BPM", 98),
        ("bpm", 0, None), ("bpm", "N/A", None), ("bpm", None, None), ("bpm", float("nan"), None),
        ("bpm", "", None),
        ("keyscale", "C major", "C major"), ("keyscale", "f# Minor", "F# minor"),
        ("keyscale", "Am", "A minor"),
        ("keyscale", "BbM", "Bb major"), ("keyscale", "Bb", "Bb major"), ("keyscale", "E♭ min", "E♭ minor"),
        ("keyscale", "C sharp minor", "C# minor"), ("keyscale", "A MINOR", "A minor"),
        ("keyscale", "Dmaj", "D major"), ("keyscale", "F:min", "F minor"), ("keyscale", "4A", "F minor"),
        ("keyscale", "11a", "F# minor"), ("keyscale", "8B", "C major"), ("keyscale", "12A", "C# minor"),
        ("keyscale", "b minor", "B minor"), ("keyscale", "unknown", None), ("keyscale", "g_minor", "G minor"),
        ("timesignature", "4/4", "4"), ("timesignature", 3, "3"), ("timesignature", "6/8", "6"),
        ("timesignature", 4.0, "4"), ("timesignature", "2", "2"),
        ("language", "EN", "en"), ("language", "Japanese", "ja"), ("language", "pt-BR", "pt"),
        ("language", "sv", "sv"), ("language", "yue", "yue"), ("language", "unknown", None),
    ],
    ids=str,
)  # fmt: skip
def test_as_people_write_it(name: str, written: Any, wanted: Any) -> None:
    assert read({name: written}) == ({name: wanted} if wanted is not None else {}, [])


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("bpm", "fast"), ("bpm", -90), ("bpm", 9000), ("bpm", [120]), ("bpm", True), ("bpm", "1e400"),
        ("keyscale", "H dur"), ("keyscale", "13A"), ("keyscale", 5), ("keyscale", "C lydian"),
        ("timesignature", "5/4"), ("timesignature", "12/8"), ("timesignature", {"beats": 4}),
        ("language", "Klingonish"), ("language", 3), ("language", "xx"), ("language", "e"),
    ],
    ids=str,
)  # fmt: skip
def test_what_is_not_understood_is_told_and_left_out(name: str, written: Any) -> None:
    values, (problem,) = read({name: written})
    assert values == {} and problem.startswith(f"{name} ") and " is not " in problem


def test_of_a_json_file_beside_the_song(songs: Path, tmp_path: Path) -> None:
    beside(songs, "a", {"caption": "not this", "BPM": "96", "key": "F# Minor", "timesignature": "3/4",
                        "language": "German", "duration": 900, "genre": "waltz"})  # fmt: skip
    made, words = found(tmp_path)
    assert known(words["a.wav"]) == KNOWN and known(words["b.wav"]) == {}
    assert (words["a.wav"].caption, words["a.wav"].seconds) == ("waltz", 1.0), "measured"
    prompt, lyrics = texts(words["a.wav"])
    assert "- bpm: 96\n- timesignature: 3\n- keyscale: F# minor\n- duration: 1 seconds\n" in prompt
    assert lyrics.startswith("# Languages\nde\n")
    assert "- bpm: N/A\n- timesignature: N/A\n- keyscale: N/A\n" in texts(words["b.wav"])[0]
    lines = made.report.lines()
    (line,) = [line for line in lines if line.startswith("  known beside captions: ")]
    assert set(line.partition(": ")[2].split(", ")) == {f"{name} 1" for name in KNOWN}
    assert not any("not read" in line for line in lines)


def test_of_columns_of_a_list(songs: Path, tmp_path: Path) -> None:
    beside(songs, "a", {"bpm": 60, "language": "de"})
    (songs / "list.csv").write_text(
        "File,BPM,Key,Caption,time_signature\na.wav,96,F#m,waltz,3/4\nb.wav,,,pop,\n"
    )
    entry = {"type": "csv", "csv_file": "list.csv", "caption_strategy": "csv"}
    _, words = found(tmp_path, entry)
    assert known(words["a.wav"]) == KNOWN and known(words["b.wav"]) == {}


@pytest.mark.parametrize(
    ("name", "listed"),
    [
        ("dataset.json", lambda rows: {"metadata": {"name": "x"}, "samples": rows}),
        ("dataset.json", lambda rows: rows),
        ("songs.json", lambda rows: {row.pop("audio_path"): row for row in rows}),
        ("metadata.jsonl", lambda rows: "\n".join(map(json.dumps, rows))),
    ],
)
def test_of_another_trainer_s_list(name: str, listed: Any, songs: Path, tmp_path: Path) -> None:
    """Its values are the last that count: files of the song's own win."""
    rows: list[dict[str, Any]] = [
        {"audio_path": "./music/a.wav", "caption": "not this", "bpm": 96, "keyscale": "F# minor",
         "timesignature": "3", "language": "unknown", "duration": 900},
        {"audio_path": "C:\\music\\b.wav", "caption": "nor this", "bpm": 0, "keyscale": ""},
    ]  # fmt: skip
    content = listed(rows)
    (songs / name).write_text(content if isinstance(content, str) else json.dumps(content))
    beside(songs, "a", {"language": "de", "bpm": 60})
    made, words = found(tmp_path)
    assert known(words["a.wav"]) == {**KNOWN, "bpm": 60} and known(words["b.wav"]) == {}
    assert words["a.wav"].caption == "waltz"
    said = [why for file, why in made.report.sets[0].no_songs if file == name]
    assert not said, "it is read"


@pytest.mark.slow
def test_of_columns_of_a_table(songs: Path, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    rows = {
        "audio": [str(songs / "a.wav"), str(songs / "b.wav")], "tags": ["waltz", "pop"], "bpm": [96, None],
        "Key": ["F# minor", ""], "timesignature": ["3", "5"], "language": ["de", "unknown"],
    }  # fmt: skip
    datasets.Dataset.from_dict(rows).save_to_disk(str(tmp_path / "set"))
    entry = {"type": "huggingface", "dataset_name": str(tmp_path / "set"), "caption_strategy": "huggingface"}
    made, words = found(tmp_path, entry)
    assert known(words["a.wav"]) == KNOWN and known(words["b.wav"]) == {}
    assert [problem for _, problem in made.report.sets[0].unread] == [
        "timesignature '5' is not one that the model knows: 2, 3, 4, 6, or with /4 or /8"
    ]


def test_what_is_wrong_with_it_costs_no_song_and_is_counted(songs: Path, tmp_path: Path) -> None:
    beside(songs, "a", {"bpm": "fast", "keyscale": "C major"})
    beside(songs, "b", '{"bpm": 120')
    made, words = found(tmp_path)
    assert known(words["a.wav"]) == {"keyscale": "C major"} and known(words["b.wav"]) == {}
    (warning,) = [text for text, level in made.report.remarks() if level == "warning"]
    assert warning.startswith("2 values of songs' metadata in set not understood (a.wav: bpm 'fast' is not")
    assert "b.wav: b.json: not JSON" in warning and warning.endswith("left out of their prompts")
    assert "  metadata not understood, left out: 2" in made.report.lines()


def test_a_song_s_own_file_of_generate_says_nothing_of_it(songs: Path, tmp_path: Path) -> None:
    beside(songs, "a", {"acestep_mlx": {}, "bpm": 96})
    made, words = found(tmp_path)
    assert known(words["a.wav"]) == {} and not made.report.sets[0].unread


def test_the_data_set_s_language_is_that_of_all_its_songs(songs: Path, tmp_path: Path) -> None:
    beside(songs, "a", {"language": "de"})
    _, words = found(tmp_path, {"audio": {"lyrics_language": "ja"}})
    assert {name: one.language for name, one in words.items()} == {"a.wav": "ja", "b.wav": "ja"}


def test_v1_is_told_nothing_and_its_order_stays(songs: Path, tmp_path: Path) -> None:
    before, _ = found(tmp_path, flavour="base")
    ours, _ = found(tmp_path)
    beside(songs, "a", {"bpm": 96})
    after, words = found(tmp_path, flavour="base")
    told, _ = found(tmp_path)
    assert known(words["a.wav"]) == {} and before.signature == after.signature
    notes = [note for _, note in after.report.sets[0].notes]
    assert any(note.startswith("a.json looks like another trainer's metadata") for note in notes)
    assert ours.signature != told.signature, "another prompt is another run"
    assert [a.key == b.key for a, b in zip(ours.samples, told.samples, strict=True)] == [False, True]


def test_every_field_is_one_of_words() -> None:
    assert set(FAMILY.metadata) == set(KNOWN) <= set(Words.__dataclass_fields__)
