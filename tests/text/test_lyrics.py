"""The lyric tokenizer by itself: structure, cleaning, forced languages, reports, limits and speed."""

from __future__ import annotations

import json
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import BPE

from acestep_mlx.errors import CheckpointError, ConfigError, DataError
from acestep_mlx.families.v1.lyrics.report import lyrics_report, summary
from acestep_mlx.families.v1.lyrics.tokenizer import MAX_TOKENS, LyricTokenizer
from acestep_mlx.families.v1.miniature_text import miniature_vocabulary
from acestep_mlx.io.text_files import read_text
from acestep_mlx.text.clean import fit
from acestep_mlx.text.detect import detect, detect_lines
from acestep_mlx.text.languages import LANGUAGES, language_code
from acestep_mlx.text.lines import line_languages

from ..parity import reference
from .songs import SONG

START, END, UNKNOWN = 261, 2, 1
DATA = Path(__file__).parent / "data"


@pytest.fixture(scope="session")
def tokenizer() -> LyricTokenizer:
    return LyricTokenizer(reference.vocab())


@pytest.fixture(scope="session")
def miniature(tmp_path_factory: pytest.TempPathFactory) -> LyricTokenizer:
    """A vocabulary of a few letters: no [START], no language tags, no unknown token for the rest."""
    path = tmp_path_factory.mktemp("vocab") / "vocab.json"
    tokens = ["[UNK]", "[SPACE]", "a", "b", "c", "ab", "abc"]
    vocab = {token: index for index, token in enumerate(tokens)}
    Tokenizer(BPE(vocab, [("a", "b"), ("ab", "c")], unk_token="[UNK]")).save(str(path))
    return LyricTokenizer(path)


def plain(tokenizer: LyricTokenizer, *lines: tuple[str, str]) -> list[int]:
    """What a song of these (line, language) pairs must give; an empty line is a blank one."""
    ids = [START]
    for line, language in lines:
        ids += [*(tokenizer.encode_line(line, language) if line else []), END]
    return ids


# -- structure ---------------------------------------------------------------------------------


def test_song_is_start_then_lines_each_closed_by_its_end(tokenizer: LyricTokenizer) -> None:
    ids = tokenizer.tokenize("[verse]\nHello there\n\nmy friend")
    assert ids == plain(tokenizer, ("[verse]", "en"), ("Hello there", "en"), ("", ""), ("my friend", "en"))
    assert ids[:4] == [START, 259, 6683, END]


def test_line_without_start_and_end(tokenizer: LyricTokenizer) -> None:
    assert tokenizer.encode_line("love", "en") == [259, *tokenizer.encode_line("love", "en")[1:]]
    assert START not in tokenizer.encode_line("love", "en")
    assert tokenizer.encode_line("爱", "zh")[0] == 5023
    assert tokenizer.encode_line("爱", "zh-CN") == tokenizer.encode_line("爱", "zh")


@pytest.mark.parametrize(
    "tag", ["intro", "verse", "chorus", "bridge", "outro", "inst", "solo", "hook", "pre-chorus"]
)
def test_structure_tags_are_one_token_in_every_language(tokenizer: LyricTokenizer, tag: str) -> None:
    line = tokenizer.tokenize(f"[{tag.title()}]", language="ja")
    assert line[1] == 259 and len(line) == 4 and line[2] > 6680


def test_blank_lines_have_one_token(tokenizer: LyricTokenizer) -> None:
    assert tokenizer.tokenize("") == [START, END]
    assert tokenizer.tokenize(" \n\t\n") == [START, END, END, END]


def test_instrumental_is_a_lyric_like_any_other(tokenizer: LyricTokenizer) -> None:
    assert tokenizer.tokenize("[inst]") == [START, 259, 6688, END]
    assert tokenizer.report("[instrumental]").lines[0].normalised == "[instrumental]"


