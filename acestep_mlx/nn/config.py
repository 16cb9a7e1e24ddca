"""A component's config, from config.json to its dataclass: every field has a type and a range.

What a config asks for is compared with the weights before anything is built from it: a model of a billion
layers would be minutes of work before the first error.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import fields
from typing import Any, TypeVar

from ..errors import CheckpointError
from ..io.schema import Check, Mismatch, flag, items, number, text, whole
from .foreign_config import UnknownKeys

T = TypeVar("T")

WIDTH = whole(1, 1 << 17)  # of a layer, a kernel, a list of layers
MANY = whole(1, 1 << 22)  # of a vocabulary
LEVELS = 64


def _text_or_texts(value: Any, where: str) -> str | tuple[str, ...]:
    return text(value, where) if isinstance(value, str) else items(text, 1, LEVELS)(value, where)


BY_TYPE: dict[str, Check] = {
    "int": WIDTH,
    "float": number(1e-12, 1e12),
    "bool": flag,
    "str": text,
    "tuple[int, int]": items(WIDTH, 2, 2),
    "Sequence[int]": items(WIDTH, 1, LEVELS),
    "Sequence[Sequence[int]]": items(items(WIDTH, 0, LEVELS), 1, LEVELS),
    "str | Sequence[str]": _text_or_texts,
}


def read_config(
    cls: Callable[..., T],
    values: Mapping[str, Any],
    name: str,
    *,
    limits: Mapping[str, Check] | None = None,
    ignored: Collection[str] = (),
    required: Sequence[str] = (),
) -> T:
    """An instance of the dataclass `cls`; CheckpointError names what is unknown, missing or out of range.

    name: of the component, for messages. limits: checks of fields that need another range than their type
    gives. Keys that begin with `_` are bookkeeping; those in `ignored` change nothing.
    """
    known = {f.name: str(f.type) for f in fields(cls)}  # type: ignore[arg-type]
    unknown = [key for key in values if key not in known and not key.startswith("_") and key not in ignored]
    if unknown:
        raise UnknownKeys(name, unknown, known)
    given: dict[str, Any] = {}
    for key, value in values.items():
        if key not in known:
            continue
        check = (limits or {}).get(key) or BY_TYPE[known[key]]
        try:
            given[key] = check(value, key)
        except Mismatch as error:
            raise CheckpointError(f"{name} config: {error}") from None
    for key in required:
        if key not in given:
            raise CheckpointError(f"{name} config: {key!r} is missing; is this an ACE-Step {name}?")
    return cls(**given)


def check_repeats(name: str, config: Any, fields: Sequence[str], tensors: int) -> None:
    """CheckpointError when one of `fields` asks for more layers than there are `tensors` in the weights."""
    for field in fields:
        value = getattr(config, field)
        asked = value if isinstance(value, int) else sum(value)
        if asked > tensors:
            raise CheckpointError(
                f"{name} config: {field} asks for {asked} layers, and the weights have {tensors} tensors "
                "in all"
            )
