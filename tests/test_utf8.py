"""Text that is no text: half characters in settings, and folders whose names are not UTF-8."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from acestep_mlx.cli import main
from acestep_mlx.config.read_datasets import read_datasets
from acestep_mlx.config.read_run import load_config
from acestep_mlx.config.run import OPTIONS
from acestep_mlx.errors import CheckpointError, ConfigError
from acestep_mlx.families.model_folder import ModelFolder
from acestep_mlx.training.preflight import preflight

from .training import runs

HALF = "a\ud800b"
KINDS = ("str", "path", "list", "mapping")
TEXTS = [o.name for o in OPTIONS.values() if o.status == "supported" and o.kind in KINDS]


@pytest.fixture
def odd(tmp_path: Path) -> Path:
    """A folder with a name that is not UTF-8."""
    folder = tmp_path / "caf\udce9"
    try:
        folder.mkdir()
    except OSError:
        pytest.skip("this file system has no such names")
    return folder


@pytest.mark.parametrize("name", TEXTS)
def test_every_setting_with_half_a_character(name: str) -> None:
    values: list[Any] = [HALF, [HALF], {HALF: 1}, {"x": HALF}]
    for value in values:
        with pytest.raises(ConfigError) as caught:
            load_config({name: value})
        assert name in str(caught.value) and str(caught.value).isprintable() and str(caught.value).isascii()


ENTRY = ["id", "instance_data_dir", "instance_prompt", "cache_dir_vae", "caption_strategy"]


@pytest.mark.parametrize("key", ENTRY)
def test_every_setting_of_a_data_set_with_half_a_character(key: str, tmp_path: Path) -> None:
    entry = {
        "id": "a",
        "type": "local",
        "dataset_type": "audio",
        "instance_data_dir": str(tmp_path),
        key: HALF,
    }
    (tmp_path / "b.json").write_text(json.dumps([entry]))
    for source in ([entry], str(tmp_path / "b.json")):
        with pytest.raises(ConfigError, match=key):
            read_datasets(load_config({"data_backend_config": source}))


def command(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stop:
        main([*map(str, arguments)])
    return int(stop.value.code or 0)


def test_what_cannot_be_written_there_is_said_before_the_work(
    odd: Path, tmp_path: Path, tiny_model: Path, tiny_checkpoint: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    values = runs.configuration(tmp_path, tiny_model, "run")
    with pytest.raises(ConfigError, match=r"output_dir=.*its path is not UTF-8"):
        monkeypatch.chdir(odd)
        preflight(load_config({**values, "output_dir": "out"}), lambda text, level: None)
    assert command("convert", "--hf-path", tiny_checkpoint, "--mlx-path", "m") == 1
    assert "its path is not UTF-8" in capsys.readouterr().err
    assert list(odd.iterdir()) == []


def test_a_model_there_is_refused_in_one_line(odd: Path, tiny_model: Path) -> None:
    shutil.copytree(tiny_model, odd / "model")
    with pytest.raises(CheckpointError, match="its path is not UTF-8, which MLX needs; rename it"):
        ModelFolder.open(odd / "model")


def test_songs_there_cost_no_run(odd: Path, tmp_path: Path) -> None:
    from acestep_mlx.data.manifest import build_manifest

    from .data.songs import config, song

    song(tmp_path / "songs", "good")
    shutil.copy(tmp_path / "songs" / "good.wav", tmp_path / "songs" / "caf\udce9.wav")
    manifest = build_manifest(config(tmp_path))
    assert len(manifest.samples) == 2 and not manifest.skipped
    with pytest.raises(ConfigError, match="instance_data_dir must be text in UTF-8"):
        build_manifest(config(tmp_path, {"instance_data_dir": str(odd)}))


@pytest.mark.parametrize("name", ["Lieder-Ü", "歌"])
def test_a_name_that_is_utf8_is_not_called_otherwise(name: str, tmp_path: Path) -> None:
    """Python can be told to take names for ASCII."""
    (tmp_path / name).mkdir()
    where = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, "-m", "acestep_mlx", "info"]
    done = subprocess.run(
        [*command, name], cwd=tmp_path, env={**os.environ, **where}, capture_output=True, check=False
    )
    said = done.stderr.decode("ascii", "backslashreplace")
    assert done.returncode == 2 and said.count("\n") == 1
    assert "is UTF-8, but this process reads names as ascii (PYTHONUTF8=0" in said
