"""Caches: what a model's family keeps of the sound, the captions and the lyrics of every song, computed once.

Keys hold everything a result depends on: the file's content, the part that is used, the caption or lyrics,
and the fingerprint of the component that computes it. So nothing has to be invalidated: a changed file or
model is another key. Files are written atomically, so that a killed run loses at most the item in work. One
encoder is loaded at a time, only if something is missing, and freed afterwards.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..config.run import RunConfig
from ..errors import DataError, cause
from ..families.model_folder import ModelFolder
from ..families.songs import Arrays, PartEncoder, Words
from ..formatting import duration
from ..io.atomic import PREFIX, SUFFIX
from ..io.audio import is_silent, read_audio
from ..io.hashes import cache_key, hash_file
from ..io.progress import Advance, Progress, silent
from .cache import Store, describe
from .facts import MISREAD, MISREAD_OGG, FactsIndex
from .manifest import Manifest, Sample, held_out, index_path, nothing_left
from .places import use
from .summary import SetReport

_NOTES = "notes"  # an entry's remarks, beside its arrays
#: parts that are encoded from words, in this order → what progress calls them
STAGES = {"lyrics": "encoding lyrics", "text": "encoding captions"}
SOUND = "encoding songs"


class Cache:
    """Encoded songs. `samples` are those that can be trained on; `skipped` gains what failed while encoding.

    `read` only reads files and may run on another thread; `make` computes what is missing and must run where
    MLX runs. `kind` is the name of a part in `families.songs.SongEncoders`.
    """

    def __init__(
        self, manifest: Manifest, config: RunConfig, folder: ModelFolder, progress: Progress = silent
    ) -> None:
        self.folder = folder
        self.samples: list[Sample] = list(manifest.samples)
        self.skipped: list[tuple[str, str]] = list(manifest.skipped)
        self.report = manifest.report
        self.family = manifest.family
        encoders = self.family.encoders._asdict()
        self._encoders: dict[str, PartEncoder[Any]] = {name: one(folder) for name, one in encoders.items()}
        further = self.family.further
        wanted = further is not None and further.wanted(config)
        #: what a further loss needs of a song's sound, by name
        self.heard = further.parts(config, folder, progress) if further is not None and wanted else {}
        self._encoders |= self.heard
        self._stores: dict[tuple[Path | None, Path, bool], Store] = {}
        self._compress = config.compress_disk_cache
        self._write_text = not config.vae_cache_disable
        self._lengths: dict[str, int] = {}
        self._index = index_path(config)
        self._used: set[Path] = set()  # folders that are held
        self._awaited: set[str] = set()  # parts of sounds that are still to be encoded on demand

    # ── keys and places ──────────────────────────────────────────────────────────────────────────────
    def latent_key(self, sample: Sample) -> str:
        # Entries without this mark are of a sound that was cut, damaged, or taken at too low a rate.
        mark = {"decoded": sample.misread} if sample.misread else {}
        return self._latent_key(sample, (sample.start, sample.seconds), **mark)

    def _latent_key(self, sample: Sample, part: tuple[float, float], **mark: str) -> str:
        parts = self._encoders["latents"].key(sample.words()) or {}
        return self._hashed("latents", parts, content=sample.content, start=part[0], seconds=part[1], **mark)

    def key(self, kind: str, sample: Sample, variant: int = 0, start: int | None = None) -> str | None:
        """The key of a part of the song, with one of its captions. None where the song has no such part.

        start: the latent frame that the part begins at which is trained on.
        """
        if kind == "latents":
            return self.latent_key(sample)
        parts = self._encoders[kind].key(sample.words(variant, start))
        if kind in self.heard:
            sound = {"content": sample.content, "start": sample.start, "seconds": sample.seconds}
            return self._hashed(kind, parts or {}, **sound)
        return None if parts is None else self._hashed(kind, parts)

    def _hashed(self, kind: str, parts: Mapping[str, Any], **more: Any) -> str:
        return cache_key(kind=kind, **self.family.key_mark, **parts, **more)

    def _keys(self, kind: str, sample: Sample) -> dict[str, Words]:
        """Each key that a part of the song has, with the words that it is of."""
        starts = sample.starts if kind == "lyrics" and sample.starts else (None,)
        places = [(variant, start) for variant in range(len(sample.captions)) for start in starts]
        found = {self.key(kind, sample, *place): sample.words(*place) for place in places}
        return {key: words for key, words in found.items() if key is not None}

    def _store(self, sample: Sample, kind: str) -> Store:
        dataset = sample.dataset
        folder = dataset.latent_dir if kind == "latents" else dataset.text_dir
        on_disk = dataset.cache_latents if kind in self._of_sound else self._write_text
        if kind in self.heard:
            folder = dataset.latent_dir / kind
        # Sound takes minutes to encode, and its length tells most entries apart; words do neither.
        signed = kind != "latents"
        place = (folder if on_disk else None, folder, signed)
        if place not in self._stores:
            self._stores[place] = Store(place[0], self._compress, signed, self.family.name)
        return self._stores[place]

    @property
    def _of_sound(self) -> tuple[str, ...]:
        """The parts that are made of a song's sound."""
        return ("latents", *self.heard)

    # ── reading ──────────────────────────────────────────────────────────────────────────────────────
    def encoded(self) -> set[str]:
        """The songs, by id, of whose sound everything is there."""
        return {s.id for s in self.samples if not any(self._lacks(kind, s) for kind in self._of_sound)}

    def text_length(self, sample: Sample) -> int:
        """Tokens of the sample's longest caption."""
        return max(self._lengths[key] for key in self._keys("text", sample))

    def lyric_length(self, sample: Sample) -> int:
        """Lyric tokens; 0 without lyrics."""
        return max((self._lengths[key] for key in self._keys("lyrics", sample)), default=0)

    def read(self, sample: Sample, variant: int, start: int | None = None) -> dict[str, np.ndarray | None]:
        """The arrays of all parts as stored; None for what is missing. Reads files only."""
        return {
            k: v for kind in self._encoders for k, v in self._stored(kind, sample, variant, start).items()
        }

    def _stored(
        self, kind: str, sample: Sample, variant: int = 0, start: int | None = None
    ) -> dict[str, np.ndarray | None]:
        """The arrays of a part, or None where they are missing or cannot be this song's."""
        names, key = self._encoders[kind].names, self.key(kind, sample, variant, start)
        if key is None:
            return dict.fromkeys(names, np.zeros(0, np.int32))
        found = self._store(sample, kind).get(key) or {}
        if kind == "latents":
            found = {name: array for name, array in found.items() if _fits(array, sample)}
        if kind in self.heard:
            part = self.heard[kind]
            found = {k: v for k, v in found.items() if part.fits(v, sample.samples_at(part.rate))}
        return {name: found.get(name) for name in names}

    def _lacks(self, kind: str, sample: Sample, variant: int = 0, start: int | None = None) -> bool:
        return any(array is None for array in self._stored(kind, sample, variant, start).values())

    def make(self, sample: Sample, variant: int, start: int | None = None) -> Arrays:
        """Like `read`, computing what is missing (on-demand caches, or files that vanished).

        DataError when the song cannot be read any more.
        """
        for kind in STAGES:
            if self._lacks(kind, sample, variant, start):
                self._encode_words(kind, [sample], silent)
        for kind in self._of_sound:
            if self._lacks(kind, sample):
                self._make_of_sound(kind, sample)
        found = self.read(sample, variant, start)
        complete = {name: array for name, array in found.items() if array is not None}
        if len(complete) < len(found):
            raise DataError(f"{sample.id}: its cache files vanish right after they are written")
        return complete

    def _make_of_sound(self, kind: str, sample: Sample) -> None:
        self._count_again(kind, sample)
        try:
            sound = load_part(sample, self._rate(kind))
        except DataError:
            FactsIndex(self._index).forget([sample.audio])
            raise
        self._put(kind, sample, str(self.key(kind, sample)), sound)
        self._awaited.discard(str(self.key(kind, sample)))
        if not self._awaited:
            self.release()

    def _rate(self, kind: str) -> int | None:
        """Hz of the sound that a part is made of; None for the model's."""
        return self.heard[kind].rate if kind in self.heard else None

    def release(self) -> None:
        """Free what on-demand encoding keeps loaded."""
        for kind in self._of_sound:
            self._encoders[kind].release()

    # ── files ────────────────────────────────────────────────────────────────────────────────────────
    def files(self) -> set[Path]:
        """The cache files that this data needs (whether they are there or not)."""
        used: set[Path] = set()
        for sample in self.samples:
            for kind in self._encoders:
                store = self._store(sample, kind)
                if store.folder is not None:
                    used |= {store.path(key) for key in self._keys(kind, sample)}
        return used

    def disk_usage(self) -> int:
        """Bytes of the cache files in use."""
        return sum(path.stat().st_size for path in self.files() if path.is_file())

    def prune(self) -> tuple[int, int]:
        """Delete this family's cache files in the same folders that this data does not use; (files, bytes).

        What does not say whose it is, as entries of 0.1, is known by the arrays that it holds.
        """
        used = self.files()
        own = {frozenset(encoder.names) for encoder in self._encoders.values()}

        def ours(path: Path) -> bool:
            family, names = describe(path)
            return family == self.family.name or (family is None and names - {_NOTES} in own)

        folders = {store.folder for store in self._stores.values() if store.folder is not None}
        unused = [p for folder in folders for p in folder.glob("??/*.cache") if p not in used and ours(p)]
        unused += [p for folder in folders for p in folder.glob(f"??/{PREFIX}*{SUFFIX}")]  # of runs that died
        size = sum(path.stat().st_size for path in unused)
        for path in unused:
            path.unlink(missing_ok=True)
        return len(unused), size

    # ── encoding ─────────────────────────────────────────────────────────────────────────────────────
    def fill(self, progress: Progress, everything: bool = False) -> None:
        """Compute what is missing; what is made of sound only with `everything` for on-demand data sets."""
        evaluated = held_out(self.samples)
        for store in {self._store(sample, kind) for sample in self.samples for kind in self._encoders}:
            self._use(store)
        for kind in STAGES:
            self._encode_words(kind, self.samples, progress)
        for kind in self._of_sound:
            now = [s for s in self.samples if everything or not s.dataset.ondemand]
            self._encode_sounds(kind, now, progress)
        lazy = [] if everything else [s for s in self.samples if s.dataset.ondemand]
        self._awaited = {
            str(self.key(kind, s)) for s in lazy for kind in self._of_sound if self._lacks(kind, s)
        }
        if all(sample.dataset.held_out for sample in self.samples):
            raise nothing_left(self.skipped)
        if evaluated and not held_out(self.samples):
            raise nothing_left(self.skipped, "evaluate")

    def _encode_words(self, kind: str, samples: Iterable[Sample], progress: Progress) -> None:
        """Captions or lyrics, with what there is to remark about them kept beside them."""
        encoder = self._encoders[kind]
        missing: dict[tuple[str, Store], tuple[Words, list[Sample]]] = {}
        for sample in samples:
            store = self._store(sample, kind)
            for key, words in self._keys(kind, sample).items():
                found = store.get(key)
                if found is None or any(name not in found for name in encoder.names):
                    self._count_damaged(sample, store, key)
                    missing.setdefault((key, store), (words, []))[1].append(sample)
                else:
                    self._learn(kind, sample, key, found)
        if missing:
            progress(Advance(STAGES[kind], 0, len(missing)))
        for done, ((key, _), (words, same)) in enumerate(missing.items(), 1):
            stored = self._put(kind, same[0], key, words)
            for sample in same:
                self._learn(kind, sample, key, stored)
            progress(Advance(STAGES[kind], done, len(missing), note=same[0].id))
        encoder.release()

    def _put(self, kind: str, sample: Sample, key: str, given: np.ndarray | Words) -> Arrays:
        """Encode a part of the song and store it. DataError when the encoder gives no numbers."""
        arrays, notes = self._encoders[kind].encode(given)
        if not all(np.isfinite(array).all() for array in arrays.values()):
            if isinstance(given, Words):
                what = f" for {given.caption!r}" if kind == "text" else ""
                raise DataError(f"{sample.id}: the {kind} encoder gives no finite values{what}")
            raise NotFinite(f"{sample.id}: the encoder gives values that are not finite")
        stored = {name: as_half(x) if x.dtype.kind == "f" else x for name, x in arrays.items()}
        if notes is not None:
            stored[_NOTES] = np.frombuffer(json.dumps(notes).encode(), np.uint8)
        store = self._store(sample, kind)
        store.put(key, stored)
        self._use(store)
        return stored

    def _use(self, store: Store) -> None:
        """Nobody removes what is in a store's folder, from when it is there."""
        if store.folder is not None and store.folder not in self._used and store.folder.is_dir():
            self._used.add(store.folder)
            use(store.folder, self)

    def _learn(self, kind: str, sample: Sample, key: str, stored: Arrays) -> None:
        """Remember a text's length, and tell the report what became of it."""
        self._lengths[key] = len(stored[self._encoders[kind].names[0]])
        one, name = self._report(sample)
        if (notes := stored.get(_NOTES)) is not None:
            fresh = [(name, note) for note in json.loads(notes.tobytes())]
            one.notes += [note for note in fresh if note not in one.notes]

    def _report(self, sample: Sample) -> tuple[SetReport, str]:
        """The report of the song's data set, and what the song is called there."""
        one = next(one for one in self.report.sets if one.id == sample.dataset.id)
        return one, sample.id.removeprefix(f"{one.id}/")

    def _encode_sounds(self, kind: str, samples: Sequence[Sample], progress: Progress) -> None:
        """A part of the songs that is made of their sound; songs of which it cannot be made are left out."""
        missing: dict[tuple[str, Store], Sample] = {}
        for sample in samples:
            if self._lacks(kind, sample):
                missing.setdefault((str(self.key(kind, sample)), self._store(sample, kind)), sample)
                self._count_again(kind, sample)
        failed: dict[str, str] = {}
        load = partial(load_part_or_reason, rate=self._rate(kind))
        stage = f"encoding songs with {self.heard[kind].title}" if kind in self.heard else SOUND
        if missing:
            progress(Advance(stage, 0, len(missing), note=next(iter(missing.values())).id))
        for done, (sample, sound) in enumerate(_ahead(load, list(missing.values())), 1):
            key, problem = str(self.key(kind, sample)), sound if isinstance(sound, str) else None
            if not isinstance(sound, str):
                self._encoders[kind].progress = _within(progress, stage, done - 1, len(missing), sample)
                try:
                    self._put(kind, sample, key, sound)
                except NotFinite as error:
                    problem = str(error)
            if problem is not None:
                failed[key] = problem
            progress(Advance(stage, done, len(missing), note=sample.id))
        self._encoders[kind].progress = silent
        self._encoders[kind].release()
        lost = [sample for sample in samples if self.key(kind, sample) in failed] if failed else []
        if lost:
            FactsIndex(self._index).forget(sample.audio for sample in lost)
        for sample in lost:
            reason = failed[str(self.key(kind, sample))]
            one, name = self._report(sample)
            one.skipped.append((name, reason))
            self.skipped.append((sample.id, reason))
            self.samples.remove(sample)

    def _count_damaged(self, sample: Sample, store: Store, key: str) -> None:
        """Report a song that has a file in the cache which cannot be used. Before it is written again."""
        one, name = self._report(sample)
        found = (name, "a cache file was damaged or another entry's")
        if store.occupied(key) and found not in one.again:
            one.again.append(found)

    def _count_again(self, kind: str, sample: Sample) -> None:
        """Report a song of which this is in the cache, but damaged or of sound that was read wrongly."""
        store, part = self._store(sample, kind), sample.former
        self._count_damaged(sample, store, str(self.key(kind, sample)))
        if part is None or kind != "latents":
            return
        former = [self._latent_key(sample, part), self._latent_key(sample, part, decoded=MISREAD)]
        if any(store.has(key) for key in former):
            one, name = self._report(sample)
            detail = f"{part[1]:.2f} s were taken, {sample.seconds:.2f} s are there"
            if part == (sample.start, sample.seconds):
                lost = sample.misread == MISREAD_OGG
                detail = "some of its sound was lost" if lost else "some blocks were damaged"
            one.again.append((name, detail))


