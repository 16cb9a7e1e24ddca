"""`acestep-mlx new`: from a folder of songs to a run, with what fits and why."""

from __future__ import annotations

import json
import re
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import AceStepError, not_utf8
from ..io.filenames import is_folder
from ..io.schema import is_utf8
from ..registry import REGISTRY, answers
from .help_text import examples
from .paths import NamedPath, typed

if TYPE_CHECKING:
    from ..data.manifest import Manifest
    from ..training.proposal import Model, Proposal

WIDTH = 80
FILLED = re.compile(r"\{(?:model_family|id)\}")
README = "README.txt"


@click.command(
    "new",
    epilog=examples(
        "acestep-mlx new my-songs",
        "acestep-mlx new my-songs --trigger zyx --model ace-step-8bit -o zyx-lora",
    ),
)
@click.argument("folder", type=NamedPath())
@click.option(
    "--output", "-o", type=NamedPath(), metavar="DIR", help="The run's folder. [default: NAME-lora]"
)
@click.option("--family", type=click.Choice(list(REGISTRY)), help="Of the model. [default: what fits best]")
@click.option("--model", type=NamedPath(), metavar="DIR", help="A model that is here: an MLX folder.")
@click.option("--trigger", metavar="WORD", help="A word before every caption, that calls the LoRA up.")
@click.option("--steps", type=click.IntRange(1), metavar="N", help="So many. [default: by the songs]")
@click.option("--yes", is_flag=True, help="Ask nothing.")
def command(
    folder: Path,
    output: Path | None,
    family: str | None,
    model: Path | None,
    trigger: str | None,
    steps: int | None,
    yes: bool,
) -> None:
    """Make a run for the songs in FOLDER: looks at them and at this machine, and writes config.json,
    multidatabackend.json and a README.txt that says why each thing was chosen.

    On a terminal up to three questions are asked. Nothing in FOLDER is changed, nothing is trained.
    """
    from ..doctor.speed import glance
    from ..io.new_folder import new_folder, new_path
    from ..training.proposal import bits_of, reasons, song_lines, step_seconds, steps_for

    if not is_folder(folder):
        raise AceStepError(f"{folder} is not a folder; name the one that your songs are in")
    if not is_utf8(folder.resolve()):
        raise AceStepError(f"{folder}: its path {not_utf8(folder, '; rename it')}")
    if model is not None and family is not None:
        raise click.UsageError("--model says which family it is of; leave --family out")
    target = new_path(output or Path(f"{folder.resolve().name}-lora"), "--output")
    for path, way in ((folder.resolve(), "rename it"), (target, "choose another --output")):
        if found := FILLED.search(str(path)):
            raise AceStepError(f"{path}: {found[0]} in a path is filled in by a configuration; {way}")
    asking = not yes and on_terminal()
    manifest = _look(folder)
    for line in song_lines(manifest):
        click.echo(_wrapped(line))
    proposal = _proposed(manifest, model, family, asking)
    if trigger is None:
        trigger = _ask("A word that calls the LoRA up, before every caption", "", asking)
    if steps is None:
        usual = steps_for(manifest, proposal)
        steps = click.prompt("Steps", usual, type=click.IntRange(1), err=True) if asking else usual
    trigger = " ".join(trigger.split())
    taken = step_seconds(proposal, manifest, glance(bits_of(proposal)))
    told = reasons(proposal, manifest, steps, trigger, taken)
    files = _files(proposal, manifest, steps, trigger, target, folder.resolve(), told)
    with new_folder(target, needed=sum(len(text) for text in files.values())) as place:
        for name, text in files.items():
            (place / name).write_text(text, encoding="utf-8")
    click.echo()
    for what, why in told:
        click.echo(_wrapped(f"{what}: {why}"))
    click.echo(f"\nwritten: {target}")
    for i, what in enumerate(_commands(folder, output or Path(target.name), proposal, manifest)):
        click.echo(f"{'' if i else 'next:':6}{what}")


