"""Where captions and lyrics of a data set are kept: its own entry, the one that is marked, or the first."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from acestep_mlx.config.read_datasets import read_datasets
from acestep_mlx.config.read_run import load_config


@pytest.mark.parametrize(
    ("marked", "chosen", "place"),
    [(None, None, "one"), ("b", None, "two"), ("a", None, "one"), ("b", "a", "one"), (None, "b", "two")],
)
def test_which_entry_it_is(marked: str | None, chosen: str | None, place: str, tmp_path: Path) -> None:
    entries: list[dict[str, Any]] = [
        {"id": name, "dataset_type": "text_embeds", "cache_dir": folder, "default": name == marked}
        for name, folder in (("a", "one"), ("b", "two"))
    ]
    songs: dict[str, Any] = {"id": "set", "dataset_type": "audio", "instance_data_dir": str(tmp_path)}
    songs |= {"text_embeds": chosen} if chosen else {}
    found = read_datasets(load_config({"data_backend_config": [*entries, songs]}))
    assert found.audio[0].text_dir == Path.cwd() / place
    assert found.text_dir == Path.cwd() / {None: "one", "a": "one", "b": "two"}[marked]
