"""What a configuration says of training, as the types that training takes."""

from __future__ import annotations

import math

import mlx.core as mx

from ..config.lora_formats import LYCORIS
from ..config.lycoris import as_text, read_lycoris
from ..config.run import RunConfig
from ..errors import ConfigError
from ..families import of_flavour
from ..families.protocol import FullTraining, FurtherLoss
from ..lora.lokr import LoKrSpec
from ..lora.surgery import AdapterSpec, LoRASpec
from .average import AverageSettings
from .rollout import ReflexFlow, RolloutSettings, described
from .step import StepSettings

COMPUTE_DTYPES = {"bf16": mx.bfloat16, "fp16": mx.float16, "no": mx.float32}


def lora_spec(config: RunConfig) -> AdapterSpec:
    """The LoRA or LoKr that a configuration describes; ConfigError for what it cannot be."""
    targets = config.peft_lora_target_modules or _preset(config)
    if config.lora_type == LYCORIS:
        content = config.lycoris_config
        assert isinstance(content, dict)
        where = config.origin("lycoris_config")
        return LoKrSpec(read_lycoris(content, where), tuple(targets), as_text(content))
    return LoRASpec(
        rank=config.lora_rank,
        alpha=config.lora_alpha,
        use_rslora=config.use_rslora,
        use_dora=config.use_dora,
        dropout=config.lora_dropout,
        targets=tuple(targets),
        init_type=config.lora_init_type,
    )


def _preset(config: RunConfig) -> tuple[str, ...]:
    """The targets of `acestep_lora_target`."""
    family, chosen = of_flavour(config.model_flavour), config.acestep_lora_target
    if chosen not in family.lora.presets:
        raise ConfigError(
            f"acestep_lora_target={chosen} is not for {family.title}; use one of "
            f"{', '.join(family.lora.presets)}, or peft_lora_target_modules"
        )
    return family.lora.presets[chosen]


def full_training(config: RunConfig) -> FullTraining | None:
    """How modules are trained in full beside the LoRA; None where none are."""
    return of_flavour(config.model_flavour).lora.full.settings(config)


def further_loss(config: RunConfig) -> FurtherLoss | None:
    """The loss that this run adds to its objective's."""
    further = of_flavour(config.model_flavour).further
    return further if further is not None and further.wanted(config) else None


def step_settings(config: RunConfig) -> StepSettings:
    """What the compiled step is specialised on."""
    return StepSettings(
        max_grad_norm=config.max_grad_norm,
        accumulate=config.gradient_accumulation_steps,
        compute_dtype=COMPUTE_DTYPES[config.mixed_precision],
        average=average_settings(config),
    )


def average_settings(config: RunConfig) -> AverageSettings | None:
    """How the trained weights are averaged; None where they are not."""
    if not config.use_ema:
        return None
    return AverageSettings(config.ema_decay, config.ema_update_interval or 1)


def measured_weights(config: RunConfig) -> list[bool]:
    """With which weights clips and losses are made: False for the trained ones, True for their average."""
    if not config.use_ema:
        return [False]
    return {"none": [False], "ema_only": [True]}.get(config.ema_validation, [False, True])


def rollout_settings(config: RunConfig) -> RolloutSettings | None:
    """How songs are rolled out before they are trained on; None where they are not."""
    if not config.scheduled_sampling_max_step_offset:
        return None
    reflexflow = ReflexFlow(
        config.scheduled_sampling_reflexflow_alpha,
        config.scheduled_sampling_reflexflow_beta1,
        config.scheduled_sampling_reflexflow_beta2,
    )
    return RolloutSettings(
        max_offset=config.scheduled_sampling_max_step_offset,
        strategy=config.scheduled_sampling_strategy,
        probability=config.scheduled_sampling_probability,
        ramp_steps=config.scheduled_sampling_ramp_steps,
        prob_start=config.scheduled_sampling_prob_start,
        prob_end=config.scheduled_sampling_prob_end,
        start_step=config.scheduled_sampling_start_step,
        ramp_shape=config.scheduled_sampling_ramp_shape,
        stride=config.scheduled_sampling_stride,
        reflexflow=reflexflow if config.scheduled_sampling_reflexflow else None,
    )


def rollout_lines(config: RunConfig) -> list[str]:
    """What scheduled sampling will do and cost, for people; nothing where it is off."""
    rolling = rollout_settings(config)
    if rolling is None:
        return []
    chosen = not config.origin("scheduled_sampling_reflexflow").startswith("as ")
    return described(rolling, config.train_batch_size, chosen)


def total_steps(config: RunConfig, batches_per_epoch: int) -> int:
    """Updates of the whole run; accumulation runs on across epochs."""
    if config.max_train_steps > 0:
        return config.max_train_steps
    return max(1, math.ceil(config.num_train_epochs * batches_per_epoch / config.gradient_accumulation_steps))
