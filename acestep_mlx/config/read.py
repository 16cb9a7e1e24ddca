"""Run configurations: config.json, `env=NAME`, `example=NAME` and overrides → a checked RunConfig.

The file format is SimpleTuner's (keys with or without `--`, dashes or underscores; `null` drops a key); what
each key means is declared in `run.py`. Every problem is a `ConfigError` of one line that names the key,
the value and the place it came from.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import ConfigError, nearest
from ..formatting import brief
from ..io.filenames import as_stored
from .foreign import IGNORED_PREFIXES
from .option import Option, is_off, kind_of, parse_value, read_json, show
from .run import ALIASES, EXAMPLES, OPTIONS, SUPPORTED, RunConfig, finish

_PREFIXES = {prefix: why for why, names in IGNORED_PREFIXES.items() for prefix in names.split()}


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
        content = read_json(path)
        if not isinstance(content, dict):
            raise ConfigError(f"{path} must hold a JSON object {{...}}, not {kind_of(content)}")
        if isinstance(content.get("config"), dict) and "_metadata" in content:
            content = content["config"]  # the wrapper that SimpleTuner's web interface writes
        entries = list(content.items())
    ignored: list[tuple[str, str]] = []
    given = _collect(entries, where, ignored, contradictions=True)
    given.update(_collect(_pairs(overrides), "command line", ignored, contradictions=False))
    given = {name: entry for name, entry in given.items() if entry[0] is not None}
    return finish(given, ignored, folder, path)


def canonical(key: str) -> str:
    """The option's own name for a key as users spell it: `--save-total-limit` → `checkpoints_total_limit`."""
    name = key.strip().removeprefix("--").replace("-", "_")
    return ALIASES.get(name, name)


def _collect(
    entries: Iterable[tuple[str, Any]], where: str, ignored: list[tuple[str, str]], *, contradictions: bool
) -> dict[str, tuple[Any, str]]:
    """Checked `{option name: (value, where)}`; a None value means that the key was dropped."""
    given: dict[str, tuple[Any, str]] = {}
    spelled: dict[str, str] = {}
    for key, raw in entries:
        if not isinstance(key, str) or key.startswith("_"):
            continue  # editors' bookkeeping, e.g. "_metadata"
        name = canonical(key)
        shown = brief(key.strip().removeprefix("--"), 60)
        if name == "epochs":  # the original trainer's spelling, where -1 means "for ever"
            name, raw = "num_train_epochs", 0 if raw in (-1, "-1") else raw
        option = OPTIONS.get(name)
        if option is None:
            reason = next((why for prefix, why in _PREFIXES.items() if name.startswith(prefix)), None)
            if reason is None:
                raise ConfigError(
                    f"unknown option {shown!r} ({where}){nearest(name, [*SUPPORTED, *ALIASES])}"
                )
            option = Option(name, "any", None, "", status="ignored", reason=reason)
        value = parse_value(option, raw, shown, where)
        if contradictions and name in given and given[name][0] != value:
            raise ConfigError(
                f"{spelled[name]} and {shown} are the same option but say "
                f"{given[name][0]!r} and {value!r} ({where})"
            )
        spelled[name] = shown
        if option.status == "refused" and not is_off(value):
            raise ConfigError(f"{shown}={show(value)} is not supported: {option.reason} ({where})")
        if option.status != "supported" and value is not None and (shown, option.reason) not in ignored:
            ignored.append((shown, option.reason))
        if name in OPTIONS:
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
                option = OPTIONS.get(canonical(key))
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
        stem = as_stored(Path(name).expanduser())
        tried = [stem, Path("config") / stem] if stem.suffix == ".json" else []
        tried += [stem / "config.json", Path("config") / stem / "config.json"]
    else:
        stem = as_stored(Path(source).expanduser())
        tried = [stem / "config.json"] if stem.is_dir() else [stem]
    for path in tried:
        if path.is_file():
            return path
    raise ConfigError(f"no configuration found; looked for {', '.join(map(str, tried))}")


def examples() -> list[str]:
    """Names that `example=NAME` knows."""
    return sorted(path.parent.name for path in EXAMPLES.glob("*/config.json"))
