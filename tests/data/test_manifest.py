"""What is found in folders and lists, what is left out, and that every omission is counted and named."""

from __future__ import annotations

import json
import os
import shutil
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf

from acestep_mlx.config.read_datasets import read_datasets
from acestep_mlx.config.run import RunConfig
from acestep_mlx.data.facts import BLOCKS, FileAudio, examine
from acestep_mlx.data.manifest import build_manifest, index_path
from acestep_mlx.errors import ConfigError, DataError
from acestep_mlx.io.hashes import hash_blocks
from acestep_mlx.io.progress import Advance
from acestep_mlx.training.preflight import check_caches

from .songs import RATE, config, manifest, song, tone, write


@pytest.fixture
def songs(tmp_path: Path) -> Path:
    folder = tmp_path / "songs"
    folder.mkdir()
    return folder


def captions(root: Path, **entry: object) -> dict[str, tuple[str, ...]]:
    return {s.id.removeprefix("set/"): s.captions for s in manifest(root, dict(entry)).samples}


def test_textfile_captions_and_lyrics(tmp_path: Path, songs: Path) -> None:
    song(songs, "a", caption="pop\n\n rock \n", lyrics="[verse]\nla la")
    song(songs, "b", caption=None)
    song(songs / "sub", "c", caption="jazz") if (songs / "sub").mkdir() is None else None
    found = manifest(tmp_path)
    assert [s.id for s in found.samples] == ["set/a.wav", "set/b.wav", "set/sub/c.wav"]
    assert [s.captions for s in found.samples] == [("pop", "rock"), ("",), ("jazz",)]
    assert [s.lyrics for s in found.samples] == ["[verse]\nla la", None, None]
    report = found.report.sets[0]
    assert report.no_caption == ["b.wav"] and report.no_lyrics == ["b.wav", "sub/c.wav"]
    assert report.captions == 4 and report.songs == 3


def test_upstream_names(tmp_path: Path, songs: Path) -> None:
    write(songs / "track.wav")
    (songs / "track_prompt.txt").write_text("rap, 90 bpm")
    (songs / "track_lyrics.txt").write_text("[verse]\nyo")
    (sample,) = manifest(tmp_path).samples
    assert sample.captions == ("rap, 90 bpm",) and sample.lyrics == "[verse]\nyo"
    (songs / "track.txt").write_text("ours wins")
    assert manifest(tmp_path).samples[0].captions == ("ours wins",)


def test_lyrics_filename_format(tmp_path: Path, songs: Path) -> None:
    song(songs, "a", lyrics="not this")
    (songs / "words").mkdir()
    (songs / "words" / "songs-a.wav.txt").write_text("but this")
    (sample,) = manifest(tmp_path, {"audio": {"lyrics_filename_format": "words/{parent}-{name}.txt"}}).samples
    assert sample.lyrics == "but this"


def test_filename_and_instanceprompt(tmp_path: Path, songs: Path) -> None:
    song(songs, "slow_jazz__ballad", caption="ignored")
    assert captions(tmp_path, caption_strategy="filename") == {"slow_jazz__ballad.wav": ("slow jazz ballad",)}
    found = captions(tmp_path, caption_strategy="instanceprompt", instance_prompt="zyx style")
    assert found == {"slow_jazz__ballad.wav": ("zyx style",)}


def test_trigger_words_and_shuffles(tmp_path: Path, songs: Path) -> None:
    song(songs, "a", caption="pop, fast, loud\nrock")
    assert captions(tmp_path, instance_prompt="zyx", prepend_instance_prompt=True)["a.wav"] == (
        "zyx pop, fast, loud", "zyx rock",
    )  # fmt: skip
    assert captions(tmp_path, instance_prompt="zyx", only_instance_prompt=True)["a.wav"] == ("zyx",)
    shuffled = captions(tmp_path, caption_shuffle={"enable": True, "count": 3})["a.wav"]
    assert shuffled[0] == "pop, fast, loud" and "rock" in shuffled and len(shuffled) > 2
    assert captions(tmp_path, disable_multiline_split=True)["a.wav"] == ("pop, fast, loud rock",)


CSV = """file_name,caption,lyrics
a.wav,calm piano,la la
sub/b.wav,metal,
absent.wav,x,
../out.wav,x,
/etc/passwd,x,
"""


