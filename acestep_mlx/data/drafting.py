"""Drafts for songs: what a person would otherwise type for each, measured in its sound or read from its tags.

Only what nobody said is drafted, and it is written into the JSON file beside the song (see `drafts`). Lyrics
that are missing stay missing: a song without them is not one in which nobody sings.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..config.datasets import LocalSet
from ..errors import DataError, NewerVersionError, refusal
from ..families import families
from ..families.protocol import Family
from ..families.songs import Sketch
from ..io import ffmpeg
from ..io.audio import SILENCE, decode, look, resample
from ..io.filenames import Folders, shown
from ..io.hashes import hash_file
from ..io.loudness import loudness
from ..io.progress import Advance, Progress, silent
from ..speech.transcribe import Transcript
from ..text.blanks import is_blank
from ..text.detect import detect_lines
from ..text.languages import LANGUAGES
from ..text.sheet import is_marked
from . import sidecars
from .captions import clean_lyrics, one_line
from .drafts import (
    KEY,
    TRIGGER,
    VERSION,
    drafts_file,
    fields_of,
    note_of,
    read_drafts,
    split,
    stamp,
    write_drafts,
)
from .facts import FileAudio
from .measure import MOST_SECONDS, RATE, Measured, beat_of, key_of
from .records import INSTRUMENTAL
from .sources.folder import Song, scan

MEASURED, TAGGED, DERIVED, HEARD = "measured", "read from the file's tags", "drafted", "transcribed"
SLOW, FAST = 84, 132  # beats a minute up to and from which a song is called slow or fast
_SURE_OF_LANGUAGE = 0.6  # of the letters of lyrics that are in it
#: field → names that tags have for it
_TAGS = {
    "bpm": ("tbpm", "bpm", "tempo", "tmpo"),
    "keyscale": ("tkey", "initialkey", "initial_key", "initial key", "key"),
    "genre": ("genre",),
}
_NO_GENRES = {"other", "unknown", "misc", "miscellaneous", "genre", "none", "undefined", "default"}


@dataclass(frozen=True)
class Draft:
    """A value for a field, where it is from, and how sure that is (0 to 1, None where nothing says so).

    others: values that are as likely. of: stamp of what it was made of, where that may change by itself.
    """

    value: Any
    how: str
    confidence: float | None = None
    others: tuple[Any, ...] = ()
    of: str | None = None

    def note(self) -> dict[str, Any]:
        """What is kept of it beside its value."""
        sure = None if self.confidence is None else round(self.confidence, 2)
        kept = {"how": self.how, "confidence": sure, "or": list(self.others), "of": self.of}
        return {name: one for name, one in kept.items() if one not in (None, [])} | {"is": stamp(self.value)}


#: Hears the lyrics of a sound file, and tells how far that is, from 0 to 1. DataError.
Transcribe = Callable[[Path, Callable[[float], None]], Transcript]


@dataclass(frozen=True)
class Sound:
    """What was measured. loudness: LUFS. drafts: by field."""

    seconds: float
    loudness: float | None
    drafts: Mapping[str, Draft]

    def note(self) -> dict[str, Any]:
        """As JSON."""
        drafts = {
            n: {"value": d.value, "confidence": d.confidence, "or": d.others} for n, d in self.drafts.items()
        }
        return {"seconds": self.seconds, "loudness": self.loudness, "fields": drafts}

    @classmethod
    def of_note(cls, note: Any) -> Sound | None:
        """Of that JSON; None where it is another."""
        try:
            drafts = {
                str(name): Draft(d["value"], MEASURED, float(d["confidence"]), tuple(d["or"]))
                for name, d in note["fields"].items()
            }
            loudness = None if note["loudness"] is None else float(note["loudness"])
            return cls(float(note["seconds"]), loudness, drafts)
        except (KeyError, TypeError, ValueError, AttributeError):
            return None


@dataclass
class Outcome:
    """What was found for a song. written: fields that are new or other than before. problem: why there is
    nothing. lacking: whether it has no lyrics. notes: for people.
    """

    name: str
    written: dict[str, Draft] = field(default_factory=dict)
    problem: str | None = None
    loudness: float | None = None
    lacking: bool = False
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Wanted:
    """What drafts are made for. family: whose captions. trigger: words before a drafted caption.

    write: whether anything is written. transcribe: hears lyrics that are missing, with a model of that name.
    """

    family: Family
    trigger: str | None = None
    write: bool = True
    transcribe: Transcribe | None = None
    model: str = ""


def prepare(dataset: LocalSet, wanted: Wanted, progress: Progress = silent) -> Iterator[Outcome]:
    """Draft what is missing for each song of a folder, one after the other; each is whole once it is given.

    A song whose sound and texts are as they were is not looked at again. DataError when there are no songs.
    """
    known = {name: names for one in families() for name, names in one.metadata.items()}
    songs = scan(dataset, metadata={**known, "genre": ("genre",)}, drafting=True).songs
    root, folders = dataset.folder.resolve(), Folders()
    met: dict[Path, str] = {}  # files of drafts, and the song that each is for
    for done, song in enumerate(songs):

        def within(share: float, done: int = done, song: Song = song) -> None:
            progress(Advance("measuring songs", done + share, len(songs), "share", song.name))

        within(0.0)
        outcome = Outcome(song.name, problem=song.problem)
        if isinstance(song.audio, FileAudio) and song.problem is None:
            path = drafts_file(song.audio.path, folders)
            if (first := met.setdefault(path, song.name)) != song.name:
                outcome.problem = f"shares {shown(path.name)} with {first}"
            elif not path.parent.resolve().is_relative_to(root):
                outcome.problem = "is outside the folder, through a link; prepare that folder by itself"
            else:
                try:
                    _prepare(song, song.audio.path, path, wanted, outcome, within)
                except (DataError, NewerVersionError) as error:
                    outcome.problem = str(error)
                except OSError as error:
                    outcome.problem = refusal(error)
        within(1.0)
        yield outcome


def _prepare(
    song: Song, audio: Path, path: Path, wanted: Wanted, outcome: Outcome, within: Callable[[float], None]
) -> None:
    """Draft what the song lacks. DataError, OSError."""
    before, data = read_drafts(path)
    own, kept = split(before)
    note, former = note_of(before), fields_of(before)
    content = hash_file(audio)
    outcome.lacking = song.lyrics is None and "lyrics" not in kept
    made_for = {
        "family": wanted.family.name,
        "trigger": wanted.trigger,
        "song": stamp([song.captions, song.lyrics, {n: str(v) for n, v in song.metadata.items()}]),
        "lyrics": wanted.transcribe is not None and wanted.model,
    }
    sound = Sound.of_note(note.get("measured")) if note.get("content") == content else None
    if sound is not None and note.get("for") == made_for:
        outcome.loudness = sound.loudness
        return
    gone = {name for name in former if name not in before} if sound is not None else set()
    heard = note.get("heard") if sound is not None else None  # with which model
    sound = sound or measure(audio, within)

    def listen() -> Draft | None:
        nonlocal heard
        if "lyrics" in gone:
            return None
        if wanted.transcribe is not None and heard != wanted.model:
            heard = wanted.model
            return _transcribed(wanted.transcribe, audio, outcome, within)
        known = former.get("lyrics", {})
        again = heard is not None and "lyrics" in kept and known.get("how") == HEARD
        return Draft(kept["lyrics"], HEARD, known.get("confidence")) if again else None

    outcome.loudness = sound.loudness
    drafts = {
        name: draft
        for name, draft in _drafts(song, audio, sound, wanted, outcome, listen).items()
        if name not in gone and is_blank(sidecars.lower_case(own).get(name), name)
    }
    outcome.written = {
        name: draft for name, draft in drafts.items() if name not in before or before[name] != draft.value
    }
    told = {
        "version": VERSION,
        "content": content,
        "for": made_for,
        "measured": sound.note(),
        "heard": heard,
        "fields": {**{n: former[n] for n in gone}, **{n: draft.note() for n, draft in drafts.items()}},
    }
    if wanted.write:
        values = {name: draft.value for name, draft in drafts.items()}
        write_drafts(path, {**own, **values, KEY: told}, data)


def measure(audio: Path, within: Callable[[float], None] = lambda share: None) -> Sound:
    """Listen to a song once. within: told of how far that is, from 0 to 1. DataError."""
    info = look(audio)
    parts: list[np.ndarray] = []
    frames, peak = 0, 0.0
    for block in decode(audio, info):
        peak = max(peak, float(np.abs(block).max()))
        if frames < MOST_SECONDS * info.sample_rate:
            parts.append(block)
        frames += len(block)
    if peak < SILENCE:
        raise DataError("silent")
    within(0.2)
    heard = np.concatenate(parts)
    level = loudness(heard, info.sample_rate)
    sound = resample(heard.mean(axis=1, keepdims=True), info.sample_rate, RATE)[:, 0]
    within(0.3)
    beat = beat_of(sound)
    within(0.5)
    found: dict[str, Measured[Any] | None] = {"keyscale": key_of(sound)}
    if beat is not None:
        found |= {"bpm": beat.bpm, "timesignature": beat.metre}
    drafts = {n: Draft(m.value, MEASURED, round(m.confidence, 3), m.others) for n, m in found.items() if m}
    return Sound(round(frames / info.sample_rate, 2), round(level, 1) if np.isfinite(level) else None, drafts)


def _drafts(
    song: Song,
    audio: Path,
    sound: Sound,
    wanted: Wanted,
    outcome: Outcome,
    listen: Callable[[], Draft | None],
) -> dict[str, Draft]:
    """All that can be said of a song, by field, in the order in which it is written. listen: for lyrics."""
    tags = ffmpeg.tags(audio)
    drafts = {**sound.drafts, **_tagged(tags), "duration": Draft(round(sound.seconds), MEASURED)}
    drafts = {name: draft for name, draft in drafts.items() if name not in song.metadata}
    lyrics = song.lyrics
    if lyrics is None and (found := _lyrics(tags, outcome) or listen()) is not None:
        drafts["lyrics"], lyrics = found, found.value
    sung = lyrics is not None and _is_sung(lyrics)
    if sung and lyrics is not None:
        if (language := _language(lyrics)) is not None and "language" not in song.metadata:
            drafts["language"] = language
        if not any(map(is_marked, lyrics.split("\n"))):
            outcome.notes.append("its lyrics have no marks ([verse], [chorus])")
    if song.captions:
        return drafts
    instrumental = lyrics is not None and not sung
    caption = wanted.family.draft_caption(_sketch(song, drafts, instrumental))
    if wanted.trigger:
        drafts = {TRIGGER: Draft(wanted.trigger, "given with --trigger"), **drafts}
    return {"caption": Draft(caption, DERIVED), **drafts} if caption else drafts


def _tagged(tags: Mapping[str, str]) -> dict[str, Draft]:
    """Tempo, key and genre, as the sound file's tags have them."""
    found: dict[str, Any] = {}
    for name, names in _TAGS.items():
        value = next((tags[n] for n in names if not is_blank(tags.get(n), name)), None)
        if value is None:
            continue
        reader = next((one for one in families() if name in one.metadata), None)
        found |= reader.read_metadata({name: value}).values if reader is not None else {name: one_line(value)}
    genre = str(found.get("genre", "")).strip()
    if not any(map(str.isalpha, genre)) or genre.lower() in _NO_GENRES or len(genre) > 60:
        found.pop("genre", None)
    return {name: Draft(value, TAGGED) for name, value in found.items()}


