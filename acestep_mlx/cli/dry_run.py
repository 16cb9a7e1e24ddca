"""What a run would do, as text: resolved options with their origins, ignored keys, the data, steps and
memory.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..config.run import GROUPS
from ..formatting import count
from .events import past_the_end

if TYPE_CHECKING:
    from ..config.run import RunConfig
    from ..data.manifest import Manifest
    from ..training.preflight import Preflight


@dataclass(frozen=True)
class Length:
    """How long a run is: optimizer steps, epochs, and what an epoch consists of."""

    steps: int
    epochs: float
    songs_per_epoch: int
    batches_per_epoch: int


def show(config: RunConfig, overwrite: bool = False) -> None:
    """Print what training with `config` would do. Raises the same errors as training would."""
    import click

    from ..data.batches import songs_per_epoch
    from ..data.manifest import build_manifest
    from ..training.memory import clips_through, loads, verdict
    from ..training.preflight import preflight
    from ..training.settings import further_loss, rollout_lines
    from .progress import Display

    def notify(text: str, level: str) -> None:
        click.echo(f"{level}: {text}" if level != "info" else text, err=True)

    found = preflight(config, notify, overwrite=overwrite)
    with Display() as progress:
        manifest = build_manifest(config, progress, remember=False, datasets=found.datasets)
    folder = found.model.folder
    songs = [(sample.bucket, lyrics) for sample in manifest.samples for lyrics in sample.all_lyrics]
    batches = loads(songs, config.train_batch_size, manifest.family, folder)
    heard = clips_through(config, found.heard)
    memory = verdict(config, found.model.transformer, batches, found.model.bits, heard)
    total = run_length(config, songs_per_epoch(manifest.samples)).steps
    further, seconds = further_loss(config), sum(sample.seconds for sample in manifest.samples)
    start = [start_line(config, found, total), *rollout_lines(config)]
    start += further.lines(config, seconds) if further is not None else []
    for line in report_lines(config, manifest, start, [found.model.line, *memory]):
        click.echo(line)


def start_line(config: RunConfig, found: Preflight, total: int) -> str:
    """Where the run begins; `total` is the step at which it ends."""
    if found.resume is not None:
        nothing = f"; {past_the_end(found.step, total)}" if found.step >= total else ""
        return f"goes on from {found.resume}, step {found.step}{nothing}"
    if config.init_lora:
        return f"starts at step 0 from the LoRA {config.init_lora}"
    return f"starts at step 0 with a new {'LoKr' if config.lora_type == 'lycoris' else 'LoRA'}"


def run_length(config: RunConfig, songs_per_epoch: int, world: int = 1) -> Length:
    """Steps and epochs of a run over so many songs per epoch on `world` ranks."""
    from ..training.settings import total_steps

    batches = math.ceil(songs_per_epoch / (config.train_batch_size * world))
    steps = total_steps(config, batches)
    whole = steps * config.gradient_accumulation_steps / batches
    epochs = whole if config.max_train_steps else float(config.num_train_epochs)
    return Length(steps, epochs, songs_per_epoch, batches)


def setting_lines(config: RunConfig) -> list[str]:
    """What the user set, in the order of the groups; then what is ignored."""
    out = [line for line, given in _options(config) if given]
    if config.ignored:
        out.append("ignored keys:")
        out += [f"  {key}: {reason}" for key, reason in config.ignored]
    return out


def default_lines(config: RunConfig) -> list[str]:
    """Every other supported option with its value, by group."""
    out: list[str] = []
    for group in GROUPS:
        rows = [line for line, given in _options(config, group) if not given]
        out += [f"[{group}]", *rows] if rows else []
    return out


def _options(config: RunConfig, only: str | None = None) -> list[tuple[str, bool]]:
    """(line, whether the user set it) of each supported option."""
    rows, counting = [], config.to_dict()
    for option in (o for group, options in GROUPS.items() if only in (None, group) for o in options):
        if option.name in counting:
            origin = config.origin(option.name)
            given = origin != "default" and not origin.startswith("as ")
            rows.append((f"  {option.name} = {_value(getattr(config, option.name))}  ({origin})", given))
    return rows


def length_lines(length: Length, config: RunConfig) -> list[str]:
    """Steps and epochs in words."""
    songs = config.train_batch_size * config.gradient_accumulation_steps
    epochs = "1 epoch" if length.epochs == 1 else f"{length.epochs:.4g} epochs"
    return [
        f"{count(length.steps, 'step')} of {count(songs, 'song')}, {epochs} "
        f"({count(length.songs_per_epoch, 'song')}, {count(length.batches_per_epoch, 'batch', 'batches')} "
        "per epoch)"
    ]


def patience_lines(config: RunConfig) -> list[str]:
    """When the run ends before its last step."""
    if not config.early_stopping_patience:
        return []
    every = config.eval_steps_interval
    often = f"one every {count(every, 'step')}" if every else "one at each checkpoint"
    times = count(config.early_stopping_patience, "evaluation")
    return [f"ends earlier after {times} in a row ({often}) without a new lowest loss"]


def checkpoint_line(config: RunConfig) -> str:
    """When checkpoints are written."""
    every = [count(n, "step") for n in (config.checkpoint_step_interval,) if n]
    every += [count(n, "epoch") for n in (config.checkpoint_epoch_interval,) if n]
    line = "checkpoints: " + ", ".join(
        [*(f"every {one}" for one in every), "and the last" if every else "the last"]
    )
    minutes = config.checkpoint_minutes
    return line + (f"; between them after {minutes:g} minutes without one" if minutes else "")


def report_lines(
    config: RunConfig, manifest: Manifest, start: Sequence[str], memory: Sequence[str]
) -> list[str]:
    """The whole dry run: first what the run is, last the defaults. start: lines on where it begins. memory:
    lines on model and memory.
    """
    from ..data.batches import songs_per_epoch

    length = run_length(config, songs_per_epoch(manifest.samples))
    out = [
        "# the run",
        *length_lines(length, config),
        *patience_lines(config),
        *start,
        f"writes into {config.output_path}",
    ]
    out.append(checkpoint_line(config))
    out += ["", "# model and memory", *memory]
    out += ["", "# data", *manifest.report.lines(0)]
    out += ["", "# your settings", *setting_lines(config)]
    return [*out, "", "# defaults", *default_lines(config)]


def _value(value: Any) -> str:
    if value is None:
        return "not set"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
