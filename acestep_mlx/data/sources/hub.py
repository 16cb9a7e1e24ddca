"""Songs of Hugging Face data sets: by name, from a local folder, or as upstream's converter saved them.

Sound is never decoded by the `datasets` library (that needs torchcodec): columns are read with
`Audio(decode=False)` and the bytes or files go the way of every other song. Captions and lyrics come from
separate columns and never mix.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...config.datasets import HubSet
from ...config.run import RunConfig
from ...errors import AceStepError, ConfigError, DataError, nearest
from ...formatting import brief, listed
from ...io.audio import SUFFIXES
from ...io.hashes import hash_blocks
from ...io.schema import parse_json, read_file
from .. import sidecars
from ..captions import lyrics_cell, one_line
from ..facts import BLOCKS, BytesAudio, FileAudio
from .folder import Found, Song
from .song_list import columns_of, find_file

_CAPTION_COLUMNS = ("prompt", "caption", "tags", "text", "description")
_LYRICS_COLUMNS = ("lyrics", "norm_lyrics")
_SOUND_COLUMNS = ("audio", "filename", "file_name", "path", "file")
_VARIANTS = "recaption"  # upstream: a dictionary of rewordings, of which training picks one at random
PARQUET_ROWS = 16  # kept in memory at a time
ARROW_BYTES = (1 << 31) - 1  # of binary cells that Arrow gives at once
_SPLIT = "train"  # where none is wanted
_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
Where = Callable[[str], tuple[Path | None, str | None]]


def scan(dataset: HubSet, config: RunConfig, metadata: Mapping[str, Sequence[str]] | None = None) -> Found:
    """The songs of a Hugging Face data set, in row order, and what is to be known of its columns.

    metadata: see `families.protocol.Family`.

    DataError: the library is missing, the data set cannot be found, loaded or reached. ConfigError: a
    configured column or split does not exist.
    """
    folder = config.resolve(dataset.dataset_name)
    saved = folder.is_dir() and any((folder / n).is_file() for n in ("state.json", "dataset_dict.json"))
    table = _load(dataset, folder if folder.is_dir() else None, saved)
    sound = _sound_column(dataset, table)
    _check_sound(dataset, table, sound)
    fields = _caption_columns(dataset, table)
    lyrics = _lyrics_column(dataset, table, fields)
    variants = _VARIANTS if dataset.caption_fields is None and _VARIANTS in table.column_names else None
    where = _locator(folder if folder.is_dir() else None, saved, config, dataset)
    taken = {*fields, lyrics, variants, dataset.fallback_caption}
    told = columns_of(metadata or {}, [name for name in table.column_names if name not in {*taken, sound}])
    described = [c for c in {*taken, *told.values()} if c is not None]
    rows: list[dict[str, Any]] = (
        table.select_columns(described).to_list() if described else [{} for _ in range(len(table))]
    )
    sounds = table.select_columns([sound])
    cells = list(_cells(sounds, sound))
    names = _names(table, [cell.path for cell in cells])
    songs = []
    for number, (name, row, cell) in enumerate(zip(names, rows, cells, strict=True)):
        song = _song(name, sounds, sound, number, cell, where)
        song.captions = _captions(row, fields, variants, dataset.fallback_caption)
        song.lyrics = lyrics_cell(row.get(lyrics)) if lyrics else None
        song.metadata = {field: row.get(column) for field, column in told.items()}
        try:
            sidecars.check_caption("\n".join(song.captions), "the caption", listed=True)
            sidecars.check_lyrics(song.lyrics or "", "the lyrics")
        except DataError as error:
            song.problem = song.problem or str(error)
        songs.append(song)
    if not songs:
        raise _no_rows(dataset)
    return Found(songs, notes=_not_read(dataset, table, fields, lyrics))


def _load(dataset: HubSet, folder: Path | None, saved: bool) -> Any:
    """The data set's split as a `datasets.Dataset` whose sound is not decoded."""
    try:
        import datasets
    except ImportError:
        raise DataError(
            "type=huggingface needs the datasets library: pip install 'acestep-mlx[datasets]'"
        ) from None
    name = dataset.dataset_name
    if folder is None and not _HUB_NAME.fullmatch(name):
        raise DataError(f"{dataset.label}: there is no folder {name} (dataset_name)")
    cache = str(dataset.download_dir) if dataset.download_dir else None
    try:
        with _quiet(), _sound_as_it_is(datasets.Audio):
            if folder is not None and saved:
                _stay_inside(dataset, folder, _saved_files(folder))
                found = _saved(dataset, folder)
            elif folder is not None:
                found = _from_folder(dataset, folder, cache)
            elif dataset.streaming:
                found = datasets.Dataset.from_generator(
                    _first_rows, cache_dir=cache, gen_kwargs=_part(dataset)
                )
            else:
                found = datasets.load_dataset(name, revision=dataset.revision, cache_dir=cache)
    except AceStepError:
        raise
    except Exception as error:  # the library raises everything from ValueError to its own and Arrow's errors
        raise DataError(_why(dataset, folder, error)) from None
    if isinstance(found, dict):
        found = found[_split_of(dataset, found)]
    elif folder is not None:
        _check_split(dataset, name, found.split)
    for column, feature in found.features.items():
        if isinstance(feature, datasets.Audio):
            found = found.cast_column(column, datasets.Audio(decode=False))
    return found


