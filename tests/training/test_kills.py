"""kill -9 at any moment loses nothing but time."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from . import runs

#: flavour → kills, and how many of each kind there are at least
KILLS = {"base": (30, 8), "v15-base": (10, 2)}


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs fork")
def test_kills_across_caches_training_and_checkpoints(tmp_path, tiny_run):
    kills, least = KILLS[tiny_run["model_flavour"]]
    options = {"max_train_steps": 3, "checkpointing_steps": 1, "checkpoints_total_limit": 2, **tiny_run}
    folder = tmp_path / "songs"
    runs.write_songs(folder, 4.0)
    (folder / "low.lyrics").write_text("[00:00.50]Down\n[00:02.50]by the river\n")
    audio = {"crop_seconds": 3, "crop_lyrics": "cut"}
    songs = {"id": "songs", "instance_data_dir": str(folder), "audio": audio}
    options |= {"use_ema": True, "backends": [songs]}
    straight, _ = runs.run(runs.configuration(tmp_path, "", "straight", **options))
    config = runs.configuration(tmp_path, "", "killed", resume_from_checkpoint="latest", **options)
    config["cache_dir"] = str(tmp_path / "killed-cache")  # caches are killed in the making too
    path = tmp_path / "killed.json"
    path.write_text(json.dumps(config))
    done = subprocess.run(
        [sys.executable, "-m", "tests.training.kill_driver", path, straight.checkpoint, str(kills), "7"],
        capture_output=True,
        text=True,
        timeout=1200,
        cwd=Path(__file__).resolve().parents[2],
    )
    assert done.returncode == 0, done.stderr[-2000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["problems"] == [], done.stderr[-3000:]
    assert sum(told["kills"].values()) == kills and min(told["kills"].values()) >= least
    assert told["finished"] >= 1
