"""Lyrics as people write them: time stamps, subtitles, written-out line breaks, names of a song's parts."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from acestep_mlx.families.v1.lyrics.tokenizer import LyricTokenizer
from acestep_mlx.text.marks import KNOWN, known_mark, mark_line
from acestep_mlx.text.sheet import read_sheet

from ..parity import reference

SRT = "1\n00:00:01,000 --> 00:00:04,000\nHello <i>there</i>\n\n2\n00:00:05,000 --> 00:00:08,000\nagain\n"
VTT = "WEBVTT\nKind: captions\n\n00:01.000 --> 00:04.000 align:start position:0%\nHello there\n\n" \
    "00:05.000 --> 00:08.000\nagain"  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer() -> LyricTokenizer:
    return LyricTokenizer(reference.vocab())


@pytest.mark.parametrize(
    "written",
    [
        "[00:12.34]Hello there\n[00:15]again",
        "<|0.00|> Hello there<|4.00|>\n<|4.00|> again<|6.00|>",
        "[1'02\"] Hello there\n[1′05″] again",
        "12.000000\t14.500000\tHello there\n15.100000\t16.000000\tagain",
        "Hello [00:12.34] there\nagain [01:00]",
        "[00:12.34]Hello [00:13.00]there\n[00:15.00]again",
        "[00:12,34]Hello there\n[00:15,00]again",
        "(0:12) Hello there\n(0:15) again",
        "Hello (00:12.5) there\nagain",
        "（00:12）Hello there\nagain",
        "[01:02:03]Hello there\n[01:02:09] again",
        "[1:02:03.456] Hello there\nagain [00:01:02:15]",
        "[00:12:340]Hello there\nagain",
        "［00：12．34］Hello there\n【00:15】again",
        "[00:12.34-00:14.00] Hello there\n[0:15 – 0:17] again",
        "[00:00.000 --> 00:05.000]  Hello there\n[00:05.000 --> 00:07.000]  again",
        "[12.34]Hello there\n[15.2s] again",
        "<00:12.34>Hel<00:12.50>lo <00:13.00>there\nagain",
        "{00:12} Hello there\nagain",
        "[00.12.34] Hello there\n[1m02s] again",
        "00:12.34 Hello there\n00:15.00 again",
        "0:12 Hello there\n0:15 again",
        "0:12 - Hello there\n0:15 | again",
        "Hello there 0:12\nagain 0:15",
        "0:58 Hello there\n1:02 again",
        "00:00:12,340 Hello there\nagain",
        "Hello 00:12.34 there\nagain 01:02:03",
        "Hello 1:02:03 there\n00:12,345 again",
        SRT,
        SRT.replace("\n", "\r\n"),
        VTT,
    ],
)
def test_no_time_stamp_is_sung(written: str) -> None:
    sheet = read_sheet(written)
    assert sheet.text == "Hello there\nagain"
    assert sheet.notes and ("time stamps" in sheet.notes[0] or "subtitles" in sheet.notes[0])


@pytest.mark.parametrize(
    "sung",
    [
        "Meet me at 7:30 in the morning",
        "7:30 in the morning\nI woke up all alone\nAnd it was cold",
        "7:30 in the morning\n8:15 I am gone",
        "See you at 7:30\nor was it 8:15\nthe trains leave at 9:05\nso they say\nI wait",
        "4:30 and I wait\n3:10 and I hide\n5:20 is late",
        "John 3:16 says\nso be it",
        "I love you (yeah) (3 times)\n(24/7) la la",
        "One [of] them <3",
        "Call 555-1234, 3.5 miles, 1,000 times",
    ],
)
def test_times_that_are_sung_stay(sung: str) -> None:
    assert read_sheet(sung).text == sung


@pytest.mark.parametrize("breaks", ["\\n", "\\r\\n", "\\\\n"])
def test_a_written_out_line_break_is_one(breaks: str) -> None:
    sheet = read_sheet(f"[verse]{breaks}la la{breaks}{breaks}[chorus]{breaks}oh")
    assert sheet.text == "[verse]\nla la\n\n[chorus]\noh"
    assert "written out" in sheet.notes[0]


def test_lines_that_are_timed_throughout_lose_their_times() -> None:
    assert read_sheet("1:12 one\n[chorus]\n1:15 two\n\n2:03 three").text == "one\n[chorus]\ntwo\n\nthree"
    assert read_sheet("one 1:12\ntwo 1:15\nthree 2:03").text == "one\ntwo\nthree"
    assert read_sheet("0:58 one\ntwo\nthree\n1:03 four").text == "one\ntwo\nthree\nfour"


# ── marks ────────────────────────────────────────────────────────────────────────────────────────────
NAMES = {
    "verse": ["Verse 1", "VERSE", "verse_2", "Verse1", "Second Verse", "Verse Two", "Verse 1: Ann & Bob",
              "Verse 1 - 0:32", "verse iii", "Strophe 2", "Couplet 1", "主歌", "Aメロ", "Куплет 1", "Vers"],
    "chorus": ["Chorus", "CHORUS x2", "Chorus (x2)", "Chorus 2x", "Final Chorus", "Repeat Chorus", "Refrain",
               "Post-Chorus", "Chorus - softly", "副歌", "サビ", "Припев", "Estribillo"],
    "pre-chorus": ["Pre-Chorus", "Pre Chorus", "Prechorus", "PRE–CHORUS 2", "Build-up"],
    "bridge": ["Bridge", "Bridge (Rap)", "Middle 8", "Brücke"],
    "intro": ["Intro", "Piano Intro", "前奏"],
    "outro": ["Outro", "Outro/End", "Coda", "Fade out"],
    "hook": ["Hook", "Hook x4"],
    "inst": ["Instrumental", "Inst", "Interlude", "Instrumental Break", "间奏"],
    "solo": ["Solo", "Guitar Solo", "Sax solo 2"],
    "break": ["Break", "Breakdown", "Guitar Break"],
    "end": ["End", "The End"],
    "start": ["Start"],
}  # fmt: skip


@pytest.mark.parametrize(("mark", "name"), [(mark, name) for mark in NAMES for name in NAMES[mark]])
def test_names_of_parts_become_the_models_marks(mark: str, name: str, tokenizer: LyricTokenizer) -> None:
    sheet = read_sheet(f"[{name}]\nla la la")
    assert tokenizer.tokenize(sheet.text) == tokenizer.tokenize(f"[{mark}]\nla la la")
    if name.lower() != mark:
        assert sheet.notes == [f"marks: [{name}] → [{mark}]"]
    else:  # the tokenizer reads capitals as small letters: nothing has changed
        assert sheet.notes == []


def test_every_known_mark_is_one_token_and_stays(tokenizer: LyricTokenizer) -> None:
    assert set(NAMES) == set(KNOWN)
    for mark in KNOWN:
        assert len(tokenizer.tokenize(f"[{mark}]")) == 4
        assert read_sheet(f"[{mark}]").text == f"[{mark}]" and not read_sheet(f"[{mark}]").notes


@pytest.mark.parametrize(
    ("line", "mark"),
    [("(Chorus)", "chorus"), ("(verse 2)", "verse"), ("{Chorus}", "chorus"), ("<bridge>", "bridge"),
     ("（副歌）", "chorus"), ("【Chorus】", "chorus"), ("［Verse 1］", "verse"), ("Verse 2:", "verse"),
     ("Chorus", "chorus"), ("**Bridge**", "bridge"), ("## Intro", "intro"), ("--- Chorus ---", "chorus"),
     ("CHORUS X2:", "chorus"), ("Chorus (x2)", "chorus"), ("Verse 1 [x2]:", "verse"),
     ("(Chorus) (2x)", "chorus"), ("[Chorus] (x2)", "chorus"),
     ("[ verse ]", "verse"), ("*[Verse 1]*", "verse"), ("**[Chorus]**", "chorus"), ("[[Bridge]]", "bridge")],
)  # fmt: skip
def test_marks_without_square_brackets(line: str, mark: str) -> None:
    sheet = read_sheet(f"{line}\nla la")
    assert sheet.text.lower() == f"[{mark}]\nla la" and sheet.notes


@pytest.mark.parametrize(
    "line",
    ["(yeah)", "(break)", "(the end)", "Bridge over troubled water", "Chorus girls dance", "Solo", "Hook",
     "Chorus, sing with me", "Intro - and then we go", "Chorus (of angels)", "I need a hook (up)",
     "In the final verse", "(oh, the bridge)", "Start", "End", "Most", "(chorus) of angels",
     "<bridge> to you"],
)  # fmt: skip
def test_what_is_sung_is_no_mark(line: str) -> None:
    assert mark_line(line) is None
    assert read_sheet(f"{line}\nla la").text == f"{line}\nla la"


def test_a_mark_stands_on_a_line_of_its_own() -> None:
    """Words beside a mark would be read as English whatever they are."""
    sheet = read_sheet("[Verse 1] 永遠 [Chorus] la la\nVerse 2: walking down\n[intro][Verse] a")
    assert sheet.text == "[verse]\n永遠\n[Chorus]\nla la\n[verse]\nwalking down\n[intro]\n[Verse]\na"
    changed, moved = sheet.notes
    assert changed == "marks: [Verse 1] → [verse], Verse 2: → [verse]"
    assert moved == "marks put on a line of their own: [Chorus], [intro], [Verse]"


def test_marks_that_mean_nothing_to_the_model_stay_and_are_named() -> None:
    sheet = read_sheet("[Spoken]\nhello\n[Female voice] la\n[in the end]\n[lang:ja]\n永遠")
    assert sheet.text == "[Spoken]\nhello\n[Female voice] la\n[in the end]\n[lang:ja]\n永遠"
    assert sheet.notes == [
        "no mark of the model, so its words are read: [Spoken], [Female voice], [in the end]"
    ]


def test_data_of_lrc_is_left_out_and_named() -> None:
    sheet = read_sheet(
        "[ar: Me]\n[id: $1]\n[hash:ab]\n[00:01.00]la la\n[00:02.00][Chorus: Ann]\n[00:03.00]oh"
    )
    assert sheet.text == "la la\n[chorus]\noh"
    assert "LRC data left out: [ar: Me], [id: $1], [hash:ab]" in sheet.notes
    assert read_sheet("[ti: x]\n[ar: Me]").text == ""
    assert read_sheet("[ti: x][ar: Me]\nla").text == "la"
    assert read_sheet("[ti: x] la").text == "[ti: x] la"
    assert read_sheet("[spoken: softly]\nla").text == "[spoken: softly]\nla", "without time stamps no LRC"


def test_cues_and_lines_are_counted() -> None:
    assert read_sheet(SRT).notes == ["subtitles read, 2 cues without number and time"]
    assert read_sheet("00:01 --> 00:02 la").notes == ["subtitles read, 1 cue without number and time"]
    assert read_sheet("00:01 --> 00:02 la").text == "la"
    assert read_sheet("[0:01]la\nla\n[0:03]la").notes == ["time stamps removed from 2 lines"]
    assert read_sheet("[Chorus] (x2)\nla").notes[0] == "marks: (x2) left out"
    assert known_mark("one big loud final happy verse") is not None
    assert known_mark("one big loud happy new and last verse of it") is None, "a sentence, not a name"
    assert read_sheet("[Verse 1]\nla\n[Verse 1]\nla").notes == ["marks: [Verse 1] → [verse] (2×)"]


def test_digits_in_subtitles_are_sung() -> None:
    text = "00:01.000 --> 00:02.000\n1999\n\n00:03.000 --> 00:04.000\nparty"
    assert read_sheet("WEBVTT\n\n" + text).text == "1999\nparty"


def test_a_doubtful_mark_beside_a_known_one_is_named() -> None:
    sheet = read_sheet("[Verse 1][Female] la")
    assert sheet.text == "[verse]\n[Female] la"
    assert sheet.notes[-1] == "no mark of the model, so its words are read: [Female]"


def test_language_tags_stay_before_their_lines() -> None:
    assert read_sheet("[lang:ja][Verse 1]永遠").text == "[lang:ja]\n[verse]\n永遠"
    assert read_sheet("[lang:ja]永遠").text == "[lang:ja]永遠"


def test_nothing_left_is_empty() -> None:
    for text in ("", " \n", "[00:01.00]\n[00:02.00]", "1\n00:00:01,000 --> 00:00:02,000\n"):
        assert read_sheet(text).text == ""


def test_plain_lyrics_are_not_touched() -> None:
    text = "[verse]\nHarbour lights are turning low\n\n[chorus]\nCarry me home (home)"
    assert read_sheet(text).text == text and read_sheet(text).notes == []


def test_the_tokenizer_itself_reads_what_stands_there(tokenizer: LyricTokenizer) -> None:
    """It stays the reference's: only data sets and `generate` go through the sheet."""
    assert tokenizer.tokenize("[Verse 1]") != tokenizer.tokenize("[verse]")
    assert tokenizer.tokenize("Hello (0:12) there") != tokenizer.tokenize("Hello there")


