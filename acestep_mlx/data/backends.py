"""multidatabackend.json: which data sets there are, every key of an entry declared once and checked.

The file is SimpleTuner's: a list of entries, of which those with `dataset_type` `audio` are data sets and
the one with `text_embeds` names the folder of the text caches. Keys are checked with the machinery of the
run options (`option.parse_value`): unknown ones are errors with the nearest name, foreign ones are ignored
or refused with a reason.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config.datasets import OFF_VALUES, TABLES
from ..config.option import is_off, kind_of, parse_value, read_json, show
from ..config.run import RunConfig
from ..errors import ConfigError, nearest
from ..text.languages import forced_language
from .captions import lyrics_name


@dataclass(frozen=True)
class Backend:
    """One enabled audio data set.

    Durations in seconds; paths absolute; captions and columns as the user named.
    """

    id: str
    type: str
    folder: Path | None
    dataset_name: str | None
    split: str | None
    revision: str | None
    caption_strategy: str
    repeats: int
    probability: float
    max_num_samples: int | None
    shuffle: Mapping[str, Any] | None
    instance_prompt: str | None
    prepend_instance_prompt: bool
    only_instance_prompt: bool
    multiline: bool
    latent_dir: Path
    text_dir: Path
    cache_latents: bool
    ondemand: bool
    csv_file: Path | None
    csv_columns: Mapping[str, str | None]
    max_duration: float
    min_duration: float
    interval: float
    truncation: str
    lyrics_format: str | None
    lyrics_language: str | None
    lyrics_unsupported: str
    caption_fields: tuple[str, ...] | None
    fallback_caption: str | None
    lyrics_column: str | None
    audio_column: str | None
    download_dir: Path | None
    streaming: bool


@dataclass(frozen=True)
class Backends:
    """Enabled data sets, in file order.

    ignored: (data set, key, reason). text_dir: text caches of validation.
    """

    audio: tuple[Backend, ...]
    text_dir: Path
    ignored: tuple[tuple[str, str, str], ...]
    disabled: tuple[str, ...]


def read_backends(config: RunConfig) -> Backends:
    """Read and check `data_backend_config`.

    ConfigError in one line: entry, key, value, what would be right.
    """
    source = config.data_backend_config
    if isinstance(source, list):
        where, entries = "data_backend_config", source
    else:
        path = config.resolve(source)
        if path.is_dir():
            raise ConfigError(f"data_backend_config={source} is a folder; name the file in it")
        if not path.is_file():
            raise ConfigError(
                f"no data set file at {path}; write one (a list of data sets) or set data_backend_config"
            )
        where, entries = path.name, read_json(path)
    if isinstance(entries, dict):
        entries = [entries]
    if not isinstance(entries, list):
        raise ConfigError(f"{where} must hold a list of data sets, not {kind_of(entries)}")
    ignored: list[tuple[str, str, str]] = []
    checked = [_entry(raw, f"{where}, entry {i}", ignored) for i, raw in enumerate(entries, 1)]
    text_dirs, default_text = _text_dirs([e for e in checked if e["dataset_type"] == "text_embeds"], config)
    audio: list[Backend] = []
    disabled: list[str] = []
    for entry in checked:
        if entry["dataset_type"] == "text_embeds":
            continue
        if any(entry["id"] == other.id for other in audio):
            raise ConfigError(f"{where}: two data sets have the id {entry['id']!r}; give each its own")
        if entry["disabled"]:
            disabled.append(entry["id"])
            continue
        wanted = entry["text_embeds"]
        if wanted is not None and wanted not in text_dirs:
            raise ConfigError(
                f"{where}: {entry['id']} uses text_embeds={wanted!r}, which is not an entry's id"
            )
        audio.append(_backend(entry, config, text_dirs.get(wanted, default_text), where, ignored))
    if not audio:
        why = (
            f"all are disabled ({', '.join(disabled)})"
            if disabled
            else "add an entry with dataset_type=audio"
        )
        raise ConfigError(f"{where} has no data set to train on: {why}")
    return Backends(tuple(audio), default_text, tuple(ignored), tuple(disabled))


def _entry(raw: Any, where: str, ignored: list[tuple[str, str, str]]) -> dict[str, Any]:
    if not isinstance(raw, dict):
        raise ConfigError(f"{where} must be an object {{...}}, not {kind_of(raw)}")
    label = raw.get("id")
    if not isinstance(label, str) or not label.strip():
        raise ConfigError(f'{where} needs an "id": a name for the data set')
    if label != label.strip() or any(c in label for c in "/\\\0") or label in (".", ".."):
        raise ConfigError(f"{where}: id {label!r} becomes a folder's name; use letters, digits, - and _")
    if len(label.encode(errors="replace")) > 200:
        raise ConfigError(f"{where}: the id is too long; it becomes a folder's name")
    return {**check_block("entry", raw, f"{where} ({label})", label, ignored), "id": label}


def check_block(
    table: str, raw: Mapping[str, Any], where: str, label: str, ignored: list[tuple[str, str, str]]
) -> dict[str, Any]:
    """The block's options with defaults filled in. `ignored` gathers (label, key, reason)."""
    options = TABLES[table]
    aliases = {alias: name for name, option in options.items() for alias in option.aliases}
    values = {name: option.default for name, option in options.items() if option.status == "supported"}
    seen: dict[str, str] = {}
    for key, value in raw.items():
        if key.startswith("_"):
            continue
        name = key.strip().removeprefix("--").replace("-", "_")
        name = name if name in options else aliases.get(name, name)
        option = options.get(name)
        if option is None:
            known = [*values, *aliases]
            raise ConfigError(f"unknown key {key!r} ({where}){nearest(name, known)}")
        if value is None:
            continue
        if option.status == "refused":
            off = OFF_VALUES.get(name)
            if (value in off) if off else (is_off(value) or value == -1):
                continue
            raise ConfigError(f"{key}={show(value)} is not supported: {option.reason} ({where})")
        if option.status == "ignored":
            ignored.append((label, key, option.reason))
            continue
        parsed = parse_value(option, value, key, where)
        if name in seen and values[name] != parsed:
            raise ConfigError(f"{seen[name]} and {key} are the same key but contradict each other ({where})")
        seen[name] = key
        values[name] = parsed
    return values


