"""What files bring along that nobody sings: marks, stamps, emoji, other spellings of one character.

Two levels. `clean_line` changes nothing that can be seen. `fit` also replaces or removes what the
vocabulary has no token for, and says so; a character that the vocabulary knows is never touched, so
that a line which upstream reads without [UNK] keeps upstream's tokens.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter

from ..formatting import tallied

_LINE_BREAKS = re.compile("\r\n|[\n\r\u2028\u2029]")
# Byte-order mark, soft hyphen, word joiner, zero-width space, direction marks and embeddings,
# variation selectors, and control characters that are not white space.
_INVISIBLE = re.compile(
    "[\u00ad\u061c\u180e\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\ufeff\ufe00-\ufe0f\ufff9-\ufffb"
    "\U000e0000-\U000e01ef\u0000-\u0008\u000e-\u001b\u007f-\u0084\u0086-\u009f]"
)
_JOINERS = re.compile("[\u200c\u200d]")  # they shape letters in these two, and glue emoji elsewhere
_JOINING_LANGUAGES = ("ar", "hi")
_STRAY_MARK = re.compile("[\u0300-\u036f\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff\ufe20-\ufe2f]")
_LEFT_OVER = re.compile("(?: [\u200c\u200d]*)+ ?")  # the holes that emoji leave, with what glued them
_SURROGATES = re.compile("[\ud800-\udfff]")
# Nukta letters: Unicode's composed form takes them apart, the vocabulary has them whole.
_WHOLE_NUKTA = re.compile("([\u0958-\u095f])")

# Their romanisers read these whether or not the vocabulary knows them.
_EAST_ASIAN = re.compile(
    "[\u1100-\u11ff\u2e80-\u303f\u3040-\u31ff\u3400-\u9fff\ua960-\ua97f\uac00-\ud7ff\uf900-\ufaff\uff65-\uffdc"
    "\U00016fe0-\U00018cff\U0001b000-\U0001b16f\U00020000-\U0003ffff]"
)

_STAMP = r"\[\d{1,3}:\d{1,2}(?:[.:]\d{1,3})?\]"
_STAMPS_AT_START = re.compile(rf"\s*(?:{_STAMP}\s*)+")
_WORD_STAMP = re.compile(r"\s*<\d{1,3}:\d{1,2}(?:[.:]\d{1,3})?>\s*")
_LRC_TAG = re.compile(r"\[(?:al|ar|au|by|length|offset|re|ti|tool|ve)\s*:[^\]]*\]", re.IGNORECASE)
_LANGUAGE_TAG = re.compile(r"\[\s*lang(?:uage)?\s*[:=]\s*([^\]]*?)\s*\]", re.IGNORECASE)

# Punctuation without a token whose plain sibling has one.
_SIBLINGS = str.maketrans({
    "‐": "-", "‒": "-", "―": "-", "⸺": "-", "﹘": "-", "ʼ": "'", "ʻ": "'", "′": "'", "‛": "'", "‚": ",",
    "‟": "”", "″": "”", "‹": "«", "›": "»", "．": ".", "۔": ".", "½": "1/2",
    "¼": "1/4", "¾": "3/4", "⁄": "/",
})  # fmt: skip


def split_lines(text: str) -> list[str]:
    """Lines without their ends; CRLF, CR and the Unicode separators count as one break."""
    return _LINE_BREAKS.split(text)


def clean_line(line: str, language: str | None = None) -> str:
    """`line` in NFC without invisible characters.

    Zero-width joiners stay while the language is not known, and in those where they shape letters.
    """
    if line.isascii() and line.isprintable():
        return line
    line = _INVISIBLE.sub("", _SURROGATES.sub("\ufffd", line))
    if language is not None and language not in _JOINING_LANGUAGES:
        line = _JOINERS.sub("", line)
    if unicodedata.is_normalized("NFC", line):
        return line
    pieces = _WHOLE_NUKTA.split(line)
    return "".join(
        piece if _WHOLE_NUKTA.match(piece) else unicodedata.normalize("NFC", piece) for piece in pieces
    )


def strip_stamps(line: str) -> str:
    """`line` without LRC time stamps, those of the line and those of single words."""
    if "[" in line and (match := _STAMPS_AT_START.match(line)):
        line = line[match.end() :]
    if "<" not in line:
        return line
    return _WORD_STAMP.sub(lambda stamp: " " if " " in stamp[0] else "", line).strip()


def is_lrc_tag(line: str) -> bool:
    """Whether the line is LRC's own data (`[ar:Artist]`, `[offset:+100]`), which is not sung."""
    return _LRC_TAG.fullmatch(line) is not None


def language_tag_of(line: str) -> tuple[str, str] | None:
    """(language, rest of the line) for `[lang:ja] …`; None for other lines."""
    match = _LANGUAGE_TAG.match(line)
    return (match[1], line[match.end() :].strip()) if match else None


def _silent(character: str) -> str | None:
    """What stays of a character that is not pronounced: a space for emoji, notes and arrows, nothing for a
    stray accent. None for letters and the like, which do stand for a sound."""
    if unicodedata.category(character) in ("So", "Sk", "Sm", "Cc", "Cf", "Cn", "Co"):
        return " "
    return "" if _STRAY_MARK.match(character) else None


def _spelled(character: str, known: frozenset[str]) -> str | None:
    """The same character in known ones: `ﬁ` → `fi`, `Ａ` → `A`, `ạ` → `a`. None when there is none."""
    sibling = character.translate(_SIBLINGS)
    if sibling != character:
        return sibling
    if unicodedata.category(character) == "So":  # ™ is not sung as TM
        return None
    for form in ("NFKC", "NFKD"):
        twin = unicodedata.normalize(form, character)
        plain = "".join(part for part in twin if form == "NFKC" or not unicodedata.combining(part))
        if plain and plain != character and all(part.isascii() or part in known for part in plain.lower()):
            return plain
    return None


def fit(line: str, known: frozenset[str]) -> tuple[str, list[str]]:
    """`line` without what `known` (lower-case characters) lacks and that can be mended, and what was done.

    ASCII and every known character stay. Other spellings of known characters are respelled, symbols
    and emoji are removed; unknown letters of other scripts stay, they are counted later.
    """
    if line.isascii():
        return line, []
    strange = {
        character
        for character in line
        if not character.isascii() and character.lower() not in known and not _EAST_ASIAN.match(character)
    }
    if not strange:
        return line, []
    removed, respelled, out = Counter[str](), Counter[str](), []
    for character in line:
        if character not in strange or character.isspace():
            out.append(character)
        elif (twin := _spelled(character, known)) is not None:
            out.append(twin)
            respelled[f"{character} → {twin}"] += 1
        elif (rest := _silent(character)) is not None:
            out.append(rest)
            removed[character] += 1
        else:
            out.append(character)
    notes = [
        f"{verb} {tallied(what)}" for verb, what in (("removed", removed), ("respelled", respelled)) if what
    ]
    return _LEFT_OVER.sub(" ", "".join(out)).strip(), notes
