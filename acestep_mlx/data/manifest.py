"""What there is to train on: every data set scanned, every song checked, every omission counted and named."""

from __future__ import annotations

import math
import os
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..config.datasets import DataSet, DataSets, HubSet
from ..config.read_datasets import read_datasets
from ..config.run import RunConfig
from ..errors import DataError
from ..families import of_flavour
from ..families.protocol import Family, LatentSpec
from ..families.songs import Lyrics, Words
from ..formatting import count, listed
from ..io.hashes import cache_key, hash_text
from ..io.ogg_rims import is_open_ended
from ..io.progress import Progress, silent
from ..text.stamps import Timed
from . import crops
from .captions import shuffled, unique
from .facts import AudioFacts, AudioRef, FactsIndex, FileAudio
from .once import kept, same_songs
from .sources import folder
from .summary import DatasetReport, SetReport, SongRow


@dataclass(frozen=True)
class Sample:
    """One song as it is trained on.

    id: data set and name, for people and sample lists. content: SHA-256 of the file. captions: variants, at
    least one (an empty string when there is no caption). lyrics: text, or None. start, seconds: the part
    that is used; `seconds` is at most the data set's maximum and may be below what the model takes (then
    the sound is padded with silence). latents: how the model counts it. misread: how it is read
    since an earlier version read such a song wrongly. former: the part (start, seconds) that it took then.
    known: what else the model is told of the song, by field of `families.songs.Words`. timed: the lines of
    the lyrics with their times, where a part's lyrics are to be cut by them.
    """

    id: str
    dataset: DataSet
    audio: AudioRef
    content: str
    captions: tuple[str, ...]
    lyrics: str | None
    start: float
    seconds: float
    cut: bool
    latents: LatentSpec
    misread: str = ""
    former: tuple[float, float] | None = None
    known: tuple[tuple[str, Any], ...] = ()
    timed: tuple[Timed, ...] = ()

    @property
    def samples(self) -> int:
        """Length in audio samples at the model's rate, padding of a short song included."""
        return self.samples_at(self.latents.sample_rate)

    def samples_at(self, rate: int) -> int:
        """Length in samples of another rate, in Hz."""
        return round(max(self.seconds, self.latents.min_seconds) * rate)

    @property
    def frames(self) -> int:
        """Length in latent frames."""
        return self.latents.covering(self.samples)

    @property
    def at_once(self) -> float:
        """Seconds that are trained on each time: all of it, or a part of `crop` seconds."""
        return min(self.seconds, self.dataset.crop or self.seconds)

    @property
    def part(self) -> int:
        """The same in latent frames."""
        return self.latents.covering(self.latents.samples(self.at_once))

    @property
    def is_cropped(self) -> bool:
        """Whether only a part of it is trained on each time."""
        return self.part < self.frames

    @property
    def starts(self) -> tuple[int, ...]:
        """The latent frames that parts can begin at, where their lyrics depend on it; else nothing."""
        return crops.starts(self.frames, self.part) if self.is_cropped and self.timed else ()

    @property
    def bucket(self) -> int:
        """Latent frames of the bucket: the length rounded up to the data set's duration interval."""
        interval, latents = self.dataset.interval, self.latents
        steps = math.ceil(max(self.at_once, latents.min_seconds) / interval - 1e-6)
        return max(self.part, latents.covering(round(steps * interval * latents.sample_rate)))

    def words(self, variant: int = 0, start: int | None = None) -> Words:
        """What is written of it, with one of its captions; of the part that begins at the latent frame
        `start`.
        """
        known = dict(self.known)
        if self.dataset.lyrics_language is not None:
            known["language"] = self.dataset.lyrics_language
        return Words(self.captions[variant], self.lyrics_of(start or 0), self.at_once, **known)

    def lyrics_of(self, start: int) -> str | None:
        """The lyrics that go with the part that begins at this latent frame."""
        if not self.is_cropped or self.lyrics is None or self.dataset.crop_lyrics == "keep":
            return self.lyrics
        if self.timed:
            begin = self.start + self.latents.seconds(start)
            return crops.cut(self.timed, begin, begin + self.at_once, self.start + self.seconds)
        is_cut = self.dataset.crop_lyrics == "cut"
        return self.lyrics if is_cut and crops.nobody_sings(self.lyrics) else None

    @property
    def all_lyrics(self) -> set[str | None]:
        """The lyrics of all its parts."""
        return {self.lyrics_of(start) for start in self.starts or (0,)}

    @property
    def key(self) -> str:
        """Identity for the sample order: changes when the song, its captions, its lyrics, its part or what
        else is known of it changes.
        """
        known: dict[str, Any] = {"known": self.known} if self.known else {}
        if self.is_cropped:
            known["crop"] = [self.dataset.crop, self.dataset.crop_lyrics, self.timed]
        return cache_key(
            id=self.id,
            content=self.content,
            captions=self.captions,
            lyrics=self.lyrics,
            part=[self.start, self.seconds],
            **known,
        )