def _text_dirs(entries: list[dict[str, Any]], config: RunConfig) -> tuple[dict[str, Path], Path]:
    """Folder of each text_embeds entry, and that of the default one."""
    fallback = config.cache_dir_text or f"{config.cache_dir}/text"
    default = config.resolve(fallback)
    found: dict[str, Path] = {}
    for entry in entries:
        found[entry["id"]] = config.resolve(entry["cache_dir"] or fallback, id=entry["id"])
    if found:
        marked = [entry["id"] for entry in entries if entry["default"]]
        default = found[marked[0]] if marked else next(iter(found.values()))
    return found, default


def _backend(
    entry: dict[str, Any],
    config: RunConfig,
    text_dir: Path,
    where: str,
    ignored: list[tuple[str, str, str]],
) -> Backend:
    label = entry["id"]
    here = f"{where} ({label})"
    audio = check_block("audio", _block(entry, "audio", here), f"{here}, audio", label, ignored)
    columns = check_block("columns", _block(entry, "config", here), f"{here}, config", label, ignored)
    more = check_block("columns", _block(entry, "huggingface", here), f"{here}, huggingface", label, ignored)
    columns.update({key: value for key, value in more.items() if value is not None})
    shuffle = check_block(
        "shuffle", _block(entry, "caption_shuffle", here), f"{here}, caption_shuffle", label, ignored
    )
    kind = entry["type"]
    strategy = entry["caption_strategy"] or (
        "huggingface" if kind == "huggingface" else config.caption_strategy
    )
    folder = entry["instance_data_dir"]
    _check_source(entry, kind, strategy, bool(columns["streaming"]), here)
    prompt = entry["instance_prompt"] or config.instance_prompt
    prepend, only = (
        config_default if entry[name] is None else entry[name]
        for name, config_default in (
            ("prepend_instance_prompt", config.prepend_instance_prompt),
            ("only_instance_prompt", config.only_instance_prompt),
        )
    )
    if (strategy == "instanceprompt" or prepend or only) and not prompt:
        raise ConfigError(f"{here}: instance_prompt is missing; captions are to be made from it")
    low = audio["min_duration_seconds"]
    low = config.audio_min_duration_seconds if low is None else low
    high = audio["max_duration_seconds"] or config.audio_max_duration_seconds
    if low > high:
        raise ConfigError(f"{here}: min_duration_seconds={low} is above max_duration_seconds={high}")
    fields = columns["audio_caption_fields"]
    fields = entry["caption_column"] if fields is None else fields
    cache = entry["cache_dir_vae"] or entry["cache_dir"] or config.cache_dir_vae
    disable, ondemand = (
        getattr(config, name) or bool(entry[name]) for name in ("vae_cache_disable", "vae_cache_ondemand")
    )
    return Backend(
        id=label,
        type=kind,
        folder=config.resolve(folder) if folder else None,
        dataset_name=entry["dataset_name"],
        split=columns["split"] or entry["split"],
        revision=columns["revision"] or entry["revision"],
        caption_strategy=strategy,
        repeats=entry["repeats"],
        probability=entry["probability"],
        max_num_samples=entry["max_num_samples"],
        shuffle={**shuffle, "seed": config.seed if shuffle["seed"] is None else shuffle["seed"]}
        if shuffle["enable"]
        else None,
        instance_prompt=prompt,
        prepend_instance_prompt=prepend,
        only_instance_prompt=only or strategy == "instanceprompt",
        multiline=not (
            config.disable_multiline_split
            if entry["disable_multiline_split"] is None
            else entry["disable_multiline_split"]
        ),
        latent_dir=config.resolve(cache or f"{config.cache_dir}/vae/{{model_family}}/{{id}}", id=label),
        text_dir=text_dir,
        cache_latents=not disable,
        ondemand=bool(ondemand or disable),
        csv_file=Path(entry["csv_file"]) if entry["csv_file"] else None,
        csv_columns={
            "filename": entry["csv_filename_column"],
            "caption": entry["csv_caption_column"],
            "lyrics": entry["csv_lyrics_column"],
        },
        max_duration=high,
        min_duration=low,
        interval=audio["duration_interval"] or config.audio_duration_interval,
        truncation=audio["truncation_mode"] or config.audio_truncation_mode,
        lyrics_format=_lyrics_format(audio, here),
        lyrics_language=forced_language(audio["lyrics_language"], f"{here}, audio: lyrics_language"),
        lyrics_unsupported=audio["lyrics_unsupported"],
        caption_fields=_fields(fields, here),
        fallback_caption=columns["fallback_caption_column"],
        lyrics_column=columns["lyrics_column"] or entry["lyrics_column"],
        audio_column=columns["audio_column"] or entry["audio_column"],
        download_dir=config.resolve(columns["cache_dir"]) if columns["cache_dir"] else None,
        streaming=bool(columns["streaming"]),
    )


