"""Names of validation clips, and checkpoints that list what they must not."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from acestep_mlx.config.read_run import load_config
from acestep_mlx.config.request import Request
from acestep_mlx.errors import CheckpointError, ConfigError
from acestep_mlx.training import checkpoint
from acestep_mlx.training.validation import Validation, prompts


def test_prompts_that_would_share_a_file_are_refused(tmp_path: Path) -> None:
    library = tmp_path / "library.json"
    library.write_text(json.dumps({"a b": "jazz", "a/b": "rock"}))
    with pytest.raises(ConfigError, match=r"'a b' and 'a/b' share a file name"):
        prompts(load_config({"validation_prompt_library": str(library)}))


def test_a_clip_without_lora_is_known_by_all_that_it_depends_on() -> None:
    """One of an earlier run is not taken for this one's."""

    def digest(prints: dict[str, str] | None = None, **changes: Any) -> str:
        made: Any = object.__new__(Validation)
        made.folder = SimpleNamespace(fingerprints=prints or {"transformer": "1", "dcae": "2"})
        made.requests = {"a": Request(**{"prompt": "jazz", "seeds": (3,), **changes}), "b": Request()}
        return made._digest("a")

    assert digest() == digest() and len(digest()) == 8
    others = [
        digest(prints={"transformer": "1", "dcae": "3"}), digest(prints={"transformer": "0", "dcae": "2"}),
        digest(prompt="rock"), digest(seeds=(4,)), digest(steps=11), digest(lyrics="la"),
        digest(guidance_scale=2.0), digest(duration=9.0), digest(negative_prompt="noise"),
    ]  # fmt: skip
    assert len({digest(), *others}) == 1 + len(others)


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
