"""The data code with a family that is not ours: what it counts, keeps, tells apart and puts into batches."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from acestep_mlx.data.batches import Batches
from acestep_mlx.data.encode import Cache, encode_dataset
from acestep_mlx.data.manifest import build_manifest
from acestep_mlx.errors import DataError
from acestep_mlx.families.songs import Encoded
from acestep_mlx.io.audio import read_audio

from ..families import toy
from .songs import config, song

FOLDER: Any = SimpleNamespace(fingerprints={"ear": "1", "letters": "2"})


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    toy.registered(monkeypatch)
    (tmp_path / "songs").mkdir()
    song(tmp_path / "songs", "a", 0.6, caption="pop\nrock", lyrics="la la")
    song(tmp_path / "songs", "b", 4.01, caption="jazz")
    song(tmp_path / "songs", "c", 9.0, caption="a caption of many letters", lyrics="LA LA")
    return tmp_path


def settings(root: Path, **options: Any) -> Any:
    return config(root, {"audio": {"duration_interval": 2}}, model_flavour="toy", **options)


def cached(root: Path, watch: list[str] | None = None, folder: Any = FOLDER, **options: Any) -> Cache:
    given = settings(root, **options)

    def tell(advance: Any) -> None:
        if (
            watch is not None
            and advance.stage != "looking at songs"
            and advance.done
            and not advance.done % 1
        ):
            watch.append(advance.stage)

    return encode_dataset(build_manifest(given), given, folder, tell)


def test_songs_are_counted_at_the_familys_rates_and_limits(root: Path) -> None:
    manifest = build_manifest(settings(root))
    a, b, c = manifest.samples
    assert [s.samples for s in (a, b, c)] == [8000, 32080, 48000]
    assert [s.frames for s in (a, b, c)] == [20, 81, 120] and c.cut and c.seconds == 6
    assert [s.bucket for s in (a, b, c)] == [40, 120, 120]
    lines = "\n".join(manifest.report.lines())
    assert "a.wav: 0.6 s, padded with silence to 1 s" in lines and "2 s × 1, 6 s × 2" in lines
    assert any("hush where nobody sings" in text for text, _ in manifest.report.remarks())
    assert ("c.wav", "lyrics line 1 is shouted") in manifest.report.sets[0].notes


@pytest.mark.slow
def test_what_is_kept_is_what_its_encoders_give(root: Path) -> None:
    watch: list[str] = []
    cache = cached(root, watch)
    assert watch == [f"encoding {what}" for what in ["lyrics"] * 3 + ["captions"] * 4 + ["songs"] * 3], (
        "silence has lyrics here"
    )
    a, b, c = cache.samples
    found = cache.make(b, 0)
    assert set(found) == {"mean", "std", "prompt", "sung"}
    sound = read_audio(b.audio.path, sample_rate=8000, channels=2)  # type: ignore[attr-defined]
    frame = sound[400:800, 0]
    assert found["mean"].shape == found["std"].shape == (81, 3) and found["mean"].dtype == np.float16
    np.testing.assert_allclose(found["mean"][1, 0], frame.mean(), atol=1e-3)
    np.testing.assert_allclose(found["std"][1, 0], frame.std(), atol=1e-3)
    np.testing.assert_allclose(found["prompt"][:, -1], list(b"jazz, 4 s"), rtol=1e-3)
    np.testing.assert_allclose(cache.make(a, 1)["prompt"][:, -1], list(b"rock, 1 s"), rtol=1e-3)
    assert [cache.text_length(s) for s in (a, b, c)] == [9, 9, 24]
    assert [cache.lyric_length(s) for s in (a, b, c)] == [5, 12, 5]
    assert ("c.wav", "prompt: cut to 24 of 30 letters") in cache.report.sets[0].notes
    watch.clear()
    cached(root, watch)
    assert not watch


@pytest.mark.slow
def test_each_encoder_is_loaded_when_it_is_needed_and_then_freed(root: Path) -> None:
    encoders = cached(root)._encoders.values()
    assert [e.loads for e in encoders] == [1, 1, 1] and not any(e._loaded for e in encoders)  # type: ignore
    song(root / "songs", "b", 4.01, caption="folk")
    again = cached(root)._encoders
    assert [again[kind].loads for kind in ("latents", "text", "lyrics")] == [0, 1, 0]  # type: ignore


def test_keys_change_with_what_an_encoder_says_and_with_nothing_else(root: Path) -> None:
    def keys(**prints: str) -> dict[str, list[str | None]]:
        given = settings(root)
        folder: Any = SimpleNamespace(fingerprints={**FOLDER.fingerprints, **prints})
        cache = Cache(build_manifest(given), given, folder)
        return {kind: [cache.key(kind, s) for s in cache.samples] for kind in cache._encoders}

    before, ear, letters = keys(), keys(ear="other"), keys(letters="other")
    assert keys(else_="other") == before
    assert ear["latents"] != before["latents"] and ear["text"] == before["text"]
    assert letters["latents"] == before["latents"] and letters["text"] != before["text"]
    assert letters["lyrics"] != before["lyrics"]


@pytest.mark.slow
def test_the_caches_of_two_families_never_meet(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even where both say the same of a song, in the same folders."""
    first = cached(root).files()
    monkeypatch.setattr(toy.Toy, "key_mark", {"family": "twin"})
    watch: list[str] = []
    second = cached(root, watch).files()
    assert len(watch) == 10 == len(second) == len(first) and not first & second