class NotFinite(DataError):
    """The encoder gave NaN or infinity for a song's sound."""


def encode_dataset(
    manifest: Manifest,
    config: RunConfig,
    folder: ModelFolder,
    progress: Progress = silent,
    *,
    everything: bool = False,
) -> Cache:
    """Fill the caches of a manifest and free the encoders.

    progress: told of each song, in stages of lyrics, captions, sound, and what a further loss needs; of long
    songs several times.
    everything: also encode the latents of data sets that are encoded on demand.
    Songs that vanished, changed or cannot be encoded are skipped, counted and named in `cache.skipped`;
    DataError when nothing is left, or when the disk is full.
    """
    cache = Cache(manifest, config, folder, progress)
    cache.fill(progress, everything)
    return cache


def _within(progress: Progress, stage: str, before: int, total: int, sample: Sample) -> Progress:
    """Of a song that is encoded after so many of `total` ones: how far in it, as people count."""

    def tell(advance: Advance) -> None:
        share = advance.done / advance.total
        if share < 1:
            at = f"{duration(share * sample.seconds)} of {duration(sample.seconds)} of {sample.id}"
            progress(Advance(stage, before + share, total, note=at))

    return tell


def load_part(sample: Sample, rate: int | None = None) -> np.ndarray:
    """The used part of a song: (samples, 2) float32 at `rate` Hz or the model's, padded where it is short.

    DataError when the file is gone, damaged, silent in this part, or changed since it was looked at.
    """
    with sample.audio.open() as path:
        try:
            content = hash_file(path)
        except OSError as error:
            raise DataError(f"{sample.id}: cannot be read: {cause(error)}") from None
        if content != sample.content:
            raise DataError(f"{sample.id}: changed while it was in use; start again")
        rate, start = rate or sample.latents.sample_rate, sample.start or None
        sound = read_audio(path, sample_rate=rate, channels=2, start=start, duration=sample.seconds)
    if is_silent(sound):
        raise DataError(f"{sample.id}: silent in the part that is used")
    length = sample.samples if rate == sample.latents.sample_rate else sample.samples_at(rate)
    exact = np.zeros((length, 2), np.float32)
    kept = min(len(sound), len(exact))
    exact[:kept] = sound[:kept]
    return exact


