"""Settings that become fields of something else: each arrives as it was given, whatever it is, and alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import mlx.core as mx
import pytest

from acestep_mlx.config.read_run import load_config
from acestep_mlx.config.request import Request
from acestep_mlx.families import of_flavour
from acestep_mlx.lora.surgery import LoRASpec
from acestep_mlx.sampling.guidance import Guidance
from acestep_mlx.training import build, settings
from acestep_mlx.training.average import AverageSettings
from acestep_mlx.training.step import StepSettings

#: field of Guidance → (field of a request, two values that are no default)
GUIDANCE: Mapping[str, tuple[str, tuple[Any, Any]]] = {
    "kind": ("guidance", ("cfg", "cfg_star")),
    "scale": ("guidance_scale", (0.5, 99.0)),
    "interval": ("guidance_interval", (0.125, 1.0)),
    "decay": ("guidance_decay", (0.25, 1.0)),
    "minimum": ("min_guidance_scale", (0.75, 88.0)),
    "text_scale": ("guidance_scale_text", (0.875, 77.0)),
    "lyric_scale": ("guidance_scale_lyric", (0.375, 66.0)),
    "zero_steps": ("zero_steps", (0, 55)),
    "zero_init": ("zero_init", (False, True)),
}


@pytest.mark.parametrize("which", [0, 1])
def test_guidance_is_as_a_request_says(which: int) -> None:
    made = Guidance.of(Request(**{name: values[which] for name, values in GUIDANCE.values()}), (-1,))
    assert {name: getattr(made, name) for name in GUIDANCE} == {k: v[1][which] for k, v in GUIDANCE.items()}
    assert made.axes == (-1,)


#: field of what is made → (option, two values that are no default, or more)
LORA = {
    "rank": ("lora_rank", (1, 1024)), "alpha": ("lora_alpha", (0.125, 65536.0)),
    "use_rslora": ("use_rslora", (True,)), "use_dora": ("use_dora", (True,)),
    "dropout": ("lora_dropout", (0.125, 0.99)), "init_type": ("lora_init_type", ("gaussian",)),
    "targets": ("peft_lora_target_modules", (["a"], ["b", "c"])),
}  # fmt: skip
STEP = {
    "max_grad_norm": ("max_grad_norm", (0.0, 0.125, 7.5, 1e6)),
    "accumulate": ("gradient_accumulation_steps", (2, 4096)),
}
SCHEDULE = {
    "name": ("lr_scheduler", ("sine", "linear")), "base": ("learning_rate", (1e-9, 10.0)),
    "warmup": ("lr_warmup_steps", (3, 10**9)), "cycles": ("lr_num_cycles", (2, 10**6)),
    "power": ("lr_power", (0.5, 100.0)), "end": ("lr_end", (1e-10, 0.0)),
}  # fmt: skip
MADE: Mapping[str, tuple[Any, Mapping[str, tuple[str, tuple[Any, ...]]]]] = {
    "LoRA": (settings.lora_spec, LORA),
    "step": (settings.step_settings, STEP),
    "schedule": (lambda c: build._schedule(c, c.lr_scheduler, c.learning_rate, 100), SCHEDULE),
}

ROLLOUT = {
    "max_offset": ("max_step_offset", (1, 999)), "strategy": ("strategy", ("biased_early", "biased_late")),
    "probability": ("probability", (0.125, 1.0)), "ramp_steps": ("ramp_steps", (3, 10**9)),
    "prob_start": ("prob_start", (0.25, 1.0)), "prob_end": ("prob_end", (0.0, 1.0)),
    "start_step": ("start_step", (2, 10**9)), "ramp_shape": ("ramp_shape", ("cosine",)),
    "stride": ("stride", (2, 999)), "alpha": ("reflexflow_alpha", (0.0, 1e6)),
    "beta1": ("reflexflow_beta1", (0.0, 0.5)), "beta2": ("reflexflow_beta2", (0.0, 7.0)),
}  # fmt: skip


def _rollout(**given: Any) -> dict[str, Any]:
    """Its fields and those of ReflexFlow, of a run with scheduled sampling."""
    options = {
        f"scheduled_sampling_{name}": value for name, value in {"max_step_offset": 10, **given}.items()
    }
    made: Any = settings.rollout_settings(load_config(options))
    return {**vars(made), **(vars(made.reflexflow) if made.reflexflow else {})}


def test_a_rollout_is_as_a_configuration_says() -> None:
    plain = _rollout()
    assert set(plain) == {*ROLLOUT, "reflexflow"}
    for field, (option, values) in ROLLOUT.items():
        for value in values:
            made = _rollout(**{option: value})
            assert made.pop(field) == value, option
            others = {name: one for name, one in made.items() if name != "reflexflow"}
            assert others == {n: one for n, one in plain.items() if n not in (field, "reflexflow")}, option
    assert _rollout(reflexflow=False)["reflexflow"] is None


@pytest.mark.parametrize("what", MADE)
def test_what_training_takes_is_as_a_configuration_says(what: str) -> None:
    make, table = MADE[what]
    plain = make(load_config({}))
    for field, (option, values) in table.items():
        for value in values:
            made = make(load_config({option: value}))
            assert getattr(made, field) == (tuple(value) if isinstance(value, list) else value), option
            others = set(table) - {field} - ({"alpha"} if field == "rank" else set())  # which follows it
            assert {n: getattr(made, n) for n in others} == {n: getattr(plain, n) for n in others}, option


def test_no_field_is_left_out() -> None:
    assert {f.name for f in fields(LoRASpec)} == set(LORA)
    assert {f.name for f in fields(StepSettings)} == {*STEP, "compute_dtype", "average"}
    for name, dtype in {"bf16": mx.bfloat16, "fp16": mx.float16, "no": mx.float32}.items():
        assert settings.step_settings(load_config({"mixed_precision": name})).compute_dtype == dtype
    config = load_config({"logit_mean": 0.5, "logit_std": 0.25, "flow_schedule_shift": 7.0})
    made: Any = of_flavour("base").objective(config)
    assert (made.logit_mean, made.logit_std, made.shift) == (0.5, 0.25, 7.0)


def test_the_weights_are_averaged_as_a_configuration_says() -> None:
    def made(**options: object) -> AverageSettings | None:
        return settings.step_settings(load_config(options)).average

    assert made() is None and made(ema_decay=0.5, ema_update_interval=3) is None
    assert made(use_ema=True) == AverageSettings(0.995, 1)
    assert made(use_ema=True, ema_decay=0.25) == AverageSettings(0.25, 1)
    assert made(use_ema=True, ema_update_interval=7) == AverageSettings(0.995, 7)


def test_an_optimizer_has_its_own_moments_decays_and_epsilon() -> None:
    config = load_config(
        {"adam_beta1": 0.5, "adam_beta2": 0.75, "adam_epsilon": 0.125, "adam_weight_decay": 2}
    )
    made: Any = build._optimizer(config, "adamw", 0.1)
    assert (made.betas, made.eps, made.weight_decay) == ((0.5, 0.75), 0.125, 2)
    adam: Any = build._optimizer(config, "adam", 0.1)
    assert (adam.betas, adam.eps) == ((0.5, 0.75), 0.125)
    for given, betas in (
        ({"beta1": 0.25}, (0.25, 0.75)),
        ({"beta2": 0.25}, (0.5, 0.25)),
        ({"beta1": 0.125, "beta2": 0.25}, (0.125, 0.25)),
        ({"betas": [0.25, 0.375], "beta2": 0.625}, (0.25, 0.625)),
    ):
        both = load_config({**config.to_dict(), "optimizer_config": given})
        own: Any = build._optimizer(both, "adamw", 0.1)
        assert tuple(own.betas) == betas, given
