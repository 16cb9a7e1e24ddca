"""Caches of two models in one folder: they never meet, whatever the folder is called."""

from __future__ import annotations

from pathlib import Path

import pytest

from acestep_mlx.data.encode import Cache, encode_dataset
from acestep_mlx.data.manifest import build_manifest
from acestep_mlx.families.model_folder import ModelFolder
from acestep_mlx.io.progress import Advance

from .songs import config, song


@pytest.mark.slow
def test_caches_of_two_models_never_meet(tmp_path: Path, tiny_model: Path, tiny_model_v15: Path) -> None:
    """`{model_family}` is the same word for both. Filled, pruned and used again by turns."""
    (tmp_path / "songs").mkdir()
    song(tmp_path / "songs", "a", 3.0, caption="pop\nrock", lyrics="[verse]\nla la la")
    song(tmp_path / "songs", "b", 4.0, caption="pop")
    models = {"base": tiny_model, "v15-base": tiny_model_v15}
    made: list[str] = []

    def tell(advance: Advance) -> None:
        made.extend([] if advance.stage == "looking at songs" else [advance.stage])

    def filled(flavour: str, **options: str) -> Cache:
        folder = str(tmp_path / "cache" / "{model_family}")
        given = config(
            tmp_path, cache_dir_vae=folder, cache_dir_text=folder, model_flavour=flavour, **options
        )
        return encode_dataset(build_manifest(given), given, ModelFolder.open(models[flavour]), tell)

    def on_disk() -> set[Path]:
        return set((tmp_path / "cache").rglob("*.cache"))

    first = filled("base")
    assert first.files() == on_disk() and made
    second = filled("v15-base")
    assert {path.parent.parent for path in on_disk()} == {tmp_path / "cache" / "ace_step"}
    assert not first.files() & second.files() and first.files() | second.files() == on_disk()
    bytes_ = {path: path.read_bytes() for path in on_disk()}
    assert first.prune() == second.prune() == (0, 0)
    made.clear()
    for flavour in ("base", "v15-base", "base"):
        filled(flavour)
    assert not made and {path: path.read_bytes() for path in on_disk()} == bytes_
    (tmp_path / "songs" / "a.txt").write_text("rock")
    (tmp_path / "songs" / "b.txt").write_text("jazz")  # both need one entry less, and another one
    pruned = filled("base")
    assert pruned.prune()[0] == 1 and second.files() <= on_disk(), "the other model's stay"
    assert filled("v15-base").prune()[0] > 0 and pruned.files() <= on_disk()
