"""One `Option`: what a setting may be, and how one value of it is parsed and checked."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any, Literal

from ..errors import ConfigError, nearest
from ..io.schema import Mismatch, parse_json, parse_whole, read_file, texts

Kind = Literal["bool", "int", "float", "str", "path", "list", "mapping", "any"]
Status = Literal["supported", "ignored", "refused"]


@dataclass(frozen=True)
class Option:
    """One run option.

    kind: type of the value; numbers and booleans may also be spelled as strings, lists as "a,b" or JSON.
    default: value when the key is absent or null; None means "unset" or "taken from another option".
    low, high: inclusive range; `above` is an exclusive lower bound.
    choices: accepted values; `spellings` maps further accepted spellings onto them.
    refused_values: values another trainer accepts and this one does not, each with reason and advice.
    aliases: other accepted names of the key. reason: why it is ignored or refused. group: set by the table.
    """

    name: str
    kind: Kind
    default: Any
    help: str
    low: float | None = None
    high: float | None = None
    above: float | None = None
    choices: tuple[str, ...] = ()
    spellings: Mapping[str, str] = field(default_factory=dict)
    refused_values: Mapping[str, str] = field(default_factory=dict)
    aliases: tuple[str, ...] = ()
    status: Status = "supported"
    reason: str = ""
    group: str = ""


TRUE = frozenset({"true", "1", "yes", "on"})
FALSE = frozenset({"false", "0", "no", "off"})
NOTHING = frozenset({"", "null", "none"})


def read_json(path: Path) -> Any:
    """Parse a JSON file (UTF-8, a byte order mark is tolerated); ConfigError in one line when it is not."""
    try:
        text = read_file(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text (byte {error.start}); save it as UTF-8") from None
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror or error}") from None

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        seen: dict[str, Any] = {}
        for key, value in pairs:
            if key in seen and seen[key] != value:
                raise ConfigError(f"{path}: {key!r} is given twice, as {seen[key]!r} and {value!r}; keep one")
            seen[key] = value
        return seen

    def refuse_constant(name: str) -> Any:
        raise ConfigError(f"{path}: {name} is not a JSON number")

    try:
        hooks: dict[str, Any] = {"parse_constant": refuse_constant, "parse_int": parse_whole}
        return json.loads(text, object_pairs_hook=unique, **hooks)
    except json.JSONDecodeError as error:
        hint = (
            "; is a comma too many or missing?" if "delimiter" in error.msg or "property" in error.msg else ""
        )
        raise ConfigError(
            f"{path}, line {error.lineno}, column {error.colno}: not valid JSON ({error.msg}){hint}"
        ) from None
    except RecursionError:
        raise ConfigError(f"{path}: nested too deeply to be a configuration") from None
    except ValueError as error:  # e.g. an integer of thousands of digits
        raise ConfigError(f"{path}: not valid JSON ({error})") from None


def parse_value(option: Option, value: Any, name: str, where: str) -> Any:
    """`value` as the option's type, in range.

    name: the key as the user spelled it; where: the file, for messages. Raises ConfigError.
    """
    if option.status != "supported" and option.kind == "any":
        return value
    if value is None:
        return None
    try:
        texts(value, name)
    except Mismatch as error:
        raise ConfigError(f"{error} ({where})") from None
    parsed = _parse(option, value, name, where)
    if isinstance(parsed, (int, float)) and not isinstance(parsed, bool):
        _check_range(option, parsed, name, where, value)
    if option.choices and isinstance(parsed, str):
        return _choose(option, parsed, name, where)
    return parsed


def _parse(option: Option, value: Any, name: str, where: str) -> Any:
    """`value` as the option's kind, before range and choices are checked."""
    value = str(value) if isinstance(value, PurePath) and option.kind in ("path", "any") else value
    text = value.strip() if isinstance(value, str) else None
    if text is not None and option.default is None and text.lower() in NOTHING:
        return None
    match option.kind:
        case "any":
            return value
        case "bool":
            if isinstance(value, bool):
                return value
            if isinstance(value, int) and value in (0, 1):
                return bool(value)
            if text is not None and text.lower() in TRUE | FALSE:
                return text.lower() in TRUE
            raise ConfigError(f"{name} must be true or false, got {value!r} ({where})")
        case "int" | "float":
            return _number(option, value, name, where)
        case "str" | "path":
            if isinstance(value, (int, float)) and not isinstance(value, bool) and option.choices:
                return str(value)  # "precision": 32
            if isinstance(value, bool) and str(value).lower() in option.spellings:
                return str(value).lower()
            if text is None:
                raise ConfigError(f"{name} must be a string, got {show(value)} ({where})")
            if option.kind == "path" and "\0" in text:
                raise ConfigError(f"{name} holds a NUL character ({where})")
            if option.kind == "path" and any(
                len(part.encode(errors="replace")) > 255 for part in text.split("/")
            ):
                raise ConfigError(f"{name} is too long for a path ({where})")
            if option.kind == "path" and not text:
                raise ConfigError(f"{name} is empty; give a path or leave it out ({where})")
            return text if option.kind == "path" or option.choices else value
        case "list":
            return _names(value, name, where)
        case "mapping":
            return _mapping(value, name, where)