def _no_rows(dataset: HubSet) -> DataError:
    split = f" in its split {dataset.split}" if dataset.split else ""
    return DataError(f"{dataset.label}: {dataset.dataset_name} has no rows{split}")


def _split_of(dataset: HubSet, there: Iterable[str]) -> str:
    """The split that is trained on. ConfigError when it is not there."""
    split = dataset.split or _SPLIT
    if split not in there:
        raise ConfigError(
            f"{dataset.label}: no split {split!r} in {dataset.dataset_name}; there are {', '.join(there)}"
        )
    return split


def _saved(dataset: HubSet, folder: Path) -> Any:
    """A data set as the library saved it: a table, or the split that is trained on, by its name.

    DataError when it has no rows: the library saves such a one, and cannot load it.
    """
    import datasets

    splits = folder / "dataset_dict.json"
    if not splits.is_file():
        return _saved_table(dataset, folder, datasets.load_from_disk)
    split = _split_of(dataset, parse_json(read_file(splits))["splits"])
    return {split: _saved_table(dataset, folder / split, datasets.load_from_disk)}


def _saved_table(dataset: HubSet, folder: Path, load: Callable[[str], Any]) -> Any:
    if not parse_json(read_file(folder / "state.json"))["_data_files"]:
        raise _no_rows(dataset)
    return load(str(folder))


def _check_split(dataset: HubSet, name: str, saved: Any) -> None:
    """ConfigError when another split is wanted than the one that was saved alone."""
    own = re.split(r"[\[+]", str(saved))[0] if saved is not None else None
    if dataset.split in (None, own, None if own else _SPLIT):
        return
    there = f"only the split {own!r}" if own else "no splits, only one table"
    raise ConfigError(
        f"{dataset.label}: no split {dataset.split!r} in {name}, which was saved with {there}; "
        "leave out split, or save the data set with its splits"
    )


def _saved_files(folder: Path) -> Iterator[str]:
    """The files that a saved data set says it is made of."""
    splits = folder / "dataset_dict.json"
    names = parse_json(read_file(splits))["splits"] if splits.is_file() else ["."]
    for name in names:
        yield str(folder / name)
        state = parse_json(read_file(folder / name / "state.json"))
        yield from (str(folder / name / one["filename"]) for one in state["_data_files"])


def _from_folder(dataset: HubSet, folder: Path, cache: str | None) -> Any:
    """All splits of a folder of parquet, sound or text files."""
    import datasets
    import pyarrow as pa

    builder = datasets.load_dataset_builder(str(folder), cache_dir=cache)
    # The folder's files, or what its README.md names instead.
    files = {
        str(split): [str(file) for file in names]
        for split, names in (builder.config.data_files or {}).items()
    }
    _stay_inside(dataset, folder, itertools.chain.from_iterable(files.values()))
    # It reads a row group of parquet at once, and Arrow gives no more than 2 GB of sound at once.
    empty = [Path(file).name for file in itertools.chain.from_iterable(files.values()) if _is_empty(file)]
    if empty:
        raise DataError(
            f"{dataset.label}: no rows in {listed(empty)}, which the datasets library does not read; remove "
            f"{'it' if len(empty) == 1 else 'them'}"
        )
    if not any(map(_too_much_at_once, itertools.chain.from_iterable(files.values()))):
        try:
            builder.download_and_prepare()
            return builder.as_dataset()
        except Exception as error:  # the library wraps Arrow's
            reasons = (error, error.__cause__)
            if not files or not any(isinstance(reason, pa.ArrowNotImplementedError) for reason in reasons):
                raise
    return {split: _from_parquet(names, cache) for split, names in files.items()}


