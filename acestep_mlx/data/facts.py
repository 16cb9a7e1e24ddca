"""What a song's file really holds: content hash, length, and whether it can be trained on.

Every file is decoded once, in blocks; the facts are remembered in a small index keyed by size, modification
time and the hash of some blocks, so that later starts read little. Headers are not trusted: a length that is
only guessed is counted, and a truncated file says so here.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
import tempfile
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ..errors import DataError, cause
from ..formatting import duration
from ..io import schema
from ..io.audio import MPEG, SILENCE, counted, decode, look, said
from ..io.hashes import hash_blocks, hash_file, hash_text
from ..io.losses import Losses
from ..io.ogg_rims import opus_rate
from ..io.progress import Advance, Progress, silent
from .cache import write_atomic

MAX_INDEX = 1 << 30  # bytes
LOOKING = "looking at songs"
WATCHED = 2.0  # seconds after which it is told how far a song is that is still examined
# 1 took lengths that headers guess, damaged MP3s, and knew no blocks; 2 took Opus at its header's rate;
# 3 said nothing of packets that are lost.
INDEX_VERSION = 4
BLOCKS = 16  # read of each song on every start
MISREAD, MISREAD_OGG = "to the end", "to the end, at 48 kHz"  # by version 1, by version 2
OPUS_RATES = (8000, 12000, 16000, 24000)  # in a header, which version 2 took for the sound's
LOUD = 1.5  # of full scale: lossy formats come back a little above 1
SILENT = "silent"  # a problem of songs that can be read
_SILENT_SHARE = 0.95  # of exactly zero samples, as upstream's data set class has it


class AudioRef(Protocol):
    """Where a song's bytes are."""

    @property
    def name(self) -> str: ...

    def stamp(self) -> str:
        """Changes when the content may have changed. DataError when the song is gone."""

    def open(self) -> contextlib.AbstractContextManager[Path]:
        """A file to read from, for as long as the context lasts."""


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
            if not stat.S_ISREG(status.st_mode):
                raise DataError(f"cannot read {self.path}: not a file")
            with schema.open_file(self.path) as file:
                blocks = hash_blocks(status.st_size, lambda at, n: os.pread(file.fileno(), n, at), BLOCKS)
        except OSError as error:
            raise DataError(f"cannot read {self.path}: {cause(error)}") from None
        return f"{self.path}|{status.st_size}|{status.st_mtime_ns}|{blocks}"

    @contextlib.contextmanager
    def open(self) -> Iterator[Path]:
        yield self.path


