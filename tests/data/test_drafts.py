"""`prepare` drafts what nobody said of a song, and training reads it; what somebody says counts first."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from acestep_mlx.cli import cli
from acestep_mlx.cli.describe import data_set
from acestep_mlx.cli.prepare import _songs
from acestep_mlx.data import drafting
from acestep_mlx.data.drafting import Draft, Outcome, Sound, Wanted, prepare
from acestep_mlx.data.drafts import KEY, VERSION
from acestep_mlx.data.manifest import Sample
from acestep_mlx.errors import DataError
from acestep_mlx.families import family
from acestep_mlx.io.audio import write_audio
from acestep_mlx.speech.transcribe import Transcript

from ..speech import scripted
from .songs import manifest, song, tone

FOUND = {
    "keyscale": Draft("A minor", "measured", 0.8, ("C major",)),
    "bpm": Draft(140, "measured", 0.7),
    "timesignature": Draft("3", "measured", 0.3),
}
SHEET = "[verse]\nDer Mond ist aufgegangen\nDie goldnen Sternlein prangen\n"
LISTENED: list[str] = []


@pytest.fixture(autouse=True)
def heard(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the songs that were listened to; what is heard is always the same."""
    LISTENED.clear()

    def measure(audio: Path, within: Callable[[float], None] = lambda share: None) -> Sound:
        LISTENED.append(audio.name)
        return Sound(4.0, -14.0, FOUND)

    monkeypatch.setattr(drafting, "measure", measure)
    return LISTENED


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "songs").mkdir()
    return tmp_path / "songs"


def run(folder: Path, name: str = "v15", **more: Any) -> dict[str, Outcome]:
    outcomes = prepare(_songs(folder), Wanted(family(name), **more))
    return {outcome.name: outcome for outcome in outcomes}


def said(folder: Path, name: str = "a") -> dict[str, Any]:
    """What stands in the file beside the song, without what is kept of drafts."""
    content = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    return {field: value for field, value in content.items() if field != KEY}


def edit(folder: Path, **fields: Any) -> None:
    path = folder / "a.json"
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **fields}), encoding="utf-8")


def trained(folder: Path, flavour: str = "v15-base") -> Sample:
    (sample,) = manifest(folder.parent, model_flavour=flavour).samples
    return sample


# ── what is drafted, and read ────────────────────────────────────────────────────────────────────────
def test_drafts_are_what_is_trained_with(folder: Path) -> None:
    song(folder, "a", caption=None, lyrics=SHEET)
    run(folder, trigger="zyx")
    sample = trained(folder)
    assert sample.captions == ("zyx, A fast track in a minor key, sung in German.",)
    assert dict(sample.known) == {"bpm": 140, "keyscale": "A minor", "timesignature": "3", "language": "de"}
    row = next(line for line in data_set(folder, "local") if line.startswith("a.wav"))
    assert row.split() == ["a.wav", "0:04", "*.json", "draft", "*.lyrics", "de"]


def test_trigger_words_of_a_run_stand_there_once(folder: Path) -> None:
    song(folder, "a", caption=None)
    run(folder, trigger="zyx")
    entry = {"instance_prompt": "zyx", "prepend_instance_prompt": True}
    found = manifest(folder.parent, entry, model_flavour="v15-base")
    assert found.samples[0].captions == ("zyx A fast track in a minor key.",)
    assert found.report.sets[0].notes == []


def test_captions_are_in_the_form_of_the_model(folder: Path) -> None:
    song(folder, "a", caption=None)
    run(folder, "v1", trigger="zyx")
    assert trained(folder, "base").captions == ("zyx, fast, 140 BPM, A minor",)
    assert run(folder, "v15", trigger="zyx")["a.wav"].written.keys() == {"caption"}
    assert LISTENED == ["a.wav"]