def _block(entry: dict[str, Any], name: str, where: str) -> dict[str, Any]:
    block = entry[name]
    if block is None:
        return {}
    if not isinstance(block, dict):
        raise ConfigError(f"{name} must be an object {{...}}, got {show(block)} ({where})")
    return block


def _check_source(entry: dict[str, Any], kind: str, strategy: str, streaming: bool, where: str) -> None:
    """Each type needs its own keys, and not every caption strategy fits every type."""
    if kind == "huggingface":
        if not entry["dataset_name"]:
            raise ConfigError(f"{where}: dataset_name is missing (a Hugging Face data set or a local folder)")
        if streaming and not entry["max_num_samples"]:
            raise ConfigError(f"{where}: streaming needs max_num_samples: how many songs to download")
        if strategy not in ("huggingface", "instanceprompt"):
            raise ConfigError(f"{where}: captions are columns here; set caption_strategy=huggingface")
        return
    if strategy == "huggingface":
        raise ConfigError(f"{where}: caption_strategy=huggingface needs type=huggingface")
    if not entry["instance_data_dir"]:
        raise ConfigError(f"{where}: instance_data_dir is missing (the folder with the songs)")
    if (kind == "csv" or strategy == "csv") and not entry["csv_file"]:
        raise ConfigError(f"{where}: csv_file is missing (the list of songs and captions)")


def _fields(value: Any, where: str) -> tuple[str, ...] | None:
    if value is None:
        return None
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list) or not names or not all(isinstance(n, str) and n.strip() for n in names):
        raise ConfigError(f"audio_caption_fields must be a list of column names, got {show(value)} ({where})")
    return tuple(n.strip() for n in names)


def _lyrics_format(audio: dict[str, Any], where: str) -> str | None:
    """The name of a song's lyrics file with tokens, from any of the three ways to say it; None: the usual
    names.
    """
    if audio["lyrics_filename_format"]:
        template = audio["lyrics_filename_format"].strip()
    elif audio["lyrics_suffix"]:
        template = "{stem}" + audio["lyrics_suffix"]
    elif audio["lyrics_extension"]:
        template = "{stem}." + audio["lyrics_extension"].lstrip(".")
    else:
        return None
    lyrics_name(
        template, Path("folder/song.wav"), where
    )  # a wrong token is an error now, not at the first song
    return template