def test_the_shared_song_has_only_known_marks(tokenizer: LyricTokenizer, real_song: Path) -> None:
    sheet = read_sheet((real_song / "test_track_001_lyrics.txt").read_text(encoding="utf-8"))
    marks = [line.text for line in tokenizer.report(sheet.text).lines if line.text.startswith("[")]
    assert len(marks) == 11 and all(mark[1:-1].lower() in KNOWN for mark in marks)
    assert "[Verse 6] → [verse]" in sheet.notes[0]


@settings(max_examples=200, deadline=None)
@given(text=st.text(st.sampled_from("aV1 [](){}<>:.,-x\\n\nverse Chorus00:12->【】"), max_size=60))
def test_any_text_is_read_and_then_stays(text: str) -> None:
    once = read_sheet(text).text
    assert read_sheet(once).text == once


def test_nothing_takes_long() -> None:
    for piece in ("[", "[0:1 - ", "(Chorus ", "1:", "verse ", "\\", "<i", "00:01 --> "):
        read_sheet(piece * 5000)
        known_mark(piece * 5000)


def test_notes_styles_and_names_of_cues_in_webvtt_are_not_sung() -> None:
    text = (
        "WEBVTT - x\n\nNOTE by me\nand more\n\nSTYLE\n::cue {}\n\nfirst\n00:01.000 --> 00:02.000\n"
        "<v Bob>Hello there</v>\n\n00:03.000 --> 00:04.000\nNOTE to self\nagain"
    )
    assert read_sheet(text).text == "Hello there\nNOTE to self\nagain"


