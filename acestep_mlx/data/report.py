"""The data set report: numbers, and every song that was skipped, padded, cut or lacks a caption or lyrics."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..words import count

if TYPE_CHECKING:
    from .manifest import Sample

Named = list[tuple[str, str]]


@dataclass
class SetReport:
    """One data set. Lists hold song names (with a detail); hours count what is trained on, once."""

    id: str
    files: int
    interval: float
    songs: int = 0
    seconds: float = 0.0
    captions: int = 0
    left_out: int = 0
    skipped: Named = field(default_factory=list)
    padded: Named = field(default_factory=list)
    cut: Named = field(default_factory=list)
    counted: Named = field(default_factory=list)
    again: Named = field(default_factory=list)
    no_caption: list[str] = field(default_factory=list)
    no_lyrics: list[str] = field(default_factory=list)
    notes: Named = field(default_factory=list)
    buckets: Counter[int] = field(default_factory=Counter)
    lyrics: dict[str, str] = field(default_factory=dict)
    passes: float = 1.0

    def add(self, sample: Sample) -> None:
        """Count a song that is trained on."""
        name = sample.id.removeprefix(f"{self.id}/")
        self.songs += 1
        self.seconds += sample.seconds
        self.captions += len(sample.captions)
        self.passes = (1 + sample.backend.repeats) * sample.backend.probability
        self.buckets[sample.bucket] += 1
        if sample.seconds < 3.0:
            self.padded.append((name, f"{sample.seconds:.1f} s, padded with silence to 3 s"))
        if sample.cut:
            self.cut.append((name, f"{sample.seconds:g} s kept from {sample.start:g} s"))
        if sample.lyrics is None:
            self.no_lyrics.append(name)
        else:
            self.lyrics[name] = sample.lyrics

    def languages(self) -> dict[str, int]:
        """Language → lines of lyrics in it, most first; structure lines like `[verse]` do not count."""
        from ..text.lines import line_languages

        counts: Counter[str] = Counter()
        for lyrics in dict.fromkeys(self.lyrics.values()):
            counts.update(line_languages(lyrics))
        return dict(counts.most_common())

    def to_dict(self) -> dict[str, Any]:
        """JSON types."""
        return {
            "id": self.id,
            "files": self.files,
            "songs": self.songs,
            "hours": self.seconds / 3600,
            "captions": self.captions,
            "left_out_by_max_num_samples": self.left_out,
            "skipped": self.skipped,
            "padded": self.padded,
            "cut": self.cut,
            "length_counted": self.counted,
            "encoded_again": self.again,
            "no_caption": self.no_caption,
            "no_lyrics": self.no_lyrics,
            "lyrics_lines": self.languages(),
            "notes": self.notes,
            "buckets": {str(frames): count for frames, count in sorted(self.buckets.items())},
        }


@dataclass
class DatasetReport:
    """All data sets. ignored: (data set, key, reason). disabled: ids."""

    sets: list[SetReport]
    ignored: Sequence[tuple[str, str, str]] = ()
    disabled: Sequence[str] = ()

    @property
    def songs(self) -> int:
        return sum(one.songs for one in self.sets)

    @property
    def hours(self) -> float:
        return sum(one.seconds for one in self.sets) / 3600

    def to_dict(self) -> dict[str, Any]:
        """JSON types."""
        return {
            "songs": self.songs,
            "hours": self.hours,
            "sets": [one.to_dict() for one in self.sets],
            "disabled": list(self.disabled),
        }

    def lines(self, limit: int = 20) -> list[str]:
        """Text for a terminal; at most `limit` names per list (0: all), but every skipped song."""
        out: list[str] = []
        for one in self.sets:
            out += _set_lines(one, limit)
        if self.disabled:
            out.append(f"disabled: {', '.join(self.disabled)}")
        out += [f"ignored in data set {label}: {key} ({reason})" for label, key, reason in self.ignored]
        return out


def _set_lines(one: SetReport, limit: int) -> list[str]:
    hours = f"{one.seconds / 3600:.2f} h" if one.seconds >= 360 else f"{one.seconds:.1f} s"
    passes = f", {one.passes:g} times per epoch" if one.passes != 1 else ""
    captions = count(one.captions, "caption")
    out = [f"data set {one.id}: {one.songs} of {count(one.files, 'song')}, {hours}, {captions}{passes}"]
    if one.left_out:
        out.append(f"  left out by max_num_samples: {one.left_out}")
    if one.buckets:
        frames_per_second = 44100 / 4096
        shown = [
            f"{frames / frames_per_second:.0f} s × {count}" for frames, count in sorted(one.buckets.items())
        ]
        out.append(f"  lengths ({one.interval:g} s steps): {', '.join(shown)}")
    if languages := one.languages():
        spoken = ", ".join(f"{language} {lines}" for language, lines in languages.items())
        out.append(f"  lyrics: {count(len(one.lyrics), 'song')}, lines by language: {spoken}")
    out += _named("skipped", [f"{name}: {reason}" for name, reason in one.skipped], 0)
    details = {
        "padded": one.padded,
        "cut": one.cut,
        "length counted by decoding": one.counted,
        "encoded again, because their length had been guessed": one.again,
        "text": one.notes,
    }
    for label, named in details.items():
        out += _named(label, [f"{name}: {detail}" for name, detail in named], limit)
    out += _named("without caption", one.no_caption, limit)
    out += _named("without lyrics", one.no_lyrics, limit)
    return out


def _named(label: str, names: list[str], limit: int) -> list[str]:
    if not names:
        return []
    shown = names if not limit else names[:limit]
    out = [f"  {label}: {len(names)}", *(f"    {name}" for name in shown)]
    if len(names) > len(shown):
        out.append(f"    and {len(names) - len(shown)} more")
    return out
