"""`cache --list` and `cache --remove`: what is on the disk that can be made or fetched again."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import click

from ..errors import DataError
from ..formatting import listed, size
from ..io.kept import Kept, cache_folder, chosen

MADE = {"model": "made", "cache": "last written", "download": "fetched"}


def gathered(config: str | None, overrides: Sequence[str]) -> list[Kept]:
    """Converted models, caches (of any run here, and of `config`) and downloads of models, measured now."""
    from ..convert.conversions import kept_conversions
    from ..data.places import kept_caches
    from ..families import families
    from ..io.downloads import kept_downloads, read_before

    models = kept_conversions()
    sources = {model.source for model in models if model.source}
    known = sources | read_before()
    for family in families():
        known |= {name for v in family.variants.values() for name in (v.repository, v.beside) if name}
        known |= set(family.further.repositories if family.further is not None else ())
    return [*models, *kept_caches(_folders(config, overrides)), *kept_downloads(known, sources)]


def _folders(config: str | None, overrides: Sequence[str]) -> list[Path]:
    """Where a configuration keeps its caches."""
    if config is None:
        return []
    from ..config.read_datasets import read_datasets
    from ..config.read_run import load_config

    datasets = read_datasets(load_config(config, overrides))
    own = [folder for one in datasets.audio for folder in (one.latent_dir, one.text_dir)]
    return [datasets.text_dir, *own]


def lines(kept: Sequence[Kept]) -> Iterator[str]:
    """The list: a number, the size and the name of each, what it is, and the sum."""
    from ..io.downloads import hub_folder

    titles = {
        "model": f"Converted models, in {cache_folder() / 'models'}",
        "cache": "Caches of songs",
        "download": f"Downloads, in {hub_folder()}",
    }
    if not kept:
        yield "Nothing is kept: no converted models, no caches, no downloads of models."
        return
    before = ""
    for number, one in enumerate(kept, 1):
        if one.kind != before:
            yield titles[one.kind]
            before = one.kind
        yield f"{number:>3}  {size(one.size):>10}  {one.name}"
        yield f"{'':17}{_about(one)}"
    yield f"In all {size(sum(one.size for one in kept))}. To remove one: acestep-mlx cache --remove NUMBER"


def _about(one: Kept) -> str:
    """What it is, and when it was made and used."""
    times = ((MADE[one.kind], one.made), ("last used", one.used))
    said = [f"{what} {time.strftime('%Y-%m-%d', time.localtime(at))}" for what, at in times if at is not None]
    said += ["in use now"] if one.busy else []
    return "; ".join([one.about, ", ".join(said)] if said else [one.about])


def remove(kept: Sequence[Kept], wanted: Sequence[str], *, ask: bool) -> None:
    """Remove what is named, after a question where `ask` says so; DataError for what is left of it."""
    going = chosen(kept, wanted)
    names = listed([one.name for one in going], 8, ", ")
    if ask:
        if not sys.stdin.isatty():
            raise click.UsageError(f"nobody can be asked here; add --yes to remove {names}")
        question = f"Remove {names} ({size(sum(one.size for one in going))})? What needs it makes it again."
        if not click.confirm(question, default=False):
            click.echo("nothing was removed")
            return
    lost: list[str] = []
    freed = 0
    for one in going:
        try:
            bytes_ = one.remove()
        except DataError as error:
            lost.append(str(error))
            continue
        freed += bytes_
        click.echo(f"removed {one.name}, {size(bytes_)}")
    if len(going) > 1:
        click.echo(f"{size(freed)} are free now")
    if lost:
        raise DataError(lost[-1], details=lost[:-1])
