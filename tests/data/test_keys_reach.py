"""Every supported key of multidatabackend.json and of its blocks, walked to the songs that it changes.

What config.json says for all data sets is walked in test_options_reach. Keys of caches are here too.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import soundfile as sf

from acestep_mlx.config import read_datasets
from acestep_mlx.config.datasets import BLOCKS, TABLES, Audio
from acestep_mlx.config.read_datasets import read_block
from acestep_mlx.config.read_run import load_config
from acestep_mlx.config.run import RunConfig
from acestep_mlx.data.batches import songs_per_epoch
from acestep_mlx.data.encode import Cache, encode_dataset
from acestep_mlx.data.manifest import Manifest, Sample, build_manifest
from acestep_mlx.errors import ConfigError, DataError
from acestep_mlx.families.model_folder import ModelFolder
from acestep_mlx.families.v1 import songs

from ..reach import Check, Walk
from . import songs as made

NAMES = {
    table: [k for k, o in options.items() if o.status == "supported"] for table, options in TABLES.items()
}
KEYS = [(table, name) for table, names in NAMES.items() for name in names]

#: song → seconds, caption file, lyrics file
SONGS = {
    "a": (3.0, "pop, fast, loud, new\nrock", "[verse]\nLa la la"),
    "b": (4.0, "jazz. slow. blue", None),
    "c": (7.0, "folk", None),
}


class QuickCodec:
    """Latents without the network that makes real ones."""

    def __init__(self, *components: Any) -> None: ...

    def encode(self, sound: np.ndarray, progress: Any = None) -> mx.array:
        return mx.full((1, 8, 16, -(-len(sound) // 4096)), float(np.abs(sound).mean()))


class Lab:
    """Three songs in a folder, and what data sets make of them."""

    def __init__(self, root: Path, model: Path) -> None:
        self.root, self.model, self.count = root, model, 0
        self.songs = root / "songs"
        self.songs.mkdir()
        for name, (seconds, caption, lyrics) in SONGS.items():
            made.song(self.songs, name, seconds, caption, lyrics)

    def config(self, *entries: dict[str, Any], **options: Any) -> Any:
        return made.config(self.root, *entries, **options)

    def manifest(self, *entries: dict[str, Any], **options: Any) -> Manifest:
        return build_manifest(self.config(*entries, **options))

    def samples(self, *entries: dict[str, Any], **options: Any) -> dict[str, Sample]:
        """name → song."""
        found = self.manifest(*entries, **options).samples
        return {s.id.split("/", 1)[1].removesuffix(".wav"): s for s in found}

    def cached(self, *entries: dict[str, Any], fresh: bool = True, **options: Any) -> tuple[Path, Cache]:
        """The caches of these data sets, made in a folder of their own (`{cache}` in paths)."""
        self.count += fresh
        folder = self.root / f"cache-{self.count}"
        filled = [
            {k: v.replace("{cache}", str(folder)) if isinstance(v, str) else v for k, v in e.items()}
            for e in entries
        ]
        settings = self.config(*filled, cache_dir=str(folder), **options)
        return folder, encode_dataset(build_manifest(settings), settings, ModelFolder.open(self.model))


def files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.cache"))


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[Lab]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(songs, "Codec", QuickCodec)
        yield Lab(tmp_path_factory.mktemp("keys"), tiny_model)


WALK = Walk()


def reaches(table: str, *names: str) -> Callable[[Check], Check]:
    """Declare what shows that these keys of one of the tables arrive."""
    return WALK.reaches(*((table, name) for name in names))


@pytest.mark.slow_cases(
    "audio.lyrics_language entry.vae_cache_disable entry.dataset_type entry.cache_dir_vae entry.default "
    "entry.text_embeds entry.cache_dir entry.vae_cache_ondemand entry.id"
)
@pytest.mark.parametrize("key", KEYS, ids=".".join)
def test_every_key_reaches_its_place(key: tuple[str, str], lab: Lab) -> None:
    WALK(key, lab)


def test_nothing_is_walked_that_is_not_there() -> None:
    assert set(WALK) == set(KEYS)


@pytest.mark.slow
@pytest.mark.parametrize("key", KEYS, ids=".".join)
def test_the_walk_notices_a_key_that_is_lost(
    key: tuple[str, str], lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same walk with this one key always at its default."""
    table, name = key

    option, entry = TABLES[table][name], read_datasets._entry

    def lost(block: type[Any], raw: Any, where: str, label: str, config: RunConfig, ignored: Any) -> Any:
        found = read_block(block, raw, where, label, config, ignored)
        if block is not BLOCKS[table]:
            return found
        default = getattr(config, option.follows) if option.follows else option.default
        return replace(found, **{name: "another" if key in ONLY else default})

    monkeypatch.setattr(read_datasets, "read_block", lost)
    if key == ("entry", "id"):  # it is read before the rest
        monkeypatch.setattr(read_datasets, "_entry", lambda *arguments: replace(entry(*arguments), id="set"))
    with pytest.raises((Exception, pytest.fail.Exception)) as error:  # whatever it is that then goes wrong
        WALK(key, lab)
    assert not isinstance(error.value, AttributeError)


