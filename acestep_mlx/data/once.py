"""Songs that a folder holds more than once are trained once: links to one file, and its other formats."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from ..formatting import brief
from ..io.filenames import composed
from .facts import AudioFacts, FileAudio
from .sources.folder import Song

_LOSSLESS = (
    ".wav",
    ".flac",
    ".aif",
    ".aiff",
    ".aifc",
    ".w64",
    ".rf64",
    ".caf",
    ".wv",
    ".ape",
    ".tta",
    ".alac",
)
_SAME_LENGTH = 1.0  # seconds that the formats of one song may differ by: encoders pad


def same_songs(songs: Sequence[Song]) -> list[list[int]]:
    """Indices of songs, those that may be one song together, in the songs' order.

    These are links to one file, and files whose names differ in their ending alone and that have the same
    caption and lyrics, as they have when they share the files of both.
    """
    groups: list[list[int]] = []
    known: dict[object, list[int]] = {}
    for i, song in enumerate(songs):
        keys = _identities(song)
        group = next((known[key] for key in keys if key in known), None)
        if group is None:
            groups.append(group := [])
        group.append(i)
        known.update(dict.fromkeys(keys, group))
    return groups


def _identities(song: Song) -> list[object]:
    if not isinstance(song.audio, FileAudio) or song.problem is not None:
        return []
    path = song.audio.path
    found: list[object] = [(path.parent, composed(path.stem), tuple(song.captions), song.lyrics)]
    try:
        status = path.stat()
    except OSError:
        return []
    return [*found, (status.st_dev, status.st_ino)] if status.st_ino else found


def kept(
    group: Sequence[int], songs: Sequence[Song], facts: Mapping[int, AudioFacts | None]
) -> tuple[list[int], dict[int, str]]:
    """Of usable songs that may be one: those to train on, and why each other one is left out.

    The longest stays; of those as long, one with words, without loss, a file rather than a link.
    """
    keep: list[int] = []
    why: dict[int, str] = {}

    def length(i: int) -> float:
        one = facts[i]
        return one.duration if one is not None else 0.0

    longest = max((length(i) for i in group), default=0.0)

    def rank(i: int) -> tuple[bool, bool, bool, bool]:
        song, path = songs[i], _path(songs[i])
        return (
            length(i) < longest - _SAME_LENGTH,
            not (song.captions or song.lyrics),
            path.suffix.lower() not in _LOSSLESS,
            path.is_symlink(),
        )

    for i in sorted(group, key=rank):
        reason = next((why_not for j in keep if (why_not := _again(i, j, songs, facts))), None)
        if reason is None:
            keep.append(i)
        else:
            why[i] = reason
    return keep, why


def _again(i: int, j: int, songs: Sequence[Song], facts: Mapping[int, AudioFacts | None]) -> str | None:
    """Why song `i` is `j` again, or None."""
    one, other = songs[i], songs[j]
    mine, its = facts[i], facts[j]
    if mine is None or its is None:
        return None
    if mine.content == its.content:
        return f"the same file as {other.name}{_unread(one, other)}"
    if one.captions or one.lyrics:
        return f"{other.name} in another format: one caption and one song"
    if abs(mine.duration - its.duration) <= _SAME_LENGTH:
        return f"{other.name} in another format"
    return None


def _unread(one: Song, other: Song) -> str:
    if one.captions and one.captions != other.captions:
        return f"; its caption {brief(one.captions[0])!r} is not trained on, add it to that song's as a line"
    if one.lyrics and one.lyrics != other.lyrics:
        return "; its lyrics are not trained on"
    return ""


def _path(song: Song) -> Path:
    return song.audio.path if isinstance(song.audio, FileAudio) else Path()
