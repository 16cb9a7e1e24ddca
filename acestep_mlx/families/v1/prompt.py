"""Prompts to token ids for the UMT5 text encoder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import mlx.core as mx
import numpy as np
from tokenizers import Tokenizer

from ...errors import CheckpointError

MAX_LENGTH = 256  # tokens, the end token included
PAD, EOS = 0, 1


class PromptTokenizer:
    """The text encoder's `tokenizer.json`. Raises CheckpointError when the file is not one.

    pad: the id of what is no token.
    """

    pad = PAD

    def __init__(self, path: str | Path) -> None:
        try:
            self._tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # tokenizers raises plain Exception for every kind of bad file
            raise CheckpointError(f"{path} is not a tokenizer file: {error}") from None
        self._tokenizer.no_padding()

    @property
    def largest_id(self) -> int:
        """The largest id that a prompt can have."""
        return max(self._tokenizer.get_vocab().values(), default=0)

    def __call__(
        self, prompts: str | Sequence[str], max_length: int = MAX_LENGTH
    ) -> tuple[mx.array, mx.array]:
        """Ids and mask, both (B, L) int32; L is the longest prompt's length, at most `max_length` tokens.

        Every row ends with the end token, also when it was cut; an empty prompt is that token alone.
        """
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        self._tokenizer.enable_truncation(max_length)
        rows = [encoding.ids for encoding in self._tokenizer.encode_batch(prompts)]
        length = max(len(row) for row in rows)
        ids = np.full((len(rows), length), self.pad, np.int32)
        mask = np.zeros((len(rows), length), np.int32)
        for i, row in enumerate(rows):
            ids[i, : len(row)], mask[i, : len(row)] = row, 1
        return mx.array(ids), mx.array(mask)