def _is_empty(file: str) -> bool:
    import pyarrow.parquet as pq

    return file.endswith(".parquet") and pq.read_metadata(file).num_rows == 0


def _too_much_at_once(file: str) -> bool:
    import pyarrow.parquet as pq

    if not file.endswith(".parquet"):
        return False
    metadata = pq.read_metadata(file)
    return any(metadata.row_group(i).total_byte_size > ARROW_BYTES for i in range(metadata.num_row_groups))


def _from_parquet(files: Sequence[str], cache: str | None) -> Any:
    import datasets
    import pyarrow.parquet as pq

    features = datasets.Features.from_arrow_schema(pq.read_schema(files[0]))
    stamps = [FileAudio(Path(file)).stamp() for file in files]  # what the library keeps is known by them
    return datasets.Dataset.from_generator(
        _parquet_rows,
        writer_batch_size=PARQUET_ROWS,
        features=features,
        cache_dir=cache,
        gen_kwargs={"files": tuple(files), "stamps": stamps},
    )


def _parquet_rows(files: Sequence[str], stamps: Sequence[str]) -> Iterator[dict[str, Any]]:
    import pyarrow.parquet as pq

    for file in files:
        for batch in pq.ParquetFile(file).iter_batches(batch_size=1):
            yield from batch.to_pylist()


def _stay_inside(dataset: HubSet, folder: Path, files: Iterable[str]) -> None:
    """DataError for a data set that reads files outside its folder.

    A snapshot in the hub's cache consists of links into the cache.
    """
    from huggingface_hub import constants

    own = [Path(os.path.normpath(folder)), folder.resolve()]
    roots = [folder, Path(constants.HF_HUB_CACHE)]
    roots += [folder.parent.parent] if folder.parent.name == "snapshots" else []
    for file in files:
        # inside by its name and, behind links, in truth
        named = Path(os.path.normpath(folder / file))
        inside = any(named.is_relative_to(root) for root in own)
        if "://" in file or not inside or not any(named.resolve().is_relative_to(r.resolve()) for r in roots):
            raise DataError(
                f"{dataset.label}: {folder} reads {file}, which lies outside the data set's folder; "
                "copy it into the folder and name it there"
            )


def _part(dataset: HubSet) -> dict[str, Any]:
    return {
        "name": dataset.dataset_name,
        "revision": dataset.revision,
        "split": dataset.split or _SPLIT,
        "limit": dataset.max_num_samples,
    }


def _first_rows(name: str, revision: str | None, split: str, limit: int) -> Iterator[dict[str, Any]]:
    """The first rows of a data set on the hub, without the rest. The library keeps what this gave."""
    import datasets

    rows = datasets.load_dataset(name, revision=revision, split=split, streaming=True)
    for column, feature in (rows.features or {}).items():
        if isinstance(feature, datasets.Audio):
            rows = rows.cast_column(column, datasets.Audio(decode=False))
    yield from itertools.islice(rows, limit)


