"""Hugging Face data sets: folders of parquet, of audio, as upstream saves them; columns; no network."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile as sf

from acestep_mlx.config.datasets import HubSet
from acestep_mlx.config.read_datasets import read_datasets
from acestep_mlx.config.read_run import load_config
from acestep_mlx.data.captions import one_line
from acestep_mlx.data.encode import load_part
from acestep_mlx.data.manifest import Manifest, build_manifest
from acestep_mlx.data.sources import hub as huggingface
from acestep_mlx.errors import ConfigError, DataError

from ..io.test_lengths import id3, mp3
from ..later import Later
from .songs import config, tone, write

datasets = Later("datasets")


def wav(pitch: float, seconds: float = 3.5, format: str = "WAV") -> bytes:
    buffer = io.BytesIO()
    sf.write(buffer, tone(seconds, pitch), 22050, format=format)
    return buffer.getvalue()


def parquet(folder: Path, cells: list[Any], split: str = "train", **columns: list[Any]) -> Path:
    """A parquet data set as the hub serves it: an Audio feature over a struct of bytes and path."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({"audio": pa.array(cells, kind), **columns})
    features: dict[str, Any] = {name: {"dtype": "string", "_type": "Value"} for name in columns}
    features["audio"] = {"sampling_rate": 22050, "_type": "Audio"}
    plain = all(isinstance(v, (str, type(None))) for values in columns.values() for v in values)
    if plain:
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    folder.mkdir(exist_ok=True)
    pq.write_table(table, folder / f"{split}.parquet")
    return folder


def read(root: Path, name: Path | str, **entry: Any) -> Manifest:
    downloads = {"cache_dir": str(root / "downloads"), **entry.pop("huggingface", {})}
    full = {
        "type": "huggingface",
        "dataset_type": "audio",
        "dataset_name": str(name),
        "instance_data_dir": None,
        "metadata_backend": "huggingface",
        "caption_strategy": "huggingface",
        "huggingface": downloads,
        **entry,
    }
    return build_manifest(config(root, full))  # fmt: skip


def found(manifest: Manifest) -> list[tuple[tuple[str, ...], str | None]]:
    return [(s.captions, s.lyrics) for s in manifest.samples]


@pytest.fixture
def songs(tmp_path: Path) -> Path:
    cells = [{"bytes": wav(300 + i), "path": f"{i}.wav"} for i in range(3)]
    return parquet(tmp_path / "set", cells, prompt=["pop", "rock, loud", ""],
                   lyrics=["[verse]\nla la", "", None])  # fmt: skip


def test_parquet_by_folder(tmp_path: Path, songs: Path) -> None:
    manifest = read(tmp_path, songs)
    assert found(manifest) == [(("pop",), "[verse]\nla la"), (("rock, loud",), None), (("",), None)]
    assert manifest.report.sets[0].no_caption == ["2.wav"]
    sound = load_part(manifest.samples[1])
    assert sound.shape == (round(3.5 * 44100), 2)
    spectrum = np.abs(np.fft.rfft(sound[:, 0]))
    assert (
        abs(np.fft.rfftfreq(len(sound), 1 / 44100)[spectrum.argmax()] - 301) < 1
    )  # not decoded at another rate


def test_nothing_needs_torchcodec(tmp_path: Path, songs: Path) -> None:
    read(tmp_path, songs)
    assert "torchcodec" not in sys.modules


def test_lyrics_never_leak_into_captions(tmp_path: Path) -> None:
    cells = [{"bytes": wav(300), "path": None}]
    folder = parquet(tmp_path / "set", cells, text=["secret words"], lyrics=["la la"], caption=["pop"])
    assert found(read(tmp_path, folder)) == [(("pop",), "la la")]
    assert found(read(tmp_path, folder, lyrics_column="text")) == [(("pop",), "secret words")]
    for block in ("config", "huggingface"):
        columns = {"audio_caption_fields": ["caption", "text"], "lyrics_column": "lyrics"}
        entry = {block: columns}
        assert found(read(tmp_path, folder, **entry)) == [(("pop, secret words",), "la la")]
    with pytest.raises(ConfigError, match="both the caption and the lyrics"):
        read(tmp_path, folder, config={"audio_caption_fields": ["caption", "lyrics"]})
    only = read(tmp_path, folder, caption_strategy="instanceprompt", instance_prompt="zyx")
    assert found(only) == [(("zyx",), "la la")]