def load_part_or_reason(sample: Sample, rate: int | None = None) -> np.ndarray | str:
    """`load_part`, or why it failed."""
    try:
        return load_part(sample, rate)
    except DataError as error:
        return str(error).removeprefix(f"{sample.id}: ")
    except OSError as error:
        return f"cannot be read: {error.strerror or error}"


def as_half(array: np.ndarray) -> np.ndarray:
    """float16, or float32 where half precision would overflow."""
    return array.astype(np.float16) if np.abs(array).max(initial=0.0) < 65504 else array.astype(np.float32)


def _ahead(
    work: Callable[[Sample], np.ndarray | str], samples: Sequence[Sample]
) -> Iterator[tuple[Sample, np.ndarray | str]]:
    """`work` on each sample, one sample ahead on another thread: a song is decoded while one is encoded."""
    with ThreadPoolExecutor(max_workers=1) as pool:
        waiting = pool.submit(work, samples[0]) if samples else None
        for i, sample in enumerate(samples):
            assert waiting is not None
            result = waiting.result()
            waiting = pool.submit(work, samples[i + 1]) if i + 1 < len(samples) else None
            yield sample, result


def _fits(array: np.ndarray, sample: Sample) -> bool:
    """Whether these latents are as long as the song."""
    shape = sample.latents.shape
    return array.ndim == len(shape) and array.shape[sample.latents.time_axis] == sample.frames
