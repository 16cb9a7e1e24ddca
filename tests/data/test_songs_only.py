"""Only songs become training data: what else lies in their folder is left out, counted and named."""

from __future__ import annotations

import json
import os
import subprocess
import unicodedata
from pathlib import Path

import pytest
import soundfile as sf

from acestep_mlx.cli import info
from acestep_mlx.config.request import Request
from acestep_mlx.data.manifest import Manifest, build_manifest
from acestep_mlx.errors import AceStepError, ConfigError, DataError
from acestep_mlx.io.filenames import Folders, as_stored, shown
from acestep_mlx.sampling.record import made_here, save_song

from ..conftest import require
from .songs import RATE, config, manifest, song, tone, write


@pytest.fixture
def songs(tmp_path: Path) -> Path:
    song(tmp_path / "songs", "mine")
    return tmp_path / "songs"


def names(found: Manifest) -> list[str]:
    return [sample.id.removeprefix("set/") for sample in found.samples]


def left_out(found: Manifest) -> dict[str, str]:
    return dict(found.report.sets[0].no_songs)


def ours(path: Path, lyrics: str = "la la") -> Path:
    """A song as `generate` writes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    record = {"request": Request(prompt="pop", lyrics=lyrics).to_dict()}
    save_song(path, tone(3.0, 440.0, 44100, 2), record, sample_rate=44100, facts={})
    return path


# ── this program's own output ────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize("suffix", ["wav", "flac", "mp3", "ogg"])
@pytest.mark.parametrize("lyrics", ["la", "la la la\n" * 20000])
def test_songs_made_here_are_known_by_their_tags(
    suffix: str, lyrics: str, tmp_path: Path, songs: Path
) -> None:
    path = ours(songs / f"pop.{suffix}", lyrics).rename(songs / f"renamed.{suffix}")
    assert made_here(path)
    found = manifest(tmp_path)
    assert names(found) == ["mine.wav"]
    assert left_out(found) == {f"renamed.{suffix}": "made by acestep-mlx"}
    assert f"renamed.{suffix}: made by acestep-mlx" in "\n".join(found.report.lines())


@pytest.mark.parametrize("suffix", ["m4a", "opus", "aiff", "flac", "wma"])
def test_they_are_known_after_a_conversion(suffix: str, tmp_path: Path, songs: Path) -> None:
    source = ours(tmp_path / "pop.flac")
    command = [require("ffmpeg"), "-loglevel", "error", "-i", str(source), "-map_metadata", "0"]
    command += ["-write_id3v2", "1"] if suffix == "aiff" else ["-strict", "-2"]
    subprocess.run([*command, str(songs / f"copy.{suffix}")], check=True)
    assert names(manifest(tmp_path)) == ["mine.wav"]


def test_a_song_that_speaks_of_the_program_is_a_song(tmp_path: Path, songs: Path) -> None:
    with sf.SoundFile(str(songs / "a.wav"), "w", RATE, 1) as file:
        file.comment = "I want to train acestep-mlx on this"
        file.write(tone(4.0))
    assert names(manifest(tmp_path)) == ["a.wav", "mine.wav"]


@pytest.mark.parametrize("place", ["output", "deep/er/output"])
def test_output_and_caches_inside_the_songs_folder(place: str, tmp_path: Path, songs: Path) -> None:
    write(songs / place / "validation" / "step_10_validation_0.wav")
    write(songs / place / "anything.wav")
    write(songs / "cache" / "stray.wav")
    options = {"output_dir": str(songs / place), "cache_dir": str(songs / "cache")}
    found = build_manifest(config(tmp_path, **options))
    assert names(found) == ["mine.wav"]
    assert left_out(found) == {f"{place}/": "output_dir of this run", "cache/": "a cache of this run"}


def test_the_working_directory_as_the_songs_folder(
    tmp_path: Path, songs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(songs)
    write(songs / "output" / "validation" / "step_2_x_0.wav")
    write(songs / "cache" / "x.wav")
    found = build_manifest(config(tmp_path, {"instance_data_dir": "."}, cache_dir="cache"))
    assert names(found) == ["mine.wav"] and set(left_out(found)) == {"output/", "cache/"}


@pytest.mark.parametrize("mark", ["metrics.jsonl", "checkpoint-5/training_state.json", "audio_index.json"])
def test_output_and_caches_of_other_runs(mark: str, tmp_path: Path, songs: Path) -> None:
    (songs / "old" / mark).parent.mkdir(parents=True)
    (songs / "old" / mark).write_text("{}")
    write((songs / "old" / mark).parent / "clips" / "clip.wav")
    found = manifest(tmp_path)
    assert names(found) == ["mine.wav"]
    (where, why), = left_out(found).items()  # fmt: skip
    assert where.startswith("old/") and "acestep-mlx" in why


def test_output_dir_is_the_songs_folder_itself(tmp_path: Path, songs: Path) -> None:
    write(songs / "validation" / "anything.wav")
    write(songs / "validation" / "base_x_0123abcd.wav")
    (songs / "metrics.jsonl").write_text("{}\n")
    found = build_manifest(config(tmp_path, output_dir=str(songs)))
    assert names(found) == ["mine.wav"] and len(left_out(found)) == 2


def test_clips_carry_the_tag(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Moved to another folder they are known all the same."""
    from acestep_mlx.config.read_run import load_config
    from acestep_mlx.families.model_folder import ModelFolder
    from acestep_mlx.report.events import Listeners, ValidationClip
    from acestep_mlx.training.validation import ACEStepPipeline, Validation

    sound = tone(1.0, 440.0, 44100, 2)[None]
    monkeypatch.setattr(ACEStepPipeline, "run", lambda *_, **__: sound)
    settings = load_config({"pretrained_model_name_or_path": str(tiny_model), "validation_prompt": "pop",
                            "validation_audio_duration": 1, "validation_num_inference_steps": 1,
                            "output_dir": str(tmp_path)})  # fmt: skip
    folder = ModelFolder.open(tiny_model)
    clips: list[str] = []
    listener = Listeners(
        [lambda event: clips.append(event.path) if isinstance(event, ValidationClip) else None]
    )
    Validation.encoded(settings, folder, tmp_path)(folder.load("transformer"), 1, listener)
    assert len(clips) == 2 and all(made_here(Path(clip)) for clip in clips)