def test_csv_list(tmp_path: Path, songs: Path) -> None:
    song(songs, "a", lyrics="beside")
    (songs / "sub").mkdir()
    song(songs / "sub", "b", lyrics="beside b")
    song(tmp_path, "out")
    song(songs, "unlisted")
    (songs / "list.csv").write_bytes(CSV.encode("utf-8-sig"))
    found = manifest(tmp_path, {"type": "csv", "csv_file": "list.csv", "caption_strategy": "csv"})
    assert {s.id: (s.captions, s.lyrics) for s in found.samples} == {
        "set/a.wav": (("calm piano",), "la la"),
        "set/sub/b.wav": (("metal",), "beside b"),
    }
    reasons = dict(found.skipped)
    assert reasons["set/absent.wav"] == "no such file"
    assert "out of" in reasons["set/../out.wav"] and "out of" in reasons["set//etc/passwd"]
    local = manifest(tmp_path, {"csv_file": "list.csv", "caption_strategy": "csv"})
    assert [s.captions for s in local.samples] == [("calm piano",), ("metal",), ("",)]


@pytest.mark.parametrize(
    ("content", "part"),
    [("", "no filename column"), ("a;b\n1;2\n", "no filename column"), ("file,caption\n", "lists no songs"),
     ("file,words\na.wav,x\n", "no caption column"), ('file,caption\n"a.wav,x\n', "line 2: not a CSV list"),
     ("file,caption\n" + "x" * 200_000 + ",y\n", "not a CSV list")],
)  # fmt: skip
def test_broken_csv_lists_are_one_line(content: str, part: str, tmp_path: Path, songs: Path) -> None:
    song(songs, "a")
    (songs / "list.csv").write_text(content)
    with pytest.raises((DataError, ConfigError), match=part) as error:
        manifest(tmp_path, {"type": "csv", "csv_file": "list.csv", "caption_strategy": "csv"})
    assert "\n" not in str(error.value)


def test_columns_that_do_not_exist(tmp_path: Path, songs: Path) -> None:
    song(songs, "a")
    (songs / "list.csv").write_text("file,caption\na.wav,x\n")
    entry = {
        "type": "csv",
        "csv_file": "list.csv",
        "caption_strategy": "csv",
        "csv_caption_column": "captoin",
    }
    with pytest.raises(ConfigError, match="did you mean 'caption'"):
        manifest(tmp_path, entry)
    with pytest.raises(DataError, match=r"no list absent\.csv"):
        manifest(tmp_path, {**entry, "csv_file": "absent.csv"})