@dataclass(frozen=True)
class Manifest:
    """Songs in a fixed order; what was skipped, as (name, reason); the report for people."""

    samples: list[Sample]
    skipped: list[tuple[str, str]]
    report: DatasetReport
    datasets: DataSets
    family: Family

    @property
    def trained(self) -> list[Sample]:
        """The songs that are trained on: all but those that are held out for the evaluation."""
        return [sample for sample in self.samples if not sample.dataset.held_out]

    @property
    def held_out(self) -> list[Sample]:
        """The songs that the evaluation loss is measured on; [] where it is measured on trained ones."""
        return [self.samples[i] for i in held_out(self.samples)]

    @property
    def signature(self) -> str:
        """Changes when anything changes that the order of training depends on."""
        return hash_text("\n".join(sample.key for sample in self.samples))[:32]


def held_out(samples: Sequence[Sample]) -> list[int]:
    """Indices of the songs of eval sets whose sound no other set trains on."""
    trained = {sample.content for sample in samples if not sample.dataset.held_out}
    return [i for i, one in enumerate(samples) if one.dataset.held_out and one.content not in trained]


def index_path(config: RunConfig) -> Path | None:
    """Where facts about audio files are kept; None when nothing may be written (`vae_cache_disable`)."""
    return None if config.vae_cache_disable else config.resolve(config.cache_dir) / "audio_index.json"


def build_manifest(
    config: RunConfig,
    progress: Progress = silent,
    *,
    remember: bool = True,
    datasets: DataSets | None = None,
) -> Manifest:
    """Scan all data sets of a configuration.

    remember: whether what is found out about the songs' sound is kept in the cache; else nothing is written.
    progress: told of each song that has to be decoded. datasets: where they have been read already. Raises
    ConfigError for a wrong data set file, DataError when a folder is missing or nothing is left to train
    on (its `details` name every song and why).
    """
    datasets, family = datasets or read_datasets(config), of_flavour(config.model_flavour)
    index = FactsIndex(index_path(config), remember)

    samples: list[Sample] = []
    skipped: list[tuple[str, str]] = []
    reports: list[SetReport] = []
    own = own_folders(config, datasets)
    for dataset in datasets.audio:
        found = _songs(dataset, config, own, family)
        songs = found.songs
        report = SetReport(
            dataset.id, len(songs), dataset.interval, family, no_songs=found.left_out, sources=found.notes
        )
        report.listed = dataset.caption_strategy in ("csv", "huggingface")
        report.in_files = not isinstance(dataset, HubSet)
        chosen, again = _chosen(dataset, songs, index, progress)
        report.twice = again
        copies: dict[str, str] = {}  # content → the first song with it
        for song, facts in chosen:
            reason = song.problem or _reason(dataset, facts)
            if reason is not None or facts is None:
                skipped.append((f"{dataset.id}/{song.name}", str(reason)))
                report.skipped.append((song.name, str(reason)))
                report.rows.append(SongRow(song.name, None, problem=f"left out: {reason}"))
                continue
            said = len(report.notes), len(report.unread)
            sample = _sample(dataset, song, facts, config, family, report)
            samples.append(sample)
            _count(sample, report)
            for what, source in song.sources.items():
                report.sources_of.setdefault(what, Counter())[source] += 1
            report.rows.append(_row(song, sample, len(report.notes) - said[0], len(report.unread) - said[1]))
            if (first := copies.setdefault(facts.content, song.name)) != song.name and report.in_files:
                report.copies.append((song.name, first))
        report.left_out = report.files - report.songs - len(report.skipped) - len(again)
        reports.append(report)
    full = DatasetReport(reports, datasets.ignored, datasets.disabled)
    _note_trained_too(samples, reports)
    held = [sample.dataset.held_out for sample in samples]
    if all(held):
        raise nothing_left(skipped)
    if not any(held) and (apart := [f"{one.id}/" for one in datasets.audio if one.held_out]):
        raise nothing_left([song for song in skipped if song[0].startswith(tuple(apart))], "evaluate")
    return Manifest(samples, skipped, full, datasets, family)