def test_nothing_but_own_output_is_an_error_that_says_so(tmp_path: Path) -> None:
    ours(tmp_path / "songs" / "pop.wav")
    with pytest.raises(DataError, match=r"no audio files in .*left out: pop\.wav: made by acestep-mlx"):
        manifest(tmp_path)


def test_a_list_does_not_make_it_a_song(tmp_path: Path, songs: Path) -> None:
    ours(songs / "pop.wav")
    (songs / "list.csv").write_text("file,caption\npop.wav,x\nmine.wav,y\n")
    found = manifest(tmp_path, {"type": "csv", "csv_file": "list.csv", "caption_strategy": "csv"})
    assert names(found) == ["mine.wav"] and left_out(found) == {"pop.wav": "made by acestep-mlx"}


# ── other people's folders ───────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize(
    ("path", "named", "why"),
    [
        ("Song.band/Media/Audio Files/take.wav", "Song.band/", "package (.band)"),
        ("Song.logicx/Media/take.aif", "Song.logicx/", "package (.logicx)"),
        ("deep/Thing.APP/Contents/beep.wav", "deep/Thing.APP/", "package (.APP)"),
        ("Song.als/take.wav", "Song.als/", "package (.als)"),
        ("My Project/Samples/kick.wav", "My Project/", "Ableton project"),
        ("venv/lib/python3.11/site-packages/scipy/test.wav", "venv/", "environment"),
        ("env/share/beep.wav", "env/", "environment"),
        ("node_modules/x/beep.wav", "node_modules/", "environment"),
        (".venv/lib/beep.wav", ".venv/", "environment"),
        (".git/beep.wav", ".git/", "hidden folder"),
        ("._mine.wav", "._mine.wav", "hidden file"),
        ("album/.hidden.wav", "album/.hidden.wav", "hidden file"),
    ],
)
def test_packages_environments_and_hidden_files(
    path: str, named: str, why: str, tmp_path: Path, songs: Path
) -> None:
    sf.write(str(_made(songs / path).with_suffix(".wav")), tone(4.0), RATE)
    if "venv" in path:
        (songs / path.split("/")[0] / "pyvenv.cfg").write_text("home = /usr/bin\n")
    if path.startswith("env/"):
        (songs / "env" / "conda-meta").mkdir()
    if path.startswith("My Project"):
        (songs / "My Project" / "Song.als").write_bytes(b"x")
    found = manifest(tmp_path)
    assert names(found) == ["mine.wav"]
    (name, reason), = left_out(found).items()  # fmt: skip
    assert name == named and why in reason
    text = "\n".join(found.report.lines())
    assert "left out, no songs: 1" in text and named in text
    assert any(named in line for line, _ in found.report.remarks())


