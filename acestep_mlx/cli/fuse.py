"""`acestep-mlx fuse`: LoRAs become part of a model."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("fuse")
@click.option(
    "--model",
    required=True,
    type=click.Path(path_type=Path),
    metavar="MLX_FOLDER",
    help="The base model; it stays as it is.",
)
@click.option(
    "--lora",
    "loras",
    required=True,
    multiple=True,
    type=click.Path(path_type=Path),
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
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="The MLX folder to write; it must not exist.",
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
    from ..convert.fuse import fuse
    from .progress import ByteProgress

    with ByteProgress() as progress:
        report = fuse(model, list(zip(loras, strengths, strict=True)), output, progress=progress)
    whole = f" and {report.parameters} whole parameters" if report.parameters else ""
    click.echo(
        f"{report.path}: {len(loras)} LoRA(s) in {report.layers} layers{whole}, {report.seconds:.0f} s"
    )
    if report.errors and report.mean.weight > 1e-5:
        name, worst = report.worst
        mean = report.mean
        how = "quantising again" if report.quantized else "storing"
        click.echo(
            f"{how} moved the fused weights by {mean.weight:.2%} on average ({worst.weight:.2%} in {name}), "
            f"which is {mean.update:.1%} of what the LoRA changes"
        )