#: Keys with one value.
ONLY = {("audio", "bucket_strategy"): "duration"}


@reaches("audio", "bucket_strategy")
def _(lab: Lab) -> None:
    given = {"bucket_strategy": "duration"}
    found = read_datasets.read_block(Audio, given, "here", "set", load_config({}), [])
    assert found.bucket_strategy == "duration"
    assert TABLES["audio"]["bucket_strategy"].choices == ("duration",), "show here what the choice does"
    with pytest.raises(ConfigError, match="bucket_strategy"):
        lab.samples({"audio": {"bucket_strategy": "pitch"}})


# ── which songs ──────────────────────────────────────────────────────────────────────────────────────
@reaches("entry", "id")
def _(lab: Lab) -> None:
    assert {s.id.split("/")[0] for s in lab.manifest({"id": "mine"}).samples} == {"mine"}
    folder, _ = lab.cached({"id": "mine"})
    assert len(files(folder / "vae" / "ace_step" / "mine")) == 3


@reaches("entry", "type", "csv_file", "csv_filename_column", "csv_caption_column", "csv_lyrics_column")
def _(lab: Lab) -> None:
    (lab.songs.parent / "lists").mkdir(exist_ok=True)
    other = lab.root / "listed"
    other.mkdir(exist_ok=True)
    for name in ("a", "b"):
        made.song(other, name, 3.0, caption=None)
    for list_name, words in (("one.list", "first"), ("two.list", "second")):
        (other / list_name).write_text(
            f"file,caption,lyrics,which,says,sings\na.wav,x,y,b.wav,{words} caption,{words} lyrics\n"
        )
    entry = {
        "instance_data_dir": str(other), "type": "csv", "csv_file": "one.list", "caption_strategy": "csv",
        "csv_filename_column": "which", "csv_caption_column": "says", "csv_lyrics_column": "sings",
    }  # fmt: skip
    found = lab.samples(entry)
    assert {n: (s.captions, s.lyrics) for n, s in found.items()} == {
        "b": (("first caption",), "first lyrics")
    }
    assert lab.samples({**entry, "csv_file": "two.list"})["b"].captions == ("second caption",)
    usual = {k: v for k, v in entry.items() if not k.endswith("column")}
    assert {n: (s.captions, s.lyrics) for n, s in lab.samples(usual).items()} == {"a": (("x",), "y")}
    assert set(lab.samples({**entry, "type": "local"})) == {"a", "b"}


@reaches("entry", "dataset_type", "default", "text_embeds")
def _(lab: Lab) -> None:
    texts = [
        {"id": name, "dataset_type": "text_embeds", "cache_dir": "{cache}/" + name, **more}
        for name, more in (("one", {}), ("two", {"default": True}), ("three", {}))
    ]
    folder, cache = lab.cached({"id": "set"}, {"id": "other", "text_embeds": "three"}, *texts)
    assert {s.id.split("/")[0] for s in cache.samples} == {"set", "other"}
    assert not files(folder / "one") and files(folder / "two") and files(folder / "three")
    assert songs_per_epoch(lab.manifest({"id": "set"}, {"id": "apart", "dataset_type": "eval"}).samples) == 3


@reaches("entry", "instance_data_dir")
def _(lab: Lab) -> None:
    assert set(lab.samples({})) == set(SONGS)
    with pytest.raises(DataError, match="does not exist"):
        lab.samples({"instance_data_dir": str(lab.root / "nowhere")})


