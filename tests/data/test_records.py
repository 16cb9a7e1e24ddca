"""Every program's sidecar gives the same record of a song, in one order, and nothing is written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from acestep_mlx.data import sidecars
from acestep_mlx.data.manifest import Manifest, Sample
from acestep_mlx.data.records import read_record
from acestep_mlx.errors import DataError

from .songs import manifest, song

CAPTION = "slow waltz, piano"
LYRICS = "[verse]\nla la\n\n[chorus]\noh oh"
KNOWN = {"bpm": 96, "keyscale": "F# minor", "timesignature": "3", "language": "de"}


def row(**more: Any) -> dict[str, Any]:
    """A song as ACE-Step 1.5's builder has it."""
    return {
        "id": "0a1b2c3d", "audio_path": "./music/a.wav", "filename": "a.wav", "caption": CAPTION,
        "genre": "waltz",
        "lyrics": LYRICS, "raw_lyrics": "raw", "formatted_lyrics": "", "bpm": 96, "keyscale": "F# minor",
        "timesignature": "3", "duration": 120, "language": "de", "is_instrumental": False, "custom_tag": "",
        "labeled": True, "prompt_override": None, **more,
    }  # fmt: skip


SIDE_STEP = (
    f"caption: {CAPTION}\ngenre: waltz\nbpm: 96.0\nkey: F#m\nsignature: 3/4\nis_instrumental: false\n"
    f"language: german\nlyrics:\n{LYRICS}\n"
)
AI_TOOLKIT = (
    f"<LYRICS>\n{LYRICS}\n</LYRICS>\n<CAPTION>{CAPTION}</CAPTION>\n"
    "<BPM>96</BPM>\n<KEYSCALE>F# Minor</KEYSCALE>\n<TIMESIGNATURE>3</TIMESIGNATURE>\n"
    "<DURATION>30</DURATION>\n<LANGUAGE>de</LANGUAGE>"
)
JSON = {
    "caption": CAPTION, "lyrics": LYRICS, "bpm": 96, "keyscale": "F# minor", "timesignature": "3",
    "duration": 30, "language": "German",
}  # fmt: skip
CSV = f'File;BPM;Key;Caption;Language;sig\na.wav;96;11A;"{CAPTION}";de;3\n'
FORMS: dict[str, dict[str, Any]] = {
    "Side-Step": {"a.txt": SIDE_STEP},
    "Side-Step on Windows": {"a.txt": "\ufeff" + SIDE_STEP.replace("\n", "\r\n")},
    "HOT-Step": {"a.txt": f"Caption: {CAPTION}\nTAG_POSITION: append\nKeyscale: F# MINOR\nTempo: 96\n"
                          f"time_signature: 3/4\nlang: de\nLYRICS: \n{LYRICS}"},
    "ai-toolkit": {"a.txt": AI_TOOLKIT},
    "musubi": {"a.json": JSON},
    "musubi, in the text": {"a.txt": json.dumps(JSON)},
    "ace-lora-trainer": {"a.json": {**JSON, "genre": "waltz", "is_instrumental": False, "mine": [1]}},
    "ACE-Step 1.5": {"dataset.json": {"metadata": {"name": "x", "custom_tag": ""}, "samples": [row()]}},
    "Side-Step's list": {"dataset.json": [row(repeat=1)]},
    "HOT-Step's list": {"dataset.json": {"metadata": {"default_language": "de", "mbid": "x"},
                                         "samples": [row(language="unknown")]}},
    "ACE-Step 1.5, split": {"a.caption.txt": CAPTION, "a.lyrics.txt": LYRICS,
                            "a.json": {k: v for k, v in JSON.items() if k not in ("caption", "lyrics")}},
    "ACE-Step 1.5, lyrics in the text": {"a.txt": LYRICS, "songs.csv": CSV},
    "ace-step v1": {"a_prompt.txt": CAPTION, "a_lyrics.txt": LYRICS, "a.json": {
        "bpm": 96, "key": "F# minor", "sig": 3, "lang": "de"}},
    "rows of v1": {"metadata.jsonl": {"keys": "a", "filename": "x/a.wav", "tags": CAPTION.split(", "),
                                      "norm_lyrics": LYRICS, "speaker_emb_path": "", **KNOWN}},
    "ours": {"a.txt": CAPTION, "a.lyrics": LYRICS, "a.json": KNOWN},
}  # fmt: skip


def write(folder: Path, files: dict[str, Any]) -> None:
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (folder / name).write_bytes(text.encode())


def one(root: Path, files: dict[str, Any], entry: dict[str, Any] | None = None, **options: Any) -> Sample:
    """The sample of a song with these files beside it."""
    song(root / "songs", "a", 1.0, caption=None)
    write(root / "songs", files)
    (sample,) = manifest(root, entry or {}, **options).samples
    return sample


