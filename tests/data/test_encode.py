"""Caches: what is computed, when it is computed again, and that nothing wrong is ever trained on."""

from __future__ import annotations

import json
import os
import shutil
import zlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from safetensors.numpy import load, save

from acestep_mlx.data import facts as audio_facts
from acestep_mlx.data.cache import Store, write_atomic
from acestep_mlx.data.encode import Cache, as_half, encode_dataset, load_part
from acestep_mlx.data.facts import FileAudio, examine
from acestep_mlx.data.manifest import build_manifest
from acestep_mlx.errors import DataError
from acestep_mlx.families.model_folder import ModelFolder
from acestep_mlx.io.atomic import temporary
from acestep_mlx.io.audio import read_audio
from acestep_mlx.io.hashes import cache_key, hash_file
from acestep_mlx.io.progress import Advance
from acestep_mlx.sampling.record import made_here

from ..io.test_lengths import mp3, opus_at
from .songs import config, song, write


class Watch:
    """A progress callback that remembers what was computed."""

    def __init__(self) -> None:
        self.done: list[str] = []

    def __call__(self, advance: Advance) -> None:
        if advance.stage != "looking at songs" and advance.done and not advance.done % 1:
            what = advance.stage.removeprefix("encoding ")
            self.done.append("latents" if what == "songs" else what)

    def take(self) -> list[str]:
        done, self.done = self.done, []
        return done


def encode(root: Path, model: Path, watch: Watch | None = None, *entries: dict, **options) -> Cache:
    settings = config(root, *entries, **options)
    return encode_dataset(build_manifest(settings), settings, ModelFolder.open(model), watch or Watch())


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "songs").mkdir()
    song(tmp_path / "songs", "a", 3.0, caption="pop\nrock", lyrics="[verse]\nla la la")
    song(tmp_path / "songs", "b", 4.0, caption="pop")
    return tmp_path


def complete(cache: Cache) -> bool:
    """Whether all latents are in the cache."""
    return all(cache.read(sample, 0)["latents"] is not None for sample in cache.samples)


def cache_files(root: Path) -> list[Path]:
    return sorted((root / "cache").rglob("*.cache"))


@pytest.mark.slow
def test_what_is_stored_is_what_the_models_say(root: Path, tiny_model: Path) -> None:
    cache = encode(root, tiny_model)
    folder = ModelFolder.open(tiny_model)
    a, b = cache.samples
    found = cache.read(a, 1)
    from acestep_mlx.families.v1.codec import Codec
    from acestep_mlx.families.v1.lyrics.tokenizer import LyricTokenizer

    codec = Codec(folder.load("dcae", dtype=mx.float32), folder.load("vocoder", dtype=mx.float32))
    sound = read_audio(root / "songs" / "a.wav")
    latents = np.array(codec.encode(sound[None])[0])
    assert found["latents"] is not None and found["latents"].dtype == np.float16
    np.testing.assert_allclose(found["latents"], latents, atol=2e-3, rtol=1e-3)
    assert found["latents"].shape[-1] == a.frames == 33
    ids, mask = folder.prompt_tokenizer()(["rock"])
    states = np.array(folder.load("text_encoder", dtype=mx.float32)(ids, mask)[0])
    np.testing.assert_allclose(found["states"], states, atol=2e-3, rtol=1e-3)
    assert found["ids"] is not None
    assert found["ids"].tolist() == LyricTokenizer(folder.lyric_vocab()).tokenize("[verse]\nla la la")
    assert cache.read(b, 0)["ids"].shape == (0,)  # type: ignore[union-attr]
    assert (cache.lyric_length(a), cache.lyric_length(b)) == (len(found["ids"]), 0)


@pytest.mark.slow
def test_a_second_start_computes_nothing(root: Path, tiny_model: Path) -> None:
    watch = Watch()
    encode(root, tiny_model, watch)
    assert sorted(watch.take()) == ["captions"] * 2 + ["latents"] * 2 + ["lyrics"]
    before = {path: path.stat().st_mtime_ns for path in cache_files(root)}
    encode(root, tiny_model, watch)
    assert watch.take() == []
    assert {path: path.stat().st_mtime_ns for path in cache_files(root)} == before


