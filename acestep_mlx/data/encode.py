"""Caches: latents, text states and lyric ids of every song, computed once.

Keys hold everything a result depends on: the file's content, the part that is used, the caption or lyrics,
and the fingerprint of the component that computes it. So nothing has to be invalidated: a changed file or
model is another key. Files are written atomically, so that a killed run loses at most the item in work. One
encoder is loaded at a time, only if something is missing, and freed afterwards.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from ..config.run import RunConfig
from ..errors import DataError
from ..families.folder import ModelFolder
from ..families.v1.codec import SAMPLE_RATE, Codec
from ..families.v1.lyrics import tokenizer as lyric_text
from ..families.v1.lyrics.report import summary as lyric_summary
from ..io.atomic import PREFIX, SUFFIX
from ..io.audio import is_silent, read_audio
from ..io.hashes import cache_key, hash_file
from ..io.progress import Advance, Progress, silent
from .cache import Store
from .facts import FactsIndex
from .manifest import Manifest, Sample, index_path, nothing_left

VERSION = 1  # of what is stored; raise it when the computation changes
MAX_TEXT_TOKENS = 256
Arrays = dict[str, np.ndarray]


class Cache:
    """Encoded songs. `samples` are those that can be trained on; `skipped` gains what failed while encoding.

    `read` only reads files and may run on another thread; `make` computes what is missing and must run where
    MLX runs. Latents are (8, 16, T) float16, text states (L, 768) float16, lyric ids (M,) int32.
    """

    def __init__(self, manifest: Manifest, config: RunConfig, folder: ModelFolder) -> None:
        self.folder = folder
        self.samples: list[Sample] = list(manifest.samples)
        self.skipped: list[tuple[str, str]] = list(manifest.skipped)
        self.report = manifest.report
        self._prints = dict(folder.fingerprints)
        self._prints["mel"] = cache_key(vocoder=folder.config["components"]["vocoder"])
        self._prints["tokenizer"] = hash_file(Path(folder.path) / "tokenizer.json")
        self._prints["lyric_vocab"] = hash_file(folder.lyric_vocab())
        self._stores: dict[tuple[Path | None, Path], Store] = {}
        self._compress = config.compress_disk_cache
        self._write_text = not config.vae_cache_disable
        self._lengths: dict[str, int] = {}
        self._codec: Codec | None = None
        self._index = index_path(config)
        self._awaited: set[str] = set()  # latents that are still to be encoded on demand

    # ── keys and places ──────────────────────────────────────────────────────────────────────────────
    def latent_key(self, sample: Sample) -> str:
        # Entries without this mark were cut by a length that a header guesses, or are of a damaged MP3.
        mark = {"decoded": "to the end"} if sample.misread else {}
        return self._latent_key(sample.content, (sample.start, sample.seconds), **mark)

    def _latent_key(self, content: str, part: tuple[float, float], **mark: str) -> str:
        return cache_key(
            kind="latents",
            version=VERSION,
            content=content,
            start=part[0],
            seconds=part[1],
            dcae=self._prints["dcae"],
            mel=self._prints["mel"],
            **mark,
        )

    def text_key(self, caption: str) -> str:
        return cache_key(
            kind="text",
            version=VERSION,
            caption=caption,
            tokens=MAX_TEXT_TOKENS,
            encoder=self._prints["text_encoder"],
            tokenizer=self._prints["tokenizer"],
        )

    def lyric_key(self, lyrics: str) -> str:
        return cache_key(
            kind="lyrics",
            version=[VERSION, lyric_text.RULES_VERSION],
            lyrics=lyrics,
            vocab=self._prints["lyric_vocab"],
        )

    def _store(self, sample: Sample, kind: str) -> Store:
        backend = sample.backend
        folder = backend.latent_dir if kind == "latents" else backend.text_dir
        on_disk = backend.cache_latents if kind == "latents" else self._write_text
        place = (folder if on_disk else None, folder)
        if place not in self._stores:
            self._stores[place] = Store(place[0], self._compress)
        return self._stores[place]

    # ── reading ──────────────────────────────────────────────────────────────────────────────────────
    def text_length(self, sample: Sample) -> int:
        """Tokens of the sample's longest caption."""
        return max(self._lengths[self.text_key(caption)] for caption in sample.captions)

    def lyric_length(self, sample: Sample) -> int:
        """Lyric tokens; 0 without lyrics."""
        return 0 if sample.lyrics is None else self._lengths[self.lyric_key(sample.lyrics)]

    def read(self, sample: Sample, variant: int) -> dict[str, np.ndarray | None]:
        """`latents`, `text`, `lyrics` as stored; None for what is missing. Reads files only."""
        lyrics: np.ndarray | None = np.zeros(0, np.int32)
        if sample.lyrics is not None:
            lyrics = _field(self._store(sample, "text").get(self.lyric_key(sample.lyrics)), "ids")
        return {
            "latents": self._latents(sample),
            "text": _field(
                self._store(sample, "text").get(self.text_key(sample.captions[variant])), "states"
            ),
            "lyrics": lyrics,
        }

    def _latents(self, sample: Sample) -> np.ndarray | None:
        """The stored latents, or None when they are missing or cannot be this song's."""
        found = _field(self._store(sample, "latents").get(self.latent_key(sample)), "latents")
        return found if found is not None and found.shape[2:] == (sample.frames,) else None

    def make(self, sample: Sample, variant: int) -> Arrays:
        """Like `read`, computing what is missing (on-demand caches, or files that vanished).

        DataError when the song cannot be read any more.
        """
        found = self.read(sample, variant)
        if found["lyrics"] is None:
            self._encode_lyrics([sample], silent)
        if found["text"] is None:
            self._encode_text([sample], silent)
        if found["latents"] is None:
            self._count_again(sample)
            try:
                sound = load_part(sample)
            except DataError:
                FactsIndex(self._index).forget([sample.audio])
                raise
            self._put_latents(sample, sound)
            self._awaited.discard(self.latent_key(sample))
            if not self._awaited:
                self.release()
        complete = {name: array for name, array in self.read(sample, variant).items() if array is not None}
        if len(complete) < len(found):
            raise DataError(f"{sample.id}: its cache files vanish right after they are written")
        return complete

    def release(self) -> None:
        """Free the codec that on-demand encoding keeps loaded."""
        if self._codec is not None:
            self._codec = None
            _free()

    @property
    def complete(self) -> bool:
        """Whether every latent is in the cache."""
        return all(self._latents(s) is not None for s in self.samples)

    # ── files ────────────────────────────────────────────────────────────────────────────────────────
    def files(self) -> set[Path]:
        """The cache files that this data needs (whether they are there or not)."""
        used: set[Path] = set()
        for sample in self.samples:
            latents, text = self._store(sample, "latents"), self._store(sample, "text")
            keys = [(latents, self.latent_key(sample))]
            keys += [(text, self.text_key(caption)) for caption in sample.captions]
            keys += [(text, self.lyric_key(sample.lyrics))] if sample.lyrics is not None else []
            used |= {store.path(key) for store, key in keys if store.folder is not None}
        return used

    def disk_usage(self) -> int:
        """Bytes of the cache files in use."""
        return sum(path.stat().st_size for path in self.files() if path.is_file())

    def prune(self) -> tuple[int, int]:
        """Delete cache files in the same folders that this data does not use; (files, bytes)."""
        used = self.files()
        folders = {store.folder for store in self._stores.values() if store.folder is not None}
        unused = [p for folder in folders for p in folder.glob("??/*.cache") if p not in used]
        unused += [p for folder in folders for p in folder.glob(f"??/{PREFIX}*{SUFFIX}")]  # of runs that died
        size = sum(path.stat().st_size for path in unused)
        for path in unused:
            path.unlink(missing_ok=True)
        return len(unused), size

    # ── encoding ─────────────────────────────────────────────────────────────────────────────────────
    def fill(self, progress: Progress, everything: bool = False) -> None:
        """Compute what is missing; latents of on-demand data sets only with `everything`."""
        self._encode_lyrics(self.samples, progress)
        self._encode_text(self.samples, progress)
        lazy = [] if everything else [s for s in self.samples if s.backend.ondemand]
        self._encode_latents([s for s in self.samples if everything or not s.backend.ondemand], progress)
        keys = {self.latent_key(sample): sample for sample in lazy}
        self._awaited = {key for key, s in keys.items() if self._latents(s) is None}
        if not self.samples:
            raise nothing_left(self.skipped)

    def _encode_lyrics(self, samples: Iterable[Sample], progress: Progress) -> None:
        """Lyric ids, with what the tokenizer remarks (cut, dropped or unspeakable lines) kept beside them."""
        missing: dict[tuple[str, Store], list[Sample]] = {}
        for sample in samples:
            if sample.lyrics is None:
                continue
            key, store = self.lyric_key(sample.lyrics), self._store(sample, "text")
            found = store.get(key)
            if found is None or "ids" not in found:
                self._count_damaged(sample, store, key)
                missing.setdefault((key, store), []).append(sample)
            else:
                self._learn(sample, key, len(found["ids"]), found.get("notes"))
        if not missing:
            return
        tokenizer = self.folder.lyric_tokenizer()
        for done, ((key, store), same) in enumerate(missing.items(), 1):
            report = tokenizer.report(str(same[0].lyrics))
            notes = _as_bytes([f"lyrics: {line}" for line in lyric_summary(report)[1:]])
            store.put(key, {"ids": np.array(report.ids, np.int32), "notes": notes})
            for sample in same:
                self._learn(sample, key, len(report.ids), notes)
            progress(Advance("lyrics", done, len(missing), note=same[0].id))

    def _encode_text(self, samples: Iterable[Sample], progress: Progress) -> None:
        missing: dict[tuple[str, Store], list[tuple[Sample, str]]] = {}
        for sample in samples:
            store = self._store(sample, "text")
            for caption in sample.captions:
                key = self.text_key(caption)
                found = store.get(key)
                if found is None or "states" not in found:
                    self._count_damaged(sample, store, key)
                    missing.setdefault((key, store), []).append((sample, caption))
                else:
                    self._learn(sample, key, len(found["states"]), found.get("notes"))
        if not missing:
            return
        tokenizer = self.folder.prompt_tokenizer()
        encoder = self.folder.load("text_encoder", dtype=mx.float32)
        for done, ((key, store), same) in enumerate(missing.items(), 1):
            sample, caption = same[0]
            ids, mask = tokenizer([caption], max_length=MAX_TEXT_TOKENS)
            states = np.array(encoder(ids, mask)[0].astype(mx.float32))  # [L, 768]
            if not np.isfinite(states).all():
                raise DataError(f"{sample.id}: the text encoder gives no finite values for {caption!r}")
            arrays = {"states": as_half(states)}
            if len(states) == MAX_TEXT_TOKENS:
                tokens = tokenizer([caption], max_length=1 << 16)[0].shape[1]
                if tokens > MAX_TEXT_TOKENS:
                    arrays["notes"] = _as_bytes([f"caption: cut to {MAX_TEXT_TOKENS} of {tokens} tokens"])
            store.put(key, arrays)
            for other, _ in same:
                self._learn(other, key, len(states), arrays.get("notes"))
            progress(Advance("captions", done, len(missing), note=sample.id))
        del encoder
        _free()

    def _learn(self, sample: Sample, key: str, length: int, notes: np.ndarray | None) -> None:
        """Remember a text's length, and tell the report what became of it."""
        self._lengths[key] = length
        for one in self.report.sets:
            if notes is not None and one.id == sample.backend.id:
                name = sample.id.removeprefix(f"{one.id}/")
                fresh = [(name, note) for note in json.loads(notes.tobytes())]
                one.notes += [note for note in fresh if note not in one.notes]

    def _encode_latents(self, samples: Sequence[Sample], progress: Progress) -> None:
        missing: dict[tuple[str, Store], Sample] = {}
        for sample in samples:
            key, store = self.latent_key(sample), self._store(sample, "latents")
            if self._latents(sample) is None:
                missing.setdefault((key, store), sample)
                self._count_again(sample)
        failed: dict[str, str] = {}
        for done, (sample, sound) in enumerate(_ahead(load_part_or_reason, list(missing.values())), 1):
            problem = sound if isinstance(sound, str) else None
            if not isinstance(sound, str):
                try:
                    self._put_latents(sample, sound)
                except NotFinite as error:
                    problem = str(error)
            if problem is not None:
                failed[self.latent_key(sample)] = problem
            progress(Advance("latents", done, len(missing), note=sample.id))
        self.release()
        if failed:
            FactsIndex(self._index).forget(s.audio for s in samples if self.latent_key(s) in failed)
            self._drop({s.id: failed[self.latent_key(s)] for s in samples if self.latent_key(s) in failed})

    def _count_damaged(self, sample: Sample, store: Store, key: str) -> None:
        """Report a song that has a file in the cache which cannot be used. Before it is written again."""
        for one in self.report.sets:
            if store.occupied(key) and one.id == sample.backend.id:
                found = (sample.id.removeprefix(f"{one.id}/"), "a cache file was damaged or another entry's")
                one.again += [found] if found not in one.again else []

    def _count_again(self, sample: Sample) -> None:
        """Report a song whose latents are in the cache, but damaged or of sound that was read wrongly."""
        self._count_damaged(sample, self._store(sample, "latents"), self.latent_key(sample))
        if sample.former is None:
            return
        if not self._store(sample, "latents").has(self._latent_key(sample.content, sample.former)):
            return
        for one in self.report.sets:
            if one.id == sample.backend.id:
                same = sample.former == (sample.start, sample.seconds)
                detail = f"{sample.former[1]:.2f} s were taken, {sample.seconds:.2f} s are there"
                detail = "some blocks were damaged" if same else detail
                one.again.append((sample.id.removeprefix(f"{one.id}/"), detail))

    def _drop(self, failed: dict[str, str]) -> None:
        self.samples = [sample for sample in self.samples if sample.id not in failed]
        self.skipped += list(failed.items())
        for one in self.report.sets:
            one.skipped += [
                (name.removeprefix(f"{one.id}/"), reason)
                for name, reason in failed.items()
                if name.startswith(f"{one.id}/")
            ]

    def _put_latents(self, sample: Sample, sound: np.ndarray) -> None:
        """Encode (samples, 2) float32 and store it. NotFinite when the encoder gives no numbers."""
        if self._codec is None:
            dcae: Any = self.folder.load("dcae", dtype=mx.float32)
            vocoder: Any = self.folder.load("vocoder", dtype=mx.float32)
            self._codec = Codec(dcae, vocoder)
        latents = np.array(self._codec.encode(sound, SAMPLE_RATE)[0].astype(mx.float32))  # [8, 16, T]
        mx.clear_cache()
        if not np.isfinite(latents).all():
            raise NotFinite(f"{sample.id}: the encoder gives values that are not finite")
        self._store(sample, "latents").put(self.latent_key(sample), {"latents": as_half(latents)})


