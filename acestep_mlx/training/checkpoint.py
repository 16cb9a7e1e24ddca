"""Training checkpoints: a folder that is complete or absent, and that says when it is damaged.

    checkpoint-{step}/
        pytorch_lora_weights.safetensors   for every loader at strength 1.0 (alpha baked in)
        adapter.safetensors                the trained parameters themselves, float32
        optimizer.safetensors              moments, per parameter group
        sampler.safetensors                random key, gradient under accumulation
        average.safetensors                the averaged parameters, float32, where they are averaged (use_ema)
        ema/pytorch_lora_weights.safetensors  the average for every loader
        NAME/NAME.safetensors              of modules that are trained in full
        config.json                        the resolved configuration
        training_state.json                step, data order, identity, size and SHA-256 of all other files

Everything is written into a hidden folder beside it, synced, and renamed; `training_state.json` comes last.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import mlx.core as mx

from ..config.run import OPTIONS
from ..errors import NO_SPACE, CheckpointError, ConfigError, NewerVersionError, refusal
from ..formatting import size
from ..io import schema
from ..io.disk import free_space, largest_file
from ..io.hashes import hash_file
from ..io.new_folder import OLD, PARTIAL, replaced_folder
from ..io.safetensors import inside, read_header
from ..io.tensors import load_tensors

FORMAT, FORMAT_VERSION = "acestep-mlx-checkpoint", 1
STATE = "training_state.json"
ADAPTER = "adapter.safetensors"
LORA = "pytorch_lora_weights.safetensors"
EMA = "ema"  # folder of what is averaged, beside the LoRA's file
NAME = re.compile(r"checkpoint-(\d+)")
TENSORS = (ADAPTER, "optimizer.safetensors", "sampler.safetensors")
AVERAGE = "average.safetensors"  # only where an average is taken
MAX_STEPS = 10**9  # of anything that is counted in a run

_count = schema.whole(0, MAX_STEPS)
_sum = schema.number()
COUNTERS = schema.record(
    {
        "step": _count, "micro": _count, "skipped": _count, "skipped_in_a_row": _count, "epoch": _count,
        "loss_sum": _sum, "loss_weight": schema.number(0), "smoothed": schema.items(_sum, 2, 2),
    },
    {"parts": schema.table(_sum)},
    strict=True,
)  # fmt: skip
BATCHES = schema.record(
    {"seed": schema.whole(), "epoch": _count, "position": _count, "signature": schema.text}, strict=True
)
LORA_FACTS = schema.record(
    {},
    {
        "rank": schema.whole(1, 1 << 20), "alpha": schema.number(), "scale": schema.number(),
        "targets": schema.items(schema.text), "use_dora": schema.flag, "use_rslora": schema.flag,
        "lycoris_config": schema.text,
    },
)  # fmt: skip
#: training_state.json. What a run needs to go on is checked by `read`; `info` shows a checkpoint without it.
STATE_SCHEMA = schema.record(
    {
        "format_version": schema.whole(),
        "step": _count,
        "files": schema.table(
            schema.record({"bytes": schema.whole(), "sha256": schema.text}, strict=True), schema.path_text
        ),
    },
    {
        "tool_version": schema.text,
        "counters": COUNTERS,
        "batches": BATCHES,
        "lora": LORA_FACTS,
        "checkpointed_blocks": schema.whole(0, 10_000),
        "product_blocks": schema.whole(0, 10_000),
        "identity": schema.table(schema.anything),
        "healthy": schema.flag,
        "evaluation": schema.optional(schema.number()),
        "lowest": schema.record(
            {"step": _count, "loss": schema.optional(schema.number()), "since": _count},
            {"measured": schema.text},
            strict=True,
        ),
        "timed": schema.flag,
        "measured": schema.text,
    },
)


@dataclass(frozen=True)
class Checkpoint:
    """What is read back from a checkpoint folder."""

    path: Path
    state: dict[str, Any]  # training_state.json
    adapter: dict[str, mx.array]
    optimizer: dict[str, mx.array]
    sampler: dict[str, mx.array]
    average: dict[str, mx.array] = field(default_factory=dict)

    @property
    def step(self) -> int:
        return int(self.state["step"])


@dataclass(frozen=True)
class Health:
    """Whether a checkpoint is worth going on from, and how good it was.

    healthy: losses, gradients and weights since the checkpoint before it were finite, and so was its
    evaluation. evaluation: the mean loss on the evaluation set, or None where none was measured at its step.
    timed: it was written because minutes had passed, and gives way to the next. measured: what the evaluation
    is of (see `report.events.Evaluated`); "" where that is not known.
    """

    healthy: bool = True
    evaluation: float | None = None
    timed: bool = False
    measured: str = ""

    def evaluated(self, loss: float | None, measured: str = "") -> Health:
        """The same once the evaluation gave `loss`."""
        finite = loss is None or math.isfinite(loss)
        found = loss if finite else None
        return replace(self, healthy=self.healthy and finite, evaluation=found, measured=measured)

    @classmethod
    def of(cls, state: Mapping[str, Any]) -> Health:
        """From training_state.json; checkpoints of older versions do not say, and count as healthy."""
        told = {name: state[name] for name in ("healthy", "evaluation", "timed", "measured") if name in state}
        return cls(**told)


def write_tensors(path: Path, tensors: Mapping[str, mx.array], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file and make sure that all of it arrived."""
    mx.save_safetensors(str(path), dict(tensors), dict(metadata))
    read_header(path)  # a short write is an error here, not at the next resume


