"""Names of validation clips, and checkpoints that list what they must not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from acestep_mlx.config.read_run import load_config
from acestep_mlx.errors import CheckpointError, ConfigError
from acestep_mlx.training import checkpoint
from acestep_mlx.training.validation import prompts


def test_prompts_that_would_share_a_file_are_refused(tmp_path: Path) -> None:
    library = tmp_path / "library.json"
    library.write_text(json.dumps({"a b": "jazz", "a/b": "rock"}))
    with pytest.raises(ConfigError, match=r"'a b' and 'a/b' share a file name"):
        prompts(load_config({"validation_prompt_library": str(library)}))


@pytest.mark.parametrize(
    ("entry", "why"),
    [
        ({"adapter.safetensors": 3}, "files.adapter.safetensors must be an object, got 3"),
        ({"../outside": {"bytes": 1, "sha256": ""}}, "'../outside' leads out of the folder"),
    ],
)
def test_a_checkpoint_with_senseless_entries_is_damaged(entry: dict, why: str, tmp_path: Path) -> None:
    names = ("adapter.safetensors", "optimizer.safetensors", "sampler.safetensors")
    whole = {name: {"bytes": 0, "sha256": ""} for name in names}
    folder = tmp_path / "checkpoint-3"
    folder.mkdir()
    state = {"format": "acestep-mlx-checkpoint", "format_version": 1, "step": 3, "files": {**entry, **whole}}
    if "adapter.safetensors" in entry:
        state["files"].update(entry)
    (folder / "training_state.json").write_text(json.dumps(state))
    with pytest.raises(CheckpointError, match=why):
        checkpoint.verify(folder)