@reaches("entry", "disabled")
def _(lab: Lab) -> None:
    found = lab.manifest({"id": "on"}, {"id": "off", "disabled": True})
    assert {s.id.split("/")[0] for s in found.samples} == {"on"} and found.datasets.disabled == ("off",)


@reaches("entry", "max_num_samples")
def _(lab: Lab) -> None:
    assert len(lab.samples({"max_num_samples": 2})) == 2


@reaches("entry", "repeats")
def _(lab: Lab) -> None:
    assert songs_per_epoch(lab.manifest({"repeats": 2}).samples) == 9


@reaches("entry", "probability")
def _(lab: Lab) -> None:
    assert songs_per_epoch(lab.manifest({"probability": 0.34}).samples) == 1
    assert songs_per_epoch(lab.manifest({"probability": 2.0}).samples) == 6


# ── captions ─────────────────────────────────────────────────────────────────────────────────────────
@reaches("entry", "caption_strategy")
def _(lab: Lab) -> None:
    assert lab.samples({"caption_strategy": "filename"})["a"].captions == ("a",)
    assert lab.samples({})["c"].captions == ("folk",)


@reaches("entry", "instance_prompt", "prepend_instance_prompt", "only_instance_prompt")
def _(lab: Lab) -> None:
    entry = {"instance_prompt": "zyx"}
    assert lab.samples({**entry, "prepend_instance_prompt": True})["c"].captions == ("zyx folk",)
    assert lab.samples({**entry, "only_instance_prompt": True})["c"].captions == ("zyx",)
    assert lab.samples(entry)["c"].captions == ("folk",)
    # and what stands here wins over config.json
    both = {"instance_prompt": "abc", "prepend_instance_prompt": True}
    assert lab.samples({**entry, "prepend_instance_prompt": False}, **both)["c"].captions == ("folk",)
    assert lab.samples(entry, **both)["c"].captions == ("zyx folk",)
    whole = {"instance_prompt": "abc", "only_instance_prompt": True}
    assert lab.samples({"only_instance_prompt": False}, **whole)["c"].captions == ("folk",)


@reaches("entry", "disable_multiline_split")
def _(lab: Lab) -> None:
    assert lab.samples({"disable_multiline_split": True})["a"].captions == ("pop, fast, loud, new rock",)
    assert (
        len(lab.samples({"disable_multiline_split": False}, disable_multiline_split=True)["a"].captions) == 2
    )


def _shuffles(lab: Lab, song: str = "a", **block: Any) -> list[str]:
    return list(lab.samples({"caption_shuffle": {"enable": True, **block}})[song].captions)


@reaches("entry", "caption_shuffle")
def _(lab: Lab) -> None:
    assert len(_shuffles(lab)) > len(lab.samples({})["a"].captions)


@reaches("shuffle", "enable")
def _(lab: Lab) -> None:
    assert len(_shuffles(lab, enable=True)) > len(_shuffles(lab, enable=False)) == 2


@reaches("shuffle", "count")
def _(lab: Lab) -> None:
    assert len(_shuffles(lab, count=6)) > len(_shuffles(lab, count=1)) == 3


@reaches("shuffle", "seed")
def _(lab: Lab) -> None:
    assert (
        _shuffles(lab, seed=1, count=3) == _shuffles(lab, seed=1, count=3) != _shuffles(lab, seed=2, count=3)
    )
    follows = lab.samples({"caption_shuffle": {"enable": True, "count": 3}}, seed=1)["a"].captions
    assert list(follows) == _shuffles(lab, seed=1, count=3)


@reaches("shuffle", "split_on")
def _(lab: Lab) -> None:
    by_period = _shuffles(lab, "b", split_on="period", count=9)
    assert len(by_period) > 2 and {tuple(sorted(v.split(". "))) for v in by_period} == {
        ("blue", "jazz", "slow")
    }
    assert _shuffles(lab, "b", split_on="comma", count=9) == ["jazz. slow. blue"]
    assert len(_shuffles(lab, "b", split_on="space", count=9)) > 2


@reaches("shuffle", "position_start")
def _(lab: Lab) -> None:
    found = _shuffles(lab, position_start=2, count=9)
    assert all(one.startswith("pop, fast, ") for one in found if one != "rock") and len(found) == 3


