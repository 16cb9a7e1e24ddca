"""What a run would do, as text: resolved options with their origins, ignored keys, the data, steps and
memory.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import CheckpointError
from ..options import GROUPS

if TYPE_CHECKING:
    from ..config import TrainConfig
    from ..data.manifest import Manifest
    from ..models.load import ModelFolder


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
    from ..training.plan import verdict
    from .counts import CountProgress

    source, folder = model_line(config)
    with CountProgress() as progress:
        manifest = build_manifest(config, progress)
    longest = max(sample.bucket for sample in manifest.samples) * 4096 / 44100
    memory = verdict(config, folder, longest)
    for line in report_lines(config, manifest, [source, *memory]):
        click.echo(line)


def model_line(config: TrainConfig) -> tuple[str, ModelFolder | None]:
    """What `pretrained_model_name_or_path` is, in words, and the MLX folder if it is one.

    CheckpointError when there is nothing.
    """
    from ..convert.cache import is_mlx_folder
    from ..convert.source import is_repo
    from ..models.load import ModelFolder

    given = config.pretrained_model_name_or_path
    path = config.resolve(given)
    if path.exists() and is_mlx_folder(path):
        folder = ModelFolder.open(path)
        stored = folder.quantization
        precision = f"{stored['bits']} bits" if stored else str(folder.dtype).removeprefix("mlx.core.")
        return f"model: {path}, MLX folder, {precision}", folder
    if path.exists():
        return f"model: {path}, PyTorch checkpoint, to be converted once; estimated as the 3.5B model", None
    if is_repo(given):
        return f"model: {given}, downloaded and converted once if that has not been done yet", None
    raise CheckpointError(f"pretrained_model_name_or_path: there is no model at {path}")


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
    """The whole dry run. memory: lines on model and memory. names: at most so many per list (0: all)."""
    from ..data.batches import songs_per_epoch

    length = run_length(config, songs_per_epoch(manifest.samples))
    out = ["# configuration", *config_lines(config)]
    out += ["", "# data", *manifest.report.lines(names)]
    out += ["", "# length", *length_lines(length, config)]
    if memory:
        out += ["", "# model and memory", *memory]
    return out


def _value(value: Any) -> str:
    if value is None:
        return "not set"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
