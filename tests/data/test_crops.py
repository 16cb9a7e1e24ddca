"""Parts of songs: which seconds, which lyrics, in what order, and in how much memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from acestep_mlx.config.read_run import load_config
from acestep_mlx.data import crops
from acestep_mlx.data.batches import Batches
from acestep_mlx.data.encode import encode_dataset
from acestep_mlx.data.manifest import Sample, build_manifest
from acestep_mlx.errors import ConfigError
from acestep_mlx.families.model_folder import ModelFolder
from acestep_mlx.families.v1 import FAMILY as V1
from acestep_mlx.families.v1 import songs
from acestep_mlx.families.v15 import FAMILY as V15
from acestep_mlx.text.sheet import read_sheet
from acestep_mlx.training import memory

from .songs import config, manifest, song

LRC = "[Verse 1]\n[00:00.50]one\n[00:01.80]two\n[Chorus]\n[00:04.00]three\n[00:05.50]four\n"
CROP = {"crop_seconds": 3}


class Counting:
    """A codec whose latents are the number of their frame."""

    def __init__(self, *components: Any) -> None: ...

    def encode(self, sound: np.ndarray, progress: Any = None) -> mx.array:
        frames = -(-len(sound) // 4096)
        return mx.broadcast_to(mx.arange(frames, dtype=mx.float32), (1, 8, 16, frames))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Songs of 3 to 7 seconds, of which the longest has time stamps."""
    root = tmp_path_factory.mktemp("crops")
    (root / "songs").mkdir()
    for name, seconds, lyrics in (
        ("short", 3.0, "[verse]\nall of it"), ("plain", 5.0, "[verse]\nno stamps"), ("marks", 5.0, "[inst]"),
        ("none", 6.0, None), ("long", 7.0, LRC),
    ):  # fmt: skip
        song(root / "songs", name, seconds, lyrics=lyrics)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(songs, "Codec", Counting)
        yield root


class Stored:
    """A cache whose latents are the number of their frame."""

    family = V1
    heard: tuple[str, ...] = ()

    def __init__(self, samples: list[Sample]) -> None:
        self.samples = samples

    def text_length(self, sample: Sample) -> int:
        return 1

    def lyric_length(self, sample: Sample) -> int:
        return 0

    def read(self, sample: Sample, variant: int, start: int | None = None) -> dict[str, np.ndarray]:
        latents = np.broadcast_to(np.arange(sample.frames, dtype=np.float32), (8, 16, sample.frames))
        return {"latents": latents, "states": np.zeros((1, 4), np.float32), "ids": np.zeros(0, np.int32)}

    make = read

    def release(self) -> None: ...


def make(root: Path, audio: dict[str, Any], rank: int = 0, world: int = 1, **options: Any) -> Batches:
    settings = config(root, {"audio": audio}, **{"caption_dropout_probability": 0.0, **options})
    cache: Any = Stored(build_manifest(settings).samples)
    return Batches(cache, settings, rank=rank, world=world)


def encoded(root: Path, model: Path, audio: dict[str, Any]) -> Batches:
    """The same with the caches of a model."""
    settings = config(root, {"audio": audio}, caption_dropout_probability=0.0)
    cache = encode_dataset(build_manifest(settings), settings, ModelFolder.open(model))
    return Batches(cache, settings)


def parts(batches: Any, count: int) -> list[tuple[str, int, int]]:
    """(song, first frame, frames) of each song in the next batches, from what is in them."""
    found = []
    for _ in range(count):
        batch = batches.next()
        for b, name in enumerate(batch["ids"]):
            T = int(np.array(batch["latent_mask"])[b].sum())
            frames = np.array(batch["latents"])[b, 0, 0, :T]
            np.testing.assert_array_equal(frames, frames[0] + np.arange(T))
            found.append((name.removeprefix("set/").removesuffix(".wav"), int(frames[0]), T))
    return found


