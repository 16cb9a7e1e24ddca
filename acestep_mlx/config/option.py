"""One `Option`: what a setting may be and means; `parsing.py` reads and checks its values.

A configuration is a frozen dataclass whose fields are its options, each declared by `option`: the field's
annotation is the option's type, and `declared` gives the table of a class. What people write is *parsed*
(`parsing.parse`: numbers may be text, spellings differ); what programs pass on is *checked* (`check_of`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

PathText = str  # of a file or folder, as the user wrote it
Status = Literal["supported", "ignored", "refused"]
Resume = Literal["same", "free", "steers"]

TRUE = frozenset({"true", "1", "yes", "on"})
FALSE = frozenset({"false", "0", "no", "off"})
NOTHING = frozenset({"", "null", "none"})

#: annotation of a field, without `| None` → kind of its values
KINDS = {
    "Any": "any", "bool": "bool", "int": "int", "float": "float", "str": "str", "PathText": "path",
    "list[str]": "list", "tuple[str, ...]": "columns", "tuple[int, ...]": "numbers",
    "dict[str, Any]": "mapping", "str | list[Any]": "any", "str | dict[str, Any]": "any",
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
    needs: the option without which it has no meaning.
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
    needs: str = ""
    name: str = ""
    kind: str = "any"

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
