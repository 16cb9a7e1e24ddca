"""`acestep-mlx export`: a LoRA for another program, verified."""

from __future__ import annotations

from pathlib import Path

import click

from ..errors import ConfigError
from ..words import count, size
from .paths import NamedPath

FORMATS = {
    "peft": "the original pipeline, diffusers, ComfyUI",
    "comfyui": "ComfyUI",
    "simpletuner": "SimpleTuner's --init_lora",
    "mlx": "acestep-mlx, with the trained A, B and scale apart",
}
FILE_NAME = "pytorch_lora_weights.safetensors"


@click.command("export")
@click.argument("path", type=NamedPath())
@click.option(
    "--format",
    "kind",
    default="peft",
    show_default=True,
    type=click.Choice(list(FORMATS)),
    help="; ".join(f"{name}: for {what}" for name, what in FORMATS.items()) + ".",
)
@click.option(
    "--dtype",
    default="float32",
    show_default=True,
    type=click.Choice(["float32", "float16", "bfloat16"]),
    help="Precision of the file; the smaller ones halve it.",
)
@click.option(
    "-o",
    "--output",
    type=NamedPath(),
    metavar="FILE",
    help=f"File to write, or a folder for {FILE_NAME} (default: named after PATH, here).",
)
@click.option(
    "--model",
    type=NamedPath(),
    metavar="MLX_FOLDER",
    help="The base model: checks the LoRA against it; ComfyUI files of a DoRA or lyrics embedder need it.",
)
@click.option(
    "--with-lyrics-embedder", is_flag=True, help="Put the trained lyrics embedder into the file too."
)
@click.option("--force", is_flag=True, help="Overwrite FILE.")
def command(
    path: Path,
    kind: str,
    dtype: str,
    output: Path | None,
    model: Path | None,
    with_lyrics_embedder: bool,
    force: bool,
) -> None:
    """Write the LoRA at PATH (checkpoint folder or LoRA file of any format) as one file for another program.

    The trained scale is multiplied in, so that strength 1.0 is right everywhere. The file is read back and
    compared before this says done.
    """
    from ..lora.formats import DTYPES, find_file, prepare, read_lora, verify, write_lora
    from ..lora.lyrics_embedder import ignored_by_comfyui
    from ..models.load import ModelFolder

    source = find_file(path)
    target = _target(source if path.is_file() else path, kind, output)
    if target.exists() and target.samefile(source):
        raise ConfigError(f"{target} is the LoRA itself; choose another file with -o")
    if target.exists() and not force:
        raise ConfigError(f"{target} exists already; overwrite it with --force or choose another with -o")
    weights = read_lora(path)
    base = ModelFolder.open(model).load("transformer") if model else None
    if base is not None:
        weights.check_against(base)
    write_lora(target, weights, kind, DTYPES[dtype], base=base, with_lyrics_embedder=with_lyrics_embedder)
    written = prepare(weights, kind, base, with_lyrics_embedder=with_lyrics_embedder)
    difference = verify(target, written, DTYPES[dtype])
    kinds = "DoRA" if weights.is_dora else "LoRA"
    click.echo(
        f"{target}: {kinds} of {count(len(weights.modules), 'module')}, rank {weights.rank}, {dtype}, "
        f"{size(target.stat().st_size)}, for {FORMATS[kind]}"
    )
    if kind == "peft" and target.name != FILE_NAME:
        click.echo(f"note: the original pipeline wants a folder with this file in it as {FILE_NAME}")
    embedder = {**(weights.lyrics_embedder or {}), **weights.diffs}
    if embedder and not with_lyrics_embedder:
        click.echo("note: the trained lyrics embedder is not in this file; --with-lyrics-embedder adds it")
    elif embedder and kind == "comfyui" and (lost := ignored_by_comfyui(embedder)):
        click.echo(
            f"note: ComfyUI has no way to load {len(lost)} of the lyrics embedder's tensors (pos_bias_u/v)"
        )
    if not weights.is_trained:
        click.echo("note: this LoRA is untrained: it changes nothing")
    click.echo(f"read back and compared: the update differs by {difference:.1e} of itself at most")


def _target(source: Path, kind: str, output: Path | None) -> Path:
    """The file to write: as told, in the folder told, or named after the source."""
    if output is not None:
        return output / FILE_NAME if output.is_dir() or not output.suffix else output
    source = source.absolute()
    name = (
        source.parent.name if source.name == FILE_NAME else source.stem if source.is_file() else source.name
    )
    return Path(f"{name}-peft", FILE_NAME) if kind == "peft" else Path(f"{name}-{kind}.safetensors")
