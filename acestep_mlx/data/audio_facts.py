"""What a song's file really holds: content hash, length, and whether it can be trained on.

Every file is decoded once, in blocks; the facts are remembered in a small index keyed by size and
modification time, so that later starts only look at the clock. Headers are not trusted: a truncated file
says so here.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from ..audio import SILENCE, probe, read_audio
from ..errors import DataError
from .store import write_atomic

INDEX_VERSION = 1
_WINDOW = 20.0  # seconds decoded at a time
_SILENT_SHARE = 0.95  # of exactly zero samples, as upstream's data set class has it


class AudioRef(Protocol):
    """Where a song's bytes are."""

    @property
    def name(self) -> str: ...

    def stamp(self) -> str:
        """Changes when the content may have changed. DataError when the song is gone."""
        ...

    def open(self) -> contextlib.AbstractContextManager[Path]:
        """A file to read from, for as long as the context lasts."""
        ...


@dataclass(frozen=True)
class FileAudio:
    """A song in a file of its own."""

    path: Path

    @property
    def name(self) -> str:
        return str(self.path)

    def stamp(self) -> str:
        try:
            status = self.path.stat()
        except OSError as error:
            raise DataError(f"cannot read {self.path}: {error.strerror or error}") from None
        return f"{self.path}|{status.st_size}|{status.st_mtime_ns}"

    @contextlib.contextmanager
    def open(self) -> Iterator[Path]:
        yield self.path


@dataclass(frozen=True)
class BytesAudio:
    """A song stored inside a data set.

    `read` gives its bytes; they are put into a temporary file for decoding.
    """

    name: str
    version: str
    suffix: str
    read: Callable[[], bytes]

    def stamp(self) -> str:
        return f"{self.name}|{self.version}"

    @contextlib.contextmanager
    def open(self) -> Iterator[Path]:
        with tempfile.TemporaryDirectory(prefix="acestep-audio-") as folder:
            path = Path(folder) / f"audio{self.suffix}"
            path.write_bytes(self.read())
            yield path


@dataclass(frozen=True)
class AudioFacts:
    """content: SHA-256 of the bytes; duration: seconds as decoded; problem: why it cannot be used."""

    content: str
    duration: float
    problem: str | None = None


def examine(audio: AudioRef) -> AudioFacts:
    """Hash and decode a song. Never raises for a bad file: `problem` says what is wrong."""
    try:
        with audio.open() as path:
            content = hash_file(path)
            try:
                return AudioFacts(content, _decode_all(path))
            except DataError as error:
                return AudioFacts(content, 0.0, str(error).removeprefix(f"{path}: "))
    except DataError as error:
        return AudioFacts("", 0.0, str(error))
    except OSError as error:
        return AudioFacts("", 0.0, f"cannot be read: {error.strerror or error}")


def hash_file(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _decode_all(path: Path) -> float:
    """The decoded length in seconds. DataError: empty, damaged, truncated, silent or not finite."""
    info = probe(path)
    expected = info.duration if info.duration > 0 else math.inf  # raw AAC does not say
    decoded, zeros, peak, start = 0, 0, 0.0, 0.0
    while expected - start > 0.1:
        try:
            # the file's own rate: nothing is resampled only to be looked at
            block = read_audio(path, sample_rate=None, start=start, duration=_WINDOW)
        except DataError:
            if decoded and expected == math.inf:
                break  # the end of a file that does not know its length
            raise
        decoded += len(block)
        peak = max(peak, float(np.abs(block).max()))
        zeros += int((block == 0).all(axis=1).sum())
        start += _WINDOW
        if expected == math.inf and len(block) < _WINDOW * info.sample_rate:
            break
    if decoded == 0:
        raise DataError("holds no sound")
    if peak < SILENCE:
        raise DataError("silent")
    if zeros > _SILENT_SHARE * decoded:
        raise DataError(f"silent ({100 * zeros / decoded:.0f} % of it)")
    return decoded / info.sample_rate


class FactsIndex:
    """Facts by stamp, kept in a JSON file (or only in memory when path is None)."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._facts: dict[str, AudioFacts] = {}
        self._changed = False
        if path is not None and path.is_file():
            self._read(path)

    def _read(self, path: Path) -> None:
        """A damaged or older index is simply built again: it holds nothing that cannot be recomputed."""
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if content["version"] == INDEX_VERSION:
                self._facts = {stamp: AudioFacts(**facts) for stamp, facts in content["facts"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            self._facts = {}

    def look_up(
        self, songs: Sequence[AudioRef], progress: Callable[[int, int, str], None] | None = None
    ) -> list[AudioFacts]:
        """Facts of each song, examining those that are new or changed (on a few threads)."""
        stamps: list[str | None] = []
        found: list[AudioFacts | None] = []
        for song in songs:
            try:
                stamps.append(song.stamp())
            except DataError as error:
                stamps.append(None)
                found.append(AudioFacts("", 0.0, str(error)))
            else:
                found.append(self._facts.get(stamps[-1] or ""))
        waiting: dict[str, list[int]] = {}  # upstream's converter repeats a song's row a thousand times
        for i, facts in enumerate(found):
            if facts is None:
                waiting.setdefault(stamps[i] or "", []).append(i)
        firsts = [places[0] for places in waiting.values()]
        with ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as pool:
            results = pool.map(lambda i: examine(songs[i]), firsts)
            for done, (stamp, facts) in enumerate(zip(waiting, results, strict=True), 1):
                for i in waiting[stamp]:
                    found[i] = facts
                if facts.content:
                    self._facts[stamp] = facts
                    self._changed = True
                if progress is not None:
                    progress(done, len(firsts), songs[waiting[stamp][0]].name)
                if done % 200 == 0:
                    self.save()
        self.save()
        return [facts for facts in found if facts is not None]

    def save(self) -> None:
        """Write the index if something was learned."""
        if self.path is None or not self._changed:
            return
        content = {"version": INDEX_VERSION, "facts": {stamp: asdict(f) for stamp, f in self._facts.items()}}
        write_atomic(self.path, json.dumps(content).encode())
        self._changed = False
