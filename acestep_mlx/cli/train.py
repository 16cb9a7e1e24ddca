"""`acestep-mlx train`: run a configuration, show how it goes."""

from __future__ import annotations

import shlex
import sys
from typing import TYPE_CHECKING

import click

from .events import TrainDisplay
from .help_text import examples
from .streams import reader_gone

if TYPE_CHECKING:
    from ..report.events import Event


@click.command(
    "train",
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
    short_help="Train a LoRA from a config.json.",
    epilog=examples(
        "acestep-mlx train my-songs-lora --dry-run",
        "acestep-mlx train config.json --lora_rank=16 --max_train_steps=500",
        "acestep-mlx train example=my-songs --overwrite",
    ),
)
@click.argument("config", required=False)
@click.option(
    "--dry-run",
    is_flag=True,
    help="Say in five lines whether it fits, how long it takes and what is wrong with the songs; train "
    "nothing.",
)
@click.option("--verbose", is_flag=True, help="With --dry-run: every option, song and estimate, too.")
@click.option(
    "--overwrite",
    is_flag=True,
    help="Begin anew where output_dir holds a run: it is moved aside, not deleted.",
)
@click.pass_context
def command(
    context: click.Context, config: str | None, dry_run: bool, verbose: bool, overwrite: bool
) -> None:
    """Train a LoRA as CONFIG says: a config.json, a folder that holds one, env=NAME or example=NAME.

    Every option of the configuration may also follow as --key=value, and wins. Ctrl-C ends with a complete
    checkpoint; the same command with resume_from_checkpoint=latest goes on from there, bit for bit. An
    output_dir that holds a run is gone on with, refused or moved aside, never replaced.
    """
    from ..config.read_run import load_config

    if config is None:
        raise click.UsageError(
            "no configuration is named; give a config.json, a folder that holds one, or make one for your "
            "songs: acestep-mlx new FOLDER"
        )
    if verbose and not dry_run:
        raise click.UsageError("--verbose goes with --dry-run")
    resolved = load_config(config, context.args)
    if dry_run:
        from .dry_run import show

        typed = ["acestep-mlx", "train", config, *context.args, *(["--overwrite"] if overwrite else [])]
        show(resolved, overwrite, command=shlex.join(typed), verbose=verbose)
        return
    from ..training.interrupts import INTERRUPTED, StopRequest
    from ..training.run import train

    stop = StopRequest(INTERRUPTED)
    with TrainDisplay() as display:

        def listen(event: Event) -> None:
            display(event)
            if reader_gone(sys.stderr):  # as any program in a pipe, but with a checkpoint
                stop.request()

        result = train(resolved, overwrite=overwrite, on_event=listen, stop=stop)
    if not result.finished:
        again = resolved.resume_from_checkpoint == "latest" and not overwrite
        go_on = "The same command goes" if again else "--resume_from_checkpoint=latest goes"
        click.echo(
            f"interrupted at step {result.step}; {result.checkpoint} is complete. {go_on} on from there",
            err=True,
        )
        sys.exit(INTERRUPTED)