def test_columns_that_could_have_been_the_caption_are_named(tmp_path: Path) -> None:
    cells = [{"bytes": wav(300), "path": None}]
    words = {"caption": ["pop"], "text": ["words"], "description": ["d"]}
    folder = parquet(tmp_path / "set", cells, **words, lyrics=["la"], norm_lyrics=["lo"])
    notes = [note for _, note in read(tmp_path, folder).report.sets[0].sources]
    assert notes == [
        "column 'caption' is the caption, 'text' is not read; audio_caption_fields chooses",
        "column 'caption' is the caption, 'description' is not read; audio_caption_fields chooses",
        "column 'lyrics' is the lyrics, 'norm_lyrics' is not read; lyrics_column chooses",
    ]
    chosen = read(tmp_path, folder, caption_column=["text"], lyrics_column="lyrics")
    assert not chosen.report.sets[0].sources


@pytest.mark.parametrize("kind", ["saved", "split", "parquet"])
def test_a_set_without_rows_is_called_so(kind: str, tmp_path: Path) -> None:
    folder = tmp_path / "set"
    empty = datasets.Dataset.from_dict({"audio": [], "prompt": []})
    full = datasets.Dataset.from_dict({"audio": [wav(300)], "prompt": ["pop"]})
    if kind == "saved":
        empty.save_to_disk(str(folder))
    elif kind == "split":
        datasets.DatasetDict({"train": empty, "more": full}).save_to_disk(str(folder))
        assert len(read(tmp_path, folder, split="more").samples) == 1
    else:
        parquet(folder, [], prompt=[])
    with pytest.raises(DataError, match="no rows"):
        read(tmp_path, folder)


@pytest.mark.parametrize(
    ("cell", "said"),
    [({"array": [0.1] * 9, "sampling_rate": 22050}, "decoded samples (fields array, sampling_rate)"),
     ([0.1] * 9, "decoded samples (list"), (7, "no sound (int64)"), ({"url": "x"}, "no sound (fields url)")],
)  # fmt: skip
def test_columns_of_something_else_than_sound(cell: Any, said: str, tmp_path: Path) -> None:
    rows = {"audio": [cell], "prompt": ["pop"]}
    datasets.Dataset.from_dict(rows).save_to_disk(str(tmp_path / "set"))
    with pytest.raises(ConfigError, match=re.escape(f"column 'audio' holds {said}")):
        read(tmp_path, tmp_path / "set")


def test_fallback_and_lists(tmp_path: Path) -> None:
    cells = [{"bytes": wav(300 + i), "path": None} for i in range(2)]
    folder = parquet(tmp_path / "set", cells, tags=[["pop", "happy"], []], description=["a", "fallback text"])
    columns = {"audio_caption_fields": ["tags"], "fallback_caption_column": "description"}
    captions = [c for c, _ in found(read(tmp_path, folder, config=columns))]
    assert captions == [("pop, happy",), ("fallback text",)]


@pytest.mark.parametrize(
    ("entry", "part"),
    [({"split": "test"}, "no split 'test'"),
     ({"config": {"lyrics_column": "lyric"}}, "did you mean 'lyrics'"),
     ({"config": {"audio_caption_fields": ["promt"]}}, "did you mean 'prompt'"),
     ({"audio_column": "sound"}, "no column 'sound'"),
     ({"config": {"fallback_caption_column": "nope"}}, "no column 'nope'")],
)  # fmt: skip
def test_columns_not_there(entry: dict[str, Any], part: str, tmp_path: Path, songs: Path) -> None:
    with pytest.raises(ConfigError, match=part) as error:
        read(tmp_path, songs, **entry)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("saved", [None, "train", "test", "train[:50%]"])
