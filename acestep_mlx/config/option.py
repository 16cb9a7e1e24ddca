"""One `Option`: what a setting may be and means; `parsing.py` reads and checks its values.

A configuration is a frozen dataclass whose fields are its options, each declared by `option`: the field's
annotation is the option's type, and `declared` gives the table of a class. What people write is *parsed*
(`Option.parse`: numbers may be text, spellings differ); what programs pass on is *checked* (`Option.check`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import PurePath
from typing import Any, Literal

from ..errors import ConfigError, nearest
from ..formatting import brief
from ..io import schema
from ..io.schema import Check, Mismatch, texts
from .parsing import CHECKS, FALSE, NOTHING, PARSERS, check_choice, parse_choice, show

PathText = str  # of a file or folder, as the user wrote it
Status = Literal["supported", "ignored", "refused"]
Resume = Literal["same", "free", "steers"]

#: annotation of a field, without `| None` → kind of its values
KINDS = {
    "Any": "any", "bool": "bool", "int": "int", "float": "float", "str": "str", "PathText": "path",
    "list[str]": "list", "tuple[str, ...]": "columns", "tuple[int, ...]": "numbers",
    "dict[str, Any]": "mapping", "str | list[Any]": "any",
}  # fmt: skip


@dataclass(frozen=True)
class Option:
    """One setting.

    default: value when it is absent or null; None means "unset", or that it `follows` another option of the
    run (is as that one while it is unset).
    low, high: inclusive range; `above` is an exclusive lower bound. unit: of a number, for people.
    choices: accepted values; `spellings` maps further accepted spellings onto them.
    refused_values: values another trainer accepts and this one does not, each with reason and advice.
    aliases: other accepted names of the key.
    status: a *supported* option does what its help says. An *ignored* one is accepted because configurations
    written for other trainers carry it and it has no meaning here. A *refused* one would change the result if
    it were passed over, so any value that switches it on is an error; `off` are values of its own that do
    not. reason: why it is ignored or refused, or why its range is what it is.
    resume: a run that goes on must have the "same" value as its checkpoint, is "free" to have another, or
    "steers" by it: free, and said when it changes. tasks: of generation, that use it (all).
    name, kind: set by the table that the option stands in.
    """

    default: Any
    help: str
    low: float | None = None
    high: float | None = None
    above: float | None = None
    unit: str = ""
    choices: tuple[str, ...] = ()
    spellings: Mapping[str, str] = field(default_factory=dict)
    refused_values: Mapping[str, str] = field(default_factory=dict)
    aliases: tuple[str, ...] = ()
    follows: str = ""
    status: Status = "supported"
    reason: str = ""
    off: tuple[Any, ...] = ()
    resume: Resume = "same"
    tasks: tuple[str, ...] = ()
    name: str = ""
    kind: str = "any"

    def parse(self, value: Any, name: str, where: str) -> Any:
        """What a person wrote, as this option's type, in range, one of its choices; null stays None.

        name: the key as it was spelled; where: the file, for messages. Raises ConfigError.
        """
        if value is None or (self.status != "supported" and self.kind == "any"):
            return value
        if isinstance(value, PurePath) and self.kind in ("path", "any"):
            value = str(value)
        try:
            texts(value, name)
            if self.default is None and isinstance(value, str) and value.strip().lower() in NOTHING:
                return None
            return (parse_choice if self.choices else PARSERS[self.kind])(self, value, name)
        except Mismatch as error:
            raise ConfigError(f"{error} ({where}){error.hint}") from None

    @cached_property
    def check(self) -> Check:
        """The check of a value that has this option's type already."""
        check = check_choice(self.choices) if self.choices else CHECKS[self.kind](self)
        return schema.optional(check) if self.default is None else check

    def is_off(self, value: Any) -> bool:
        """Whether the value switches a refused option off: false, 0, "none", an empty list."""
        if isinstance(value, str):
            return value.strip().lower() in FALSE | NOTHING | {"0.0"}
        return not value or value in self.off


