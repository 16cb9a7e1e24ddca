"""What a backend's error means for the user, and which settings to change."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ..config.run import RunConfig
from ..errors import AceStepError, refusal
from ..families import of_flavour
from ..io.backend import ADVICE, fault_of
from .checkpoint import Checkpoint, Health, last_healthy
from .settings import full_training


class OutOfMemory(AceStepError):
    """The run does not fit; the message lists what to lower, most effective first."""


def memory_advice(config: RunConfig, longest_seconds: float = 0.0) -> list[str]:
    """Settings that would take less memory than `config`, in order of effect."""
    advice = []
    precision = config.base_model_precision
    if not config.gradient_checkpointing:
        advice.append("gradient_checkpointing=true")
    if precision == "no_change":
        advice.append("base_model_precision=int8-quanto (the model takes half) or int4-quanto (a quarter)")
    elif "8" in precision:
        advice.append("base_model_precision=int4-quanto (the model takes half of what it does now)")
    if config.train_batch_size > 1:
        advice.append(f"train_batch_size=1 with gradient_accumulation_steps={config.train_batch_size}")
    if longest_seconds > 60 or not longest_seconds:
        advice.append("audio.max_duration_seconds=60 in the data set (shorter songs)")
    if config.mixed_precision == "no":
        advice.append("mixed_precision=bf16")
    if config.lora_rank > 16:  # a LoKr's is not
        advice.append("lora_rank=16")
    if full_training(config) is not None:
        advice.append(f"{_full_name(config)}_train=false")
    return [*advice, "closing other programs"]


def watchdog_advice(config: RunConfig) -> list[str]:
    """What makes a single piece of GPU work shorter, or lets it be longer; the easiest first."""
    advice = ["let the display sleep, and close what draws on it"]
    if config.train_batch_size > 1:
        advice.append(f"train_batch_size=1 with gradient_accumulation_steps={config.train_batch_size}")
    advice.append("audio.max_duration_seconds=60 in the data set (shorter songs)")
    if config.mixed_precision == "no":
        advice.append("mixed_precision=bf16")
    return [*advice, "AGX_RELAX_CDM_CTXSTORE_TIMEOUT=1 in the environment (see docs/mac.md)"]


def _full_name(config: RunConfig) -> str:
    """What the options of modules that are trained in full begin with."""
    return of_flavour(config.model_flavour).lora.full.name


def same_again(config: RunConfig) -> str:
    """What goes on with an interrupted run: a flag, unless the configuration has it already."""
    if config.resume_from_checkpoint == "latest":
        return "the same command"
    return "--resume_from_checkpoint=latest"


def way_on(config: RunConfig, resumed: Checkpoint | None) -> str:
    """How to go on once the loss is no number any more: options that can be typed as they are.

    resumed: the checkpoint that the run went on from.
    """
    found = last_healthy(config.output_path)
    if found is None and resumed is not None and Health.of(resumed.state).healthy:
        found = resumed.path
    known = f"The last healthy checkpoint is {found}. " if found else "No checkpoint is healthy. "
    start = shlex.quote(str(found))
    if config.mixed_precision == "fp16":  # another precision is another run
        where = shlex.quote(f"{config.output_path}-bf16")
        begin = f" --init_lora={start}" if found else ""
        return (
            f"{known}fp16 has too small a range; begin anew with --mixed_precision=bf16{begin} "
            f"--output_dir={where} --resume_from_checkpoint=latest"
        )
    lower = f"--learning_rate={config.learning_rate / 4:g}"
    if (in_full := full_training(config)) is not None:
        lower += f" --{_full_name(config)}_lr={in_full.learning_rate / 4:g}"
    if found is None:
        return f"{known}Begin anew at a lower rate: {lower} --overwrite"
    return f"{known}Go on from it at a lower rate: --resume_from_checkpoint={start} {lower}"


@contextmanager
def explained(config: RunConfig, keeps: str | Callable[[], str] = "") -> Iterator[None]:
    """Turn an error of the disk or a backend into one line that says what to do, where it is a known one.

    keeps: says what was saved.
    """
    try:
        yield
    except (OSError, RuntimeError, MemoryError) as error:
        told = _explanation(config, error)
        if told is None:
            raise
        kind = OutOfMemory if told.startswith("out of memory") else AceStepError
        raise kind(f"{told} {keeps() if callable(keeps) else keeps}".strip()) from error


def _explanation(config: RunConfig, error: Exception) -> str | None:
    """What happened and what helps; None where that is not known."""
    if isinstance(error, OSError):
        return f"{refusal(error)}. Mend that, then go on with {same_again(config)}."
    kind = fault_of(error)
    if kind == "memory":
        return f"out of memory. What helps, in order of effect: {_numbered(memory_advice(config))}."
    if kind == "watchdog":
        return (
            "macOS stopped the GPU because one piece of work took too long (its watchdog). What helps: "
            f"{_numbered(watchdog_advice(config))}; then go on with {same_again(config)}."
        )
    if kind == "peer":
        what = ADVICE[kind].format(error=error)
        return f"{what}; this one stops too. Start all of them again with {same_again(config)}."
    if kind == "gpu":
        return f"{ADVICE[kind].format(error=error)}; go on with {same_again(config)}."
    return None


def _numbered(advice: list[str]) -> str:
    return "; ".join(f"{i}. {text}" for i, text in enumerate(advice, 1))
