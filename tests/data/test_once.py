"""A song that a folder holds more than once is trained once, and what is left out is counted and named."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from acestep_mlx.data.manifest import Manifest

from .songs import manifest, song, write

Twice = list[tuple[str, str]]


@pytest.fixture
def songs(tmp_path: Path) -> Path:
    song(tmp_path / "songs", "other")
    return tmp_path / "songs"


def names(found: Manifest) -> list[str]:
    return [sample.id.removeprefix("set/") for sample in found.samples]


def twice(found: Manifest) -> Twice:
    return found.report.sets[0].twice


# ── one song in several formats ──────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize("kind", ["textfile", "filename", "instanceprompt", "no words"])
@pytest.mark.parametrize("others", [["mp3"], ["ogg", "flac"]])
def test_formats_of_a_song_share_its_texts(kind: str, others: list[str], tmp_path: Path, songs: Path) -> None:
    song(songs, "a", caption="pop" if kind == "textfile" else None)
    for ending in others:
        write(songs / f"a.{ending}", pitch=297.0)
    entry = {} if kind == "no words" else {"caption_strategy": kind, "instance_prompt": "zyx"}
    found = manifest(tmp_path, entry)
    kept = "a.flac" if "flac" in others else "a.wav"
    assert names(found) == [kept, "other.wav"]
    report = found.report.sets[0]
    assert len(twice(found)) == len(others) and report.left_out == 0 and not report.skipped
    assert all(f"{kept} in another format" in reason for _, reason in twice(found))
    assert f"there twice, trained once: {len(others)}" in "\n".join(found.report.lines())
    (line,) = [text for text, level in found.report.remarks() if level == "warning" and "twice" in text]
    assert all(f"a.{ending}" in line for ending in {"wav", *others} - {kept.split(".")[1]})


def test_the_one_that_can_be_used_stays(tmp_path: Path, songs: Path) -> None:
    song(songs, "a", 8.0)
    (songs / "a.wav").write_bytes((songs / "a.wav").read_bytes()[:3000])
    write(songs / "a.mp3", 8.0)
    found = manifest(tmp_path)
    assert names(found) == ["a.mp3", "other.wav"] and not twice(found)
    assert found.skipped[0][0] == "set/a.wav"


def test_a_shorter_one_is_the_excerpt(tmp_path: Path, songs: Path) -> None:
    song(songs, "a", 4.0)
    write(songs / "a.mp3", 9.0)
    assert names(manifest(tmp_path)) == ["a.mp3", "other.wav"]


@pytest.mark.parametrize(
    "how", ["lengths without words", "own lyrics", "rows of their own", "folders", "names"]
)
def test_other_songs_stay(how: str, tmp_path: Path, songs: Path) -> None:
    folder, entry = songs, {}
    song(songs, "a", caption=None if how == "lengths without words" else "pop")
    if how == "folders":
        folder = songs / "live"
        folder.mkdir()
        (folder / "a.txt").write_text("pop")
    write(folder / ("A b.mp3" if how == "names" else "a.mp3"), 9.0 if "lengths" in how else 4.0)
    if how == "own lyrics":
        (songs / "a.mp3.lyrics").write_text("la la la")
    if how == "rows of their own":
        (songs / "list.csv").write_text("file,caption\na.wav,x\na.mp3,y\nother.wav,z\n")
        entry = {"csv_file": "list.csv", "caption_strategy": "csv"}
    found = manifest(tmp_path, entry)
    assert len(found.samples) == 3 and not twice(found)


def test_a_subset_counts_songs_and_not_files(tmp_path: Path, songs: Path) -> None:
    for name in "abc":
        song(songs, name)
        write(songs / f"{name}.mp3")
    found = manifest(tmp_path, {"max_num_samples": 3})
    assert len(found.samples) == 3 and len({Path(name).stem for name in names(found)}) == 3


# ── one file by several names ────────────────────────────────────────────────────────────────────────
def link(kind: str, goal: Path, path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    if kind == "hard":
        os.link(goal, path)
    else:
        path.symlink_to(goal if kind == "absolute" else os.path.relpath(goal, path.parent))


@pytest.mark.parametrize("kind", ["hard", "absolute", "relative"])
@pytest.mark.parametrize("place", ["z.wav", "0.wav", "best/a.wav", "Best/other name.wav"])
def test_links_to_one_song(kind: str, place: str, tmp_path: Path, songs: Path) -> None:
    link(kind, song(songs, "a"), songs / place)
    found = manifest(tmp_path)
    assert names(found) == ["a.wav", "other.wav"]
    assert twice(found) == [(place, "the same file as a.wav")]


def test_links_to_a_song_outside(tmp_path: Path, songs: Path) -> None:
    far = write(tmp_path / "far.wav")
    for name in ("a", "b"):
        link("absolute", far, songs / f"{name}.wav")
        (songs / f"{name}.txt").write_text(f"caption {name}")
    found = manifest(tmp_path)
    assert names(found) == ["a.wav", "other.wav"]
    assert "its caption 'caption b' is not trained on" in twice(found)[0][1]


def test_rows_of_a_list_that_reach_one_file(tmp_path: Path, songs: Path) -> None:
    link("relative", song(songs, "a"), songs / "b.wav")
    rows = "file,caption\na.wav,x\nb.wav,x\nother.wav,z\n"
    (songs / "list.csv").write_text(rows)
    found = manifest(tmp_path, {"type": "csv", "csv_file": "list.csv", "caption_strategy": "csv"})
    assert names(found) == ["a.wav", "other.wav"] and len(twice(found)) == 1


def test_a_copy_is_trained_on_and_said(tmp_path: Path, songs: Path) -> None:
    copy = song(songs, "a").read_bytes()
    (songs / "b.wav").write_bytes(copy)
    found = manifest(tmp_path)
    assert names(found) == ["a.wav", "b.wav", "other.wav"]
    assert "    b.wav: a.wav" in found.report.lines() and found.report.sets[0].copies == [("b.wav", "a.wav")]


# ── one folder by several names ──────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize("project", ["foo.als", "foo.als/"])
def test_a_link_to_itself_beside_a_project(project: str, tmp_path: Path, songs: Path) -> None:
    (songs / project).mkdir() if project.endswith("/") else (songs / project).write_bytes(b"x")
    (songs / "selfdir").symlink_to(".")
    found = manifest(tmp_path)
    assert names(found) == ["other.wav"]
    assert ("selfdir/", "the same folder as ./") in found.report.sets[0].no_songs


def test_a_folder_is_called_by_its_own_name(tmp_path: Path, songs: Path) -> None:
    song(songs / "real", "a")
    (songs / "link").symlink_to("real")
    found = manifest(tmp_path)
    assert names(found) == ["other.wav", "real/a.wav"]
    assert found.report.sets[0].no_songs == [("link/", "the same folder as real/")]