@pytest.mark.slow
def test_only_what_changed_is_computed_again(root: Path, tiny_model: Path) -> None:
    watch = Watch()
    songs = root / "songs"
    encode(root, tiny_model, watch)
    watch.take()
    (songs / "b.txt").write_text("jazz")
    encode(root, tiny_model, watch)
    assert watch.take() == ["captions"]
    (songs / "a.lyrics").write_text("la")
    encode(root, tiny_model, watch)
    assert watch.take() == ["lyrics"]
    song(songs, "b", 5.0, caption="jazz")
    encode(root, tiny_model, watch)
    assert watch.take() == ["latents"]
    (songs / "b.wav").rename(songs / "renamed.wav")  # content counts, not names
    encode(root, tiny_model, watch)
    assert watch.take() == ["captions"]  # renamed.wav has no caption: the empty one
    encode(root, tiny_model, watch, {"audio": {"max_duration_seconds": 4}})
    assert watch.take() == ["latents"]
    encode(root, tiny_model, watch, {"repeats": 3}, learning_rate=1e-5, seed=1)
    assert watch.take() == []


@pytest.mark.slow
@pytest.mark.parametrize("component", ["dcae", "text_encoder"])
def test_another_model_invalidates_its_own_results(component: str, root: Path, tiny_model: Path) -> None:
    watch = Watch()
    encode(root, tiny_model, watch)
    watch.take()
    other = root / "model"
    shutil.copytree(tiny_model, other)
    settings = json.loads((other / "config.json").read_text())
    settings["fingerprints"][component] = "0" * 64
    (other / "config.json").write_text(json.dumps(settings))
    encode(root, other, watch)
    assert set(watch.take()) == {"latents" if component == "dcae" else "captions"}


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["truncate", "flip", "empty", "other"])
def test_damaged_cache_files_are_computed_again(damage: str, root: Path, tiny_model: Path) -> None:
    watch = Watch()
    first = encode(root, tiny_model, watch).read
    cache = encode(root, tiny_model, watch)
    whole = {s.id: first(s, 0) for s in cache.samples}
    watch.take()
    for path in cache_files(root):
        data = bytearray(path.read_bytes())
        if damage == "truncate":
            data = data[:-1]
        elif damage == "flip":
            data[-1] ^= 1
        elif damage == "empty":
            data = bytearray()
        else:
            data = bytearray(b"something else")
        path.write_bytes(bytes(data))
    again = encode(root, tiny_model, watch)
    assert len(watch.take()) == 5
    for sample in again.samples:
        for name, array in again.read(sample, 0).items():
            np.testing.assert_array_equal(array, whole[sample.id][name])


def without_key(path: Path) -> None:
    """A cache file as versions before 0.2 wrote it."""
    body = save(load(path.read_bytes()[10:]))
    path.write_bytes(b"ACEC1p" + zlib.crc32(body).to_bytes(4, "big") + body)


@pytest.mark.slow
@pytest.mark.parametrize("keyed", [True, False], ids=["with its key", "of an earlier version"])
def test_a_cache_file_under_anothers_name_is_computed_again_and_counted(
    keyed: bool, root: Path, tiny_model: Path
) -> None:
    watch = Watch()
    song(root / "songs", "a0", 5, caption="a caption of its own")
    cache = encode(root, tiny_model, watch)
    b, a = cache.samples[:2]
    assert a.frames != b.frames
    whole = cache.read(a, 0)
    watch.take()
    pairs = [("latents", cache.latent_key(a), cache.latent_key(b))]
    pairs.append(("text", cache.key("text", a), cache.key("text", b)))
    for kind, own, other in pairs:
        folder = cache._store(a, kind)
        folder.path(own).write_bytes(folder.path(other).read_bytes())
        if not keyed:
            without_key(folder.path(own))

    again = encode(root, tiny_model, watch)
    assert len(watch.take()) == len(pairs)
    for name, array in again.read(a, 0).items():
        np.testing.assert_array_equal(array, whole[name])
    (report,) = again.report.sets
    assert report.again == [(a.id.partition("/")[2], "a cache file was damaged or another entry's")]
    third = encode(root, tiny_model, watch)
    assert watch.take() == [] and not third.report.sets[0].again