@reaches("shuffle", "include_original")
def _(lab: Lab) -> None:
    original = "pop, fast, loud, new"
    assert original in _shuffles(lab, seed=1) and original not in _shuffles(
        lab, seed=1, include_original=False
    )


# ── caches ───────────────────────────────────────────────────────────────────────────────────────────
@reaches("entry", "cache_dir_vae", "cache_dir")
def _(lab: Lab) -> None:
    folder, _ = lab.cached(
        {"cache_dir_vae": "{cache}/mine/{id}"},
        {"id": "texts", "dataset_type": "text_embeds", "cache_dir": "{cache}/words"},
    )
    assert (
        len(files(folder / "mine" / "set")) == 3 and files(folder / "words") and not (folder / "vae").exists()
    )


@reaches("entry", "vae_cache_disable")
def _(lab: Lab) -> None:
    folder, cache = lab.cached({"id": "kept"}, {"id": "not", "vae_cache_disable": True})
    assert len(files(folder / "vae")) == 3
    waiting = {s.id.split("/")[0] for s in cache.samples if cache.read(s, 0)["latents"] is None}
    assert waiting == {"not"}, "what is not kept is not made before it is needed"
    for sample in cache.samples:
        cache.make(sample, 0)
    assert len(files(folder / "vae")) == 3


@reaches("entry", "vae_cache_ondemand")
def _(lab: Lab) -> None:
    folder, cache = lab.cached({"vae_cache_ondemand": True})
    assert not files(folder / "vae")
    cache.make(cache.samples[0], 0)
    assert len(files(folder / "vae")) == 1


# ── audio ────────────────────────────────────────────────────────────────────────────────────────────
@reaches("entry", "audio")
def _(lab: Lab) -> None:
    assert lab.samples({"audio": {"max_duration_seconds": 5}})["c"].seconds == 5.0


@reaches("audio", "max_duration_seconds")
def _(lab: Lab) -> None:
    found = lab.samples({"audio": {"max_duration_seconds": 3.5}}, audio_max_duration_seconds=6)
    assert [found[name].seconds for name in SONGS] == [3.0, 3.5, 3.5]
    found = lab.samples({"audio": {"max_duration_seconds": 6}}, audio_max_duration_seconds=3.5)
    assert [found[name].seconds for name in SONGS] == [3.0, 4.0, 6.0]


@reaches("audio", "min_duration_seconds")
def _(lab: Lab) -> None:
    assert set(lab.samples({"audio": {"min_duration_seconds": 3.5}}, audio_min_duration_seconds=5)) == {
        "b",
        "c",
    }


@reaches("audio", "duration_interval")
def _(lab: Lab) -> None:
    assert len({s.bucket for s in lab.samples({"audio": {"duration_interval": 10}}).values()}) == 1
    assert len({s.bucket for s in lab.samples({"audio": {"duration_interval": 1}}).values()}) == 3


@reaches("audio", "truncation_mode")
def _(lab: Lab) -> None:
    def start(mode: str) -> float:
        return lab.samples({"audio": {"max_duration_seconds": 3, "truncation_mode": mode}})["c"].start

    assert (start("beginning"), start("end")) == (0.0, 4.0) and 0 < start("random") < 4


@reaches("audio", "crop_seconds")
def _(lab: Lab) -> None:
    found = lab.samples({"audio": {"crop_seconds": 3.5}})
    assert {name: (s.at_once, s.is_cropped) for name, s in found.items()} == {
        "a": (3.0, False), "b": (3.5, True), "c": (3.5, True)
    }  # fmt: skip
    assert not any(s.is_cropped for s in lab.samples({}).values())


@reaches("audio", "crop_lyrics")
def _(lab: Lab) -> None:
    (lab.songs / "c.lyrics").write_text("[00:00.50]one\n[00:05.00]two")
    try:
        for how, first in (("keep", "one\ntwo"), ("drop", None), ("cut", "one")):
            sample = lab.samples({"audio": {"crop_seconds": 3, "crop_lyrics": how}})["c"]
            assert sample.words(0, 0).lyrics == first
    finally:
        (lab.songs / "c.lyrics").unlink()