def _commands(folder: Path, run: Path, proposal: Proposal, manifest: Manifest) -> list[str]:
    """What to do next: captions first, where songs have none."""
    from ..families import of_flavour

    train = f"acestep-mlx train {typed(run)}"
    found = [f"{train} --dry-run", train]
    if any(one.no_caption for one in manifest.report.sets):
        family = of_flavour(proposal.model.flavour).name
        found.insert(0, f"acestep-mlx prepare {typed(folder)} --family {family}")
    return found


def on_terminal() -> bool:
    """Whether somebody can answer."""
    return sys.stdin.isatty() and sys.stderr.isatty()


def _look(folder: Path) -> Manifest:
    """The songs, as the family that takes the longest sees them; nothing is written."""
    from ..config.read_run import load_config
    from ..data.manifest import build_manifest
    from ..families import families
    from .progress import Display

    longest = max(families(), key=lambda one: one.latents.max_seconds)
    entry = {"id": "my-songs", "type": "local", "instance_data_dir": str(folder.resolve())}
    options: dict[str, Any] = {"model_flavour": next(iter(longest.variants)), "vae_cache_disable": True}
    with Display() as progress:
        return build_manifest(load_config({**options, "data_backend_config": [entry]}), progress)


def _proposed(manifest: Manifest, model: Path | None, family: str | None, asking: bool) -> Proposal:
    """What is trained and how; which model is asked where nobody said it."""
    from ..training.proposal import Model, best

    if model is not None:
        return best([_here(model)], manifest)
    first = {name: Model.released(next(iter(answers(name).variants))) for name in REGISTRY}
    if family is None:
        proposal = best(list(first.values()), manifest)
        if not asking:
            return proposal
        usual = next(name for name, one in first.items() if one is proposal.model)
        titles = ", ".join(f"{name} is {answers(name).title}" for name in REGISTRY)
        family = click.prompt(
            f"Which model ({titles})", usual, type=click.Choice(list(REGISTRY)), show_choices=False, err=True
        )
    return best([first[family]], manifest)


def _here(path: Path) -> Model:
    """A model folder. CheckpointError when it is none."""
    from ..families.model_folder import ModelFolder
    from ..training.memory import stored_bits
    from ..training.proposal import Model

    folder = ModelFolder.open(path)
    sizes = folder.component_config("transformer")
    flavour = folder.family.flavours(sizes)[0]
    return Model(flavour, str(path.resolve()), sizes, stored_bits(folder), folder)


def _ask(question: str, usual: str, asking: bool) -> str:
    if not asking:
        return usual
    return str(click.prompt(f"{question} (Enter: none)", usual, show_default=False, err=True))


def _files(
    proposal: Proposal,
    manifest: Manifest,
    steps: int,
    trigger: str,
    target: Path,
    songs: Path,
    told: list[tuple[str, str]],
) -> dict[str, str]:
    """The run's files: name → content. ConfigError for what `train` would refuse."""
    from ..config.read_datasets import read_datasets
    from ..config.read_run import load_config
    from ..training.proposal import data_config, run_config

    made: dict[str, Any] = {
        "config.json": run_config(proposal, manifest, steps, target, trigger),
        "multidatabackend.json": data_config(proposal, songs, trigger),
    }
    config = load_config({**made["config.json"], "data_backend_config": made["multidatabackend.json"]})
    read_datasets(config)  # what train refuses is not written
    why = "\n\n".join(_wrapped(f"{what}: {reason}") for what, reason in told)
    heading = f"A run of acestep-mlx for the songs in {songs}"
    end = "Change config.json as you like (docs/configuration.md explains each key), then:\n\n"
    end += f"  acestep-mlx train {typed(target)}\n"
    return {
        **{name: json.dumps(content, indent=2, ensure_ascii=False) + "\n" for name, content in made.items()},
        README: f"{heading}\n\nWhy each thing was chosen\n\n{why}\n\n{end}",
    }


def _wrapped(text: str) -> str:
    return textwrap.fill(text, WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
