"""An option that does not exist, or is not of that type, fails in the type checker."""

from __future__ import annotations

from pathlib import Path

import pytest

CODE = """
from acestep_mlx.config.datasets import CsvSet, FolderSet, HubSet, Shuffle
from acestep_mlx.config.read_run import load_config
from acestep_mlx.config.read_datasets import read_datasets
from acestep_mlx.config.request import Request

config = load_config({})
song = read_datasets(config).audio[0]
""".lstrip()
RIGHT = [
    "rank: int = config.lora_rank",
    "alpha: float = config.lora_alpha",
    "steps: int | None = config.validation_step_interval",
    "length: float = Request().duration",
    "part: float = song.max_duration",
    "name: str = song.dataset_name if isinstance(song, HubSet) else song.place",
    "many: int = Shuffle(count=2).count",
]
WRONG = [
    "config.lora_ranc",
    "config.input_perturbation",  # a key of other trainers
    "name: str = config.lora_rank",
    "every: int = config.checkpoint_epoch_interval",  # it may be unset
    "config.lora_rank = 3",
    "Request(stepz=3)",
    "Request().stepz",
    "song.dataset_name",  # a folder has none
    "isinstance(song, CsvSet) and song.split",
    "Shuffle(cont=3)",
]


@pytest.mark.slow
def test_what_does_not_exist_is_found_before_the_program_runs(tmp_path: Path) -> None:
    api = pytest.importorskip("mypy.api")
    file = tmp_path / "code.py"
    lines = [*CODE.splitlines(), *RIGHT, *WRONG]
    file.write_text("\n".join(lines) + "\n")
    said, _, _ = api.run(["--python-version", "3.11", "--cache-dir", str(tmp_path / "cache"), str(file)])
    found = {
        int(line.split(":")[1]) for line in said.splitlines() if f"{file.name}:" in line and "error" in line
    }
    assert [lines[n - 1] for n in sorted(found)] == WRONG, said
