"""Which of the seventeen languages a line is in: by its script, then by letters, words and py3langid.

Upstream counts characters of segments and lets the largest win, which calls a Chinese line with a
few English words French. Here a script that only one language uses decides at once, and the eleven
languages in Latin letters are weighed against each other only.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from heapq import nlargest
from typing import Any

from .lexicon import LETTERS, SYLLABLES, WORDS

LATIN = tuple(LETTERS)
DEFAULT = "en"  # for a line that has no letters at all, as upstream

# Script → language; Han, kana and Latin need a closer look.
_SCRIPTS = {
    "ARABIC": "ar",
    "CJK": "han",
    "CYRILLIC": "ru",
    "DEVANAGARI": "hi",
    "HANGUL": "ko",
    "HIRAGANA": "kana",
    "IDEOGRAPHIC": "han",
    "KATAKANA": "kana",
    "KATAKANA-HIRAGANA": "kana",
    "LATIN": "latin",
}
_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")
_ASCII_LETTER = re.compile("[A-Za-z]")
_WORD_WEIGHT = 1.6
_LETTER_WEIGHT = 2.5  # against a language, per letter (or ¿ or ¡) that it does not have
_STATISTICS_WEIGHT = 0.6  # of py3langid's log-probability
_DEFAULT_WEIGHT = 0.4  # for English, where nothing speaks for anything: names, loan words
_CLEAR = 3.5  # a lead by words and letters that needs no statistics, which take time
_SURE = 2.0  # a lead over the second that the rest of the song does not overrule


@dataclass(frozen=True)
class Guess:
    """A line's language. `lead` is how far it is ahead of the second choice (0 = no evidence at all);
    `scores` has the Latin candidates, empty where the script decided. `foreign` is a script without a
    language here (`THAI`), when most of the letters are written in it."""

    language: str
    lead: float
    scores: tuple[tuple[str, float], ...] = ()
    foreign: str | None = None


@lru_cache(maxsize=4096)
def script_of(character: str) -> str | None:
    """`latin`, `han`, `kana` or a language code for a letter; the Unicode name's first word for a letter
    of another script; None for anything that is not a letter."""
    if not character.isalpha():
        return None
    name = unicodedata.name(character, "UNKNOWN").removeprefix("FULLWIDTH ").removeprefix("HALFWIDTH ")
    first = name.split(" ")[0]
    return _SCRIPTS.get(first, first)


@lru_cache(maxsize=4096)
def _han_side(character: str) -> int:
    """+1 for a form that only Japanese writes, −1 for one that only Chinese writes, else 0."""
    japanese = character.encode("shift_jis", "ignore")
    chinese = character.encode("gb2312", "ignore") or character.encode("big5", "ignore")
    return bool(japanese) - bool(chinese) if bool(japanese) != bool(chinese) else int(character == "々")


@cache
def _identifier() -> Any:
    """py3langid among the Latin languages alone; its model takes most of a second to load."""
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    identifier.set_languages(list(LATIN))
    return identifier


@cache
def _word_votes() -> dict[str, tuple[tuple[str, float], ...]]:
    """Word → its languages and the weight of its vote, which they share."""
    owners: dict[str, list[str]] = {}
    for language, words in WORDS.items():
        for word in set(words.split()):
            owners.setdefault(word, []).append(language)
    return {
        word: tuple((owner, _WORD_WEIGHT / len(names) ** 1.5) for owner in names)
        for word, names in owners.items()
    }


@lru_cache(maxsize=1 << 16)
def detect(line: str) -> Guess:
    """The language of one line, without its neighbours."""
    if line.isascii():
        return _latin(line) if _ASCII_LETTER.search(line) else Guess(DEFAULT, 0.0)
    scripts = Counter(script for script in map(script_of, line) if script)
    if not scripts:
        return Guess(DEFAULT, 0.0)
    if scripts["kana"] or scripts["han"] or scripts["ko"]:
        return _east_asian(line, scripts)
    for language in ("ar", "hi", "ru"):
        if scripts[language]:
            return Guess(language, math.inf)
    if not scripts["latin"]:
        return Guess(DEFAULT, 0.0, foreign=scripts.most_common(1)[0][0])
    return _latin(line)


def _east_asian(line: str, scripts: Counter[str]) -> Guess:
    """Hangul is Korean, kana Japanese; Han alone is Chinese unless a character is written only in Japan."""
    if scripts["ko"] and scripts["ko"] >= scripts["kana"]:
        return Guess("ko", math.inf)
    side = sum(map(_han_side, line)) if scripts["han"] else 0
    if scripts["kana"]:
        # の alone stands in Chinese titles and puns, too.
        kana = {character for character in line if script_of(character) == "kana"}
        return Guess("zh", math.inf) if kana == {"の"} and side < 0 else Guess("ja", math.inf)
    if side:
        return Guess("ja" if side > 0 else "zh", math.inf)
    return Guess("zh", 0.0)


def _latin(line: str) -> Guess:
    words = [word.replace("’", "'") for word in _WORD.findall(line.lower())]
    if all(word in SYLLABLES for word in words):
        return Guess(DEFAULT, 0.0)
    telling = list(dict.fromkeys(words))  # a word repeated for the rhythm is no more evidence
    scores = dict.fromkeys(LATIN, 0.0) | {DEFAULT: _DEFAULT_WEIGHT}
    votes = _word_votes()
    for word in telling:
        # An elided word votes with its parts: j'aime, l'amour, dell'anima; English has whole forms.
        for part in (word,) if word in votes else word.split("'"):
            for language, vote in votes.get(part, ()):
                scores[language] += vote
    if not line.isascii():
        strange = {character for character in line.lower() if not character.isascii()}
        for language, letters in LETTERS.items():
            scores[language] -= _LETTER_WEIGHT * len(strange.difference(letters))
    best, second = nlargest(2, scores.values())
    if best - second < _CLEAR:
        for language, probability in _identifier().rank(" ".join(telling)):
            scores[language] += _STATISTICS_WEIGHT * math.log(max(probability, 1e-4))
        best, second = nlargest(2, scores.values())
    winner = max(scores, key=scores.__getitem__)
    return Guess(winner, best - second, tuple(scores.items()))


def detect_lines(lines: Sequence[str]) -> list[Guess]:
    """The language of each line of one song. A line that is sure of itself stays so; one that could be
    several languages (`La la la`, `永遠`, `Solo tu`) follows the song's sure lines."""
    guesses = [detect(line) for line in lines]
    weight = Counter[str]()
    for line, guess in zip(lines, guesses, strict=True):
        if guess.lead >= _SURE:
            weight[guess.language] += sum(map(str.isalpha, line))
    if not weight:
        return guesses
    total = weight.total()
    return [
        guess if guess.lead >= _SURE else _in_context(guess, line, weight, total)
        for guess, line in zip(guesses, lines, strict=True)
    ]


def _in_context(guess: Guess, line: str, weight: Counter[str], total: int) -> Guess:
    scripts = {script_of(character) for character in line}
    if "han" in scripts:
        return Guess("ja", 0.0) if weight["ja"] > weight["zh"] else guess
    if guess.foreign:
        return guess
    if not guess.scores:  # no letters, or syllables alone
        return Guess(weight.most_common(1)[0][0], 0.0)
    share = {language: weight[language] / total + 0.02 for language in LATIN}
    share[DEFAULT] += 0.08
    prior = {language: 2 * math.log(share[language]) for language in LATIN}
    scores = {language: score + prior[language] for language, score in guess.scores}
    best = max(scores, key=scores.__getitem__)
    return Guess(best, guess.lead, guess.scores)