def write_folder(target: Path, fill: Callable[[Path], None]) -> None:
    """Create or replace `target` by a folder that `fill` writes; complete or not at all.

    Raises CheckpointError when the disk is full or refuses; whatever `target` was before is then still there.
    """
    try:
        with replaced_folder(target) as partial:
            fill(partial)
    except (OSError, RuntimeError, CheckpointError) as error:
        raise CheckpointError(
            f"{target} could not be written: {_why(error, target.parent)}; earlier checkpoints are untouched"
        ) from error


def _why(error: Exception, folder: Path) -> str:
    """MLX says only that a write failed; the disk's free space and the limits of this process say more."""
    with contextlib.suppress(OSError):  # the disk itself is gone
        free = free_space(folder)
        if (isinstance(error, OSError) and error.errno in NO_SPACE) or free < 16 << 20:
            return f"the disk is full ({size(free)} left); free some space"
    limit = largest_file()
    if limit is not None and not isinstance(error, OSError):
        return f"{error} (files may not grow above {size(limit)}: ulimit -f)"
    return refusal(error)


def save(
    output_dir: Path,
    step: int,
    *,
    state: Mapping[str, Any],
    adapter: Mapping[str, mx.array],
    optimizer: Mapping[str, mx.array],
    sampler: Mapping[str, mx.array],
    average: Mapping[str, mx.array] | None = None,
    config: Mapping[str, Any],
    extra: Callable[[Path], object] = lambda folder: None,
) -> Path:
    """Write `checkpoint-{step}`; `extra` adds files of its own (the LoRA for other loaders).

    `state` must hold plain JSON values. Raises CheckpointError when it cannot be written whole.
    """
    target = output_dir / f"checkpoint-{step}"
    kind = {"format": FORMAT, "format_version": str(FORMAT_VERSION), "step": str(step)}

    def fill(folder: Path) -> None:
        for name, tensors in zip((*TENSORS, AVERAGE), (adapter, optimizer, sampler, average), strict=True):
            if tensors is not None:
                write_tensors(folder / name, tensors, kind)
        (folder / "config.json").write_text(json.dumps(dict(config), indent=2) + "\n", encoding="utf-8")
        extra(folder)
        files = {
            path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": hash_file(path)}
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }
        content = {**kind, "format_version": FORMAT_VERSION, **state, "step": step, "files": files}
        (folder / STATE).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")

    write_folder(target, fill)
    return target


def read(path: Path) -> Checkpoint:
    """Read and verify a checkpoint. Raises CheckpointError that names what is missing or damaged."""
    state = verify(path)
    for name in ("counters", "batches"):
        if name not in state:
            raise CheckpointError(f"{path / STATE} is damaged: {name} is missing; no run can go on from it")

    def tensors(name: str) -> dict[str, mx.array]:
        read_header(path / name)
        return load_tensors(path / name)

    adapter, optimizer, sampler = map(tensors, TENSORS)
    average = tensors(AVERAGE) if AVERAGE in state["files"] else {}
    return Checkpoint(path, state, adapter, optimizer, sampler, average)