@pytest.mark.parametrize("compress", [False, True])
def test_an_entry_without_a_key_stays_usable(compress: bool, tmp_path: Path) -> None:
    """Versions before wrote none."""
    body = save({"x": np.arange(3)})
    body = zlib.compress(body) if compress else body
    cache = Store(tmp_path, compress)
    cache.path("abcd").parent.mkdir()
    head = b"ACEC1" + (b"z" if compress else b"p")
    cache.path("abcd").write_bytes(head + zlib.crc32(body).to_bytes(4, "big") + body)
    assert (cache.get("abcd") or {})["x"].tolist() == [0, 1, 2]
    cache.put("abce", {"x": np.arange(4)})
    cache.path("abcd").write_bytes(cache.path("abce").read_bytes())
    assert cache.has("abce") and not cache.has("abcd")


def test_an_entry_without_a_key_is_not_taken_for_words(tmp_path: Path) -> None:
    """Two captions may have as many tokens, so that only the key tells which one an entry is of."""
    Store(tmp_path).put("abcd", {"x": np.arange(3)})
    without_key(Store(tmp_path).path("abcd"))
    assert Store(tmp_path).has("abcd") and not Store(tmp_path, signed=True).has("abcd")
    Store(tmp_path).put("abcd", {"x": np.arange(3)})
    assert Store(tmp_path, signed=True).has("abcd")


@pytest.mark.slow
def test_an_interrupted_run_loses_one_item(root: Path, tiny_model: Path) -> None:
    class Stop(Exception):
        pass

    def stop_at_first_latent(advance: Advance) -> None:
        if advance.stage == "encoding songs" and advance.done >= 1:
            raise Stop

    settings = config(root)
    with pytest.raises(Stop):
        encode_dataset(build_manifest(settings), settings, ModelFolder.open(tiny_model), stop_at_first_latent)
    assert not list((root / "cache").rglob("*.tmp"))
    watch = Watch()
    encode(root, tiny_model, watch)
    assert watch.take() == ["latents"]


@pytest.mark.slow
def test_size_on_disk(root: Path, tiny_model: Path) -> None:
    song(root / "songs", "long", 20.0)
    cache = encode(root, tiny_model)
    minutes = sum(s.seconds for s in cache.samples) / 60
    latents = sum(cache._store(s, "latents").path(cache.latent_key(s)).stat().st_size for s in cache.samples)
    assert latents / minutes < 0.2e6
    assert cache.disk_usage() == sum(path.stat().st_size for path in cache_files(root))


@pytest.mark.slow
def test_compressed_caches_hold_the_same(root: Path, tiny_model: Path) -> None:
    plain = encode(root, tiny_model)
    arrays = {s.id: plain.read(s, 0) for s in plain.samples}
    shutil.rmtree(root / "cache")
    packed = encode(root, tiny_model, None, compress_disk_cache=True)
    for sample in packed.samples:
        for name, array in packed.read(sample, 0).items():
            np.testing.assert_array_equal(array, arrays[sample.id][name])
    mixed = Watch()
    encode(root, tiny_model, mixed, compress_disk_cache=False)  # either kind is read
    assert mixed.take() == []


@pytest.mark.slow
def test_without_disk(root: Path, tiny_model: Path) -> None:
    watch = Watch()
    on_disk = encode(root, tiny_model)
    shutil.rmtree(root / "cache")
    cache = encode(root, tiny_model, watch, vae_cache_disable=True)
    assert "latents" not in watch.take() and not (root / "cache").exists()
    for sample in cache.samples:
        assert cache.read(sample, 0)["latents"] is None
        made = cache.make(sample, 0)
        assert cache.read(sample, 0)["latents"] is not None
    # after the last song the codec is freed
    assert cache._encoders["latents"]._loaded is None and complete(cache) and not (root / "cache").exists()
    assert made["latents"].dtype == np.float16 and len(on_disk.samples) == 2


@pytest.mark.slow
def test_on_demand_gives_the_same_bits_and_keeps_them(root: Path, tiny_model: Path) -> None:
    eager = encode(root, tiny_model)
    expected = {s.id: eager.read(s, 0)["latents"] for s in eager.samples}
    shutil.rmtree(root / "cache" / "vae")
    watch = Watch()
    lazy = encode(root, tiny_model, watch, vae_cache_ondemand=True)
    assert watch.take() == [] and not (root / "cache" / "vae").exists()
    for sample in lazy.samples:
        np.testing.assert_array_equal(lazy.make(sample, 0)["latents"], expected[sample.id])
    assert complete(encode(root, tiny_model, watch)) and watch.take() == []


