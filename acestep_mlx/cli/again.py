"""The command that makes a song again, in full: it is kept with the song, to be read, copied and changed."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from ..config.request import REQUEST, Request

_FLAGS = {"seeds": "seed", "retake_seeds": "retake-seed"}


def flag(name: str) -> str:
    """The flag of a field of Request."""
    return "--" + _FLAGS.get(name, name.replace("_", "-"))


def command_line(
    record: Mapping[str, Any], defaults: Mapping[str, Any], own_rate: int, *, fuse_loras: bool
) -> str:
    """`acestep-mlx generate …` with every setting of a song's record that is not the model's default.

    defaults: of settings where the model has its own. own_rate: its sample rate, in Hz.
    """
    parts = ["acestep-mlx", "generate", "--model", record["model"]["path"]]
    for lora in record["loras"]:
        parts += ["--lora", lora["path"], "--lora-scale", _written(lora["scale"])]
    parts += ["--fuse-loras"] if fuse_loras and record["loras"] else []
    parts += _settings(record["request"], defaults)
    if record["sample_rate"] != own_rate:
        parts += ["--sample-rate", str(record["sample_rate"])]
    return shlex.join(parts)


def _settings(request: Mapping[str, Any], defaults: Mapping[str, Any]) -> Iterator[str]:
    idle = Request.from_dict(request).idle(request)
    for name, option in REQUEST.items():
        value = request[name]
        usual = defaults.get(name, option.default)
        usual = list(usual) if isinstance(usual, tuple) else usual
        if name in idle or value is None or (value == usual and name not in ("prompt", "seeds")):
            continue
        if option.kind == "bool":
            yield flag(name) if value else flag(name).replace("--", "--no-", 1)
        elif (text := _written(value)).startswith("-"):
            yield f"{flag(name)}={text}"
        else:
            yield from (flag(name), text)


def _written(value: Any) -> str:
    """A setting as it is typed."""
    if isinstance(value, (list, tuple)):
        return ",".join(map(str, value))
    return repr(value).removesuffix(".0") if isinstance(value, float) else str(value)