def test_another_part_each_time_of_songs_that_are_longer(root: Path) -> None:
    batches = make(root, CROP)
    three = batches.samples[0].latents.covering(3 * 44100)
    assert {shape.frames for shape in batches.shapes} == {three}  # one bucket: all are 3 s long
    found = parts(batches, 40)
    assert {frames for _, _, frames in found} == {three}
    for sample in batches.samples:
        name = sample.id.removeprefix("set/").removesuffix(".wav")
        starts = {start for one, start, _ in found if one == name}
        assert max(starts) <= sample.frames - three
        assert (len(starts) > 4) == sample.is_cropped and (starts == {0}) == (name == "short")
    assert batches.next()["seconds"] == 3.0


def test_without_a_song_that_is_longer_nothing_changes(root: Path) -> None:
    plain, cropped = (
        make(root, {}),
        make(root, {"crop_seconds": 7, "crop_lyrics": "cut"}),
    )
    assert plain.signature == cropped.signature and plain.plan(0) == cropped.plan(0)
    assert not any(item.start for group in plain.plan(0) for item in group)
    one, two = plain.next(), cropped.next()
    assert all(mx.array_equal(one[k], v) for k, v in two.items() if isinstance(v, mx.array))
    assert make(root, CROP).signature != plain.signature


def test_the_order_of_songs_and_their_noise_is_as_without(root: Path) -> None:
    plain, cropped = make(root, {"duration_interval": 30}), make(root, CROP)
    for epoch in range(2):
        items = [[replace(i, start=None) for i in group] for group in cropped.plan(epoch)]
        assert items == plain.plan(epoch)


def test_two_ranks_draw_what_one_draws(root: Path) -> None:
    whole = parts(make(root, CROP, train_batch_size=2), 6)
    ranks = [parts(make(root, CROP, rank=r, world=2), 6) for r in (0, 1)]
    assert [one for pair in zip(*ranks, strict=True) for one in pair] == whole


def test_a_run_that_goes_on_draws_the_same_parts(root: Path) -> None:
    straight, first = make(root, CROP), make(root, CROP)
    wanted = parts(straight, 9)
    parts(first, 4)
    second = make(root, CROP)
    assert second.restore(first.state()) is None and parts(second, 5) == wanted[4:]
    for other in ({**CROP, "crop_seconds": 4}, {**CROP, "crop_lyrics": "drop"}, {}):
        assert "the data changed" in str(make(root, other).restore(first.state()))
    assert parts(make(root, CROP, seed=7), 9) != wanted


def test_the_evaluation_hears_the_same_parts_always(root: Path) -> None:
    batches = make(root, CROP)
    first = batches.evaluation(4)
    parts(batches, 3)
    for one, again in zip(first, batches.evaluation(4), strict=True):
        assert all(mx.array_equal(one[k], v) for k, v in again.items() if isinstance(v, mx.array))
        assert one["seconds"] == 3.0 and one["latents"].shape[-1] == batches.samples[0].part


# ── lyrics ───────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize(
    ("begin", "end", "wanted"),
    [
        (0, 3, "[verse]\none\ntwo"),
        (0, 1.2, "[verse]\none"),
        (1.3, 3.3, "[verse]\ntwo"),  # the middle of "one" is at 1.15
        (2.5, 6, "[verse]\ntwo\n[Chorus]\nthree"),
        (5, 99, "[Chorus]\nfour"),
        (20, 30, None),
    ],
)
def test_a_part_has_the_lines_that_are_sung_in_it(begin: float, end: float, wanted: str | None) -> None:
    assert crops.cut(read_sheet(LRC).lines, begin, end, 7) == wanted


CUTS = {
    # a line that is repeated; a gap: no line is sung for longer than six seconds
    "[00:10][01:20]again\n[00:30]once": {
        (5, 20): "again", (70, 90): "again", (25, 40): "once", (40, 70): None,
    },
    # subtitles say when a line ends, and a cue may have two
    "1\n00:00:10,000 --> 00:00:30,000\none\ntwo\n": {(18, 22): "one\ntwo", (10, 15): None},
    # lines without a time go with the one before
    "[00:10]one\nand on\n[00:20]two": {(9, 15): "one\nand on", (18, 24): "two"},
    # an empty line ends the one before
    "[00:10]one\n[00:11]\n[00:20]two": {(10, 11): "one", (12, 15): None},
    # a language's tag goes with what it is for
    "[lang:ja]\n[00:10]one\n[00:20]two": {(18, 25): "[lang:ja]two"},
    # a mark with a time of its own
    "[00:05][Intro]\n[00:10]one": {(4, 9): "[Intro]", (9, 15): "[Intro]\none"},
}  # fmt: skip


