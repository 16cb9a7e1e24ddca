"""The files of an ACE-Step 1.5 model that are no weights: Qwen3's tokenizer, of prompts and lyrics alike."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...errors import CheckpointError, cause
from ...io import schema
from ...io.filenames import at_home
from ...io.progress import Progress
from ..layout import Layout
from ..protocol import Folder, FoundTexts
from ..tokenizers import MAX_BYTES, TOKENIZER_KEY, check_tokenizer, describe_tokenizer, recorded_tokenizer
from ..v1.prompt import PromptTokenizer
from .config import kinds
from .dit import TransformerConfig
from .layouts import TOKENIZER, tokenizer_in
from .prompt import END


class TextTokenizer(PromptTokenizer):
    """Qwen3's tokenizer.json; it ends every text with `<|endoftext|>`, and pads with it.

    Raises CheckpointError when the file is not one, or has ids that the text encoder lacks.
    """

    def __init__(self, path: Path, vocab_size: int) -> None:
        super().__init__(path)
        end = self._tokenizer.token_to_id(END)
        empty = self._tokenizer.encode("").ids
        # Qwen3-Embedding's file asks for the end token, Qwen3's does not; the reference does what it says.
        if end is None or empty not in ([end], []) or self._tokenizer.encode(END).ids != [end, *empty]:
            raise CheckpointError(
                f"{path}: not Qwen3's tokenizer: an empty text is {empty} there, {END} is {end}"
            )
        if self.largest_id >= vocab_size:
            raise CheckpointError(
                f"{path}: has ids up to {self.largest_id}, and the text encoder knows {vocab_size}: it is "
                "another model's"
            )
        self.pad = end


class V15Texts:
    """See `families.protocol.Texts`."""

    files: Mapping[str, str] = {"tokenizer": TOKENIZER}
    config_keys: Mapping[str, schema.Check] = TOKENIZER_KEY

    def find(
        self,
        root: Path,
        layout: Layout,
        configs: Mapping[str, Any],
        given: Mapping[str, str | Path],
        progress: Progress,
    ) -> FoundTexts:
        """In the text encoder's folder, or in diffusers' `tokenizer`."""
        path = at_home(given["tokenizer"]) if "tokenizer" in given else tokenizer_in(root, layout)
        path = path / TOKENIZER if path.is_dir() else path
        if not path.is_file():
            raise CheckpointError(
                f"{path} is missing; download the checkpoint's {TOKENIZER} too, or give it with --tokenizer"
            )
        TextTokenizer(path, configs["text_encoder"].vocab_size)
        try:
            data = schema.read_file(path, MAX_BYTES)
        except OSError as error:
            raise CheckpointError(f"{path}: {cause(error)}") from None
        return FoundTexts({TOKENIZER: data}, recorded_tokenizer(data), {"tokenizer": str(path)})

    def lacking(self, root: Path, layout: Layout) -> Mapping[str, str]:
        """A checkpoint that was downloaded without its tokenizer."""
        if tokenizer_in(root, layout).is_file():
            return {}
        return {"tokenizer": f"it has no {TOKENIZER}; convert needs Qwen3-Embedding's"}

    def describe(self, config: Mapping[str, Any]) -> list[str]:
        """Which variant the model is."""
        found = kinds(TransformerConfig.from_dict(config["components"]["transformer"]))
        unsaid = " (its config.json does not say which)" if len(found) > 1 else ""
        variant = f"variant: {' or '.join(f'v15-{kind}' for kind in found)}{unsaid}"
        return [variant, describe_tokenizer(config)]

    def prompt_tokenizer(self, folder: Folder) -> TextTokenizer:
        """Of the text encoder."""
        known = folder.component_config("text_encoder").vocab_size
        tokenizer = TextTokenizer(self.lyric_vocab(folder), known)
        check_tokenizer(folder, TOKENIZER)
        return tokenizer

    def lyric_tokenizer(self, folder: Folder) -> TextTokenizer:
        """The same."""
        return self.prompt_tokenizer(folder)

    def lyric_vocab(self, folder: Folder) -> Path:
        """The tokenizer's file."""
        return folder.path / TOKENIZER
