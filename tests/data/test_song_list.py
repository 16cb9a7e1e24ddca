"""A CSV list of songs: nothing in it is passed over, nothing chosen and nothing read elsewhere unsaid."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from acestep_mlx.data.manifest import Manifest
from acestep_mlx.errors import ConfigError, DataError

from .songs import manifest, song

LIST = {"type": "csv", "csv_file": "list.csv", "caption_strategy": "csv"}


def read(root: Path, content: str | bytes, **entry: Any) -> Manifest:
    """What a data set of one song and a list makes of it."""
    song(root / "songs", "a", caption=None) if not (root / "songs").exists() else None
    data = content.encode() if isinstance(content, str) else content
    (root / "songs" / "list.csv").write_bytes(data)
    return manifest(root, {**LIST, **entry})


@pytest.fixture(autouse=True)
def songs(tmp_path: Path) -> Path:
    folder = tmp_path / "songs"
    folder.mkdir()
    song(folder, "a", caption=None)
    return folder


# ── rows without a file ──────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize(
    ("content", "places"),
    [
        ("filename,caption\n,lost\na.wav,y\n", [2]),
        ("filename,caption\na.wav,y\n  ,lost\n\n,lost too\n", [3, 5]),
        ('filename,caption\na.wav,"one\ntwo"\n,lost\n', [4]),
        ("filename,caption,bpm\n,,120\na.wav,y,\n", [2]),
        ("filename,caption\n,,lost behind the header\na.wav,y\n", [2]),
        ("sep=;\nfilename;caption\n;lost\na.wav;y\n", [3]),
        ("caption,filename\nlost\ny,a.wav\n", [2]),
    ],
)
def test_rows_that_name_no_file_are_counted_by_their_line(
    content: str, places: list[int], tmp_path: Path
) -> None:
    found = read(tmp_path, content)
    named = [(f"list.csv, line {line}", "no file name in this row") for line in places]
    assert found.report.sets[0].skipped == named
    assert f"1 of {1 + len(places)} songs" in found.report.lines()[0]
    (report,) = read(tmp_path, content, type="local").report.sets
    assert report.no_songs == named


def test_rows_without_any_text_are_no_rows(tmp_path: Path) -> None:
    found = read(tmp_path, "filename,caption\n,\n\n , \na.wav,y\n,,,\n")
    assert not found.skipped and len(found.samples) == 1


def test_a_list_of_nothing_but_rows_without_a_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"1 song skipped \(set/list\.csv, line 2: no file name"):
        read(tmp_path, "filename,caption\n,lost\n")


# ── where the list lies ──────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize("kind", ["csv", "local"])
@pytest.mark.parametrize(
    "wanted", ["../other.csv", "{root}/other.csv", "link.csv", "near/other.csv", "..\\other.csv"]
)
def test_a_list_outside_the_songs_folder_is_refused(
    wanted: str, kind: str, tmp_path: Path, songs: Path
) -> None:
    other = tmp_path / "other.csv"
    other.write_text("filename,caption\na.wav,x\n")
    (songs / "link.csv").symlink_to(other)
    (songs / "near").symlink_to(tmp_path)
    wanted = wanted.format(root=tmp_path)
    with pytest.raises(ConfigError, match="leads out of instance_data_dir") as error:
        manifest(tmp_path, {**LIST, "type": kind, "csv_file": wanted})
    assert f"csv_file={wanted}" in str(error.value)


@pytest.mark.parametrize(
    "wanted",
    [
        "list.csv",
        "below/list.csv",
        "songs/list.csv",
        "{root}/songs/list.csv",
        "link.csv",
        "below/../list.csv",
    ],
)
def test_a_list_in_or_below_the_songs_folder_is_read(
    wanted: str, tmp_path: Path, songs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where another of the same name lies in the working directory."""
    monkeypatch.chdir(tmp_path)
    (songs / "below").mkdir()
    for place in (songs, songs / "below"):
        (place / "list.csv").write_text("filename,caption\na.wav,x\n")
    (tmp_path / "list.csv").write_text("filename,caption\na.wav,not this\n")
    (songs / "link.csv").symlink_to("below/list.csv")
    found = manifest(tmp_path, {**LIST, "csv_file": wanted.format(root=tmp_path)})
    assert found.samples[0].captions == ("x",)


