"""No weight of the language detection is idle: each decides some line, and another value of it errs."""

from __future__ import annotations

import pytest

from acestep_mlx.text import detect as module
from acestep_mlx.text.detect import detect, detect_lines

#: weight, another value of it, a line, its language, what the line is taken for with the other value
DECIDES = [
    ("_WORD_WEIGHT", 0.8, "Du fehlst", "de", "cs"),
    ("_WORD_WEIGHT", 3.2, "bord de la Seine", "fr", "de"),
    ("_LETTER_WEIGHT", 0.0, "trovò", "it", "cs"),
    ("_STATISTICS_WEIGHT", 0.3, "guitarra", "es", "en"),
    ("_STATISTICS_WEIGHT", 1.2, "horses", "en", "es"),
    ("_DEFAULT_WEIGHT", 0.0, "sugar", "en", "es"),
    ("_DEFAULT_WEIGHT", 1.2, "gente", "pt", "en"),
    ("_CLEAR", 1.0, "pioggia d'agosto", "it", "fr"),
]


@pytest.fixture(autouse=True)
def nothing_remembered() -> object:
    """Detection remembers lines and votes; here the weights change under it."""
    return _forget


def _forget() -> None:
    detect.cache_clear()
    module._word_votes.cache_clear()


@pytest.mark.parametrize(("weight", "other", "line", "language", "taken"), DECIDES)
def test_each_weight_decides_a_line(
    weight: str, other: float, line: str, language: str, taken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert detect(line).language == language
    monkeypatch.setattr(module, weight, other)
    _forget()
    try:
        assert detect(line).language == taken
    finally:
        _forget()


#: what the last line of a song is taken for alone (as a rule), and after these lines
SONGS = [
    ("_SURE", 0.5, ["Tudo passa", "Só hoje", "dizia"], "pt", "it"),
    ("_SURE", 4.0, ["Te quiero", "Vuelve", "esquina"], "es", "pt"),
]


@pytest.mark.parametrize(("weight", "other", "song", "language", "taken"), SONGS)
def test_how_sure_a_line_must_be_decides_a_song(
    weight: str, other: float, song: list[str], language: str, taken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert detect_lines(song)[-1].language == language
    monkeypatch.setattr(module, weight, other)
    assert detect_lines(song)[-1].language == taken


@pytest.mark.parametrize(
    ("song", "language"),
    [
        # a language that the song has not had is not ruled out for ever …
        (["Trzymaj mnie mocno", "Hepsi geçer", "Gdzie jest mój dom", "Mama"], "pl"),
        (["Flores no cabelo", "Alles dreht sich", "Sem você", "Poeira"], "pt"),
        # … nor is a short word English because English is never far away
        (["Mon amour", "Caballos salvajes", "Reviens-moi", "glace"], "fr"),
        (
            ["My mama told me", "Las calles saben cosas que yo nunca diré", "Moonlight on the harbour", "I"],
            "en",
        ),
        (["Só hoje", "Daj mi czas", "Cavalos selvagens", "hoje"], "pt"),
        (["Cavalos selvagens", "Reviens-moi", "Baby, me leva pra longe daqui", "de"], "pt"),
        (["Polvo de estrellas", "Sin ti", "la"], "es"),
        (["Corri più forte", "Canta con me", "oh oh"], "it"),
        # … and a word that is hardly anything stays with its song
        (["Papierboote treiben nach dem Regen in der Rinne", "és"], "de"),
        (["Papierowe łódki płyną rynsztokiem po deszczu", "és"], "pl"),
    ],
)
def test_an_unsure_line_follows_its_song_in_proportion(song: list[str], language: str) -> None:
    assert detect_lines(song)[-1].language == language


@pytest.mark.parametrize(
    ("line", "language"),
    [
        ("¿tu?", "es"),  # marks that one language alone writes
        ("¿calles?", "es"),
        ("mir, mir, mir, mir, mir, Nélküled", "hu"),  # a word repeated for the rhythm is one word
        ("Donne-moi, Donne-moi, Donne-moi, Donne-moi, Donne-moi, Moje serce", "pl"),
        ("l’ombra", "it"),  # a curly apostrophe is an apostrophe
        ("c’è", "it"),
        ("mi sombra dormida en", "es"),  # words that several languages have count for each a little
        ("時々", "ja"),  # 々 is written in Japan alone
        ("我们の世界", "zh"),  # の alone does not make Chinese Japanese …
        ("君の世界", "ja"),  # … but where nothing says Chinese it does
        ("사랑해 さようなら 안녕", "ko"),  # more Hangul than kana
        ("さようなら みんな 안", "ja"),
        ("ﾗﾌﾞｿﾝｸﾞ", "ja"),  # kana of half width are kana
        ("愛していない", "ja"),
    ],
)
def test_rules_that_decide_a_line(line: str, language: str) -> None:
    assert detect(line).language == language


def test_letters_of_full_width_are_latin() -> None:
    assert {module.script_of(letter) for letter in "ＬｉebeÄ"} == {"latin"}
    assert detect("ＬＯＶＥ").foreign is None


def test_marks_that_are_no_letters_say_nothing() -> None:
    for line in ("Du fehlst", "trovò", "gente", "c'è una luce"):
        for mark in ("…", "—", "”", "€", "♪"):
            plain, marked = detect(line), detect(f"{line} {mark}")
            assert marked.language == plain.language and marked.lead == pytest.approx(plain.lead)


def test_an_elided_word_votes_with_its_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    with_parts = detect("J'aime l'été").lead
    assert with_parts > detect("Jaime lété").lead + 2 and detect("J'aime l'été").language == "fr"


def test_a_clear_line_asks_for_no_statistics(monkeypatch: pytest.MonkeyPatch) -> None:
    """They need a model that takes most of a second to load."""
    _forget()
    monkeypatch.setattr(module, "_identifier", lambda: pytest.fail("the statistics are asked"))
    assert detect("Ich hab mein Herz am Bahnhof stehen lassen und du bist nicht da").language == "de"


def test_a_script_without_a_language_here_is_left_as_it_is_in_a_song() -> None:
    guesses = detect_lines(["Ich will nicht mehr nach Haus gehen", "สวัสดีครับ"])
    assert guesses[1].foreign == "THAI" and guesses[1].language == "en"
