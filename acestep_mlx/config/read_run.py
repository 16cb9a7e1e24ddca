"""Run configurations: config.json, `env=NAME`, `example=NAME` and overrides → a checked RunConfig.

The file format is SimpleTuner's (keys with or without `--`, dashes or underscores; `null` drops a key); what
each key means is declared in `run.py`. Every problem is a `ConfigError` of one line that names the key,
the value and the place it came from.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import ConfigError, cause, nearest
from ..io.filenames import as_stored, at_home
from ..io.schema import parse_json, read_file
from .lora_formats import LYCORIS
from .option import Option
from .parsing import kind_of
from .run import EXAMPLES, OPTIONS, RunConfig, finish


def load_config(source: str | Path | Mapping[str, Any], overrides: Sequence[str] = ()) -> RunConfig:
    """Read and check a configuration.

    source: path of a config.json (or of a folder that holds one), `env=NAME`, `example=NAME`, or a mapping.
    overrides: `--key=value`, `--key value`, `key=value`, `--flag`; they win over the file.
    Raises ConfigError: one line with the key, the value, the place and what would be right.
    """
    if isinstance(source, Mapping):
        path, where, folder = None, "given", Path.cwd()
        entries: Any = list(source.items())
    else:
        path = _find(str(source))
        where, folder = path.name, path.parent.absolute()
        content = read_config_json(path)
        if not isinstance(content, dict):
            raise ConfigError(f"{path} must hold a JSON object {{...}}, not {kind_of(content)}")
        if isinstance(content.get("config"), dict) and "_metadata" in content:
            content = content["config"]  # the wrapper that SimpleTuner's web interface writes
        entries = list(content.items())
    ignored: list[tuple[str, str]] = []
    given = _collect(entries, where, ignored, contradictions=True)
    given.update(_collect(_pairs(overrides), "command line", ignored, contradictions=False))
    given = {name: entry for name, entry in given.items() if entry[0] is not None}
    _open_lycoris(given, folder)
    return finish(given, ignored, folder, path)


def _open_lycoris(given: dict[str, tuple[Any, str]], folder: Path) -> None:
    """Put what the file of `lycoris_config` holds in the place of its path, where it counts."""
    value, where = given.get("lycoris_config", (None, ""))
    if not isinstance(value, str) or given.get("lora_type", ("", ""))[0] != LYCORIS:
        return
    if value.strip().startswith("{"):
        try:
            given["lycoris_config"] = parse_json(value), where
        except ValueError as error:
            raise ConfigError(f"lycoris_config is not valid JSON ({error}) ({where})") from None
        return
    path = as_stored(at_home(value))
    tried = [Path.cwd() / path, folder / path]
    found = next((one for one in tried if one.is_file()), None)
    if found is None:
        looked = ", ".join(dict.fromkeys(map(str, tried)))
        raise ConfigError(f"lycoris_config={value}: there is no such file; looked for {looked} ({where})")
    given["lycoris_config"] = read_config_json(found), f"{path.name}, by {where}"


def read_config_json(path: Path) -> Any:
    """Parse a JSON file (UTF-8, a byte order mark is tolerated); ConfigError in one line when it is not."""
    try:
        text = read_file(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text (byte {error.start}); save it as UTF-8") from None
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {cause(error)}") from None

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        seen: dict[str, Any] = {}
        for key, value in pairs:
            if key in seen and seen[key] != value:
                raise ConfigError(f"{path}: {key!r} is given twice, as {seen[key]!r} and {value!r}; keep one")
            seen[key] = value
        return seen

    try:
        return parse_json(text, unique)
    except json.JSONDecodeError as error:
        hint = (
            "; is a comma too many or missing?" if "delimiter" in error.msg or "property" in error.msg else ""
        )
        raise ConfigError(
            f"{path}, line {error.lineno}, column {error.colno}: not valid JSON ({error.msg}){hint}"
        ) from None
    except ValueError as error:  # e.g. an integer of thousands of digits
        raise ConfigError(f"{path}: not valid JSON ({error})") from None


def _collect(
    entries: Iterable[tuple[Any, Any]], where: str, ignored: list[tuple[str, str]], *, contradictions: bool
) -> dict[str, tuple[Any, str]]:
    """Checked `{option name: (value, where)}`; a None value means that the key was dropped."""
    given: dict[str, tuple[Any, str]] = {}
    spelled: dict[str, str] = {}
    # the original trainer's spelling, where -1 means "for ever"
    entries = [(k, 0 if k in ("epochs", "--epochs") and raw in (-1, "-1") else raw) for k, raw in entries]
    for option, shown, value in OPTIONS.read(entries, where):
        name = option.name
        if contradictions and name in given and given[name][0] != value:
            raise ConfigError(
                f"{spelled[name]} and {shown} are the same option but say "
                f"{given[name][0]!r} and {value!r} ({where})"
            )
        spelled[name] = shown
        if option.status != "supported" and value is not None and (shown, option.reason) not in ignored:
            ignored.append((shown, option.reason))
        plain = shown.replace("-", "_") == name
        given[name] = (value, where if plain else f"{where}, as {shown}")
    return given


def _pairs(overrides: Sequence[str]) -> list[tuple[str, Any]]:
    """Command-line tokens → (key, value)."""
    pairs: list[tuple[str, Any]] = []
    tokens = list(overrides)
    while tokens:
        token = tokens.pop(0)
        if "=" in token and not token.startswith("="):
            key, value = token.split("=", 1)
        elif token.startswith("--") and len(token) > 2:
            key, value = token, None
            if tokens and not tokens[0].startswith("--"):
                value = tokens.pop(0)
            else:
                option = OPTIONS.find(key)
                if option is not None and option.kind not in ("bool", "any"):
                    raise ConfigError(f"{token} needs a value, e.g. {token}={_example(option)}")
                value = "true"
        else:
            raise ConfigError(f"what is {token!r}? overrides look like --lora_rank=32 or --lora_rank 32")
        if isinstance(value, str) and value.strip().lower() == "null":
            value = None
        pairs.append((key, value))
    return pairs


def _example(option: Option) -> str:
    return str(
        option.default if option.default is not None else option.choices[0] if option.choices else "..."
    )


def _find(source: str) -> Path:
    """The config file that `source` names; ConfigError lists what was tried."""
    if not source.strip():
        raise ConfigError("no configuration is named; give a config.json, env=NAME or example=NAME")
    kind, _, name = source.partition("=")
    if kind in ("env", "example") and not name:
        raise ConfigError(
            f"{kind}= needs a name" + (f": one of {', '.join(examples())}" if kind == "example" else "")
        )
    if kind == "example":
        path = EXAMPLES / name / "config.json"
        if name not in examples():
            raise ConfigError(
                f"no example {name!r}; there are {', '.join(examples())}{nearest(name, examples())}"
            )
        return path
    if kind == "env":
        stem = as_stored(at_home(name))
        tried = [stem, Path("config") / stem] if stem.suffix == ".json" else []
        tried += [stem / "config.json", Path("config") / stem / "config.json"]
    else:
        stem = as_stored(at_home(source))
        tried = [stem / "config.json"] if stem.is_dir() else [stem]
    for path in tried:
        if path.is_file():
            return path
    hint = f"; for songs in it: acestep-mlx new {shlex.quote(source)}" if stem.is_dir() else ""
    raise ConfigError(f"no configuration found; looked for {', '.join(map(str, tried))}{hint}")


def examples() -> list[str]:
    """Names that `example=NAME` knows."""
    return sorted(path.parent.name for path in EXAMPLES.glob("*/config.json"))
