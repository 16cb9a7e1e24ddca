"""`acestep-mlx fuse`: LoRAs become part of a model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..formatting import count
from .help_text import examples
from .paths import NamedPath

if TYPE_CHECKING:
    from ..convert.fused import FuseReport

NOTABLE = 0.25  # rounding error as a share of what the LoRA changes, from which on there is a warning


@click.command(
    "fuse",
    epilog=examples("acestep-mlx fuse --model ace-step --lora my-lora.safetensors -o ace-step-mine"),
)
@click.option(
    "--model",
    required=True,
    type=NamedPath(),
    metavar="MLX_FOLDER",
    help="The base model; it stays as it is.",
)
@click.option(
    "--lora",
    "loras",
    required=True,
    multiple=True,
    type=NamedPath(),
    metavar="PATH",
    help="LoRA file, folder or training checkpoint of any format; repeatable.",
)
@click.option(
    "--lora-scale",
    "scales",
    multiple=True,
    type=float,
    metavar="NUMBER",
    help="Strength of each --lora in turn (default 1.0; one number serves all).",
)
@click.option(
    "-o",
    "--output",
    "--mlx-path",
    required=True,
    type=NamedPath(),
    metavar="DIR",
    help="The MLX folder to write: a new one, or an empty one.",
)
def command(model: Path, loras: tuple[Path, ...], scales: tuple[float, ...], output: Path) -> None:
    """Merge LoRAs into a model and write a new MLX folder.

    Several --lora add up. A quantised model is dequantised, fused and quantised again layer by layer, and
    what that loses is printed.
    """
    if len(scales) not in (0, 1, len(loras)):
        raise click.UsageError(
            f"{len(scales)} --lora-scale for {len(loras)} --lora: give none, one, or one each"
        )
    strengths = scales if len(scales) == len(loras) else (scales or (1.0,)) * len(loras)
    from ..convert.fused import fuse
    from .progress import Display

    with Display() as progress:
        report = fuse(model, list(zip(loras, strengths, strict=True)), output, progress=progress)
    whole = f" and {count(report.parameters, 'whole parameter')}" if report.parameters else ""
    click.echo(
        f"{report.path}: {count(len(loras), 'LoRA')} in {count(report.layers, 'layer')}{whole}, "
        f"{report.seconds:.0f} s"
    )
    for line in rounding_lines(report):
        click.echo(line, err=line.startswith("warning"))


def rounding_lines(report: FuseReport) -> list[str]:
    """What storing the fused weights with few digits costs; nothing to say where that is next to nothing."""
    whole = report.whole
    if whole.weight <= 1e-5 or not whole.update:
        return []
    name, worst = report.worst
    share = f"{whole.update:.0%}" if whole.update >= 0.1 else f"{whole.update:.1%}"
    lines = [
        f"rounding{' to few bits' if report.quantized else ''} moves the fused weights by {whole.weight:.2%} "
        f"({worst.weight:.2%} in {name}): an error {share} as large as what the LoRA changes"
    ]
    if whole.update > NOTABLE:
        better = "an unquantised" if report.quantized else "a float32"
        much = "more than the LoRA changes" if whole.update > 1 else f"a notable part of the LoRA ({share})"
        lines.append(
            f"warning: rounding costs {much}; fuse into {better} model, or "
            "keep the LoRA apart (generate --lora)"
        )
    return lines