# ── sound ────────────────────────────────────────────────────────────────────────────────────────────
def damaged(folder: Path) -> dict[str, str]:
    """Files that cannot be trained on → part of the reason that must be given."""
    folder.mkdir(exist_ok=True)
    whole = write(folder / "whole.wav", 6.0).read_bytes()
    sf.write(folder / "whole.flac", tone(6.0), RATE)
    flac = (folder / "whole.flac").read_bytes()
    (folder / "whole.flac").unlink()
    sf.write(folder / "silent.wav", np.zeros((4 * RATE, 2)), RATE)
    sf.write(folder / "nearly_silent.wav", np.full((4 * RATE, 1), 3e-5), RATE, subtype="FLOAT")
    mostly = np.zeros((40 * RATE, 1), np.float32)
    mostly[: RATE // 2] = tone(0.5)
    sf.write(folder / "mostly_zero.wav", mostly, RATE)
    sf.write(folder / "not_finite.wav", np.full((4 * RATE, 1), np.nan, np.float32), RATE, subtype="FLOAT")
    sf.write(folder / "no_samples.wav", np.zeros((0, 2)), RATE)
    files = {
        "empty.wav": b"",
        "text.mp3": b"this is not sound\n" * 20,
        "truncated.wav": whole[: len(whole) // 2],
        "truncated.flac": flac[: len(flac) // 3],
        "header_only.wav": whole[:44],
        "junk.ogg": bytes(range(256)) * 8,
        "junk.m4a": b"\x00\x00\x00\x20ftypM4A " + bytes(100),
        "junk.opus": b"OggS" + bytes(60),
        "zeros.flac": bytes(4096),
    }
    for name, data in files.items():
        (folder / name).write_bytes(data)
    (folder / "folder.wav").mkdir()
    (folder / "broken_link.wav").symlink_to(folder / "nowhere.wav")
    reasons = {
        "empty.wav": "empty", "silent.wav": "silent", "nearly_silent.wav": "silent",
        "mostly_zero.wav": "silent",
        "not_finite.wav": "finite", "truncated.wav": "truncated", "truncated.flac": "", "text.mp3": "",
        "header_only.wav": "", "junk.ogg": "", "junk.m4a": "", "junk.opus": "", "zeros.flac": "",
        "no_samples.wav": "", "broken_link.wav": "broken link",
    }  # fmt: skip
    return reasons


@pytest.mark.parametrize("kind", ["csv", "local"])
def test_a_row_without_a_file_name_is_named(kind: str, tmp_path: Path) -> None:
    song(tmp_path / "songs", "a")
    (tmp_path / "songs" / "list.csv").write_text("filename,caption\n,lost\na.wav,x\n , \n,\n")
    found = manifest(tmp_path, {"type": kind, "csv_file": "list.csv", "caption_strategy": "csv"})
    (report,) = found.report.sets
    assert [sample.id for sample in found.samples] == ["set/a.wav"]
    named = report.skipped if kind == "csv" else report.no_songs
    assert named == [("list.csv, line 2", "no file name in this row")]


@pytest.mark.parametrize("header", ["file,caption,caption", "file,file,caption", "caption,file,caption"])
def test_a_column_that_is_there_twice_is_refused(header: str, tmp_path: Path) -> None:
    song(tmp_path / "songs", "a")
    (tmp_path / "songs" / "list.csv").write_text(f"{header}\na.wav,a.wav,a.wav\n")
    with pytest.raises(ConfigError, match=r"list\.csv has several columns '(file|caption)'; keep one"):
        manifest(tmp_path, {"type": "csv", "csv_file": "list.csv", "caption_strategy": "csv"})


def test_other_columns_may_be_there_twice(tmp_path: Path) -> None:
    song(tmp_path / "songs", "a")
    (tmp_path / "songs" / "list.csv").write_text("file,note,note,caption\na.wav,1,2,x\n")
    found = manifest(tmp_path, {"type": "csv", "csv_file": "list.csv", "caption_strategy": "csv"})
    assert found.samples[0].captions == ("x",)


def test_damaged_files_are_skipped_counted_and_named(tmp_path: Path, songs: Path) -> None:
    reasons = damaged(songs)
    if os.geteuid():
        write(songs / "locked.wav").chmod(0)
        reasons["locked.wav"] = "cannot be read"
    found = manifest(tmp_path)
    assert [s.id for s in found.samples] == ["set/whole.wav"]
    skipped = {name.removeprefix("set/"): reason for name, reason in found.skipped}
    assert set(skipped) == set(reasons)
    for name, part in reasons.items():
        assert part in skipped[name] and "\n" not in skipped[name] and skipped[name], name
    text = "\n".join(found.report.lines(0))
    assert f"skipped: {len(reasons)}" in text and all(name in text for name in reasons)
    assert all(name in "\n".join(found.report.lines(1)) for name in reasons), "each skipped one is named"


def test_nothing_left_is_one_line(tmp_path: Path, songs: Path) -> None:
    (songs / "empty.wav").write_bytes(b"")
    with pytest.raises(DataError, match=r"nothing left.*set/empty\.wav: empty file") as error:
        manifest(tmp_path)
    assert "\n" not in str(error.value) and "1 song skipped" in str(error.value)
    for number in range(5):
        (songs / f"bad{number}.wav").write_bytes(b"")
    with pytest.raises(DataError, match=r"6 songs skipped .* … and 3 more") as error:
        manifest(tmp_path)
    assert len(error.value.details) == 6
    assert all(line.endswith(".wav: empty file") for line in error.value.details)


@pytest.mark.parametrize(
    ("make", "part"), [("absent", "does not exist"), ("file", "not a folder"), ("bare", "no audio files")]
)
def test_folders_that_cannot_be_used(make: str, part: str, tmp_path: Path) -> None:
    if make == "file":
        (tmp_path / "songs").write_text("x")
    elif make == "bare":
        (tmp_path / "songs").mkdir()
        (tmp_path / "songs" / "cover.jpg").write_bytes(b"x")
        (tmp_path / "songs" / "._hidden.wav").write_bytes(b"x")
    with pytest.raises(DataError, match=part):
        manifest(tmp_path)


@pytest.mark.parametrize("name", ["bad_caption.txt", "bad_caption.lyrics"])
def test_texts_that_cannot_be_read_skip_the_song(name: str, tmp_path: Path, songs: Path) -> None:
    song(songs, "good")
    song(songs, "bad_caption")
    (songs / name).write_bytes("夜に駆ける、静かな歌".encode("shift_jis"))
    found = manifest(tmp_path)
    assert len(found.samples) == 1 and name in found.skipped[0][1]


def test_a_text_in_windows_1252_is_read_and_noted(tmp_path: Path, songs: Path) -> None:
    song(songs, "a")
    (songs / "a.txt").write_bytes("café, naïve".encode("cp1252"))
    found = manifest(tmp_path)
    assert found.samples[0].captions == ("café, naïve",)
    assert "Windows-1252" in found.report.sets[0].notes[0][1]


def test_links(tmp_path: Path, songs: Path) -> None:
    """Links that the user made are followed, loops end, and lists may not lead out through a link."""
    outside = tmp_path / "outside"
    song(outside, "far") if outside.mkdir() is None else None
    song(songs, "near")
    (songs / "linked").symlink_to(outside)
    (songs / "loop").symlink_to(songs)
    found = manifest(tmp_path)
    assert [s.id for s in found.samples] == ["set/linked/far.wav", "set/near.wav"]
    assert found.report.sets[0].no_songs == [("loop/", "the same folder as ./")]
    (songs / "one.wav").symlink_to(outside / "far.wav")
    (songs / "list.csv").write_text("file,caption\none.wav,x\nnear.wav,y\nlinked/far.wav,z\n")
    found = manifest(tmp_path, {"type": "csv", "csv_file": "list.csv", "caption_strategy": "csv"})
    assert [s.id for s in found.samples] == ["set/near.wav"] and len(found.skipped) == 2


@pytest.mark.parametrize(("mode", "start"), [("beginning", 0.0), ("end", 6.0), ("random", None)])
def test_truncation(mode: str, start: float | None, tmp_path: Path, songs: Path) -> None:
    song(songs, "long", 10.0)
    song(songs, "short", 2.0)
    entry = {"audio": {"max_duration_seconds": 4, "truncation_mode": mode}}
    long, short = manifest(tmp_path, entry).samples
    assert long.seconds == 4.0 and (
        long.start == pytest.approx(start) if start is not None else 0 <= long.start <= 6
    )
    assert long.start == manifest(tmp_path, entry).samples[0].start
    if mode == "random":
        assert long.start != manifest(tmp_path, entry, seed=43).samples[0].start
    assert (short.seconds, short.samples, short.frames) == (2.0, 3 * 44100, 33)
    report = manifest(tmp_path, entry).report.sets[0]
    assert [name for name, _ in report.cut] == ["long.wav"] and [n for n, _ in report.padded] == ["short.wav"]


def test_minimum_and_buckets(tmp_path: Path, songs: Path) -> None:
    for name, seconds in (("a", 2.0), ("b", 3.0), ("c", 3.1), ("d", 6.0), ("e", 8.9)):
        song(songs, name, seconds)
    found = manifest(tmp_path, {"audio": {"min_duration_seconds": 2.5}})
    assert [s.bucket for s in found.samples] == [33, 65, 65, 97]
    assert "shorter than min_duration_seconds" in found.skipped[0][1]
    assert all(s.frames <= s.bucket for s in found.samples)
    wide = manifest(tmp_path, {"audio": {"duration_interval": 15}})
    assert {s.bucket for s in wide.samples} == {162}


@pytest.mark.parametrize(("seconds", "kept"), [(3.99, False), (4.0, True), (4.01, True)])
def test_a_song_of_just_the_minimum_is_one(seconds: float, kept: bool, tmp_path: Path, songs: Path) -> None:
    song(songs, "long", 9.0)
    song(songs, "a", seconds)
    found = manifest(tmp_path, {"audio": {"min_duration_seconds": 4}})
    assert ("set/a.wav" in [sample.id for sample in found.samples]) == kept
    assert [name for name, _ in found.skipped] == ([] if kept else ["set/a.wav"])


@pytest.mark.parametrize(("seconds", "cut"), [(5.99, False), (6.0, False), (6.01, True)])
def test_a_song_of_just_the_maximum_is_whole(seconds: float, cut: bool, tmp_path: Path, songs: Path) -> None:
    song(songs, "a", seconds)
    (found,) = manifest(tmp_path, {"audio": {"max_duration_seconds": 6, "truncation_mode": "end"}}).samples
    assert found.cut == cut and found.start == pytest.approx(0.01 if cut else 0, abs=1e-3)
    assert found.seconds == pytest.approx(min(seconds, 6), abs=1e-3)


def test_max_num_samples_is_a_fixed_subset(tmp_path: Path, songs: Path) -> None:
    for i in range(8):
        song(songs, f"s{i}", 3.0)
    (songs / "s3.wav").write_bytes(b"")
    first = [s.id for s in manifest(tmp_path, {"max_num_samples": 3}).samples]
    assert len(first) == 3 and first == [s.id for s in manifest(tmp_path, {"max_num_samples": 3}).samples]
    assert first != [s.id for s in manifest(tmp_path, {"id": "other", "max_num_samples": 3}).samples]
    assert manifest(tmp_path, {"max_num_samples": 3}).report.sets[0].left_out >= 4
    assert len(manifest(tmp_path, {"max_num_samples": 100}).samples) == 7


def test_several_sets(tmp_path: Path, songs: Path) -> None:
    song(songs, "a")
    other = tmp_path / "other"
    other.mkdir()
    song(other, "a")
    found = manifest(tmp_path, {"id": "one"}, {"id": "two", "instance_data_dir": str(other)},
                     {"id": "off", "disabled": True, "instance_data_dir": "nowhere"})  # fmt: skip
    assert [s.id for s in found.samples] == ["one/a.wav", "two/a.wav"]
    assert "disabled: off" in found.report.lines()


def test_decomposed_names_of_macs_meet_composed_lists(tmp_path: Path, songs: Path) -> None:
    write(songs / unicodedata.normalize("NFD", "é.wav"))
    write(songs / unicodedata.normalize("NFC", "ü.wav"))
    (songs / "list.csv").write_text(unicodedata.normalize("NFC", "file,caption\né.wav,one\nü.wav,two\n"))
    for kind in ("csv", "local"):
        found = manifest(tmp_path, {"type": kind, "csv_file": "list.csv", "caption_strategy": "csv"})
        assert sorted(s.captions[0] for s in found.samples) == ["one", "two"], found.skipped


# ── index ────────────────────────────────────────────────────────────────────────────────────────────
def test_files_are_decoded_once_until_they_change(tmp_path: Path, songs: Path) -> None:
    song(songs, "a")
    song(songs, "b")
    settings = config(tmp_path)
    seen: list[str] = []

    def progress(advance: Advance) -> None:
        seen.append(Path(advance.note).name)

    before = build_manifest(settings, progress)
    assert seen == ["a.wav", "b.wav"]
    build_manifest(settings, progress)
    assert len(seen) == 2
    song(songs, "b", 5.0)
    after = build_manifest(settings, progress)
    assert seen[2:] == ["b.wav"] and after.samples[1].seconds == 5.0
    assert before.signature != after.signature and before.samples[0] == after.samples[0]


def test_a_damaged_index_is_built_again(tmp_path: Path, songs: Path) -> None:
    song(songs, "a")
    settings = config(tmp_path)
    path = index_path(settings)
    assert path is not None
    for content in (
        b"",
        b"{",
        b"[]",
        b'{"version": 1, "facts": {"x": {"y": 1}}}',
        b"\xff\xfe",
    ):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
        assert len(build_manifest(settings).samples) == 1
        assert json.loads(path.read_text())["facts"]


def test_nothing_is_written_without_caches(tmp_path: Path, songs: Path) -> None:
    song(songs, "a")
    manifest(tmp_path, vae_cache_disable=True)
    assert not (tmp_path / "cache").exists()


def test_a_file_that_vanishes_is_named(tmp_path: Path) -> None:
    facts = examine(FileAudio(tmp_path / "gone.wav"))
    assert facts.problem and facts.content == ""


def test_the_report_in_words(tmp_path: Path, songs: Path) -> None:
    song(songs, "a", lyrics="[verse]\nHello darkness my old friend\nI have come to talk with you again")
    song(songs, "b", 2.0, caption=None)
    (songs / "c.mp3").write_bytes(b"junk")
    text = "\n".join(manifest(tmp_path, {"repeats": 2}).report.lines())
    for part in ("lengths (3 s steps): 3 s × 1, 6 s × 1",
                 "2 of 3 songs", "3 times per epoch", "skipped: 1", "c.mp3", "padded: 1",
                 "without caption: 1", "without lyrics: 1", "lines by language: en 2"):  # fmt: skip
        assert part in text, text


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="needs FFmpeg")
def test_every_number_of_the_report(tmp_path: Path) -> None:
    """Of two sets: one whose songs are cut, padded, left out and skipped, and one that is read in a chain."""
    first, second = tmp_path / "first", tmp_path / "second"
    song(first, "long", 9.0, "pop\nrock", "[verse]\none\ntwo\n")
    song(first, "short", 2.0, None)
    song(first, "tiny", 0.5)
    for name in ("a", "b", "c"):
        song(second, name, 4.0, "jazz", "la la la\n")
    audio = {"max_duration_seconds": 6, "min_duration_seconds": 1, "truncation_mode": "end"}
    entries = (
        {"instance_data_dir": str(first), "repeats": 1, "audio": audio},
        {"instance_data_dir": str(second), "max_num_samples": 2, "probability": 0.5},
    )
    report = manifest(tmp_path, *entries).report
    one, two = report.sets
    assert not report.disabled and [one.seconds, two.seconds] == [6 + 2, 4 + 4]
    assert (one.id, one.files, one.songs, one.captions, one.left_out) == ("set", 3, 2, 3, 0)
    assert (two.id, two.files, two.songs, two.captions, two.left_out) == ("set1", 3, 2, 2, 1)
    assert [name for name, _ in one.skipped] == ["tiny.wav"] and two.skipped == []
    assert one.padded == [("short.wav", "2.0 s, padded with silence to 3 s")] and two.padded == []
    assert one.cut == [("long.wav", "6 s kept from 3 s")] and two.cut == []
    assert (one.no_caption, one.no_lyrics) == (["short.wav"], ["short.wav"])
    assert two.no_caption == two.no_lyrics == one.again == one.counted == []
    assert sum(one.languages().values()) == 2 and sum(two.languages().values()) == 1
    assert one.buckets == {33: 1, 65: 1} and sum(two.buckets.values()) == 2
    lines = report.lines()
    assert "data set set: 2 of 3 songs, 8.0 s, 3 captions, 2 times per epoch" in lines
    assert "data set set1: 2 of 3 songs, 8.0 s, 2 captions, 0.5 times per epoch" in lines


@pytest.mark.parametrize("remember", [False, True])
def test_only_a_run_remembers_what_its_songs_are(remember: bool, tmp_path: Path, songs: Path) -> None:
    song(songs, "a")
    found = [build_manifest(config(tmp_path), remember=remember).samples for _ in range(2)]
    assert found[0] == found[1] and (tmp_path / "cache").exists() == remember


@pytest.mark.slow
def test_formats_of_every_kind(tmp_path: Path, songs: Path) -> None:
    import subprocess

    source = write(tmp_path / "source.wav", 4.0, rate=44100)
    for ending in ("wav", "flac", "aiff", "mp3", "ogg", "opus", "m4a", "aac", "wma"):
        command = ["ffmpeg", "-loglevel", "error", "-i", str(source)]
        command += ["-strict", "-2"] if ending == "opus" else []
        subprocess.run([*command, str(songs / f"{ending} song.{ending}")], check=True)
    found = manifest(tmp_path)
    assert not found.skipped
    assert {Path(s.id).suffix for s in found.samples} == {
        ".wav", ".flac", ".aiff", ".mp3", ".ogg", ".opus", ".m4a", ".aac", ".wma",
    }  # fmt: skip
    assert all(abs(s.seconds - 4.0) < 0.15 for s in found.samples)


@pytest.mark.parametrize(
    "change",
    [{"duration": "long"}, {"duration": None}, {"duration": -1}, {"duration": float("nan")}, {"content": 7},
     {"problem": ["x"]}, {"former": "1"}, {"misread": 1}, {"counted": 3}, {"more": 1}],
)  # fmt: skip
def test_an_index_of_another_shape_is_built_again(
    change: dict[str, object], tmp_path: Path, songs: Path
) -> None:
    song(songs, "a")
    settings = config(tmp_path)
    before = build_manifest(settings).samples
    path = index_path(settings)
    assert path is not None
    content = json.loads(path.read_text())
    for facts in content["facts"].values():
        facts.update(change)
    path.write_text(json.dumps(content))
    assert build_manifest(settings).samples == before


@pytest.mark.parametrize("change", ["length", "problem", "swapped", "moved", "no checksums"])
def test_an_edited_entry_of_the_index_is_measured_again(change: str, tmp_path: Path, songs: Path) -> None:
    song(songs, "a", seconds=6)
    song(songs, "b", seconds=4)
    settings = config(tmp_path)
    before = build_manifest(settings).samples
    path = index_path(settings)
    assert path is not None
    whole = path.read_text()
    content = json.loads(whole)
    first, second = content["facts"].values()
    if change == "length":
        first["duration"] = 3.5
    elif change == "problem":
        second["problem"] = "silent"
    elif change == "swapped":
        first["duration"], second["duration"] = second["duration"], first["duration"]
    elif change == "moved":  # whole, to each other's song
        for part in ("facts", "checksums"):
            content[part] = dict(zip(content[part], reversed(content[part].values()), strict=True))
    else:  # as an earlier version left it
        first["duration"] = 3.5
        del content["checksums"]
    path.write_text(json.dumps(content))
    measured: list[str] = []
    again = build_manifest(settings, lambda advance: measured.append(Path(advance.note).name))
    assert again.samples == before
    assert len(measured) == (1 if change in ("length", "problem") else 2)
    assert json.loads(path.read_text()) == json.loads(whole)
    measured.clear()
    build_manifest(settings, lambda advance: measured.append(advance.note))
    assert not measured


@pytest.mark.parametrize("place", [0, 60, -1, "middle"])
def test_a_file_with_another_content_of_the_same_size_and_time_has_another_stamp(
    place: int | str, tmp_path: Path
) -> None:
    """As a restored backup or `cp -p` leaves it."""
    path = tmp_path / "a.wav"
    data = bytearray(range(256)) * 1000
    path.write_bytes(data)
    before, status = FileAudio(path).stamp(), path.stat()
    data[len(data) * 7 // 15 if isinstance(place, str) else place] ^= 0x55
    path.write_bytes(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert FileAudio(path).stamp() != before
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert FileAudio(path).stamp() != before


@pytest.mark.parametrize("size", [0, 1, 100, 4096, 4097, 65536, 1_000_003])
def test_blocks_of_a_song_reach_from_its_first_byte_to_its_last(size: int) -> None:
    def hashed(content: bytes) -> str:
        return hash_blocks(len(content), lambda at, n: content[at : at + n], BLOCKS)

    content = np.random.default_rng(size).bytes(size)
    found = {hashed(content)}
    places = {place for place in (0, 4095, size - 4096, size - 1) if 0 <= place < size}
    for place in places:
        found.add(hashed(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]))
    assert len(found) == 1 + len(places)
    assert hashed(content) == hashed(bytes(content))


def checked(settings: RunConfig) -> None:
    check_caches(settings, read_datasets(settings))


@pytest.mark.parametrize("key", ["cache_dir_vae", "cache_dir", "config", "cache_dir_text", "run"])
def test_every_folder_of_caches_is_checked_at_once(key: str, tmp_path: Path, songs: Path) -> None:
    """A file in its place, or above it, was met only after the first song was encoded."""
    (tmp_path / "file").write_text("x")
    for bad in (str(tmp_path / "file"), str(tmp_path / "file" / "{id}")):
        texts: dict[str, object] = {"id": "texts", "dataset_type": "text_embeds"}
        entry: dict[str, object] = {}
        options: dict[str, object] = {}
        if key == "cache_dir_vae":
            entry = {key: bad}
        elif key == "cache_dir":
            texts[key] = bad
        elif key == "config":
            entry = {"type": "huggingface", "dataset_name": "a/b", "config": {"cache_dir": bad}}
        else:
            options = {"cache_dir" if key == "run" else key: bad}
        with pytest.raises(ConfigError, match=r"cache_dir.* is a file; name a folder") as error:
            checked(config(tmp_path, entry, texts, **options))
        assert str(tmp_path / "file") in str(error.value)
    checked(config(tmp_path, {}, {"id": "texts", "dataset_type": "text_embeds"}))


def test_caches_that_are_not_written_may_lie_anywhere(tmp_path: Path, songs: Path) -> None:
    (tmp_path / "file").write_text("x")
    checked(config(tmp_path, {"cache_dir_vae": str(tmp_path / "file"), "vae_cache_disable": True}))


@pytest.mark.parametrize("suffix", ["ogg", "opus"])
@pytest.mark.parametrize("share", [0.3, 0.7, 0.999])
def test_an_ogg_that_breaks_off_is_said(suffix: str, share: float, tmp_path: Path, songs: Path) -> None:
    sound = tone(5.0, 220.0, 48000)
    path = songs / f"a.{suffix}"
    sf.write(path, sound, 48000, format="OGG", subtype="OPUS" if suffix == "opus" else "VORBIS")
    assert not manifest(tmp_path).report.sets[0].notes
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    (song_note,) = manifest(tmp_path).report.sets[0].notes
    assert song_note == (path.name, "its Ogg stream has no end: it may be cut; what is there is taken")


@pytest.mark.parametrize("others", [["lrc"], ["srt", "lrc"]])
def test_which_lyrics_are_read_is_said(others: list[str], tmp_path: Path, songs: Path) -> None:
    song(songs, "a", lyrics="[verse]\nla la")
    for ending in others:
        (songs / f"a.{ending}").write_text("[00:01.00]lo lo")
    found = manifest(tmp_path)
    assert found.samples[0].lyrics == "[verse]\nla la"
    said = {note for _, note in found.report.sets[0].notes}
    assert said == {f"lyrics are read from a.lyrics, not from a.{ending}" for ending in others}


@pytest.mark.parametrize(("peak", "said"), [(0.9, False), (1.2, False), (2.0, True), (40.0, True)])
def test_sound_far_above_full_scale_is_said(peak: float, said: bool, tmp_path: Path, songs: Path) -> None:
    sound = tone(4.0)
    sf.write(songs / "a.wav", sound * (peak / np.abs(sound).max()), RATE, subtype="FLOAT")
    for _ in range(2):  # examined, and remembered
        notes = dict(manifest(tmp_path).report.sets[0].notes)
        assert (f"up to {peak:.3g} times full scale" in notes.get("a.wav", "")) is said


def test_a_song_that_is_held_out_and_trained_on_is_named(tmp_path: Path) -> None:
    for folder, names in (("songs", ("a", "b")), ("apart", ("x", "y"))):
        (tmp_path / folder).mkdir()
        for name in names:
            song(tmp_path / folder, name)
    shutil.copy(tmp_path / "songs" / "a.wav", tmp_path / "apart" / "x.wav")
    apart = {"id": "apart", "dataset_type": "eval", "instance_data_dir": str(tmp_path / "apart")}
    found = manifest(tmp_path, {}, apart)
    assert found.report.sets[1].trained_too == [("x.wav", "set/a.wav")]
    assert [sample.id for sample in found.held_out] == ["apart/y.wav"], "the evaluation is of the other"
    warnings = [text for text, level in found.report.remarks() if level == "warning"]
    assert any("x.wav is set/a.wav" in text and "cannot tell memorising" in text for text in warnings)
    lines = found.report.lines()
    assert any(line.startswith("data set apart: 2 of 2 songs") and "not trained on" in line for line in lines)
    with pytest.raises(DataError, match="nothing left to train on"):
        manifest(tmp_path, {"audio": {"min_duration_seconds": 100}}, apart)
    with pytest.raises(DataError, match=r"nothing left to evaluate on: 2 songs skipped .apart/x.wav"):
        manifest(tmp_path, {}, {**apart, "audio": {"min_duration_seconds": 100}})
    (tmp_path / "apart" / "y.wav").unlink()
    assert manifest(tmp_path, {}, apart).held_out == [], "then it is of the trained songs, and says so"
