"""How a pipeline is made from a folder."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from acestep_mlx import ACEStepPipeline, pipeline


@pytest.mark.parametrize("fuse", [False, True])
@pytest.mark.parametrize("low", [False, True])
def test_a_folders_pipeline_is_as_it_was_asked_for(
    low: bool, fuse: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder: Any = SimpleNamespace(family=None)
    monkeypatch.setattr(pipeline, "ModelFolder", SimpleNamespace(open=lambda path: folder))
    made = ACEStepPipeline.from_pretrained("model", low_memory=low, fuse_loras=fuse)
    assert (made.folder, made.low_memory, made.fuse_loras) == (folder, low, fuse)