@pytest.mark.parametrize("name", FORMS)
def test_each_form_gives_the_same_record(name: str, tmp_path: Path) -> None:
    sample = one(tmp_path, FORMS[name], model_flavour="v15-base")
    assert (sample.captions, sample.lyrics, dict(sample.known)) == ((CAPTION,), LYRICS, KNOWN)
    before = {path.name: path.read_bytes() for path in (tmp_path / "songs").iterdir()}
    (sample,) = manifest(tmp_path).samples
    assert (sample.captions, sample.lyrics, sample.known) == ((CAPTION,), LYRICS, ())
    assert {path.name: path.read_bytes() for path in (tmp_path / "songs").iterdir()} == before


ORDER: dict[str, dict[str, Any]] = {
    "own": {"a.lyrics": "la own"},
    "json": {"a.json": {"caption": "json", "lyrics": "la json", "bpm": 101}},
    "sniffed": {"a.txt": "caption: sniffed\nbpm: 102\nlyrics: la sniffed"},
    "split": {"a.caption.txt": "split", "a.lyrics.txt": "la split"},
    "list": {"dataset.json": [{"filename": "a.wav", "caption": "list", "lyrics": "la list", "bpm": 104}]},
}


@pytest.mark.parametrize("first", range(len(ORDER)))
def test_the_first_in_order_counts(first: int, tmp_path: Path) -> None:
    names = list(ORDER)[first:]
    sample = one(tmp_path, {k: v for n in names for k, v in ORDER[n].items()}, model_flavour="v15-base")
    caption = names[0] if names[0] != "own" else "json"
    tempo = next(
        101 + i for i, n in enumerate(("json", "sniffed", "split", "list")) if n in names and n != "split"
    )
    assert (sample.captions, sample.lyrics) == ((caption,), f"la {names[0]}")
    assert dict(sample.known)["bpm"] == tempo


def test_what_one_file_lacks_the_next_one_gives(tmp_path: Path) -> None:
    files = {
        "a.json": {"caption": "", "bpm": "N/A", "key": "Am", "lyrics": None},
        "dataset.json": [row(caption="list", bpm=90)],
    }
    sample = one(tmp_path, files, model_flavour="v15-base")
    assert sample.captions == ("list",) and sample.lyrics == LYRICS
    assert dict(sample.known) == {**KNOWN, "bpm": 90, "keyscale": "A minor"}


def test_which_source_won_is_said(tmp_path: Path) -> None:
    song(tmp_path / "songs", "a", 1.0, caption="mine")
    write(tmp_path / "songs", {"a.json": JSON, "a.lyrics": "la"})
    report = manifest(tmp_path).report.sets[0]
    assert [note for _, note in report.notes] == [
        "the caption is read from a.txt, not from a.json",
        "lyrics are read from a.lyrics, not from a.json",
    ]
    assert {what: dict(n) for what, n in report.sources_of.items()} == {
        "caption": {"*.txt": 1}, "lyrics": {"*.lyrics": 1},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("place", "wanted"),
    [
        ("prepend", "zyx, slow"),
        ("append", "slow, zyx"),
        ("replace", "zyx"),
        ("", "zyx, slow"),
        (None, "zyx, slow"),
    ],
)
def test_trigger_words_of_a_list_are_put_where_it_says(place: Any, wanted: str, tmp_path: Path) -> None:
    samples = [row(caption="slow")]
    listed = {"metadata": {"custom_tag": "zyx", "tag_position": place}, "samples": samples}
    assert one(tmp_path, {"dataset.json": listed}).captions == (wanted,)
    assert one(tmp_path, {"dataset.json": {**listed, "samples": [row(caption=wanted)]}}).captions == (wanted,)
    own = {"instance_prompt": "mine", "prepend_instance_prompt": True}
    assert one(tmp_path, {}, own).captions == (f"mine {wanted}",), "its captions have the words already"
    samples[0]["custom_tag"] = "song's"
    assert "song's" in one(tmp_path, {"dataset.json": listed}).captions[0]


def test_trigger_words_alone_are_the_caption_of_a_song_that_has_none(tmp_path: Path) -> None:
    listed = {"metadata": {"custom_tag": "zyx"}, "samples": [row(caption="", genre="")]}
    assert one(tmp_path, {"dataset.json": listed}).captions == ("zyx",)
    assert one(tmp_path, {"a.json": {"trigger": "yes"}, "dataset.json": [row()]}).captions == (CAPTION,)


def test_one_s_own_trigger_words_are_used_alone(tmp_path: Path) -> None:
    own = {"instance_prompt": "mine", "prepend_instance_prompt": True}
    assert one(tmp_path, {"a.txt": "caption: slow\ntrigger: zyx"}, own).captions == ("mine slow",)
    notes = manifest(tmp_path, own).report.sets[0].notes
    assert notes == [("a.wav", "its trigger words zyx are not used: instance_prompt is set")]


