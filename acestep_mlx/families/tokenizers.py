"""A model folder's tokenizer has to be the one that was converted: its ids are what the encoder learned."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ..errors import CheckpointError, cause
from ..io import schema
from ..io.hashes import content_hash
from .protocol import Folder

MAX_BYTES = 64 << 20  # of a tokenizer; Qwen3's has 11 MB, UMT5's 17
_KEY, _HASH = "tokenizer", "sha256"
_NOT_READ = ("padding", "truncation")  # each call has its own
TOKENIZER_KEY: Mapping[str, schema.Check] = {_KEY: schema.optional(schema.record({}, {_HASH: schema.text}))}


def _hash(data: bytes) -> str:
    content = json.loads(data)  # the tokenizers library has read it
    return content_hash({name: value for name, value in content.items() if name not in _NOT_READ})


def recorded_tokenizer(data: bytes) -> dict[str, Any]:
    """What config.json keeps of the tokenizer's file."""
    return {_KEY: {_HASH: _hash(data)}}


def _recorded(config: Mapping[str, Any]) -> str | None:
    found = (config.get(_KEY) or {}).get(_HASH)
    return None if found is None else str(found)


def check_tokenizer(folder: Folder, name: str) -> None:
    """CheckpointError when the file `name` is another than was converted. Folders of 0.1 do not say."""
    recorded, path = _recorded(folder.config), folder.path / name
    if recorded is None:
        return
    try:
        found = _hash(schema.read_file(path, MAX_BYTES))
    except OSError as error:
        raise CheckpointError(f"{path}: {cause(error)}") from None
    if found != recorded:
        raise CheckpointError(
            f"{path}: not the tokenizer that this model was converted with (its SHA-256 is another than "
            "config.json has); copy the folder again, or convert again"
        )


def describe_tokenizer(config: Mapping[str, Any]) -> str:
    """A line about what config.json keeps of it."""
    recorded = _recorded(config)
    if recorded is None:
        return "tokenizer: unknown whether it is the converted one; convert again to have it recorded"
    return f"tokenizer: SHA-256 {recorded[:16]}"