def _lyrics(tags: Mapping[str, str], outcome: Outcome) -> Draft | None:
    """Lyrics that the file carries."""
    text = next((text for name, text in tags.items() if name.startswith(("lyrics", "unsyncedlyrics"))), "")
    lyrics = clean_lyrics(text.replace("\r\n", "\n").replace("\r", "\n"))
    if lyrics is not None and sum(map(str.isalpha, lyrics)) >= 20:
        try:
            sidecars.check_lyrics(lyrics, "the lyrics in its tags")
            return Draft(lyrics, TAGGED)
        except DataError as error:
            outcome.notes.append(str(error))
    return None


def _transcribed(
    transcribe: Transcribe, audio: Path, outcome: Outcome, within: Callable[[float], None]
) -> Draft | None:
    """Lyrics that are heard in the song, as far as they are; none is not instrumental."""
    try:
        found = transcribe(audio, lambda share: within(0.5 + share / 2))
    except DataError as error:
        outcome.notes.append(f"not transcribed: {error}")
        return None
    if found.unsure:
        outcome.notes.append(f"{found.unsure:.0f} s of it were not understood")
    return Draft(found.lyrics, HEARD, found.confidence) if found.lyrics.strip() else None


def _is_sung(lyrics: str) -> bool:
    """Whether lyrics have words beside marks."""
    return any(line.strip() and not is_marked(line) for line in lyrics.split("\n")) and lyrics != INSTRUMENTAL