@pytest.mark.parametrize("flavour", ["base", "v15-base"])
@pytest.mark.parametrize(
    ("files", "wanted"),
    [
        ({"a.json": {"caption": "x", "is_instrumental": True}}, "inst"),
        ({"a.txt": "caption: x\nis_instrumental: yes\nlyrics:\n"}, "inst"),
        ({"a.txt": "caption: x\nis_instrumental:\nlyrics:\n[Instrumental]"}, "inst"),
        ({"a.json": {"caption": "x", "is_instrumental": True}, "a.lyrics": "la"}, "la"),
        ({"a.json": {"caption": "x", "is_instrumental": True, "lyrics": "la"}}, "la"),
        ({"a.json": {"caption": "x", "is_instrumental": False}}, None),
        ({"a.txt": "caption: x\nlyrics:\n"}, None),
        ({"a.txt": "<CAPTION>x</CAPTION><LYRICS></LYRICS>"}, None),
    ],
)  # fmt: skip
def test_instrumental_is_what_is_said_and_never_guessed(
    flavour: str, files: dict[str, Any], wanted: str | None, tmp_path: Path
) -> None:
    lyrics = one(tmp_path, files, model_flavour=flavour).lyrics
    inst = {"base": "[inst]", "v15-base": "[Instrumental]"}[flavour]
    assert lyrics == (inst if wanted == "inst" else wanted)


@pytest.mark.parametrize(
    ("fields", "captions"),
    [
        ({"caption": "x", "genre": "rock", "prompt_override": "genre"}, ("rock",)),
        ({"caption": "x", "genre": "", "prompt_override": "genre"}, ("x",)),
        ({"caption": "x", "prompt_override": "caption", "genre": "rock"}, ("x",)),
        ({"genre": "rock"}, ("rock",)),
        ({"tags": ["rock", "124 BPM"]}, ("rock, 124 BPM",)),
        ({"caption": ["x", "y", "x"]}, ("x", "y")),
        ({"caption": "x\ny"}, ("x y",)),
        ({"Caption ": "x"}, ("x",)),
        ({"tags": "x", "recaption": {"simplified": "y", "analysis": {}, "expanded": "z"}}, ("x", "y", "z")),
        ({"title": "x"}, ("",)),
        ({"caption": "x\x00\u200by\x1b[2J"}, ("xy[2J",)),
        ({"caption": "x", "bpm": [[[]]], "language": {"a": []}}, ("x",)),
    ],
)  # fmt: skip
def test_what_a_caption_is_made_of(fields: dict[str, Any], captions: tuple[str, ...], tmp_path: Path) -> None:
    assert one(tmp_path, {"a.json": fields}).captions == captions


def test_lyrics_that_somebody_named_are_the_only_ones(tmp_path: Path) -> None:
    entry = {"audio": {"lyrics_filename_format": "{stem}.words"}}
    assert one(tmp_path, {"a.json": JSON}, entry).lyrics is None
    assert one(tmp_path, {"a.words": "la"}, entry).lyrics == "la"


@pytest.mark.parametrize("strategy", ["filename", "instanceprompt"])
def test_a_song_has_its_lyrics_whatever_its_caption_is(strategy: str, tmp_path: Path) -> None:
    entry = {"caption_strategy": strategy, "instance_prompt": "zyx"}
    sample = one(tmp_path, {"a.txt": SIDE_STEP}, entry)
    assert sample.lyrics == LYRICS and sample.captions == ("a" if strategy == "filename" else "zyx",)


# ── what is damaged ──────────────────────────────────────────────────────────────────────────────────
IN_TEXT = (
    "<CAPTION>x", "x</CAPTION>", "<CAPTION>x</LYRICS>", "<CAPTION>x</CAPTION><CAPTION>y</CAPTION>",
    "<LYRICS>la", "<CAPTION>[verse]\nla</CAPTION>", '<CAPTION>{"a": 1}</CAPTION>',
    "<CAPTION x='1'>y</CAPTION>", '{"caption": "x"', '{"caption": "x",}', "{'caption': 'x'}", "{caption: x}",
    '{"caption": "x", "caption": "y"}',
    '{"caption": NaN}', '{"caption": {"text": "x"}}', '{"caption": true}', '{"caption": "x"} and more',
    '[{"caption": "x"}]', '["x"]', '{"caption": "[verse]\\nla"}', '{"caption": "x", "lyrics": 3}',
    '{"caption": "x", "lyrics": "bpm: 3\\nkey: C"}', "caption = 'x'", "---\ncaption: x", "+++\ncaption = 'x'",
    "```\nx\n```", "caption: [verse]\nlyrics: la",
    "caption: x\ncustom_tag: y\ntag_position: z",
    "[verse]\nla la", "[00:01.00]la", "1\n00:00:01,000 --> 00:00:02,000\nla", "File,Caption\na.wav,x",
    "{\\rtf1 x}", "<?xml version='1.0'?><a/>", "[Script Info]\nx", "title: a\nartist: b\nmood: c",
)  # fmt: skip
IN_JSON = (
    "", "{", "[]", "x", "null", '"x"', "3", '{"caption": "x"', '{"caption": ["x", {"a": 1}]}',
    '{"caption": "x", "lyrics": {"a": 1}}', "[" * 9999, '{"caption": 1e999}', '{"bpm": 3} {"bpm": 4}',
    '{"caption": "\\ud800x"}', '{"caption": "x", "lyrics": "\\udc00"}', '{"caption": ["x", ["y"]]}',
    f'{{"caption": {"[" * 400}1{"]" * 400}}}',
)  # fmt: skip


