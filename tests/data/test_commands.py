"""`cache` and `train --dry-run` as a user sees them."""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from acestep_mlx.cli.dry_run import Length, default_lines, length_lines, run_length, setting_lines
from acestep_mlx.config.read_run import load_config

from .songs import song


@pytest.fixture
def project(tmp_path: Path, tiny_model: Path) -> Path:
    (tmp_path / "songs").mkdir()
    song(tmp_path / "songs", "a", 3.0, lyrics="[verse]\nla")
    song(tmp_path / "songs", "b", 2.0, caption=None)
    (tmp_path / "songs" / "c.mp3").write_bytes(b"")
    (tmp_path / "config.json").write_text(
        json.dumps({"pretrained_model_name_or_path": str(tiny_model), "max_train_steps": 4, "resolution": 0,
                    "lora_rank": 4, "cache_dir": "cache"})
    )  # fmt: skip
    (tmp_path / "multidatabackend.json").write_text(
        json.dumps([{"id": "mine", "instance_data_dir": "songs"}])
    )
    return tmp_path


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "acestep_mlx", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=120)


@pytest.mark.slow
def test_cache_fills_once_and_reports(project: Path) -> None:
    first = run(project, "cache", "config.json", "--seed=1")
    assert first.returncode == 0, first.stderr
    assert "2 songs" in first.stdout and "1 skipped" in first.stdout and "c.mp3: empty file" in first.stdout
    assert "encoding songs: 2 of 2" in first.stderr
    second = run(project, "cache", "config.json", "--prune")
    assert "encoding" not in second.stderr and "deleted 0 cache files" in second.stdout
    assert len(list((project / "cache").rglob("*.cache"))) == 5


@pytest.mark.slow_after(2)
@pytest.mark.parametrize(
    ("arguments", "code", "part"),
    [(["absent.json"], 1, "no configuration found"), (["config.json", "--lora_rnk=4"], 1, "did you mean"),
     (["config.json", "--vae_cache_disable"], 1, "vae_cache_disable"), ([], 2, "CONFIG"),
     (["config.json", "--data_backend_config=absent.json"], 1, "no data set file"),
     (["config.json", "--pretrained_model_name_or_path=songs"], 1, "songs")],
)  # fmt: skip
def test_problems_are_one_line(arguments: list[str], code: int, part: str, project: Path) -> None:
    done = run(project, "cache", *arguments)
    assert done.returncode == code and part in done.stderr and "Traceback" not in done.stderr
    if code == 1:
        assert len([line for line in done.stderr.splitlines() if line.startswith("error:")]) == 1