class NotFinite(DataError):
    """The encoder gave NaN or infinity for a song."""


def encode_dataset(
    manifest: Manifest,
    config: RunConfig,
    folder: ModelFolder,
    progress: Progress = silent,
    *,
    everything: bool = False,
) -> Cache:
    """Fill the caches of a manifest and free the encoders.

    progress: told of each song, in the stages "lyrics", "captions" and "latents".
    everything: also encode the latents of data sets that are encoded on demand.
    Songs that vanished, changed or cannot be encoded are skipped, counted and named in `cache.skipped`;
    DataError when nothing is left, or when the disk is full.
    """
    cache = Cache(manifest, config, folder)
    cache.fill(progress, everything)
    return cache


def load_part(sample: Sample) -> np.ndarray:
    """The used part of a song: (samples, 2) float32 at 44.1 kHz, padded to `sample.samples`.

    DataError when the file is gone, damaged, silent in this part, or changed since it was looked at.
    """
    with sample.audio.open() as path:
        if hash_file(path) != sample.content:
            raise DataError(f"{sample.id}: changed while it was in use; start again")
        sound = read_audio(
            path, sample_rate=SAMPLE_RATE, channels=2, start=sample.start or None, duration=sample.seconds
        )
    if is_silent(sound):
        raise DataError(f"{sample.id}: silent in the part that is used")
    exact = np.zeros((sample.samples, 2), np.float32)
    kept = min(len(sound), len(exact))
    exact[:kept] = sound[:kept]
    return exact


def load_part_or_reason(sample: Sample) -> np.ndarray | str:
    """`load_part`, or why it failed."""
    try:
        return load_part(sample)
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


def _as_bytes(notes: list[str]) -> np.ndarray:
    return np.frombuffer(json.dumps(notes).encode(), np.uint8)


def _field(arrays: Arrays | None, name: str) -> np.ndarray | None:
    return None if arrays is None else arrays.get(name)


def _free() -> None:
    gc.collect()
    mx.clear_cache()