def _note_trained_too(samples: Sequence[Sample], reports: Sequence[SetReport]) -> None:
    """Report held-out songs that are also trained on, which then tell nothing of memorising."""
    trained = {sample.content: sample.id for sample in samples if not sample.dataset.held_out}
    for report in reports:
        held = [one for one in samples if one.dataset.held_out and one.dataset.id == report.id]
        report.held_out = bool(held)
        report.trained_too = [
            (one.id.removeprefix(f"{report.id}/"), trained[one.content])
            for one in held
            if one.content in trained
        ]


def nothing_left(skipped: Sequence[tuple[str, str]], what: str = "train") -> DataError:
    """The error of a run without songs to train or evaluate on; its details name each skipped one with its
    reason.
    """
    if not skipped:
        return DataError(f"nothing left to {what} on: the data sets hold no songs")
    reasons = [f"{name}: {reason}" for name, reason in skipped]
    return DataError(
        f"nothing left to {what} on: {count(len(skipped), 'song')} skipped ({listed(reasons)})",
        [f"skipped {reason}" for reason in reasons],
    )


def own_folders(config: RunConfig, datasets: DataSets) -> dict[Path, str]:
    """Where this run writes, resolved → what is there: nothing in these folders is a song."""
    caches = [config.resolve(config.cache_dir), datasets.text_dir]
    for dataset in datasets.audio:
        caches += [dataset.latent_dir, dataset.text_dir]
        caches += [dataset.download_dir] if isinstance(dataset, HubSet) and dataset.download_dir else []
    own = {Path(os.path.realpath(path)): "a cache of this run" for path in caches}
    return own | {Path(os.path.realpath(config.output_path)): "output_dir of this run"}


def _songs(dataset: DataSet, config: RunConfig, own: Mapping[Path, str], family: Family) -> folder.Found:
    if isinstance(dataset, HubSet):
        from .sources import hub

        return hub.scan(dataset, config, family.metadata)
    return folder.scan(dataset, own, family.metadata)