@pytest.mark.parametrize("text", CUTS)
def test_lines_of_every_kind(text: str) -> None:
    lines = read_sheet(text).lines
    assert {span: crops.cut(lines, *span, 300) for span in CUTS[text]} == CUTS[text]


@pytest.mark.parametrize("flavour", ["base", "v15-base"])
def test_lyrics_without_times_are_no_parts_and_marks_alone_are_all(flavour: str, root: Path) -> None:
    found = manifest(root, {"audio": {**CROP, "crop_lyrics": "cut"}}, model_flavour=flavour)
    samples = {s.id.removeprefix("set/").removesuffix(".wav"): s for s in found.samples}
    assert {name: bool(s.timed) for name, s in samples.items() if s.timed} == {"long": True}
    assert samples["plain"].all_lyrics == {None} and samples["marks"].all_lyrics == {"[inst]"}
    assert found.report.sets[0].untimed == ["plain.wav"]


def test_every_line_is_sung_in_one_part_of_a_song_that_is_cut_up() -> None:
    lines = read_sheet("\n".join(f"[00:{i:02}.{7 * i % 100:02}]word{i}" for i in range(1, 58, 3))).lines
    for step in (3, 7, 11.5):
        pieces = [crops.cut(lines, i * step, (i + 1) * step, 60) for i in range(30)]
        assert "\n".join(piece for piece in pieces if piece) == "\n".join(line.text for line in lines)


def test_parts_begin_on_a_grid_that_reaches_the_end() -> None:
    assert crops.starts(100, 60) == (0, 10, 20, 30, 40) and crops.starts(65, 60) == (0, 5)
    assert crops.starts(12, 3) == (0, 1, 2, 3, 4, 5, 6, 7, 8, 9)


def _tokens(model: Path, text: str | None) -> list[int]:
    return ModelFolder.open(model).lyric_tokenizer().tokenize(text) if text else []


@pytest.mark.slow
def test_the_model_is_told_the_lyrics_of_the_part(root: Path, tiny_model: Path) -> None:
    batches = encoded(root, tiny_model, {**CROP, "crop_lyrics": "cut"})
    samples = {s.id.removeprefix("set/").removesuffix(".wav"): s for s in batches.samples}
    seen = set()
    for _ in range(30):
        batch = batches.next()
        name = batch["ids"][0].removeprefix("set/").removesuffix(".wav")
        start = int(np.array(batch["latents"])[0, 0, 0, 0])
        begin = start * 4096 / 44100
        wanted = {"short": "[verse]\nall of it", "marks": "[inst]", "plain": None, "none": None}.get(
            name, crops.cut(samples["long"].timed, begin, begin + 3, 7)
        )
        ids = np.array(batch["lyric_ids"])[0][np.array(batch["lyric_mask"])[0] > 0].tolist()
        assert ids == _tokens(tiny_model, wanted), name
        seen |= {wanted} if name == "long" else set()
    assert len(seen) > 3


@pytest.mark.slow
def test_lyrics_are_kept_or_dropped_with_parts_alone(root: Path, tiny_model: Path) -> None:
    whole = {"short": "[verse]\nall of it", "marks": "[inst]", "plain": "[verse]\nno stamps", "none": None}
    whole["long"] = read_sheet(LRC).text
    for how, wanted in (("keep", whole), ("drop", {**dict.fromkeys(whole), "short": whole["short"]})):
        batches = encoded(root, tiny_model, {**CROP, "crop_lyrics": how})
        for _ in range(5):
            batch = batches.next()
            name = batch["ids"][0].removeprefix("set/").removesuffix(".wav")
            ids = np.array(batch["lyric_ids"])[0][np.array(batch["lyric_mask"])[0] > 0].tolist()
            assert ids == _tokens(tiny_model, wanted[name]), (how, name)


