"""Structure marks of lyrics: what people call the parts of a song, and what the model has a token for."""

from __future__ import annotations

import re
import unicodedata

#: the marks that are one token in the lyric vocabulary
KNOWN = (
    "start", "intro", "verse", "chorus", "bridge", "outro", "end", "inst", "solo", "hook", "pre-chorus",
    "break",
)  # fmt: skip

# Other names, in the languages of the lyrics. Those in _STRONG are marks wherever they are a line by
# themselves; those in _WEAK may also be sung, and are marks only in square brackets.
_STRONG = {
    "verse": """verse verses vers strophe couplet verso estrofa strofa strofe zwrotka sloka versszak куплет
        主歌 벌스 절 aメロ""",
    "chorus": """chorus choruses refrain refrein coro estribillo refrão refrao ritornello refren refrén
        nakarat припев 副歌 サビ 후렴 후렴구 코러스 post_chorus postchorus post_refrain""",
    "pre-chorus": """pre_chorus prechorus pre_refrain prerefrain pré_refrain pré_refrão pre_coro
        pre_estribillo пред_припев предприпев 导歌 導歌 预副歌 預副歌 bメロ 프리코러스""",
    "bridge": "bridge brücke puente ponte бридж 桥段 橋段 cメロ ブリッジ 브릿지 middle_8 middle_eight",
    "intro": """intro introduction introducción introdução introduzione интро вступление 前奏
        イントロ 인트로""",
    "outro": "outro аутро концовка 尾奏 アウトロ 아웃트로",
    "hook": "hook hooks",
    "inst": """inst instrumental instrumentals interlude interludes interludio interlúdio zwischenspiel
        проигрыш 间奏 間奏 간주 instrumental_break instrumental_interlude instrumental_solo""",
    "solo": "соло 独奏 獨奏 ソロ 솔로",
}
_WEAK = {
    "start": "start",
    "intro": "opening prelude",
    "pre-chorus": "build buildup build_up lift",
    "bridge": "pont most",
    "break": "break breakdown",
    "inst": "drop music music_break music_interlude",
    "solo": "solo",
    "outro": "ending coda fade_out fadeout finale closing",
    "end": "end the_end fin",
}


def _table(names: dict[str, str]) -> dict[str, str]:
    return {alias.replace("_", " "): mark for mark, text in names.items() for alias in text.split()}


_STRONG_NAMES = _table(_STRONG)
_NAMES = _STRONG_NAMES | _table(_WEAK)
# What numbers a part or says that it comes again.
_COUNT_WORDS = """
    i ii iii iv v vi vii viii ix x a b c d st nd rd th one two three four five six seven eight first second
    third fourth fifth final last repeat repeats repeated reprise cont contd continued part pt double times
    time twice again no nr full half"""
_COUNTERS = frozenset(_COUNT_WORDS.split())
# Names that are marks without brackets and without a colon, when they are all of a line.
_BARE = ("verse", "chorus", "pre-chorus", "intro", "outro")
_MOST_WORDS = 5
_SEPARATOR = re.compile(r"[:：|,，;/+&(（\"“]|\s[-–—]+\s")
_WORD = re.compile(r"[^\W\d_]+|\d+")
_LAST_BRACKET = re.compile(r"\s*([(（\[][^()（）\[\]]*[)）\]])\s*$")
_DECORATION = " \t*_#=~|-–—•>"
_COUNT = re.compile(r"[(\[{]?\s*(?:[x×*]\s*\d{1,2}|\d{1,2}\s*[x×]|\d|repeat(?:s|ed)?)\s*[)\]}]?")
_TIME = re.compile(r"\d{1,3}(?:[:：]\d{1,3})+(?:[.,]\d+)?")


def known_mark(name: str, *, certain: bool = False) -> str | None:
    """The model's mark for the inside of a pair of brackets (`Verse 1`, `CHORUS x2`, `Guitar Solo`), or None.

    certain: only for names that nobody sings, and for nothing that merely holds one.
    """
    text = _TIME.sub(" ", unicodedata.normalize("NFKC", name).casefold())
    part = next((part for part in _SEPARATOR.split(text) if part.strip()), "")
    words = [word for word in _WORD.findall(part) if not word.isdigit()]
    if " ".join(_WORD.findall(part)) in _NAMES:  # the 8 of "middle 8" counts nothing
        words = _WORD.findall(part)
    core = [word for word in words if word not in _COUNTERS]
    phrase = " ".join(core)
    names = _STRONG_NAMES if certain else _NAMES
    found = names.get(phrase) or names.get(" ".join(words))
    if found or not core or len(core) > _MOST_WORDS:
        return found
    if core[-1] in ("solo", "solos") and len(core) > 1:
        return "solo"
    if certain:
        return None
    if len(core) == 2 and core[1] in ("break", "breakdown", "drop", "intro", "outro"):  # of an instrument
        return _NAMES[core[1]]
    for length in range(len(core) - 1, 0, -1):
        for piece in (" ".join(core[-length:]), " ".join(core[:length])):
            if piece in _STRONG_NAMES:
                return _STRONG_NAMES[piece]
    return None


def is_counter(text: str) -> bool:
    """Whether a text only numbers or repeats what stands before it: `x2`, `(2x)`, `repeat`."""
    return _COUNT.fullmatch(unicodedata.normalize("NFKC", text).casefold()) is not None


def mark_line(line: str) -> tuple[str, str] | None:
    """(mark, rest of the line) for a mark without square brackets: `(Chorus)`, `Verse 2:`, `**Bridge**`.

    None for every other line. Only names that nobody sings count, and without brackets, a colon or a
    decoration only the most usual ones.
    """
    bare = line.strip()
    plain = bare.strip(_DECORATION)
    match = re.fullmatch(r"(?:\((.*?)\)|（(.*?)）|<(.*?)>|\{(.*?)\})(.*)", plain)
    if match:
        inner = next(group for group in match.groups()[:4] if group is not None)
        mark, rest = known_mark(inner, certain=True), match[5].strip()
        spelled_out = inner[:1].isupper() or not rest
        return (mark, rest.lstrip(":：").strip()) if mark and spelled_out else None
    head, colon, rest = plain.replace("：", ":").partition(":")
    head = _LAST_BRACKET.sub(lambda last: "" if is_counter(last[1]) else last[0], head)
    mark = known_mark(head, certain=True)
    if mark is None or _SEPARATOR.search(head):  # words that would be lost
        return None
    if colon or plain != bare or mark in _BARE:
        return mark, rest.strip(_DECORATION)
    return None
