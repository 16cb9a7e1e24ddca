"""A kill while a checkpoint is replaced leaves the old one or the new one; what a resumed run may change."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from acestep_mlx.config.read_run import load_config
from acestep_mlx.config.run import OPTIONS, SUPPORTED
from acestep_mlx.errors import CheckpointError, ConfigError
from acestep_mlx.training import checkpoint
from acestep_mlx.training.preflight import preflight

from . import runs


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> tuple[dict[str, Any], Path]:
    """A configuration, and the checkpoint after its first step."""
    root = tmp_path_factory.mktemp("saved")
    quick = {"acestep_lora_target": "attn_qkv", "gradient_checkpointing": False}
    config = runs.configuration(root, tiny_model, "run", max_train_steps=1, **quick)
    return config, runs.run(config)[0].checkpoint


# ── kills ────────────────────────────────────────────────────────────────────────────────────────────
class Killed(BaseException):
    """Nothing that runs after it would run after a kill."""


class Killer:
    """Ends the process, as it were, before the n-th thing that is done to the disk; counts when n is None."""

    def __init__(self, patch: pytest.MonkeyPatch, at: int | None) -> None:
        self.at, self.done = at, 0
        for place, name in (
            (os, "fsync"),
            (Path, "rename"),
            (Path, "replace"),
            (Path, "mkdir"),
            (Path, "write_text"),
            (shutil, "rmtree"),
            (mx, "save_safetensors"),
        ):
            patch.setattr(place, name, self._watched(name, getattr(place, name)))

    def _watched(self, name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def act(*arguments: Any, **options: Any) -> Any:
            self.done += 1
            if self.at is not None and self.done > self.at:
                return None  # dead already
            if self.done == self.at:
                if name == "rmtree" and Path(arguments[0]).is_dir():  # it was in the middle of it
                    next(p for p in sorted(Path(arguments[0]).rglob("*")) if p.is_file()).unlink()
                raise Killed
            return original(*arguments, **options)

        return act


def replaced(output: Path, found: checkpoint.Checkpoint, factor: float) -> None:
    """Write the checkpoint once more, its weights times `factor`."""
    state = {k: v for k, v in found.state.items() if k not in ("files", "step", "format", "format_version")}
    checkpoint.save(
        output,
        found.step,
        state=state,
        adapter={k: v * factor for k, v in found.adapter.items()},
        optimizer=found.optimizer,
        sampler=found.sampler,
        config={},
    )


def test_a_kill_while_a_checkpoint_is_replaced_leaves_the_old_one_or_the_new_one(
    saved: tuple[dict[str, Any], Path], tmp_path: Path
) -> None:
    found = checkpoint.read(saved[1])
    name = next(k for k, v in found.adapter.items() if v.any().item())
    replaced(tmp_path / "counted", found, 1.0)
    with pytest.MonkeyPatch.context() as patch:
        counting = Killer(patch, None)
        replaced(tmp_path / "counted", found, 2.0)
    assert [p.name for p in (tmp_path / "counted").iterdir()] == [f"checkpoint-{found.step}"]
    new = []
    for at in range(1, counting.done + 1):
        output = tmp_path / f"killed-{at}"
        replaced(output, found, 1.0)
        with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
            Killer(patch, at)
            replaced(output, found, 2.0)
        left = runs.latest(output)
        assert left.step == found.step, at
        new.append(mx.array_equal(left.adapter[name], found.adapter[name] * 2.0).item())
        assert new[-1] or mx.array_equal(left.adapter[name], found.adapter[name]).item(), at
        assert [p.name for p in output.iterdir()] == [f"checkpoint-{found.step}"], "nothing else is left"
    assert new == sorted(new) and set(new) == {False, True}, "old first, and from some moment on new"


@pytest.mark.parametrize("name", ["fsync", "rename", "write_text", "save_safetensors"])
def test_a_disk_that_fails_while_a_checkpoint_is_replaced_leaves_it_in_its_place(
    name: str, saved: tuple[dict[str, Any], Path], tmp_path: Path
) -> None:
    """Whichever call of a kind it is; and at once, without what puts right after a kill."""
    found = checkpoint.read(saved[1])
    place: Any = {"fsync": os, "save_safetensors": mx}.get(name, Path)
    original, at, failed = getattr(place, name), 0, True
    while failed:
        at, failed, calls = at + 1, False, 0
        output = tmp_path / f"failed-{at}"
        replaced(output, found, 1.0)

        def act(*arguments: Any, at: int = at, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == at:
                raise OSError(errno.EIO, "Input/output error")
            return original(*arguments, **options)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(place, name, act)
            try:
                replaced(output, found, 2.0)
            except CheckpointError as error:
                failed = True
                assert "could not be written" in str(error) and "\n" not in str(error)
        assert [p.name for p in output.iterdir() if not p.name.endswith(".old")] == [saved[1].name], at
        checkpoint.verify(output / saved[1].name)
    assert at > 1, "nothing failed"


def test_a_kill_while_an_old_checkpoint_is_deleted_leaves_none_that_looks_whole(
    saved: tuple[dict[str, Any], Path], tmp_path: Path
) -> None:
    for at in (1, 2, 3):
        output = tmp_path / f"killed-{at}"
        for step in (1, 2):
            shutil.copytree(saved[1], output / f"checkpoint-{step}")
        with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
            Killer(patch, at)
            checkpoint.prune(output, 1, output / "checkpoint-2")
        checkpoint.clean(output)
        for path in checkpoint.checkpoints(output):
            checkpoint.verify(path)
        names = {p.name for p in output.iterdir()}
        assert "checkpoint-2" in names and names <= {"checkpoint-1", "checkpoint-2"}


@pytest.mark.parametrize("change", ["a bit", "cut", "longer", "gone"])
def test_a_checkpoint_of_which_any_file_is_not_what_was_written_is_damaged(
    change: str, saved: tuple[dict[str, Any], Path], tmp_path: Path
) -> None:
    names = json.loads((saved[1] / checkpoint.STATE).read_text())["files"]
    assert {*checkpoint.TENSORS, checkpoint.LORA, "config.json"} <= set(names)
    for name in names:
        folder = shutil.copytree(saved[1], tmp_path / name / "checkpoint-1")
        checkpoint.verify(folder)
        content = (folder / name).read_bytes()
        middle = len(content) // 2
        changed = {
            "a bit": content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :],
            "cut": content[:-1],
            "longer": content + b"\0",
        }
        if change == "gone":
            (folder / name).unlink()
        else:
            (folder / name).write_bytes(changed[change])
        with pytest.raises(CheckpointError, match=name):
            checkpoint.verify(folder)
        with pytest.raises(CheckpointError, match="damaged"):
            checkpoint.newest(folder.parent, lambda *_: None)


# ── what a run that goes on may have otherwise ───────────────────────────────────────────────────────
#: Where, how long, how often, how it is shown: what was trained so far stays what it is.
MAY_CHANGE: dict[str, Any] = {
    "learning_rate": 2e-3, "lr_scheduler": "cosine", "lr_warmup_steps": 3, "lr_num_cycles": 2,
    "lr_power": 2.0, "lr_end": 1e-6, "max_grad_norm": 0.5, "lyrics_embedder_lr": 2e-3,
    "lyrics_embedder_lr_scheduler": "linear", "max_train_steps": 9, "gradient_checkpointing": True,
    "checkpoint_step_interval": 7, "checkpoint_epoch_interval": 2, "checkpoints_total_limit": 9,
    "validation_prompt": "jazz", "validation_lyrics": "la", "validation_prompt_library": "audio",
    "validation_audio_duration": 9.0, "validation_guidance": 2.0, "validation_num_inference_steps": 9,
    "validation_step_interval": 9, "validation_epoch_interval": 9, "validation_seed": 9,
    "validation_negative_prompt": "x", "validation_on_startup": True, "validation_disable": False,
    "eval_steps_interval": 9, "num_eval_images": 2, "eval_loss_disable": False,
    "report_to": "none", "logging_dir": "elsewhere", "tracker_project_name": "x", "tracker_run_name": "x",
    "vae_cache_disable": True, "vae_cache_ondemand": True, "compress_disk_cache": True, "lora_format": "mlx",
    "ema_decay": 0.5, "ema_update_interval": 2, "ema_validation": "none", "checkpoint_minutes": 5.0,
    "scheduled_sampling_max_step_offset": 5, "scheduled_sampling_stride": 2,
    "scheduled_sampling_strategy": "biased_late", "scheduled_sampling_probability": 0.5,
    "scheduled_sampling_prob_start": 0.1, "scheduled_sampling_prob_end": 0.9,
    "scheduled_sampling_ramp_steps": 3, "scheduled_sampling_start_step": 1,
    "scheduled_sampling_ramp_shape": "cosine", "scheduled_sampling_reflexflow": False,
    "scheduled_sampling_reflexflow_alpha": 0.5, "scheduled_sampling_reflexflow_beta1": 1.0,
    "scheduled_sampling_reflexflow_beta2": 2.0,
}  # fmt: skip
#: These make other weights, other moments or other numbers out of the same songs.
MAY_NOT: dict[str, Any] = {
    "lora_rank": 3, "lora_alpha": 7.0, "lora_dropout": 0.1, "use_dora": True, "use_rslora": True,
    "lora_init_type": "gaussian", "acestep_lora_target": "attn_qkv+linear_qkv",
    "peft_lora_target_modules": ["to_q"], "lyrics_embedder_train": True, "lyrics_embedder_optimizer": "lion",
    "mixed_precision": "bf16", "base_model_precision": "int8-quanto", "optimizer": "lion",
    "optimizer_config": {"eps": 1e-3}, "adam_beta1": 0.5, "adam_beta2": 0.5, "adam_weight_decay": 0.5,
    "adam_epsilon": 1e-3, "train_batch_size": 2, "gradient_accumulation_steps": 2, "seed": 7,
    "flow_schedule_shift": 1.0, "logit_mean": 0.5, "logit_std": 0.5, "caption_dropout_probability": 0.5,
    "caption_strategy": "filename", "instance_prompt": "zyx", "prepend_instance_prompt": True,
    "only_instance_prompt": True, "disable_multiline_split": True, "audio_max_duration_seconds": 9.0,
    "audio_min_duration_seconds": 1.0, "audio_duration_interval": 9.0, "audio_truncation_mode": "end",
    "use_ema": True,
}  # fmt: skip
#: Options with one value, folders and models that have tests of their own, and what a resume itself is.
ELSEWHERE = {
    "model_family", "model_type", "model_flavour", "lora_type", "grad_clip_method", "evaluation_type",
    "loss_type", "peft_lora_mode", "timestep_bias_strategy", "num_validation_images",
    "ace_step_timestep_draws",  # of another family
    "lycoris_config",  # is changed in test_lokr_runs, and those of the self-supervised loss in test_ssl
    "ace_step_ssl_loss_weight", "ace_step_ssl_encoders", "ace_step_ssl_mert", "ace_step_ssl_mhubert",
    "pretrained_model_name_or_path", "revision", "output_dir", "cache_dir", "cache_dir_text", "cache_dir_vae",
    "validation_model",
    "early_stopping_patience",  # is changed in test_patience
    "data_backend_config", "init_lora", "resume_from_checkpoint", "num_train_epochs",
}  # fmt: skip


def test_every_option_is_on_one_of_the_lists() -> None:
    lists = (set(MAY_CHANGE), set(MAY_NOT), ELSEWHERE)
    assert sorted(name for names in lists for name in names) == sorted(SUPPORTED)


def _resumed(saved: tuple[dict[str, Any], Path], **change: Any) -> Any:
    config = {**saved[0], "resume_from_checkpoint": "latest", **change}
    if "checkpoint_step_interval" in change:
        del config["checkpointing_steps"]
    return preflight(load_config(config), lambda *_: None)


@pytest.mark.parametrize("name", MAY_CHANGE)
def test_may_change(name: str, saved: tuple[dict[str, Any], Path]) -> None:
    assert _resumed(saved, **{name: MAY_CHANGE[name]}).step == 1


@pytest.mark.parametrize("name", MAY_NOT)
def test_may_not_change(name: str, saved: tuple[dict[str, Any], Path]) -> None:
    state = json.loads((saved[1] / "training_state.json").read_text())
    then, now = state["identity"][name], MAY_NOT[name]
    with pytest.raises(ConfigError) as error:
        _resumed(saved, **{name: now})
    assert f"{name}: checkpoint {json.dumps(then)}, now {json.dumps(now)}" in str(error.value)
    assert "init_lora" in str(error.value) and "\n" not in str(error.value)
    assert (OPTIONS[name].status, OPTIONS[name].resume) == ("supported", "same")


def test_an_alpha_that_follows_the_rank_is_the_alpha_that_is_written_out(
    saved: tuple[dict[str, Any], Path],
) -> None:
    assert _resumed(saved, lora_alpha=saved[0]["lora_rank"]).step == 1
    with pytest.raises(ConfigError, match=r"lora_alpha: checkpoint 2\.0, now 2\.5"):
        _resumed(saved, lora_alpha=2.5)


@pytest.mark.parametrize("side", ["then", "now"])
def test_a_setting_that_only_one_of_the_two_has_is_another_setting(side: str) -> None:
    """A checkpoint of a version that had no such option, or of one that has more."""
    whole = {"lora_rank": 4, "use_dora": True}
    less = {"lora_rank": 4}
    then, now = (less, whole) if side == "then" else (whole, less)
    with pytest.raises(ConfigError, match="use_dora: checkpoint") as error:
        checkpoint.check_identity(Path("checkpoint-1"), {"identity": then}, now)
    assert "lora_rank" not in str(error.value)
    checkpoint.check_identity(Path("checkpoint-1"), {"identity": whole}, dict(whole))
    with pytest.raises(CheckpointError, match="is damaged: it does not say with which settings"):
        checkpoint.check_identity(Path("checkpoint-1"), {}, dict(whole))


STEERED = {
    "learning_rate": 3e-3, "lr_scheduler": "linear", "lr_warmup_steps": 7, "max_grad_norm": 0.25,
    "max_train_steps": 77,
}  # fmt: skip


@pytest.mark.parametrize("name", STEERED)
def test_what_steers_a_resumed_run_and_was_otherwise_is_said(
    name: str, saved: tuple[dict[str, Any], Path]
) -> None:
    config, path = saved
    now = load_config({**config, name: STEERED[name]}).to_dict()
    told = [line for line in checkpoint.changed_settings(path, now) if line.startswith(f"{name} ")]
    assert len(told) == 1 and told[0].endswith(f"→ {json.dumps(STEERED[name])}")


def test_what_is_free_or_the_same_is_not_said(saved: tuple[dict[str, Any], Path]) -> None:
    config, path = saved
    now = load_config({**config, "checkpointing_steps": 77, "tracker_run_name": "another"}).to_dict()
    assert checkpoint.changed_settings(path, now) == []