@pytest.mark.parametrize("wanted", [None, "train", "test", "validation"])
@pytest.mark.parametrize("block", [False, True])
def test_a_split_of_a_data_set_that_was_saved_without(
    saved: str | None, wanted: str | None, block: bool, tmp_path: Path
) -> None:
    rows = {"audio": [write(tmp_path / "set" / "a.wav").read_bytes()], "prompt": ["pop"]}
    split = datasets.NamedSplit(saved) if saved and "[" not in saved else saved
    table = datasets.Dataset.from_dict(rows, split=split)
    table.save_to_disk(str(tmp_path / "set"))
    entry = {} if wanted is None else {"huggingface": {"split": wanted}} if block else {"split": wanted}
    own = (saved or "train").split("[")[0]
    if wanted in (None, own):
        assert len(read(tmp_path, tmp_path / "set", **entry).samples) == 1
        return
    there = f"only the split '{own}'" if saved else "no splits, only one table"
    with pytest.raises(ConfigError, match=f"no split '{wanted}' in .*set, which was saved with {there};"):
        read(tmp_path, tmp_path / "set", **entry)


def test_bad_rows_are_skipped_and_named(tmp_path: Path) -> None:
    outside = write(tmp_path / "outside.wav")
    cells: list[Any] = [
        {"bytes": wav(300), "path": None},
        {"bytes": None, "path": str(outside)},
        {"bytes": None, "path": "../outside.wav"},
        {"bytes": None, "path": "/etc/passwd"},
        {"bytes": b"", "path": "x.wav"},
        {"bytes": b"junk" * 50, "path": None},
        {"bytes": None, "path": None},
        None,
    ]
    folder = parquet(tmp_path / "set", cells, prompt=["x"] * len(cells))
    manifest = read(tmp_path, folder)
    assert len(manifest.samples) == 1 and len(manifest.skipped) == len(cells) - 1
    reasons = [reason for _, reason in manifest.skipped]
    assert sum("leads out" in reason for reason in reasons) == 3
    assert sum("no sound in this row" in reason for reason in reasons) == 2


