"""What a backend's error becomes: one line with the way on, as the configuration needs it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from acestep_mlx.config.read_run import load_config
from acestep_mlx.errors import AceStepError
from acestep_mlx.training.checkpoint import Checkpoint
from acestep_mlx.training.faults import OutOfMemory, explained, memory_advice, same_again, way_on

ERRORS = [
    OSError(5, "Input/output error", "songs/a.wav"),
    RuntimeError("[METAL] Command buffer execution failed: Caused GPU Timeout Error"),
    RuntimeError("[ring] Receiving from socket 3 failed with errno 54"),
]


def told(error: Exception, config: dict[str, Any], keeps: Any = "") -> str:
    with pytest.raises(AceStepError) as caught, explained(load_config(config), keeps):
        raise error
    text = str(caught.value)
    assert "\n" not in text and caught.value.__cause__ is error
    return text


@pytest.mark.parametrize("error", ERRORS, ids=["disk", "watchdog", "another machine"])
@pytest.mark.parametrize("given", [None, "latest", "out/checkpoint-3"])
def test_the_way_on_is_a_flag_unless_the_configuration_has_it(error: Exception, given: str | None) -> None:
    text = told(error, {"resume_from_checkpoint": given}, lambda: "The last is C.")
    assert ("the same command" in text) == (given == "latest")
    assert ("--resume_from_checkpoint=latest" in text) == (given != "latest")
    assert text.endswith(" The last is C.")
    assert told(error, {}, "") == told(error, {"resume_from_checkpoint": None}, "").strip()
    assert same_again(load_config({})) == "--resume_from_checkpoint=latest"


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError(
            "[metal::malloc] Attempting to allocate 9 bytes: greater than the maximum allowed buffer size"
        ),
        RuntimeError("std::bad_alloc"),
        RuntimeError("Unable to allocate 5 bytes"),
        RuntimeError("CUDA out of memory"),
    ],
)
def test_too_little_memory_says_what_helps_in_order(error: Exception) -> None:
    given = {
        "train_batch_size": 4,
        "gradient_checkpointing": False,
        "lora_rank": 64,
        "mixed_precision": "no",
    }
    text, config = told(error, given, "C is kept."), load_config(given)
    places = [text.index(f"{i}. {advice}") for i, advice in enumerate(memory_advice(config), 1)]
    assert places == sorted(places) and text.endswith(". C is kept.")
    with pytest.raises(OutOfMemory), explained(config):
        raise error


@pytest.mark.parametrize(
    ("config", "seconds", "wanted"),
    [
        ({}, 60.0, ["base_model_precision=int8-quanto"]),
        (
            {"gradient_checkpointing": False},
            30.0,
            ["gradient_checkpointing=true", "base_model_precision=int8"],
        ),
        ({"base_model_precision": "int8-quanto"}, 61.0, ["base_model_precision=int4", "audio.max_duration"]),
        ({"base_model_precision": "int4-quanto"}, 0.0, ["audio.max_duration_seconds=60"]),
        (
            {"base_model_precision": "int4-quanto", "train_batch_size": 3, "mixed_precision": "no"},
            9.0,
            ["train_batch_size=1 with gradient_accumulation_steps=3", "mixed_precision=bf16"],
        ),
        (
            {"base_model_precision": "int4-quanto", "lora_rank": 17, "lyrics_embedder_train": True},
            9.0,
            ["lora_rank=16", "lyrics_embedder_train=false"],
        ),
        ({"base_model_precision": "int4-quanto", "lora_rank": 16, "train_batch_size": 1}, 60.0, []),
    ],
)
def test_only_what_is_not_so_yet_is_advised(
    config: dict[str, Any], seconds: float, wanted: list[str]
) -> None:
    *found, last = memory_advice(load_config(config), seconds)
    assert last == "closing other programs" and len(found) == len(wanted)
    assert all(a.startswith(b) for a, b in zip(found, wanted, strict=True)), found


@pytest.mark.parametrize("healthy", [True, False])
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_a_run_that_went_on_from_a_checkpoint_may_go_on_from_it_again_where_it_was_healthy(
    precision: str, healthy: bool, tmp_path: Path
) -> None:
    """Of another folder, with none of its own yet."""
    given = {"output_dir": str(tmp_path / "new"), "mixed_precision": precision, "learning_rate": 0.008}
    earlier = Checkpoint(tmp_path / "old" / "checkpoint-7", {"healthy": healthy}, {}, {}, {})
    found = way_on(load_config(given), earlier)
    assert ("checkpoint-7" in found) == healthy and ("No checkpoint is healthy" in found) != healthy
    assert ("--learning_rate=0.002" in found) == (precision == "bf16")
    assert "lyrics_embedder" not in found
    both = way_on(load_config({**given, "lyrics_embedder_train": True, "lyrics_embedder_lr": 0.04}), None)
    assert ("--lyrics_embedder_lr=0.01" in both) == (
        precision == "bf16"
    ) and "No checkpoint is healthy" in both


@pytest.mark.parametrize(
    ("config", "wanted"),
    [
        ({}, ["let the display sleep", "audio.max_duration_seconds=60", "AGX_RELAX"]),
        (
            {"train_batch_size": 4, "mixed_precision": "no"},
            ["let the display", "train_batch_size=1 with gradient_accumulation_steps=4", "audio.max",
             "mixed_precision=bf16", "AGX_RELAX"],
        ),
    ],
)  # fmt: skip
def test_the_watchdog_names_its_cure_and_what_is_kept(config: dict[str, Any], wanted: list[str]) -> None:
    kept = "The last complete checkpoint is out/checkpoint-9."
    text = told(ERRORS[1], config, kept)
    places = [text.index(f"{i}. {one}") for i, one in enumerate(wanted, 1)]
    assert places == sorted(places) and f"{len(wanted) + 1}. " not in text
    assert text.endswith(
        "go on with --resume_from_checkpoint=latest. The last complete checkpoint is out/checkpoint-9."
    )


def test_another_fault_of_the_gpu_is_a_line_too() -> None:
    said = "[METAL] Command buffer execution failed: Discarded (victim of GPU error/recovery)."
    text = told(RuntimeError(said), {}, "C is kept.")
    assert "victim" in text and "restart the machine" in text and text.endswith("=latest. C is kept.")


def test_what_is_none_of_these_stays_what_it_is() -> None:
    with pytest.raises(RuntimeError, match=r"shapes \(3\)"), explained(load_config({})):
        raise RuntimeError("shapes (3) and (4)")
