"""Hugging Face data sets: folders of parquet, of audio, as upstream saves them; columns; no network."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile as sf

from acestep_mlx.data.encode import load_part
from acestep_mlx.data.manifest import Manifest, build_manifest
from acestep_mlx.errors import ConfigError, DataError

from .songs import config, tone, write

datasets = pytest.importorskip("datasets")


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
    manifest = build_manifest(config(tmp_path, full), lambda stage, done, total, name: seen.append(name))
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


def test_streaming_takes_the_first_rows_and_keeps_them(
    tmp_path: Path, songs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = datasets.load_dataset

    def from_hub(name: str, *, revision: str | None = None, **kw: Any) -> Any:
        assert name == "someone/songs" and kw["streaming"]
        return load(str(songs), **kw)

    monkeypatch.setattr(datasets, "load_dataset", from_hub)
    entry = {"max_num_samples": 2, "huggingface": {"streaming": True}}
    first = read(tmp_path, "someone/songs", **entry)
    assert found(first) == [(("pop",), "[verse]\nla la"), (("rock, loud",), None)]
    monkeypatch.setattr(datasets, "load_dataset", None)
    assert found(read(tmp_path, "someone/songs", **entry)) == found(first)
    with pytest.raises(ConfigError, match="streaming needs max_num_samples"):
        read(tmp_path, "someone/songs", huggingface={"streaming": True})


def test_no_network_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise ConnectionError("Couldn't reach the Hub\n  after 5 retries")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    for entry in ({}, {"max_num_samples": 2, "huggingface": {"streaming": True}}):
        with pytest.raises(DataError, match=r"cannot load 'someone/songs'; is the network there\?") as error:
            read(tmp_path, "someone/songs", **entry)
        assert "\n" not in str(error.value) and "reach the Hub" in str(error.value)


def test_without_the_library(tmp_path: Path, songs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r"pip install 'acestep-mlx\[datasets\]'"):
        read(tmp_path, songs)


def test_sound_is_encoded_normally_afterwards(tmp_path: Path, songs: Path) -> None:
    before = datasets.Audio.encode_example
    read(tmp_path, songs)
    assert datasets.Audio.encode_example is before
