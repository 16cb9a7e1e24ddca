"""Every key of multidatabackend.json, declared once (see `option.Option`), and the data sets they make."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from ..errors import ConfigError
from ..registry import MAX_SECONDS
from .foreign import DATA_IGNORED, DATA_REFUSED, PARQUET, SCHEDULED
from .option import PathText, declared, foreign, option
from .parsing import Options
from .run import STRATEGIES

_TOKENS = re.compile(r"\{(\w*)\}")
_CLOUD = "only local folders, CSV lists and Hugging Face data sets are here; copy the files to a local folder"


# fmt: off
@dataclass(frozen=True)
class Entry:
    """A data set, or the folder of text caches."""

    id: str = option(None, "Name of the data set; part of cache paths.")
    type: str = option("local", "Where the files are.", choices="local huggingface csv",
        refused={"aws memory webshart parquet": _CLOUD})
    dataset_type: str = option("audio", "What it holds. eval: songs to measure the evaluation loss on, which "
        "are not trained on.", choices="audio eval text_embeds",
        refused={"image video conditioning caption distillation_cache":
            "ACE-Step trains on sound; set dataset_type=audio or remove the entry"})
    instance_data_dir: PathText | None = option(None, "Folder with the songs.", aliases="instance_data_root")
    dataset_name: PathText | None = option(None, "Hugging Face data set, or a local folder that holds one.")
    split: str | None = option(None, "Split of a Hugging Face data set; train where it has splits.")
    revision: str | None = option(None, "Revision of a Hugging Face data set.")
    caption_strategy: str | None = option(None, "Where captions come from.", choices=STRATEGIES,
        refused={"parquet": PARQUET})
    default: bool = option(False, "Of a text_embeds entry: use it where a data set names none.")
    disabled: bool = option(False, "Leave this data set out.", aliases="disable")
    repeats: int = option(0, "Further times each song is seen per epoch.", low=0, high=10**6)
    probability: float = option(1.0, "Share of the songs seen per epoch.", above=0, high=1000)
    max_num_samples: int | None = option(None, "Use a fixed random subset of this size.", low=1, high=10**9)
    caption_shuffle: Any = option(None, "Shuffled variants of tag captions.")
    instance_prompt: str | None = option(None, "Trigger words.", follows="instance_prompt")
    prepend_instance_prompt: bool = option(None, "Put instance_prompt before every caption.",
        follows="prepend_instance_prompt")
    only_instance_prompt: bool = option(None, "Use instance_prompt instead of every caption.",
        follows="only_instance_prompt")
    disable_multiline_split: bool = option(None, "A caption file is one caption.",
        follows="disable_multiline_split")
    cache_dir_vae: PathText | None = option(None, "Latent caches.")
    cache_dir: PathText | None = option(None,
        "Folder of a text_embeds entry's caches; of a data set's latents, where cache_dir_vae is not given.")
    text_embeds: str | None = option(None, "id of the text_embeds entry to use.")
    vae_cache_disable: bool | None = option(None, "Write no latents of this set to disk.")
    vae_cache_ondemand: bool | None = option(None, "Encode latents of this set when first needed.")
    csv_file: PathText | None = option(None, "CSV list, in instance_data_dir or the working directory.")
    csv_filename_column: str | None = option(None, "Column with the file name.", aliases="csv_url_column")
    csv_caption_column: str | None = option(None, "Column with the caption.")
    csv_lyrics_column: str | None = option(None, "Column with the lyrics.")
    audio: Any = option(None, "Durations and lyrics files.")
    config: Any = option(None, "Columns of a Hugging Face data set.")
    huggingface: Any = option(None, "Columns of a Hugging Face data set.")
    caption_column: tuple[str, ...] | None = option(None, "Column or columns with captions.")
    audio_column: str | None = option(None, "Column with the sound.")
    lyrics_column: str | None = option(None, "Column with the lyrics.")


@dataclass(frozen=True)
class Audio:
    """The `audio` block of an entry."""

    max_duration_seconds: float = option(None, "Longer songs are cut.", low=3, high=MAX_SECONDS, unit="s",
        aliases="audio_max_duration_seconds max_duration", follows="audio_max_duration_seconds")
    min_duration_seconds: float = option(None, "Shorter songs are skipped.", low=0, high=MAX_SECONDS,
        unit="s", aliases="audio_min_duration_seconds min_duration",
        follows="audio_min_duration_seconds")
    duration_interval: float = option(None, "Bucket width.", low=0.1, high=MAX_SECONDS, unit="s",
        aliases="audio_duration_interval audio_duration_interval_seconds audio_bucket_interval",
        follows="audio_duration_interval")
    truncation_mode: str = option(None, "Which part of a long song is kept.", choices="beginning end random",
        aliases="audio_truncation_mode", follows="audio_truncation_mode")
    crop_seconds: float | None = option(None,
        "Each time a longer song is used, a part of this length is drawn and trained on alone: long songs "
        "train in the memory of short ones. Unset: whole songs.", low=3, high=MAX_SECONDS, unit="s")
    crop_lyrics: str = option("keep", "The lyrics of such a part. keep: those of the whole song; drop: none; "
        "cut: the lines that are sung in it, as time stamps (.lrc, .srt, in the lines) say; a song without "
        "them has none.", choices="keep drop cut")
    bucket_strategy: str = option("duration", "How songs are grouped.", choices="duration")
    lyrics_filename_format: str | None = option(None, "Name of a lyrics file; tokens {filename}, {ext}, ...")
    lyrics_extension: str | None = option(None, "Ending of a lyrics file's name.")
    lyrics_suffix: str | None = option(None, "What follows the stem in a lyrics file's name.")
    lyrics_language: str | None = option(None,
        "Language of all lyrics (ja, Japanese); default: found by line.")
    lyrics_unsupported: str = option("warn", "Lyrics in a script without tokens are counted, or an error.",
        choices="warn error")


@dataclass(frozen=True)
class Columns:
    """The `config` or `huggingface` block of an entry."""

    audio_caption_fields: tuple[str, ...] | None = option(None, "Columns of the caption.",
        aliases="caption_column")
    fallback_caption_column: str | None = option(None, "Column used where the caption is empty.")
    lyrics_column: str | None = option(None, "Column with the lyrics.")
    audio_column: str | None = option(None, "Column with the sound.")
    split: str | None = option(None, "Split.")
    revision: str | None = option(None, "Revision.")
    cache_dir: PathText | None = option(None, "Where downloads are kept.")
    streaming: bool | None = option(None, "Download only the first max_num_samples rows.")


@dataclass(frozen=True)
class Shuffle:
    """The `caption_shuffle` block of an entry."""

    enable: bool = option(False, "Make shuffled variants.")
    count: int = option(1, "Variants per caption.", low=1, high=64)
    seed: int = option(None, "Seed of the shuffles.", low=0, high=2**32 - 1, follows="seed")
    split_on: str = option("comma", "What separates tags.", choices="comma space period")
    position_start: int = option(0, "Tags at the beginning that stay in place.", low=0, high=1000)
    include_original: bool = option(True, "Keep the unshuffled caption too.")
# fmt: on


BLOCKS: dict[str, type] = {"entry": Entry, "audio": Audio, "columns": Columns, "shuffle": Shuffle}
_START = {SCHEDULED: "start_epoch start_step"}  # the first epoch and step are 1
TABLES = {
    name: Options(
        declared(block),
        foreign("ignored", DATA_IGNORED[name]),
        foreign("refused", _START if name == "entry" else {}, off=(1,)),
        foreign("refused", DATA_REFUSED[name], off=(-1,)),
    )
    for name, block in BLOCKS.items()
}


# ── data sets ─────────────────────────────────────────────────────────────────────────────────────────
@dataclass(frozen=True)
class SongSet:
    """What every enabled data set has. Durations in seconds; paths absolute.

    type: as the entry has it. held_out: its songs are for the evaluation and not trained on.
    """

    type: ClassVar[str] = ""
    id: str
    held_out: bool
    caption_strategy: str
    repeats: int
    probability: float
    max_num_samples: int | None
    shuffle: Shuffle | None
    instance_prompt: str | None
    prepend_instance_prompt: bool
    only_instance_prompt: bool
    latent_dir: Path
    text_dir: Path
    cache_latents: bool
    ondemand: bool
    max_duration: float
    min_duration: float
    interval: float
    truncation: str
    crop: float | None
    crop_lyrics: str
    lyrics_language: str | None
    lyrics_unsupported: str

    @property
    def label(self) -> str:
        """As messages call it."""
        return f"data set {self.id!r}"


@dataclass(frozen=True)
class SongList:
    """A CSV file, as it was named, and its columns as the user named them."""

    file: Path
    filename: str | None
    caption: str | None
    lyrics: str | None


@dataclass(frozen=True)
class _Files(SongSet):
    """Songs in a folder. lyrics_format: name of a song's lyrics file with tokens; None: the usual names."""

    folder: Path
    multiline: bool
    lyrics_format: str | None

    @property
    def place(self) -> str:
        return str(self.folder)