@contextlib.contextmanager
def _sound_as_it_is(audio: Any) -> Iterator[None]:
    """While a data set is prepared, sound goes into it as bytes or path, unchanged.

    The library wants torchcodec for this step even when nothing has to be encoded.
    """
    original = audio.encode_example

    def encode_example(self: Any, value: Any) -> dict[str, Any]:
        if isinstance(value, (str, Path)):
            return {"bytes": None, "path": str(value)}
        if isinstance(value, (bytes, bytearray)):
            return {"bytes": bytes(value), "path": None}
        if isinstance(value, dict) and "array" not in value:
            return {"bytes": value.get("bytes"), "path": value.get("path")}
        return dict(original(self, value))

    audio.encode_example = encode_example
    try:
        yield
    finally:
        audio.encode_example = original


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No warnings about every retry and no second progress bar beside ours."""
    import datasets

    loggers = [logging.getLogger(name) for name in ("huggingface_hub", "datasets")]
    levels = [logger.level for logger in loggers]
    bars = datasets.utils.logging.is_progress_bar_enabled()
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if bars:
            datasets.enable_progress_bars()


def _why(dataset: HubSet, folder: Path | None, error: Exception) -> str:
    """One line for whatever the library raised."""
    error = error.__cause__ if isinstance(error.__cause__, Exception) else error
    kind = type(error).__name__
    text = brief(error) or kind
    if isinstance(error, LookupError):  # a slip of the library, over files that it takes for data
        text = f"the datasets library does not understand its files: {kind}"
    label = dataset.label
    if kind == "ArrowNotImplementedError" and folder is None:
        return (
            f"{label}: {dataset.dataset_name} cannot be read at once, perhaps for more than 2 GB of sound in "
            f"a row group ({text}); download it and set dataset_name to its folder"
        )
    if folder is not None:
        return f"{label}: {folder} cannot be loaded as a data set ({text})"
    if "NotFound" in kind or "RepositoryNotFound" in text:
        return f"{label}: there is no folder or Hugging Face data set {dataset.dataset_name!r} ({text})"
    return f"{label}: cannot load {dataset.dataset_name!r}; is the network there? ({kind}: {text})"


# ── columns ──────────────────────────────────────────────────────────────────────────────────────────
def _known(dataset: HubSet, table: Any, name: str, key: str) -> str:
    if name not in table.column_names:
        there = ", ".join(table.column_names)
        raise ConfigError(
            f"{dataset.label}: no column {name!r} ({key}); there are {there}"
            f"{nearest(name, table.column_names)}"
        )
    return name


def _sound_column(dataset: HubSet, table: Any) -> str:
    if dataset.audio_column is not None:
        return _known(dataset, table, dataset.audio_column, "audio_column")
    found = [
        str(name)
        for name, feature in table.features.items()
        if type(feature).__name__ == "Audio"
        or (isinstance(feature, dict) and {"bytes", "path"} <= set(feature))
    ]
    usual = [name for name in _SOUND_COLUMNS if name in found]
    if len(found) > 1 and not usual:
        raise ConfigError(
            f"{dataset.label}: sound in {len(found)} columns ({', '.join(found)}); set audio_column"
        )
    if found:
        return (usual or found)[0]
    for name in _SOUND_COLUMNS:
        if name in table.column_names:
            return name
    for name, feature in table.features.items():
        if getattr(feature, "dtype", None) in ("binary", "large_binary", "binary_view"):
            return str(name)
    raise ConfigError(
        f"{dataset.label}: no column with sound ({', '.join(table.column_names)}); set audio_column"
    )


def _check_sound(dataset: HubSet, table: Any, column: str) -> None:
    """ConfigError when the cells of a column are neither files, nor paths, nor bytes."""
    import pyarrow as pa

    kind = table.features.arrow_schema.field(column).type
    text = (pa.types.is_string, pa.types.is_large_string, pa.types.is_null)
    octets = (
        pa.types.is_binary, pa.types.is_large_binary, pa.types.is_fixed_size_binary, pa.types.is_binary_view
    )  # fmt: skip
    lists = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    if any(is_kind(kind) for is_kind in text + octets):
        return
    if any(is_kind(kind) for is_kind in lists) and pa.types.is_integer(kind.value_type):
        return
    names = [field.name for field in kind] if pa.types.is_struct(kind) else []
    if {"bytes", "path"} & set(names):
        return
    what = f"fields {', '.join(names)}" if names else str(kind)
    decoded = "array" in names or any(is_kind(kind) for is_kind in lists)
    raise ConfigError(
        f"{dataset.label}: column {column!r} holds {'decoded samples' if decoded else 'no sound'} ({what}); "
        f"save the sound files or their paths in it{'' if dataset.audio_column else ', or set audio_column'}"
    )


def _caption_columns(dataset: HubSet, table: Any) -> tuple[str, ...]:
    if dataset.fallback_caption is not None:
        _known(dataset, table, dataset.fallback_caption, "fallback_caption_column")
    if dataset.only_instance_prompt:
        return ()
    if dataset.caption_fields is not None:
        return tuple(_known(dataset, table, name, "audio_caption_fields") for name in dataset.caption_fields)
    for name in _CAPTION_COLUMNS:
        if name in table.column_names and name != dataset.lyrics_column:
            return (name,)
    if _VARIANTS in table.column_names or dataset.fallback_caption is not None:
        return ()
    raise ConfigError(
        f"{dataset.label}: no caption column among {', '.join(table.column_names)}; "
        'set "config": {"audio_caption_fields": [...]}'
    )


def _not_read(
    dataset: HubSet, table: Any, captions: Sequence[str], lyrics: str | None
) -> list[tuple[str, str]]:
    """(column, note) of each column that could have been taken as well, where nobody said which one."""
    kinds = (
        ("caption", captions, _CAPTION_COLUMNS, dataset.caption_fields, "audio_caption_fields"),
        ("lyrics", [lyrics], _LYRICS_COLUMNS, dataset.lyrics_column, "lyrics_column"),
    )
    used = {lyrics, dataset.fallback_caption, *captions}
    found = []
    for kind, taken, usual, wanted, key in kinds:
        if wanted is not None or not any(taken) or (kind == "caption" and dataset.only_instance_prompt):
            continue
        for name in usual:
            if name in table.column_names and name not in used:
                note = f"column {taken[0]!r} is the {kind}, {name!r} is not read; {key} chooses"
                found.append((Path(dataset.dataset_name).name, note))
    return found


def _lyrics_column(dataset: HubSet, table: Any, captions: Sequence[str]) -> str | None:
    if dataset.lyrics_column is not None:
        column: str | None = _known(dataset, table, dataset.lyrics_column, "lyrics_column")
    else:
        column = next((name for name in _LYRICS_COLUMNS if name in table.column_names), None)
    if column is not None and column in captions:
        raise ConfigError(
            f"{dataset.label}: {column!r} cannot be both the caption and the lyrics; "
            "set audio_caption_fields and lyrics_column"
        )
    return column


def _names(table: Any, paths: Sequence[Any]) -> list[str]:
    """Unique names of the rows: upstream's `keys` column, else the files' names, else the rows' numbers."""
    numbers = [f"{number:06d}" for number in range(len(table))]
    if "keys" in table.column_names:
        names = [str(key).replace("/", "_") for key in table.select_columns(["keys"]).to_dict()["keys"]]
    elif all(isinstance(path, str) and path for path in paths):
        names = [Path(path).name for path in paths]
    else:
        return numbers
    if len(set(names)) == len(names):
        return names
    return [f"{name}#{number}" for name, number in zip(names, numbers, strict=True)]