@pytest.mark.slow
def test_caches_that_vanish_during_a_run_are_made_again(root: Path, tiny_model: Path) -> None:
    cache = encode(root, tiny_model)
    sample = cache.samples[0]
    before = cache.read(sample, 0)
    shutil.rmtree(root / "cache")
    assert cache.read(sample, 0)["latents"] is None
    for name, array in cache.make(sample, 0).items():
        np.testing.assert_array_equal(array, before[name])
    assert cache._encoders["latents"]._loaded is None


@pytest.mark.slow
def test_a_song_that_changes_or_vanishes_is_skipped_and_named(root: Path, tiny_model: Path) -> None:
    settings = config(root)
    manifest = build_manifest(settings)
    write(root / "songs" / "a.wav", 3.0, 999.0)
    cache = encode_dataset(manifest, settings, ModelFolder.open(tiny_model))
    assert [s.id for s in cache.samples] == ["set/b.wav"]
    assert cache.skipped[0][0] == "set/a.wav" and "changed" in cache.skipped[0][1]
    (root / "songs" / "b.wav").unlink()
    shutil.rmtree(root / "cache")
    with pytest.raises(DataError, match="nothing left to train on: 2 songs skipped"):
        encode_dataset(manifest, settings, ModelFolder.open(tiny_model))


def replaced(path: Path, data: bytes) -> None:
    """Another content of the same size and time, as a restored backup or `cp -p` gives it."""
    status = path.stat()
    assert len(data) == status.st_size and data != path.read_bytes()
    path.write_bytes(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["another song", "first bytes", "last bytes", "stereo for mono"])
def test_another_song_of_the_same_size_and_time_is_noticed(kind: str, root: Path, tiny_model: Path) -> None:
    watch, path = Watch(), root / "songs" / "b.wav"
    before = encode(root, tiny_model, watch)
    old = before.read(before.samples[1], 0)["latents"]
    watch.take()
    data = bytearray(path.read_bytes())
    if kind == "another song":
        data = bytearray(write(root / "other.wav", 4.0, 999.0).read_bytes())
    elif kind == "first bytes":
        data[60:64] = b"\1\2\3\4"
    elif kind == "last bytes":
        data[-1] ^= 0x55
    else:
        data[22:24], data[32:34] = b"\2\0", b"\4\0"
    replaced(path, bytes(data))
    after = encode(root, tiny_model, watch)
    assert watch.take() == ["latents"] and len(after.samples) == 2
    new = after.read(after.samples[1], 0)["latents"]
    assert new is not None and old is not None and (new.shape != old.shape or (new != old).any())


@pytest.mark.slow
def test_a_change_between_the_blocks_is_noticed_when_encoding_and_mends_itself(
    root: Path, tiny_model: Path
) -> None:
    path = root / "songs" / "b.wav"
    before = encode(root, tiny_model)
    data = bytearray(path.read_bytes())
    middle = (len(data) - 4096) // 15 * 7 + 4096 + 1000  # behind the eighth block, before the ninth
    data[middle : middle + 100] = bytes(100)
    replaced(path, bytes(data))
    assert encode(root, tiny_model).samples == before.samples  # the price of cheap starts …
    shutil.rmtree(root / "cache" / "vae")
    cache = encode(root, tiny_model)
    assert [s.id for s in cache.samples] == ["set/a.wav"] and "changed" in cache.skipped[0][1]
    again = encode(root, tiny_model)  # … is paid once
    assert len(again.samples) == 2 and not again.skipped
    assert again.samples[1].content == hash_file(path) != before.samples[1].content


@pytest.mark.slow
def test_a_song_that_changes_before_it_is_encoded_on_demand_mends_itself(
    root: Path, tiny_model: Path
) -> None:
    path = root / "songs" / "b.wav"
    encode(root, tiny_model, None, vae_cache_ondemand=True)
    data = bytearray(path.read_bytes())
    middle = (len(data) - 4096) // 15 * 7 + 4096 + 1000
    data[middle] ^= 0xFF
    replaced(path, bytes(data))
    cache = encode(root, tiny_model, None, vae_cache_ondemand=True)
    with pytest.raises(DataError, match="changed"):
        cache.make(cache.samples[1], 0)
    cache = encode(root, tiny_model, None, vae_cache_ondemand=True)
    assert cache.make(cache.samples[1], 0)["latents"].shape[-1] == cache.samples[1].frames


