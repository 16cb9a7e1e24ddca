"""The files of a v1 model that are no weights: the text encoder's tokenizer and the lyric vocabulary."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...errors import CheckpointError
from ...io import schema
from ...io.hashes import content_hash
from ...io.progress import Progress
from ..layout import Layout
from ..protocol import Folder, FoundTexts
from ..tokenizers import TOKENIZER_KEY, check_tokenizer, describe_tokenizer, recorded_tokenizer
from . import prompt_files
from .lyrics import vocabulary
from .lyrics.tokenizer import LyricTokenizer
from .lyrics.vocabulary import LYRIC_VOCAB
from .prompt import PromptTokenizer
from .prompt_files import TOKENIZER


class V1Texts:
    """See `families.protocol.Texts`."""

    files: Mapping[str, str] = {"tokenizer": TOKENIZER, "lyric_vocab": LYRIC_VOCAB}
    config_keys: Mapping[str, schema.Check] = {
        "lyric_vocab": schema.optional(schema.record({}, {"source": schema.text, "sha256": schema.text})),
        **TOKENIZER_KEY,
    }

    def find(
        self,
        root: Path,
        layout: Layout,
        configs: Mapping[str, Any],
        given: Mapping[str, str | Path],
        progress: Progress,
    ) -> FoundTexts:
        """The vocabulary first: it may have to be fetched."""
        ids = configs["transformer"].lyric_encoder_vocab_size
        vocab = vocabulary.find(given.get("lyric_vocab"), root, ids, progress)
        where = root / layout.places["text_encoder"].folder
        files = prompt_files.find(given.get("tokenizer"), where, configs["text_encoder"].vocab_size)
        recorded = {"lyric_vocab": {"source": vocab.source, "sha256": vocab.sha256}}
        recorded |= recorded_tokenizer(files[TOKENIZER])
        return FoundTexts({**files, LYRIC_VOCAB: vocab.data}, recorded, {"lyric vocabulary": vocab.source})

    def lacking(self, root: Path, layout: Layout) -> Mapping[str, str]:
        """ComfyUI's file may come without a tokenizer."""
        if not layout.one_file or prompt_files.spiece_in(root) is not None:
            return {}
        return {"tokenizer": "it carries no tokenizer; convert needs umt5-base's"}

    def describe(self, config: Mapping[str, Any]) -> list[str]:
        """Whose the lyric vocabulary is."""
        vocab = config.get("lyric_vocab") or {}
        whose = "upstream's" if vocab.get("sha256") == vocabulary.SHA256 else "another than upstream's"
        return [
            f"lyric vocabulary: {whose}, from {vocab.get('source', 'unknown')}",
            describe_tokenizer(config),
        ]

    def prompt_tokenizer(self, folder: Folder) -> PromptTokenizer:
        """Of the text encoder."""
        tokenizer = PromptTokenizer(folder.path / TOKENIZER)
        known = folder.component_config("text_encoder").vocab_size
        self._check_ids(folder.path / TOKENIZER, tokenizer.largest_id, known)
        check_tokenizer(folder, TOKENIZER)
        return tokenizer

    def lyric_tokenizer(self, folder: Folder) -> LyricTokenizer:
        """With the vocabulary that was converted."""
        tokenizer = LyricTokenizer(folder.path / LYRIC_VOCAB)
        known = folder.component_config("transformer").lyric_encoder_vocab_size
        self._check_ids(folder.path / LYRIC_VOCAB, tokenizer.largest_id, known)
        self.lyric_vocab(folder)  # refuses another than was converted
        return tokenizer

    def _check_ids(self, path: Path, largest: int, known: int) -> None:
        if largest >= known:
            raise CheckpointError(
                f"{path}: has ids up to {largest}, and the model knows {known}: it is another model's; "
                "convert again"
            )

    def lyric_vocab(self, folder: Folder) -> Path:
        """Compared with the hash that config.json recorded."""
        path = folder.path / LYRIC_VOCAB
        recorded = (folder.config.get("lyric_vocab") or {}).get("sha256")
        if recorded is not None and content_hash(schema.read_json(path)) != recorded:
            raise CheckpointError(
                f"{path}: not the vocabulary that this model was converted with (its SHA-256 is another than "
                "config.json has); copy the folder again, or convert again"
            )
        return path
