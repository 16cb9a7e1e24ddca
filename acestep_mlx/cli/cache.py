"""`acestep-mlx cache`: fill the latent and text caches of a configuration, without training."""

from __future__ import annotations

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
    epilog=examples("acestep-mlx cache config.json", "acestep-mlx cache my-songs-lora --prune"),
)
@click.argument("config")
@click.argument("overrides", nargs=-1, type=click.UNPROCESSED)
@click.option("--prune", is_flag=True, help="Delete cache files that this configuration does not use.")
def command(config: str, overrides: tuple[str, ...], prune: bool) -> None:
    """Fill the caches that CONFIG needs: latents, captions and lyrics of every song.

    CONFIG is a config.json, env=NAME or example=NAME; --key=value overrides its settings. What is in the
    caches already is not computed again, so an interrupted run goes on where it was.
    """
    from ..config.read_datasets import read_datasets
    from ..config.read_run import load_config
    from ..data.encode import encode_dataset
    from ..data.manifest import build_manifest
    from ..training.preflight import check_caches
    from ..training.prepare import open_model
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