def _chosen(
    dataset: DataSet, songs: list[folder.Song], index: FactsIndex, progress: Progress
) -> tuple[list[tuple[folder.Song, AudioFacts | None]], list[tuple[str, str]]]:
    """Songs with the facts about their sound, in their order, unusable ones included; and those that are
    there again, as (name, reason).

    `max_num_samples` picks a subset that is the same in every run; only its songs are decoded.
    """
    # a table repeats rows on purpose, as upstream's converter does
    order = [[i] for i in range(len(songs))] if isinstance(dataset, HubSet) else same_songs(songs)
    limit = len(order)
    if dataset.max_num_samples is not None and dataset.max_num_samples < len(order):
        random.Random(dataset.id).shuffle(order)
        limit = dataset.max_num_samples
    chosen: dict[int, AudioFacts | None] = {}
    again: dict[int, str] = {}
    good = 0
    while order and good < limit:
        part, order = order[: limit - good], order[limit - good :]
        readable = [i for group in part for i in group if songs[i].problem is None]
        facts = dict(zip(readable, index.look_up([songs[i].audio for i in readable], progress), strict=True))
        chosen.update({i: facts.get(i) for group in part for i in group})
        for group in part:
            usable = [i for i in group if i in facts and _reason(dataset, facts[i]) is None]
            keep, others = kept(usable, songs, facts)
            good += len(keep)
            again |= others
    left = [(songs[i].name, again[i]) for i in sorted(again)]
    return [(songs[i], chosen[i]) for i in sorted(chosen.keys() - again.keys())], left


def _reason(dataset: DataSet, facts: AudioFacts | None) -> str | None:
    """Why a decoded song is left out, or None."""
    if facts is None:
        return "unknown"
    if facts.problem is not None:
        return facts.problem
    if facts.duration < dataset.min_duration:
        return f"{facts.duration:.1f} s is shorter than min_duration_seconds={dataset.min_duration:g}"
    return None


def _sample(
    dataset: DataSet,
    song: folder.Song,
    facts: AudioFacts,
    config: RunConfig,
    family: Family,
    report: SetReport,
) -> Sample:
    captions = _caption_variants(dataset, song)
    if not song.captions and not dataset.only_instance_prompt:
        report.no_caption.append(song.name)
    if song.doubtful is not None:
        report.doubtful.append((song.name, song.doubtful))
    report.notes += [(song.name, note) for note in song.notes]
    longest = min(dataset.max_duration, family.latents.max_seconds)
    start, seconds = _part(dataset, longest, facts, config.seed)
    former = None if facts.former is None else replace(facts, duration=facts.former)
    if isinstance(song.audio, FileAudio) and is_open_ended(song.audio.path):
        report.notes.append((song.name, "its Ogg stream has no end: it may be cut; what is there is taken"))
    if facts.peak is not None:
        said = f"its sound goes up to {facts.peak:.3g} times full scale, and is cut off at 1; make it quieter"
        report.notes.append((song.name, said))
    if facts.lost is not None:
        report.lost.append((song.name, facts.lost))
    if facts.counted is not None:
        report.counted.append((song.name, f"{facts.duration:.2f} s; {facts.counted}"))
    lyrics = _lyrics(dataset, song, family, report)
    return Sample(
        id=f"{dataset.id}/{song.name}",
        dataset=dataset,
        audio=song.audio,
        content=facts.content,
        captions=tuple(captions),
        lyrics=lyrics.text,
        start=start,
        seconds=seconds,
        cut=facts.duration > seconds + 1e-3,
        latents=family.latents,
        misread=facts.misread,
        former=None if former is None else _part(dataset, longest, former, config.seed),
        known=_known(song, family, report),
        timed=_timed(dataset, lyrics),
    )


def _count(sample: Sample, report: SetReport) -> None:
    """Count a song that is trained on."""
    name = sample.id.removeprefix(f"{report.id}/")
    report.songs += 1
    report.seconds += sample.seconds
    report.captions += len(sample.captions)
    report.trigger = sample.dataset.prepend_instance_prompt
    report.passes = (1 + sample.dataset.repeats) * sample.dataset.probability
    report.buckets[sample.bucket] += 1
    if sample.seconds < (least := sample.latents.min_seconds):
        report.padded.append((name, f"{sample.seconds:.1f} s, padded with silence to {least:g} s"))
    if sample.cut:
        report.cut.append((name, f"{sample.seconds:g} s kept from {sample.start:g} s"))
    if sample.is_cropped:
        report.cropped += 1
        report.crop = sample.at_once
        untimed = sample.dataset.crop_lyrics == "cut" and not sample.timed and sample.lyrics is not None
        report.untimed += [name] if untimed and not crops.nobody_sings(sample.lyrics or "") else []
    if sample.lyrics is None:
        report.no_lyrics.append(name)
    else:
        report.lyrics[name] = sample.lyrics


