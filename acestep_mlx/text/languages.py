"""The seventeen languages that ACE-Step sings, and the names people give them."""

from __future__ import annotations

from ..errors import ConfigError, nearest
from ..io.schema import show

LANGUAGES = {
    "ar": "Arabic",
    "cs": "Czech",
    "de": "German",
    "en": "English",
    "es": "Spanish",
    "fr": "French",
    "hi": "Hindi",
    "hu": "Hungarian",
    "it": "Italian",
    "ja": "Japanese",
    "ko": "Korean",
    "nl": "Dutch",
    "pl": "Polish",
    "pt": "Portuguese",
    "ru": "Russian",
    "tr": "Turkish",
    "zh": "Chinese",
}

# ISO 639-2/3 codes and country codes that stand for a language in the wild.
_ALIASES = {
    "ara": "ar", "ces": "cs", "chi": "zh", "cmn": "zh", "cn": "zh", "cz": "cs", "cze": "cs", "deu": "de",
    "dut": "nl", "eng": "en", "fra": "fr", "fre": "fr", "ger": "de", "hin": "hi", "hun": "hu", "ita": "it",
    "jp": "ja", "jpn": "ja", "kor": "ko", "kr": "ko", "mandarin": "zh", "nld": "nl", "pol": "pl", "por": "pt",
    "rus": "ru", "spa": "es", "tur": "tr", "zho": "zh",
}  # fmt: skip
_AUTOMATIC = ("", "auto")
_BY_NAME = {name.lower(): code for code, name in LANGUAGES.items()}


def language_code(name: str, where: str = "lyrics language") -> str:
    """The two-letter code for `zh`, `zh-CN`, `pt_BR`, `jpn`, `Japanese`.

    Raises ConfigError for a language that the model has no tokens for.
    """
    key = name.strip().lower().replace("_", "-")
    for form in (key, key.split("-")[0]):
        code = form if form in LANGUAGES else _ALIASES.get(form) or _BY_NAME.get(form)
        if code:
            return code
    known = ", ".join(LANGUAGES)
    hint = nearest(key, [*LANGUAGES.values(), *_BY_NAME])
    raise ConfigError(f"{where} {show(name)} is not one the model sings{hint} (known: {known})")


def is_language_code(name: str) -> bool:
    """Whether `name` is a code such as `zh`, `pt_BR` or `jpn`, of a language that the model sings."""
    parts = name.lower().replace("_", "-").split("-")
    return len(parts[0]) < 4 and (parts[0] in LANGUAGES or parts[0] in _ALIASES)


def forced_language(language: str | None, where: str = "lyrics language") -> str | None:
    """The code of a language that somebody set; None for "auto". Raises ConfigError for an unknown one."""
    if language is None or language.strip().lower() in _AUTOMATIC:
        return None
    return language_code(language, where)


def language_tag(code: str) -> str:
    """The vocabulary's own tag for a language; only Chinese carries a region there."""
    return "[zh-cn]" if code == "zh" else f"[{code}]"
