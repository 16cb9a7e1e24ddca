"""multidatabackend.json → the run's data sets.

The file is SimpleTuner's: a list of entries, of which those with `dataset_type` `audio` or `eval` are data
sets and the one with `text_embeds` names the folder of the text caches. What an entry leaves out `follows`
the run's configuration.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from ..errors import ConfigError
from ..registry import MAX_SECONDS, of_flavour
from ..text.languages import forced_language
from .datasets import (
    TABLES,
    Audio,
    Columns,
    CsvSet,
    DataSet,
    DataSets,
    Entry,
    FolderSet,
    HubSet,
    Shuffle,
    SongList,
    SongSet,
    lyrics_name,
)
from .parsing import in_range, kind_of, show
from .read_run import read_config_json
from .run import RunConfig

Block = TypeVar("Block")


def read_datasets(config: RunConfig) -> DataSets:
    """Read and check `data_backend_config`.

    ConfigError in one line: entry, key, value, what would be right.
    """
    where, entries = _entries(config)
    ignored: list[tuple[str, str, str]] = []
    checked = [_entry(raw, f"{where}, entry {i}", config, ignored) for i, raw in enumerate(entries, 1)]
    texts = [entry for entry in checked if entry.dataset_type == "text_embeds"]
    disabled = [entry.id for entry in texts if entry.disabled]
    text_dirs, default_text = _text_dirs([e for e in texts if not e.disabled], config, where)
    audio: list[DataSet] = []
    for entry in checked:
        if entry.dataset_type == "text_embeds":
            continue
        if any(entry.id == other.id for other in audio):
            raise ConfigError(f"{where}: two data sets have the id {entry.id!r}; give each its own")
        if entry.disabled:
            disabled.append(entry.id)
            continue
        wanted = entry.text_embeds
        if wanted is not None and wanted not in text_dirs:
            raise ConfigError(f"{where}: {entry.id} uses text_embeds={wanted!r}, which is not an entry's id")
        text_dir = text_dirs[wanted] if wanted is not None else default_text
        audio.append(_data_set(entry, config, text_dir, f"{where} ({entry.id})", ignored))
    if all(one.held_out for one in audio):
        why = (
            f"all are disabled ({', '.join(disabled)})"
            if disabled
            else "add an entry with dataset_type=audio"
        )
        raise ConfigError(f"{where} has no data set to train on: {why}")
    return DataSets(tuple(audio), default_text, tuple(ignored), tuple(disabled))


def _entries(config: RunConfig) -> tuple[str, list[Any]]:
    """The name of the file, for messages, and what it lists."""
    source = config.data_backend_config
    if isinstance(source, list):
        return "data_backend_config", source
    path = config.resolve(source)
    if path.is_dir():
        raise ConfigError(f"data_backend_config={source} is a folder; name the file in it")
    if not path.is_file():
        raise ConfigError(
            f"no data set file at {path}; write one (a list of data sets) or set data_backend_config"
        )
    entries = read_config_json(path)
    if isinstance(entries, dict):
        entries = [entries]
    if not isinstance(entries, list):
        raise ConfigError(f"{path.name} must hold a list of data sets, not {kind_of(entries)}")
    return path.name, entries


def _entry(raw: Any, where: str, config: RunConfig, ignored: list[tuple[str, str, str]]) -> Entry:
    if not isinstance(raw, dict):
        raise ConfigError(f"{where} must be an object {{...}}, not {kind_of(raw)}")
    label = raw.get("id")
    if label is not None and not isinstance(label, str):
        raise ConfigError(f'{where}: id must be text, got {show(label)}; write it as "id": "my-songs"')
    if not isinstance(label, str) or not label.strip():
        raise ConfigError(f'{where} needs an "id": a name for the data set')
    if label != label.strip() or any(c in label for c in "/\\\0") or label in (".", ".."):
        raise ConfigError(f"{where}: id {label!r} becomes a folder's name; use letters, digits, - and _")
    if len(label.encode(errors="replace")) > 200:
        raise ConfigError(f"{where}: the id is too long; it becomes a folder's name")
    return replace(read_block(Entry, raw, f"{where} ({label})", label, config, ignored), id=label)


def read_block(
    block: type[Block], raw: Mapping[str, Any], where: str, label: str, config: RunConfig,
    ignored: list[tuple[str, str, str]],
) -> Block:  # fmt: skip
    """A checked block of BLOCKS, what it leaves out filled in. `ignored` gathers (label, key, reason)."""
    options, longest = TABLES[block.__name__.lower()], of_flavour(config.model_flavour).latents.max_seconds
    given: dict[str, Any] = {}
    seen: dict[str, str] = {}
    for one, key, value in options.read(raw.items(), where):
        if value is None:
            continue
        if one.status == "ignored":
            ignored.append((label, key, one.reason))
        if one.status != "supported":
            continue
        if one.name in given and given[one.name] != value:
            raise ConfigError(
                f"{seen[one.name]} and {key} are the same key but contradict each other ({where})"
            )
        if one.high == MAX_SECONDS:
            in_range(replace(one, high=longest), value, key, where)
        seen[one.name], given[one.name] = key, value
    followed = {name: getattr(config, one.follows) for name, one in options.items() if one.follows}
    return block(**{**followed, **given})


def _text_dirs(entries: list[Entry], config: RunConfig, where: str) -> tuple[dict[str, Path], Path]:
    """Folder of each text_embeds entry, and that of the default one. ConfigError where two claim a place."""
    for number, entry in enumerate(entries):
        if any(entry.id == other.id for other in entries[:number]):
            raise ConfigError(f"{where}: two text_embeds entries have the id {entry.id!r}; give each its own")
    if len(marked := [entry.id for entry in entries if entry.default]) > 1:
        raise ConfigError(
            f"{where}: default is true for {len(marked)} text_embeds entries ({', '.join(marked)}); keep one"
        )
    fallback = config.cache_dir_text or f"{config.cache_dir}/text"
    default = config.resolve(fallback)
    found = {entry.id: config.resolve(entry.cache_dir or fallback, id=entry.id) for entry in entries}
    if found:
        default = found[marked[0]] if marked else next(iter(found.values()))
    return found, default


def _data_set(
    entry: Entry, config: RunConfig, text_dir: Path, where: str, ignored: list[tuple[str, str, str]]
) -> DataSet:
    """The data set of an entry with all its blocks."""

    def block(kind: type[Block], name: str) -> Block:
        raw = getattr(entry, name)
        if not isinstance(raw, (dict, type(None))):
            raise ConfigError(f"{name} must be an object {{...}}, got {show(raw)} ({where})")
        return read_block(kind, raw or {}, f"{where}, {name}", entry.id, config, ignored)

    audio, columns, more = block(Audio, "audio"), block(Columns, "config"), block(Columns, "huggingface")
    names = vars(columns)
    columns = Columns(
        **{
            n: _agreed(where, (f"config.{n}", names[n]), (f"huggingface.{n}", value))
            for n, value in vars(more).items()
        }
    )
    shuffle = block(Shuffle, "caption_shuffle")
    strategy = entry.caption_strategy
    if strategy is None:
        strategy = "huggingface" if entry.type == "huggingface" else config.caption_strategy
    _check_source(entry, strategy, columns, where)
    if None not in (entry.cache_dir, entry.cache_dir_vae) and entry.cache_dir != entry.cache_dir_vae:
        ignored.append((entry.id, "cache_dir", f"cache_dir_vae={entry.cache_dir_vae} is given, and wins"))
    shared = vars(_shared(entry, audio, shuffle, strategy, text_dir, config, where, ignored))
    lyrics_format = _lyrics_format(audio, where)
    folder = config.resolve(entry.instance_data_dir) if entry.instance_data_dir else None
    if entry.type == "huggingface":

        def column(name: str, same: str = "") -> Any:
            return _agreed(
                where,
                (f"config.{name}", getattr(columns, name)),
                (same or name, getattr(entry, same or name)),
            )

        return HubSet(
            **shared,
            dataset_name=entry.dataset_name or "",
            folder=folder,
            split=column("split"),
            revision=column("revision"),
            caption_fields=column("audio_caption_fields", "caption_column"),
            fallback_caption=columns.fallback_caption_column,
            lyrics_column=column("lyrics_column"),
            audio_column=column("audio_column"),
            download_dir=config.resolve(columns.cache_dir) if columns.cache_dir else None,
            streaming=bool(columns.streaming),
        )
    shared |= {"folder": folder, "multiline": not entry.disable_multiline_split}
    listed_columns = entry.csv_filename_column, entry.csv_caption_column, entry.csv_lyrics_column
    listed = SongList(Path(entry.csv_file), *listed_columns) if entry.csv_file else None
    if entry.type == "csv" and listed is not None:
        return CsvSet(**shared, lyrics_format=lyrics_format, listed=listed)
    return FolderSet(**shared, lyrics_format=lyrics_format, listed=listed)


def _shared(
    entry: Entry,
    audio: Audio,
    shuffle: Shuffle,
    strategy: str,
    text_dir: Path,
    config: RunConfig,
    where: str,
    ignored: list[tuple[str, str, str]],
) -> SongSet:
    """What data sets of every type have."""
    low, high = audio.min_duration_seconds, audio.max_duration_seconds
    instead = entry.only_instance_prompt or strategy == "instanceprompt"
    if (instead or entry.prepend_instance_prompt) and not entry.instance_prompt:
        raise ConfigError(f"{where}: instance_prompt is missing; captions are to be made from it")
    held_out = entry.dataset_type == "eval"
    for key, default in (("repeats", 0), ("probability", 1.0)) if held_out else ():
        if getattr(entry, key) != default:
            ignored.append((entry.id, key, "dataset_type=eval: its songs are not trained on"))
    if audio.crop_lyrics != "keep" and audio.crop_seconds is None:
        ignored.append((entry.id, "crop_lyrics", "it counts with crop_seconds only"))
    if low > high:
        raise ConfigError(f"{where}: min_duration_seconds={low} is above max_duration_seconds={high}")
    latents = entry.cache_dir_vae or entry.cache_dir or config.cache_dir_vae
    unkept = config.vae_cache_disable or bool(entry.vae_cache_disable)
    return SongSet(
        id=entry.id,
        held_out=held_out,
        caption_strategy=strategy,
        repeats=entry.repeats,
        probability=entry.probability,
        max_num_samples=entry.max_num_samples,
        shuffle=shuffle if shuffle.enable else None,
        instance_prompt=entry.instance_prompt,
        prepend_instance_prompt=entry.prepend_instance_prompt,
        only_instance_prompt=instead,
        latent_dir=config.resolve(latents or f"{config.cache_dir}/vae/{{model_family}}/{{id}}", id=entry.id),
        text_dir=text_dir,
        cache_latents=not unkept,
        ondemand=unkept or config.vae_cache_ondemand or bool(entry.vae_cache_ondemand),
        max_duration=high,
        min_duration=low,
        interval=audio.duration_interval,
        truncation=audio.truncation_mode,
        crop=audio.crop_seconds,
        crop_lyrics=audio.crop_lyrics,
        lyrics_language=forced_language(audio.lyrics_language, f"{where}, audio: lyrics_language"),
        lyrics_unsupported=audio.lyrics_unsupported,
    )


def _agreed(where: str, *given: tuple[str, Any]) -> Any:
    """What the spellings (name, value) of one setting give; None: none is there. ConfigError: they differ."""
    said = [(name, value) for name, value in given if value is not None]
    for name, value in said[1:]:
        if value != said[0][1]:
            both = f"{said[0][0]}={show(said[0][1])} and {name}={show(value)}"
            raise ConfigError(f"{where}: {both} are the same setting but differ; keep one")
    return said[0][1] if said else None


def _check_source(entry: Entry, strategy: str, columns: Columns, where: str) -> None:
    """Each type needs its own keys, and not every caption strategy fits every type."""
    if entry.type == "huggingface":
        if not entry.dataset_name:
            raise ConfigError(f"{where}: dataset_name is missing (a Hugging Face data set or a local folder)")
        if columns.streaming and not entry.max_num_samples:
            raise ConfigError(f"{where}: streaming needs max_num_samples: how many songs to download")
        if strategy not in ("huggingface", "instanceprompt"):
            raise ConfigError(f"{where}: captions are columns here; set caption_strategy=huggingface")
        return
    if strategy == "huggingface":
        raise ConfigError(f"{where}: caption_strategy=huggingface needs type=huggingface")
    if not entry.instance_data_dir:
        raise ConfigError(f"{where}: instance_data_dir is missing (the folder with the songs)")
    if "csv" in (entry.type, strategy) and not entry.csv_file:
        raise ConfigError(f"{where}: csv_file is missing (the list of songs and captions)")


def _lyrics_format(audio: Audio, where: str) -> str | None:
    """The name of a song's lyrics file with tokens, from any of the three ways to say it; None: the usual
    names.
    """
    suffix, ending = audio.lyrics_suffix, audio.lyrics_extension
    said: dict[str, str | None] = {
        "lyrics_filename_format": audio.lyrics_filename_format and audio.lyrics_filename_format.strip(),
        "lyrics_suffix": suffix and "{stem}" + suffix,
        "lyrics_extension": ending and "{stem}." + ending.lstrip("."),
    }
    template = _agreed(where, *((name, given or None) for name, given in said.items()))
    if template is None:
        return None
    template = str(template).replace("\\", "/")  # as Windows writes it
    lyrics_name(
        template, Path("folder/song.wav"), where
    )  # a wrong token is an error now, not at the first song
    return template
