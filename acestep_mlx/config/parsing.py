"""Values of options: what people write is parsed, what programs pass on is checked; one function a kind.

They raise `Mismatch` with the option's name, what is wanted and what was found. `Options` reads whole places.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import PurePath
from typing import Any

from ..errors import ConfigError, nearest
from ..formatting import brief
from ..io import schema
from ..io.schema import Check, Mismatch, parse_json, texts
from .option import FALSE, NOTHING, TRUE, Option

MAX_NUMBERS = 1000  # in a list of them
_CLOCK = re.compile(r"(?:([0-9]{1,4}):([0-5]?[0-9])|([0-9]{1,6})):([0-5][0-9](?:\.[0-9]{0,9})?)")


# ── what people write ─────────────────────────────────────────────────────────────────────────────────
def _parse_bool(option: Option, value: Any, name: str) -> bool:
    if isinstance(value, int) and value in (0, 1):  # true and false are such too
        return bool(value)
    text = value.strip().lower() if isinstance(value, str) else ""
    if text not in TRUE | FALSE:
        raise Mismatch(f"{name} must be true or false, got {_quoted(value)}")
    return text in TRUE


def _parse_int(option: Option, value: Any, name: str) -> int:
    number = _number(value, name, "a whole number")
    if isinstance(number, float) and not number.is_integer():
        raise Mismatch(f"{name} must be a whole number, got {_written(value)}")
    return int(_in_range(option, int(number), value, name))


def _parse_float(option: Option, value: Any, name: str) -> float:
    number = _seconds(value, name) if option.unit == "s" else _number(value, name, "a number")
    if abs(number) > 1e300:
        raise Mismatch(f"{name} is far too large: {_written(value)}")
    return _in_range(option, float(number), value, name)


def clock(text: str) -> float | None:
    """Seconds of a time as a clock shows it (`3:30`, `1:02:03.5`); None for any other text."""
    found = _CLOCK.fullmatch(text.strip())
    if found is None:
        return None
    hours, minutes, alone, seconds = found.groups()
    return 3600 * int(hours or 0) + 60 * int(minutes or alone) + float(seconds)


def _seconds(value: Any, name: str) -> int | float:
    """A finite number of seconds, perhaps written as text, as a clock shows it or with an s."""
    if isinstance(value, str):
        found = clock(value)
        if found is not None:
            return found
        value = value.strip().removesuffix("s")
    return _number(value, name, "a number of seconds, or a time like 3:30")


def _number(value: Any, name: str, wanted: str) -> int | float:
    """A finite number, perhaps written as text."""
    number = value
    if isinstance(value, str):
        whole = value.strip().lstrip("+-").isdecimal() and len(value) < 100
        try:
            number = int(value) if whole else float(value)
        except ValueError:
            raise Mismatch(f"{name} must be {wanted}, got {_quoted(value)}") from None
    if isinstance(number, bool) or not isinstance(number, (int, float)):
        raise Mismatch(f"{name} must be {wanted}, got {show(value)}")
    if isinstance(number, float) and not math.isfinite(number):
        raise Mismatch(f"{name} must be a finite number, got {_written(value)}")
    return number


def _in_range(option: Option, number: float, written: Any, name: str) -> float:
    wanted = schema.outside(number, option.low, option.high, option.above)
    if wanted is not None:
        reason = f": {option.reason}" if option.reason else ""
        raise Mismatch(f"{name} must be {wanted}, got {_written(written)}", reason)
    return number


def _written(value: Any) -> str:
    """A number as the user wrote it, not as the machine stores it; never a screenful."""
    text = value.strip() if isinstance(value, str) else repr(value)
    return text if len(text) <= 40 else f"{text[:20]}…{text[-10:]}"


def _quoted(value: Any) -> str:
    """A value as Python writes it; never a screenful."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:60]}…{text[-10:]}"


def _parse_choice(option: Option, value: Any, name: str) -> str:
    plain = not isinstance(value, bool) or str(value).lower() in option.spellings
    if isinstance(value, (int, float)) and plain:
        value = str(value)  # "precision": 32
    text = _parse_text(option, value, name).strip()
    for table in ({choice: choice for choice in option.choices}, option.refused_values, option.spellings):
        key = next((key for key in table if key.lower() == text.lower()), None)
        if key is not None and table is option.refused_values:
            raise Mismatch(f"{name}={text} is not supported: {table[key]}")
        if key is not None:
            return table[key]
    hint = nearest(text, [*option.choices, *option.spellings])
    if len(option.choices) == 1 and option.refused_values:
        hint += f": {next(iter(option.refused_values.values()))}"
    raise Mismatch(f"{name} must be one of {', '.join(option.choices)}, got {_quoted(text)}", hint)