def verify(path: Path) -> dict[str, Any]:
    """The state of a checkpoint whose files all have the recorded size and SHA-256; else CheckpointError."""
    if not path.is_dir():
        what = "not a checkpoint folder" if path.exists() else "no such checkpoint folder"
        advice = "; a LoRA file is gone on from with init_lora" if path.suffix == ".safetensors" else ""
        raise CheckpointError(f"{path}: {what}{advice}")
    if not (path / STATE).is_file():
        raise CheckpointError(
            f"{path} has no {STATE}: it is not a checkpoint of this trainer, or not a whole one"
        )
    state = _read_state(path)
    _check_counters(path, state)
    files = state["files"]
    for name in TENSORS:
        if name not in files:
            raise CheckpointError(f"{path / STATE} is damaged: it does not list {name}")
    for name, entry in files.items():
        try:
            file = inside(path, name)
        except CheckpointError as error:
            raise CheckpointError(f"{path / STATE} is damaged: {error}") from None
        if not file.is_file():
            raise CheckpointError(f"{path} is damaged: {name} is missing")
        if file.stat().st_size != entry["bytes"] or hash_file(file) != entry["sha256"]:
            raise CheckpointError(f"{path} is damaged: {name} is not what was written")
    return state


def _read_state(path: Path) -> dict[str, Any]:
    return schema.read_artifact(
        path / STATE, STATE_SCHEMA, what="the checkpoint", version=FORMAT_VERSION, kind=FORMAT
    )


def _check_counters(path: Path, state: Mapping[str, Any]) -> None:
    """What the numbers of a state have to do with each other; CheckpointError where they contradict."""
    counters = state.get("counters")
    if counters is None:
        return
    accumulate = state.get("identity", {}).get("gradient_accumulation_steps", 1)
    for wrong, why in (
        (counters["step"] != state["step"], f"step {state['step']}, and counters.step {counters['step']}"),
        (
            isinstance(accumulate, int) and counters["micro"] >= max(accumulate, 1),
            f"counters.micro {counters['micro']} of {accumulate} in an update",
        ),
        (counters["skipped"] > counters["step"], f"counters.skipped {counters['skipped']}"),
        (counters["skipped_in_a_row"] > counters["skipped"], "counters.skipped_in_a_row above skipped"),
    ):
        if wrong:
            raise CheckpointError(f"{path / STATE} is damaged: it says {why}")


def checkpoints(output_dir: Path) -> list[Path]:
    """Checkpoint folders by step, oldest first; unfinished ones have another name and are not among them."""
    if not output_dir.is_dir():
        return []
    found = [(int(m[1]), p) for p in output_dir.iterdir() if (m := NAME.fullmatch(p.name)) and p.is_dir()]
    return [path for _, path in sorted(found)]


def newest(output_dir: Path, notice: Callable[[str, str], None]) -> Path | None:
    """The newest undamaged checkpoint, or None when there is none. Damaged ones are named through `notice`.

    Raises CheckpointError when there are checkpoints and every one is damaged: starting over silently would
    throw a run away; and NewerVersionError before one that this version cannot read. Changes nothing.
    """
    found = checkpoints(output_dir)
    for path in reversed(found):
        try:
            verify(path)
            return path
        except NewerVersionError:
            raise  # it may be the newest: going on from an older one would go back without a word
        except CheckpointError as error:
            notice(f"skipped a damaged checkpoint: {error}", "warning")
    if found:
        which = "the only checkpoint" if len(found) == 1 else f"all {len(found)} checkpoints"
        raise CheckpointError(f"damaged: {which} in {output_dir}; to start over, move what is there away")
    return None


def clean(output_dir: Path) -> None:
    """Put right what a kill may have left: unfinished folders go, a replaced checkpoint comes back."""
    if not output_dir.is_dir():
        return
    for path in output_dir.iterdir():
        if path.name.startswith(".checkpoint-") and path.name.endswith(PARTIAL):
            shutil.rmtree(path, ignore_errors=True)
        elif path.name.startswith(".checkpoint-") and path.name.endswith(OLD):
            target = path.with_name(path.name[1 : -len(OLD)])
            if target.exists():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.rename(target)


def healths(output_dir: Path) -> dict[Path, Health]:
    """Every checkpoint's health, oldest first; one that cannot be read is not healthy."""
    found = {}
    for path in checkpoints(output_dir):
        try:
            found[path] = Health.of(_read_state(path))
        except (CheckpointError, NewerVersionError):
            found[path] = Health(healthy=False)
    return found


