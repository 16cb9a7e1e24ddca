"""Lyrics line by line, for people: `acestep-mlx info track.lyrics` and the dataset report."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ....errors import CheckpointError
from ....formatting import count, listed
from ...protocol import LyricsQuestion
from .tokenizer import MAX_TOKENS, LineReport, LyricsReport, LyricTokenizer
from .vocabulary import without_model


def with_vocabulary(asked: LyricsQuestion) -> list[str]:
    """`lyrics_report` with the vocabulary that is given, the model's, or wherever `convert` would find it."""
    return lyrics_report(asked.text, LyricTokenizer(_vocabulary(asked)), asked.language).splitlines()


def _vocabulary(asked: LyricsQuestion) -> Path:
    given = asked.given
    if given is not None:
        if not given.is_file():
            what = "is a folder; name a file" if given.is_dir() else "no such file"
            raise CheckpointError(f"{given}: {what}")
        return given
    if asked.folder is not None:
        return asked.folder.lyric_vocab()
    try:
        return without_model(asked.cache, asked.progress)
    except CheckpointError as error:
        raise CheckpointError(f"{error}; or name the model they are for: --model MLX_FOLDER") from None


def lyrics_report(text: str, tokenizer: LyricTokenizer, language: str | None = None) -> str:
    """Per line: language, normalised text, number of tokens, unknown characters, notes; then a summary."""
    report = tokenizer.report(text, language)
    return "\n".join([*_lines(report), "", *summary(report)])


def _lines(report: LyricsReport) -> Iterator[str]:
    width = max(4, len(str(len(report.lines))))
    yield f"{'line':>{width}}  in  tokens  text"
    for line in report.lines:
        number = f"{line.number:>{width}}"
        if line.language is None and not line.dropped:
            yield f"{number}  --  {len(line.tokens):>6}  (blank)"
            continue
        spoken = line.normalised if line.language else line.text.strip()
        yield f"{number}  {line.language or '--'}  {len(line.tokens):>6}  {spoken}"
        yield from (f"{'':{width}}              {remark}" for remark in _remarks(line))


def _remarks(line: LineReport) -> Iterator[str]:
    if line.dropped:
        yield f"dropped: {line.dropped}"
    if line.unknown:
        yield f"unknown: {' '.join(map(_shown, line.unknown))}"
    yield from line.notes


def _shown(character: str) -> str:
    return character if character.isprintable() else f"U+{ord(character[:1] or chr(0)):04X}"


def summary(report: LyricsReport) -> list[str]:
    """What a dataset report says of one song: languages, tokens, and all that is lost, by line."""
    languages = ", ".join(f"{language} {lines}" for language, lines in report.languages.items()) or "none"
    sung = sum(1 for line in report.lines if line.language)
    out = [f"{count(sung, 'line')} sung ({languages}), {len(report.ids)} of at most {MAX_TOKENS} tokens"]
    if report.cut_tokens:
        out.append(f"too long: {count(report.cut_tokens, 'token')} from line {report.cut_line} on cut off")
    together: dict[tuple[int, ...], list[str]] = {}  # a foreign line has many characters, and is one problem
    for character, numbers in report.unknown.items():
        together.setdefault(tuple(numbers), []).append(_shown(character))
    for places, characters in together.items():
        out.append(f"no token for {' '.join(characters)} in {_listed(places)}")
    for line in report.dropped:
        out.append(f"line {line.number} dropped: {line.dropped}")
    return out


def remarks(report: LyricsReport) -> list[str]:
    """All that is lost or changed, by line, for somebody who is about to hear them."""
    changed: dict[str, list[int]] = {}
    for line in report.lines:
        for note in line.notes:
            changed.setdefault(note, []).append(line.number)
    lost = summary(report)[1:]  # the first one counts lines and tokens
    return [*lost, *(f"{note} in {_listed(tuple(numbers))}" for note, numbers in changed.items())]


def _listed(numbers: tuple[int, ...], limit: int = 8) -> str:
    return f"line{'s' * (len(numbers) > 1)} {listed(list(map(str, numbers)), limit, ', ')}"
