"""multidatabackend.json: every key, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from acestep_mlx.config.datasets import TABLES, CsvSet, DataSet, DataSets, FolderSet, HubSet
from acestep_mlx.config.read_datasets import read_datasets
from acestep_mlx.config.read_run import load_config
from acestep_mlx.errors import ConfigError

SPEC = """[{"id": "my-audio-dataset", "type": "local", "dataset_type": "audio",
  "instance_data_dir": "datasets/my_audio_files", "caption_strategy": "textfile",
  "metadata_backend": "discovery", "disabled": false},
 {"id": "text-embeds", "dataset_type": "text_embeds", "default": true, "type": "local",
  "cache_dir": "cache/text/{model_family}"}]"""
SPEC_HUB = """[{"id": "acestep-demo-data", "type": "huggingface", "dataset_type": "audio",
 "dataset_name": "Yi3852/ACEStep-Songs", "metadata_backend": "huggingface",
 "caption_strategy": "huggingface", "cache_dir_vae": "cache/vae/{model_family}/acestep-demo-data"%s}]"""
COLUMNS = '{"audio_caption_fields": ["tags"], "lyrics_column": "norm_lyrics"}'


def read(*entries: dict[str, Any], **options: Any) -> DataSets:
    full = [{"id": "set", "instance_data_dir": "songs", **entry} for entry in entries]
    return read_datasets(load_config({"data_backend_config": full, **options}))


def one(entry: dict[str, Any], **options: Any) -> DataSet:
    return read(entry, **options).audio[0]


def test_spec_local_file_word_for_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "multidatabackend.json").write_text(SPEC)
    (tmp_path / "config.json").write_text("{}")
    found = read_datasets(load_config("config.json"))
    backend = found.audio[0]
    assert backend.folder == tmp_path / "datasets" / "my_audio_files"
    assert backend.caption_strategy == "textfile" and backend.interval == 3.0 and backend.max_duration == 240
    assert found.text_dir == backend.text_dir == tmp_path / "cache" / "text" / "ace_step"
    assert [(label, key) for label, key, _ in found.ignored] == [("my-audio-dataset", "metadata_backend")]


@pytest.mark.parametrize("block", ["", f', "config": {COLUMNS}', f', "huggingface": {COLUMNS}'])
def test_spec_hub_file_word_for_word(block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "multidatabackend.json").write_text(SPEC_HUB % block)
    backend = read_datasets(load_config({})).audio[0]
    assert (
        backend.dataset_name == "Yi3852/ACEStep-Songs" and backend.split is None
    )  # train, where it has splits
    assert backend.latent_dir == tmp_path / "cache" / "vae" / "ace_step" / "acestep-demo-data"
    wanted = (("tags",), "norm_lyrics") if block else (None, None)
    assert (backend.caption_fields, backend.lyrics_column) == wanted


@pytest.mark.parametrize(
    ("entry", "wanted"),
    [
        ({"cache_dir_vae": "mine", "cache_dir": "both"}, "mine"),
        ({"cache_dir": "both"}, "both"),
        ({}, "all"),
        ({"cache_dir_vae": "in/{id}/{model_family}"}, "in/set/ace_step"),
    ],
)
def test_the_nearest_place_for_latents_wins(entry: dict[str, str], wanted: str, tmp_path: Path) -> None:
    """Of the data set's own, its cache_dir, the run's."""
    backends = [{"id": "set", "instance_data_dir": str(tmp_path), **entry}]
    config = load_config({"data_backend_config": backends, "cache_dir_vae": "all", "cache_dir": "root"})
    assert read_datasets(config).audio[0].latent_dir == Path.cwd() / wanted
    plain = load_config({"data_backend_config": [{"id": "set", "instance_data_dir": str(tmp_path)}]})
    assert read_datasets(plain).audio[0].latent_dir == Path.cwd() / "cache/vae/ace_step/set"


GOOD: list[tuple[dict[str, Any], str, Any]] = [
    ({"repeats": 9}, "repeats", 9),
    ({"probability": 0.25}, "probability", 0.25),
    ({"max_num_samples": 5}, "max_num_samples", 5),
    ({"instance_prompt": "zyx", "prepend_instance_prompt": True}, "prepend_instance_prompt", True),
    ({"instance_prompt": "zyx", "caption_strategy": "instanceprompt"}, "only_instance_prompt", True),
    ({"disable_multiline_split": True}, "multiline", False),
    ({"vae_cache_disable": True}, "cache_latents", False),
    ({"vae_cache_ondemand": True}, "ondemand", True),
    ({"audio": {"max_duration_seconds": 90}}, "max_duration", 90.0),
    ({"audio": {"min_duration_seconds": 5}}, "min_duration", 5.0),
    ({"audio": {"duration_interval": 15}}, "interval", 15.0),
    ({"audio": {"truncation_mode": "random"}}, "truncation", "random"),
    ({"audio": {"crop_seconds": 60}}, "crop", 60.0),
    ({"audio": {"crop_lyrics": "cut"}}, "crop_lyrics", "cut"),
    (
        {"audio": {"lyrics_filename_format": "{filename}_lyrics.txt"}},
        "lyrics_format",
        "{filename}_lyrics.txt",
    ),
    ({"audio": {"lyrics_suffix": "_l.txt"}}, "lyrics_format", "{stem}_l.txt"),
    ({"audio": {"lyrics_extension": ".lrc"}}, "lyrics_format", "{stem}.lrc"),
    ({"caption_shuffle": {"enable": True, "count": 2}}, "shuffle", None),
    ({"instance_data_dir": None, "instance_data_root": "other"}, "folder", None),
]


@pytest.mark.parametrize(("entry", "name", "value"), GOOD, ids=lambda v: str(v)[:40])
def test_keys_that_are_understood(entry: dict[str, Any], name: str, value: Any) -> None:
    found = getattr(one(entry), name)
    assert found == value if value is not None else found


def test_songs_are_held_out_by_their_data_set() -> None:
    apart = {"id": "apart", "dataset_type": "eval", "repeats": 3, "probability": 0.5}
    found = read({}, apart)
    assert [(one.id, one.held_out) for one in found.audio] == [("set", False), ("apart", True)]
    assert [(label, key) for label, key, _ in found.ignored] == [
        ("apart", "repeats"),
        ("apart", "probability"),
    ]
    with pytest.raises(ConfigError, match="no data set to train on: add an entry with dataset_type=audio"):
        read(apart)


def test_a_data_set_is_what_it_is_and_holds_nothing_of_the_others() -> None:
    columns = {"csv_file": "songs.csv", "csv_caption_column": "says"}
    for entry, kind, place in (
        ({}, FolderSet, "songs"),
        ({"type": "csv", **columns}, CsvSet, "songs"),
        ({"type": "huggingface", "dataset_name": "a/b", "instance_data_dir": None}, HubSet, "a/b"),
    ):
        found = one(entry)
        assert type(found) is kind and found.type == {**entry, "id": ""}.get("type", "local")
        assert found.place.endswith(place)
        assert hasattr(found, "dataset_name") is (kind is HubSet) and hasattr(found, "listed") is (
            kind is not HubSet
        )
    described = one(columns)
    assert isinstance(described, FolderSet) and described.listed is not None
    assert (str(described.listed.file), described.listed.caption) == ("songs.csv", "says")


BAD: list[tuple[dict[str, Any], str]] = [
    ({"repeats": -1}, "repeats"),
    ({"repeats": "often"}, "repeats"),
    ({"repeats": 1.5}, "repeats"),
    ({"probability": 0}, "probability"),
    ({"probability": "half"}, "probability"),
    ({"max_num_samples": 0}, "max_num_samples"),
    ({"disabled": "perhaps"}, "disabled"),
    ({"id": ""}, "id"),
    ({"id": "a/b"}, "folder's name"),
    ({"id": ".."}, "folder's name"),
    ({"id": 3}, "id"),
    ({"type": "aws"}, "not supported"),
    ({"type": "ftp"}, "type"),
    ({"dataset_type": "image"}, "not supported"),
    ({"caption_strategy": "parquet"}, "huggingface"),
    ({"caption_strategy": "guess"}, "caption_strategy"),
    ({"caption_strategy": "huggingface"}, "type=huggingface"),
    ({"caption_strategy": "instanceprompt"}, "instance_prompt is missing"),
    ({"prepend_instance_prompt": True}, "instance_prompt is missing"),
    ({"caption_strategy": "csv"}, "csv_file is missing"),
    ({"type": "csv"}, "csv_file is missing"),
    ({"type": "huggingface"}, "dataset_name is missing"),
    ({"instance_data_dir": None}, "instance_data_dir is missing"),
    ({"instance_data_dir": 3}, "instance_data_dir"),
    ({"text_embeds": "nowhere"}, "text_embeds"),
    ({"audio": []}, "audio"),
    ({"audio": {"max_duration_seconds": 2}}, "max_duration_seconds"),
    ({"audio": {"max_duration_seconds": 300}}, "max_duration_seconds"),
    ({"audio": {"min_duration_seconds": 50, "max_duration_seconds": 20}}, "min_duration_seconds=50"),
    ({"audio": {"truncation_mode": "middle"}}, "truncation_mode"),
    ({"audio": {"bucket_strategy": "pitch"}}, "bucket_strategy"),
    ({"audio": {"duration_interval": 0}}, "duration_interval"),
    ({"audio": {"lyrics_filename_format": "{song}.txt"}}, "unknown token"),
    ({"audio": {"lyrics_filename_format": "../{stem}.txt"}}, "must stay"),
    ({"audio": {"lyrics_filename_format": "/etc/{stem}"}}, "must stay"),
    ({"audio": {"max_duration": 20, "max_duration_seconds": 30}}, "contradict"),
    ({"audio": {"max_duraton_seconds": 20}}, "did you mean 'max_duration_seconds'"),
    ({"caption_shuffle": {"enable": True, "count": 0}}, "count"),
    ({"caption_shuffle": {"split_on": "semicolon"}}, "split_on"),
    ({"caption_shuffle": 3}, "caption_shuffle"),
    ({"config": {"audio_caption_fields": [1]}}, "audio_caption_fields"),
    ({"config": {"audio_caption_fields": []}}, "audio_caption_fields"),
    ({"huggingface": {"filter_func": {"a": 1}}}, "filter"),
    ({"caption_stratgy": "textfile"}, "did you mean 'caption_strategy'"),
    ({"train_batch_size": 4}, "train_batch_size"),
    ({"start_step": 100}, "start_step"),
    ({"is_regularisation_data": True}, "regularisation"),
    ({"disabled": True}, "disabled"),
]


@pytest.mark.parametrize(("entry", "part"), BAD, ids=lambda v: str(v)[:50])
def test_what_is_refused_says_where(entry: dict[str, Any], part: str) -> None:
    with pytest.raises(ConfigError) as error:
        read(entry)
    assert part in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "content", ["", "[", "3", '"x"', "[3]", "[[]]", "[]", "{}", '[{"type": "local"}]', '[{"id": 1, "id": 2}]']
)
def test_malformed_files_are_one_line(content: str, tmp_path: Path) -> None:
    file = tmp_path / "data.json"
    file.write_text(content)
    with pytest.raises(ConfigError) as error:
        read_datasets(load_config({"data_backend_config": str(file)}))
    assert "data.json" in str(error.value) and "\n" not in str(error.value)


def test_a_missing_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is a folder; name the file in it"):
        read_datasets(load_config({"data_backend_config": str(tmp_path)}))
    with pytest.raises(ConfigError, match="no data set file"):
        read_datasets(load_config({"data_backend_config": str(tmp_path / "absent.json")}))


@pytest.mark.parametrize("name", [n for n, o in TABLES["entry"].items() if o.status == "ignored"])
def test_ignored_keys_have_reasons(name: str) -> None:
    found = read({name: "x"})
    assert found.ignored == (("set", name, TABLES["entry"][name].reason),)


@pytest.mark.parametrize("name", [n for n, o in TABLES["entry"].items() if o.status == "refused"])
def test_refused_keys_may_be_off(name: str) -> None:
    read({name: 1 if name == "start_epoch" else 0})
    with pytest.raises(ConfigError, match=name):
        read({name: 7})


def test_several_sets_defaults_and_disabled() -> None:
    found = read(
        {"id": "a"},
        {"id": "b", "disabled": True},
        {"id": "c", "text_embeds": "t2"},
        {"id": "t1", "dataset_type": "text_embeds", "cache_dir": "texts/{id}"},
        {"id": "t2", "dataset_type": "text_embeds", "cache_dir": "texts/{id}"},
        audio_max_duration_seconds=60,
        caption_strategy="filename",
        cache_dir_vae="latents/{id}",
    )
    a, c = found.audio
    assert found.disabled == ("b",) and (a.id, c.id) == ("a", "c")
    assert (a.max_duration, a.caption_strategy, a.latent_dir.name) == (60.0, "filename", "a")
    assert (a.text_dir.name, c.text_dir.name) == ("t1", "t2")
    with pytest.raises(ConfigError, match="two data sets have the id"):
        read({"id": "a"}, {"id": "a"})


TEXTS = {"dataset_type": "text_embeds", "instance_data_dir": None}


def test_two_places_for_the_texts_are_told_apart() -> None:
    """Neither the first nor the last is taken without a word; a disabled entry is none."""
    first, second = {**TEXTS, "id": "t1", "default": True}, {**TEXTS, "id": "t2", "default": True}
    with pytest.raises(ConfigError, match=r"default is true for 2 text_embeds entries \(t1, t2\); keep one"):
        read({}, first, second)
    with pytest.raises(ConfigError, match="two text_embeds entries have the id 't1'"):
        read({}, first, {**second, "id": "t1", "default": False})
    found = read({}, first, {**second, "cache_dir": "second", "disabled": True})
    assert found.text_dir.name == "text" and found.disabled == ("t2",)
    with pytest.raises(ConfigError, match="text_embeds='t2', which is not an entry's id"):
        read({"text_embeds": "t2"}, first, {**second, "disabled": True})


HUB = {"type": "huggingface", "dataset_name": "a/b", "instance_data_dir": None}


@pytest.mark.parametrize(
    ("entry", "names"),
    [
        ({**HUB, "config": {"lyrics_column": "a"}, "huggingface": {"lyrics_column": "b"}},
         ("config.lyrics_column", "huggingface.lyrics_column")),
        ({**HUB, "config": {"lyrics_column": "a"}, "lyrics_column": "b"},
         ("config.lyrics_column", "lyrics_column")),
        ({**HUB, "huggingface": {"split": "a"}, "split": "b"}, ("config.split", "split")),
        ({**HUB, "config": {"revision": "a"}, "revision": "b"}, ("config.revision", "revision")),
        ({**HUB, "config": {"audio_column": "a"}, "audio_column": "b"},
         ("config.audio_column", "audio_column")),
        ({**HUB, "config": {"audio_caption_fields": ["a"]}, "caption_column": "b"},
         ("config.audio_caption_fields", "caption_column")),
        ({"audio": {"lyrics_suffix": "_l.txt", "lyrics_extension": "lrc"}},
         ("lyrics_suffix", "lyrics_extension")),
        ({"audio": {"lyrics_filename_format": "{stem}.a", "lyrics_extension": "b"}},
         ("lyrics_filename_format", "lyrics_extension")),
    ],
)  # fmt: skip
def test_one_setting_in_two_places_must_agree(entry: dict[str, Any], names: tuple[str, str]) -> None:
    with pytest.raises(ConfigError, match="are the same setting but differ; keep one") as error:
        one(entry)
    assert all(f"{name}=" in str(error.value) for name in names), error.value


def test_one_setting_said_twice_alike_is_one() -> None:
    found = one(
        {**HUB, "config": {"split": "a", "caption_column": ["c"]}, "split": "a", "caption_column": "c"}
    )
    assert isinstance(found, HubSet) and (found.split, found.caption_fields) == ("a", ("c",))
    named = one({"audio": {"lyrics_filename_format": "{stem}.lrc", "lyrics_extension": ".lrc"}})
    assert isinstance(named, FolderSet) and named.lyrics_format == "{stem}.lrc"


@pytest.mark.parametrize("label", [5, 1.5, True, ["a"], {"a": 1}])
def test_an_id_that_is_no_text_is_called_so(label: Any) -> None:
    with pytest.raises(ConfigError, match="entry 1: id must be text, got"):
        read({"id": label})
    for missing in (None, "", " "):
        with pytest.raises(ConfigError, match='entry 1 needs an "id"'):
            read({"id": missing})


@pytest.mark.parametrize("key", ["instance_prompt", "id", "csv_caption_column", "caption_column", "split"])
def test_texts_hold_no_nul(key: str) -> None:
    with pytest.raises(ConfigError, match=f"{key}.*NUL|folder's name"):
        read({key: "a\0b"})


def test_a_single_entry_without_a_list(tmp_path: Path) -> None:
    file = tmp_path / "data.json"
    file.write_text(json.dumps({"id": "x", "instance_data_dir": "songs"}))
    assert read_datasets(load_config({"data_backend_config": str(file)})).audio[0].id == "x"


def test_where_latents_go_is_said_when_two_keys_name_places() -> None:
    entry = {"id": "a", "instance_data_dir": "songs", "cache_dir_vae": "one"}
    for other, said in (("one", []), ("two", [("a", "cache_dir", "cache_dir_vae=one is given, and wins")])):
        found = read_datasets(load_config({"data_backend_config": [{**entry, "cache_dir": other}]}))
        assert found.audio[0].latent_dir.name == "one" and list(found.ignored) == said


def test_lyrics_of_parts_say_nothing_without_parts() -> None:
    alone = read({"audio": {"crop_lyrics": "cut"}})
    assert alone.ignored == (("set", "crop_lyrics", "it counts with crop_seconds only"),)
    assert not read({"audio": {"crop_lyrics": "cut", "crop_seconds": 30}}).ignored
