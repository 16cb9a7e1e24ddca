"""Batches: order, shapes, masks, dropout, resuming, sharding, prefetching."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from acestep_mlx.data.batches import Batches, Item, shares, songs_per_epoch
from acestep_mlx.data.encode import Cache, encode_dataset
from acestep_mlx.data.manifest import build_manifest
from acestep_mlx.families.model_folder import ModelFolder
from acestep_mlx.families.v1 import FAMILY as V1

from .songs import config, song

LENGTHS = (2.0, 3.0, 3.5, 5.0, 5.5, 7.0, 7.2)
ARRAYS = ("latents", "latent_mask", "text", "text_mask", "lyric_ids", "lyric_mask", "keys")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("batches")
    (root / "songs").mkdir()
    for i, seconds in enumerate(LENGTHS):
        lyrics = f"[verse]\nsong number {i}\n" if i % 2 else None
        song(root / "songs", f"s{i}", seconds, caption="one\ntwo, three\nfour", lyrics=lyrics)
    return root


def make(
    root: Path, model: Path, *entries: dict[str, Any], rank: int = 0, world: int = 1, **options: Any
) -> Batches:
    settings = config(root, *entries, **options)
    cache = encode_dataset(build_manifest(settings), settings, ModelFolder.open(model))
    return Batches(cache, settings, rank=rank, world=world)


def same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return a["ids"] == b["ids"] and all(mx.array_equal(a[name], b[name]).item() for name in ARRAYS)


def epoch_ids(batches: Batches) -> list[str]:
    return [name for _ in range(batches.batches_per_epoch) for name in batches.next()["ids"]]


@pytest.mark.slow
def test_an_epoch_holds_every_song_once(root: Path, tiny_model: Path) -> None:
    batches = make(root, tiny_model)
    assert batches.batches_per_epoch == batches.songs_per_epoch == len(LENGTHS)
    first, second = epoch_ids(batches), epoch_ids(batches)
    assert sorted(first) == sorted(second) == sorted(f"set/s{i}.wav" for i in range(len(LENGTHS)))
    assert first != second
    assert batches.epoch == 2


def test_the_seed_decides(root: Path, tiny_model: Path) -> None:
    one, two = make(root, tiny_model, seed=1), make(root, tiny_model, seed=1)
    other = make(root, tiny_model, seed=2)
    assert all(same(one.next(), two.next()) for _ in range(10))
    assert epoch_ids(make(root, tiny_model, seed=1)) != epoch_ids(other)


def test_contents_masks_and_padding(root: Path, tiny_model: Path) -> None:
    batches = make(root, tiny_model, train_batch_size=2, caption_dropout_probability=0.0)
    cache = batches.cache
    samples = {s.id: s for s in cache.samples}
    for _ in range(batches.batches_per_epoch):
        plan = batches.plan(batches.epoch)[batches.state()["position"]]
        batch = batches.next()
        B, C, H, T = batch["latents"].shape
        assert (B, C, H) == (2, 8, 16) and batch["text"].shape[1] % 32 == 0
        for b, (name, item) in enumerate(zip(batch["ids"], plan, strict=True)):
            stored = cache.read(samples[name], item.variant)
            n, words, ids = samples[name].frames, len(stored["states"]), len(stored["ids"])  # type: ignore
            np.testing.assert_array_equal(np.array(batch["latents"])[b, :, :, :n], stored["latents"])
            assert not np.array(batch["latents"])[b, :, :, n:].any()
            np.testing.assert_array_equal(np.array(batch["latent_mask"])[b], np.arange(T) < n)
            np.testing.assert_array_equal(np.array(batch["text"])[b, :words], stored["states"])
            assert np.array(batch["text_mask"])[b].sum() == words
            np.testing.assert_array_equal(np.array(batch["lyric_ids"])[b, :ids], stored["ids"])
            assert np.array(batch["lyric_mask"])[b].sum() == ids
        assert batch["latents"].dtype == batch["text"].dtype == mx.float32
        assert batch["lyric_ids"].dtype == mx.int32 and batch["keys"].dtype == mx.uint32


def test_one_shape_per_bucket(root: Path, tiny_model: Path) -> None:
    batches = make(root, tiny_model)
    shapes = {tuple(batch[name].shape for name in ARRAYS) for batch in (batches.next() for _ in range(30))}
    assert len(shapes) == len(batches.shapes) == 3
    wide = make(root, tiny_model, {"audio": {"duration_interval": 30}})
    assert len({wide.next()["latents"].shape for _ in range(10)}) == 1


def test_batches_are_full_and_similar_in_length(root: Path, tiny_model: Path) -> None:
    batches = make(root, tiny_model, train_batch_size=2)
    assert batches.batches_per_epoch == 4
    for epoch in range(5):
        plan = batches.plan(epoch)
        counts = Counter(item.sample for group in plan for item in group)
        assert all(len(group) == 2 for group in plan)
        assert set(counts) == set(range(len(LENGTHS))) and sum(counts.values()) == 8
    bigger = make(root, tiny_model, train_batch_size=16)
    assert bigger.batches_per_epoch == 1 and len(bigger.next()["ids"]) == 16


@pytest.mark.parametrize(
    ("lengths", "size", "groups"),
    [
        ([10, 30, 20, 30], 2, [[1, 3], [2, 0]]),
        ([10, 40, 20, 30], 2, [[1, 3], [2, 0]]),
        ([10, 20, 10, 30, 10, 20], 2, [[0, 2], [1, 5], [3, 4]]),
        ([5, 7, 6], 4, [[1, 2, 0]]),
        ([9, 9], 1, [[0], [1]]),
    ],
)
def test_songs_that_are_left_over_are_grouped_with_their_nearest_lengths(
    lengths: list[int], size: int, groups: list[list[int]]
) -> None:
    held: Any = SimpleNamespace(samples=[SimpleNamespace(bucket=frames) for frames in lengths])
    assert Batches._group(held, list(range(len(lengths))), size) == groups


@pytest.mark.parametrize(
    ("repeats", "probability", "whole", "extra"),
    [(0, 1.0, 1, 0), (2, 1.0, 3, 0), (0, 0.5, 0, 5), (0, 1.5, 1, 5), (9, 0.25, 2, 5), (1, 0.3, 0, 6),
     (99, 0.29, 29, 0), (0, 0.04, 0, 0)],
)  # fmt: skip
def test_how_often_an_epoch_has_the_songs_of_a_set(
    repeats: int, probability: float, whole: int, extra: int
) -> None:
    """100 · 0.29 is 28.999999999999996 for a computer."""
    one: Any = SimpleNamespace(id="a", repeats=repeats, probability=probability, held_out=False)
    other: Any = SimpleNamespace(id="b", repeats=0, probability=1.0, held_out=False)
    samples: Any = [SimpleNamespace(dataset=one if i % 2 else other) for i in range(20)]
    found = {tuple(share.songs): (share.whole, share.extra) for share in shares(samples)}
    assert found == {tuple(range(1, 20, 2)): (whole, extra), tuple(range(0, 20, 2)): (1, 0)}
    assert songs_per_epoch(samples) == 10 * whole + extra + 10


@pytest.mark.slow
def test_repeats_and_probability(root: Path, tiny_model: Path) -> None:
    entries = (
        {"id": "often", "repeats": 2},
        {"id": "half", "probability": 0.5},
        {"id": "mixed", "probability": 1.5},
    )
    batches = make(root, tiny_model, *entries)
    n = len(LENGTHS)
    for epoch in range(4):
        items = [item for group in batches.plan(epoch) for item in group]
        sets = Counter(batches.samples[item.sample].dataset.id for item in items)
        assert sets == {"often": 3 * n, "half": round(n / 2), "mixed": n + round(n / 2)}
        half = [i.sample for i in items if batches.samples[i.sample].dataset.id == "half"]
        assert len(set(half)) == len(half)
    chosen = [{i.sample for g in batches.plan(e) for i in g if batches.samples[i.sample].dataset.id == "half"}
              for e in range(6)]  # fmt: skip
    assert len({frozenset(c) for c in chosen}) > 1
    assert batches.songs_per_epoch == songs_per_epoch(batches.samples) == sum(sets.values())


def test_variants_and_dropout_come_from_the_seed(root: Path, tiny_model: Path) -> None:
    batches = make(root, tiny_model, caption_dropout_probability=0.3)
    items = [item for epoch in range(150) for group in batches.plan(epoch) for item in group]
    assert {item.variant for item in items} == {0, 1, 2}
    text = np.mean([item.drop_text for item in items])
    lyrics = np.mean([item.drop_lyrics for item in items])
    both = np.mean([item.drop_text and item.drop_lyrics for item in items])
    assert abs(text - 0.3) < 0.05 and abs(lyrics - 0.3) < 0.05 and abs(both - 0.09) < 0.03
    assert len({item.seed for item in items}) == len(items)


def test_dropped_captions_and_lyrics(root: Path, tiny_model: Path) -> None:
    batches = make(root, tiny_model, caption_dropout_probability=1.0)
    for _ in range(5):
        batch = batches.next()
        assert not batch["text"].any().item() and not batch["lyric_ids"].any().item()
        assert batch["text_mask"].sum().item() > 0 and not batch["lyric_mask"].any().item()


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"train_batch_size": 2}, {"vae_cache_disable": True}, {"seed": 7}])
def test_resuming_is_exact_at_every_point(options: dict[str, Any], root: Path, tiny_model: Path) -> None:
    straight = make(root, tiny_model, {"repeats": 1}, {"id": "more", "probability": 0.5}, **options)
    states, seen = [], []
    for _ in range(25 if not options.get("vae_cache_disable") else 4):
        states.append(json.loads(json.dumps(straight.state())))
        seen.append(straight.next())
    for i, state in enumerate(states[::3]):
        again = make(root, tiny_model, {"repeats": 1}, {"id": "more", "probability": 0.5}, **options)
        again.next()
        assert again.restore(state) is None
        assert all(same(again.next(), want) for want in seen[3 * i : 3 * i + 3])
        again.close()


def test_a_changed_data_set_is_said(root: Path, tiny_model: Path) -> None:
    batches = make(root, tiny_model)
    for _ in range(9):
        batches.next()
    state = batches.state()
    other = make(root, tiny_model, {"max_num_samples": 5})
    note = other.restore(state)
    assert note is not None and "changed" in note and other.epoch == 1
    assert other.state()["position"] == 0
    assert make(root, tiny_model, learning_rate=1e-5).restore(state) is None
    assert make(root, tiny_model).restore({}) is not None


def test_the_order_is_named_by_the_songs_of_all_ranks(root: Path, tiny_model: Path) -> None:
    """Ranks share one order, so a checkpoint's place in it means the same however many they are."""

    def signature(size: int, world: int) -> str:
        return make(root, tiny_model, world=world, train_batch_size=size).signature

    assert signature(4, 1) == signature(2, 2) == signature(1, 4)
    assert len({signature(1, 1), signature(1, 2), signature(2, 2)}) == 3