def test_a_start_reads_little_of_each_song(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    song(root / "songs", "long", 60.0)
    build_manifest(config(root))
    read: list[int] = []
    pread = os.pread

    def counted(file: int, n: int, at: int) -> bytes:
        read.append(n)
        return pread(file, n, at)

    monkeypatch.setattr(os, "pread", counted)
    monkeypatch.setattr(audio_facts, "examine", None)
    assert len(build_manifest(config(root)).samples) == 3
    assert 0 < sum(read) <= 3 * (64 << 10)


@pytest.mark.slow
@pytest.mark.parametrize("xing", [False, True], ids=["guessed length", "blocks damaged by seeking"])
def test_entries_of_wrong_sound_are_encoded_again_and_counted(
    xing: bool, root: Path, tiny_model: Path
) -> None:
    songs, watch = root / "songs", Watch()
    encode(root, tiny_model, watch)
    (songs / "guessed.mp3").write_bytes(mp3(xing))
    (songs / "guessed.txt").write_text("pop")
    manifest = build_manifest(config(root))
    guessed = next(s for s in manifest.samples if s.id == "set/guessed.mp3")
    # What version 1 left: its index, and latents of the part that it took.
    facts = {}
    for s in manifest.samples:
        status = s.audio.path.stat()  # type: ignore[attr-defined]
        seconds = 1.5 if s is guessed and not xing else s.seconds
        facts[f"{s.audio.name}|{status.st_size}|{status.st_mtime_ns}"] = {
            "content": s.content, "duration": seconds, "problem": None,
        }  # fmt: skip
    index = root / "cache" / "audio_index.json"
    index.write_text(json.dumps({"version": 1, "facts": facts}))
    fresh = Cache(manifest, config(root), ModelFolder.open(tiny_model))
    old = fresh._latent_key(guessed, (0.0, guessed.seconds if xing else 1.5))
    fresh._store(guessed, "latents").put(old, {"latents": np.zeros((8, 16, 17), np.float16)})
    watch.take()

    cache = encode(root, tiny_model, watch)
    assert watch.take() == ["latents"], "songs of exact length keep their entries"
    (report,) = cache.report.sets
    why = "some blocks were damaged" if xing else f"1.50 s were taken, {guessed.seconds:.2f} s are there"
    assert report.again == [("guessed.mp3", why)]
    text = "\n".join(cache.report.lines())
    if not xing:
        assert "length counted by decoding: 1" in text and "does not state its length" in report.counted[0][1]
    assert "encoded again, because what was kept of them was wrong: 1" in text
    sample = next(s for s in cache.samples if s.id == "set/guessed.mp3")
    latents = cache.read(sample, 0)["latents"]
    assert latents is not None and latents.shape[-1] == sample.frames and abs(sample.seconds - 4) < 0.2

    cache = encode(root, tiny_model, watch)
    assert watch.take() == [] and not cache.report.sets[0].again
    assert len(cache.report.sets[0].counted) == (not xing)


@pytest.mark.slow
@pytest.mark.parametrize("songs", [1, 2], ids=["one song", "counted already"])
def test_opus_that_was_taken_at_its_headers_rate_is_encoded_again(
    songs: int, root: Path, tiny_model: Path
) -> None:
    (root / "songs" / "speech.opus").write_bytes(opus_at(16000) * songs)
    (root / "songs" / "wide.opus").write_bytes(opus_at(44100))
    settings = config(root)
    manifest = build_manifest(settings)
    samples = {sample.id: sample for sample in manifest.samples}
    # What version 2 left: its index, and latents under the keys that it gave.
    facts = {
        s.audio.stamp(): {"content": s.content, "duration": s.seconds, "problem": None,
                          "counted": None, "misread": s.misread != "" and songs > 1, "former": None}
        for s in manifest.samples
    }  # fmt: skip
    (root / "cache" / "audio_index.json").write_text(json.dumps({"version": 2, "facts": facts}))
    fresh = Cache(manifest, settings, ModelFolder.open(tiny_model))
    for sample in samples.values():
        mark = {"decoded": "to the end"} if sample.misread and songs > 1 else {}
        key = fresh._latent_key(sample, (sample.start, sample.seconds), **mark)
        fresh._store(sample, "latents").put(key, {"latents": np.zeros((8, 16, sample.frames), np.float16)})

    cache = encode(root, tiny_model)
    latents = {name: cache.read(sample, 0)["latents"] for name, sample in samples.items()}
    changed = [name for name, found in latents.items() if found is not None and found.any()]
    assert changed == ["set/speech.opus"] and len(latents) == len(samples)
    assert cache.report.sets[0].again == [("speech.opus", "some of its sound was lost")]
    assert not encode(root, tiny_model).report.sets[0].again


@pytest.mark.slow
def test_a_guess_that_gave_the_same_part_is_encoded_again_too(root: Path, tiny_model: Path) -> None:
    """Its sound may have been taken from another place: seeking went by the guess."""
    (root / "songs" / "guessed.mp3").write_bytes(mp3(xing=False))
    entry = {"audio": {"max_duration_seconds": 3}}
    cache = encode(root, tiny_model, None, entry)
    guessed = next(s for s in cache.samples if s.id == "set/guessed.mp3")
    assert cache.latent_key(guessed) != cache._latent_key(guessed, (guessed.start, guessed.seconds))


@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "nothing", "link to a pipe"])
def test_a_song_that_is_no_file_any_more_is_not_waited_for(kind: str, root: Path) -> None:
    """Replaced after it was looked at, while a run reads songs on demand."""
    sample = build_manifest(config(root)).samples[0]
    path = sample.audio.path  # type: ignore[attr-defined]
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "link to a pipe":
        os.mkfifo(root / "pipe")
        path.symlink_to(root / "pipe")
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    with pytest.raises(DataError, match=f"{sample.id}: cannot be read"):
        load_part(sample)
    with pytest.raises(DataError, match="cannot read"):
        sample.audio.stamp()
    with pytest.raises(DataError):
        read_audio(path)
    assert examine(FileAudio(path)).problem and not made_here(path)


