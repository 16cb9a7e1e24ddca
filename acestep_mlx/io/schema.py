"""What a file that we read back must hold: one schema a file, checked in one place before anything is used.

A check takes a value and its place (`counters.micro`), returns the value as it is to be used, or raises
`Mismatch` with the place, what is wanted there and what was found. `read_artifact` reads a JSON file of ours:
it must be a file (not a pipe), strict JSON, of a format version that this program knows, and pass its check.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import CheckpointError, NewerVersionError, cause

Check = Callable[[Any, str], Any]

MAX_BYTES = 64 << 20  # of a JSON file of ours; they have some kilobytes
MAX_WHOLE = 2**53  # what every reader of JSON keeps exactly
KINDS = {
    stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device", stat.S_IFDIR: "a folder",
}  # fmt: skip


class Mismatch(Exception):
    """A value that is not what its schema says; the text is `place must be …, got …`.

    hint: what may follow it in a message, behind the name of the file.
    """

    def __init__(self, text: str, hint: str = "") -> None:
        super().__init__(text)
        self.hint = hint


def show(value: Any, width: int = 60) -> str:
    """A foreign value in one short line of ASCII, whatever it is."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 10**width:
        return "a number of many digits"
    try:
        plain = isinstance(value, (str, float))
        text = ascii(value) if plain else json.dumps(value, default=str)
    except (TypeError, ValueError, RecursionError):
        text = ascii(type(value).__name__)
    return text if len(text) <= width else f"{text[: width - 3]}..."


def _wrong(where: str, wanted: str, got: Any) -> Mismatch:
    return Mismatch(f"{where} must be {wanted}, got {show(got)}")


def outside(
    value: float, low: float | None, high: float | None, above: float | None = None, unit: str = ""
) -> str | None:
    """Where a number should lie ("between 0 and 9") that does not; None for one that lies there.

    above: a bound that it must not touch, in place of `low`.
    """

    def plain(n: float | None) -> str:
        if isinstance(n, float) and (abs(n) > 1e9 or not n.is_integer()):
            return short if float(short := f"{n:g}") == n else repr(n)  # 0.9999999 is not 1
        return str(int(n or 0))

    enough = (low is None or value >= low) and (above is None or value > above)
    if enough and (high is None or value <= high):
        return None
    if low is not None and low == high:
        return plain(low)
    span = f"between {plain(low)} and" if above is None else f"above {plain(above)} and at most"
    return f"{span} {plain(high)}{unit and ' ' + unit}"


def whole(low: float | None = 0, high: float | None = MAX_WHOLE) -> Check:
    """A whole number of `low` to `high` (`3.0` counts as one); returned as int."""

    def check(value: Any, where: str) -> int:
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int):
            raise _wrong(where, "a whole number", value)
        if wanted := outside(value, low, high):
            raise _wrong(where, wanted, value)
        return value

    return check


def number(low: float | None = -1e300, high: float | None = 1e300, unit: str = "") -> Check:
    """A finite number of `low` to `high`; returned as it is, int or float. unit: for the message."""

    def check(value: Any, where: str) -> float:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise _wrong(where, "a number", value)
        if wanted := outside(value, low, high, unit=unit):
            raise _wrong(where, wanted, value)
        return value

    return check


def flag(value: Any, where: str) -> bool:
    """true or false."""
    if not isinstance(value, bool):
        raise _wrong(where, "true or false", value)
    return value


def text(value: Any, where: str) -> str:
    """Text that can be written as UTF-8, without half of a surrogate pair, and anywhere, without NUL."""
    if not isinstance(value, str):
        raise _wrong(where, "text", value)
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise _wrong(where, "text in UTF-8 (it holds half a character)", value) from None
    if "\0" in value:
        raise _wrong(where, "text without NUL characters", value)
    return value


def texts(value: Any, where: str) -> Any:
    """Any JSON value, all of whose texts and names can be written as UTF-8."""
    waiting = [(value, where)]
    while waiting:
        one, place = waiting.pop()
        if isinstance(one, str):
            text(one, place)
        elif isinstance(one, Mapping):
            for name, inner in one.items():
                text(name, f"a name in {place}")
                waiting.append((inner, f"{place}.{name}"))
        elif isinstance(one, (list, tuple)):
            waiting += [(inner, place) for inner in one]
    return value


def path_text(value: Any, where: str) -> str:
    """Text that can be a path: not empty, without NUL, its names no longer than a file system has them.

    A name whose bytes are not UTF-8 may be one, as Python spells it (`\\udcff`).
    """
    try:
        data = value.encode("utf-8", "surrogateescape") if isinstance(value, str) else b""
    except UnicodeEncodeError:
        data = b""
    long = len(data) > 4095 or any(len(name) > 255 for name in data.split(b"/"))
    if not data.strip() or b"\0" in data or long:
        raise _wrong(where, "a path", value)
    return str(value)


def choice(*allowed: Any) -> Check:
    """One of the values."""

    def check(value: Any, where: str) -> Any:
        for one in allowed:
            if type(one) is type(value) and one == value:
                return value
        raise _wrong(where, " or ".join(show(one) for one in allowed), value)

    return check


def optional(inner: Check) -> Check:
    """null, or what `inner` takes."""

    def check(value: Any, where: str) -> Any:
        return None if value is None else inner(value, where)

    return check


def items(inner: Check, low: int = 0, high: int = 1_000_000) -> Check:
    """A list of `low` to `high` values; returned as a tuple."""

    def check(value: Any, where: str) -> tuple[Any, ...]:
        if not isinstance(value, (list, tuple)):
            raise _wrong(where, "a list", value)
        if wanted := outside(len(value), low, high):
            raise Mismatch(f"{where} must have {wanted} entries, got {len(value)}")
        return tuple(inner(one, f"{where}[{i}]") for i, one in enumerate(value))

    return check