def test_each_draft_says_where_it_is_from_and_how_sure_it_is(folder: Path) -> None:
    song(folder, "a", caption=None)
    run(folder)
    fields = json.loads((folder / "a.json").read_text())[KEY]["fields"]
    kept = {name: {k: v for k, v in one.items() if k != "is"} for name, one in fields.items()}
    assert kept["keyscale"] == {"how": "measured", "confidence": 0.8, "or": ["C major"]}
    assert kept["bpm"] == {"how": "measured", "confidence": 0.7}
    assert kept["caption"] == {"how": "drafted"}


def test_tags_of_the_file_count_before_what_is_measured(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_audio(folder / "a.flac", tone(4.0), 22050, tags={"genre": "Bossa Nova"})
    found = dict(drafting.ffmpeg.tags(folder / "a.flac"))
    monkeypatch.setattr(drafting.ffmpeg, "tags", lambda path: {**found, "tbpm": "93.6", "tkey": "F#m"})
    run(folder)
    assert said(folder) == {
        "caption": "A bossa nova track in a minor key.",
        "keyscale": "F# minor",
        "bpm": 94,
        "timesignature": "3",
        "genre": "Bossa Nova",
        "duration": 4,
    }


@pytest.mark.parametrize(
    ("tags", "genre"),
    [({"genre": "Other"}, None), ({"genre": "17"}, None), ({"genre": "x" * 90}, None), ({"bpm": "0"}, None),
     ({"bpm": "fast"}, None), ({"genre": "Rock"}, "Rock")],
)  # fmt: skip
def test_tags_that_say_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tags: dict[str, str], genre: str | None
) -> None:
    song(folder, "a", caption=None)
    monkeypatch.setattr(drafting.ffmpeg, "tags", lambda path: tags)
    run(folder)
    assert said(folder).get("genre") == genre
    assert said(folder)["bpm"] == 140


