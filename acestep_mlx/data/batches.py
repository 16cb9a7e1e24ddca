"""Batches in a seeded order: which songs, which caption variant, what is dropped, padded to which length.

The plan of an epoch is a pure function of (seed, epoch, songs), so the whole state is two counters,
resuming is exact, and every rank of a distributed run works out the same plan and takes its share of each
batch. Reading the caches happens one batch ahead on another thread and cannot change anything.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np

from ..config.run import RunConfig
from ..errors import CheckpointError, DataError
from ..families.songs import Arrays, CachedSong, Shape
from ..io.hashes import cache_key
from .encode import Cache
from .manifest import Sample, held_out

_ORDER, _NOISE, _PART = 1, 2, 3  # streams of random numbers

Batch = dict[str, Any]


@dataclass(frozen=True)
class Item:
    """One song in a batch. seed: two 32-bit words, a random key of its own whatever rank it lands on. start:
    the latent frame at which its part begins, where only a part of it is trained on.
    """

    sample: int
    variant: int
    drop_text: bool
    drop_lyrics: bool
    seed: tuple[int, int]
    start: int | None = None


@dataclass(frozen=True)
class Share:
    """A data set's part of an epoch: all its songs `whole` times, and `extra` of them once more."""

    songs: list[int]
    whole: int
    extra: int


def shares(samples: Sequence[Sample]) -> list[Share]:
    """What repeats and probability make of each data set that is trained on; indices into `samples`."""
    groups: dict[str, list[int]] = {}
    for i, sample in enumerate(samples):
        if not sample.dataset.held_out:
            groups.setdefault(sample.dataset.id, []).append(i)
    out = []
    for members in groups.values():
        dataset = samples[members[0]].dataset
        weight = (1 + dataset.repeats) * dataset.probability
        whole = math.floor(weight + 1e-9)
        out.append(Share(members, whole, round((weight - whole) * len(members))))
    return out


def songs_per_epoch(samples: Sequence[Sample]) -> int:
    """Songs seen in an epoch, repeats and probabilities counted; at least 1."""
    return max(1, sum(share.whole * len(share.songs) + share.extra for share in shares(samples)))


