"""Run configurations: config.json, `env=NAME`, `example=NAME` and overrides → a checked TrainConfig.

The file format is SimpleTuner's (keys with or without `--`, dashes or underscores; `null` drops a key); what
each key means is declared in `options.py`. Every problem is a `ConfigError` of one line that names the key,
the value and the place it came from.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import ConfigError, nearest
from ..formatting import brief, without_secrets
from ..io import schema
from ..io.filenames import as_stored
from .foreign import IGNORED_PREFIXES
from .option import is_off, kind_of, parse_value, read_json, show
from .run import ALIASES, OPTIMIZER_CONFIG, OPTIONS, PRECISION_BITS, SUPPORTED, Option

__all__ = ["ALIASES", "OPTIONS", "Option", "TrainConfig", "load_config", "parse_value", "read_json"]

EXAMPLES = Path(__file__).parents[1] / "examples"
_PREFIXES = {prefix: why for why, names in IGNORED_PREFIXES.items() for prefix in names.split()}

# Unset options that take another option's value.
_FOLLOWS = {
    "lora_alpha": "lora_rank",
    "lyrics_embedder_lr": "learning_rate",
    "lyrics_embedder_optimizer": "optimizer",
    "lyrics_embedder_lr_scheduler": "lr_scheduler",
    "validation_seed": "seed",
}


_DECAY = schema.number(0, 0.99999)  # of a moment: at 1 it would never take anything in
#: What each setting of `optimizer_config` may be.
OPTIMIZER_SETTINGS: dict[str, schema.Check] = {
    "betas": schema.items(_DECAY, 2, 2),
    **dict.fromkeys(("beta1", "beta2", "momentum"), _DECAY),
    "beta_1": schema.optional(_DECAY),
    "dampening": schema.number(0, 1),
    "eps": schema.number(1e-30, 1),
    "weight_decay": schema.number(0, 10),
    "clip_threshold": schema.number(1e-6, 1e6),
    "decay_rate": schema.number(-1, -1e-6),
    "ns_steps": schema.whole(1, 100),
    **dict.fromkeys(
        ("bias_correction", "nesterov", "scale_parameter", "relative_step", "warmup_init"), schema.flag
    ),
}
_PAIRED_EPS = schema.items(schema.number(0, 1), 2, 2)  # of Adafactor: of the gradient, of the weights


class TrainConfig:
    """A checked configuration. Every option of `options.OPTIONS` is an attribute, e.g. `config.lora_rank`.

    folder: where the config file lies (the working directory when it was a dict).
    source: the config file, or None.
    ignored: (key, reason) for each accepted key that has no meaning here, in the order they were given.
    """

    def __init__(
        self,
        values: dict[str, Any],
        origins: dict[str, str],
        ignored: list[tuple[str, str]],
        folder: Path,
        source: Path | None,
    ) -> None:
        self._values = values
        self._origins = origins
        self.ignored = ignored
        self.folder = folder
        self.source = source

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # while being copied or unpickled
            raise AttributeError(name)
        try:
            return self._values[name]
        except KeyError:
            raise AttributeError(f"no option {name!r}") from None

    def origin(self, name: str) -> str:
        """Where the value came from: a file's name or "command line" (with ", as KEY" for another spelling),
        "default", or "as OTHER_OPTION".
        """
        return self._origins.get(name, "default")

    def to_dict(self) -> dict[str, Any]:
        """Supported options with their resolved values; plain JSON types. `load_config` accepts it again.

        This is what checkpoints, reports and trackers get, so access tokens are left out.
        """
        return {name: without_secrets(self._values[name]) for name in SUPPORTED}

    def replace(self, **changes: Any) -> TrainConfig:
        """The same configuration with some options changed (checked like any other value)."""
        given = {
            name: (self._values[name], origin)
            for name, origin in self._origins.items()
            if origin != "default" and not origin.startswith("as ")
        }
        for name, value in changes.items():
            given[name] = (value, "program")
        return _finish(given, list(self.ignored), self.folder, self.source)

    def resolve(self, path: str | Path, **fields: str) -> Path:
        """An absolute path: from the working directory, else (if it exists there) from the config's folder.

        `{model_family}` and the given fields (`{id}`) are filled in. `config/examples/...`, as users of other
        trainers write it, also finds the examples that ship with this package.
        """
        text = str(path).replace("{model_family}", self.model_family)
        for name, value in fields.items():
            text = text.replace("{" + name + "}", value)
        # {id} may stay where no data set is meant yet
        if (left := re.search(r"\{(?!id\})\w*\}", text)) and not Path(text).exists():
            raise ConfigError(
                f"{path}: {left[0]} is not filled in here, only {{model_family}} and {{id}} can be"
            )
        try:
            target = Path(text).expanduser()
        except RuntimeError:
            raise ConfigError(f"{path}: there is no such user") from None
        if target.is_absolute():
            return as_stored(target)
        candidates = [Path.cwd() / target, self.folder / target]
        if target.parts[:2] == ("config", "examples"):
            candidates.append(EXAMPLES / Path(*target.parts[2:]))
        candidates = [as_stored(candidate) for candidate in candidates]
        for candidate in candidates:
            with contextlib.suppress(OSError):  # a name that no file can have: said where it is used
                if candidate.exists():
                    return candidate.absolute()
        return candidates[0].absolute()

    @property
    def quantization(self) -> dict[str, Any] | None:
        """MLX quantisation of the frozen base that `base_model_precision` asks for, or None."""
        bits = PRECISION_BITS[self.base_model_precision]
        return None if bits is None else {"bits": bits, "group_size": 64, "mode": "affine"}

    @property
    def output_path(self) -> Path:
        """`output_dir`, absolute."""
        return self.resolve(self.output_dir)


def load_config(source: str | Path | Mapping[str, Any], overrides: Sequence[str] = ()) -> TrainConfig:
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
    return _finish(given, ignored, folder, path)


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


def _finish(
    given: dict[str, tuple[Any, str]], ignored: list[tuple[str, str]], folder: Path, source: Path | None
) -> TrainConfig:
    """Defaults, values that follow other options, and the rules between options."""
    values = {name: option.default for name, option in OPTIONS.items()}
    origins: dict[str, str] = {}
    for name, (value, where) in given.items():
        if value is not None:
            values[name] = parse_value(OPTIONS[name], value, name, where)
            origins[name] = where
    for name, other in _FOLLOWS.items():
        if values[name] is None:
            values[name] = float(values[other]) if OPTIONS[name].kind == "float" else values[other]
            origins[name] = f"as {other}"
    _check_length(values, origins)
    _check_optimizer_config(values, origins.get("optimizer_config", ""))
    if values["data_backend_config"] is None:
        values["data_backend_config"] = str(folder / "multidatabackend.json")
    elif not isinstance(values["data_backend_config"], (str, list)):
        raise ConfigError(
            f"data_backend_config must be the path of a file, got {show(values['data_backend_config'])} "
            f"({origins['data_backend_config']})"
        )
    return TrainConfig(values, origins, ignored, folder, source)


def _check_length(values: dict[str, Any], origins: dict[str, str]) -> None:
    steps, epochs = values["max_train_steps"], values["num_train_epochs"]
    if steps > 0 and epochs > 0:
        raise ConfigError(
            f"max_train_steps={steps} and num_train_epochs={epochs} are both above 0; set one of them to 0"
        )
    if steps == 0 and epochs == 0:
        if "max_train_steps" in origins and "num_train_epochs" in origins:
            raise ConfigError(
                "max_train_steps and num_train_epochs are both 0; one must say how long to train"
            )
        values["num_train_epochs"] = 1
        origins["num_train_epochs"] = "default"


def _check_optimizer_config(values: dict[str, Any], where: str) -> None:
    settings = values["optimizer_config"]
    if settings is None:
        return
    known = OPTIMIZER_CONFIG[values["optimizer"]]
    for key, value in settings.items():
        if key not in known:
            raise ConfigError(
                f"optimizer_config: {values['optimizer']} has no setting {key!r}{nearest(key, known)} "
                f"(known: {', '.join(known)}) ({where})"
            )
        check = _PAIRED_EPS if (values["optimizer"], key) == ("adafactor", "eps") else OPTIMIZER_SETTINGS[key]
        try:
            check(value, key)
        except schema.Mismatch as error:
            raise ConfigError(f"optimizer_config: {error} ({where})") from None