@dataclass(frozen=True)
class BytesAudio:
    """A song stored inside a data set.

    `read` gives its bytes; they are put into a temporary file for decoding. `version` changes with the
    content, ending in the hash of some blocks.
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


MAX_DURATION = 1e6  # seconds, eleven days: no song has more, so an index that says so is damaged


@dataclass(frozen=True)
class AudioFacts:
    """content: SHA-256 of the bytes; duration: seconds as decoded; problem: why it cannot be used.

    counted: why the length that the file gives was not taken, or None. misread: how such a song is read since
    an earlier version of the index read it wrongly, a word for the cache's keys: a counted one, or an MP3.
    former: the length in seconds that the earlier version took, or None. peak: of its samples, where that is
    far above full scale, so that it is audible that they are cut off there. lost: what little of it could not
    be decoded.
    """

    content: str
    duration: float
    problem: str | None = None
    counted: str | None = None
    misread: str = ""
    former: float | None = None
    peak: float | None = None
    lost: str | None = None

    @classmethod
    def from_dict(cls, raw: Any) -> AudioFacts:
        """Facts as the index holds them. ValueError or TypeError when they are not."""
        facts = cls(**raw)
        numbers = [facts.duration, facts.former or 0.0, facts.peak or 0.0]
        texts = [facts.content, facts.problem or "", facts.counted or "", facts.misread, facts.lost or ""]
        if not all(isinstance(text, str) for text in texts):
            raise ValueError("not a text")
        if not all(type(n) in (int, float) and 0 <= n <= MAX_DURATION for n in numbers):
            raise ValueError("not a length")
        return facts

    def checksum(self, stamp: str) -> str:
        """What an index keeps beside the facts of the song with this stamp, so that an edited entry shows."""
        own = asdict(self)
        return hash_text(json.dumps([stamp, own], sort_keys=True))[:16]


def examine(audio: AudioRef, heard: Callable[[float], None] = lambda seconds: None) -> AudioFacts:
    """Hash and decode a song. Never raises for a bad file: `problem` says what is wrong. heard: is told how
    many seconds were decoded.
    """
    try:
        with audio.open() as path:
            content = hash_file(path)
            try:
                return _decode_all(path, content, heard)
            except DataError as error:
                return AudioFacts(content, 0.0, str(error).removeprefix(f"{path}: "))
    except DataError as error:
        return AudioFacts("", 0.0, str(error))
    except OSError as error:
        return AudioFacts("", 0.0, f"cannot be read: {cause(error)}")


def _decode_all(path: Path, content: str, heard: Callable[[float], None]) -> AudioFacts:
    """The facts of a file with this content.

    DataError: empty, damaged, truncated, silent or not finite.
    """
    info = look(path)
    decoded, zeros, peak = 0, 0, 0.0
    lost: list[Losses] = []
    for block in decode(
        path, info, lost=lost
    ):  # the file's own rate: nothing is resampled only to be looked at
        decoded += len(block)
        heard(decoded / info.sample_rate)
        peak = max(peak, float(np.abs(block).max()))
        zeros += int((block == 0).all(axis=1).sum())
    if peak < SILENCE:
        raise DataError(SILENT)
    if zeros > _SILENT_SHARE * decoded:
        raise DataError(f"{SILENT} ({100 * zeros / decoded:.0f} % of it)")
    seconds = decoded / info.sample_rate
    reason = counted(info, seconds) or None
    misread = MISREAD if reason or info.format in MPEG else ""
    if (info.format == "opus" and opus_rate(path) in OPUS_RATES) or (
        reason and info.format in ("opus", "vorbis")
    ):
        misread = MISREAD_OGG
    return AudioFacts(
        content, seconds, None, reason, misread, peak=peak if peak > LOUD else None, lost=said(lost) or None
    )


class FactsIndex:
    """Facts by stamp, kept in a JSON file (or only in memory when path is None).

    remember: whether what is learned is written there.
    """

    def __init__(self, path: Path | None, remember: bool = True) -> None:
        self.path, self.remember = path, remember
        self._facts: dict[str, AudioFacts] = {}
        # What an earlier version took for a song's length, by its stamp without the hash of blocks.
        self._former: dict[str, float] = {}
        self._changed = False
        if path is not None and path.is_file():
            self._read(path)

    def _read(self, path: Path) -> None:
        """A damaged or older index is simply built again: it holds nothing that cannot be recomputed.

        So is an entry without its checksum: it was edited, or written before there were any.

        NewerVersionError for one that a newer version goes on with.
        """
        try:
            content = schema.parse_json(schema.read_file(path, MAX_INDEX))
            schema.refuse_newer(content["version"], INDEX_VERSION, f"{path}: the index of songs")
            if content["version"] in (1, 2):
                for stamp, raw in content["facts"].items():
                    one = AudioFacts.from_dict(raw | {"misread": ""})
                    if one.problem is None:
                        without_blocks = stamp if content["version"] == 1 else stamp.rpartition("|")[0]
                        self._former[without_blocks] = one.duration if one.former is None else one.former
            elif content["version"] == 3:
                former = {stamp: raw["former"] for stamp, raw in content["facts"].items()}
                self._former = {s.rpartition("|")[0]: n for s, n in former.items() if n is not None}
            elif content["version"] == INDEX_VERSION:
                facts = {stamp: AudioFacts.from_dict(raw) for stamp, raw in content["facts"].items()}
                sums = content.get("checksums", {})
                self._facts = {
                    stamp: one for stamp, one in facts.items() if sums.get(stamp) == one.checksum(stamp)
                }
                lost = {stamp: one.former for stamp, one in facts.items() if stamp not in self._facts}
                self._former = {s.rpartition("|")[0]: n for s, n in lost.items() if n is not None}
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            self._facts, self._former = {}, {}

    def look_up(self, songs: Sequence[AudioRef], progress: Progress = silent) -> list[AudioFacts]:
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
        with contextlib.closing(_examined([songs[i] for i in firsts], progress)) as examined:
            for done, (stamp, facts) in enumerate(zip(waiting, examined, strict=True), 1):
                if facts.misread:
                    facts = replace(facts, former=self._former.get(stamp.rpartition("|")[0]))
                for i in waiting[stamp]:
                    found[i] = facts
                if facts.content:
                    self._facts[stamp] = facts
                    self._changed = True
                name = songs[waiting[stamp][0]].name
                progress(Advance(LOOKING, done, len(firsts), note=name))
                if done % 200 == 0:
                    self.save()
        self.save()
        return [facts for facts in found if facts is not None]

    def forget(self, songs: Iterable[AudioRef]) -> None:
        """Songs that turned out not to be what the index says are examined again on the next start."""
        for song in songs:
            with contextlib.suppress(DataError):  # gone: its stamp will be another
                self._changed = self._facts.pop(song.stamp(), None) is not None or self._changed
        self.save()

    def save(self) -> None:
        """Write the index if something was learned."""
        if self.path is None or not self._changed or not self.remember:
            return
        content = {
            "version": INDEX_VERSION,
            "facts": {stamp: asdict(f) for stamp, f in self._facts.items()},
            "checksums": {stamp: f.checksum(stamp) for stamp, f in self._facts.items()},
        }
        write_atomic(self.path, json.dumps(content).encode())
        self._changed = False


def _examined(songs: Sequence[AudioRef], progress: Progress) -> Generator[AudioFacts]:
    """The facts of each song in turn, on a few threads; how far the one is that is waited for is told."""
    heard = [0.0] * len(songs)
    with ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as pool:
        futures = [pool.submit(examine, song, partial(heard.__setitem__, i)) for i, song in enumerate(songs)]
        try:
            for i, future in enumerate(futures):
                while not wait([future], WATCHED).done:
                    note = f"{duration(heard[i])} of {songs[i].name}"
                    progress(Advance(LOOKING, i, len(songs), note=note))
                yield future.result()
        finally:
            for future in futures:
                future.cancel()