class Batches:
    """An endless, resumable sequence of batches.

    rank, world: which share of each global batch (train_batch_size × world) is ours.
    dropout: probability that a caption is dropped, and independently that lyrics are dropped.
    """

    def __init__(
        self,
        cache: Cache,
        config: RunConfig,
        seed: int | None = None,
        *,
        rank: int = 0,
        world: int = 1,
        dropout: float | None = None,
    ) -> None:
        self.cache = cache
        self.samples: Sequence[Sample] = cache.samples
        self.trained = [i for i, sample in enumerate(self.samples) if not sample.dataset.held_out]
        self.held_out = held_out(self.samples)
        if not self.trained:
            raise DataError("nothing to train on: the data set is empty")
        self.seed = config.seed if seed is None else seed
        self.batch_size = config.train_batch_size
        self.rank, self.world = rank, world
        self.dropout = config.caption_dropout_probability if dropout is None else dropout
        self.signature = cache_key(
            songs=[self.samples[i].key for i in self.trained],
            weights=[[d.repeats, d.probability] for d in (self.samples[i].dataset for i in self.trained)],
            dropout=self.dropout,
            batch=self.batch_size * world,
        )
        self._shapes = self._bucket_shapes(self.trained)
        self._epoch = self._position = 0
        self._plan: list[list[Item]] = []
        self._planned = -1
        self._pool: ThreadPoolExecutor | None = None
        self._waiting: tuple[int, int, Future[Arrays | None]] | None = None

    # ── order ────────────────────────────────────────────────────────────────────────────────────────
    @property
    def epoch(self) -> int:
        """Epoch of the next batch, from 0."""
        return self._epoch

    @property
    def batches_per_epoch(self) -> int:
        """Batches of this rank in an epoch."""
        return math.ceil(self.songs_per_epoch / (self.batch_size * self.world))

    @property
    def songs_per_epoch(self) -> int:
        """Songs seen in an epoch by all ranks, repeats and probabilities counted."""
        return songs_per_epoch(self.samples)

    @property
    def shapes(self) -> set[Shape]:
        """Padded shapes that batches of one bucket can have; each is one compiled graph."""
        return set(self._shapes.values())

    def plan(self, epoch: int) -> list[list[Item]]:
        """The global batches of an epoch: every rank's items, in order."""
        if epoch == self._planned:
            return self._plan
        rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([self.seed, epoch, _ORDER])))
        size = self.batch_size * self.world
        drawn: list[int] = []
        for share in shares(self.samples):
            drawn += share.songs * share.whole
            drawn += [share.songs[i] for i in rng.permutation(len(share.songs))[: share.extra]]
        if not drawn:
            drawn = [self.trained[int(rng.integers(len(self.trained)))]]
        order = [drawn[i] for i in rng.permutation(len(drawn))]
        groups = self._group(order, size)
        if len(groups[-1]) < size:
            fill = rng.integers(len(order), size=size - len(groups[-1]))
            groups[-1] += [order[i] for i in fill]
        groups = [groups[i] for i in rng.permutation(len(groups))]
        seeds = np.random.SeedSequence([self.seed, epoch, _NOISE]).generate_state(2 * size * len(groups))
        keys = [(int(a), int(b)) for a, b in seeds.reshape(-1, 2)]
        items = [
            [
                Item(
                    sample=index,
                    variant=int(rng.integers(len(self.samples[index].captions))),
                    drop_text=bool(rng.random() < self.dropout),
                    drop_lyrics=bool(rng.random() < self.dropout),
                    seed=keys[b * size + j],
                    start=part_start(self.samples[index], keys[b * size + j]),
                )
                for j, index in enumerate(group)
            ]
            for b, group in enumerate(groups)
        ]
        self._plan, self._planned = items, epoch
        return items

    def _group(self, order: list[int], size: int) -> list[list[int]]:
        """Groups of `size` from one bucket each; what is left over is grouped with its nearest lengths.

        Only the last group can be short.
        """
        groups: list[list[int]] = []
        buckets: dict[int, list[int]] = {}
        for index in order:
            bucket = buckets.setdefault(self.samples[index].bucket, [])
            bucket.append(index)
            if len(bucket) == size:
                groups.append(bucket.copy())
                bucket.clear()
        rest = [index for frames in sorted(buckets, reverse=True) for index in buckets[frames]]
        groups += [rest[i : i + size] for i in range(0, len(rest), size)]
        return groups

    def _bucket_shapes(self, songs: Iterable[int]) -> dict[int, Shape]:
        """The shape of each bucket of these songs: one, whatever is drawn."""
        shapes: dict[int, Shape] = {}
        padding = self.cache.family.padding
        for sample in (self.samples[i] for i in songs):
            text = _round_up(self.cache.text_length(sample), padding.text)
            lyrics = _round_up(self.cache.lyric_length(sample), padding.lyrics)
            own = Shape(sample.bucket, text, lyrics)
            shapes[sample.bucket] = _around([own, shapes.get(sample.bucket, own)])
        return shapes

    def shape(self, items: Sequence[Item]) -> Shape:
        """The padded lengths of a global batch."""
        return _around([self._shapes[self.samples[item.sample].bucket] for item in items])

    # ── batches ──────────────────────────────────────────────────────────────────────────────────────
    def next(self) -> Batch:
        """The next batch of this rank, B = train_batch_size.

        The arrays of the family's `collate`, and keys (B, 2) uint32, a random key per song; ids, the songs'
        names; epoch, position, seconds (of sound in the batch). DataError when a song's caches are gone and
        it cannot be read any more.
        """
        epoch, position = self._epoch, self._position
        items, shape = self._share(epoch, position)
        arrays = self._take(epoch, position) or self._prepare(items, shape)
        if arrays is None:  # something has to be encoded, and that needs MLX: on this thread
            stored = [self.cache.make(self.samples[i.sample], i.variant, i.start) for i in items]
            arrays = self._collate(items, stored, shape)
        batch = to_batch(arrays, [self.samples[item.sample] for item in items])
        batch["epoch"], batch["position"] = epoch, position
        self._epoch, self._position = self._after(epoch, position)
        self._prefetch()
        return batch

    def _after(self, epoch: int, position: int) -> tuple[int, int]:
        return (epoch, position + 1) if position + 1 < self.batches_per_epoch else (epoch + 1, 0)

    def _share(self, epoch: int, position: int) -> tuple[list[Item], Shape]:
        """This rank's items of a global batch, and the padded lengths of the whole."""
        group = self.plan(epoch)[position]
        return group[self.rank * self.batch_size : (self.rank + 1) * self.batch_size], self.shape(group)

    def _prepare(self, items: Sequence[Item], shape: Shape) -> Arrays | None:
        """The batch from the caches, or None when something is missing there. NumPy and files only."""
        stored = [self.cache.read(self.samples[i.sample], i.variant, i.start) for i in items]
        complete = [{k: v for k, v in one.items() if v is not None} for one in stored]
        if any(len(one) < len(full) for one, full in zip(complete, stored, strict=True)):
            return None
        return self._collate(items, complete, shape)

    def _collate(self, items: Sequence[Item], stored: Sequence[Arrays], shape: Shape) -> Arrays:
        """Stored arrays of each song → padded arrays of a batch; see `next`."""
        family, songs = self.cache.family, []
        for item, arrays in zip(items, stored, strict=True):
            if item.start is not None:
                arrays = family.crop(arrays, item.start, self.samples[item.sample].part)
            songs.append(CachedSong(arrays, item.drop_text, item.drop_lyrics))
        keys = np.array([item.seed for item in items], np.uint32)
        return {**family.collate(songs, shape), "keys": keys}

    def _take(self, epoch: int, position: int) -> Arrays | None:
        waiting, self._waiting = self._waiting, None
        if waiting is not None and waiting[:2] == (epoch, position):
            return waiting[2].result()
        return None

    def _prefetch(self) -> None:
        if self._pool is None:
            self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="batches")
        items, shape = self._share(self._epoch, self._position)
        self._waiting = (self._epoch, self._position, self._pool.submit(self._prepare, items, shape))

    def close(self) -> None:
        """Stop the reading thread and free the codec, if on-demand encoding holds one."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = self._waiting = None
        self.cache.release()

    def evaluation(self, count: int) -> list[Batch]:
        """A fixed set of `count` songs, of those that are held out where there are any, one per batch: first
        caption, nothing dropped, always the same, and always the same part of each that is cropped.
        """
        songs = self.held_out or self.trained
        shapes = self._bucket_shapes(songs)
        rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([self.seed, _ORDER])))
        chosen = sorted(songs[i] for i in rng.permutation(len(songs))[:count])
        seeds = np.random.SeedSequence([self.seed, _NOISE]).generate_state(2 * len(chosen))
        batches = []
        for n, index in enumerate(chosen):
            sample, key = self.samples[index], (int(seeds[2 * n]), int(seeds[2 * n + 1]))
            item = Item(index, 0, False, False, key, part_start(sample, key))
            stored = self.cache.make(sample, 0, item.start)
            stored = {name: array for name, array in stored.items() if name not in self.cache.heard}
            batch = to_batch(self._collate([item], [stored], shapes[sample.bucket]), [sample])
            batch["of"] = [sample.key, item.start]
            batches.append(batch)
        return batches

    # ── state ────────────────────────────────────────────────────────────────────────────────────────
    def state(self) -> dict[str, Any]:
        """What `restore` needs; JSON types."""
        return {
            "seed": self.seed,
            "epoch": self._epoch,
            "position": self._position,
            "signature": self.signature,
        }

    def restore(self, state: dict[str, Any]) -> str | None:
        """Go on where `state` was taken.

        Returns None when the continuation is exact. When songs, captions or batch settings changed since, the
        epoch is begun anew with the new songs and a sentence that says so is returned. CheckpointError for a
        position that no epoch has.
        """
        with contextlib.suppress(KeyError):
            if state["signature"] == self.signature and state["seed"] == self.seed:
                if not state["position"] < self.batches_per_epoch:
                    raise CheckpointError(
                        f"the checkpoint stands at batch {state['position'] + 1} of an epoch, and there are "
                        f"{self.batches_per_epoch}: its batches.position is damaged"
                    )
                self._epoch, self._position = int(state["epoch"]), int(state["position"])
                self._waiting = None
                return None
        self._epoch, self._position, self._waiting = int(state.get("epoch", 0)), 0, None
        return (
            f"the data changed since the checkpoint; epoch {self._epoch + 1} begins anew with the new songs"
        )


def part_start(sample: Sample, key: tuple[int, int]) -> int | None:
    """The latent frame at which the part of a song begins, drawn from the song's own key; None where all of
    it is trained on.
    """
    if not sample.is_cropped:
        return None
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([*key, _PART])))
    if starts := sample.starts:
        return starts[int(rng.integers(len(starts)))]
    return int(rng.integers(sample.frames - sample.part + 1))


def to_batch(arrays: Arrays, samples: Sequence[Sample]) -> Batch:
    """Padded arrays as MLX arrays, with the songs' names and their seconds of sound."""
    batch: Batch = {name: mx.array(array) for name, array in arrays.items()}
    batch["ids"] = [sample.id for sample in samples]
    batch["seconds"] = sum(sample.at_once for sample in samples)
    return batch


def _round_up(length: int, step: int) -> int:
    return -(-length // step) * step


def _around(shapes: Sequence[Shape]) -> Shape:
    """The smallest shape that holds all of these."""
    return Shape(*map(max, zip(*shapes, strict=True)))