def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataError, match="cannot write the cache file"):
        write_atomic(tmp_path / "file" / "below", b"x")


def test_parts_have_their_exact_length(root: Path) -> None:
    song(root / "songs", "long", 9.0)
    settings = config(root, {"audio": {"max_duration_seconds": 4.123, "truncation_mode": "end"}})
    found = next(s for s in build_manifest(settings).samples if s.id == "set/long.wav")
    sound = load_part(found)
    whole = read_audio(root / "songs" / "long.wav")
    assert sound.shape == (round(4.123 * 44100), 2)
    first = round(found.start * 44100)
    middle = slice(2000, -2000)
    np.testing.assert_allclose(sound[middle], whole[first : first + len(sound)][middle], atol=0.02)


@pytest.mark.slow
def test_remarks_about_texts_reach_the_report_every_time(root: Path, tiny_model: Path) -> None:
    (root / "songs" / "b.txt").write_text("word " * 400)
    (root / "songs" / "b.lyrics").write_text("[verse]\n" + "la la la la\n" * 900)
    said = []
    for _ in range(2):
        notes = encode(root, tiny_model).report.sets[0].notes
        said.append([note for name, note in notes if name == "b.wav"])
        assert [note for note in said[-1] if note.startswith("caption: ") and "cut to 256 of" in note]
        assert [note for note in said[-1] if note.startswith("lyrics: ")]
    assert said[0] == said[1]


@pytest.mark.slow
def test_prune_deletes_only_what_is_not_used(root: Path, tiny_model: Path) -> None:
    encode(root, tiny_model)
    (root / "songs" / "b.txt").write_text("jazz")
    cache = encode(root, tiny_model)
    assert cache.prune() == (0, 0)  # "pop" is still a's caption
    (root / "songs" / "a.txt").write_text("rock")
    cache = encode(root, tiny_model)
    assert cache.prune()[0] == 1 and set(cache_files(root)) == cache.files()
    watch = Watch()
    encode(root, tiny_model, watch)
    assert watch.take() == []