# ── rows ─────────────────────────────────────────────────────────────────────────────────────────────
def _captions(
    row: dict[str, Any], fields: Sequence[str], variants: str | None, fallback: str | None
) -> list[str]:
    """The fields joined by ", " are one caption; a dictionary of rewordings adds its texts as variants."""
    joined = ", ".join(text for text in (one_line(row.get(name)) for name in fields) if text)
    extra = [name for name in (*fields, variants) if name and isinstance(row.get(name), dict)]
    captions = [joined] if joined else []
    for name in extra:
        captions += [text for text in (one_line(value) for value in row[name].values()) if text]
    if not captions and fallback is not None:
        captions = [text for text in [one_line(row.get(fallback))] if text]
    return captions


@dataclass(frozen=True)
class Cell:
    """One row's sound: the path that it names, and its bytes, of which nothing has been read yet, or None."""

    path: Any
    sound: np.ndarray | None


def _cells(sounds: Any, column: str) -> Iterator[Cell]:
    """The cells of all rows. Chunk by chunk: the sound of a batch may be more than Arrow joins (2 GB)."""
    for table in sounds.with_format("arrow").iter(batch_size=1000):
        for chunk in table[column].chunks:
            yield from _chunk(chunk)


def _chunk(cells: Any) -> Iterator[Cell]:
    """Cells of any type that holds sound: paths, bytes, lists of octets, or structs of bytes and path."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_struct(cells.type):
        names = {field.name for field in cells.type}
        paths, sounds = (
            _chunk(pc.struct_field(cells, name))
            if name in names
            else itertools.repeat(Cell(None, None), len(cells))
            for name in ("path", "bytes")
        )
        yield from (Cell(path.path, sound.sound) for path, sound in zip(paths, sounds, strict=True))
    elif pa.types.is_string(cells.type) or pa.types.is_large_string(cells.type):
        yield from (Cell(path, None) for path in cells.to_pylist())
    else:
        yield from (Cell(None, sound) for sound in _octets(cells))


def _octets(cells: Any) -> Iterator[np.ndarray | None]:
    """Binary cells or lists of whole numbers as arrays over Arrow's memory, of which nothing is read here."""
    import pyarrow as pa

    whole_numbers = pa.types.is_integer(getattr(cells.type, "value_type", pa.null()))
    for cell in cells:
        if cell.is_valid and hasattr(cell, "as_buffer"):
            yield np.frombuffer(cell.as_buffer(), np.uint8)
        elif cell.is_valid and whole_numbers and not cell.values.null_count:
            yield cell.values.to_numpy(zero_copy_only=True)
        else:
            yield None


