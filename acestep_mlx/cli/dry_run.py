"""What a run would do, as text: a verdict of five lines; then resolved options with their origins, ignored
keys, the data, steps and memory.
"""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..config.run import GROUPS
from ..formatting import count, duration, size, without_secrets
from .events import past_the_end

if TYPE_CHECKING:
    from ..config.run import RunConfig
    from ..data.manifest import Manifest
    from ..training.footprint import DiskUse
    from ..training.hours import Hours
    from ..training.intervals import Agenda
    from ..training.memory import Choice, Worst
    from ..training.preflight import Preflight


@dataclass(frozen=True)
class Length:
    """How long a run is: optimizer steps, epochs, and what an epoch consists of."""

    steps: int
    epochs: float
    songs_per_epoch: int
    batches_per_epoch: int


def show(config: RunConfig, overwrite: bool = False, *, command: str = "", verbose: bool = False) -> None:
    """Print what training with `config` would do, in five lines: all of it with `verbose`. Raises the same
    errors as training would. command: that trains so, for people.
    """
    import click

    from ..data.batches import songs_per_epoch
    from ..data.manifest import build_manifest
    from ..training.preflight import preflight
    from .progress import Display

    def notify(text: str, level: str) -> None:
        if verbose or level != "info":
            click.echo(f"{level}: {text}" if level != "info" else text, err=True)

    found = preflight(config, notify, overwrite=overwrite)
    with Display() as progress:
        manifest = build_manifest(config, progress, remember=False, datasets=found.datasets)
    length = run_length(config, songs_per_epoch(manifest.samples))
    asked = _asked(config, found, manifest)
    lines = verdict_lines(config, found, manifest, length, asked, without_secrets(command))
    for line in [*lines, *(["", *_everything(config, found, manifest, length, asked)] if verbose else [])]:
        click.echo(line)


@dataclass(frozen=True)
class Asked:
    """What a run's estimates take, found once: the songs that are `encoded` already, by id, and the arguments
    of `training.memory.worst` beside the configuration, of its batches and of songs that are not encoded yet.
    """

    encoded: set[str]
    load: dict[str, Any]
    encoding: dict[str, Any]


def _asked(config: RunConfig, found: Preflight, manifest: Manifest) -> Asked:
    from ..training.footprint import encoded

    there = encoded(config, found, manifest)
    return Asked(there, _load(config, found, manifest), _encoding(found, manifest, there))


def _everything(
    config: RunConfig, found: Preflight, manifest: Manifest, length: Length, asked: Asked
) -> list[str]:
    """What `--verbose` adds."""
    from ..training.memory import verdict
    from ..training.settings import further_loss, rollout_lines

    memory = verdict(config, **asked.load, state=found.state, **asked.encoding)
    further, seconds = further_loss(config), sum(sample.seconds for sample in manifest.samples)
    start = [start_line(config, found, length.steps), *rollout_lines(config)]
    start += further.lines(config, seconds) if further is not None else []
    return report_lines(config, manifest, start, [found.model.line, *memory])


def _load(config: RunConfig, found: Preflight, manifest: Manifest) -> dict[str, Any]:
    """The batches, and what they are trained on."""
    from ..training.memory import clips_through, loads

    songs = [(sample.bucket, lyrics) for sample in manifest.trained for lyrics in sample.all_lyrics]
    batches = loads(songs, config.train_batch_size, manifest.family, found.model.folder)
    heard = clips_through(config, found.heard)
    model = found.model
    return {"model": model.transformer, "batches": batches, "stored_bits": model.bits, "heard": heard}


def _encoding(found: Preflight, manifest: Manifest, there: set[str]) -> dict[str, Any]:
    """Of songs that are not `there` yet, by id."""
    from ..training.memory import encoding

    left = [sample for sample in manifest.samples if sample.id not in there]
    if not left:
        return {}
    taken = encoding(manifest.family, max(sample.seconds for sample in left), found.model.folder)
    return {"encoding": taken, "ondemand": any(sample.dataset.ondemand for sample in left)}


# ── the five lines ───────────────────────────────────────────────────────────────────────────────────
def verdict_lines(
    config: RunConfig, found: Preflight, manifest: Manifest, length: Length, asked: Asked, command: str
) -> list[str]:
    """Memory, time, disk, songs, and what to do next."""
    from ..doctor.speed import glance
    from ..training.footprint import disk_use
    from ..training.hours import hours
    from ..training.intervals import Agenda, Intervals
    from ..training.memory import choice, worst

    per_epoch = length.batches_per_epoch / config.gradient_accumulation_steps
    agenda = Agenda(Intervals.of(config), length.steps, per_epoch)
    step = worst(config, **asked.load, **asked.encoding)
    chosen = choice(config, **asked.load, state=found.state)
    disk = disk_use(config, found, manifest, agenda, asked.encoded)
    bits = found.model.bits or (config.quantization or {}).get("bits")
    rates = (glance(bits), glance(None))
    times = hours(config, found, manifest, agenda, asked.encoded, rates, chosen.recomputed)
    return [
        f"memory: {_memory(step, chosen)}",
        f"time: {_time(config, found, length, times, agenda)}",
        f"disk: {_disk(disk)}",
        f"songs: {_songs(manifest)}",
        f"next: {_next(config, found, length, step, disk, _prepared(manifest) + command)}",
    ]