@pytest.mark.slow
def test_prune_takes_what_runs_that_died_left_and_nothing_of_anybody_else(
    root: Path, tiny_model: Path
) -> None:
    cache = encode(root, tiny_model)
    folder = next(iter(cache.files())).parent
    left, other = temporary(folder / "x.cache"), folder / "notes.txt"
    left.write_bytes(b"half of it")
    other.write_text("mine")
    assert cache.prune() == (1, len(b"half of it"))
    assert not left.exists() and other.exists() and set(cache_files(root)) == cache.files()


NAMES = {"v1": (("latents",), ("states",), ("ids",)), "v15": (("mean", "std", "source"), ("lyrics",))}


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("own", ["v1", "v15"])
def test_prune_takes_nothing_of_another_family_in_the_same_folder(
    own: str, compress: bool, tmp_path: Path
) -> None:
    """Nor what cannot be told. Entries of earlier versions do not say whose they are: their arrays do."""
    kept, gone = [], []
    for family, kinds in NAMES.items():
        for names in kinds:
            for said in (family, None):
                key = cache_key(family=family, names=names, said=said)
                store = Store(tmp_path, compress, family=said or "")
                arrays = {name: np.zeros(3, np.float16) for name in (*names, "notes")}
                if said is None:  # as they were written
                    blob = save(arrays, {"key": key})
                    blob = zlib.compress(blob) if compress else blob
                    head = b"ACEC1" + (b"z" if compress else b"p") + zlib.crc32(blob).to_bytes(4, "big")
                    write_atomic(store.path(key), head + blob)
                else:
                    store.put(key, arrays)
                assert store.get(key) is not None
                (gone if family == own else kept).append(store.path(key))
    stranger = tmp_path / "ab" / "abc.cache"
    write_atomic(stranger, b"ACEC1p of no use")
    encoders = {str(i): SimpleNamespace(names=names) for i, names in enumerate(NAMES[own])}
    used = gone.pop()
    cache: Any = SimpleNamespace(
        family=SimpleNamespace(name=own), _encoders=encoders, files=lambda: {used},
        _stores={0: Store(tmp_path), 1: Store(None)},
    )  # fmt: skip
    assert Cache.prune(cache)[0] == len(gone)
    assert sorted(tmp_path.rglob("*.cache")) == sorted([*kept, used, stranger])


@pytest.mark.parametrize(
    ("value", "dtype"),
    [(0.0, np.float16), (-1.5, np.float16), (65503.0, np.float16), (65504.0, np.float32),
     (-65520.0, np.float32), (70000.0, np.float32), (-3e38, np.float32)],
)  # fmt: skip
def test_what_half_precision_cannot_hold_is_kept_in_full(value: float, dtype: type, tmp_path: Path) -> None:
    given = np.array([[0.25, value], [-1.0, 2.0]], np.float32)
    kept = as_half(given)
    assert kept.dtype == dtype and np.isfinite(kept).all()
    np.testing.assert_allclose(kept.astype(np.float32), given, rtol=0 if dtype == np.float32 else 1e-3)
    store = Store(tmp_path)
    store.put("abc", {"x": kept})
    np.testing.assert_array_equal((store.get("abc") or {})["x"], kept)
    assert as_half(np.zeros((0, 3), np.float32)).shape == (0, 3)


@pytest.mark.parametrize("compress", [False, True])
def test_a_cache_file_with_any_bit_changed_or_byte_missing_gives_nothing_else(
    compress: bool, tmp_path: Path
) -> None:
    store = Store(tmp_path, compress)
    store.put("abc", {"x": np.arange(5, dtype=np.float16), "y": np.ones(3, np.int32)})
    file = store.path("abc")
    content = file.read_bytes()
    found = store.get("abc")
    assert found is not None and found["x"].tolist() == [0, 1, 2, 3, 4] and found["y"].tolist() == [1, 1, 1]
    for place in range(len(content)):
        file.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        changed = store.get("abc")
        same = changed is not None and all(np.array_equal(changed[k], found[k]) for k in found)
        assert changed is None or same, place
    for length in range(len(content)):
        file.write_bytes(content[:length])
        assert store.get("abc") is None, length
    file.write_bytes(content)
    assert store.has("abc")


def test_store_in_memory_and_keys() -> None:
    store = Store(None)
    store.put("k", {"a": np.arange(3)})
    assert store.has("k") and not store.has("other")
    assert cache_key(a=1, b="x") == cache_key(b="x", a=1) != cache_key(a=2, b="x")
    assert cache_key(a="\ud800") != cache_key(a="")