@pytest.mark.parametrize(
    ("written", "sung"),
    [
        ("[Verse]<br>la la<br/>oh<BR />\nhey", "[Verse]\nla la\noh\nhey"),
        ("it&#39;s &amp; you&nbsp;said &quot;oh&quot;", 'it\'s & you said "oh"'),
        ("a &amp;amp; b &#0; c", "a & b &#0; c"),
    ],
)
def test_html_is_not_sung(written: str, sung: str) -> None:
    sheet = read_sheet(written)
    assert sheet.text == sung and "HTML" in sheet.notes[0]
    assert read_sheet(sung).text == sung


@pytest.mark.parametrize(
    "written",
    ["```\n[verse]\nla la\n```", "```lyrics\n[verse]\nla la\n```\n",
     "~~~~\n[verse]\n[00:01.00]la la\n[00:02.00]~~~~",
     "```text\\n[verse]\\nla la\\n```", "[verse] ```text\nla la\n  ``` "],
)  # fmt: skip
def test_code_fences_of_markdown_are_not_sung(written: str) -> None:
    sheet = read_sheet(written)
    assert sheet.text == "[verse]\nla la" and "code fences of Markdown left out: " in sheet.notes[-1]
    assert read_sheet(sheet.text).notes == []
    for sung in ("la ``` la", "``quiet``", "~~~ oh", "``` oh la"):
        assert read_sheet(sung).text == sung