@dataclass(frozen=True)
class FolderSet(_Files):
    """All songs in a folder; a list may describe them."""

    type = "local"
    listed: SongList | None


@dataclass(frozen=True)
class CsvSet(_Files):
    """The songs of a folder that a list names."""

    type = "csv"
    listed: SongList


@dataclass(frozen=True)
class HubSet(SongSet):
    """A Hugging Face data set, by name or in a folder. folder: where else its files may lie."""

    type = "huggingface"
    dataset_name: str
    folder: Path | None
    split: str | None
    revision: str | None
    caption_fields: tuple[str, ...] | None
    fallback_caption: str | None
    lyrics_column: str | None
    audio_column: str | None
    download_dir: Path | None
    streaming: bool

    @property
    def place(self) -> str:
        return str(self.folder or self.dataset_name)


LocalSet = FolderSet | CsvSet
DataSet = LocalSet | HubSet


@dataclass(frozen=True)
class DataSets:
    """Enabled data sets, in file order.

    ignored: (data set, key, reason). text_dir: text caches of validation.
    """

    audio: tuple[DataSet, ...]
    text_dir: Path
    ignored: tuple[tuple[str, str, str], ...]
    disabled: tuple[str, ...]


def lyrics_name(template: str, song: Path, where: str = "") -> str:
    """A song's lyrics file relative to the song's folder. Tokens: filename, stem, name, ext, parent.

    Raises ConfigError for other tokens and for names that leave the song's folder.
    """
    values = {
        "filename": song.stem,
        "stem": song.stem,
        "name": song.name,
        "ext": song.suffix.lstrip("."),
        "suffix": song.suffix,
        "parent": song.parent.name,
    }

    def fill(match: re.Match[str]) -> str:
        if match[1] not in values:
            known = ", ".join("{" + token + "}" for token in ("filename", "stem", "name", "ext", "parent"))
            raise ConfigError(
                f"lyrics_filename_format: unknown token {match[0]}; there are {known} ({where})"
            )
        return values[match[1]]

    if "{" in (rest := _TOKENS.sub("", template)) or "}" in rest:
        raise ConfigError(
            f"lyrics_filename_format={template!r}: a brace that belongs to no token; tokens look like "
            f"{{stem}} ({where})"
        )
    name = _TOKENS.sub(fill, template)
    if not name.strip() or Path(name).is_absolute() or ".." in Path(name).parts or "\0" in name:
        raise ConfigError(
            f"lyrics_filename_format={template!r} must stay inside the data set's folder ({where})"
        )
    return name