def option(
    default: Any,
    help: str,
    *,
    choices: str | Iterable[str] = (),
    spellings: Mapping[str, str] | None = None,
    refused: Mapping[str, str] | None = None,
    aliases: str = "",
    **facts: Any,
) -> Any:
    """A dataclass field that is an option. Several names in one text are separated by blanks.

    spellings: further names → choice; refused: names → reason; `facts` are fields of `Option`.
    """
    made = Option(
        default,
        help,
        choices=tuple(choices.split() if isinstance(choices, str) else choices),
        spellings=by_name(spellings or {}),
        refused_values=by_name(refused or {}),
        aliases=tuple(aliases.split()),
        **facts,
    )
    return field(default=default, metadata={"option": made})


def by_name(table: Mapping[str, str]) -> dict[str, str]:
    """Each of the names that stand in a key, separated by blanks → the key's value."""
    return {name: value for names, value in table.items() for name in names.split()}


def declared(configuration: type) -> dict[str, Option]:
    """The options of a dataclass by name, in their order."""
    return {
        f.name: replace(f.metadata["option"], name=f.name, kind=KINDS[str(f.type).removesuffix(" | None")])
        for f in fields(configuration)
        if "option" in f.metadata
    }


def foreign(status: Status, reasons: Mapping[str, str], off: tuple[Any, ...] = ()) -> dict[str, Option]:
    """Keys of other trainers as options; reasons: why → names, separated by blanks."""
    return {
        name: Option(None, "", status=status, reason=reason, off=off, name=name)
        for reason, names in reasons.items()
        for name in names.split()
    }


class Options(dict[str, Option]):
    """The options of one place (config.json, a block of a data set) by name.

    what: what messages call a key there. prefixes: beginning of a key → why all such keys are ignored.
    """

    def __init__(
        self, *tables: Mapping[str, Option], what: str = "key", prefixes: Mapping[str, str] | None = None
    ) -> None:
        super().__init__({name: option for table in tables for name, option in table.items()})
        self.what = what
        self.prefixes = {prefix: why for why, names in (prefixes or {}).items() for prefix in names.split()}
        self.aliases = {alias: option.name for option in self.values() for alias in option.aliases}
        names = [name for table in tables for name in table] + [a for o in self.values() for a in o.aliases]
        assert len(set(names)) == len(names), "an option is declared twice"

    @property
    def supported(self) -> tuple[str, ...]:
        """Names of the options that have a meaning here."""
        return tuple(name for name, option in self.items() if option.status == "supported")

    def find(self, key: str) -> Option | None:
        """The option that a key, as users spell it, means: `--save-total-limit` → checkpoints_total_limit."""
        name = key.strip().removeprefix("--").replace("-", "_")
        name = self.aliases.get(name, name)
        if name in self:
            return self[name]
        reason = next((why for prefix, why in self.prefixes.items() if name.startswith(prefix)), None)
        return Option(None, "", status="ignored", reason=reason, name=name) if reason else None

    def read(self, entries: Iterable[tuple[Any, Any]], where: str) -> Iterator[tuple[Option, str, Any]]:
        """(option, key as it is shown, parsed value) of each entry. Raises ConfigError for keys that are not
        known, values that are wrong, and refused options that are on."""
        for key, raw in entries:
            if not isinstance(key, str) or key.startswith("_"):
                continue  # editors' bookkeeping, e.g. "_metadata"
            shown = brief(key.strip().removeprefix("--"), 60)
            option = self.find(key)
            if option is None:
                guess = nearest(shown.replace("-", "_"), [*self.supported, *self.aliases])
                raise ConfigError(f"unknown {self.what} {shown!r} ({where}){guess}")
            value = option.parse(raw, shown, where)
            if option.status == "refused" and not option.is_off(value):
                raise ConfigError(f"{shown}={show(value)} is not supported: {option.reason} ({where})")
            yield option, shown, value