def _language(lyrics: str) -> Draft | None:
    """What the lyrics are in, where most of their letters are."""
    lines = [line for line in lyrics.split("\n") if line.strip() and not is_marked(line)]
    letters: Counter[str] = Counter()
    for line, guess in zip(lines, detect_lines(lines), strict=True):
        letters[guess.foreign or guess.language] += sum(map(str.isalpha, line))
    if not letters.total():
        return None
    language, most = letters.most_common(1)[0]
    share = most / letters.total()
    if share < _SURE_OF_LANGUAGE or language not in LANGUAGES:
        return None
    return Draft(language, DERIVED, share, of=stamp(lyrics))


def _sketch(song: Song, drafts: Mapping[str, Draft], instrumental: bool) -> Sketch:
    """What a caption can be made of: what somebody said, before what was measured."""
    said: dict[str, Any] = {}
    for one in families():
        said |= one.read_metadata({n: v for n, v in song.metadata.items() if n in one.metadata}).values
    if genre := one_line(song.metadata.get("genre")):
        said["genre"] = genre
    known = {**{name: draft.value for name, draft in drafts.items()}, **said}
    bpm = known.get("bpm")
    unsure = "bpm" in drafts and bool(drafts["bpm"].others)
    pace = None if bpm is None or unsure else "slow" if bpm <= SLOW else "fast" if bpm >= FAST else None
    language = LANGUAGES.get(known.get("language", "")) if "language" in known and not instrumental else None
    return Sketch(known.get("genre"), bpm, known.get("keyscale"), pace, language, instrumental)


def quiet(outcomes: Sequence[Outcome], apart: float = 8.0) -> list[tuple[str, float]]:
    """Songs whose loudness is further from the middle one's than `apart` LU: (name, difference)."""
    heard = {one.name: one.loudness for one in outcomes if one.loudness is not None}
    middle = float(np.median(list(heard.values()))) if heard else 0.0
    return [(name, loud - middle) for name, loud in heard.items() if abs(loud - middle) > apart]