@reaches("audio", "lyrics_filename_format", "lyrics_extension", "lyrics_suffix")
def _(lab: Lab) -> None:
    for block, name in (
        ({"lyrics_filename_format": "words-{stem}.{ext}.sung"}, "words-b.wav.sung"),
        ({"lyrics_suffix": "_sung.text"}, "b_sung.text"),
        ({"lyrics_extension": "sung"}, "b.sung"),
    ):
        (lab.songs / name).write_text("[verse]\nOther words")
        try:
            assert lab.samples({"audio": block})["b"].lyrics == "[verse]\nOther words", name
        finally:
            (lab.songs / name).unlink()
    assert lab.samples({})["b"].lyrics is None


@reaches("audio", "lyrics_language")
def _(lab: Lab) -> None:
    def ids(**block: Any) -> list[int]:
        _, cache = lab.cached({"audio": block})
        sample = next(s for s in cache.samples if s.lyrics)
        return cache.read(sample, 0)["ids"].tolist()  # type: ignore[union-attr]

    assert ids(lyrics_language="German") == ids(lyrics_language="de") != ids()


@reaches("audio", "lyrics_unsupported")
def _(lab: Lab) -> None:
    thai = lab.songs / "b.lyrics"
    thai.write_text("[verse]\nสวัสดีครับ")
    try:
        notes = lab.manifest({"audio": {"lyrics_unsupported": "warn"}}).report.sets[0].notes
        assert any("Thai" in note for _, note in notes)
        with pytest.raises(DataError, match="Thai"):
            lab.manifest({"audio": {"lyrics_unsupported": "error"}})
    finally:
        thai.unlink()


# ── Hugging Face: a library that gives what it was asked for ─────────────────────────────────────────
def _sound(pitch: float) -> dict[str, Any]:
    buffer = io.BytesIO()
    sf.write(buffer, made.tone(3.0, pitch), made.RATE, format="WAV")
    return {"bytes": buffer.getvalue(), "path": f"{pitch:.0f}.wav"}


