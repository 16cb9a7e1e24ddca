"""kill -9 at any moment loses nothing but time."""

from __future__ import annotations

import sys

import pytest

from ..families import hearing
from . import runs
from .kills import survives
from .test_resume import VARIANTS

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
    assert (straight.checkpoint / "average.safetensors").is_file()
    config = runs.configuration(tmp_path, "", "killed", **options)
    config["cache_dir"] = str(tmp_path / "killed-cache")  # caches are killed in the making too
    survives(config, straight.checkpoint, kills, least)


#: what else a run may have in the middle of which it is killed
FURTHER = {
    "rollout": {
        "scheduled_sampling_max_step_offset": 30,
        "scheduled_sampling_stride": 10,
        "scheduled_sampling_ramp_steps": 3,
        "scheduled_sampling_prob_end": 1.0,
        "gradient_accumulation_steps": 2,
    },
    "LoKr": VARIANTS["LoKr"],
    "SSL": {"acestep_lora_target": "attn_qkv"},
}


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs fork")
@pytest.mark.parametrize("kind", FURTHER)
def test_kills_in_the_middle_of(kind, tmp_path, tiny_run):
    options = {"max_train_steps": 3, "checkpointing_steps": 1, "checkpoints_total_limit": 2, **tiny_run}
    options |= FURTHER[kind]
    if kind == "SSL":
        if tiny_run["model_flavour"] != "base":  # 1.5 has none
            return
        options |= hearing.options(tmp_path / "encoders")
    straight, _ = runs.run(runs.configuration(tmp_path, "", "straight", **options))
    config = runs.configuration(tmp_path, "", "killed", **options)
    survives(config | {"cache_dir": str(tmp_path / "killed-cache")}, straight.checkpoint, kills=4, least=1)
