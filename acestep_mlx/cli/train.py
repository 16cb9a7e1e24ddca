"""`acestep-mlx train`: run a configuration, show how it goes."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from .events import TrainDisplay

if TYPE_CHECKING:
    from ..config import TrainConfig


def _dry_run(config: TrainConfig) -> None:
    """Print the resolved configuration, the data, steps and the memory that the longest batch takes."""
    from ..data.manifest import build_manifest
    from ..models.load import ModelFolder
    from ..training import plan
    from .counts import CountProgress
    from .dry_run import report_lines

    with CountProgress() as progress:
        manifest = build_manifest(config, progress)
    local = config.resolve(config.pretrained_model_name_or_path)
    folder = ModelFolder.open(local) if (local / "transformer.safetensors").is_file() else None
    longest = max(sample.seconds for sample in manifest.samples)
    for line in report_lines(config, manifest, plan.verdict(config, folder, longest)):
        click.echo(line)


@click.command(
    "train",
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
    short_help="Train a LoRA from a config.json.",
)
@click.argument("config")
@click.option(
    "--dry-run", is_flag=True, help="Show the resolved configuration, data, memory and length; train nothing."
)
@click.pass_context
def command(context: click.Context, config: str, dry_run: bool) -> None:
    """Train a LoRA as CONFIG says: a config.json, env=NAME or example=NAME.

    Every option of the configuration may also follow as --key=value, and wins. Ctrl-C ends with a complete
    checkpoint; the same command with resume_from_checkpoint=latest goes on from there, bit for bit.
    """
    from ..config import load_config

    resolved = load_config(config, context.args)
    if dry_run:
        _dry_run(resolved)
        return
    from ..training.loop import train

    with TrainDisplay() as display:
        result = train(resolved, on_event=display)
    if not result.finished:
        click.echo(
            f"interrupted at step {result.step}; {result.checkpoint} is complete. "
            "Go on with --resume_from_checkpoint=latest",
            err=True,
        )
        sys.exit(130)