def _row(song: folder.Song, sample: Sample, notes: int, unread: int) -> SongRow:
    """What the song is trained with. notes, unread: how much the report says of its texts and metadata."""
    known = sample.dataset.lyrics_language or dict(sample.known).get("language")
    caption = song.sources.get("caption", "given") if any(song.captions) else None
    if sample.dataset.only_instance_prompt or (caption is None and any(sample.captions)):
        caption = "trigger words"
    problems = [
        "padded" if sample.seconds < sample.latents.min_seconds else "",
        f"cut to {sample.seconds:.0f} s" if sample.cut else "",
        f"{unread} not read" if unread else "",
        count(notes, "note") if notes else "",
        "caption may be lyrics" if song.doubtful else "",
    ]
    lyrics = None if sample.lyrics is None else song.sources.get("lyrics", "given")
    text = ", ".join(problem for problem in problems if problem)
    return SongRow(song.name, sample.seconds, caption, lyrics, known, text)


def _known(song: folder.Song, family: Family, report: SetReport) -> tuple[tuple[str, Any], ...]:
    """What the model is told of the song beside its caption and lyrics."""
    known = family.read_metadata(song.metadata)
    problems = [*song.unread, *known.problems]
    report.unread += [(song.name, problem) for problem in problems]
    report.known.update(known.values.keys())
    return tuple(sorted(known.values.items()))


def _lyrics(dataset: DataSet, song: folder.Song, family: Family, report: SetReport) -> Lyrics:
    """The song's lyrics as the model reads them, which is how they stand in every key."""
    lyrics = family.read_lyrics(song.lyrics or "", dataset.lyrics_language)
    report.notes += [(song.name, f"lyrics: {note}") for note in lyrics.notes]
    report.lyrics_changed += bool(lyrics.notes)
    if lyrics.problems and dataset.lyrics_unsupported == "error":
        raise DataError(f"{song.name}: {lyrics.problems[0]} (lyrics_unsupported=error)")
    report.notes += [(song.name, problem) for problem in lyrics.problems]
    return lyrics


def _timed(dataset: DataSet, lyrics: Lyrics) -> tuple[Timed, ...]:
    """The lines with their times, where they are to be cut by them and some line has one."""
    wanted = dataset.crop is not None and dataset.crop_lyrics == "cut"
    return tuple(lyrics.timed) if wanted and any(line.spans for line in lyrics.timed) else ()


def _caption_variants(dataset: DataSet, song: folder.Song) -> list[str]:
    """Trigger words, then shuffles, applied to the song's captions; [""] when there is nothing."""
    trigger = dataset.instance_prompt or ""
    if dataset.only_instance_prompt:
        return [trigger]
    captions = song.captions or [""]
    if dataset.shuffle is not None:
        captions = [variant for caption in captions for variant in shuffled(caption, dataset.shuffle)]
    if dataset.prepend_instance_prompt:
        captions = [f"{trigger} {caption}".strip() for caption in captions]
    return unique(captions)


def _part(dataset: DataSet, longest: float, facts: AudioFacts, seed: int) -> tuple[float, float]:
    """(start, seconds) of the part that is kept. `random` is fixed by the song's content and the seed."""
    spare = facts.duration - longest
    if spare <= 0:
        return 0.0, round(facts.duration, 6)
    start = {"beginning": 0.0, "end": spare}.get(dataset.truncation)
    if start is None:
        start = random.Random(f"{seed}:{facts.content}").uniform(0.0, spare)
    return round(start, 3), longest
