"""The third stage of a run: it begins where its checkpoint ended, in a folder that has room for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from ..errors import ConfigError
from ..formatting import listed
from ..report.trackers import trackers_folder
from . import checkpoint, output
from .build import Built
from .prepared import Job, Prepared
from .trainer import Counters, Saved


@dataclass(frozen=True)
class Start:
    """Where training begins. saved: the checkpoint of that moment, where it is one of the output folder."""

    counters: Counters
    saved: Saved | None


def restore(job: Job, prepared: Prepared, built: Built) -> Start:
    """Put weights, states and data order in place on all ranks; make room in the output folder."""
    found = prepared.resumed
    state = job.world.share(found.state if found else None)
    if state is None:
        counters = Counters()
    else:
        where = str(found.path) if found else "the checkpoint"
        _load(job, built, found, where)
        changed = built.batches.restore(state["batches"])
        if changed:
            job.emit.notice(changed, "warning")
        counters = Counters.from_dict(state["counters"], state.get("lowest"))
        job.emit.notice(f"going on from {where} at step {counters.step}")
    if job.world.first:
        _check_room(job, built)
        _make_way(job, found, counters.step)
    return Start(counters, _saved(job, found, counters))


def _load(job: Job, built: Built, found: checkpoint.Checkpoint | None, where: str) -> None:
    """The arrays of rank 0's checkpoint, into the step of every rank. `where` names it in messages."""
    world, step = job.world, built.step
    if found is not None:
        checkpoint.check_identity(found.path, found.state, built.identity)
        if _kinds(found.adapter) != _kinds(step.parameters()):
            raise ConfigError(f"{found.path} has other trained parameters than this configuration")
    arrays = {
        name: world.share_arrays(getattr(found, name) if found else {}, like)
        for name, like in {"adapter": step.parameters(), **step.arrays()}.items()
    }
    step.set_parameters(arrays.pop("adapter"))
    problems = step.load_arrays(**arrays)
    if problems:
        raise ConfigError(f"{where} does not fit: {listed(problems)}")


def _kinds(arrays: Mapping[str, mx.array]) -> dict[str, tuple[Any, ...]]:
    """Shape and dtype of each array."""
    return {name: (value.shape, value.dtype) for name, value in arrays.items()}


def _check_room(job: Job, built: Built) -> None:
    """The disk against what a checkpoint takes: the weights twice, once for other loaders."""
    trained, others = built.step.parameters(), built.step.arrays()
    parts = [trained, trained, *others.values(), *([trained] if "average" in others else [])]
    files = [sum(value.nbytes for value in part.values()) for part in parts]
    output.check_room(job.output, files, job.config.checkpoints_total_limit or 10, job.emit.notice)


def _make_way(job: Job, found: checkpoint.Checkpoint | None, step: int) -> None:
    """Move away what would be replaced, or be taken for a part of this run's history."""
    if job.overwrite:
        moved = output.set_aside(job.output, trackers_folder(job.config, job.output))
        if moved is not None:
            job.emit.notice(f"the run that was in {job.output} is now in {moved}")
    elif found is not None:
        moved = output.set_later_aside(job.output, step)
        if moved is not None:
            job.emit.notice(f"what came after step {step} is now in {moved}")


def _saved(job: Job, found: checkpoint.Checkpoint | None, counters: Counters) -> Saved | None:
    if found is None or found.path.parent.resolve() != job.output.resolve():
        return None
    return Saved(found.path, counters.step, counters.micro, checkpoint.Health.of(found.state))
