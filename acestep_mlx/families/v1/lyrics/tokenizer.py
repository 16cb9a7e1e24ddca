"""Lyrics to token ids, as ACE-Step's lyric encoder was trained to read them.

The whole text is a start token, then every line's ids closed by an end-of-line token; a blank line is
the end-of-line token alone. A line is its language's tag and its normalised text, with `[SPACE]` for
spaces. Structure lines (`[verse] …`) are read as English. 4096 ids are the most that the model takes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from tokenizers import Tokenizer

from ....errors import CheckpointError
from ....text.clean import clean_line
from ....text.detect import script_of
from ....text.languages import LANGUAGES, language_code, language_tag
from ....text.lines import Line, read_lines
from .normalise import normalise

MAX_TOKENS = 4096
# The two language tags and the start token whose ids the model was trained with.
FIXED_IDS = {"[en]": 259, "[de]": 260, "[START]": 261}
RULES_VERSION = 1  # part of cache keys: raise it when the ids of some line change


@dataclass(frozen=True)
class LineReport:
    """What became of one line. `tokens` closes with the end-of-line token; it is empty for a line that
    gives nothing to the song (`dropped` says why). `unknown` are the characters without a token."""

    number: int
    text: str
    language: str | None = None
    normalised: str = ""
    tokens: tuple[int, ...] = ()
    unknown: tuple[str, ...] = ()
    dropped: str | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class LyricsReport:
    """Whole lyrics: the ids the model gets (at most MAX_TOKENS) and the line reports behind them."""

    ids: tuple[int, ...]
    lines: tuple[LineReport, ...]
    cut_tokens: int = 0  # ids beyond MAX_TOKENS
    cut_line: int | None = None  # the first line that is not whole in `ids`

    @property
    def languages(self) -> dict[str, int]:
        """Language → number of its lines, most first."""
        return dict(Counter(line.language for line in self.lines if line.language).most_common())

    @property
    def unknown(self) -> dict[str, list[int]]:
        """Character without a token → the lines it stands in."""
        found: dict[str, list[int]] = {}
        for line in self.lines:
            for character in line.unknown:
                found.setdefault(character, []).append(line.number)
        return found

    @property
    def dropped(self) -> list[LineReport]:
        return [line for line in self.lines if line.dropped]


class _Encoded(NamedTuple):
    ids: tuple[int, ...]
    normalised: str
    unknown: tuple[str, ...]


class LyricTokenizer:
    """The lyric vocabulary of an MLX folder (`lyric_vocab.json`) with everything that leads to it.

    A line most of whose letters have no token (Thai, Greek, …) is encoded as upstream does, [UNK] by [UNK],
    and reported.
    Raises CheckpointError when the file is not a `tokenizers` vocabulary.
    """

    def __init__(self, vocab_path: str | Path) -> None:
        try:
            self._bpe = Tokenizer.from_file(str(vocab_path))
        except Exception as error:  # tokenizers has no exception class of its own
            raise CheckpointError(f"{vocab_path} is not a lyric vocabulary: {error}") from error
        self.vocab_size = self._bpe.get_vocab_size()
        self.unknown_id = self._bpe.token_to_id("[UNK]") or 0
        self.start_id = self._special("[START]")
        self.end_of_line_id = self._special("[SPACE]")
        # £ and € have no token, but the number and symbol words take them.
        single = {token for token in self._bpe.get_vocab() if len(token) == 1}
        self._known = frozenset(single | {"£", "€"}) - {"\ufffd"}
        self._encode = lru_cache(maxsize=1 << 16)(self._encode_uncached)

    @property
    def largest_id(self) -> int:
        """The largest id that lyrics can have."""
        return max(self._bpe.get_vocab().values(), default=0)

    def _special(self, token: str) -> int:
        found = self._bpe.token_to_id(token)
        return self.unknown_id if found is None else found

    def tokenize(self, text: str, language: str | None = None) -> list[int]:
        """Ids of whole lyrics, at most MAX_TOKENS. An empty text is one blank line.

        `language` (any form that `language_code` takes) is the language of every line; without it each
        line's is found. A `[lang:ja]` line wins over both from there on, `[lang:auto]` ends that.
        Raises ConfigError for an unknown `language`.
        """
        return list(self.report(text, language).ids)

    def encode_line(self, line: str, lang: str) -> list[int]:
        """Ids of one line in a given language, without start and end tokens.

        Nothing but the spelling of Unicode is mended here: emoji and the like become [UNK].
        """
        lang = language_code(lang)
        return list(self._encode(clean_line(line, lang), lang).ids)

    def report(self, text: str, language: str | None = None) -> LyricsReport:
        """As `tokenize`, with what became of each line."""
        reports = [self._finish(line) for line in read_lines(text, language, self._known)]
        ids = [self.start_id]
        cut_line = None
        for line in reports:
            ids += line.tokens
            if len(ids) > MAX_TOKENS and cut_line is None:
                cut_line = line.number
        return LyricsReport(tuple(ids[:MAX_TOKENS]), tuple(reports), max(0, len(ids) - MAX_TOKENS), cut_line)

    def _finish(self, line: Line) -> LineReport:
        end = (self.end_of_line_id,)
        notes = tuple(line.notes)
        if line.dropped:
            return LineReport(line.number, line.raw, dropped=line.dropped, notes=notes)
        if line.language is None:
            emptied = "nothing left to sing, read as a blank line" if line.mended else None
            return LineReport(line.number, line.raw, tokens=end, dropped=emptied, notes=notes)
        encoded = self._encode(clean_line(line.text, line.language), line.language)
        if encoded.unknown and (complaint := self._unsupported(line, encoded.unknown)):
            notes += (complaint,)
        ids = encoded.ids + end
        return LineReport(
            line.number, line.raw, line.language, encoded.normalised, ids, encoded.unknown, notes=notes
        )

    def _unsupported(self, line: Line, unknown: tuple[str, ...]) -> str | None:
        """A complaint when most letters of the line have no token, else None."""
        letters = [character for character in line.text if character.isalpha()]
        lost = [character for character in letters if character in unknown or character.lower() in unknown]
        if 2 * len(lost) <= len(letters) or not lost:
            return None
        scripts = {script_of(character) or "?" for character in lost}
        names = ", ".join(sorted(LANGUAGES.get(script, script.capitalize()) for script in scripts))
        return f"{names} script has no tokens in {LANGUAGES[line.language or 'en']}"

    def _encode_uncached(self, line: str, language: str) -> _Encoded:
        normalised = normalise(line, language)
        text = (language_tag(language) + normalised).replace(" ", "[SPACE]")
        encoding = self._bpe.encode(text)
        unknown: dict[str, None] = {}
        if self.unknown_id in encoding.ids:
            for token, (first, last) in zip(encoding.ids, encoding.offsets, strict=True):
                if token == self.unknown_id:
                    unknown[text[first:last]] = None
        if language == "ja" and normalised.count("?") > line.count("?") + line.count("？"):
            unknown |= dict.fromkeys(_without_reading(line))
        return _Encoded(tuple(encoding.ids), normalised, tuple(unknown))


def _without_reading(line: str) -> Iterator[str]:
    """Characters of a Japanese line that the romaniser can only write as a question mark."""
    for character in line:
        if not character.isascii() and character != "？" and normalise(character, "ja") == "?":
            yield character
