"""Which folder a conversion has, that it is written once, and which is found when the hub is out of reach."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from acestep_mlx.convert import conversions
from acestep_mlx.convert.converter import Settings
from acestep_mlx.families.model_folder import Quantization
from acestep_mlx.io.progress import silent


def test_every_fact_of_a_conversion_is_in_its_folders_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def place(identity: str = "commit 1", given: str = "someone/model", **settings: Any) -> str:
        return conversions._place(Path("models"), given, identity, Settings(**settings)).name

    names = [
        place(), place("commit 2"), place(given="someone/other"), place(dtype="float16"),
        place(dtype="float32"), place(quantization=Quantization(8, 64)),
        place(quantization=Quantization(4, 64)), place(quantization=Quantization(4, 32)),
        place(quantization=Quantization(4, 32, "mxfp4")),
    ]  # fmt: skip
    monkeypatch.setattr(conversions, "CONVERSION", "99")
    assert len({*names, place()}) == len(names) + 1


def test_what_another_process_has_written_meanwhile_is_not_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[Path] = []
    monkeypatch.setattr(conversions, "write_folder", lambda source, folder, *_: written.append(folder))
    source: Any = SimpleNamespace(path_or_repo="someone/model")
    new, there = tmp_path / "new", tmp_path / "there"
    there.mkdir()
    (there / "config.json").write_text("{}")
    for folder in (new, there):
        assert conversions._convert(source, folder, Settings(), silent) == folder
    assert written == [new]


def test_the_newest_conversion_of_a_repository_is_taken_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = {"a": ("x/y", "1", 30), "b": ("x/y", "2", 10), "c": ("x/z", "3", 40), "d": ("x/y", None, 50),
             "e": ("x/y", "4", 20)}  # fmt: skip
    for name, (_, _, time) in facts.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").touch()
        os.utime(tmp_path / name / "config.json", (time, time))

    def opened(path: Path) -> Any:
        repo, revision, _ = facts[path.name]
        return SimpleNamespace(config={"source": {"path_or_repo": repo, "revision": revision}})

    monkeypatch.setattr(conversions, "ModelFolder", SimpleNamespace(open=opened))
    assert conversions._commits(tmp_path, "x/y") == ["1", "4", "2"]