class Hub:
    """Stands for `datasets.load_dataset`: two splits, and what was asked for."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.datasets = pytest.importorskip("datasets")
        self.asked: dict[str, Any] = {}
        patch.setattr(self.datasets, "load_dataset", self.load)
        patch.setattr(self.datasets.Dataset, "from_generator", self.generate)

    def table(self, split: str) -> Any:
        rows = {
            "caption": [f"{split} caption", ""], "tags": [f"{split} tags", "some tags"],
            "words": ["la la", "hum"], "lyrics": ["do re", "mi fa"], "spare": ["spare one", "spare two"],
        }  # fmt: skip
        sounds = {"audio": [_sound(300), _sound(310)], "other": [_sound(400), _sound(410)]}
        return self.datasets.Dataset.from_dict({**rows, **sounds})

    def load(self, name: str, **asked: Any) -> Any:
        self.asked = {"name": name, **asked}
        return {split: self.table(split) for split in ("train", "test")}

    def generate(self, rows: Any, *, cache_dir: str, gen_kwargs: dict[str, Any]) -> Any:
        self.asked = {"generated": True, "cache_dir": cache_dir, **gen_kwargs}
        return self.table("train").select(range(gen_kwargs["limit"]))


def _hub(lab: Lab, **entry: Any) -> SimpleNamespace:
    """captions, lyrics and names of the songs, and what the library was asked for."""
    full = {"type": "huggingface", "dataset_name": "someone/songs", "instance_data_dir": None, **entry}
    with pytest.MonkeyPatch.context() as patch:
        hub = Hub(patch)
        samples = lab.manifest(full).samples
    return SimpleNamespace(
        captions=[s.captions for s in samples],
        lyrics=[s.lyrics for s in samples],
        names=[s.id.split("/", 1)[1] for s in samples],
        asked=hub.asked,
    )


@reaches("entry", "dataset_name")
def _(lab: Lab) -> None:
    assert _hub(lab, dataset_name="other/songs").asked["name"] == "other/songs"


@reaches("entry", "split")
def _(lab: Lab) -> None:
    assert _hub(lab).captions[0] == ("train caption",)
    assert _hub(lab, split="test").captions[0] == ("test caption",)


@reaches("columns", "split")
def _(lab: Lab) -> None:
    assert _hub(lab, config={"split": "test"}).captions[0] == ("test caption",)


@reaches("entry", "revision")
def _(lab: Lab) -> None:
    assert _hub(lab, revision="v2").asked["revision"] == "v2" and _hub(lab).asked["revision"] is None


@reaches("columns", "revision")
def _(lab: Lab) -> None:
    assert _hub(lab, config={"revision": "v3"}).asked["revision"] == "v3"


@reaches("columns", "cache_dir")
def _(lab: Lab) -> None:
    assert _hub(lab, config={"cache_dir": str(lab.root / "down")}).asked["cache_dir"] == str(
        lab.root / "down"
    )


@reaches("columns", "streaming")
def _(lab: Lab) -> None:
    found = _hub(lab, config={"streaming": True}, max_num_samples=1)
    assert found.asked["generated"] and found.asked["limit"] == 1 and len(found.captions) == 1


@reaches("entry", "config")
def _(lab: Lab) -> None:
    assert _hub(lab, config={"audio_caption_fields": ["tags"]}).captions[0] == ("train tags",)


@reaches("entry", "huggingface")
def _(lab: Lab) -> None:
    assert _hub(lab, huggingface={"audio_caption_fields": ["tags"]}).captions[0] == ("train tags",)


@reaches("columns", "audio_caption_fields")
def _(lab: Lab) -> None:
    found = _hub(lab, config={"audio_caption_fields": ["tags", "caption"]})
    assert found.captions == [("train tags, train caption",), ("some tags",)]


@reaches("entry", "caption_column")
def _(lab: Lab) -> None:
    assert _hub(lab, caption_column="tags").captions[0] == ("train tags",)


@reaches("columns", "fallback_caption_column")
def _(lab: Lab) -> None:
    found = _hub(lab, caption_column="caption", config={"fallback_caption_column": "spare"})
    assert found.captions == [("train caption",), ("spare two",)]


@reaches("entry", "lyrics_column")
def _(lab: Lab) -> None:
    assert _hub(lab, lyrics_column="words").lyrics == ["la la", "hum"] and _hub(lab).lyrics == [
        "do re",
        "mi fa",
    ]


@reaches("columns", "lyrics_column")
def _(lab: Lab) -> None:
    assert _hub(lab, config={"lyrics_column": "words"}).lyrics == ["la la", "hum"]


@reaches("entry", "audio_column")
def _(lab: Lab) -> None:
    assert _hub(lab).names == ["300.wav", "310.wav"]
    assert _hub(lab, audio_column="other").names == ["400.wav", "410.wav"]


@reaches("columns", "audio_column")
def _(lab: Lab) -> None:
    assert _hub(lab, config={"audio_column": "other"}).names == ["400.wav", "410.wav"]


# ── keys of the caches: everything that a result depends on, and nothing else ────────────────────────
KINDS = ("latents", "text", "lyrics")


def _keys(lab: Lab, *entries: dict[str, Any], model: Path | None = None, **options: Any) -> dict[str, str]:
    """The three keys of song a."""
    settings = lab.config(*entries, **options)
    cache = Cache(build_manifest(settings), settings, ModelFolder.open(model or lab.model))
    sample = next(s for s in cache.samples if s.lyrics)
    return {kind: str(cache.key(kind, sample)) for kind in KINDS}


def _changed(lab: Lab, *entries: dict[str, Any], **more: Any) -> set[str]:
    """Which keys differ from those of the plain data set."""
    before, now = _keys(lab), _keys(lab, *entries, **more)
    return {kind for kind in KINDS if before[kind] != now[kind]}


@pytest.fixture(scope="module")
def long(lab: Lab) -> Iterator[None]:
    """Song a lasts 9 s here and grows louder."""
    before = (lab.songs / "a.wav").read_bytes()
    tone = made.tone(9.0, 555.0)
    sf.write(lab.songs / "a.wav", tone * np.linspace(0.1, 1, len(tone))[:, None], made.RATE)
    yield
    (lab.songs / "a.wav").write_bytes(before)


@pytest.mark.parametrize(
    ("entry", "options", "kinds"),
    [
        ({"audio": {"max_duration_seconds": 5}}, {}, {"latents"}),
        ({"audio": {"max_duration_seconds": 5, "truncation_mode": "end"}}, {}, {"latents"}),
        ({"audio": {"lyrics_language": "de"}}, {}, {"lyrics"}),
        ({"caption_strategy": "filename"}, {}, {"text"}),
        ({"instance_prompt": "zyx", "prepend_instance_prompt": True}, {}, {"text"}),
        ({"id": "other", "repeats": 3, "probability": 0.5}, {"seed": 9, "learning_rate": 1e-5}, set()),
        ({"audio": {"duration_interval": 9}}, {"mixed_precision": "no", "train_batch_size": 2}, set()),
        ({}, {"compress_disk_cache": True, "base_model_precision": "int8-quanto"}, set()),
    ],
    ids=str,
)  # fmt: skip
def test_a_setting_changes_the_keys_of_what_depends_on_it(
    entry: dict[str, Any], options: dict[str, Any], kinds: set[str], lab: Lab, long: None
) -> None:
    assert _changed(lab, entry, **options) == kinds


def test_parts_of_equal_length_from_other_places_are_other_parts(lab: Lab, long: None) -> None:
    def key(mode: str, **options: Any) -> str:
        block = {"audio": {"max_duration_seconds": 4, "truncation_mode": mode}}
        return _keys(lab, block, **options)["latents"]

    assert len({key("beginning"), key("end"), key("random", seed=1), key("random", seed=2)}) == 4
    assert key("random", seed=1) == key("random", seed=1) and key("end", seed=1) == key("end", seed=2)


def _edited(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    import json

    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    path.write_text(json.dumps(content), encoding="utf-8")


MODELS: dict[str, tuple[str, Callable[[dict[str, Any]], Any], set[str]]] = {
    "autoencoder": ("config.json", lambda c: c["fingerprints"].update(dcae="0" * 64), {"latents"}),
    "mel": ("config.json", lambda c: c["components"]["vocoder"].update(f_min=50), {"latents"}),
    "text encoder": ("config.json", lambda c: c["fingerprints"].update(text_encoder="0" * 64), {"text"}),
    "tokenizer": ("tokenizer.json", lambda c: c.update(version="1.1"), {"text"}),
    "vocabulary": ("lyric_vocab.json", lambda c: c["model"]["vocab"].update(zzzz=1), {"lyrics"}),
    "transformer": ("config.json", lambda c: c["fingerprints"].update(transformer="0" * 64), set()),
}


@pytest.mark.parametrize("name", MODELS)
def test_another_part_of_the_model_changes_the_keys_of_what_it_makes(
    name: str, lab: Lab, tmp_path: Path
) -> None:
    import shutil

    model = tmp_path / "model"
    shutil.copytree(lab.model, model)
    file, change, kinds = MODELS[name]
    _edited(next(model.rglob(file)), change)
    # As after a conversion with this vocabulary: another than is recorded is refused.
    _edited(next(model.rglob("config.json")), lambda c: c.update(lyric_vocab=None))
    assert _changed(lab, {}, model=model) == kinds


@pytest.mark.parametrize(
    ("place", "name", "kinds"),
    [
        (songs, "VERSION", {"latents", "text", "lyrics"}),
        (songs, "MAX_LENGTH", {"text"}),
        (songs, "RULES_VERSION", {"lyrics"}),
    ],
    ids=["version", "tokens", "rules"],
)
def test_another_version_of_the_computation_is_another_key(
    place: Any, name: str, kinds: set[str], lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = _keys(lab)
    monkeypatch.setattr(place, name, getattr(place, name) + 1)
    now = _keys(lab)
    assert {kind for kind in KINDS if before[kind] != now[kind]} == kinds


@pytest.mark.slow
def test_what_is_stored_for_the_end_of_a_song_is_of_its_end(lab: Lab, long: None) -> None:
    """Whatever was stored before, in the same folder."""
    loudness = []
    for mode in ("beginning", "end"):
        block = {"audio": {"max_duration_seconds": 4, "truncation_mode": mode}}
        _, cache = lab.cached(block, fresh=mode == "beginning")
        stored = cache.read(next(s for s in cache.samples if s.lyrics), 0)["latents"]
        assert stored is not None
        loudness.append(float(stored.mean()))
    assert loudness[1] > 2 * loudness[0]