# ── columns ──────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize(
    "header", ["file,caption,Caption", "FILE,file,caption", "file,caption,LYRICS,lyrics"]
)
def test_a_column_that_is_there_in_two_spellings_is_refused(header: str, tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"list\.csv has several columns '.*', '.*'; keep one of them, or set csv_"
    ):
        read(tmp_path, f"{header}\na.wav,a.wav,x,y\n")


def test_a_spelling_that_was_chosen_is_taken(tmp_path: Path) -> None:
    found = read(tmp_path, "file,caption,Caption\na.wav,x,y\n", csv_caption_column="Caption")
    assert found.samples[0].captions == ("y",)
    with pytest.raises(ConfigError, match="several columns 'words'; keep one of them"):
        read(tmp_path, "file,words,words\na.wav,x,y\n", csv_caption_column="words")


def test_one_column_is_not_caption_and_lyrics(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'lyrics' cannot be both the caption and the lyrics"):
        read(tmp_path, "file,lyrics\na.wav,la\n", csv_caption_column="lyrics")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("file,caption,text\na.wav,x,y\n", ("caption", "caption", "text")),
        ("file,text,prompt\na.wav,x,y\n", ("caption", "prompt", "text")),
        ("path,filename,caption\nb.wav,a.wav,x\n", ("filename", "filename", "path")),
        ("file,caption,lyrics,norm_lyrics\na.wav,x,la,lo\n", ("lyrics", "lyrics", "norm_lyrics")),
        ("file,caption,text\na.wav,x,\n", None),
        ("file,caption,bpm\na.wav,x,120\n", None),
    ],
)  # fmt: skip
def test_columns_of_the_same_meaning_are_named(
    content: str, said: tuple[str, str, str] | None, tmp_path: Path
) -> None:
    found = read(tmp_path, content)
    lines = []
    if said is not None:
        kind, column, other = said
        lines = [f"column {column!r} is the {kind}, {other!r} is not read; csv_{kind}_column chooses"]
    assert found.report.sets[0].sources == [("list.csv", line) for line in lines]
    assert [text for text, _ in found.report.remarks() if "is not read" in text] == [
        f"set, list.csv: {line}" for line in lines
    ]
    assert all(f"    list.csv: {line}" in found.report.lines() for line in lines)


def test_a_column_that_was_chosen_is_not_spoken_of(tmp_path: Path) -> None:
    found = read(tmp_path, "file,caption,text\na.wav,x,y\n", csv_caption_column="text")
    assert found.samples[0].captions == ("y",) and not found.report.sets[0].sources


# ── what is said ─────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "utf-16"])
def test_an_encoding_that_was_taken_for_granted_is_said(encoding: str, tmp_path: Path) -> None:
    found = read(tmp_path, "filename,caption\na.wav,café jazz\n".encode(encoding))
    assert found.samples[0].captions == ("café jazz",)
    read_as = "UTF-16" if encoding == "utf-16" else "Windows-1252; save it as UTF-8"
    assert f"    list.csv: read as {read_as}" in found.report.lines()


@pytest.mark.parametrize(
    "name", ["https://example.com/a.mp3", "HTTP://e.com//x/../a.wav", "s3://bucket/a.wav", "file:///a.wav"]
)
def test_web_addresses_stay_as_they_are_written(name: str, tmp_path: Path) -> None:
    found = read(tmp_path, f"filename,caption\na.wav,x\n{name},y\n")
    assert found.report.sets[0].skipped == [
        (name, "a web address; download the song into the folder and name its file")
    ]