def _song(name: str, sounds: Any, column: str, number: int, cell: Cell, where: Where) -> Song:
    """A song whose bytes are inside the data set, or in a file that the row names."""
    path, sound = cell.path, cell.sound
    if sound is None:
        if not isinstance(path, str) or not path:
            return Song(name, FileAudio(Path()), [], None, problem="no sound in this row")
        found, problem = where(path)
        return Song(name, FileAudio(found or Path(path)), [], None, problem=problem and f"{path}: {problem}")

    def read() -> bytes:
        row = sounds.with_format("arrow")[number]
        octets = next(_chunk(row[column].chunk(0))).sound
        assert octets is not None
        if octets.dtype != np.uint8 and len(octets) and not 0 <= octets.min() <= octets.max() <= 255:
            raise DataError("its list of numbers holds others than bytes")
        return octets.astype(np.uint8, copy=False).tobytes()

    blocks = hash_blocks(len(sound), lambda at, n: sound[at : at + n].tobytes(), BLOCKS)
    version = f"{getattr(sounds, '_fingerprint', '')}:{number}|{blocks}"
    suffix = Path(path).suffix.lower() if isinstance(path, str) else ""
    # Without a known name the content tells the format.
    suffix = suffix if suffix in SUFFIXES else ""
    return Song(name, BytesAudio(name, version, suffix, read), [], None)


def _locator(folder: Path | None, saved: bool, config: RunConfig, dataset: HubSet) -> Where:
    """Finds the file that a row names: (path, None) or (None, why not).

    Rows may only name files inside the data set's folder, or, for a downloaded one, inside the download
    caches. A data set that the user's own converter saved names files where they were: these may be
    absolute, or relative to the working directory, to the config, to the data set, to its parent or to
    `instance_data_dir`.
    """
    roots = [root for root in (folder, dataset.folder) if root is not None]
    if folder is None:
        from datasets import config as library
        from huggingface_hub import constants

        roots += [Path(library.HF_DATASETS_CACHE), Path(constants.HF_HUB_CACHE)]
        roots += [dataset.download_dir] if dataset.download_dir else []
    bases = [Path.cwd(), config.folder, *roots, *([folder.parent] if folder else [])]

    def inside(path: str) -> tuple[Path | None, str | None]:
        problem: str | None = "no such file"
        for root in roots:
            found, problem = find_file(root, path)
            if found is not None:
                return found, None
        return None, problem

    def anywhere(path: str) -> tuple[Path | None, str | None]:
        if ".." in Path(path).parts:
            return inside(path)
        problem: str | None = None
        for base in [Path("/")] if Path(path).is_absolute() else bases:
            found, problem = find_file(base, path)
            if found is not None:
                return found, None
        return None, "no such file" if problem == "leads out of the data set's folder" else problem

    return anywhere if saved else inside