def _number(option: Option, value: Any, name: str, where: str) -> int | float:
    written = value
    word = "a whole number" if option.kind == "int" else "a number"
    if isinstance(value, str):
        try:
            value = float(value) if option.kind == "float" or not _is_int(value) else int(value)
        except ValueError:
            raise ConfigError(f"{name} must be {word}, got {value!r} ({where})") from None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ConfigError(f"{name} must be {word}, got {show(value)} ({where})")
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{name} must be a finite number, got {_written(written)} ({where})")
    if option.kind == "int":
        if isinstance(value, float) and not value.is_integer():
            raise ConfigError(f"{name} must be a whole number, got {_written(written)} ({where})")
        return int(value)
    if abs(value) > 1e300:
        raise ConfigError(f"{name} is far too large: {_written(written)} ({where})")
    return float(value)


def _is_int(text: str) -> bool:
    return text.strip().lstrip("+-").isdecimal() and len(text) < 100


def _check_range(option: Option, value: float, name: str, where: str, written: Any) -> None:
    low, high, above = option.low, option.high, option.above
    too_low = (low is not None and value < low) or (above is not None and value <= above)
    if not too_low and (high is None or value <= high):
        return
    if low is not None and low == high:
        wanted = f"must be {low:g}"
    elif low is not None and high is not None:
        wanted = f"must be between {_plain(low)} and {_plain(high)}"
    elif above is not None:
        wanted = f"must be above {above:g}" + (f" and at most {_plain(high)}" if high is not None else "")
    else:
        wanted = f"must be at least {_plain(low)}" if low is not None else f"must be at most {_plain(high)}"
    reason = f": {option.reason}" if option.reason else ""
    raise ConfigError(f"{name} {wanted}, got {_written(written)} ({where}){reason}")


def _written(value: Any) -> str:
    """A number as the user wrote it, not as the machine stores it; never a screenful."""
    text = value.strip() if isinstance(value, str) else repr(value)
    return text if len(text) <= 40 else f"{text[:20]}…{text[-10:]}"


def _plain(number: float | None) -> str:
    return str(int(number)) if number is not None and float(number).is_integer() else f"{number:g}"


def _choose(option: Option, text: str, name: str, where: str) -> str:
    for table in (dict.fromkeys(option.choices), option.refused_values, option.spellings):
        lowered = {key.lower(): key for key in table}
        if text.lower() not in lowered:
            continue
        key = lowered[text.lower()]
        if table is option.spellings:
            return option.spellings[key]
        if table is option.refused_values:
            raise ConfigError(f"{name}={text} is not supported: {option.refused_values[key]} ({where})")
        return key
    listed = ", ".join(option.choices)
    guess = nearest(text, [*option.choices, *option.spellings])
    advice = (
        f": {_single(option.refused_values)}" if len(option.choices) == 1 and option.refused_values else ""
    )
    raise ConfigError(f"{name} must be one of {listed}, got {text!r} ({where}){guess}{advice}")


def _single(reasons: Mapping[str, str]) -> str:
    return next(iter(reasons.values()))


def _names(value: Any, name: str, where: str) -> list[str]:
    if isinstance(value, str):
        text = value.strip()
        if text.startswith("["):
            try:
                value = json.loads(text)
            except json.JSONDecodeError:
                raise ConfigError(f"{name} must be a list of names, got {value!r} ({where})") from None
        else:
            value = [part.strip() for part in text.replace(",", " ").split()]
    if not isinstance(value, list) or not all(isinstance(part, str) and part.strip() for part in value):
        raise ConfigError(f"{name} must be a list of names, got {show(value)} ({where})")
    if not value:
        raise ConfigError(f"{name} is an empty list; leave it out ({where})")
    return [part.strip() for part in value]


def _mapping(value: Any, name: str, where: str) -> dict[str, Any]:
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
                    raise ConfigError(f"{name}: a setting is given twice in {text!r}; keep one ({where})")
        except (ValueError, IndexError):
            raise ConfigError(
                f"{name} must be like eps=1e-6,weight_decay=0, got {text!r} ({where})"
            ) from None
    if not isinstance(value, dict):
        raise ConfigError(f"{name} must be an object {{...}}, got {show(value)} ({where})")
    return value


def _scalar(text: str) -> Any:
    lowered = text.lower()
    if lowered in ("true", "false"):
        return lowered == "true"
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def show(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:57] + "..."


def kind_of(value: Any) -> str:
    return {list: "a list", str: "a string", dict: "an object", type(None): "null"}.get(
        type(value), "a single value"
    )


def is_off(value: Any) -> bool:
    """Whether the value switches a refused option off: false, 0, "none", an empty list."""
    if isinstance(value, str):
        return value.strip().lower() in FALSE | NOTHING | {"0.0"}
    return not value
