"""Digits to words in the thirteen languages that num2words reads aloud for us."""

from __future__ import annotations

import re
from functools import partial
from typing import Any

from num2words import num2words

# Letters that make the digits before them an ordinal. A form that begins with another one of the
# list ("os" after "o") could never be reached, so only the shorter stands here.
_ORDINAL_ENDINGS = {
    "ar": "ون|ين|ث|ر|ى",
    "de": r"st|nd|rd|th|º|ª|\.(?=\s|$)",
    "en": "st|nd|rd|th",
    "es": "er|o|a|º|ª",
    "fr": "er|re|ème|e|º|ª",
    "hu": r"adik|edik|odik|ödik|ik|\.",
    "it": "o|a|i|e|º|ª|°",
    "ko": "번째|번|차|째",
    "nl": "ste|de|e",
    "pl": "st|nd|rd|th|º|ª",
    "pt": "o|a|º|ª",
    "ru": "-й|-я|-ое|-е|-ье|-го",
    "tr": r"inci|nci|uncu|üncü|\.",
}
_ORDINAL = {language: re.compile(f"([0-9]+)(?:{ends})") for language, ends in _ORDINAL_ENDINGS.items()}

# Between the whole sum and "zero cents"; a round sum is cut there.
_AND_CENTS = {"de": " und ", "es": " con ", "fr": " et ", "it": " e ", "pt": " e "}
_AMOUNT = "[0-9.,]*[0-9]"
_CURRENCIES = {
    code: re.compile(f"{re.escape(sign)}{_AMOUNT}|{_AMOUNT}{re.escape(sign)}")
    for sign, code in (("£", "GBP"), ("$", "USD"), ("€", "EUR"))
}

# 1,000,000.5 in English; Russian lyrics are read the same way. Everybody else writes 1.000.000,5.
_COMMA_THOUSANDS = re.compile(r"\b\d{1,3}(?:,\d{3})*(?:\.\d+)?\b")
_DOT_THOUSANDS = re.compile(r"\b\d{1,3}(?:.\d{3})*(?:,\d+)?\b")
_DECIMAL = re.compile(r"[0-9]+[.,][0-9]+")
_INTEGER = re.compile(r"[0-9]+")


class Unreadable(Exception):
    """num2words has no words for this number; the line keeps its digits."""


def _say(number: float, language: str, **form: Any) -> str:
    try:
        found: str = num2words(number, lang=language, **form)
        return found
    except Exception as error:
        # Every language module fails in its own way: NotImplementedError, OverflowError, KeyError …
        raise Unreadable(number) from error


def _say_currency(match: re.Match[str], language: str, currency: str) -> str:
    """`$3.50` in words; without the cents when the sum is round."""
    written = match[0]
    try:
        amount = float(re.sub(r"[^\d.]", "", written.replace(",", ".")))
        whole = amount.is_integer()
    except ValueError as error:  # "1.2.3" is no sum
        raise Unreadable(written) from error
    words = _say(amount, language, to="currency", currency=currency)
    return words.rpartition(_AND_CENTS.get(language, ", "))[0] or words if whole else words


def _integer(digits: str) -> int:
    try:
        return int(digits)
    except ValueError as error:  # more digits than Python converts
        raise Unreadable(digits) from error


def expand_numbers(text: str, language: str) -> str:
    """Thousands, currencies, decimals, ordinals and whole numbers of lower-case `text` in words.

    Raises Unreadable when one number of the line cannot be read: the line then keeps all its digits,
    as it did in training. Czech always does: its numbers stay digits, for which the vocabulary has tokens.
    """
    if language == "cs":
        raise Unreadable(text)
    if language in ("en", "ru"):
        text = _COMMA_THOUSANDS.sub(lambda match: match[0].replace(",", ""), text)
    else:
        text = _DOT_THOUSANDS.sub(lambda match: match[0].replace(".", ""), text)
    try:
        for currency, pattern in _CURRENCIES.items():
            speak = partial(_say_currency, language=language, currency=currency)
            text = pattern.sub(speak, text)
    except Unreadable:
        pass  # the sums so far stay spoken, this one is read as a number and a symbol
    if language != "tr":
        text = _DECIMAL.sub(lambda match: _say(float(match[0].replace(",", ".")), language), text)
    text = _ORDINAL[language].sub(lambda match: _say(_integer(match[1]), language, ordinal=True), text)
    return _INTEGER.sub(lambda match: _say(_integer(match[0]), language), text)