def test_a_part_is_taken_of_what_truncation_left(root: Path) -> None:
    """The last five seconds of the longest song: its lines are counted from the song's beginning."""
    block = {"max_duration_seconds": 5, "truncation_mode": "end", **CROP, "crop_lyrics": "cut"}
    sample = next(s for s in manifest(root, {"audio": block}).samples if "long" in s.id)
    assert (sample.start, sample.seconds, sample.at_once) == (2.0, 5.0, 3)
    assert sample.lyrics_of(0) == "[verse]\ntwo\n[Chorus]\nthree"
    assert sample.lyrics_of(sample.starts[-1]) == "[Chorus]\nthree\nfour"


def test_the_report_counts_parts_and_songs_whose_lyrics_cannot_be_cut(root: Path) -> None:
    report = manifest(root, {"audio": {**CROP, "crop_lyrics": "cut"}}).report
    text = "\n".join(report.lines(0))
    assert "longer than 3 s, each time a random part of that length: 4" in text
    assert "lyrics without time stamps, so that parts have none: 1\n    plain.wav" in text
    said = [line for line, level in report.remarks() if "time stamps" in line and level == "warning"]
    assert len(said) == 1 and said[0].startswith(
        "1 of 5 songs in set has lyrics without time stamps (plain.wav)"
    )
    for audio in ({}, CROP, {**CROP, "crop_lyrics": "drop"}):
        lines = "\n".join(manifest(root, {"audio": audio}).report.lines(0))
        assert ("longer than 3 s" in lines) == bool(audio) and "without time stamps, so" not in lines


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"crop_seconds": 2}, "crop_seconds"),
        ({"crop_seconds": 241}, "240"),
        ({"crop_lyrics": "some"}, "some"),
    ],
)
def test_what_cannot_be_is_one_line(given: dict[str, Any], said: str, root: Path) -> None:
    with pytest.raises(ConfigError, match=said):
        manifest(root, {"audio": given})


# ── memory, and the other model ──────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize("flavour", ["base", "v15-base"])
def test_long_songs_take_the_memory_of_short_ones(flavour: str, root: Path) -> None:
    """240 s cropped to 60 s against songs of 60 s, by the estimate that chooses recomputation."""

    def estimate(seconds: float, **audio: Any) -> float:
        found = manifest(root, {"audio": audio}, model_flavour=flavour)
        samples: list[Sample] = [replace(sample, seconds=seconds) for sample in found.samples]
        songs = [(s.bucket, lyrics) for s in samples for lyrics in s.all_lyrics]
        run = load_config({"model_flavour": flavour})
        return max(memory.estimate(run, load).total for load in memory.loads(songs, 1, found.family, None))

    assert estimate(240.0, crop_seconds=60) == estimate(60.0) < estimate(240.0)
    assert estimate(240.0, crop_seconds=60, crop_lyrics="cut") <= estimate(60.0)


def test_a_part_for_the_other_model_is_told_its_own_length_and_has_silence_from_the_start(root: Path) -> None:
    T = np.arange(10, dtype=np.float32)[:, None]
    arrays = {"mean": T, "std": T + 100, "source": T + 200, "text": T, "lyrics": T}
    part = V15.crop(arrays, 4, 3)
    assert part["mean"].ravel().tolist() == [4, 5, 6] and part["std"].ravel().tolist() == [104, 105, 106]
    assert part["source"].ravel().tolist() == [200, 201, 202]
    assert part["text"] is arrays["text"] and part["lyrics"] is arrays["lyrics"]
    block = {**CROP, "crop_lyrics": "cut"}
    found = manifest(root, {"audio": block}, model_flavour="v15-base").samples
    seconds = {s.id: s.words().seconds for s in found}
    assert set(seconds.values()) == {3}
    long = next(s for s in found if "long" in s.id)
    assert long.words(0, 0).lyrics == "[Verse 1]\none\ntwo"
    assert long.words(0, long.starts[-1]).lyrics == "[Chorus]\nthree\nfour"
