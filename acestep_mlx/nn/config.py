"""A component's config, from config.json to its dataclass: every field has a type and a range.

What a config asks for is compared with the weights before anything is built from it: a model of a billion
layers would be minutes of work before the first error.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any, ClassVar, TypeVar

from ..errors import CheckpointError
from ..io.schema import Check, Mismatch, flag, items, number, text, whole
from .foreign_config import UnknownKeys

T = TypeVar("T", bound="ComponentConfig")

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


class ComponentConfig:
    """Base of a component's config, a dataclass of its sizes. What a subclass says of them:

    NAME: of the component, in messages. REPEATED: fields that count layers. LIMITS: checks of fields that
    need another range than their type gives. IGNORED: keys of other programs that change nothing; those that
    begin with `_` are bookkeeping always. REQUIRED: fields without which it is another component's.
    """

    NAME: ClassVar[str]
    REPEATED: ClassVar[tuple[str, ...]] = ()
    LIMITS: ClassVar[Mapping[str, Check]] = {}
    IGNORED: ClassVar[Collection[str]] = ()
    REQUIRED: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        if problems := self.problems():
            raise CheckpointError(f"{self.NAME} config: {'; '.join(problems)}")

    def problems(self) -> list[str]:
        """What is wrong with sizes that are in range one by one."""
        return []

    @classmethod
    def fields(cls) -> dict[str, str]:
        """Name → type of every size."""
        return {f.name: str(f.type) for f in dataclasses.fields(cls)}  # type: ignore[arg-type]

    @classmethod
    def sizes_in(cls, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
        """Sizes that another program's config.json leaves out, from its tensors' shapes."""
        return {}

    def stored(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """What an MLX folder keeps of another program's config.json."""
        return dict(given)

    @classmethod
    def from_dict(cls: type[T], values: Mapping[str, Any]) -> T:
        """From the config.json of another program, or ours. CheckpointError (UnknownKeys for a key that may
        change the computation) names what is unknown, missing or out of range.
        """
        known = cls.fields()
        unknown = [key for key in values if not (key in known or key.startswith("_") or key in cls.IGNORED)]
        if unknown:
            raise UnknownKeys(cls.NAME, unknown, known)
        given: dict[str, Any] = {}
        for key in [key for key in values if key in known]:
            check = cls.LIMITS.get(key) or BY_TYPE[known[key]]
            try:
                given[key] = check(values[key], key)
            except Mismatch as error:
                raise CheckpointError(f"{cls.NAME} config: {error}") from None
        for key in cls.REQUIRED:
            if key not in given:
                raise CheckpointError(
                    f"{cls.NAME} config: {key!r} is missing; is this an ACE-Step {cls.NAME}?"
                )
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
