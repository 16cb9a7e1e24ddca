"""Lyrics to token ids, as ACE-Step's lyric encoder was trained to read them."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer

from acestep_mlx.errors import CheckpointError
from acestep_mlx.text.languages import language_code, language_tag
from acestep_mlx.text.normalise import normalise

START, END_OF_LINE, UNKNOWN = 261, 2, 1
MAX_TOKENS = 4096
LANGUAGES = (
    "en",
    "de",
    "fr",
    "es",
    "it",
    "pt",
    "pl",
    "tr",
    "ru",
    "cs",
    "nl",
    "ar",
    "zh",
    "ja",
    "hu",
    "ko",
    "hi",
)


class LyricTokenizer:
    """The lyric vocabulary of an MLX folder. Raises CheckpointError when the file is not one."""

    def __init__(self, vocab_path: str | Path) -> None:
        try:
            self._bpe = Tokenizer.from_file(str(vocab_path))
        except Exception as error:  # tokenizers raises plain Exception for every kind of bad file
            raise CheckpointError(f"{vocab_path} is not a lyric vocabulary: {error}") from error
        self.vocab_size = self._bpe.get_vocab_size()

    def tokenize(self, text: str, language: str | None = None) -> list[int]:
        """Whole lyrics: start token, then each line's ids and the end-of-line token, at most 4096 ids."""
        ids = [START]
        for line in text.split("\n"):
            line = line.strip()
            if line:
                ids += self.encode_line(line, language or "en")
            ids.append(END_OF_LINE)
        return ids[:MAX_TOKENS]

    def encode_line(self, line: str, lang: str) -> list[int]:
        """Ids of one line in a given language, without start and end tokens."""
        lang = language_code(lang)
        return self._bpe.encode((language_tag(lang) + normalise(line, lang)).replace(" ", "[SPACE]")).ids