@pytest.mark.parametrize(("world", "size"), [(2, 1), (2, 2), (3, 1), (4, 2)])
def test_ranks_share_the_batches_of_one(world: int, size: int, root: Path, tiny_model: Path) -> None:
    one = make(root, tiny_model, train_batch_size=world * size)
    ranks = [make(root, tiny_model, rank=r, world=world, train_batch_size=size) for r in range(world)]
    assert {r.batches_per_epoch for r in ranks} == {one.batches_per_epoch}
    for _ in range(2 * one.batches_per_epoch):
        whole, parts = one.next(), [r.next() for r in ranks]
        assert whole["ids"] == [name for part in parts for name in part["ids"]]
        for name in ARRAYS:
            joined = mx.concatenate([part[name] for part in parts])
            assert mx.array_equal(whole[name], joined).item(), name


def test_prefetching_changes_nothing(root: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ahead, alone = make(root, tiny_model), make(root, tiny_model)
    monkeypatch.setattr(alone, "_prefetch", lambda: None)
    for _ in range(12):
        assert same(ahead.next(), alone.next())
    assert ahead._waiting is not None and alone._waiting is None
    ahead.close()
    assert same(ahead.next(), alone.next())


def test_errors_of_the_reading_thread_arrive(
    root: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = make(root, tiny_model)
    batches.next()

    def fail(*_: object) -> dict[str, np.ndarray | None]:
        raise OSError("disk gone")

    monkeypatch.setattr(Cache, "read", fail)
    batches._waiting = None
    with pytest.raises(OSError, match="disk gone"):
        batches.next()


def test_the_evaluation_set_is_fixed(root: Path, tiny_model: Path) -> None:
    batches = make(root, tiny_model, caption_dropout_probability=1.0)
    first = batches.evaluation(3)
    batches.next()
    again = make(root, tiny_model, caption_dropout_probability=0.5, train_batch_size=2).evaluation(3)
    assert len(first) == 3 and all(same(a, b) for a, b in zip(first, again, strict=True))
    assert all(batch["text"].any().item() for batch in first)
    assert len(batches.evaluation(99)) == len(LENGTHS)


def test_songs_that_are_held_out_are_evaluated_and_never_drawn(root: Path, tmp_path: Path) -> None:
    """And change nothing else: not the order, not what is padded, not how long an epoch is."""
    (tmp_path / "songs").mkdir()
    for name in ("x", "y"):
        song(tmp_path / "songs", name, 9.0, caption="held out")

    def planned(*entries: dict[str, Any]) -> Batches:
        settings = config(root, *entries)
        found: Any = Lengths(build_manifest(settings).samples)
        return Batches(found, settings)

    apart = {"id": "apart", "dataset_type": "eval", "instance_data_dir": str(tmp_path / "songs")}
    plain, first, last = planned({}), planned(apart, {}), planned({}, apart)
    for batches in (first, last):
        names = [
            [[batches.samples[item.sample].id.replace("set1", "set") for item in group] for group in plan]
            for plan in map(batches.plan, range(3))
        ]
        assert names == [
            [[plain.samples[item.sample].id for item in group] for group in plan]
            for plan in map(plain.plan, range(3))
        ]
        assert batches.shapes == plain.shapes and batches.songs_per_epoch == plain.songs_per_epoch
        assert songs_per_epoch(batches.samples) == len(LENGTHS) and len(batches.held_out) == 2
    assert last.signature == plain.signature


def test_the_evaluation_is_of_songs_that_are_held_out(root: Path, tmp_path: Path, tiny_model: Path) -> None:
    (tmp_path / "songs").mkdir()
    song(tmp_path / "songs", "x", 3.0, caption="held out")
    apart = {"id": "apart", "dataset_type": "eval", "instance_data_dir": str(tmp_path / "songs")}
    batches = make(root, tiny_model, {}, apart)
    assert [batch["ids"] for batch in batches.evaluation(4)] == [["apart/x.wav"]]
    assert batches.evaluation(0) == []


@pytest.mark.slow
def test_songs_without_any_lyrics(tmp_path: Path, tiny_model: Path) -> None:
    (tmp_path / "songs").mkdir()
    song(tmp_path / "songs", "a")
    batch = make(tmp_path, tiny_model).next()
    assert batch["lyric_ids"].shape == (1, 0) == batch["lyric_mask"].shape


def test_plans_do_not_depend_on_what_was_asked_before(root: Path, tiny_model: Path) -> None:
    batches = make(root, tiny_model)
    late = batches.plan(5)
    batches.plan(0)
    assert batches.plan(5) == late
    assert isinstance(late[0][0], Item)


class Lengths:
    """What Batches needs of a cache to plan, without anything encoded."""

    family = V1

    def __init__(self, samples: list[Any]) -> None:
        self.samples = samples

    def text_length(self, sample: Any) -> int:
        return 5

    lyric_length = text_length


#: What the order of songs hangs on → whether it is a key of the data set or an option of the run.
ORDERING: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"repeats": 1}, {}),
    ({"probability": 0.5}, {}),
    ({"max_num_samples": 4}, {}),
    ({"audio": {"max_duration_seconds": 5}}, {}),
    ({"audio": {"max_duration_seconds": 5, "truncation_mode": "end"}}, {}),
    ({"caption_strategy": "filename"}, {}),
    ({"instance_prompt": "zyx", "prepend_instance_prompt": True}, {}),
    ({"audio": {"lyrics_suffix": ".none"}}, {}),
    ({}, {"seed": 7}),
    ({}, {"train_batch_size": 2}),
    ({}, {"caption_dropout_probability": 0.5}),
]


def test_a_change_of_what_is_drawn_begins_the_epoch_anew(root: Path) -> None:
    """Each of these is another order, or other words; so is each beside every other."""

    def planned(entry: dict[str, Any], options: dict[str, Any]) -> Batches:
        settings = config(root, entry, **options)
        found: Any = Lengths(build_manifest(settings).samples)
        return Batches(found, settings)

    found = [planned({}, {}), *(planned(*change) for change in ORDERING)]
    for i, one in enumerate(found):
        one._epoch, one._position = 2, 3
        state = json.loads(json.dumps(one.state()))
        for j, other in enumerate(found):
            said = other.restore(state)
            place = (other.state()["epoch"], other.state()["position"])
            assert (said is None) == (i == j), (i, j)
            assert place == ((2, 3) if i == j else (2, 0)), (i, j)