def last_healthy(output_dir: Path) -> Path | None:
    """The newest checkpoint that is healthy."""
    return _last_healthy(healths(output_dir))


def _last_healthy(found: Mapping[Path, Health]) -> Path | None:
    return next((p for p, health in reversed(list(found.items())) if health.healthy), None)


def best(output_dir: Path) -> Path | None:
    """The healthy checkpoint with the lowest evaluation loss; of equal ones the newest."""
    return best_of(healths(output_dir))


def best_of(found: Mapping[Path, Health]) -> Path | None:
    """`best` of checkpoints that were `found`, oldest first: of those whose loss is of the same songs and
    noise as the newest one's.
    """
    rated = [(p, h) for p, h in found.items() if h.healthy and h.evaluation is not None]
    of = rated[-1][1].measured if rated else ""
    same = [
        (h.evaluation, -i, p) for i, (p, h) in enumerate(rated) if "" in (of, h.measured) or h.measured == of
    ]
    return min(same)[2] if same else None


def prune(output_dir: Path, limit: int, keep: Path) -> list[Path]:
    """Delete the oldest checkpoints beyond `limit` (0: there is none); returns the deleted ones."""
    gone = surplus(healths(output_dir), limit, keep)
    for path in gone:
        # Renamed first, so that a kill in the middle never leaves a checkpoint that looks whole.
        going = path.with_name(f".{path.name}{PARTIAL}")
        shutil.rmtree(going, ignore_errors=True)
        path.rename(going)
        shutil.rmtree(going, ignore_errors=True)
    return gone


def surplus(found: Mapping[Path, Health], limit: int, keep: Path | None = None) -> list[Path]:
    """Which of the checkpoints that were `found`, oldest first, are beyond `limit` (0: there is none).

    Kept are `keep`, the last `limit` of all and of the healthy ones, and the best; of those that were written
    by time none counts, and only `keep` and the last healthy one stay.
    """
    lasting = [path for path, health in found.items() if not health.timed]  # its [-0:] is all of it
    healthy = [path for path in lasting if found[path].healthy]
    kept = {keep, best_of(found), _last_healthy(found), *lasting[-limit:], *healthy[-limit:]}
    return [path for path in found if path not in kept]


def identity(config: Mapping[str, Any], facts: Mapping[str, Any]) -> dict[str, Any]:
    """What a run that resumes must agree on: options that must stay the same, and `facts` (the model's
    fingerprint, the data). config: as `RunConfig.to_dict` gives it."""
    options = {name: value for name, value in config.items() if OPTIONS[name].resume == "same"}
    agreed: dict[str, Any] = json.loads(json.dumps({**options, **facts}, default=str))
    return agreed


def check_identity(path: Path, state: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """ConfigError that lists every difference between a checkpoint's identity and this run's.

    CheckpointError where it has none. `state` is the checkpoint's training_state.json. An option that one
    of the two does not have was at its default: it came with a later version.
    """
    then = state.get("identity")
    if then is None:
        raise CheckpointError(f"{path / STATE} is damaged: it does not say with which settings it was made")
    pairs = {key: (_agreed(then, key), _agreed(now, key)) for key in sorted(then.keys() | now.keys())}
    changed = [f"{key}: checkpoint {_short(a)}, now {_short(b)}" for key, (a, b) in pairs.items() if a != b]
    if changed:
        raise ConfigError(
            f"{path} was made with other settings ({'; '.join(changed)}); set them back, or start a new "
            "run in another output_dir with init_lora pointing at the checkpoint's LoRA"
        )


def _agreed(identity: Mapping[str, Any], key: str) -> Any:
    default = OPTIONS[key].default if key in OPTIONS else None
    return identity.get(key, default)


def changed_settings(path: Path, now: Mapping[str, Any]) -> list[str]:
    """`learning_rate 0.0001 → 0.0002`: settings that a checkpoint's run had otherwise, and that may change.

    `now`: the configuration that goes on from it.
    """
    then = schema.read_json(path / "config.json")
    names = [name for name, option in OPTIONS.items() if option.resume == "steers" and name in then]
    return [
        f"{name} {_short(then[name])} → {_short(now[name])}"
        for name in names
        if name in now and then[name] != now[name] and now.get(OPTIONS[name].needs, True)
    ]


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:59] + "…"
