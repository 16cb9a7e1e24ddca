"""What a configuration, a training checkpoint, an output folder or metrics.jsonl says, as lines of text."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import AceStepError, DataError, NewerVersionError
from ..formatting import count, size

if TYPE_CHECKING:
    from ..families.model_folder import ModelFolder


def training_checkpoint(path: Path, against: ModelFolder | None) -> list[str]:
    """A checkpoint of this trainer, verified: step, settings, and the LoRA in it."""
    from ..training.checkpoint import AVERAGE, EMA, LORA, Health, verify
    from .describe import lora

    state = verify(path)
    total = sum(entry["bytes"] for entry in state["files"].values())
    settings = state.get("lora", {})
    lines = [
        f"{path}: training checkpoint, step {state['step']}, of acestep-mlx {state.get('tool_version')}",
        f"  {count(len(state['files']), 'file')}, {size(total)}, all as they were written",
        f"  {_adapter(settings)}, targets {', '.join(settings.get('targets', []))}",
    ]
    base = (state.get("identity") or {}).get("transformer")
    if base:
        lines.append(f"  base fingerprint: {str(base)[:16]}")
    health = Health.of(state)
    if health.evaluation is not None:
        lines.append(f"  evaluation loss: {_loss(health.evaluation)}")
    if AVERAGE in state["files"]:
        lines.append(f"  averaged weights: in {EMA}/, for acestep-mlx export --ema")
    if not health.healthy:
        lines.append(
            "  not healthy: a loss or gradient since the checkpoint before it, or its evaluation, was not "
            "finite"
        )
    lines.append(f"go on with: acestep-mlx train CONFIG --resume_from_checkpoint={shlex.quote(str(path))}")
    if (path / LORA).is_file():
        lines += lora(path, against)
    return lines


def _adapter(facts: Mapping[str, Any]) -> str:
    """What kind of adapter a checkpoint has."""
    if "lycoris_config" in facts:
        return f"LoKr: {facts['lycoris_config']}"
    return f"LoRA: rank {facts.get('rank')}, alpha {facts.get('alpha')}"


def training_output(path: Path) -> list[str]:
    """An output folder of training: its checkpoints and how far it came."""
    from ..training.checkpoint import best, checkpoints, healths, verify

    found = checkpoints(path)
    lines, whole = [f"{path}: output of training, {count(len(found), 'checkpoint')}"], []
    for folder in found:
        try:
            step = f"step {verify(folder)['step']}"
            whole.append(folder)
        except NewerVersionError as error:
            step = str(error)
        except AceStepError as error:
            step = f"damaged: {error}"
        lines.append(f"  {folder.name}: {step}")
    for name in ("pytorch_lora_weights.safetensors", "report.html", "metrics.jsonl"):
        if (path / name).is_file():
            lines.append(f"  {name}: {size((path / name).stat().st_size)}")
    if whole:
        lines.append(f"to use the newest: acestep-mlx export {shlex.quote(str(whole[-1]))}")
    if (lowest := best(path)) is not None and lowest in whole:
        loss = _loss(healths(path)[lowest].evaluation)
        lines.append(f"best by evaluation loss ({loss}): acestep-mlx export {shlex.quote(str(lowest))}")
    return lines


def metrics(path: Path) -> list[str]:
    """What metrics.jsonl says of a run. DataError when it holds none of a run's events."""
    from ..report.events import damage, read_metrics

    damaged: list[str] = []
    rows = read_metrics(path, damaged)
    steps, evaluations, clips, saved = (
        [row for row in rows if row.get("event") == kind] for kind in ("step", "eval", "clip", "checkpoint")
    )
    if not (steps or evaluations or clips or saved):
        raise DataError(
            f"{path}: no metrics of a training run in it" + (f" ({damaged[0]})" if damaged else "")
        )
    lines = [f"{path}: metrics of a training run"]
    if steps:
        last, skipped = steps[-1], sum(bool(row.get("skipped")) for row in steps)
        lost = f", {skipped} of them skipped" if skipped else ""
        lines.append(f"  {count(len(steps), 'step')}{lost}, the last is {last.get('step')}")
        lines.append(f"  training loss, smoothed: {_loss(last.get('smoothed_loss'))}")
    if evaluations:
        first, final = evaluations[0], evaluations[-1]
        was = f" (step {first.get('step')}: {_loss(first.get('loss'))})" if len(evaluations) > 1 else ""
        lines.append(f"  evaluation loss, step {final.get('step')}: {_loss(final.get('loss'))}{was}")
        lines += [f"  {final['verdict']}"] if final.get("verdict") else []
    if saved or clips:
        lines.append(f"  {count(len(saved), 'checkpoint')}, {count(len(clips), 'validation clip')}")
    return [*lines, *([f"  {damage(path, damaged)}"] if damaged else [])]


def _loss(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.4f}"


def configuration(path: str | Path) -> list[str]:
    """A run configuration: what is set, and what is ignored."""
    from ..config.read_run import load_config

    config = load_config(path)
    changed = {k: v for k, v in config.to_dict().items() if config.origin(k) != "default"}
    lines = [f"{config.source or path}: training configuration"]
    lines += [f"  {name} = {json.dumps(value, ensure_ascii=False)}" for name, value in changed.items()]
    lines += [f"  ignored: {key} ({reason})" for key, reason in config.ignored]
    return [*lines, f"for data, memory and length: acestep-mlx train {shlex.quote(str(path))} --dry-run"]
