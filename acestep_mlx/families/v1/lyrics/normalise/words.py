"""Abbreviations and symbols, spoken. Tables by what is written; rows by language."""

from __future__ import annotations

import re

# What a symbol is called. ja and hi have none: theirs is another path.
SYMBOLS: dict[str, dict[str, str]] = {
    "#": {
        "ar": "رقم", "cs": "křížek", "de": "raute", "en": "hash", "es": "numeral", "fr": "dièse",
        "hu": "kettőskereszt", "it": "cancelletto", "ko": "번호", "nl": "hekje", "pl": "krzyżyk",
        "pt": "cardinal", "ru": "номер", "tr": "diyez", "zh": "号",
    },
    "$": {
        "ar": "دولار", "cs": "dolar", "de": "dollar", "en": "dollar", "es": "dolar", "fr": "dollar",
        "hu": "dollár", "it": "dollaro", "ko": "달러", "nl": "dollar", "pl": "dolar", "pt": "dólar",
        "ru": "доллар", "tr": "dolar", "zh": "美元",
    },
    "%": {
        "ar": "في المئة", "cs": "procento", "de": "prozent", "en": "percent", "es": "por ciento",
        "fr": "pour cent", "hu": "százalék", "it": "per cento", "ko": "퍼센트", "nl": "procent",
        "pl": "procent", "pt": "por cento", "ru": "процентов", "tr": "yüzde", "zh": "百分之",
    },
    "&": {
        "ar": "و", "cs": "a", "de": "und", "en": "and", "es": "y", "fr": "et", "hu": "és", "it": "e",
        "ko": "그리고", "nl": "en", "pl": "i", "pt": "e", "ru": "и", "tr": "ve", "zh": "和",
    },
    "@": {
        "ar": "على", "cs": "na", "de": "at", "en": "at", "es": "arroba", "fr": "arobase", "hu": "kukac",
        "it": "chiocciola", "ko": "에", "nl": "bij", "pl": "małpa", "pt": "arroba", "ru": "собака",
        "tr": "at", "zh": "在",
    },
    "£": {
        "ar": "جنيه", "cs": "libra", "de": "pfund", "en": "pound", "es": "libra", "fr": "livre",
        "hu": "font", "it": "sterlina", "ko": "파운드", "nl": "pond", "pl": "funt", "pt": "libra",
        "ru": "фунт", "tr": "sterlin", "zh": "英镑",
    },
    "°": {
        "ar": "درجة", "cs": "stupně", "de": "grad", "en": "degree", "es": "grados", "fr": "degrés",
        "hu": "fok", "it": "gradi", "ko": "도", "nl": "graden", "pl": "stopnie", "pt": "graus",
        "ru": "градус", "tr": "derece", "zh": "度",
    },
}  # fmt: skip

# What is written before the full stop (Russian: with a hyphen, no stop), and what is said.
ABBREVIATIONS: dict[str, dict[str, str]] = {
    "cs": {"dr": "doktor", "ing": "inženýr", "p": "pan"},
    "de": {"co": "firma", "dr": "doktor", "fr": "frau", "jr": "junior", "st": "sankt"},
    "en": {
        "capt": "captain", "co": "company", "col": "colonel", "dr": "doctor", "drs": "doctors",
        "esq": "esquire", "ft": "fort", "gen": "general", "hon": "honorable", "jr": "junior",
        "lt": "lieutenant", "ltd": "limited", "maj": "major", "mr": "mister", "mrs": "misess",
        "rev": "reverend", "sgt": "sergeant", "st": "saint",
    },
    "es": {
        "co": "compañía", "dr": "doctor", "dra": "doctora", "jr": "junior", "ltd": "limitada",
        "sr": "señor", "sra": "señora", "st": "santo",
    },
    "fr": {
        "co": "compagnie", "dr": "docteur", "jr": "junior", "ltd": "limitée", "mme": "madame",
        "mr": "monsieur", "st": "saint",
    },
    "hu": {"b": "bácsi", "dr": "doktor", "nőv": "nővér"},
    "it": {
        "co": "compagnia", "dr": "dottore", "jr": "junior", "ltd": "limitata", "sig": "signore",
        "st": "santo",
    },
    "nl": {"dhr": "de heer", "dr": "dokter", "jhr": "jonkheer", "mevr": "mevrouw"},
    "pl": {"dr": "doktor", "jr": "junior", "m": "pan", "p": "pani", "sw": "święty"},
    "pt": {
        "co": "companhia", "dr": "doutor", "dra": "doutora", "jr": "júnior", "ltd": "limitada",
        "sr": "senhor", "sra": "senhora", "st": "santo",
    },
    "ru": {"г-жа": "госпожа", "г-н": "господин", "д-р": "доктор"},
    "tr": {"b": "bay", "byk": "büyük", "dr": "doktor"},
}  # fmt: skip


def _pattern(language: str) -> re.Pattern[str]:
    written = "|".join(ABBREVIATIONS[language])
    return re.compile(rf"\b({written})" + (r"\b" if language == "ru" else r"\."))


_ABBREVIATION = {language: _pattern(language) for language in ABBREVIATIONS}
_SYMBOL = re.compile("[" + re.escape("".join(SYMBOLS)) + "]")


def expand_abbreviations(text: str, language: str) -> str:
    """`dr. who` → `doctor who`; `text` is lower-case."""
    pattern = _ABBREVIATION.get(language)
    if pattern is None:
        return text
    return pattern.sub(lambda match: ABBREVIATIONS[language][match[1]], text)


def expand_symbols(text: str, language: str) -> str:
    """`you & me` → `you and me`, with spaces around the word; the ends are stripped."""
    return _SYMBOL.sub(lambda match: f" {SYMBOLS[match[0]][language]} ", text).strip()