# -- what files bring along --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("\ufeffHello there\nagain", "Hello there\nagain"),
        ("Hello there\r\nagain\r\n", "Hello there\nagain\n"),
        ("Hello there\ragain", "Hello there\nagain"),
        ("Hello there\u2028again", "Hello there\nagain"),
        ("[00:12.34]Hello there\n[00:15]again", "Hello there\nagain"),
        ("[00:12.34][01:02.34] Hello there", "Hello there"),
        ("[00:12.34]<00:12.34>Hello <00:13.00> there", "Hello there"),
        ("[00:12.34]<00:12.34>Hel<00:12.50>lo <00:13.00>there", "Hello there"),
        ("Hello there™", "Hello there"),
        ("[00:01:500]Hello there\n[00:09.00]\nagain", "Hello there\n\nagain"),
        ("[ti:Song]\n[ar: Me]\n[offset:+100]\nHello there", "Hello there"),
        ("[00:12.00][verse]\n[00:13.00]Hello there", "[verse]\nHello there"),
        ("Hello 🎵 there 💔🇫🇷👩‍🚀", "Hello there"),
        ("♪ Hello there ♪", "Hello there"),
        ("Hello there →", "Hello there"),
        ("Ｈｅｌｌｏ　ｔｈｅｒｅ", "Hello　there"),
        ("［verse］\nHello there", "[verse]\nHello there"),
        ("１２ stars", "12 stars"),
        ("ﬁre and ﬂame", "fire and flame"),
        ("Hello\u00a0there", "Hello there"),
        ("Hello\u200b th\u00adere", "Hello there"),
        ("Hel\x00lo\x07 there", "Hello there"),
        ("rock‐n‐roll", "rock-n-roll"),
        ("I ﹘ you", "I - you"),
        ("Hello\ufe0f there\ufffd", "Hello there"),
        ("\u202bمرحبا يا قلبي\u202c\u200f", "مرحبا يا قلبي"),
        ("\u2067שלום\u2069", "שלום"),
        ("ﻣﺮﺣﺒﺎ", "مرحبا"),
        ("  Hello there\t ", "Hello there"),
    ],
)
def test_marks_stamps_emoji_and_spellings_are_cleaned(
    tokenizer: LyricTokenizer, written: str, meant: str
) -> None:
    assert tokenizer.tokenize(written) == tokenizer.tokenize(meant)


@pytest.mark.parametrize(
    ("line", "language"),
    [
        ("Señor, ¿dónde está?", "es"),
        ("Příliš žluťoučký kůň", "cs"),
        ("사랑해 너를", "ko"),
        *[
            ("が ぎ パ ビ", "ja"),
            ("Где ёлка, Йорик?", "ru"),
            ("Çok güzel, İstanbul", "tr"),
            ("बड़ा पढ़ता", "hi"),
        ],
    ],
)
def test_composed_and_decomposed_are_the_same(tokenizer: LyricTokenizer, line: str, language: str) -> None:
    nfc, nfd = (unicodedata.normalize(form, line) for form in ("NFC", "NFD"))
    assert nfc != nfd or language == "hi"  # Unicode itself keeps nukta letters apart
    assert tokenizer.encode_line(nfd, language) == tokenizer.encode_line(nfc, language)
    assert tokenizer.tokenize(nfd) == tokenizer.tokenize(nfc)
    assert UNKNOWN not in tokenizer.encode_line(nfd, language)


def test_nukta_letters_written_whole_keep_their_own_token(tokenizer: LyricTokenizer) -> None:
    assert UNKNOWN not in tokenizer.encode_line("\u095c", "hi")
    assert tokenizer.encode_line("\u095c", "hi") != tokenizer.encode_line("\u0921\u093c", "hi")


def test_joiners_stay_where_they_shape_letters_and_go_elsewhere(tokenizer: LyricTokenizer) -> None:
    assert tokenizer.encode_line("क्\u200dष", "hi") != tokenizer.encode_line("क्ष", "hi")
    assert tokenizer.encode_line("lo\u200dve", "en") == tokenizer.encode_line("love", "en")


def test_parentheses_and_fullwidth_punctuation_keep_upstreams_tokens(tokenizer: LyricTokenizer) -> None:
    assert {9 - 4, 6} <= set(tokenizer.tokenize("(yeah) love"))  # "(" and ")"
    assert tokenizer.encode_line("你好，（啊）！", "zh") == tokenizer.encode_line("你好,,啊,,", "zh")
    assert UNKNOWN not in tokenizer.tokenize("사랑해！ （너를）")
    report = tokenizer.report("（love）").lines[0]
    assert not report.unknown and not report.notes  # the vocabulary knows them: left as they are


def test_emoji_alone_is_a_blank_line_and_is_named(tokenizer: LyricTokenizer) -> None:
    report = tokenizer.report("Hello\n🎵🎵\nthere")
    assert list(report.ids) == plain(tokenizer, ("Hello", "en"), ("", ""), ("there", "en"))
    assert report.dropped[0].number == 2
    assert report.dropped[0].notes == ("removed 🎵 (2×)",)


def test_lone_surrogates_do_not_break_anything(tokenizer: LyricTokenizer) -> None:
    assert tokenizer.tokenize("Hello \ud83d there") == tokenizer.tokenize("Hello there")
    assert all(0 <= token < tokenizer.vocab_size for token in tokenizer.encode_line("\ud83d", "ja"))


