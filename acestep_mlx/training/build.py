"""What is trained: the frozen model with its LoRA, the batches in their order, the compiled step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.optimizers import Optimizer
from mlx.utils import tree_flatten, tree_unflatten

from ..config.run import RunConfig
from ..data.batches import Batches
from ..families.model_folder import ModelFolder
from ..io.progress import phase
from ..lora.formats.read import read_lora
from ..lora.full_modules import make_dense, set_full, train_full
from ..lora.surgery import (
    TRAINABLE,
    AdapterSpec,
    adapter_modules,
    idle_targets,
    inject,
    load_adapters,
)
from . import checkpoint, faults, memory
from .optimizers import Group, Schedule, make_optimizer
from .prepared import Job, Prepared
from .rollout import Rollout
from .settings import (
    COMPUTE_DTYPES,
    full_training,
    further_loss,
    lora_spec,
    rollout_lines,
    rollout_settings,
    step_settings,
    total_steps,
)
from .step import TrainStep


@dataclass(frozen=True)
class Built:
    """What a run trains. recomputed: of its blocks; total: its updates; identity: what its checkpoints must
    agree on.
    """

    model: nn.Module
    spec: AdapterSpec
    batches: Batches
    recomputed: memory.Recomputed
    step: TrainStep
    total: int
    identity: dict[str, Any]


def build(job: Job, prepared: Prepared) -> Built:
    """The model, its batches and its step, all at the beginning of the run."""
    config, world = job.config, job.world
    job.emit.progress(phase("loading the model"))
    with faults.explained(config, job.kept):
        model, spec = build_model(config, prepared.folder)
    for note in idle_targets(model, spec.targets):
        job.emit.notice(note, "warning")
    batches = Batches(prepared.cache, config, rank=world.rank, world=world.size)
    recomputed = _recomputed(job, prepared, model, batches)
    model.checkpoint_blocks, model.product_blocks = recomputed
    total = total_steps(config, batches.batches_per_epoch)
    family, further = prepared.folder.family, further_loss(config)
    for line in rollout_lines(config):
        job.emit.notice(line)
    objective, rolling, settings = family.objective(config), rollout_settings(config), step_settings(config)
    step = TrainStep(
        model,
        optimizer_groups(config, model, total),
        settings,
        objective,
        world=world.size,
        prepare=family.prepare(model),
        rollout=Rollout(model, objective, rolling, settings.compute_dtype) if rolling else None,
        auxiliary=further.loss(config, prepared.folder) if further is not None else None,
    )
    facts = {"transformer": prepared.folder.fingerprints["transformer"], "ranks": world.size}
    identity = checkpoint.identity(config.to_dict(), facts)
    return Built(model, spec, batches, recomputed, step, total, identity)


def _recomputed(job: Job, prepared: Prepared, model: nn.Module, batches: Batches) -> memory.Recomputed:
    """As little as the memory allows; kept over a resume."""
    if not job.config.gradient_checkpointing:
        return memory.Recomputed()
    state, blocks = prepared.resumed.state if prepared.resumed else {}, model.config.blocks
    if (kept := job.world.share(memory.Recomputed.resumed(state, blocks))) is not None:
        return memory.Recomputed(*kept)
    bits, loads = memory.stored_bits(prepared.folder), memory.loads_of(job.config, batches.shapes)
    mine = memory.checkpointed_blocks(job.config, loads, model.config, bits)
    return memory.Recomputed.of(job.world.largest(mine.level), blocks)


def build_model(config: RunConfig, folder: ModelFolder) -> tuple[nn.Module, AdapterSpec]:
    """The transformer, frozen (and quantised), with trainable adapters in training mode.

    Raises ConfigError or CheckpointError when targets, `init_lora` or the precision do not fit the model.
    """
    spec = lora_spec(config)
    start = read_lora(config.resolve(config.init_lora)) if config.init_lora else None
    model = folder.load(
        "transformer", dtype=COMPUTE_DTYPES[config.mixed_precision], quantize=config.quantization
    )
    in_full = full_training(config)
    if in_full is not None:
        make_dense(model)
    inject(model, spec, seed=config.seed)
    if start is not None:
        load_adapters(model, start, f"init_lora={config.init_lora}")
    if in_full is not None:
        if start is not None and start.full:
            set_full(model, start.full, f"init_lora={config.init_lora}")
        train_full(model)
        masters = {
            path: value.astype(mx.float32)
            for path, value in dict(tree_flatten(model.trainable_parameters())).items()
            if not is_adapter(path)
        }
        model.update(tree_unflatten(list(masters.items())))
    for layer in adapter_modules(model).values():
        layer.train()
    mx.eval(model.parameters())
    return model, spec


def is_adapter(path: str) -> bool:
    """Whether a trainable parameter belongs to a LoRA layer (else to a module that is trained in full)."""
    return path.rsplit(".", 1)[-1] in TRAINABLE


def optimizer_groups(config: RunConfig, model: nn.Module, total: int) -> list[Group]:
    """The LoRA's group, and that of what is trained in full."""
    paths = list(dict(tree_flatten(model.trainable_parameters())))
    lora = [path for path in paths if is_adapter(path)]
    rest = [path for path in paths if not is_adapter(path)]
    schedule = _schedule(config, config.lr_scheduler, config.learning_rate, total)
    groups = [Group("lora", _optimizer(config, config.optimizer, schedule.base), schedule, lora)]
    in_full = full_training(config)
    if in_full is not None:
        assert all(map(model.lora.full.holds, rest))
        schedule = _schedule(config, in_full.lr_scheduler, in_full.learning_rate, total)
        made = _optimizer(config, in_full.optimizer, schedule.base)
        groups.append(Group(model.lora.full.name, made, schedule, rest))
    return groups


def _schedule(config: RunConfig, name: str, rate: float, total: int) -> Schedule:
    return Schedule(
        name, rate, config.lr_warmup_steps, total, config.lr_num_cycles, config.lr_power, config.lr_end
    )


def _optimizer(config: RunConfig, name: str, rate: float) -> Optimizer:
    """optimizer_config is for the LoRA's optimizer, and for the other where it is the same kind."""
    return make_optimizer(
        name,
        rate,
        betas=(config.adam_beta1, config.adam_beta2),
        eps=config.adam_epsilon,
        weight_decay=config.adam_weight_decay,
        options=config.optimizer_config if name == config.optimizer else None,
    )
