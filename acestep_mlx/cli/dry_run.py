"""What a run would do, as text: resolved options with their origins, ignored keys, the data, steps and
memory.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..options import GROUPS

if TYPE_CHECKING:
    from ..config import TrainConfig
    from ..data.manifest import Manifest


@dataclass(frozen=True)
class Length:
    """How long a run is: optimizer steps, epochs, and what an epoch consists of."""

    steps: int
    epochs: float
    songs_per_epoch: int
    batches_per_epoch: int


def show(config: TrainConfig) -> None:
    """Print what training with `config` would do. Raises the same errors as training would."""
    import click

    from ..data.manifest import build_manifest
    from .counts import CountProgress

    with CountProgress() as progress:
        manifest = build_manifest(config, progress)
    for line in report_lines(config, manifest):
        click.echo(line)


def run_length(config: TrainConfig, songs_per_epoch: int, world: int = 1) -> Length:
    """Steps and epochs of a run over so many songs per epoch on `world` ranks."""
    batches = math.ceil(songs_per_epoch / (config.train_batch_size * world))
    accumulation = config.gradient_accumulation_steps
    if config.max_train_steps:
        steps = config.max_train_steps
        return Length(steps, steps * accumulation / batches, songs_per_epoch, batches)
    steps = max(1, math.ceil(config.num_train_epochs * batches / accumulation))
    return Length(steps, float(config.num_train_epochs), songs_per_epoch, batches)


def config_lines(config: TrainConfig) -> list[str]:
    """Each supported option with its value and where it came from, by group; then what is ignored."""
    out: list[str] = []
    for group, options in GROUPS.items():
        rows = [(o.name, _value(getattr(config, o.name)), config.origin(o.name)) for o in options]
        rows = [row for row, option in zip(rows, options, strict=True) if option.status == "supported"]
        if not rows:
            continue
        out.append(f"[{group}]")
        out += [f"  {name} = {value}  ({origin})" for name, value, origin in rows]
    if config.ignored:
        out.append("ignored keys:")
        out += [f"  {key}: {reason}" for key, reason in config.ignored]
    return out


def length_lines(length: Length, config: TrainConfig) -> list[str]:
    """Steps and epochs in words."""
    size = config.train_batch_size * config.gradient_accumulation_steps
    return [
        f"{length.steps} steps of {size} song{'s' if size > 1 else ''}, {length.epochs:.4g} epochs "
        f"({length.songs_per_epoch} songs, {length.batches_per_epoch} batches per epoch)"
    ]


def report_lines(
    config: TrainConfig, manifest: Manifest, memory: Sequence[str] = (), *, names: int = 0
) -> list[str]:
    """The whole dry run. memory: lines of the memory estimate. names: at most so many per list (0: all)."""
    from ..data.batches import songs_per_epoch

    length = run_length(config, songs_per_epoch(manifest.samples))
    out = ["# configuration", *config_lines(config)]
    out += ["", "# data", *manifest.report.lines(names)]
    out += ["", "# length", *length_lines(length, config)]
    if memory:
        out += ["", "# memory", *memory]
    return out


def _value(value: Any) -> str:
    if value is None:
        return "not set"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
