"""`acestep-mlx prepare`: drafts of what a person would otherwise type for each song."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import AceStepError
from ..formatting import count, listed
from ..io.filenames import is_folder
from ..registry import REGISTRY
from .help_text import examples
from .paths import NamedPath

if TYPE_CHECKING:
    from ..config.datasets import LocalSet
    from ..data.drafting import Draft, Outcome, Transcribe
    from .progress import Display

_SHOWN = ("bpm", "keyscale", "timesignature", "language", "genre", "caption", "lyrics")


@click.command(
    "prepare",
    epilog=examples(
        "acestep-mlx prepare my-songs --dry-run",
        "acestep-mlx prepare my-songs --trigger zyx",
        "acestep-mlx prepare my-songs --transcribe openai/whisper-large-v3-turbo",
    ),
)
@click.argument("folder", type=NamedPath())
@click.option("--trigger", metavar="WORD", help="A word before each drafted caption, that calls the LoRA up.")
@click.option(
    "--family",
    type=click.Choice(list(REGISTRY)),
    default=list(REGISTRY)[-1],
    show_default=True,
    help="The model that the captions are for.",
)
@click.option(
    "--transcribe",
    metavar="MODEL",
    help="Draft missing lyrics by ear: a Whisper's folder or hub name. Correct them before you train.",
)
@click.option("--dry-run", is_flag=True, help="Say what would be written, and write nothing.")
def command(folder: Path, trigger: str | None, family: str, transcribe: str | None, dry_run: bool) -> None:
    """Draft what is missing for each song in FOLDER: tempo, key, metre, language, genre, and a caption.

    Drafts go into SONG.json beside each song, with where they are from and how sure they are. What you wrote,
    there or in other files, now or later, counts before them. A second run does only what is new or changed.
    """
    from ..data.drafting import Wanted, prepare
    from ..families import family as named
    from .progress import Display

    if not is_folder(folder):
        raise AceStepError(f"{folder} is not a folder; name the one that your songs are in")
    outcomes: list[Outcome] = []
    with Display() as display:
        ears = None if transcribe is None else _ears(transcribe, display)
        word = (trigger or "").strip() or None
        model = Path(transcribe or "").name  # not where it is on this machine
        wanted = Wanted(named(family), word, not dry_run, ears, model)
        try:
            for outcome in prepare(_songs(folder), wanted, display):
                outcomes.append(outcome)
                display.say(_line(outcome))
        except KeyboardInterrupt:
            display.close()
            display.say(f"{count(len(outcomes), 'song')} done; the same command goes on with the others")
            raise
    for line in _summary(outcomes, dry_run):
        click.echo(line)
    if outcomes and all(one.problem is not None for one in outcomes):
        raise AceStepError(f"no song in {folder} could be prepared; see the reasons above")


def _ears(model: str, display: Display) -> Transcribe:
    """What hears lyrics."""
    from ..speech.find import find_whisper
    from ..speech.transcribe import Transcriber

    return Transcriber(find_whisper(model, display)).hear_file


def _songs(folder: Path) -> LocalSet:
    """The folder as a data set."""
    from ..config.datasets import LocalSet
    from ..config.read_datasets import read_datasets
    from ..config.read_run import load_config

    entry = {"id": "my-songs", "type": "local", "instance_data_dir": str(folder.resolve())}
    options: dict[str, Any] = {"vae_cache_disable": True, "data_backend_config": [entry]}
    (dataset,) = read_datasets(load_config(options)).audio
    assert isinstance(dataset, LocalSet)
    return dataset


def _line(outcome: Outcome) -> str:
    """What was found for a song, in one line."""
    if outcome.problem is not None:
        return f"{outcome.name}: left out: {outcome.problem}"
    said = [_told(name, outcome.written[name]) for name in _SHOWN if name in outcome.written]
    notes = [f"({note})" for note in outcome.notes]
    return " ".join([f"{outcome.name}:", "; ".join(said) or "nothing new", *notes])


def _told(name: str, draft: Draft) -> str:
    """`124 BPM (or 62)`."""
    match name:
        case "bpm":
            text = f"{draft.value} BPM"
        case "timesignature":
            text = f"{draft.value} beats a bar"
        case "lyrics":
            text = f"lyrics, {draft.how}"
        case "caption":
            text = f"“{draft.value}”"
        case _:
            text = str(draft.value)
    return f"{text} (or {', '.join(map(str, draft.others))})" if draft.others else text


def _summary(outcomes: list[Outcome], dry_run: bool) -> list[str]:
    from ..data.drafting import HEARD, quiet

    used = [one for one in outcomes if one.problem is None]
    new = [one for one in used if one.written]
    done = "would get drafts (--dry-run: nothing is written)" if dry_run else "got drafts"
    lines = [
        f"{count(len(used), 'song')}: {len(new)} {done}, {len(used) - len(new)} have all there is to draft"
    ]
    problems = [f"{one.name}: {one.problem}" for one in outcomes if one.problem is not None]
    uneven = [f"{name}: {apart:+.0f} LU" for name, apart in quiet(used)]
    unsure = [one.name for one in new if "bpm" in one.written and one.written["bpm"].others]
    silent = [one.name for one in used if one.lacking and "lyrics" not in one.written]
    for names, what in (
        (problems, "left out"),
        (unsure, "whose tempo may as well be half or twice as fast"),
        (uneven, "much louder or quieter than the others"),
        (silent, "without lyrics; if somebody sings, write them into SONG.lyrics"),
    ):
        if names:
            lines.append(f"{len(names)} {what} ({listed(names)})")
    if heard := [one.name for one in new if "lyrics" in one.written and one.written["lyrics"].how == HEARD]:
        lines.append(
            f"{len(heard)} whose lyrics were made out by ear, with mistakes; correct them before you train"
        )
    if new and not dry_run:
        lines.append("drafts are guesses: look at them with `acestep-mlx info`, correct them in SONG.json")
    return lines