# -- languages ---------------------------------------------------------------------------------


def test_forced_language_is_every_lines(tokenizer: LyricTokenizer) -> None:
    lines = [("永遠", "ja"), ("love", "ja")]
    assert tokenizer.tokenize("永遠\nlove", language="ja") == plain(tokenizer, *lines)
    assert tokenizer.tokenize("永遠", language="ja") != tokenizer.tokenize("永遠", language="zh")
    assert tokenizer.tokenize("永遠\nlove", language="Japanese") == plain(tokenizer, *lines)
    assert tokenizer.tokenize("Hello", language="auto") == tokenizer.tokenize("Hello")


def test_tag_line_sets_the_language_from_there_on(tokenizer: LyricTokenizer) -> None:
    text = "Hello there my love\n[lang:ja]\n永遠\n[verse]\nlove\n[lang:auto]\n永远的爱"
    expected = [
        ("Hello there my love", "en"),
        ("永遠", "ja"),
        ("[verse]", "en"),
        ("love", "ja"),
        ("永远的爱", "zh"),
    ]
    assert tokenizer.tokenize(text) == plain(tokenizer, *expected)
    assert tokenizer.tokenize("[lang:ja][00:01.00]永遠") == plain(tokenizer, ("永遠", "ja"))
    assert tokenizer.tokenize("[lang:zh-CN]\n永遠", language="ja") == plain(tokenizer, ("永遠", "zh"))


def test_languages_of_a_text_need_no_vocabulary() -> None:
    assert line_languages(SONG)["en"] == 7
    assert line_languages("[verse]\n永遠\n\nlove", "ja") == {"ja": 2}
    assert line_languages("[lang:ja]永遠\nlove\n[ti:x]\n[lang:auto]\nHello there") == {"ja": 2, "en": 1}


def test_unknown_languages(tokenizer: LyricTokenizer) -> None:
    with pytest.raises(ConfigError, match=r"did you mean '[jJ]apanese'"):
        tokenizer.tokenize("love", language="japanes")
    with pytest.raises(ConfigError, match="klingon"):
        tokenizer.encode_line("love", "klingon")
    report = tokenizer.report("[lang:klingon]\nHello there")
    assert report.dropped[0].dropped == "unknown language tag"
    assert "klingon" in report.dropped[0].notes[0]
    assert (
        language_code("pt_BR") == "pt" and language_code("jpn") == "ja" and language_code(" ZH-tw ") == "zh"
    )


def test_ambiguous_lines_follow_their_song() -> None:
    song = ["La la la", "Ich hab mein Herz am Bahnhof stehen lassen", "Die Nacht ist jung und wir sind wach"]
    assert detect(song[0]).language == "en"
    assert [guess.language for guess in detect_lines(song)] == ["de"] * 3
    assert [guess.language for guess in detect_lines(["永遠", "君の笑い声がまだ残る"])] == ["ja", "ja"]
    assert [guess.language for guess in detect_lines(["永遠", "我们还在等你"])] == ["zh", "zh"]
    sure = ["I'll be the one who never lets you go", "Ich will nicht mehr nach Haus gehen"]
    assert [guess.language for guess in detect_lines(sure)] == ["en", "de"]


def test_detection_needs_no_letters() -> None:
    assert [detect(line).language for line in ("", "123", "!?", "oh oh oh")] == ["en"] * 4
    assert detect("สวัสดีครับ").foreign == "THAI"


# -- reports and limits ------------------------------------------------------------------------


def test_report_says_language_text_tokens_and_what_is_unknown(tokenizer: LyricTokenizer) -> None:
    report = tokenizer.report("[verse]\n3 Küsse ~ und 5€\n\nสวัสดี")
    verse, german, blank, thai = report.lines
    assert (verse.language, verse.normalised) == ("en", "[verse]")
    assert (german.language, german.normalised, german.unknown) == (
        "de",
        "drei küsse ~ und fünf Euro",
        ("~",),
    )
    assert blank.tokens == (END,) and blank.language is None and blank.dropped is None
    assert thai.unknown and "Thai script has no tokens" in thai.notes[0]
    assert report.ids == (START, *verse.tokens, *german.tokens, *blank.tokens, *thai.tokens)
    assert report.languages == {"en": 2, "de": 1}
    assert report.unknown["~"] == [2] and report.unknown["ส"] == [4]


def test_japanese_characters_without_a_reading_are_named(tokenizer: LyricTokenizer) -> None:
    line = tokenizer.report("愛してる 사랑?", language="ja").lines[0]
    assert set(line.unknown) == {"사", "랑"}


