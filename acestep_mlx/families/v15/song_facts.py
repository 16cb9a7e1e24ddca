"""What people write of a song's tempo, key, metre and language, as the model was taught to read it.

Forms: a whole number of beats a minute; a note with `#`, `b`, `♯` or `♭` and `major` or `minor`; `2`, `3`,
`4` or `6` beats a bar; an ISO code.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from ...errors import ConfigError
from ...io.schema import show
from ...text.blanks import is_blank
from ...text.languages import language_code
from ..songs import Known

#: field of `Words` → names that columns and keys of files have for it
NAMES: Mapping[str, tuple[str, ...]] = {
    "bpm": ("bpm", "tempo"),
    "keyscale": ("keyscale", "key", "scale"),
    "timesignature": ("timesignature", "time_signature", "signature", "sig"),
    "language": ("language", "lang"),
}
SLOWEST, FASTEST = 20, 400
METRES = ("2", "3", "4", "6")
_KEY = re.compile(r"([A-Ga-g])\s*(#|♯|♭|b|sharp|flat)?(?:[\s_:-]*(major|maj|minor|min|m|M))?")
_CAMELOT = re.compile(r"0?([1-9]|1[0-2])([ABab])")  # DJ programs' wheel of fifths
_WHEEL = {
    "A": ("G#", "D#", "Bb", "F", "C", "G", "D", "A", "E", "B", "F#", "C#"),
    "B": ("B", "F#", "Db", "Ab", "Eb", "Bb", "F", "C", "G", "D", "A", "E"),
}
_ACCIDENTALS = {"sharp": "#", "flat": "b"}
_METRE = re.compile(r"(\d+)(?:\s*/\s*\d+)?")
_CODE = re.compile(r"[a-z]{3}")  # as yue; those of two letters are few enough to be known
_ISO_639_1 = (
    "aa ab ae af ak am an ar as av ay az ba be bg bh bi bm bn bo br bs ca ce ch co cr cs cu cv cy da de "
    "dv dz ee el en eo es et eu fa ff fi fj fo fr fy ga gd gl gn gu gv ha he hi ho hr ht hu hy hz ia id "
    "ie ig ii ik io is it iu ja jv ka kg ki kj kk kl km kn ko kr ks ku kv kw ky la lb lg li ln lo lt lu "
    "lv mg mh mi mk ml mn mr ms mt my na nb nd ne ng nl nn no nr nv ny oc oj om or os pa pi pl ps pt qu "
    "rm rn ro ru rw sa sc sd se sg si sk sl sm sn so sq sr ss st su sv sw ta te tg th ti tk tl tn to tr "
    "ts tt tw ty ug uk ur uz ve vi vo wa wo xh yi yo za zh zu"
)


def _bpm(text: str) -> int | None:
    try:
        tempo = float(re.sub(r"\s*bpm$", "", text, flags=re.IGNORECASE))
    except ValueError:
        return None
    return round(tempo) if SLOWEST <= tempo <= FASTEST else None


def _keyscale(text: str) -> str | None:
    """`f# Min`, `F#:min`, `11A` → `F# minor`; a note alone is major."""
    if wheel := _CAMELOT.fullmatch(text):
        side = wheel[2].upper()
        return f"{_WHEEL[side][int(wheel[1]) - 1]} {'minor' if side == 'A' else 'major'}"
    found = _KEY.fullmatch(text) or _KEY.fullmatch(text[:1] + text[1:].lower())
    if found is None:
        return None
    note, accidental, mode = found.groups()
    minor = mode is not None and (mode == "m" or mode.startswith("min"))
    accidental = _ACCIDENTALS.get(accidental, accidental or "")
    return f"{note.upper()}{accidental} {'minor' if minor else 'major'}"


def _timesignature(text: str) -> str | None:
    """`6/8` → `6`."""
    found = _METRE.fullmatch(text)
    return found[1] if found and found[1] in METRES else None


def _language(text: str) -> str | None:
    try:
        return language_code(text)
    except ConfigError:  # v1 sings fewer
        plain = text.lower().replace("_", "-").split("-")[0]
        return plain if plain in _ISO_639_1.split() or _CODE.fullmatch(plain) else None


_READERS: Mapping[str, tuple[Callable[[str], int | str | None], str]] = {
    "bpm": (_bpm, f"beats a minute, {SLOWEST} to {FASTEST}"),
    "keyscale": (_keyscale, "a key like C major or F# minor"),
    "timesignature": (_timesignature, f"one that the model knows: {', '.join(METRES)}, or with /4 or /8"),
    "language": (_language, "a language's code"),
}


def read(given: Mapping[str, Any]) -> Known:
    """What is known, of raw values by field; what cannot be understood is told and left out."""
    found = Known({}, [])
    for name, value in given.items():
        if is_blank(value, name):
            continue
        reader, wanted = _READERS[name]
        plain = isinstance(value, (str, int, float)) and not isinstance(value, bool)
        text = f"{value:.15g}" if plain and isinstance(value, float) else str(value).strip()
        known = reader(text) if plain else None
        if known is None:
            found.problems.append(f"{name} {show(value)} is not {wanted}")
        else:
            found.values[name] = known
    return found