@pytest.mark.slow
def test_dry_run(project: Path) -> None:
    done = run(
        project, "train", "config.json", "--dry-run", "--verbose", "--learning_rate=2e-5",
        "--save-total-limit", "3",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for part in ("lora_rank = 4  (config.json)", "learning_rate = 2e-05  (command line)",
                 "seed = 42  (default)", "lora_alpha = 4.0  (as lora_rank)",
                 "checkpoints_total_limit = 3  (command line, as save-total-limit)",
                 "resolution:", "2 of 3 songs", "checkpoints: every 500 steps, and the last; between them",
                 "c.mp3: empty file", "padded: 1", "without caption: 1", "without lyrics: 1",
                 "4 steps of 1 song, 2 epochs (2 songs, 2 batches per epoch)"):  # fmt: skip
        assert part in done.stdout, done.stdout
    for part in ("MLX folder, float32", "about", "this machine has", "Macs: 8 GB yes", "base weights"):
        assert part in done.stdout, done.stdout
    assert not (project / "output").exists() and not list(project.rglob("*.cache"))
    text = done.stdout
    assert (
        text.index("4 steps") < text.index("this machine has") < text.index("lora_rank") < text.index("seed")
    )
    assert "starts at step 0 with a new LoRA" in text


@pytest.mark.slow_after(1)
@pytest.mark.parametrize(
    ("arguments", "part"),
    [(["--init_lora=nosuch"], "nosuch"), (["--init_lora=other"], "other"),
     (["--resume_from_checkpoint=/nosuch"], "/nosuch: no such checkpoint folder"),
     (["--resume_from_checkpoint=checkpoint-99"], "there is none"),
     (["--output_dir=/proc/xx"], "is not writable"),
     (["--output_dir=config.json/sub"], "config.json is a file"),
     (["--cache_dir_vae=config.json"], "config.json is a file"),
     (["--validation_prompt=x", "--validation_prompt_library=nosuch"], "nosuch cannot be read: No such file"),
     (["--acestep_lora_target=attn_qkv", "--peft_lora_target_modules=nosuch"], 
      "LoRA target (peft_lora_target_modules) 'nosuch' matches no module"),
     (["--pretrained_model_name_or_path=songs"], "songs")],
)  # fmt: skip
def test_dry_run_refuses_what_training_refuses(arguments: list[str], part: str, project: Path) -> None:
    """With the same words, before anything is converted or encoded."""
    import mlx.core as mx

    (project / "other").mkdir()
    path = "transformer_blocks.0.attn.to_q"
    tensors = {f"{path}.lora_A.weight": mx.ones((2, 7)), f"{path}.lora_B.weight": mx.ones((5, 2))}
    mx.save_safetensors(str(project / "other" / "pytorch_lora_weights.safetensors"), tensors)
    done = [run(project, "train", "config.json", *dry, *arguments) for dry in (["--dry-run"], [])]
    errors = [[line for line in one.stderr.splitlines() if line.startswith("error:")] for one in done]
    assert [one.returncode for one in done] == [1, 1] and errors[0] == errors[1], errors
    assert len(errors[0]) == 1 and part in errors[0][0], errors
    assert not list(project.rglob("*.cache"))


@pytest.mark.slow
def test_dry_run_of_a_pytorch_checkpoint_takes_its_own_size(project: Path, tiny_checkpoint: Path) -> None:
    done = run(
        project, "train", "config.json", "--dry-run", "--verbose",
        f"--pretrained_model_name_or_path={tiny_checkpoint}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "PyTorch checkpoint, will be converted once into" in done.stdout
    assert re.search(r"base weights: \d\.\d+ MB", done.stdout), done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("given", ["absent/folder/model", "./absent", "/absent"])
def test_dry_run_without_a_model_is_one_line(given: str, project: Path) -> None:
    done = run(project, "train", "config.json", "--dry-run", f"--pretrained_model_name_or_path={given}")
    assert done.returncode == 1 and "there is no model" in done.stderr and "Traceback" not in done.stderr


def test_dry_run_shows_every_supported_option() -> None:
    from acestep_mlx.config.run import SUPPORTED

    config = load_config({"resolution": 1, "lora_rank": 4})
    given = setting_lines(config)
    assert given == ["  lora_rank = 4  (given)", "ignored keys:", f"  resolution: {config.ignored[0][1]}"]
    lines = given + default_lines(config)
    others = {"ace_step_timestep_draws", "lycoris_config"}  # of another model, of a LoKr
    assert {line.split(" = ")[0].strip() for line in lines if " = " in line} == set(SUPPORTED) - others


@pytest.mark.parametrize(
    ("options", "songs", "world", "want"),
    [({"max_train_steps": 100}, 10, 1, Length(100, 10.0, 10, 10)),
     ({"num_train_epochs": 3}, 10, 1, Length(30, 3.0, 10, 10)),
     ({"num_train_epochs": 3, "train_batch_size": 4}, 10, 1, Length(9, 3.0, 10, 3)),
     ({"num_train_epochs": 3, "gradient_accumulation_steps": 4}, 10, 1, Length(8, 3.0, 10, 10)),
     ({"max_train_steps": 6, "gradient_accumulation_steps": 5}, 10, 3, Length(6, 7.5, 10, 4)),
     ({}, 1, 1, Length(1, 1.0, 1, 1))],
)  # fmt: skip
def test_run_length(options: dict[str, int], songs: int, world: int, want: Length) -> None:
    assert run_length(load_config(options), songs, world) == want


@pytest.mark.parametrize(
    ("options", "songs", "said"),
    [
        ({"max_train_steps": 20}, 40, "20 steps of 1 song, 0.5 epochs (40 songs, 40 batches per epoch)"),
        (
            {"max_train_steps": 6, "train_batch_size": 3, "gradient_accumulation_steps": 4}, 30,
            "6 steps of 12 songs, 2.4 epochs (30 songs, 10 batches per epoch)",
        ),
        (
            {"num_train_epochs": 3, "train_batch_size": 2, "gradient_accumulation_steps": 5}, 11,
            "4 steps of 10 songs, 3 epochs (11 songs, 6 batches per epoch)",
        ),
        ({"num_train_epochs": 1}, 1, "1 step of 1 song, 1 epoch (1 song, 1 batch per epoch)"),
    ],
)  # fmt: skip
def test_every_number_of_a_runs_length_is_said(options: dict[str, int], songs: int, said: str) -> None:
    config = load_config(options)
    assert length_lines(run_length(config, songs), config) == [said]


@pytest.mark.slow
def test_kill_9_at_random_moments_loses_nothing_that_was_finished(project: Path) -> None:
    """Caches end byte for byte as those of a run that was never killed, whenever it is killed."""
    for i in range(4):
        song(project / "songs", f"more{i}", 4.0 + i, caption=f"caption {i}", lyrics=f"line {i}")
    command = [sys.executable, "-m", "acestep_mlx", "cache", "config.json"]
    start = time.perf_counter()
    assert run(project, "cache", "config.json", "--cache_dir=whole").returncode == 0
    whole_time = time.perf_counter() - start
    rng = random.Random(0)
    finished: set[Path] = set()
    for _ in range(8):
        with subprocess.Popen(
            command, cwd=project, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as process:
            time.sleep(rng.uniform(0.1, 1.0) * whole_time)
            process.kill()
        now = set((project / "cache").rglob("*.cache"))
        assert finished <= now
        finished = now
    done = run(project, "cache", "config.json", "--prune")
    assert done.returncode == 0, done.stderr
    files = {p.relative_to(project / "cache"): p.read_bytes() for p in (project / "cache").rglob("*.cache")}
    whole = {p.relative_to(project / "whole"): p.read_bytes() for p in (project / "whole").rglob("*.cache")}
    assert files == whole and not list((project / "cache").rglob("*.tmp"))


def test_every_unreadable_song_is_named_before_the_error(project: Path) -> None:
    for i in range(4):
        (project / "songs" / f"bad{i}.wav").write_bytes(b"")
    for name in ("a.wav", "b.wav"):
        (project / "songs" / name).write_bytes(b"RIFF")
    done = run(project, "train", "config.json", "--dry-run")
    lines = done.stderr.splitlines()
    assert done.returncode == 1 and lines[-1].startswith("error: nothing left to train on: 7 songs skipped (")
    assert sum(line.startswith("skipped mine/") for line in lines) == 7