def _parse_text(option: Option, value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise Mismatch(f"{name} must be a string, got {show(value)}")
    return value


def _parse_path(option: Option, value: Any, name: str) -> str:
    text = _parse_text(option, value, name).strip()
    if "\0" in text:
        raise Mismatch(f"{name} holds a NUL character")
    if any(len(part.encode(errors="replace")) > 255 for part in text.split("/")):
        raise Mismatch(f"{name} is too long for a path")
    if not text:
        raise Mismatch(f"{name} is empty; give a path or leave it out")
    return text


def _parse_list(option: Option, value: Any, name: str) -> list[str]:
    names = value
    if isinstance(value, str):
        try:
            listed = value.strip().startswith("[")
            names = parse_json(value) if listed else value.replace(",", " ").split()
        except ValueError:
            raise Mismatch(f"{name} must be a list of names, got {_quoted(value)}") from None
    if names == []:
        raise Mismatch(f"{name} is an empty list; leave it out")
    return list(_names(names, names, name, "names"))


def _parse_columns(option: Option, value: Any, name: str) -> tuple[str, ...]:
    return _names([value] if isinstance(value, str) else value, value, name, "column names")


def _names(names: Any, written: Any, name: str, what: str) -> tuple[str, ...]:
    if not isinstance(names, list) or not names or not all(isinstance(n, str) and n.strip() for n in names):
        raise Mismatch(f"{name} must be a list of {what}, got {show(written)}")
    return tuple(n.strip() for n in names)


def _parse_mapping(option: Option, value: Any, name: str) -> dict[str, Any]:
    """`{"eps": 1e-6}`, the same as a JSON string, or "eps=1e-6,weight_decay=0"."""
    if isinstance(value, str):
        text = value.strip()
        try:
            if text.startswith("{"):
                value = parse_json(text)
            else:
                pairs = [part.split("=", 1) for part in text.split(",") if part.strip()]
                value = {pair[0].strip(): _scalar(pair[1].strip()) for pair in pairs}
                if len(value) < len(pairs):
                    raise Mismatch(f"{name}: a setting is given twice in {_quoted(text)}; keep one")
        except (ValueError, IndexError):
            raise Mismatch(f"{name} must be like eps=1e-6,weight_decay=0, got {_quoted(text)}") from None
    if not isinstance(value, dict):
        raise Mismatch(f"{name} must be an object {{...}}, got {show(value)}")
    return value


def _scalar(text: str) -> Any:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        return parse_json(text)
    except ValueError:
        return text


PARSERS: dict[str, Callable[[Option, Any, str], Any]] = {
    "any": lambda option, value, name: value,
    "bool": _parse_bool,
    "int": _parse_int,
    "float": _parse_float,
    "str": _parse_text,
    "path": _parse_path,
    "list": _parse_list,
    "columns": _parse_columns,
    "mapping": _parse_mapping,
}


# ── what programs pass on ─────────────────────────────────────────────────────────────────────────────
def _check_choice(known: tuple[str, ...]) -> Check:
    def check(value: Any, where: str) -> str:
        if not isinstance(value, str) or value not in known:
            hint = nearest(value, known) if isinstance(value, str) else ""
            raise Mismatch(f"unknown {where} {schema.show(value)}: one of {', '.join(known)}{hint}")
        return value

    return check


def _check_numbers(one: Check) -> Check:
    def check(value: Any, where: str) -> tuple[int, ...]:
        numbers = schema.items(schema.anything, 0, MAX_NUMBERS)(value, where)
        return tuple(one(number, where) for number in numbers)

    return check


CHECKS: dict[str, Callable[[Option], Check]] = {
    "bool": lambda option: schema.flag,
    "int": lambda option: schema.whole(option.low, option.high),
    "float": lambda option: schema.number(option.low, option.high, option.unit),
    "str": lambda option: schema.text,
    "path": lambda option: schema.path_text,
    "numbers": lambda option: _check_numbers(schema.whole(option.low, option.high)),
}


def parse(option: Option, value: Any, name: str, where: str) -> Any:
    """What a person wrote, as the option's type, in range, one of its choices; null stays None.

    name: the key as it was spelled; where: the file, for messages. Raises ConfigError.
    """
    if value is None or (option.status != "supported" and option.kind == "any"):
        return value
    if isinstance(value, PurePath) and option.kind in ("path", "any"):
        value = str(value)
    try:
        texts(value, name)
        if option.default is None and isinstance(value, str) and value.strip().lower() in NOTHING:
            return None
        return (_parse_choice if option.choices else PARSERS[option.kind])(option, value, name)
    except Mismatch as error:
        raise ConfigError(f"{error} ({where}){error.hint}") from None


def in_range(option: Option, number: float, name: str, where: str) -> None:
    """ConfigError for a number outside the option's range."""
    try:
        _in_range(option, number, number, name)
    except Mismatch as error:
        raise ConfigError(f"{error} ({where}){error.hint}") from None


def check_of(option: Option) -> Check:
    """The check of a value that has the option's type already."""
    check = _check_choice(option.choices) if option.choices else CHECKS[option.kind](option)
    return schema.optional(check) if option.default is None else check


def show(value: Any) -> str:
    """A value in a short line, as JSON has it."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:57] + "..."


def kind_of(value: Any) -> str:
    """What JSON calls such a value."""
    return {list: "a list", str: "a string", dict: "an object", type(None): "null"}.get(
        type(value), "a single value"
    )


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
            value = parse(option, raw, shown, where)
            if option.status == "refused" and not option.is_off(value):
                raise ConfigError(f"{shown}={show(value)} is not supported: {option.reason} ({where})")
            yield option, shown, value