def test_tags_without_an_end_are_read_in_one_pass() -> None:
    """However many: each would be looked for in all that follows."""
    text = "<a><b>" * 20_000
    assert sidecars.looks_like(text) is None
    assert sidecars.looks_like(f"{text}</b>") == "XML"
    with pytest.raises(DataError, match="<CAPTION> has no other end"):
        read_record(f"{text}<CAPTION>", "a.txt")
    found = read_record(f"{text}<caption>x</ CAPTION >", "a.txt")
    assert found is not None and found.captions == ("x",) and "outside its tags" in found.notes[0]


def test_malformed_files_cost_their_own_song_one_line(tmp_path: Path) -> None:
    assert len(IN_TEXT) + len(IN_JSON) >= 40
    folder = tmp_path / "songs"
    sound = song(folder, "good", 1.0).read_bytes()
    for number, text in enumerate((*IN_TEXT, *IN_JSON)):
        name = f"n{number:02}"
        (folder / f"{name}.wav").write_bytes(sound)
        (folder / f"{name}.{'txt' if number < len(IN_TEXT) else 'json'}").write_text(text)
    (folder / "n98.wav").write_bytes(sound)
    (folder / "n98.txt").write_bytes(b"\xff\xfe\x00caption\x00\xd8")
    (folder / "n99.wav").write_bytes(sound)
    (folder / "n99.json").mkdir()
    before = {path: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    for flavour in ("base", "v15-base"):
        found: Manifest = manifest(tmp_path, model_flavour=flavour)
        assert [(sample.id, sample.captions) for sample in found.samples] == [
            ("set/good.wav", ("pop, happy",))
        ]
        assert len(found.skipped) == len(IN_TEXT) + len(IN_JSON) + 2
        for name, reason in found.skipped:
            stem = name.removeprefix("set/").removesuffix(".wav")
            assert "\n" not in reason and stem in reason and len(reason) < 300, (name, reason)
    assert {path: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before


def test_a_damaged_file_costs_no_song_that_has_its_caption_elsewhere(tmp_path: Path) -> None:
    sample = one(tmp_path, {"a.txt": '{"caption": "x"', "dataset.json": [row()], "a.json": "{"})
    assert sample.captions == (CAPTION,)
    (warning,) = [
        text for text, level in manifest(tmp_path).report.remarks() if level == "warning" and "a.txt" in text
    ]
    assert warning.startswith("2 values of songs' metadata in set not understood (a.wav: a.json: not JSON")


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("songs.csv", "File,Caption,BPM\na.wav,jazz, slow,90\n", "more columns than the header"),
        ("songs.csv", 'File,Caption\na.wav,"jazz\nb.wav,pop\n', "is not understood"),
        ("songs.json", '[{"file": "a.wav", "caption": "jazz"},', "is not understood"),
        ("dataset.json", '{"samples": {"a": 1}}', "is not understood"),
        ("metadata.jsonl", '{"file_name": "a.wav", "text": "jazz"}\n{"file', "is not understood"),
        ("dataset.json", '[{"file": "a.wav", "caption": {"x": 1}}]', "not a text"),
        ("dataset.json", '[{"file": "a.wav", "tags": "x", "trigger": "y", "tag_position": 3}]', "tag_pos"),
        ("dataset.json", '[{"file": "a.wav", "caption": "[verse] la la"}]', "structure marks"),
    ],
)  # fmt: skip
def test_a_damaged_list_is_named(name: str, text: str, reason: str, tmp_path: Path) -> None:
    song(tmp_path / "songs", "a", 1.0, caption=None)
    song(tmp_path / "songs", "good", 1.0)
    (tmp_path / "songs" / name).write_text(text)
    found = manifest(tmp_path)
    assert [sample.captions for sample in found.samples] == [("pop, happy",)]
    ((_, why),) = found.skipped
    assert name in why and reason in why and "\n" not in why
