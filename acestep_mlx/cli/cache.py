"""`acestep-mlx cache`: fill the caches of a configuration without training; list and remove what is kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from ..errors import ConfigError
from ..formatting import count, size
from .help_text import examples

if TYPE_CHECKING:
    from ..data.encode import Cache


@click.command(
    "cache",
    context_settings={"ignore_unknown_options": True},
    epilog=examples(
        "acestep-mlx cache config.json",
        "acestep-mlx cache my-songs-lora --prune",
        "acestep-mlx cache --list",
        "acestep-mlx cache --remove 2",
    ),
)
@click.argument("config", required=False)
@click.argument("overrides", nargs=-1, type=click.UNPROCESSED)
@click.option("--prune", is_flag=True, help="Delete cache files that this configuration does not use.")
@click.option(
    "--list",
    "listing",
    is_flag=True,
    help="List converted models, caches and downloads of models, with their sizes.",
)
@click.option(
    "--remove",
    multiple=True,
    metavar="NUMBER_OR_NAME",
    help="Remove one of them, by what --list calls it; several with commas, or repeated.",
)
@click.option("--yes", is_flag=True, help="Remove without asking.")
def command(
    config: str | None,
    overrides: tuple[str, ...],
    prune: bool,
    listing: bool,
    remove: tuple[str, ...],
    yes: bool,
) -> None:
    """Fill the caches that CONFIG needs, or list and remove what takes room.

    CONFIG is a config.json, a run's folder, env=NAME or example=NAME; --key=value overrides its settings.
    Latents, captions and lyrics of every song are encoded. What is in the caches already is not computed
    again, so an interrupted run goes on where it was.

    --list also shows what other runs on this machine keep. What is removed is made or fetched again when it
    is needed; what a running process uses is never removed.
    """
    if listing or remove:
        _kept(config, overrides, remove, ask=not yes, other=prune or (listing and bool(remove)))
        return
    if config is None:
        raise click.UsageError("name a CONFIG to fill its caches, or --list what is kept on this machine")
    if yes:
        raise click.UsageError("--yes goes with --remove")
    _fill(config, overrides, prune)


def _kept(
    config: str | None, overrides: Sequence[str], names: Sequence[str], *, ask: bool, other: bool
) -> None:
    from .space import gathered, lines, remove

    if other:
        raise click.UsageError("--list, --remove and --prune exclude each other")
    kept = gathered(config, overrides)
    if names:
        remove(kept, names, ask=ask)
        return
    for line in lines(kept):
        click.echo(line)


def _fill(config: str, overrides: Sequence[str], prune: bool) -> None:
    from ..config.read_datasets import read_datasets
    from ..config.read_run import load_config
    from ..data.encode import encode_dataset
    from ..data.manifest import build_manifest
    from ..training.preflight import check_caches
    from ..training.prepared import open_model
    from .progress import Display

    settings = load_config(config, overrides)
    if settings.vae_cache_disable:
        raise ConfigError("vae_cache_disable is set: there are no caches to fill")
    datasets = read_datasets(settings)
    check_caches(settings, datasets)
    with Display() as progress:
        manifest = build_manifest(settings, progress, datasets=datasets)
        # on-demand data sets are what this command is for, too
        folder = open_model(settings, progress)
        cache = encode_dataset(manifest, settings, folder, progress, everything=True)
    for line in manifest.report.lines(20):
        click.echo(line)
    if prune:
        files, freed = cache.prune()
        click.echo(f"deleted {count(files, 'cache file')} not in use, {size(freed)}")
    click.echo(summary(cache))


def summary(cache: Cache) -> str:
    """Songs, minutes and bytes in one line."""
    used = cache.disk_usage()
    minutes = sum(sample.seconds for sample in cache.samples) / 60
    skipped = f", {len(cache.skipped)} skipped" if cache.skipped else ""
    per_minute = used / minutes if minutes else 0.0
    return (
        f"{count(len(cache.samples), 'song')}, {minutes:.1f} minutes{skipped}; "
        f"{size(used)} of caches ({size(per_minute)} per minute)"
    )