def test_batches_are_as_the_family_makes_them(root: Path) -> None:
    given = settings(root, train_batch_size=2, caption_dropout_probability=1.0)
    cache = encode_dataset(build_manifest(given), given, FOLDER)
    batches = Batches(cache, given)
    assert {(s.frames, s.text, s.lyrics) for s in batches.shapes} == {(40, 12, 8), (120, 24, 16)}
    samples = {s.id: s for s in cache.samples}
    for _ in range(2 * batches.batches_per_epoch):
        epoch, position = batches.epoch, batches.state()["position"]
        items, batch = batches.plan(epoch)[position], batches.next()
        names = {"mean", "std", "frame_mask", "words", "words_mask", "keys", "ids", "seconds"}
        assert set(batch) == {*names, "epoch", "position"}
        assert batch["mean"].shape == (2, batches.shape(items).frames, 3) and batch["keys"].shape == (2, 2)
        for b, (name, item) in enumerate(zip(batch["ids"], items, strict=True)):
            found, T = cache.make(samples[name], item.variant), samples[name].frames
            np.testing.assert_array_equal(np.array(batch["std"])[b, :T], found["std"])
            np.testing.assert_array_equal(np.array(batch["keys"])[b], item.seed)
            said = [*found["sung"], *found["prompt"]]  # nothing is dropped: that is the objective's to do
            np.testing.assert_array_equal(np.array(batch["words"])[b, : len(said)], said)
    batches.close()


@pytest.mark.slow
def test_what_a_song_goes_without_is_said_to_the_family(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[bool, bool]] = []
    collate = toy.Toy.collate

    def noted(self: toy.Toy, songs: Any, shape: Any) -> Any:
        told.extend((song.drop_text, song.drop_lyrics) for song in songs)
        return collate(self, songs, shape)

    monkeypatch.setattr(toy.Toy, "collate", noted)
    given = settings(root, train_batch_size=6, caption_dropout_probability=0.5)
    batches = Batches(cached(root), given)
    planned = [(item.drop_text, item.drop_lyrics) for item in batches.plan(0)[0]]
    batches.next()
    batches.close()
    assert told[:6] == planned and len(set(planned)) > 2


@pytest.mark.slow
def test_songs_are_encoded_on_demand(root: Path) -> None:
    eager = cached(root)
    expected = {s.id: eager.make(s, 0) for s in eager.samples}
    shutil.rmtree(root / "cache")
    cache = cached(root, vae_cache_disable=True)
    assert not (root / "cache").exists()
    for sample in cache.samples:
        assert cache.read(sample, 0)["mean"] is None
        for name, array in cache.make(sample, 0).items():
            np.testing.assert_array_equal(array, expected[sample.id][name])
    assert cache._encoders["latents"]._loaded is None


@pytest.mark.slow
@pytest.mark.parametrize("part", ["mean", "std", "prompt"])
def test_an_entry_that_lacks_an_array_or_has_another_length_is_made_again(part: str, root: Path) -> None:
    kind, stage = ("text", "encoding captions") if part == "prompt" else ("latents", "encoding songs")
    cache = cached(root)
    b = cache.samples[1]
    store, key = cache._store(b, kind), str(cache.key(kind, b))
    whole = store.get(key) or {}
    shorter = {**whole, part: whole[part][:-1]}
    for wrong in [{k: v for k, v in whole.items() if k != part}] + [shorter] * (kind == "latents"):
        store.put(key, wrong)
        watch: list[str] = []
        again = cached(root, watch)
        assert watch == [stage] and again.report.sets[0].again[0][0] == "b.wav"
        np.testing.assert_array_equal((store.get(key) or {})[part], whole[part])


@pytest.mark.slow
def test_numbers_that_are_not_finite_are_never_kept(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hear = toy.Ear.encode

    def deaf(self: toy.Ear, given: np.ndarray) -> Encoded:
        found = hear(self, given)
        if len(given) == 8000:
            found.arrays["std"][3] = np.nan
        return found

    monkeypatch.setattr(toy.Ear, "encode", deaf)
    cache = cached(root)
    assert [s.id for s in cache.samples] == ["set/b.wav", "set/c.wav"]
    ((name, why),) = cache.skipped
    assert name == "set/a.wav" and "values that are not finite" in why
    monkeypatch.setattr(toy.Letters, "load", lambda self: np.full(toy.WIDTH, np.inf, np.float32))
    shutil.rmtree(root / "cache")
    with pytest.raises(DataError, match=r"set/a\.wav: the lyrics encoder gives no finite values$"):
        cached(root)


def test_lines_that_the_model_cannot_sing_are_refused_when_asked(root: Path) -> None:
    entry = {"audio": {"lyrics_unsupported": "error"}}
    with pytest.raises(DataError, match=r"c\.wav: lyrics line 1 is shouted \(lyrics_unsupported=error\)"):
        build_manifest(config(root, entry, model_flavour="toy"))