def test_at_most_4096_tokens_and_the_cut_is_reported(tokenizer: LyricTokenizer) -> None:
    text = "\n".join(["We counted all the silver stars"] * 600)
    report = tokenizer.report(text)
    assert len(tokenizer.tokenize(text)) == len(report.ids) == MAX_TOKENS
    whole = 1 + sum(len(line.tokens) for line in report.lines)
    assert report.cut_tokens == whole - MAX_TOKENS > 0
    per_line = len(report.lines[0].tokens)
    assert report.cut_line == (MAX_TOKENS - 1) // per_line + 1
    assert any("too long" in row and f"line {report.cut_line}" in row for row in summary(report))
    fits = "\n".join(["We counted all the silver stars"] * ((MAX_TOKENS - 1) // per_line))
    exact = fits + "\n" * ((MAX_TOKENS - 1) % per_line)  # a blank line is one token
    assert len(tokenizer.tokenize(exact)) == MAX_TOKENS
    for short in ("", "short", fits, exact):
        report = tokenizer.report(short)
        assert (report.cut_tokens, report.cut_line) == (0, None)
        assert not any("too long" in row for row in summary(report))
    report = tokenizer.report(exact + "\n")
    assert (report.cut_tokens, report.cut_line) == (1, len(report.lines))


@pytest.mark.parametrize(("line", "same"), [("￡5", "£5"), ("It costs 5￡", "It costs 5£"), ("＄7", "$7")])
def test_wide_money_is_the_same_money(tokenizer: LyricTokenizer, line: str, same: str) -> None:
    report, plain_report = tokenizer.report(line, "en"), tokenizer.report(same, "en")
    assert report.ids == plain_report.ids and not report.unknown
    assert len(plain_report.lines[0].normalised) > len(same)  # in words


def test_rendered_report_names_everything(tokenizer: LyricTokenizer) -> None:
    text = "[ti:x]\n[00:01.00]Hello 🎵 ~\n\n愛してる\nสวัสดี\n🎵"
    shown = lyrics_report(text, tokenizer)
    for part in (
        "dropped: LRC data, not sung",
        "removed 🎵",
        "unknown: ~",
        "aishiteru",
        "(blank)",
        "Thai script",
        "time stamps removed",
        "nothing left to sing",
        "3 lines sung (en 2, ja 1)",
        "no token for ~ in line 2",
        "no token for ส ว ั ด ี in line 5",
        "line 1 dropped",
    ):
        assert part in shown, part
    forced = lyrics_report("永遠", tokenizer, language="ja")
    assert "ja" in forced and "eien" in forced


def test_a_lyrics_file_may_be_utf8_and_utf16_and_refuses_the_rest(tmp_path: Path) -> None:
    path = tmp_path / "track.lyrics"
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        path.write_bytes("Größe 愛".encode(encoding))
        assert read_text(path)[0] == "Größe 愛"
    path.write_bytes("Größe".encode("latin-1"))  # Western for sure, so it is taken for Windows-1252
    assert read_text(path)[0] == "Größe"
    path.write_bytes("愛してる".encode("shift-jis"))
    with pytest.raises(DataError, match="not UTF-8"):
        read_text(path)[0]
    with pytest.raises(DataError, match="cannot read"):
        read_text(tmp_path / "missing.lyrics")


def test_bad_vocabulary_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "vocab.json"
    with pytest.raises(CheckpointError, match=r"vocab\.json is not a lyric vocabulary"):
        LyricTokenizer(path)
    path.write_text(json.dumps({"hello": 1}))
    with pytest.raises(CheckpointError, match=r"vocab\.json is not a lyric vocabulary"):
        LyricTokenizer(path)


def test_nothing_disappears_without_a_word(tokenizer: LyricTokenizer) -> None:
    text = SONG + "\n🎵\n[ti:x]\n[lang:ko]\n~~~\nสวัสดี\n\u200b\n"
    report = tokenizer.report(text)
    assert len(report.lines) == len(text.split("\n"))
    for line in report.lines:
        silent = not line.language and line.text.strip(" \u200b")
        assert not silent or line.dropped, line


# -- any text, any vocabulary ------------------------------------------------------------------

_TEXT = st.text(
    st.one_of(st.characters(), st.sampled_from("aé1.,$€%[]<>:\n 我か사д\u200d\ufe0f🎵")), max_size=60
)


@settings(max_examples=250, deadline=None, suppress_health_check=list(HealthCheck))
@given(text=_TEXT)
def test_any_text_gives_ids_of_the_vocabulary(
    tokenizer: LyricTokenizer, miniature: LyricTokenizer, text: str
) -> None:
    for subject in (tokenizer, miniature):
        ids = subject.tokenize(text)
        assert all(0 <= token < subject.vocab_size for token in ids)
        assert ids[0] == subject.start_id
        lyrics_report(text, subject)


@settings(max_examples=250, deadline=None, suppress_health_check=list(HealthCheck))
@given(line=_TEXT, language=st.sampled_from(sorted(LANGUAGES)))
def test_any_line_in_any_language_gives_ids_of_the_vocabulary(
    tokenizer: LyricTokenizer, miniature: LyricTokenizer, line: str, language: str
) -> None:
    for subject in (tokenizer, miniature):
        ids = [*subject.encode_line(line, language), *subject.tokenize(line, language)]
        assert all(0 <= token < subject.vocab_size for token in ids)


@pytest.mark.slow_after(60)
@pytest.mark.parametrize("language", sorted(LANGUAGES))
@pytest.mark.parametrize(
    "line",
    [
        "9" * 2000,
        "9" * 400 + ".5",
        "$" + "9" * 400,
        "1." * 500,
        "٣" * 50,
        "9" * 3000 + "个",
        "²½①",
        "a" * 5000,
    ],
    ids=["long", "inf", "sum", "dots", "arabic", "measure", "fractions", "word"],
)
def test_absurd_numbers_do_not_break_anything(tokenizer: LyricTokenizer, line: str, language: str) -> None:
    ids = tokenizer.encode_line(line, language)
    assert ids and all(0 <= token < tokenizer.vocab_size for token in ids)


def test_miniature_vocabulary_makes_unknown_tokens(miniature: LyricTokenizer) -> None:
    assert miniature.vocab_size == 7
    ids = miniature.tokenize("abc z\n爱\nabc")
    assert max(ids) < 7 and miniature.unknown_id in ids
    assert "z" in miniature.report("abc z").lines[0].unknown


def test_the_demos_vocabulary(tmp_path: Path) -> None:
    path = tmp_path / "lyric_vocab.json"
    path.write_text(json.dumps(miniature_vocabulary()), encoding="utf-8")
    demo = LyricTokenizer(path)
    ids = demo.tokenize(SONG)
    assert ids[0] == START and ids[-1] == END and max(ids) < demo.vocab_size
    assert ids[:4] == [START, 259, demo.encode_line("[intro]", "en")[1], END]
    assert "爱" not in demo.report("爱").unknown  # it is spelled ai4 before tokens are looked for


# -- speed -------------------------------------------------------------------------------------

_IMPORT = """
from acestep_mlx.text.lines import line_languages
from acestep_mlx.families.v1.lyrics.tokenizer import LyricTokenizer
tokenizer = LyricTokenizer({vocab!r}); tokenizer.encode_line("love me", "en")
import sys; heavy = "num2words pypinyin cutlet hangul_romanize py3langid mlx torch".split()
print([name for name in heavy if name in sys.modules])
"""


def test_import_takes_no_language_library_along() -> None:
    script = _IMPORT.format(vocab=str(reference.vocab()))
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"


def calls(tokenizer: LyricTokenizer, text: str) -> int:
    """How many functions are called to tokenise `text`."""
    count = 0

    def seen(frame: object, event: str, argument: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(seen)
    try:
        tokenizer.tokenize(text)
    finally:
        sys.setprofile(None)
    return count


@pytest.mark.parametrize("code", ["en", "zh", "ja", "de", "ar", "ko"])
def test_work_grows_with_the_length_and_not_faster(tokenizer: LyricTokenizer, code: str) -> None:
    """Seconds are in the log (`benchmarks/lyrics.py`); here work is counted, in songs of different lines."""
    rows = [row.split("\t") for row in (DATA / "detection.tsv").read_text(encoding="utf-8").splitlines()]
    lines = [row[1] for row in rows if row[0] == code]
    numbers = iter(range(100, 1000))  # no line comes twice

    def song(copies: int) -> str:
        return "\n".join(f"{line} {next(numbers)}" for _ in range(copies) for line in lines[:10])

    tokenizer.tokenize(song(2))  # libraries and their tables are loaded
    once, twice, eight = (calls(tokenizer, song(copies)) for copies in (1, 2, 8))
    assert twice < 3 * once and eight < 12 * once, (once, twice, eight)


@pytest.mark.parametrize("line", ["ﾗﾌﾞ", "ｱｲ", "ｱ雨ﾗ"])
def test_east_asian_characters_are_left_to_their_romanisers(line: str) -> None:
    assert fit(line, frozenset("ラブフアイ\u3099")) == (line, [])