def test_audiofolder(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    for i in range(2):
        write(folder / f"s{i}.flac", 3.0, 300 + i)
    (folder / "metadata.csv").write_text(
        "file_name,prompt,lyrics\ns0.flac,calm piano,la la\ns1.flac,metal,\n"
    )
    manifest = read(tmp_path, folder)
    assert [s.id for s in manifest.samples] == ["set/s0.flac", "set/s1.flac"]
    assert found(manifest) == [(("calm piano",), "la la"), (("metal",), None)]


def upstream(root: Path, names: list[str], folder: str = "saved") -> Path:
    """As convert2hf_dataset.py writes it."""
    rows = [
        {"keys": f"key{i}", "filename": name, "tags": ["rap", "90 bpm"], "speaker_emb_path": "",
         "norm_lyrics": "[verse]\nyo" if i % 2 == 0 else "write a rap song that genre is rap",
         "recaption": {"simplified": "rap", "expanded": ""}}
        for i, name in enumerate(names)
    ]  # fmt: skip
    datasets.Dataset.from_list(rows).save_to_disk(str(root / folder))
    return root / folder


def test_upstream_converter_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    absolute = write(tmp_path / "data" / "a.wav", 3.0, 300)
    write(tmp_path / "data" / "b.wav", 3.0, 301)
    folder = upstream(
        tmp_path, [str(absolute), "data/b.wav", "./data/b.wav", "gone.wav", "../../etc/x.wav", "data"]
    )
    manifest = read(tmp_path, folder)
    assert [s.id for s in manifest.samples] == ["set/key0", "set/key1", "set/key2"]
    assert found(manifest)[:2] == [(("rap, 90 bpm", "rap"), "[verse]\nyo"), (("rap, 90 bpm", "rap"), None)]
    assert len(manifest.skipped) == 3
    columns = {"audio_caption_fields": ["tags"], "lyrics_column": "norm_lyrics"}
    assert found(read(tmp_path, folder, config=columns))[0] == (("rap, 90 bpm",), "[verse]\nyo")


def test_repeated_rows_are_decoded_once(tmp_path: Path) -> None:
    path = write(tmp_path / "a.wav", 3.0)
    folder = upstream(tmp_path, [str(path)] * 50)
    seen: list[str] = []
    full = {"type": "huggingface", "dataset_name": str(folder), "instance_data_dir": None}
    manifest = build_manifest(config(tmp_path, full), lambda advance: seen.append(advance.note))
    assert len(manifest.samples) == 50 and len(seen) == 1


@pytest.mark.parametrize(
    "make", ["nothing", "empty folder", "text", "broken parquet", "broken saved", "odd name"]
)
def test_sets_that_cannot_be_loaded_are_one_line(make: str, tmp_path: Path) -> None:
    folder = tmp_path / "set"
    name: Path | str = folder
    if make == "odd name":
        name = "../x y/ü:z"
    elif make != "nothing":
        folder.mkdir()
    if make == "text":
        (folder / "readme.txt").write_text("hello")
    elif make == "broken parquet":
        (folder / "train.parquet").write_bytes(b"PAR1 and then nothing")
    elif make == "broken saved":
        (folder / "state.json").write_text("{")
    with pytest.raises((DataError, ConfigError)) as error:
        read(tmp_path, name)
    assert "\n" not in str(error.value) and "data set 'set'" in str(error.value)


@pytest.mark.parametrize("revision", [None, "v2"])
@pytest.mark.parametrize("streaming", [True, False])
def test_what_is_asked_of_the_hub_is_what_the_data_set_says(
    streaming: bool, revision: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []

    class Table(list[dict[str, Any]]):
        features: dict[str, Any] = {}  # noqa: RUF012

    def load(name: str, **options: Any) -> Any:
        asked.append({"name": name, **options})
        table = Table({"number": i} for i in range(9))
        return table if streaming else {"train": table, "test": table}

    monkeypatch.setattr("datasets.load_dataset", load)
    monkeypatch.setattr(
        "datasets.Dataset.from_generator", lambda rows, gen_kwargs, **_: Table(rows(**gen_kwargs))
    )
    entry = {"dataset_name": "someone/songs", "max_num_samples": 4, "type": "huggingface", "id": "set"}
    hub = {"streaming": streaming, "revision": revision, "split": "test", "cache_dir": str(tmp_path / "here")}
    given = {"data_backend_config": [{**entry, "dataset_type": "audio", "huggingface": hub}]}
    (one,) = read_datasets(load_config(given)).audio
    assert isinstance(one, HubSet)
    found = huggingface._load(one, None, False)
    wanted = {"split": "test", "streaming": True} if streaming else {"cache_dir": str(tmp_path / "here")}
    assert asked == [{"name": "someone/songs", "revision": revision, **wanted}]
    assert len(found) == (4 if streaming else 9)


@pytest.mark.parametrize("fails", [False, True])
def test_the_libraries_are_quiet_only_while_they_work(fails: bool) -> None:
    bars = datasets.utils.logging
    loggers = [logging.getLogger(name) for name in ("huggingface_hub", "datasets")]
    before = [logger.level for logger in loggers]
    levels = [logging.INFO, logging.DEBUG]
    try:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        for shown in (True, False):
            (datasets.enable_progress_bars if shown else datasets.disable_progress_bars)()
            with contextlib.suppress(KeyError), huggingface._quiet():
                assert [logger.level for logger in loggers] == [logging.ERROR] * 2
                assert not bars.is_progress_bar_enabled()
                if fails:
                    raise KeyError
            assert [logger.level for logger in loggers] == levels
            assert bars.is_progress_bar_enabled() == shown
    finally:
        datasets.enable_progress_bars()
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


@pytest.mark.slow
def test_streaming_takes_the_first_rows_and_keeps_them(
    tmp_path: Path, songs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = datasets.load_dataset

    def from_hub(name: str, *, revision: str | None = None, **kw: Any) -> Any:
        assert name == "someone/songs" and kw["streaming"]
        return load(str(songs), **kw)

    monkeypatch.setattr("datasets.load_dataset", from_hub)
    entry = {"max_num_samples": 2, "huggingface": {"streaming": True}}
    first = read(tmp_path, "someone/songs", **entry)
    assert found(first) == [(("pop",), "[verse]\nla la"), (("rock, loud",), None)]
    monkeypatch.setattr("datasets.load_dataset", None)
    assert found(read(tmp_path, "someone/songs", **entry)) == found(first)
    with pytest.raises(ConfigError, match="streaming needs max_num_samples"):
        read(tmp_path, "someone/songs", huggingface={"streaming": True})


def test_no_network_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise ConnectionError("Couldn't reach the Hub\n  after 5 retries")

    monkeypatch.setattr("datasets.load_dataset", fail)
    for entry in ({}, {"max_num_samples": 2, "huggingface": {"streaming": True}}):
        with pytest.raises(DataError, match=r"cannot load 'someone/songs'; is the network there\?") as error:
            read(tmp_path, "someone/songs", **entry)
        assert "\n" not in str(error.value) and "reach the Hub" in str(error.value)


def test_a_row_group_of_the_hub_that_is_too_much_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pyarrow as pa

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("failed") from pa.ArrowNotImplementedError("Nested data conversions")

    monkeypatch.setattr("datasets.load_dataset", fail)
    with pytest.raises(DataError, match=r"2 GB of sound in a row group .*set dataset_name to its folder"):
        read(tmp_path, "someone/songs")


def test_without_the_library(tmp_path: Path, songs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r"pip install 'acestep-mlx\[datasets\]'"):
        read(tmp_path, songs)


def test_sound_is_encoded_normally_afterwards(tmp_path: Path, songs: Path) -> None:
    before = datasets.Audio.encode_example
    read(tmp_path, songs)
    assert datasets.Audio.encode_example is before


# ── cells of every type ──────────────────────────────────────────────────────────────────────────────
def test_bytes_in_any_type_of_column(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    data = [wav(300), None, b"", wav(301)]
    lists = [None if d is None else list(d) for d in data]
    kinds = {
        "binary": (data, pa.binary()),
        "large_binary": (data, pa.large_binary()),
        "uint8": (lists, pa.list_(pa.uint8())),
        "large uint8": (lists, pa.large_list(pa.uint8())),
        "int64": (lists, pa.list_(pa.int64())),
        "binary_view": (data, pa.binary_view()),
        "struct of lists": (
            [None if d is None else {"bytes": d, "path": None} for d in lists],
            pa.struct([("bytes", pa.list_(pa.uint8())), ("path", pa.string())]),
        ),
    }
    for name, (cells, kind) in kinds.items():
        folder = tmp_path / name
        folder.mkdir()
        table = pa.table({"audio": pa.array(cells, kind), "prompt": pa.array(["a", "b", "c", "d"])})
        pq.write_table(table, folder / "train.parquet")
        manifest = read(tmp_path, folder)
        assert [s.captions[0] for s in manifest.samples] == ["a", "d"], name
        assert [reason for _, reason in manifest.skipped] == ["no sound in this row", "empty file"], name
        spectrum = np.abs(np.fft.rfft(load_part(manifest.samples[1])[:, 0]))
        assert abs(np.fft.rfftfreq(round(3.5 * 44100), 1 / 44100)[spectrum.argmax()] - 301) < 1, name


def test_cells_of_later_batches_are_their_own() -> None:
    import pyarrow as pa

    data = [b"one", None, b"", b"three", b"four"]
    lists = [None if d is None else list(d) for d in data]
    arrays = [
        pa.array(data, pa.binary()),
        pa.array(data, pa.large_binary()),
        pa.array(lists, pa.list_(pa.uint8())),
    ]
    arrays += [
        pa.StructArray.from_arrays([array], ["bytes"], mask=pa.array([False] * 4 + [True]))
        for array in arrays
    ]
    for array in arrays:
        expected = data if array.null_count == 1 and array[4].is_valid else [*data[:4], None]
        for start in range(len(data) + 1):
            cells = [cell.sound for cell in huggingface._chunk(array.slice(start))]
            assert [None if sound is None else sound.tobytes() for sound in cells] == expected[start:]


def test_a_binary_column_is_found_by_its_type(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    (tmp_path / "set").mkdir()
    table = pa.table({"prompt": ["a"], "mp3": pa.array([wav(300)], pa.binary())})
    pq.write_table(table, tmp_path / "set" / "train.parquet")
    assert found(read(tmp_path, tmp_path / "set")) == [(("a",), None)]


def test_numbers_that_are_no_bytes(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    (tmp_path / "set").mkdir()
    cells = [list(wav(300)), [1, 2, 300], [-1] * 9, [1, None, 2]]
    table = pa.table({"prompt": ["a"] * 4, "audio": pa.array(cells, pa.list_(pa.int64()))})
    pq.write_table(table, tmp_path / "set" / "train.parquet")
    manifest = read(tmp_path, tmp_path / "set")
    assert len(manifest.samples) == 1
    reasons = [reason for _, reason in manifest.skipped]
    assert reasons == ["its list of numbers holds others than bytes"] * 2 + ["no sound in this row"]


@pytest.mark.parametrize("known", [True, False], ids=["said by its header", "found by trying"])
def test_a_row_group_of_more_sound_than_arrow_gives_at_once(
    known: bool, tmp_path: Path, songs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library fails on it as here; the rows are read one by one then, and kept until the file changes."""
    tried: list[str] = []
    import pyarrow as pa
    import pyarrow.parquet as pq
    from datasets.packaged_modules.parquet.parquet import Parquet

    def fails(*_: Any, **__: Any) -> Any:
        tried.append("all at once")
        raise pa.ArrowNotImplementedError("Nested data conversions not implemented for chunked array outputs")
        yield

    expected = found(read(tmp_path, songs, huggingface={"cache_dir": str(tmp_path / "other")}))
    monkeypatch.setattr(Parquet, "_generate_tables", fails)
    if known:
        monkeypatch.setattr(huggingface, "ARROW_BYTES", 1000)
    manifest = read(tmp_path, songs)
    assert bool(tried) != known
    assert found(manifest) == expected and len(expected) == 3
    assert [s.id for s in manifest.samples] == ["set/0.wav", "set/1.wav", "set/2.wav"]
    assert load_part(manifest.samples[2]).shape == (round(3.5 * 44100), 2)
    with monkeypatch.context() as patch:
        patch.setattr(pq, "ParquetFile", None)
        assert found(read(tmp_path, songs)) == expected
    parquet(songs, [{"bytes": wav(400), "path": "new.wav"}], prompt=["jazz"], lyrics=["la"])
    assert found(read(tmp_path, songs)) == [(("jazz",), "la")]


@pytest.mark.slow
def test_more_sound_in_a_batch_than_arrow_joins() -> None:
    """3.5 GB in one batch, of which only some blocks are read: the memory is never filled."""
    import pyarrow as pa

    size = 700 << 20
    offsets, zeros = pa.py_buffer(np.array([0, size], np.int32)), pa.py_buffer(np.zeros(size, np.uint8))
    sound = pa.Array.from_buffers(pa.binary(), 1, [None, offsets, zeros])
    cell = pa.StructArray.from_arrays([sound, pa.array(["a.wav"])], ["bytes", "path"])
    table = datasets.table.InMemoryTable(pa.table({"audio": pa.chunked_array([cell] * 5)}))
    sounds = datasets.Dataset(table, fingerprint="made up")
    cells = list(huggingface._cells(sounds, "audio"))
    assert [(c.path, len(c.sound)) for c in cells if c.sound is not None] == [("a.wav", size)] * 5
    song = huggingface._song("a", sounds, "audio", 4, cells[4], lambda path: (None, "unused"))
    assert song.problem is None and song.audio.stamp() != ""


@pytest.mark.parametrize("form", ["AU", "CAF", "W64", "AIFF", "FLAC", "OGG", "MP3", "RF64"])
def test_bytes_without_a_name_are_known_by_their_content(form: str, tmp_path: Path) -> None:
    rows = [{"bytes": wav(300, format=form), "path": None}, {"bytes": wav(301, format=form), "path": "x.m4a"}]
    manifest = read(tmp_path, parquet(tmp_path / "set", rows, prompt=["a", "b"]))
    assert len(manifest.samples) == 2, manifest.skipped


def test_an_mp3_row_without_a_xing_header_is_whole(tmp_path: Path) -> None:
    """What FFmpeg guesses for it may be more than there is, which is no truncation."""
    data = mp3(False, "CONSTANT")
    tags = id3(20_000)
    rows = [{"bytes": data, "path": None}, {"bytes": tags + data, "path": "a.mp3"}]
    manifest = read(tmp_path, parquet(tmp_path / "set", rows, prompt=["a", "b"]))
    assert len(manifest.samples) == 2, manifest.skipped
    assert all(abs(s.seconds - 4) < 0.1 for s in manifest.samples)
    assert len(manifest.report.sets[0].counted) == 2


def test_a_row_whose_sound_is_replaced_is_noticed(tmp_path: Path) -> None:
    """Also when the library, going by the file's size and time, says that nothing changed."""
    first = read(tmp_path, parquet(tmp_path / "one", [{"bytes": wav(300), "path": "a.wav"}], prompt=["a"]))
    other = read(tmp_path, parquet(tmp_path / "two", [{"bytes": wav(301), "path": "a.wav"}], prompt=["a"]))
    versions = [m.samples[0].audio.stamp().rpartition("|")[2] for m in (first, other)]
    assert versions[0] != versions[1]


# ── data sets that lead elsewhere ────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize(
    "how", ["relative", "absolute", "glob", "data_dir", "split", "link", "link to folder"]
)
def test_data_files_may_not_lead_outside(how: str, tmp_path: Path) -> None:
    outside = parquet(tmp_path / "outside", [{"bytes": wav(300), "path": None}], prompt=["a"])
    folder = tmp_path / "set"
    folder.mkdir()
    named = {
        "relative": "data_files: ../outside/train.parquet",
        "absolute": f"data_files: {outside}/train.parquet",
        "glob": "data_files: ../out*/*.parquet",
        "data_dir": "data_dir: ../outside",
        "split": "data_files:\n  - split: train\n    path: [../outside/train.parquet]",
    }
    if how == "link":
        (folder / "train.parquet").symlink_to(outside / "train.parquet")
    elif how == "link to folder":
        (folder / "data").symlink_to(outside)
    else:
        (folder / "README.md").write_text(f"---\nconfigs:\n- config_name: default\n  {named[how]}\n---\n")
    with pytest.raises(DataError, match=r"outside the data set's folder|cannot be loaded") as error:
        read(tmp_path, folder)
    assert "\n" not in str(error.value)


def test_data_files_inside_are_read(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    parquet(folder / "data", [{"bytes": wav(300), "path": None}], prompt=["a"])
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files: data/../data/*.parquet\n---\n"
    )
    assert found(read(tmp_path, folder)) == [(("a",), None)]
    (tmp_path / "linked").symlink_to(folder)  # the user's own link to the data set
    assert found(read(tmp_path, tmp_path / "linked")) == [(("a",), None)]


def test_a_snapshot_in_the_hubs_cache_is_read(tmp_path: Path) -> None:
    repo = tmp_path / "datasets--someone--songs"
    blobs = parquet(repo / "blobs", [{"bytes": wav(300), "path": None}], prompt=["a"]) if (
        repo.mkdir() is None
    ) else None  # fmt: skip
    snapshot = repo / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    (snapshot / "train.parquet").symlink_to(Path(str(blobs)) / "train.parquet")
    assert found(read(tmp_path, snapshot)) == [(("a",), None)]


@pytest.mark.parametrize("how", ["file", "absolute", "split"])
def test_saved_sets_may_not_lead_outside(how: str, tmp_path: Path) -> None:
    path = write(tmp_path / "a.wav", 3.0)
    outside, folder = upstream(tmp_path, [str(path)], "outside"), upstream(tmp_path, [str(path)])
    if how == "split":
        (folder / "dataset_dict.json").write_text(json.dumps({"splits": ["train", "../outside"]}))
        (folder / "train").mkdir()
        for file in folder.iterdir():
            if file.is_file() and file.name != "dataset_dict.json":
                file.rename(folder / "train" / file.name)
    else:
        (arrow,) = outside.glob("*.arrow")
        state = json.loads((folder / "state.json").read_text())
        state["_data_files"] = [{"filename": str(arrow) if how == "absolute" else f"../outside/{arrow.name}"}]
        (folder / "state.json").write_text(json.dumps(state))
    with pytest.raises(DataError, match="outside the data set's folder"):
        read(tmp_path, folder)


def test_a_struct_without_bytes_and_path_is_one_line(tmp_path: Path) -> None:
    """As a set that was saved with its sound decoded has it."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = tmp_path / "set"
    folder.mkdir()
    cells = pa.array([{"array": [0.0, 0.5], "sampling_rate": 8000}] * 2)
    pq.write_table(pa.table({"audio": cells, "prompt": ["a", "b"]}), folder / "train.parquet")
    with pytest.raises(ConfigError, match="'audio' holds decoded samples"):
        read(tmp_path, folder)


def test_sound_in_several_columns_is_asked_for(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = parquet(tmp_path / "set", [{"bytes": wav(220), "path": "a.wav"}])
    cells = pq.read_table(folder / "train.parquet")["audio"]
    pq.write_table(pa.table({"mix": cells, "vocals": cells, "prompt": ["pop"]}), folder / "train.parquet")
    with pytest.raises(ConfigError, match=r"2 columns.*mix, vocals.*audio_column"):
        read(tmp_path, folder)
    assert len(read(tmp_path, folder, config={"audio_column": "vocals"}).samples) == 1
    pq.write_table(pa.table({"vocals": cells, "audio": cells, "prompt": ["pop"]}), folder / "train.parquet")
    assert len(read(tmp_path, folder).samples) == 1


def test_a_slip_of_the_library_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parquet(tmp_path / "set", [])
    monkeypatch.setattr("datasets.load_dataset", lambda *_, **__: [][0])
    monkeypatch.setattr("datasets.load_dataset_builder", lambda *_, **__: [][0])
    with pytest.raises(DataError, match="does not understand its files: IndexError"):
        read(tmp_path, tmp_path / "set")


@pytest.mark.parametrize(
    ("cell", "text"),
    [(1990, "1990"), (1990.0, "1990"), (97.5, "97.5"), ([1990, "jazz"], "1990, jazz"), (float("nan"), ""),
     (True, ""), (None, "")],
)  # fmt: skip
def test_numbers_among_captions_are_words(cell: Any, text: str) -> None:
    assert one_line(cell) == text
