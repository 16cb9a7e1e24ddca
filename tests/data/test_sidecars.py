"""Other programs' metadata beside songs is read, or costs only its own song; no caption is made of its form.

How each form becomes a song's record: `test_records.py`.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from acestep_mlx.data.manifest import Manifest
from acestep_mlx.data.sidecars import looks_like, may_be_sung

from .songs import manifest, song

# What other programs write into NAME.txt, and whether it has a caption.
READ = {
    "ai-toolkit": ("<CAPTION>\nslow jazz\n</CAPTION>\n<LYRICS>la la</LYRICS>\n<BPM>90</BPM>", True),
    "ai-toolkit in small letters": ("<caption>slow jazz</caption>", True),
    "Side-Step": (
        "caption: slow jazz\ngenre:\nbpm: 90\nkey: C major\nsignature: 4\nis_instrumental: false\n"
        "lyrics:\n[verse]\nla la",
        True,
    ),
    "HOT-Step": ("Caption: slow jazz\r\ntag_position: prepend\r\n", True),
    "Side-Step, only numbers": ("bpm: 120\nkeyscale: F# minor", False),
    "Side-Step after a plain line": ("slow jazz\ntempo: 90\n", True),
    "Side-Step with wide colons": ("caption：slow jazz\nbpm：90", True),
    "musubi": ('{"caption": "slow jazz", "lyrics": "la", "bpm": 90}', True),
    "musubi over lines": ('\n{\n  "caption": "slow jazz",\n  "bpm": 90\n}\n', True),
}
# What else stands in NAME.txt → a part of what it is said to look like.
FOREIGN = {
    "ai-toolkit, never closed": ("<CAPTION>slow jazz", "<CAPTION> has no other end"),
    "JSON cut short": ('{"caption": "slow jazz", "ly', "not JSON"),
    "a JSON list": ('[{"caption": "slow jazz"}]', "not a JSON object"),
    "JSON of words": ('["slow", "jazz"]', "not a JSON object"),
    "YAML": ("---\ntitle: x\n", "YAML"),
    "TOML": ('caption = "slow jazz"\n', "Side-Step"),
    "any named fields": ("title: Night\nartist: Me\nmood: calm", "metadata (title: Night)"),
    "a CSV list": ("File,BPM,Key,Caption\na.wav,120,C,jazz", "a list of songs (CSV)"),
    "a CSV list of Excel": ("sep=;\nFile;Caption\na.wav;jazz", "a list of songs (CSV)"),
    "ASS": ("[Script Info]\nTitle: x\n[Events]\nDialogue: 0,0:00:01.00,0:00:04.00,,,0,0,0,,la", "ASS"),
    "a fence": ("```\npop, happy\n```", "Markdown"),
    "a fence of JSON": ('```json\n{"caption": "pop"}\n```\n', "Markdown"),
    "another fence": ("Here it is:\n\n~~~\npop\n~~~", "Markdown"),
    "rich text": (r"{\rtf1\ansi slow jazz}", "RTF"),
    "XML": ('<?xml version="1.0"?>\n<song><title>x</title></song>', "XML"),
    "lyrics of ACE-Step 1.5": ("[Verse 1]\nla la\n\n[Chorus]\noh oh", "structure marks ([Verse 1])"),
    "instrumental": ("[Instrumental]", "structure marks"),
    "marks in round brackets": ("la la\n(Chorus)\noh oh", "structure marks ((Chorus))"),
    "marks with a colon": ("Verse 1:\nla la", "structure marks"),
    "a mark and words": ("[chorus] oh oh", "structure marks"),
    "a mark in a list": ("la la\n- **[Chorus]**\noh oh", "structure marks"),
    "marks inside a line": ("[verse] la la [chorus] oh", "structure marks"),
    "written-out line ends": ("[verse]\\nla la", "structure marks"),
    "LRC": ("[ti:x]\n[00:12.00]la la\n[00:15.00]oh", "time stamps"),
    "hours": ("[01:02:03] la la", "time stamps"),
    "SRT": ("1\n00:00:01,000 --> 00:00:04,000\nla la", "time stamps"),
    "times throughout": ("1:12 la la\n1:15 oh\n1:20 la", "time stamps"),
    "times in round brackets": ("(0:12) la la\n(0:15) oh", "time stamps"),
}
PLAIN = (
    "slow jazz\nlate at night, piano\n",
    "pop, 120 BPM, key: C major, female voice",
    "Mood: calm. A piano ballad (live at 7:30 in the morning)",
    "a song with verse, chorus and bridge",
    "lo-fi <my-style> beat, 4/4",
    "[pop], [rock] and {metal}",
    "piano [solo], warm",
    "warm pads [intro], drums [drop]\nslow (chorus) effect, guitar [Verse 2]",
    "a build-up【bridge】then strings",
    "the drop comes at 1:20",
    "the drop comes (1:20), the break at (2:40)",
    "cool & warm <3",
    "key, audio, text\nlate, night, piano",
    "“quoted”, 'words'",
)


def reasons(found: Manifest) -> dict[str, str]:
    return {name.removeprefix("set/"): reason for name, reason in found.skipped}


@pytest.mark.parametrize("name", FOREIGN)
def test_foreign_text_is_no_caption(name: str, tmp_path: Path) -> None:
    text, part = FOREIGN[name]
    song(tmp_path / "songs", "ours", caption="pop")
    song(tmp_path / "songs", "theirs", caption=text)
    for options in ({}, {"disable_multiline_split": True}):
        found = manifest(tmp_path, dict(options))
        assert [s.captions for s in found.samples] == [("pop",)]
        reason = reasons(found)["theirs.wav"]
        assert "theirs.txt" in reason and part in reason and "\n" not in reason
    assert "skipped: 1" in "\n".join(found.report.lines())


@pytest.mark.parametrize("name", READ)
def test_known_forms_give_the_caption(name: str, tmp_path: Path) -> None:
    text, has_caption = READ[name]
    song(tmp_path / "songs", "a", caption=text)
    found = manifest(tmp_path)
    assert [s.captions for s in found.samples] == [("slow jazz",) if has_caption else ("",)]
    assert found.report.sets[0].no_caption == ([] if has_caption else ["a.wav"]) and not found.skipped


@pytest.mark.parametrize("text", PLAIN)
def test_plain_lines_stay_captions(text: str, tmp_path: Path) -> None:
    assert looks_like(text) is None
    song(tmp_path / "songs", "a", caption=text)
    (sample,) = manifest(tmp_path).samples
    assert sample.captions == tuple(line for line in text.split("\n") if line)


def test_a_long_plain_file_is_variants(tmp_path: Path) -> None:
    song(tmp_path / "songs", "a", caption="\n".join(f"caption number {n}" for n in range(12)))
    assert len(manifest(tmp_path).samples[0].captions) == 12


def test_foreign_text_does_not_matter_where_it_is_no_caption(tmp_path: Path) -> None:
    song(tmp_path / "songs", "a", caption=READ["Side-Step"][0])
    for entry in (
        {"caption_strategy": "filename"},
        {"instance_prompt": "zyx", "only_instance_prompt": True},
        {"instance_prompt": "zyx", "caption_strategy": "instanceprompt"},
    ):
        assert len(manifest(tmp_path, entry).samples) == 1


# ── files beside songs ───────────────────────────────────────────────────────────────────────────────
BESIDE = {
    "a.json": json.dumps({"caption": "jazz", "bpm": 90}),
    "a.caption.txt": "jazz",
    "a.caption": "jazz",
    "dataset.json": json.dumps(
        {"metadata": {}, "samples": [{"audio_path": "C:\\x\\a.wav", "caption": "jazz"}]}
    ),
    "list.json": json.dumps([{"filename": "a.wav", "caption": "jazz"}]),
    "metadata.jsonl": json.dumps({"file_name": "songs/a.wav", "text": "jazz"}) + "\n",
    "meta_cap.json": json.dumps({"a.wav": {"caption": "jazz"}, "x": {"caption": "y"}}),
    "json/a.json": json.dumps({"title": "x", "genre": "jazz"}),
    "txt/a.txt": "jazz",
    "captions.csv": "File,Caption,BPM\na.wav,jazz,90\n",
    "captions.tsv": "filename\tcaption\na\tjazz\n",
}


@pytest.mark.parametrize("name", BESIDE)
def test_a_song_described_elsewhere_has_that_caption(name: str, tmp_path: Path) -> None:
    songs = tmp_path / "songs"
    song(songs, "a", caption=None)
    song(songs, "b", caption="pop")
    song(songs, "c", caption=None)
    (songs / name).parent.mkdir(exist_ok=True)
    (songs / name).write_text(BESIDE[name], encoding="utf-8")
    found = manifest(tmp_path)
    assert [s.captions for s in found.samples] == [("jazz",), ("pop",), ("",)] and not found.skipped
    report = found.report.sets[0]
    assert report.no_caption == ["c.wav"], "nothing describes it, so it simply has none"
    source = name.replace("a.", "*.") if name.startswith(("a.", "json/", "txt/")) else name
    assert dict(report.sources_of["caption"]) == {source: 1, "*.txt": 1}
    assert f"  captions from: {source} 1, *.txt 1 (*: the song's name)" in found.report.lines()


def test_what_is_not_read_costs_a_song_without_caption(tmp_path: Path) -> None:
    for name, caption in (("a", None), ("b", "pop")):
        song(tmp_path / "songs", name, caption=caption)
        (tmp_path / "songs" / f"{name}.yaml").write_text("caption: jazz")
    found = manifest(tmp_path)
    assert [s.captions for s in found.samples] == [("pop",)]
    assert "a.yaml looks like" in reasons(found)["a.wav"] and "a.txt" in reasons(found)["a.wav"]
    assert [note for _, note in found.report.sets[0].notes] == [
        "b.yaml looks like another trainer's metadata, which is not read"
    ]


def test_a_list_of_songs_in_a_folder_above(tmp_path: Path) -> None:
    for name in ("album/a", "live/a", "new/a", "b"):
        folder, _, stem = name.rpartition("/")
        song(tmp_path / "songs" / folder, stem, caption=None)
    rows = [
        {"audio_path": "album/a.wav", "caption": "jazz"},
        {"audio_path": "D:\\old\\live\\a.wav", "caption": "rock"},
        {"audio_path": "/gone/b.wav", "caption": "pop"},
    ]
    (tmp_path / "songs" / "dataset.json").write_text(json.dumps({"samples": rows}))
    captions = {s.id: s.captions[0] for s in manifest(tmp_path).samples}
    assert captions == {
        "set/album/a.wav": "jazz", "set/b.wav": "pop", "set/live/a.wav": "rock", "set/new/a.wav": "rock",
    }  # fmt: skip


def test_a_list_that_says_two_things_of_a_song_costs_it(tmp_path: Path) -> None:
    for name in "ab":
        song(tmp_path / "songs", name, caption=None)
    rows = [
        {"file": name, "caption": text} for name, text in (("a.wav", "x"), ("a.wav", "y"), ("b.wav", "z"))
    ]
    (tmp_path / "songs" / "dataset.json").write_text(json.dumps(rows))
    found = manifest(tmp_path)
    assert [s.captions for s in found.samples] == [("z",)]
    assert "dataset.json has several rows for it, which differ" in reasons(found)["a.wav"]


def test_a_dataset_json_that_cannot_be_understood_costs_songs_without_captions(tmp_path: Path) -> None:
    song(tmp_path / "songs", "a", caption=None)
    song(tmp_path / "songs", "b")
    (tmp_path / "songs" / "dataset.json").write_text("{")
    found = manifest(tmp_path)
    assert [s.id for s in found.samples] == ["set/b.wav"] and "dataset.json" in reasons(found)["a.wav"]


def test_ones_own_caption_is_used_and_the_rest_is_named(tmp_path: Path) -> None:
    songs = tmp_path / "songs"
    song(songs, "a", caption="mine")
    (songs / "a.json").write_text(BESIDE["a.json"])
    (songs / "dataset.json").write_text(BESIDE["dataset.json"])
    found = manifest(tmp_path)
    assert found.samples[0].captions == ("mine",) and found.report.sets[0].no_songs == []
    assert found.report.sets[0].notes == [("a.wav", "the caption is read from a.txt, not from a.json")]


def test_beside_a_caption_txt_a_short_txt_may_be_lyrics(tmp_path: Path) -> None:
    """Nobody can tell: it is neither trained on as a caption nor sung."""
    song(tmp_path / "songs", "a", caption="hello there\nmy old friend")
    song(tmp_path / "songs", "b")
    song(tmp_path / "songs", "c", caption="jazz")
    for name in "ac":
        (tmp_path / "songs" / f"{name}.caption.txt").write_text("jazz")
    found = manifest(tmp_path)
    assert "a.caption.txt looks like" in reasons(found)["a.wav"]
    assert {s.id: s.captions for s in found.samples} == {"set/b.wav": ("pop, happy",), "set/c.wav": ("jazz",)}


@pytest.mark.parametrize("other", ["a_prompt.txt", "a.caption.txt", "a.json", "dataset.json"])
@pytest.mark.parametrize(
    "text", ["[verse]\nla la", "\n".join(f"line {n}" for n in range(8)), "[00:01.00]la la"]
)
def test_beside_another_caption_a_txt_like_lyrics_is_sung(other: str, text: str, tmp_path: Path) -> None:
    """ACE-Step 1.5 has lyrics in NAME.txt, version 1 the caption in NAME_prompt.txt."""
    song(tmp_path / "songs", "a", caption=text)
    (tmp_path / "songs" / other).write_text(BESIDE.get(other, "jazz"))
    (sample,) = manifest(tmp_path).samples
    assert sample.captions == ("jazz",) and sample.lyrics == text.removeprefix("[00:01.00]")


@pytest.mark.parametrize("other", ['{"genre": "jazz", "title": "x"}', '{"tags": ["a", "b"], "bpm": 90}'])
def test_variants_stay_captions_beside_a_genre(other: str, tmp_path: Path) -> None:
    """A genre is no other caption, which would make lyrics of them."""
    song(tmp_path / "songs", "a", caption="\n".join(f"caption number {n}" for n in range(12)))
    (tmp_path / "songs" / "a.json").write_text(other)
    (sample,) = manifest(tmp_path).samples
    assert len(sample.captions) == 12 and sample.lyrics is None


def test_a_short_caption_is_one_beside_a_prompt(tmp_path: Path) -> None:
    song(tmp_path / "songs", "b", caption="mine\ntoo")
    (tmp_path / "songs" / "b_prompt.txt").write_text("jazz")
    assert manifest(tmp_path).samples[0].captions == ("mine", "too")


def test_a_folder_beside_the_songs(tmp_path: Path) -> None:
    song(tmp_path / "songs" / "audio", "a", caption=None)
    song(tmp_path / "songs" / "audio", "b")
    (tmp_path / "songs" / "json").mkdir()
    (tmp_path / "songs" / "json" / "a.json").write_text('{"prompt": "jazz"}')
    assert manifest(tmp_path).samples[0].captions == ("jazz",)


def test_other_files_in_the_folder_do_not_matter(tmp_path: Path) -> None:
    songs = tmp_path / "songs"
    song(songs, "a", caption=None)
    (songs / "config.json").write_text('{"model_family": "ace_step"}')
    (songs / "multidatabackend.json").write_text('[{"id": "x", "instance_data_dir": "songs"}]')
    (songs / "prices.csv").write_text("file,price\na.wav,3\n")
    (songs / "b.json").write_text('{"caption": "of another song"}')
    assert manifest(tmp_path).report.sets[0].no_caption == ["a.wav"]


def test_a_configured_list_is_the_users_own(tmp_path: Path) -> None:
    song(tmp_path / "songs", "a", caption=None)
    (tmp_path / "songs" / "list.csv").write_text('file,caption\na.wav,"Genre: rock, key: C"\n')
    found = manifest(tmp_path, {"csv_file": "list.csv", "caption_strategy": "csv"})
    assert found.samples[0].captions == ("Genre: rock, key: C",)
    (tmp_path / "songs" / "list.csv").write_text('file,caption\na.wav,"[verse] la la"\n')
    song(tmp_path / "songs", "b")
    (tmp_path / "songs" / "list.csv").open("a").write("b.wav,pop\n")
    found = manifest(tmp_path, {"csv_file": "list.csv", "caption_strategy": "csv"})
    assert "structure marks" in reasons(found)["a.wav"] and len(found.samples) == 1


# ── lyrics ───────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize(
    "name",
    [
        "a.lyrics",
        "a_lyrics.txt",
        "a.lyrics.txt",
        "a.lrc",
        "a.srt",
        "a.vtt",
        "a.LRC",
        "a.Lyrics",
        "a.wav.lrc",
        "a.wav.srt",
    ],
)
def test_lyrics_are_found_under_every_usual_name(name: str, tmp_path: Path) -> None:
    song(tmp_path / "songs", "a")
    (tmp_path / "songs" / name).write_text("[00:01.00]la la\n[00:02.00]oh")
    assert manifest(tmp_path).samples[0].lyrics == "la la\noh"


@pytest.mark.parametrize(
    "name", ["a.en.lrc", "a.EN.LRC", "a.zh-Hans.srt", "a.pt_BR.vtt", "a.jpn.lyrics", "a.wav.de.lrc"]
)
def test_a_language_may_stand_in_the_name_of_lyrics(name: str, tmp_path: Path) -> None:
    songs = tmp_path / "songs"
    song(songs, "a")
    (songs / name).write_text("[00:01.00]la la\n[00:02.00]oh")
    assert manifest(tmp_path).samples[0].lyrics == "la la\noh"


def test_which_of_several_lyrics_are_a_songs_own(tmp_path: Path) -> None:
    songs = tmp_path / "songs"
    for name in ("a", "a.en", "b", "c", "d"):
        song(songs, name)
    for name in ("a.en.lrc", "b.fr.lrc", "b.lrc", "c.fr.lrc", "c.en.srt", "d.mix.lrc", "plain"):
        (songs / name).write_text(f"[00:01.00]{name}")
    found = manifest(tmp_path)
    lyrics = {s.id: s.lyrics for s in found.samples}
    assert lyrics == {"set/a.wav": None, "set/a.en.wav": "a.en.lrc", "set/b.wav": "b.lrc", "set/d.wav": None}
    assert reasons(found) == {"c.wav": "c.en.srt and c.fr.lrc may be its lyrics; keep one of them"}


@pytest.mark.parametrize(
    "name", ["ai-toolkit", "Side-Step", "HOT-Step", "Side-Step, only numbers", "musubi", "JSON cut short"]
)
def test_metadata_is_not_sung(name: str, tmp_path: Path) -> None:
    song(tmp_path / "songs", "a", lyrics=(READ | FOREIGN)[name][0])
    song(tmp_path / "songs", "b", lyrics="Key: to my heart\nla la\nmy key: to yours")
    found = manifest(tmp_path)
    assert [s.id for s in found.samples] == ["set/b.wav"]
    assert "a.lyrics looks like" in reasons(found)["a.wav"]


def test_the_report_says_what_was_changed_in_lyrics(tmp_path: Path) -> None:
    song(tmp_path / "songs", "a", lyrics="[00:01.00][Verse 1]\n[00:02.00]la la\n(Chorus)\noh")
    song(tmp_path / "songs", "b", lyrics="[verse]\nla la")
    found = manifest(tmp_path)
    assert [s.lyrics for s in found.samples] == ["[verse]\nla la\n[chorus]\noh", "[verse]\nla la"]
    text = "\n".join(found.report.lines())
    assert "a.wav: lyrics: time stamps removed from 2 lines" in text
    assert "a.wav: lyrics: marks: [Verse 1] → [verse], (Chorus) → [chorus]" in text
    assert any(text.startswith("lyrics of 1 of 2 songs") for text, _ in found.report.remarks())


def test_lyrics_of_a_list(tmp_path: Path) -> None:
    song(tmp_path / "songs", "a")
    (tmp_path / "songs" / "list.csv").write_text(
        "file,caption,lyrics\na.wav,pop\\nrock,[Verse 1]\\nla la\\n\\n[Chorus]\\noh\n"
    )
    found = manifest(tmp_path, {"type": "csv", "csv_file": "list.csv", "caption_strategy": "csv"})
    (sample,) = found.samples
    assert sample.lyrics == "[verse]\nla la\n\n[Chorus]\noh" and sample.captions == ("pop", "rock")


def test_lyrics_of_nothing_but_time_stamps_are_none(tmp_path: Path) -> None:
    song(tmp_path / "songs", "a", lyrics="[00:01.00]\n[00:02.00]\n")
    found = manifest(tmp_path)
    assert found.samples[0].lyrics is None and found.report.sets[0].no_lyrics == ["a.wav"]


@pytest.mark.slow
def test_hugging_face_captions_are_checked_too(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    from .test_huggingface import parquet, read, wav

    cells = [{"bytes": wav(300 + i), "path": f"{i}.wav"} for i in range(3)]
    texts = ["pop", "[verse]\nla la", '{"caption": "jazz"}']
    found = read(tmp_path, parquet(tmp_path / "set", cells, text=texts))
    assert [s.captions for s in found.samples] == [("pop",)]
    assert "structure marks" in reasons(found)["1.wav"] and "JSON" in reasons(found)["2.wav"]


@pytest.mark.parametrize("name", ["a.wav.txt", "a.wav.json", "a.wav.caption", "a.prompt", "a.wav.prompt"])
def test_a_caption_under_another_name(name: str, tmp_path: Path) -> None:
    song(tmp_path / "songs", "a", caption=None)
    song(tmp_path / "songs", "ok")
    (tmp_path / "songs" / name).write_text('{"caption": "jazz"}')
    found = manifest(tmp_path)
    assert [s.captions for s in found.samples] == [("jazz",), ("pop, happy",)]


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("[Script Info]\nTitle: x\n[Events]\nDialogue: 0,0:00:01.00,,la", "subtitles (ASS)"),
        ('<tt xmlns="x"><body><p begin="00:01">la</p></body></tt>', "XML"),
        ("<html><body>la</body></html>", "XML"),
        ("#TITLE:x\n#BPM:120\n: 0 4 60 Hel\n: 4 4 62 lo\n- 10\nE", "karaoke (UltraStar)"),
    ],
)
def test_what_is_not_read_is_not_sung(text: str, what: str, tmp_path: Path) -> None:
    song(tmp_path / "songs", "a", lyrics=text)
    song(tmp_path / "songs", "ok", lyrics="la")
    found = manifest(tmp_path)
    assert [s.lyrics for s in found.samples] == ["la"]
    assert f"a.lyrics looks like {what}" in "\n".join(found.report.lines())


@pytest.mark.parametrize(
    ("text", "metadata"),
    [
        ("mood: dark\nenergy: high\nera: the eighties", True),
        ("mood: dark\nenergy: high", False),  # two may be somebody's own words
        ("mood: dark\nmood: high\nera: the eighties", False),  # a name twice
        ("mood: dark\nenergy: high\nera: the eighties\nwarm and slow", False),
        ("mood = dark\n\nenergy = high\n\nera = the eighties\nsound = warm", True),
    ],
)
def test_lines_of_names_and_values_are_metadata_from_three_on(text: str, metadata: bool) -> None:
    assert (looks_like(text) == f"metadata ({text.split(chr(10))[0]})") == metadata


# ── lyrics without marks ─────────────────────────────────────────────────────────────────────────────
SUNG = {
    "lines that come again": "I love you baby\nyes I do\nooh ooh\nI love you baby",
    "stanzas": "down by the water\nwhere lights are low\n\nI heard you calling\na year ago",
    "many short lines": "\n".join(
        f"and then I walked to {n}, alone" if n == 3 else f"we sang {n}" for n in range(9)
    ),
    "written-out line ends": "ooh ooh\\nla la\\nooh ooh\\nhey",
}
WORDED = {
    "one line": "slow jazz with a piano",
    "variants": "slow jazz\nquiet piano\nbrushes on a snare",
    "many variants of tags": "\n".join(f"jazz, piano, take {n}" for n in range(12)),
    "long sentences": "\n".join(f"A slow piece of jazz {n} " + "with a warm piano " * 6 for n in range(9)),
}


@pytest.mark.parametrize("text", SUNG.values(), ids=SUNG)
def test_a_caption_that_may_be_lyrics_is_named(tmp_path: Path, text: str) -> None:
    song(tmp_path / "songs", "a", caption=text)
    found = manifest(tmp_path)
    (one,) = found.report.sets
    assert one.doubtful == [("a.wav", "a.txt")]
    assert any("may have lyrics for captions (a.wav: a.txt)" in text for text, _ in one.remarks())
    assert found.report.problems()[0].startswith("1 with captions that may be lyrics")
    assert "caption may be lyrics" in one.rows[0].problem


def test_so_is_one_in_another_program_s_file(tmp_path: Path) -> None:
    folder = song(tmp_path / "songs", "a", caption=None).parent
    (folder / "a.json").write_text(json.dumps({"caption": SUNG["stanzas"]}))
    assert manifest(tmp_path).report.sets[0].doubtful == [("a.wav", "a.json")]


@pytest.mark.parametrize("text", WORDED.values(), ids=WORDED)
def test_captions_are_not_taken_for_lyrics(text: str) -> None:
    assert not may_be_sung(text)


def test_a_song_with_lyrics_of_its_own_has_no_others_for_captions(tmp_path: Path) -> None:
    song(tmp_path / "songs", "a", caption=SUNG["stanzas"], lyrics="[verse]\nla la")
    assert manifest(tmp_path).report.sets[0].doubtful == []


def test_the_song_s_name_is_starred_only_where_a_file_is_named_after_it(tmp_path: Path) -> None:
    folder = song(tmp_path / "songs", "s", caption=None).parent
    (folder / "songs.csv").write_text("File,Caption\ns.wav,slow jazz\n")
    assert manifest(tmp_path).report.sets[0].sources_of["caption"] == {"songs.csv": 1}
