"""A SentencePiece model (`spiece.model`) as a `tokenizers` file, without SentencePiece itself.

The file is a protobuf message. Of it are read the pieces (field 1: text, score, kind), whether bytes stand in
for what is unknown, and the normaliser's settings (field 3). Only Unigram models are taken, as UMT5's is.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from ...errors import CheckpointError

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
UNIGRAM = 1
PAD, EOS = "<pad>", "</s>"
MAX_BYTES = 64 << 20
SPACE = "▁"  # how a piece writes a space


@dataclass(frozen=True)
class _Model:
    """What is read of the message: pieces are (text, score, kind)."""

    pieces: list[tuple[str, float, int]]
    kind: int = UNIGRAM
    charsmap: bytes = b""
    dummy_prefix: bool = True
    one_space: bool = True


def tokenizer_json(data: bytes, where: str) -> str:
    """tokenizer.json for the SentencePiece model `data`, whose encoding ends with `</s>`.

    `where` names the file in errors. Raises CheckpointError for anything that is not such a model.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    model = _read(data, where)
    ids = {text: i for i, (text, _, _) in enumerate(model.pieces)}
    unknown = [i for i, (_, _, kind) in enumerate(model.pieces) if kind == UNKNOWN]
    if model.kind != UNIGRAM or len(unknown) != 1 or ids.get(PAD) != 0 or ids.get(EOS) != 1:
        raise CheckpointError(f"{where}: not UMT5's tokenizer: no Unigram model with {PAD} as 0, {EOS} as 1")
    steps: list[normalizers.Normalizer] = []
    try:
        if model.charsmap:
            steps.append(normalizers.Precompiled(model.charsmap))
        if model.one_space:
            steps += [normalizers.Replace(Regex(r"\A +| +\z"), ""), normalizers.Replace(Regex(" {2,}"), " ")]
        scored = [(text, score) for text, score, _ in model.pieces]
        bytes_too = any(kind == BYTE for _, _, kind in model.pieces)
        tokenizer = Tokenizer(models.Unigram(scored, unk_id=unknown[0], byte_fallback=bytes_too))
    except Exception as error:  # tokenizers raises plain Exception for every kind of bad content
        raise CheckpointError(f"{where}: not a SentencePiece model: {error}") from None
    tokenizer.normalizer = normalizers.Sequence(steps)
    prefix = "always" if model.dummy_prefix else "never"
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(SPACE, prepend_scheme=prefix, split=False)
    tokenizer.decoder = decoders.Metaspace(SPACE, prepend_scheme=prefix)
    tokenizer.post_processor = processors.TemplateProcessing(single=f"$A {EOS}", special_tokens=[(EOS, 1)])
    tokenizer.add_special_tokens([text for text, _, kind in model.pieces if kind in (CONTROL, UNKNOWN)])
    return str(tokenizer.to_str())


def _read(data: bytes, where: str) -> _Model:
    pieces: list[tuple[str, float, int]] = []
    settings: dict[str, object] = {}
    try:
        for number, value in _fields(data):
            if number == 1:
                pieces.append(_piece(_message(value)))
            elif number == 2:
                settings["kind"] = dict(_fields(_message(value))).get(3, UNIGRAM)
            elif number == 3:
                rules = dict(_fields(_message(value)))
                settings["charsmap"] = _message(rules.get(2, b""))
                settings["dummy_prefix"], settings["one_space"] = bool(rules.get(3, 1)), bool(rules.get(4, 1))
    except (ValueError, struct.error) as error:
        raise CheckpointError(f"{where}: not a SentencePiece model: {error}") from None
    if not pieces:
        raise CheckpointError(f"{where}: not a SentencePiece model: no pieces in it")
    return _Model(pieces, **settings)  # type: ignore[arg-type]


def _piece(data: bytes) -> tuple[str, float, int]:
    found = dict(_fields(data))
    score, kind = found.get(2, b"\0\0\0\0"), found.get(3, NORMAL)
    if not isinstance(kind, int):
        raise ValueError("a piece without a kind")
    return _message(found.get(1, b"")).decode("utf-8"), struct.unpack("<f", _message(score))[0], kind


def _message(value: bytes | int) -> bytes:
    if isinstance(value, int):
        raise ValueError("a number where a text should be")
    return value


def _fields(data: bytes) -> Iterator[tuple[int, bytes | int]]:
    """(number, value) of every field of a protobuf message; ValueError where it is none."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        kind = tag & 7
        if kind == 0:
            value, at = _varint(data, at)
            yield tag >> 3, value
            continue
        if kind == 2:
            size, at = _varint(data, at)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
        else:
            raise ValueError(f"a field of kind {kind} at byte {at}")
        if at + size > len(data):
            raise ValueError(f"it ends inside a field at byte {at}")
        yield tag >> 3, data[at : at + size]
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(data) and shift < 64:
        value |= (data[at] & 0x7F) << shift
        at += 1
        if data[at - 1] < 0x80:
            return value, at
        shift += 7
    raise ValueError(f"a damaged number at byte {at}")