def test_lyrics_in_the_tags_are_drafted(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    song(folder, "a", caption=None)
    monkeypatch.setattr(drafting.ffmpeg, "tags", lambda path: {"lyrics-deu": SHEET.replace("\n", "\r\n")})
    run(folder)
    assert trained(folder).lyrics == SHEET.strip()
    assert dict(trained(folder).known)["language"] == "de"
    (folder / "a.lyrics").write_text("[verse]\nmeine eigenen Worte")
    assert trained(folder).lyrics == "[verse]\nmeine eigenen Worte"


def test_missing_lyrics_never_become_instrumental(folder: Path) -> None:
    song(folder, "a", caption=None)
    assert run(folder)["a.wav"].lacking
    assert not {"lyrics", "is_instrumental", "language"} & said(folder).keys()
    assert "instrumental" not in said(folder)["caption"]
    assert trained(folder).lyrics is None


def test_a_song_in_which_nobody_sings_is_called_so_where_somebody_said_it(folder: Path) -> None:
    song(folder, "a", caption=None)
    (folder / "a.json").write_text('{"is_instrumental": true}')
    run(folder, transcribe=lambda path, within: Transcript("la la la", "en", 0.9))
    assert said(folder)["caption"] == "A fast, instrumental track in a minor key."
    assert "lyrics" not in said(folder)


def hearing(lyrics: str, *, unsure: float = 0.0) -> Any:
    """What hears these lyrics in every song; its `songs` are those that it was given."""
    songs: list[str] = []

    def hear(path: Path, within: Callable[[float], None]) -> Transcript:
        songs.append(path.name)
        within(1.0)
        return Transcript(lyrics, "de", 0.6 if lyrics else 0.0, unsure)

    hear.songs = songs  # type: ignore[attr-defined]
    return hear


def test_lyrics_that_are_heard_are_drafts(folder: Path) -> None:
    song(folder, "a", caption=None)
    run(folder)
    outcome = run(folder, transcribe=hearing(SHEET, unsure=30), model="m")["a.wav"]
    assert "lyrics" in outcome.written
    assert outcome.notes == ["30 s of it were not understood"]
    assert trained(folder).lyrics == SHEET.strip()
    told = json.loads((folder / "a.json").read_text())[KEY]
    assert (told["fields"]["lyrics"]["how"], told["fields"]["lyrics"]["confidence"]) == ("transcribed", 0.6)
    assert told["heard"] == "m"
    assert LISTENED == ["a.wav"]


def test_lyrics_that_cannot_be_made_out_stay_missing(folder: Path) -> None:
    song(folder, "a", caption=None)
    ears = hearing("", unsure=4.0)
    assert run(folder, transcribe=ears, model="m")["a.wav"].lacking
    assert not {"lyrics", "is_instrumental", "language"} & said(folder).keys()
    assert "instrumental" not in said(folder)["caption"]
    assert trained(folder).lyrics is None
    run(folder, transcribe=ears, model="m", trigger="zyx")
    assert ears.songs == ["a.wav"]


def test_a_song_is_heard_once_by_each_model(folder: Path) -> None:
    song(folder, "a", caption=None)
    first, second = hearing(SHEET), hearing("[verse]\nGuter Mond, du gehst so stille")
    run(folder, transcribe=first, model="m")
    run(folder, transcribe=first, model="m", trigger="zyx")
    run(folder, trigger="other")
    assert (first.songs, said(folder)["lyrics"]) == (["a.wav"], SHEET)
    assert not run(folder, trigger="other")["a.wav"].lacking
    assert json.loads((folder / "a.json").read_text())[KEY]["fields"]["lyrics"]["confidence"] == 0.6
    run(folder, transcribe=second, model="larger")
    assert said(folder)["lyrics"] == "[verse]\nGuter Mond, du gehst so stille"


@pytest.mark.parametrize("lyrics", ["[verse]\nmeine eigenen Worte", None], ids=["corrected", "deleted"])
def test_heard_lyrics_that_were_corrected_or_deleted_stay_so(folder: Path, lyrics: str | None) -> None:
    song(folder, "a", caption=None)
    run(folder, transcribe=hearing(SHEET), model="m")
    path = folder / "a.json"
    content = {**json.loads(path.read_text()), "lyrics": lyrics}
    path.write_text(json.dumps({name: one for name, one in content.items() if one is not None}))
    ears = hearing("la la la")
    run(folder, transcribe=ears, model="larger")
    assert (said(folder).get("lyrics"), ears.songs) == (lyrics, [])


def test_only_songs_without_lyrics_are_heard(folder: Path) -> None:
    song(folder, "a", lyrics=SHEET)
    song(folder, "b", lyrics="[Instrumental]")
    song(folder, "c")
    ears = hearing("la la la")
    run(folder, transcribe=ears, model="m")
    assert ears.songs == ["c.wav"]


def test_a_song_that_cannot_be_transcribed_gets_its_other_drafts(folder: Path) -> None:
    def fail(path: Path, within: Callable[[float], None]) -> Transcript:
        raise DataError("too much for memory")

    song(folder, "a", caption=None)
    outcome = run(folder, transcribe=fail, model="m")["a.wav"]
    assert outcome.notes == ["not transcribed: too much for memory"]
    assert "bpm" in outcome.written


@pytest.mark.slow
def test_transcribe_is_given_a_model(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from acestep_mlx.speech import transcribe

    song(folder, "a", caption=None)
    network = scripted.Network(scripted.line(0, 3, "we will sing"))
    monkeypatch.setattr(transcribe, "load_whisper", lambda folder, config: network)
    model = scripted.folder(folder.parent / "whisper", lang_to_id=None)
    done = CliRunner().invoke(cli, ["prepare", str(folder), "--transcribe", str(model)])
    assert done.exit_code == 0, done.output
    assert said(folder)["lyrics"] == "wewillsing"
    assert str(model) not in (folder / "a.json").read_text()
    assert "a.wav: " in done.output and "lyrics, transcribed" in done.output
    assert "1 whose lyrics were made out by ear, with mistakes; correct them before you train" in done.output
    done = CliRunner().invoke(cli, ["prepare", str(folder), "--transcribe", "whisper"])
    assert "whisper: no such folder (and not a hub repository" in str(done.exception)


def test_marks_that_lyrics_lack_are_said(folder: Path) -> None:
    song(folder, "a", lyrics="hello my old friend, how do you do")
    song(folder, "b", lyrics="[verse]\nhello my old friend, how do you do")
    outcomes = run(folder)
    assert outcomes["a.wav"].notes == ["its lyrics have no marks ([verse], [chorus])"]
    assert outcomes["b.wav"].notes == []


# ── whose word counts ────────────────────────────────────────────────────────────────────────────────
def test_what_somebody_said_is_not_drafted_and_stays(folder: Path) -> None:
    song(folder, "a", caption="my own words")
    own = {"BPM": 99, "key": "G", "mood": "odd", "caption": "", "list": [1, {"a": 2.5}]}
    (folder / "a.json").write_text(json.dumps(own))
    run(folder, trigger="zyx")
    assert said(folder) == {**own, "timesignature": "3", "duration": 4}
    assert (folder / "a.txt").read_text() == "my own words"
    assert trained(folder).captions == ("my own words",)


@pytest.mark.parametrize(
    ("name", "text", "caption"),
    [
        ("a.txt", "my own words", "my own words"),
        ("a.txt", "one line\n" * 9, "one line"),
        ("a_prompt.txt", "rock, loud", "rock, loud"),
        ("a.caption.txt", "rock, loud", "rock, loud"),
        ("a.txt", "caption: rock, loud\nbpm: 77\nkey: G\n", "rock, loud"),
        ("dataset.json", '[{"filename": "a.wav", "caption": "rock, loud", "bpm": 77}]', "rock, loud"),
    ],
)
def test_what_somebody_says_later_counts_before_the_drafts(
    folder: Path, name: str, text: str, caption: str
) -> None:
    song(folder, "a", caption=None)
    run(folder, trigger="zyx")
    (folder / name).write_text(text)
    sample = trained(folder)
    assert sample.captions == (caption,)
    assert dict(sample.known)["bpm"] == (77 if "bpm" in text else 140)
    assert not any("a.json" in line for line in data_set(folder, "local"))


def test_an_edited_draft_is_somebodys_own(folder: Path) -> None:
    song(folder, "a", caption=None)
    run(folder, trigger="zyx")
    edit(folder, caption="my words", bpm=70)
    run(folder, "v1", trigger="abc")
    assert said(folder)["caption"] == "my words"
    assert said(folder)["bpm"] == 70
    assert trained(folder).captions == ("zyx, my words",)
    (folder / "a.txt").write_text("caption: rock\nbpm: 50\n")  # behind a JSON file that somebody wrote
    assert trained(folder).captions == ("zyx, my words",)


def test_a_draft_that_was_deleted_stays_away(folder: Path) -> None:
    song(folder, "a", caption=None)
    run(folder)
    content = json.loads((folder / "a.json").read_text())
    del content["bpm"]
    (folder / "a.json").write_text(json.dumps(content))
    run(folder, trigger="other")
    run(folder, trigger="third")
    assert "bpm" not in said(folder)


def test_lyrics_in_the_text_file_are_sung_beside_a_drafted_caption(folder: Path) -> None:
    song(folder, "a", caption=SHEET)
    run(folder)
    sample = trained(folder)
    assert sample.captions == ("A fast track in a minor key, sung in German.",)
    assert sample.lyrics == SHEET.strip()


def test_a_language_goes_with_its_lyrics(folder: Path) -> None:
    song(folder, "a", lyrics=SHEET)
    run(folder)
    (folder / "a.lyrics").write_text("[verse]\nhello my old friend, how do you do today")
    assert "language" not in dict(trained(folder).known)
    run(folder)
    assert dict(trained(folder).known)["language"] == "en"


def test_drafts_do_not_hide_a_caption_that_cannot_be_read(folder: Path) -> None:
    song(folder, "a", caption=None)
    song(folder, "b")
    run(folder)
    (folder / "a.txt").write_text('{"caption": "half')
    found = manifest(folder.parent, model_flavour="v15-base")
    assert [name for name, _ in found.skipped] == ["set/a.wav"]
    assert run(folder)["a.wav"].problem is not None


# ── again ────────────────────────────────────────────────────────────────────────────────────────────
def test_a_second_run_does_only_what_is_new(folder: Path) -> None:
    song(folder, "a", caption=None)
    run(folder)
    before = (folder / "a.json").read_bytes(), (folder / "a.json").stat().st_mtime_ns
    song(folder, "b", caption=None)
    outcomes = run(folder)
    assert not outcomes["a.wav"].written
    assert outcomes["b.wav"].written
    assert LISTENED == ["a.wav", "b.wav"]
    assert before == ((folder / "a.json").read_bytes(), (folder / "a.json").stat().st_mtime_ns)


def test_a_song_that_changed_is_drafted_anew_but_for_what_was_edited(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    song(folder, "a", caption=None)
    run(folder)
    edit(folder, keyscale="C minor")
    song(folder, "a", 5.0, caption=None)
    monkeypatch.setattr(drafting, "measure", lambda *_: Sound(5.0, -9.0, {"bpm": Draft(70, "measured", 0.9)}))
    run(folder)
    assert said(folder) == {
        "caption": "A slow track in a minor key.", "bpm": 70, "duration": 5, "keyscale": "C minor",
    }  # fmt: skip


def test_a_dry_run_writes_nothing(folder: Path) -> None:
    song(folder, "a", caption=None)
    result = CliRunner().invoke(cli, ["prepare", str(folder), "--dry-run"])
    assert result.exit_code == 0
    assert "a.wav: 140 BPM; A minor (or C major); 3 beats a bar; “A fast track" in result.output
    assert "1 song: 1 would get drafts (--dry-run: nothing is written)" in result.output
    assert [path.name for path in folder.iterdir()] == ["a.wav"]


def test_an_interrupt_leaves_whole_files(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    song(folder, "a", caption=None)
    song(folder, "b", caption=None)
    first = drafting.measure

    def measure(audio: Path, within: Any) -> Sound:
        if audio.name == "b.wav":
            raise KeyboardInterrupt
        return first(audio, within)

    monkeypatch.setattr(drafting, "measure", measure)
    with pytest.raises(KeyboardInterrupt):
        run(folder)
    assert sorted(path.name for path in folder.iterdir()) == ["a.json", "a.wav", "b.wav"]
    assert said(folder)["bpm"] == 140


# ── what cannot be done ──────────────────────────────────────────────────────────────────────────────
def _link(folder: Path) -> str:
    (folder.parent / "elsewhere.json").write_text("{}")
    (folder / "a.json").symlink_to(folder.parent / "elsewhere.json")
    return "a.json is a link"


def _newer(folder: Path) -> str:
    (folder / "a.json").write_text(json.dumps({KEY: {"version": VERSION + 1}, "caption": "x"}))
    return "a.json: what is drafted in it was written by a newer version"


def _list(folder: Path) -> str:
    (folder / "a.json").write_text('["a"]')
    return "a.json: not a JSON object"


def _damaged(folder: Path) -> str:
    (folder / "a.json").write_text('{"caption": ')
    return "a.json: not JSON"


def _twice(folder: Path) -> str:
    (folder / "a.json").write_text('{"bpm": 1, "bpm": 2}')
    return "a.json: not JSON"


def _anothers(folder: Path) -> str:
    (folder / "a.json").write_text('{"acestep_mlx": {}}')
    return "a.json says how another song was made"


def _folder(folder: Path) -> str:
    (folder / "a.json").mkdir()
    return "a.json"


@pytest.mark.parametrize("spoil", [_link, _newer, _list, _damaged, _twice, _anothers, _folder])
def test_a_file_that_may_not_be_written_costs_its_song_alone(
    folder: Path, spoil: Callable[[Path], str]
) -> None:
    song(folder, "a", caption="x")
    song(folder, "b", caption=None)
    said_of_it = spoil(folder)
    path = folder / "a.json"
    before = path.read_bytes() if path.is_file() else None
    outcomes = run(folder)
    assert said_of_it in (outcomes["a.wav"].problem or "")
    assert "\n" not in (outcomes["a.wav"].problem or "")
    assert outcomes["b.wav"].written
    assert (path.read_bytes() if path.is_file() else None) == before
    assert not path.is_symlink() or (folder.parent / "elsewhere.json").read_text() == "{}"


def test_what_somebody_writes_meanwhile_is_kept(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    song(folder, "a", caption=None)

    def measure(audio: Path, within: Any) -> Sound:
        (folder / "a.json").write_text('{"caption": "typed just now"}')
        return Sound(4.0, -14.0, FOUND)

    monkeypatch.setattr(drafting, "measure", measure)
    assert "changed while the song was measured" in (run(folder)["a.wav"].problem or "")
    assert said(folder) == {"caption": "typed just now"}


def test_songs_outside_the_folder_are_left_alone(folder: Path) -> None:
    song(folder, "b", caption=None)
    song(folder.parent / "library", "a", caption=None)
    (folder / "linked").symlink_to(folder.parent / "library")
    (folder / "c.wav").symlink_to(folder.parent / "library" / "a.wav")
    outcomes = run(folder)
    assert "outside the folder" in (outcomes["linked/a.wav"].problem or "")
    assert outcomes["c.wav"].written
    assert not (folder.parent / "library" / "a.json").exists()
    assert (folder / "c.json").exists()


def test_a_song_whose_name_is_a_lists(folder: Path) -> None:
    song(folder, "dataset", caption=None)
    song(folder, "metadata", 5.0, caption=None)
    run(folder)
    assert sorted(path.name for path in folder.glob("*.json")) == ["dataset.wav.json", "metadata.wav.json"]
    found = manifest(folder.parent, model_flavour="v15-base")
    assert {sample.captions for sample in found.samples} == {("A fast track in a minor key.",)}


def test_two_sound_files_of_one_name_share_a_file(folder: Path) -> None:
    song(folder, "a", caption=None)
    write_audio(folder / "a.flac", tone(4.0), 22050)
    outcomes = run(folder)
    assert [one.problem for one in outcomes.values()] == [None, "shares a.json with a.flac"]


def test_a_folder_that_cannot_be_written_is_said_in_one_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    song(folder, "a", caption=None)

    def write(path: Path, data: bytes) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("acestep_mlx.data.drafts.write_bytes", write)
    result = CliRunner().invoke(cli, ["prepare", str(folder)])
    assert "Permission denied" in result.output
    assert "no song in" in str(result.exception)


def test_a_sound_that_cannot_be_read_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    song(folder, "a", caption=None)
    song(folder, "b", caption=None)
    first = drafting.measure

    def measure(audio: Path, within: Any) -> Sound:
        if audio.name == "a.wav":
            raise DataError("silent")
        return first(audio, within)

    monkeypatch.setattr(drafting, "measure", measure)
    result = CliRunner().invoke(cli, ["prepare", str(folder)])
    assert result.exit_code == 0
    assert "1 left out (a.wav: silent)" in result.output
    assert not (folder / "a.json").exists()


@pytest.mark.parametrize(
    "note",
    [
        None,
        5,
        [],
        {"version": VERSION},
        {"version": VERSION, "fields": {"bpm": 1}},
        {"version": VERSION, "fields": [], "measured": {"fields": {"bpm": {}}}},
    ],
)
def test_what_is_kept_of_drafts_may_be_damaged(folder: Path, note: Any) -> None:
    song(folder, "a", caption=None)
    (folder / "a.json").write_text(json.dumps({"caption": "mine", KEY: note}))
    assert trained(folder).captions == ("mine",)
    assert run(folder)["a.wav"].problem is None
    assert said(folder)["caption"] == "mine"


def test_the_mode_of_the_file_stays(folder: Path) -> None:
    song(folder, "a", caption=None)
    (folder / "a.json").write_text("{}")
    (folder / "a.json").chmod(0o640)
    run(folder)
    assert (folder / "a.json").stat().st_mode & 0o777 == 0o640