def _made(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def test_a_project_saved_among_the_songs_loses_its_takes_only(tmp_path: Path, songs: Path) -> None:
    (songs / "Set.als").write_bytes(b"x")
    write(songs / "Samples" / "Recorded" / "take.wav")
    write(songs / "album" / "samples" / "a.wav")
    assert names(manifest(tmp_path)) == ["album/samples/a.wav", "mine.wav"]


def test_folders_without_sound_are_not_worth_a_line(tmp_path: Path, songs: Path) -> None:
    (songs / ".git").mkdir()
    (songs / "__pycache__").mkdir()
    assert left_out(manifest(tmp_path)) == {}


# ── names ────────────────────────────────────────────────────────────────────────────────────────────
NAME = "Cafe\u0301 für Ångström が"
FORMS = [(a, b) for a in ("NFC", "NFD") for b in ("NFC", "NFD")]


@pytest.mark.parametrize(("on_disk", "written"), FORMS)
def test_composed_and_decomposed_names_meet_everywhere(on_disk: str, written: str, tmp_path: Path) -> None:
    disk, user = (unicodedata.normalize(form, NAME) for form in (on_disk, written))
    folder = tmp_path / disk
    write(folder / f"{disk}.wav")
    (folder / f"{user}.txt").write_text("pop")
    (folder / f"{user}.lyrics").write_text("la la")
    (sample,) = manifest(tmp_path, {"instance_data_dir": str(tmp_path / user)}).samples
    assert (sample.captions, sample.lyrics) == (("pop",), "la la")
    (folder / f"{user}.txt").rename(folder / f"{user}_prompt.txt")
    (folder / f"{disk} words").mkdir()
    (folder / f"{user}.lyrics").rename(folder / f"{disk} words" / f"{disk}.x")
    entry = {
        "instance_data_dir": str(tmp_path / user),
        "audio": {"lyrics_filename_format": f"{user} words/{{stem}}.x"},
    }
    (sample,) = manifest(tmp_path, entry).samples
    assert (sample.captions, sample.lyrics) == (("pop",), "la la")


def test_a_lyrics_format_with_backslashes(tmp_path: Path, songs: Path) -> None:
    (songs / "words").mkdir()
    (songs / "words" / "mine.txt").write_text("la la")
    entry = {"audio": {"lyrics_filename_format": "words\\{stem}.txt"}}
    assert manifest(tmp_path, entry).samples[0].lyrics == "la la"
    for outside in ("..\\out.txt", "words\\..\\..\\out.txt", "\\out.txt"):
        with pytest.raises(ConfigError, match="must stay inside the data set's folder"):
            manifest(tmp_path, {"audio": {"lyrics_filename_format": outside}})


@pytest.mark.parametrize(("on_disk", "written"), FORMS)
def test_lists_and_options_find_either_spelling(on_disk: str, written: str, tmp_path: Path) -> None:
    disk, user = (unicodedata.normalize(form, NAME) for form in (on_disk, written))
    write(tmp_path / "songs" / disk / f"{disk}.wav")
    (tmp_path / "songs" / f"{disk}.csv").write_text(f"file,caption\n{user}\\{user}.wav,pop\n")
    for kind in ("csv", "local"):
        entry = {"type": kind, "csv_file": f"{user}.csv", "caption_strategy": "csv"}
        assert [s.captions for s in manifest(tmp_path, entry).samples] == [("pop",)]
    assert as_stored(tmp_path / "songs" / user).exists()


@pytest.mark.parametrize(("on_disk", "written"), FORMS)
def test_commands_find_either_spelling(
    on_disk: str, written: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from acestep_mlx.cli import main

    disk, user = (unicodedata.normalize(form, NAME) for form in (on_disk, written))
    song(tmp_path / disk / "songs", "a")
    write(tmp_path / disk / f"{disk}.wav")
    settings = {"data_backend_config": [{"id": "x", "instance_data_dir": str(tmp_path / user / "songs")}]}
    (tmp_path / disk / f"{disk}.json").write_text(json.dumps(settings))
    for path in ("songs", f"{user}.wav", f"{user}.json"):
        with pytest.raises(SystemExit) as stop:
            main(["info", str(tmp_path / user / path)])
        out, err = capfd.readouterr()
        assert not stop.value.code and out, err


def test_the_exact_spelling_comes_first(tmp_path: Path) -> None:
    nfc, nfd = (unicodedata.normalize(form, "é") for form in ("NFC", "NFD"))
    for name in (nfc, nfd):
        (tmp_path / f"{name}.txt").write_text(name)
    for name in (nfc, nfd):
        assert Folders().find(tmp_path, f"{name}.txt") == tmp_path / f"{name}.txt"
        assert as_stored(tmp_path / f"{name}.txt") == tmp_path / f"{name}.txt"
    assert Folders().find(tmp_path, "other.txt") is None


@pytest.mark.parametrize(
    ("suffix", "why"),
    [
        ("mid", "holds notes"), ("KAR", "holds notes"), ("m4p", "copy-protected"), ("aax", "copy-protected"),
        ("pcm", "bare samples"), ("cda", "points to a track"),
    ],
)  # fmt: skip
def test_what_looks_like_a_song_and_cannot_be_read_is_named(
    suffix: str, why: str, tmp_path: Path, songs: Path
) -> None:
    (songs / f"a.{suffix}").write_bytes(bytes(100))
    found = manifest(tmp_path)
    assert names(found) == ["mine.wav"] and why in left_out(found)[f"a.{suffix}"]
    (songs / "list.csv").write_text(f"file,caption\nmine.wav,x\na.{suffix},y\n")
    found = manifest(tmp_path, {"type": "csv", "csv_file": "list.csv", "caption_strategy": "csv"})
    assert [name for name, _ in found.skipped] == [f"set/a.{suffix}"] and why in found.skipped[0][1]
    with pytest.raises(AceStepError, match=why):
        info._file(songs / f"a.{suffix}", None, None, None)


@pytest.mark.parametrize("suffix", ["wv", "AC3", "mov", "dsf", "shn", "avi", "mpc"])
def test_a_damaged_song_of_any_format_is_named(suffix: str, tmp_path: Path, songs: Path) -> None:
    (songs / f"a.{suffix}").write_bytes(b"no song" * 99)
    assert [name for name, _ in manifest(tmp_path).skipped] == [f"set/a.{suffix}"]


@pytest.mark.parametrize("name", ["sub\\a.wav", ".\\sub\\a.wav", "sub\\\\a.wav", "sub/a.wav", "./sub/a.wav"])
def test_paths_of_lists_with_backslashes(name: str, tmp_path: Path) -> None:
    write(tmp_path / "songs" / "sub" / "a.wav")
    (tmp_path / "songs" / "list.csv").write_text(f"file,caption\n{name},pop\n")
    for kind in ("csv", "local"):
        found = manifest(tmp_path, {"type": kind, "csv_file": "list.csv", "caption_strategy": "csv"})
        assert [s.captions for s in found.samples] == [("pop",)], found.skipped


def test_rows_without_a_song_are_named(tmp_path: Path, songs: Path) -> None:
    (songs / "l.csv").write_text("file,caption\nmine.wav,pop\ngone.wav,rock\n")
    found = manifest(tmp_path, {"csv_file": "l.csv", "caption_strategy": "csv"})
    assert [s.captions for s in found.samples] == [("pop",)]
    assert left_out(found) == {"gone.wav": "in the list, not in the folder"}


def test_a_list_in_a_folder_named_with_a_backslash(tmp_path: Path, songs: Path) -> None:
    (songs / "lists").mkdir()
    (songs / "lists" / "l.csv").write_text("file,caption\nmine.wav,pop\n")
    found = manifest(tmp_path, {"type": "csv", "csv_file": "lists\\l.csv", "caption_strategy": "csv"})
    assert names(found) == ["mine.wav"]


def test_backslashes_do_not_lead_out_and_may_be_in_a_name(tmp_path: Path, songs: Path) -> None:
    write(tmp_path / "out.wav")
    write(songs / "a\\b.wav")
    (songs / "list.csv").write_text("file,caption\n..\\out.wav,x\na\\b.wav,pop\nC:\\songs\\c.wav,x\n")
    found = manifest(tmp_path, {"type": "csv", "csv_file": "list.csv", "caption_strategy": "csv"})
    assert [s.captions for s in found.samples] == [("pop",)]
    assert sorted(reason for _, reason in found.skipped) == [
        "leads out of the data set's folder",
        "no such file",
    ]


# ── one bad name or file costs one song ──────────────────────────────────────────────────────────────
def test_odd_names_cost_nothing_and_impossible_ones_their_song(tmp_path: Path, songs: Path) -> None:
    long = "x" * 251
    write(songs / "a.wav").rename(songs / f"{long}.wav")  # NAME_lyrics.txt would be longer than a name may be
    raw = os.fsencode(songs) + b"/caf\xe9.wav"
    write(songs / "b.wav").rename(os.fsdecode(raw))
    write(songs / "c.wav").rename(songs / "two\nlines.wav")
    (songs / "list.csv").write_text(f"file,caption\n{'y' * 400}.wav,x\n{'z/' * 3000}a.wav,x\nmine.wav,y\n")
    found = manifest(tmp_path)
    assert names(found) == ["caf\\udce9.wav", "mine.wav", "two\\nlines.wav", f"{long}.wav"]
    assert not found.skipped and not found.report.sets[0].notes
    "\n".join(found.report.lines()).encode()
    listed = manifest(tmp_path, {"type": "csv", "csv_file": "list.csv", "caption_strategy": "csv"})
    assert names(listed) == ["mine.wav"] and len(listed.skipped) == 2


def test_a_folder_that_cannot_be_read_is_named(
    tmp_path: Path, songs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(songs / "locked" / "a.wav")
    scandir = os.scandir

    def refused(path: str | os.PathLike[str]) -> object:
        if Path(path).name == "locked":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refused)
    found = manifest(tmp_path)
    assert names(found) == ["mine.wav"]
    assert found.skipped == [("set/locked/", "folder cannot be read: Permission denied")]


@pytest.mark.parametrize("text", ["a.txt", "a.lyrics", "a.lrc"])
@pytest.mark.parametrize("target", ["pipe", "/dev/zero", "folder", "loop", "pipe itself"])
def test_texts_that_are_no_files_cost_their_song(target: str, text: str, tmp_path: Path, songs: Path) -> None:
    song(songs, "a", caption=None if text == "a.txt" else "pop")
    if target == "folder":
        (songs / text).mkdir()
    elif target == "pipe itself":
        os.mkfifo(songs / text)
    else:
        os.mkfifo(tmp_path / "pipe")
        goal = {"pipe": tmp_path / "pipe", "loop": songs / text}.get(target, target)
        (songs / text).symlink_to(goal)
    found = manifest(tmp_path)
    assert names(found) == ["mine.wav"]
    assert found.skipped[0][0] == "set/a.wav" and text in found.skipped[0][1]


def test_pipes_and_devices_with_a_songs_name(tmp_path: Path, songs: Path) -> None:
    os.mkfifo(songs / "a.wav")
    (songs / "b.wav").symlink_to("/dev/zero")
    found = manifest(tmp_path)
    assert names(found) == ["mine.wav"] and [why for _, why in found.skipped] == ["not a regular file"] * 2


def test_shown_names_fit_a_line() -> None:
    assert shown("é が.wav") == "é が.wav"
    assert shown("a\nb\x1b[31m\udce9") == "a\\nb\\x1b[31m\\udce9"


# ── what a run says ──────────────────────────────────────────────────────────────────────────────────
def test_the_report_says_what_it_means_to_lack_captions_or_lyrics(tmp_path: Path, songs: Path) -> None:
    song(songs, "a", caption=None, lyrics="la la")
    song(songs, "b", caption=None)
    report = manifest(tmp_path).report
    (captions, level), (lyrics, _) = report.remarks()
    assert captions.startswith("2 of 3 songs in set have no caption (a.wav; b.wav)") and level == "warning"
    assert "empty prompt" in captions and "instance_prompt" in captions
    assert lyrics.startswith("2 of 3 songs in set have no lyrics (b.wav; mine.wav)")
    assert "nothing were sung" in lyrics and "[inst]" in lyrics
    text = "\n".join(report.lines())
    assert (
        "without caption: 2, trained on an empty prompt" in text and "without lyrics: 2, trained as" in text
    )
    entry = {"instance_prompt": "zyx", "prepend_instance_prompt": True}
    assert "the trigger words alone" in manifest(tmp_path, entry).report.remarks()[0][0]
    only = manifest(tmp_path, {"instance_prompt": "zyx", "only_instance_prompt": True}).report.remarks()
    assert len(only) == 1 and "no lyrics" in only[0][0]


def test_a_run_names_twenty_that_are_left_out_and_counts_the_rest(tmp_path: Path, songs: Path) -> None:
    for number in range(23):
        (songs / f"._{number:02}.wav").write_bytes(b"x")
    said = [text for text, _ in manifest(tmp_path).report.remarks() if text.startswith("left out")]
    assert len(said) == 21 and said[0] == "left out, no song: ._00.wav (hidden file)"
    assert said[-1] == "left out, no songs: 3 more; --dry-run --verbose lists them"


def test_lists_are_told_where_their_captions_go(tmp_path: Path, songs: Path) -> None:
    (songs / "l.csv").write_text("file,caption\nmine.wav,\n")
    entry = {"type": "csv", "csv_file": "l.csv", "caption_strategy": "csv"}
    (captions, _), (lyrics, _) = manifest(tmp_path, entry).report.remarks()
    assert "its column" in captions and "their column" in lyrics


@pytest.mark.parametrize("name", ["$RECYCLE.BIN", "System Volume Information", "lost+found"])
def test_the_systems_own_folders(name: str, tmp_path: Path, songs: Path) -> None:
    write(songs / name / "deleted.wav", pitch=300)
    found = manifest(tmp_path)
    assert names(found) == ["mine.wav"]
    assert left_out(found) == {f"{name}/": "the system's own folder"}


LIST = {"type": "csv", "csv_file": "list.csv", "caption_strategy": "csv"}


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ("file,caption\na.wav,jazz, piano\nmine.wav,pop\n", "more columns than the header"),
        ("file;caption\na.wav;jazz; slow\nmine.wav;pop\n", "more columns than the header"),
        ("file,caption\na.wav,jazz\nmine.wav,pop\na.wav,rock\n", "several rows for it"),
    ],
)
def test_rows_that_say_too_much_cost_their_song(rows: str, said: str, tmp_path: Path, songs: Path) -> None:
    write(songs / "a.wav", pitch=300)
    (songs / "list.csv").write_text(rows)
    found = manifest(tmp_path, LIST)
    assert names(found) == ["mine.wav"]
    assert said in "\n".join(found.report.lines())


def test_rows_that_say_the_same_and_empty_columns_are_harmless(tmp_path: Path, songs: Path) -> None:
    (songs / "list.csv").write_text("file,caption\nmine.wav,pop,,\nmine.wav,pop\n")
    assert [s.captions for s in manifest(tmp_path, LIST).samples] == [("pop",)]


def test_a_quote_that_is_never_closed_is_an_error(tmp_path: Path, songs: Path) -> None:
    """It would swallow the rows behind it."""
    write(songs / "a.wav", pitch=300)
    (songs / "list.csv").write_text('file,caption\na.wav,"jazz\nmine.wav,pop\n')
    with pytest.raises(DataError, match=r"list\.csv, line 2: not a CSV list .a quote opened there is never"):
        manifest(tmp_path, LIST)


@pytest.mark.parametrize("kind", ["csv", "local"])
def test_excels_line_about_the_delimiter(kind: str, tmp_path: Path, songs: Path) -> None:
    (songs / "list.csv").write_text("sep=;\r\nfile;caption\r\nmine.wav;pop, slow\r\n", newline="")
    found = manifest(tmp_path, {**LIST, "type": kind})
    assert [s.captions for s in found.samples] == [("pop, slow",)]
