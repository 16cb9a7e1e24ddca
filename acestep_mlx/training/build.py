"""From a configuration to what is trained: the frozen model with its LoRA, optimizer groups, lengths."""

from __future__ import annotations

import math
import os
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten

from ..config.run import RunConfig
from ..errors import ConfigError
from ..families.folder import ModelFolder
from ..lora.formats.keys import LYRICS_EMBEDDER
from ..lora.formats.write import read_lora
from ..lora.lyrics_embedder import make_dense, set_embedder, trainable_embedder
from ..lora.surgery import TARGET_PRESETS, TRAINABLE, LoRASpec, adapter_modules, inject, load_adapters
from .optimizers import Group, Schedule, make_optimizer
from .step import StepSettings

COMPUTE_DTYPES = {"bf16": mx.bfloat16, "fp16": mx.float16, "no": mx.float32}


def lora_spec(config: RunConfig) -> LoRASpec:
    """The LoRA that a configuration describes; ConfigError for what it cannot be."""
    targets = config.peft_lora_target_modules or TARGET_PRESETS[config.acestep_lora_target]
    return LoRASpec(
        rank=config.lora_rank,
        alpha=config.lora_alpha,
        use_rslora=config.use_rslora,
        use_dora=config.use_dora,
        dropout=config.lora_dropout,
        targets=tuple(targets),
        init_type=config.lora_init_type,
    )


def step_settings(config: RunConfig) -> StepSettings:
    """What the compiled step is specialised on."""
    return StepSettings(
        max_grad_norm=config.max_grad_norm,
        accumulate=config.gradient_accumulation_steps,
        compute_dtype=COMPUTE_DTYPES[config.mixed_precision],
    )


def total_steps(config: RunConfig, batches_per_epoch: int) -> int:
    """Updates of the whole run; accumulation runs on across epochs."""
    if config.max_train_steps > 0:
        return int(config.max_train_steps)
    return max(1, math.ceil(config.num_train_epochs * batches_per_epoch / config.gradient_accumulation_steps))


def build_model(config: RunConfig, folder: ModelFolder) -> tuple[nn.Module, LoRASpec]:
    """The transformer, frozen (and quantised), with trainable adapters in training mode.

    Raises ConfigError or CheckpointError when targets, `init_lora` or the precision do not fit the model.
    """
    spec = lora_spec(config)
    start = read_lora(config.resolve(config.init_lora)) if config.init_lora else None
    if start is not None and start.lyrics_embedder and not config.lyrics_embedder_train:
        raise ConfigError(
            f"init_lora={config.init_lora} carries a trained lyrics embedder; set "
            "lyrics_embedder_train=true to go on "
            "from it"
        )
    model = folder.load(
        "transformer", dtype=COMPUTE_DTYPES[config.mixed_precision], quantize=config.quantization
    )
    if config.lyrics_embedder_train:
        make_dense(model)
    inject(model, spec, seed=config.seed)
    if start is not None:
        load_adapters(model, start, f"init_lora={config.init_lora}")
    if config.lyrics_embedder_train:
        if start is not None and start.lyrics_embedder:
            set_embedder(model, start.lyrics_embedder, f"init_lora={config.init_lora}")
        trainable_embedder(model)
        masters = {
            path: value.astype(mx.float32)
            for path, value in flat(model.trainable_parameters())
            if not is_adapter(path)
        }
        model.update(tree_unflatten(list(masters.items())))
    for layer in adapter_modules(model).values():
        layer.train()
    model.checkpoint_blocks = model.config.blocks if config.gradient_checkpointing else 0
    mx.eval(model.parameters())
    return model, spec


def flat(tree: Any) -> list[tuple[str, mx.array]]:
    """Arrays of a parameter tree by full path."""
    found = tree_flatten(tree)
    assert isinstance(found, list)
    return found


def is_adapter(path: str) -> bool:
    """Whether a trainable parameter belongs to a LoRA layer (else to the lyrics embedder)."""
    return path.rsplit(".", 1)[-1] in TRAINABLE


def optimizer_groups(config: RunConfig, model: nn.Module, total: int) -> list[Group]:
    """The LoRA's group, and the lyrics embedder's where it is trained."""
    paths = [path for path, _ in flat(model.trainable_parameters())]
    groups = [
        _group(
            config,
            "lora",
            [p for p in paths if is_adapter(p)],
            config.optimizer,
            config.learning_rate,
            config.lr_scheduler,
            total,
        )
    ]
    rest = [p for p in paths if not is_adapter(p)]
    if rest:
        assert all(p.startswith(LYRICS_EMBEDDER) for p in rest)
        groups.append(
            _group(
                config,
                "lyrics_embedder",
                rest,
                config.lyrics_embedder_optimizer,
                config.lyrics_embedder_lr,
                config.lyrics_embedder_lr_scheduler,
                total,
            )
        )
    return groups


def _group(
    config: RunConfig, name: str, paths: list[str], optimizer: str, lr: float, scheduler: str, total: int
) -> Group:
    options: dict[str, Any] | None = config.optimizer_config if optimizer == config.optimizer else None
    made = make_optimizer(
        optimizer,
        lr,
        betas=(config.adam_beta1, config.adam_beta2),
        eps=config.adam_epsilon,
        weight_decay=config.adam_weight_decay,
        options=options,
    )
    schedule = Schedule(
        scheduler, lr, config.lr_warmup_steps, total, config.lr_num_cycles, config.lr_power, config.lr_end
    )
    return Group(name, made, schedule, paths)


def machine_memory() -> int:
    """Bytes of memory that this machine's models share."""
    info = mx.device_info()
    if "memory_size" in info:
        return int(info["memory_size"])
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def cache_limit() -> int:
    """Bytes of freed buffers that MLX may keep for reuse: enough for a step, no creeping."""
    return min(2 << 30, machine_memory() // 16)