def table(inner: Check, names: Check = text) -> Check:
    """An object with any names, each value as `inner` takes it."""

    def check(value: Any, where: str) -> dict[str, Any]:
        if not isinstance(value, Mapping):
            raise _wrong(where, "an object", value)
        return {
            names(name, f"a name in {where}"): inner(one, f"{where}.{name}") for name, one in value.items()
        }

    return check


def record(
    required: Mapping[str, Check], others: Mapping[str, Check] | None = None, *, strict: bool = False
) -> Check:
    """An object with the `required` names and perhaps the `others`.

    Further names are kept unchecked, or refused where `strict`. At the top of a file places have no prefix.
    """
    checks = {**required, **(others or {})}

    def check(value: Any, where: str) -> dict[str, Any]:
        inside = f"{where}." if where else ""
        if not isinstance(value, Mapping):
            raise _wrong(where or "it", "an object", value)
        for name in required:
            if name not in value:
                raise Mismatch(f"{inside}{name} is missing")
        if strict and (unknown := [name for name in value if name not in checks]):
            raise Mismatch(f"{inside}{show(unknown[0])} is not known here")
        return {
            name: checks[name](one, f"{inside}{name}") if name in checks else one
            for name, one in value.items()
        }

    return check


def anything(value: Any, where: str) -> Any:
    """Any value."""
    return value


def is_utf8(path: str | Path) -> bool:
    """Whether a path's bytes are UTF-8, so that libraries in C++ can open it."""
    try:
        str(path).encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


# ── files ─────────────────────────────────────────────────────────────────────────────────────────────
def open_file(path: str | Path) -> BinaryIO:
    """A regular file, open for reading. OSError with a clear `strerror` for anything else.

    A named pipe would keep us waiting for ever, a device may never end.
    """
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
    try:
        kind = stat.S_IFMT(os.fstat(handle).st_mode)
        if kind == stat.S_IFDIR:
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if kind != stat.S_IFREG:
            what = KINDS.get(kind, "something else")
            raise OSError(0, f"it is {what}, not a file", str(path))
        return os.fdopen(handle, "rb")
    except BaseException:
        os.close(handle)
        raise


def read_file(path: str | Path, limit: int = MAX_BYTES) -> bytes:
    """The bytes of a regular file. OSError when it is none, cannot be read or has more than `limit` bytes."""
    with open_file(path) as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise OSError(0, f"it has more than {limit} bytes", str(path))
    return data


def _whole_number(text: str) -> int:
    """A whole number of JSON; ValueError for one of thousands of digits."""
    if len(text) > 4000:
        raise ValueError(f"a number of {len(text)} digits in it")
    return int(text)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name is given twice in it")
    return found


def parse_json(data: bytes | str, unique: Callable[[list[tuple[str, Any]]], dict[str, Any]] = _unique) -> Any:
    """JSON in UTF-8 (a byte order mark is tolerated): no NaN, no name twice. ValueError says why not.

    unique: makes an object of its pairs, and raises where it has a name twice.
    """

    def refuse(name: str) -> Any:
        raise ValueError(f"{name} is not a JSON number")

    try:
        decoded = data.decode("utf-8-sig") if isinstance(data, bytes) else data
        return json.loads(decoded, parse_constant=refuse, parse_int=_whole_number, object_pairs_hook=unique)
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 at byte {error.start}") from None
    except RecursionError:
        raise ValueError("nested too deeply") from None


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; `CheckpointError` when it is missing or something else."""
    try:
        content = parse_json(read_file(path))
    except OSError as error:
        raise CheckpointError(f"{path}: {cause(error)}") from None
    except ValueError as error:
        raise CheckpointError(f"{path}: not JSON: {error}") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: expected a JSON object")
    return content


def refuse_newer(found: Any, known: int, what: str) -> None:
    """NewerVersionError when `found`, a format version, is above the one that this program writes."""
    if isinstance(found, int) and found > known:
        raise NewerVersionError(
            f"{what} was written by a newer version of acestep-mlx (format version {show(found)}, this one "
            f"reads {known}); update acestep-mlx"
        )


def check_version(found: Any, known: int, what: str) -> None:
    """Mismatch unless `found`, a format version, is one that this program reads; NewerVersionError above."""
    if isinstance(found, bool) or not isinstance(found, int) or found < 1:
        raise Mismatch(f"its format version is {show(found)}, and this acestep-mlx reads {known}")
    refuse_newer(found, known, what)


def read_artifact(
    path: Path,
    check: Check,
    *,
    what: str,
    version: int,
    kind: str | None = None,
    writer: str = "acestep-mlx",
) -> dict[str, Any]:
    """A JSON object of ours, checked; CheckpointError in one line that names the file and the place in it,
    or NewerVersionError.

    what: "a checkpoint", for messages. version: the newest `format_version` that is read. kind: what its
    `format` must be, if anything; `writer` puts it there.
    """
    try:
        content = parse_json(read_file(path))
        if not isinstance(content, dict):
            raise Mismatch("expected a JSON object")
        if kind is not None and content.get("format") != kind:
            raise CheckpointError(f"{path}: not written by {writer} (no format {kind!r} in it)")
        check_version(content.get("format_version"), version, what)
        checked = check(content, "")
        assert isinstance(checked, dict)
        return checked
    except OSError as failed:
        raise CheckpointError(f"{path}: {cause(failed)}") from None
    except ValueError as failed:
        raise CheckpointError(f"{path} is damaged: not JSON: {failed}") from None
    except NewerVersionError as failed:
        raise NewerVersionError(f"{path}: {failed}") from None
    except Mismatch as failed:
        raise CheckpointError(f"{path} is damaged: {failed}") from None