def _memory(step: Worst, chosen: Choice) -> str:
    need, room = step.need, f"{size(step.room)} that this machine lets a run use"
    if need > step.estimate.total:
        room += ", while the songs are encoded"
    if step.spare >= 0:
        saved = f"; results kept in the rest save {100 * chosen.saved:.0f} % of the work in linear layers"
        fits = f"fits, {size(step.spare)} to spare: about {size(need)} of {room}"
        return fits + (saved if chosen.saved and need < chosen.taken else "")
    return f"does not fit, {size(-step.spare)} too much: about {size(need)} of {room}"


def _time(config: RunConfig, found: Preflight, length: Length, times: Hours, agenda: Agenda) -> str:
    from ..training.proposal import between

    left = length.steps - found.step
    if left <= 0:
        return "none, as nothing is left to train"
    encode = f"{between(times.encode)} to encode the songs" if times.encode else "the songs are encoded"
    beside = [count(n, what) for what, n in beside_steps(config, found, agenda).items() if n]
    steps = " + ".join([count(left, "step"), *beside])
    return f"{encode}, {times.training} to train ({steps}), {times.basis}"


def beside_steps(config: RunConfig, found: Preflight, agenda: Agenda) -> dict[str, int]:
    """How many evaluations and clips are made: what comes before the first step, and once the clips without
    the LoRA, are among them.
    """
    from ..training.validation import requests

    to_come, fresh = agenda.after(found.step), found.resume is None
    measured = config.num_eval_images and not config.eval_loss_disable
    times = to_come.validations + (fresh and config.validation_on_startup)
    clips = times * _heard(config) + (len(requests(config)) if fresh and times else 0)
    return {"evaluation": to_come.evaluations + fresh if measured else 0, "clip": clips}


def _heard(config: RunConfig) -> int:
    """Clips of a step."""
    from ..training.settings import measured_weights
    from ..training.validation import requests

    return len(requests(config)) * len(measured_weights(config))


def _disk(use: DiskUse) -> str:
    from ..training.footprint import DOWNLOAD

    if not use.parts:
        return "nothing is written"
    needed, free, where = use.tightest()
    spare, hub = free - needed, ", as the hub says"
    told = [f"{size(p.bytes)} {p.what}{hub if p.asked and p.what == DOWNLOAD else ''}" for p in use.parts]
    parts = f"about {size(use.total)} ({' + '.join(told)})"
    if spare >= 0:
        return f"fits, {size(spare)} to spare: {parts}"
    return f"does not fit, {size(-spare)} too much on the disk of {where}: {parts}"


def _songs(manifest: Manifest) -> str:
    sets = manifest.report.sets
    songs, files = sum(one.songs for one in sets), sum(one.files for one in sets)
    long = duration(sum(one.seconds for one in sets))
    apart = f", {len(manifest.held_out)} held out" if manifest.held_out else ""
    return f"{songs} of {count(files, 'song')}, {long}{apart}; " + (
        "; ".join(manifest.report.problems()) or "nothing wrong with them"
    )


def _prepared(manifest: Manifest) -> str:
    """What to do before training where songs in a folder lack captions."""
    from ..config.datasets import FolderSet
    from ..registry import REGISTRY

    lacking = {one.id for one in manifest.report.sets if one.no_caption}
    folders = [s.folder for s in manifest.datasets.audio if isinstance(s, FolderSet) and s.id in lacking]
    if not folders:
        return ""
    usual = manifest.family.name == list(REGISTRY)[-1]
    family = [] if usual else ["--family", manifest.family.name]
    prepare = shlex.join(["acestep-mlx", "prepare", str(folders[0]), *family])
    return f"{prepare} (it drafts what songs lack), then "


def _next(
    config: RunConfig, found: Preflight, length: Length, step: Worst, disk: DiskUse, command: str
) -> str:
    from ..families import of_flavour
    from ..training.faults import memory_advice

    if found.resume is not None and found.step >= length.steps:
        return past_the_end(found.step, length.steps)
    if step.spare < 0:
        seconds = of_flavour(config.model_flavour).latents.seconds(step.load.frames)
        return f"make it fit by {memory_advice(config, seconds)[0]}, and look again with --dry-run"
    needed, free, where = disk.tightest()
    if needed > free:
        return f"free {size(needed - free)} on the disk of {where}, then {command}"
    return command


# ── all else ─────────────────────────────────────────────────────────────────────────────────────────
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


def evaluation_line(config: RunConfig, held_out: int) -> str:
    """What the evaluation loss is measured on; held_out: songs that are not trained on."""
    if config.unevaluated:
        return config.unevaluated
    if held_out:
        return f"evaluation loss on {count(min(held_out, config.num_eval_images), 'held-out song')}"
    return (
        "evaluation loss on songs that are trained on, which cannot tell memorising: an entry with "
        "dataset_type=eval holds songs out"
    )


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
        evaluation_line(config, len(manifest.held_out)),
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
