"""The text encoder's tokenizer in a checkpoint: where it is found, and how it is checked."""

from __future__ import annotations

import json
from pathlib import Path

from ...errors import CheckpointError
from ...io import schema
from ...io.filenames import at_home
from ...io.safetensors import read_header
from .prompt import EOS as END
from .spiece import EOS, MAX_BYTES, PAD, tokenizer_json

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
TOKENIZER = TOKENIZER_FILES[0]
SPIECE_FILES = ("spiece.model", "sentencepiece.model")
SPIECE = "spiece_model"  # the last part of the key that holds the tokenizer's bytes in ComfyUI's file
ADVICE = (
    "give the tokenizer with --tokenizer (tokenizer.json or spiece.model of umt5-base, or a folder with one)"
)


def find(given: str | Path | None, where: Path, size: int) -> dict[str, bytes]:
    """The tokenizer's files by name: from `given`, else from the checkpoint.

    where: the text encoder's folder, or ComfyUI's file. size: how many ids it has. Raises CheckpointError
    when there is none, or it does not fit.
    """
    if given is not None:
        place = at_home(given)
        files = _at(place)
        if files is None:
            raise CheckpointError(f"{given} holds no {TOKENIZER} or {SPIECE_FILES[0]}")
    elif where.is_file():
        place, data = where, spiece_in(where)
        if data is None:
            raise CheckpointError(f"{where} carries no tokenizer; {ADVICE}")
        files = _from_spiece(data, f"the tokenizer in {where}")
    else:
        place, files = where / TOKENIZER, _at(where)
        if files is None:
            raise CheckpointError(
                f"{place} is missing; download the checkpoint's {TOKENIZER} too, or {ADVICE}"
            )
    _check(files[TOKENIZER], place, size)
    return files


def spiece_in(path: Path) -> bytes | None:
    """The SentencePiece model in ComfyUI's file, or None. CheckpointError for one that is too large."""
    for name, info in read_header(path).tensors.items():
        if name.rpartition(".")[2] == SPIECE:
            if info.nbytes > MAX_BYTES:
                raise CheckpointError(f"{path}: {name!r} is too large for a tokenizer")
            with schema.open_file(path) as file:
                file.seek(info.start)
                return file.read(info.nbytes)
    return None


def _at(path: Path) -> dict[str, bytes] | None:
    """The files of a tokenizer in a folder, or of the one file that is named."""
    if path.is_dir():
        if (path / TOKENIZER).is_file():
            return {name: _read(path / name) for name in TOKENIZER_FILES if (path / name).is_file()}
        spiece = next((path / name for name in SPIECE_FILES if (path / name).is_file()), None)
        return _from_spiece(_read(spiece), str(spiece)) if spiece is not None else None
    data = _read(path)
    return {TOKENIZER: data} if data.lstrip()[:1] == b"{" else _from_spiece(data, str(path))


def _from_spiece(data: bytes, where: str) -> dict[str, bytes]:
    config = {"tokenizer_class": "T5Tokenizer", "pad_token": PAD, "eos_token": EOS, "unk_token": "<unk>"}
    return {
        TOKENIZER: tokenizer_json(data, where).encode(),
        TOKENIZER_FILES[1]: (json.dumps(config, indent=2) + "\n").encode(),
    }


def _read(path: Path) -> bytes:
    try:
        return schema.read_file(path, MAX_BYTES)
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror or error}") from None


def _check(data: bytes, where: Path, size: int) -> None:
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_str(data.decode("utf-8"))
        largest = max(tokenizer.get_vocab().values())
        empty = tokenizer.encode("").ids
    except Exception as error:  # tokenizers raises plain Exception for every kind of bad file
        raise CheckpointError(f"{where}: not a tokenizer: {error}") from None
    if empty != [END]:
        raise CheckpointError(
            f"{where}: not UMT5's tokenizer: an empty prompt is {empty} there, not the end token {END} alone"
        )
    if largest >= size:
        raise CheckpointError(f"{where}: has ids up to {largest}, the text encoder only {size}")
