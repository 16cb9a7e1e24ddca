"""The data set report: numbers, and every song that was skipped, padded, cut or lacks a caption or lyrics."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..formatting import count, listed

if TYPE_CHECKING:
    from ..families.protocol import Family

Named = list[tuple[str, str]]
SUNG = "and into NAME.txt what it sounds like"
_MOST = 20  # left-out files and folders that a run names


@dataclass(frozen=True)
class SongRow:
    """What a song is trained with. seconds: None where it is left out. caption, lyrics: where they are from.

    language: of the lyrics, where it is known. problem: why it is left out, or what there is to look at.
    """

    name: str
    seconds: float | None
    caption: str | None = None
    lyrics: str | None = None
    language: str | None = None
    problem: str = ""


@dataclass
class SetReport:
    """One data set. Lists hold song names (with a detail); hours count what is trained on, once.

    no_songs: sound files and folders that are nobody's songs (caches, packages). lyrics_changed: how many
    songs' lyrics were brought into the model's form. trigger: whether trigger words stand before captions.
    known: what the model is told beside captions and lyrics, and of how many songs; unread: what cannot be.
    listed: whether captions come from a list or a table rather than from files. in_files: whether each song
    is a file of its own. twice: songs that are there once more. copies: (song, the one whose copy it is).
    lost: songs of which something could not be decoded. sources: how that list or table is read, where
    that is not plain. cropped: songs of which `crop` seconds are trained on at a time; untimed: those of them
    whose lyrics cannot be cut. sources_of: "caption" and "lyrics" → where they are from, and of how many
    songs. rows: what each song is trained with. held_out: its songs are not trained on; trained_too: (song,
    the trained one) where it is, in another data set. doubtful: (song, file) whose captions may be lyrics.
    """

    id: str
    files: int
    interval: float
    family: Family
    songs: int = 0
    seconds: float = 0.0
    captions: int = 0
    left_out: int = 0
    no_songs: Named = field(default_factory=list)
    skipped: Named = field(default_factory=list)
    twice: Named = field(default_factory=list)
    copies: Named = field(default_factory=list)
    padded: Named = field(default_factory=list)
    cut: Named = field(default_factory=list)
    counted: Named = field(default_factory=list)
    lost: Named = field(default_factory=list)
    again: Named = field(default_factory=list)
    no_caption: list[str] = field(default_factory=list)
    no_lyrics: list[str] = field(default_factory=list)
    doubtful: Named = field(default_factory=list)
    notes: Named = field(default_factory=list)
    sources: Named = field(default_factory=list)
    lyrics_changed: int = 0
    trigger: bool = False
    listed: bool = False
    in_files: bool = True
    buckets: Counter[int] = field(default_factory=Counter)
    lyrics: dict[str, str] = field(default_factory=dict)
    known: Counter[str] = field(default_factory=Counter)
    unread: Named = field(default_factory=list)
    passes: float = 1.0
    crop: float = 0.0
    cropped: int = 0
    untimed: list[str] = field(default_factory=list)
    sources_of: dict[str, Counter[str]] = field(default_factory=dict)
    rows: list[SongRow] = field(default_factory=list)
    held_out: bool = False
    trained_too: Named = field(default_factory=list)

    @property
    def without_caption(self) -> str:
        """What it means for a song that it has no caption."""
        prompt = "the trigger words alone" if self.trigger else "an empty prompt"
        return f"trained on {prompt}, so that no words of its own call up what it sounds like"

    @property
    def without_lyrics(self) -> str:
        """What it means for a song that it has no lyrics."""
        return "trained as if nothing were sung, so that a voice in it is tied to no words"

    def problems(self) -> list[tuple[str, list[str]]]:
        """What can be wrong with songs, the most important first, and the names of those with which it is."""
        return [
            ("left out", _detailed(self.skipped)),
            ("not decoded everywhere", _detailed(self.lost)),
            ("with captions that may be lyrics", [name for name, _ in self.doubtful]),
            ("without a caption, so that no words call up their sound", self.no_caption),
            ("whose parts have no lyrics, as these have no time stamps", self.untimed),
            ("with metadata that is not understood", _detailed(self.unread)),
            ("there twice, trained once", [name for name, _ in self.twice]),
            ("the same as another one, trained twice", [name for name, _ in self.copies]),
            ("held out, and trained on in another data set", [name for name, _ in self.trained_too]),
            ("without lyrics, so that a voice in them is tied to no words", self.no_lyrics),
            ("cut", _detailed(self.cut)),
            ("padded with silence", [name for name, _ in self.padded]),
        ]

    def remarks(self) -> list[tuple[str, str]]:
        """What a run says of the data before its first step, as (text, "info" or "warning")."""
        out = [(f"{self.id}, {name}: {note}", "info") for name, note in self.sources]
        if self.trained_too:
            named = listed([f"{name} is {other}" for name, other in self.trained_too])
            text = f"{len(self.trained_too)} {self._of_all} are trained on in another data set ({named})"
            out.append((f"{text}: the evaluation leaves them out, they cannot tell memorising", "warning"))
        if self.doubtful:
            named = listed([f"{name}: {source}" for name, source in self.doubtful])
            text = f"{len(self.doubtful)} {self._of_all} may have lyrics for captions ({named})"
            out.append((f"{text}: put lyrics into NAME.lyrics, {SUNG}", "warning"))
        captions, lyrics = "a file NAME.txt beside the song", "a file NAME.lyrics beside the song"
        if self.listed:
            captions, lyrics = "its column", "their column"
        if self.no_caption:
            advice = f"put a caption into {captions}, or set instance_prompt"
            out.append((self._lacking("caption", self.no_caption, self.without_caption, advice), "warning"))
        if self.no_lyrics:
            advice = f"put lyrics into {lyrics}, {self.family.instrumental} where nobody sings"
            out.append((self._lacking("lyrics", self.no_lyrics, self.without_lyrics, advice), "info"))
        if self.untimed:
            have = "has" if len(self.untimed) == 1 else "have"
            text = f"{len(self.untimed)} {self._of_all} {have} lyrics without time stamps"
            meaning = "its parts are trained without lyrics (crop_lyrics=cut); add stamps, or set keep"
            out.append((f"{text} ({listed(self.untimed)}): {meaning}", "warning"))
        if unread := [f"{name}: {problem}" for name, problem in self.unread]:
            what = f"{count(len(unread), 'value')} of songs' metadata in {self.id} not understood"
            out.append((f"{what} ({listed(unread)}), and left out of their prompts", "warning"))
        if n := self.lyrics_changed:
            changes = "time stamps left out, marks as the model knows them"
            text = f"lyrics of {n} {self._of_all} are read in the model's form ({changes})"
            out.append((f"{text}; --dry-run --verbose lists them", "info"))
        if self.lost:
            named = listed([f"{name}: {what}" for name, what in self.lost])
            out.append((f"{len(self.lost)} {self._of_all} cannot be decoded everywhere ({named})", "warning"))
        if self.twice:
            again = listed([f"{name}: {reason}" for name, reason in self.twice])
            out.append(
                (f"trained once, though there twice in {self.id}: {len(self.twice)} ({again})", "warning")
            )
        shown = [f"left out, no song: {name} ({reason})" for name, reason in self.no_songs[:_MOST]]
        more = len(self.no_songs) - len(shown)
        shown += [f"left out, no songs: {more} more; --dry-run --verbose lists them"] if more else []
        return out + [(line, "info") for line in shown]

    def _lacking(self, what: str, names: list[str], meaning: str, advice: str) -> str:
        have = "has" if len(names) == 1 else "have"
        return f"{len(names)} {self._of_all} {have} no {what} ({listed(names)}): {meaning}; {advice}"

    @property
    def _of_all(self) -> str:
        return f"of {count(self.songs, 'song')} in {self.id}"

    def languages(self) -> dict[str, int]:
        """Language → lines of lyrics in it, most first; structure lines like `[verse]` do not count."""
        from ..text.lines import line_languages

        counts: Counter[str] = Counter()
        for lyrics in dict.fromkeys(self.lyrics.values()):
            counts.update(line_languages(lyrics))
        return dict(counts.most_common())


@dataclass
class DatasetReport:
    """All data sets. ignored: (data set, key, reason). disabled: ids."""

    sets: list[SetReport]
    ignored: Sequence[tuple[str, str, str]] = ()
    disabled: Sequence[str] = ()

    def remarks(self) -> list[tuple[str, str]]:
        """What a run says of its data before the first step, as (text, "info" or "warning")."""
        return [remark for one in self.sets for remark in one.remarks()]

    def problems(self) -> list[str]:
        """What is wrong with the songs of all sets, the most important first, with one name each."""
        found = zip(*(one.problems() for one in self.sets), strict=True)
        kinds = [(same[0][0], [name for _, names in same for name in names]) for same in found]
        return [f"{len(names)} {what} ({listed(names, 1)})" for what, names in kinds if names]

    def lines(self, limit: int = 20) -> list[str]:
        """Text for a terminal; at most `limit` names per list (0: all), but every skipped song."""
        out: list[str] = []
        for one in self.sets:
            out += _set_lines(one, limit)
        if self.disabled:
            out.append(f"disabled: {', '.join(self.disabled)}")
        out += [f"ignored in data set {label}: {key} ({reason})" for label, key, reason in self.ignored]
        return out


def _detailed(named: Named) -> list[str]:
    return [f"{name}: {detail}" for name, detail in named]


def _set_lines(one: SetReport, limit: int) -> list[str]:
    hours = f"{one.seconds / 3600:.2f} h" if one.seconds >= 360 else f"{one.seconds:.1f} s"
    passes = f", {one.passes:g} times per epoch" if one.passes != 1 else ""
    passes = ", for the evaluation, not trained on" if one.held_out else passes
    captions = count(one.captions, "caption")
    out = [f"data set {one.id}: {one.songs} of {count(one.files, 'song')}, {hours}, {captions}{passes}"]
    if one.left_out:
        out.append(f"  left out by max_num_samples: {one.left_out}")
    if one.buckets:
        lengths = sorted(one.buckets.items())
        shown = [f"{one.family.latents.seconds(frames):.0f} s × {count}" for frames, count in lengths]
        out.append(f"  lengths ({one.interval:g} s steps): {', '.join(shown)}")
    if one.cropped:
        out.append(f"  longer than {one.crop:g} s, each time a random part of that length: {one.cropped}")
    if languages := one.languages():
        spoken = ", ".join(f"{language} {lines}" for language, lines in languages.items())
        out.append(f"  lyrics: {count(len(one.lyrics), 'song')}, lines by language: {spoken}")
    out += [line for what in ("caption", "lyrics") if (line := _sources_line(one, what))]
    if one.known:
        out.append(f"  known beside captions: {', '.join(f'{what} {n}' for what, n in one.known.items())}")
    out += _named("skipped", [f"{name}: {reason}" for name, reason in one.skipped], 0)
    out += _named("left out, no songs", [f"{name}: {reason}" for name, reason in one.no_songs], limit)
    out += _named("there twice, trained once", [f"{name}: {reason}" for name, reason in one.twice], 0)
    details = {
        "trained on though it is, byte for byte, a copy of": one.copies,
        "not held out, because it is trained on as": one.trained_too,
        "padded": one.padded,
        "cut": one.cut,
        "not decoded everywhere": one.lost,
        "length counted by decoding": one.counted,
        "encoded again, because what was kept of them was wrong": one.again,
        "list": one.sources,
        "captions that may be lyrics, in": one.doubtful,
        "text": one.notes,
        "metadata not understood, left out": one.unread,
    }
    for label, named in details.items():
        out += _named(label, [f"{name}: {detail}" for name, detail in named], limit)
    out += _named("without caption", one.no_caption, limit, one.without_caption)
    out += _named("without lyrics", one.no_lyrics, limit, one.without_lyrics)
    out += _named("lyrics without time stamps, so that parts have none", one.untimed, limit)
    return out


def _sources_line(one: SetReport, what: str) -> str | None:
    """Where captions or lyrics are from, unless all are in the usual files."""
    counts = one.sources_of.get(what, Counter())
    if not counts.keys() - {"*.txt", "*.lyrics", "the list", "file name"}:
        return None
    starred = " (*: the song's name)" if any(source.startswith("*") for source in counts) else ""
    plural = "captions" if what == "caption" else what
    return f"  {plural} from: {', '.join(f'{source} {n}' for source, n in counts.items())}{starred}"


def _named(label: str, names: list[str], limit: int, meaning: str = "") -> list[str]:
    if not names:
        return []
    shown = names if not limit else names[:limit]
    out = [f"  {label}: {len(names)}{meaning and f', {meaning}'}", *(f"    {name}" for name in shown)]
    if len(names) > len(shown):
        out.append(f"    and {len(names) - len(shown)} more")
    return out
