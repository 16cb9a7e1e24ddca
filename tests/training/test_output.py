"""An output folder belongs to one run at a time, and no run is replaced without a word."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from acestep_mlx.errors import ConfigError
from acestep_mlx.report.events import Notice, StepDone
from acestep_mlx.training import checkpoint, output

from ..small import small_model
from . import runs

LORA = "pytorch_lora_weights.safetensors"


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory):
    """Its runs need no second block."""
    return small_model(tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("output")


@pytest.fixture(scope="module")
def finished(root, tiny_model):
    """A finished run with checkpoints at steps 2, 4 and 6."""
    config = runs.configuration(root, tiny_model, "finished", checkpointing_steps=2)
    return config, runs.run(config)[0]


@pytest.fixture
def used(finished, tmp_path):
    """(configuration, folder) of a copy of the finished run."""
    config, _ = finished
    folder = tmp_path / "run"
    shutil.copytree(config["output_dir"], folder)
    return {**config, "output_dir": str(folder)}, folder


def content(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def notices(seen) -> str:
    return "\n".join(e.text for e in seen.of(Notice))


@pytest.mark.slow
@pytest.mark.slow_after(1)
@pytest.mark.parametrize(
    "left",
    [
        ["checkpoint-2", "checkpoint-4", "checkpoint-6", LORA, "metrics.jsonl"],
        ["checkpoint-6"],
        [LORA],
        ["metrics.jsonl"],
    ],
    ids=["all of it", "a checkpoint", "the LoRA", "the numbers"],
)
def test_beginning_again_in_a_used_folder_is_refused_and_changes_nothing(used, left):
    config, folder = used
    for path in folder.iterdir():
        if path.name not in left:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    before = content(folder)
    with pytest.raises(ConfigError) as refused:
        runs.run(config)
    for way in ("--resume_from_checkpoint=latest", "--output_dir", "--overwrite"):
        assert way in str(refused.value)
    assert content(folder) == before


def test_a_lora_without_checkpoints_is_not_replaced_by_latest(used):
    config, folder = used
    for path in checkpoint.checkpoints(folder):
        shutil.rmtree(path)
    before = content(folder)
    with pytest.raises(ConfigError, match=r"a LoRA.*no checkpoint to go on from.*--overwrite"):
        runs.run({**config, "resume_from_checkpoint": "latest"})
    assert content(folder) == before


def test_dry_run_refuses_a_used_folder_with_the_same_words(used):
    from acestep_mlx.config.read_run import load_config
    from acestep_mlx.training.preflight import preflight

    config, _ = used
    with pytest.raises(ConfigError) as said:
        preflight(load_config(config), lambda *_: None)
    with pytest.raises(ConfigError) as refused:
        runs.run(config)
    assert str(said.value) == str(refused.value)
    assert preflight(load_config(config), lambda *_: None, overwrite=True).resume is None


@pytest.mark.slow_after(1)
@pytest.mark.parametrize("resume", [None, "latest"])
def test_overwrite_moves_the_old_run_aside_and_deletes_nothing(used, resume):
    from acestep_mlx.training.run import train

    config, folder = used
    (folder / "notes.txt").write_text("mine")
    before = content(folder)
    seen = runs.Recorder()
    options = {"max_train_steps": 1, "seed": 5, "resume_from_checkpoint": resume}
    result = train({**config, **options}, overwrite=True, on_event=seen)
    assert [e.step for e in seen.of(StepDone)] == [1]
    moved = content(folder / "previous-1")
    assert (folder / "notes.txt").read_text() == "mine"
    assert moved == {name: data for name, data in before.items() if name != "notes.txt"}
    assert "previous-1" in notices(seen)
    assert checkpoint.checkpoints(folder) == [result.checkpoint]
    assert [s for s, _ in runs.losses(folder)] == [1]
    train({**config, **options}, overwrite=True)
    assert content(folder / "previous-1") == moved
    assert (folder / "previous-2" / "checkpoint-1").is_dir()


def test_overwrite_and_a_checkpoint_of_the_same_folder_exclude_each_other(used):
    from acestep_mlx.training.run import train

    config, folder = used
    with pytest.raises(ConfigError, match=r"--overwrite moves .*checkpoint-4"):
        train({**config, "resume_from_checkpoint": "checkpoint-4"}, overwrite=True)
    assert len(checkpoint.checkpoints(folder)) == 3


def test_latest_never_mixes_two_histories(used):
    """Gone on from step 2 at another rate and stopped at 3, the newest checkpoint is 3, not the old 6."""
    config, folder = used
    old = content(folder)
    other = {**config, "learning_rate": 5e-3, "max_train_steps": 3}
    result, seen = runs.run({**other, "resume_from_checkpoint": "checkpoint-2"})
    assert result.checkpoint.name == "checkpoint-3" and "previous-1" in notices(seen)
    assert [p.name for p in checkpoint.checkpoints(folder)] == ["checkpoint-2", "checkpoint-3"]
    kept = content(folder / "previous-1")
    assert {name: kept[name] for name in old if "checkpoint-2" not in name} == {
        name: data for name, data in old.items() if "checkpoint-2" not in name
    }
    longer = {**other, "max_train_steps": 4, "resume_from_checkpoint": "latest"}
    _, seen = runs.run(longer)
    assert [e.step for e in seen.of(StepDone)] == [4]
    assert not (folder / "previous-2").exists(), "going on from the newest moves nothing"


def test_a_checkpoint_of_another_folder_does_not_join_a_run(used, finished):
    config, folder = used
    elsewhere = Path(finished[0]["output_dir"]) / "checkpoint-2"
    with pytest.raises(ConfigError, match="holds a run already"):
        runs.run({**config, "resume_from_checkpoint": str(elsewhere)})
    fresh = {**config, "output_dir": str(folder.parent / "fresh"), "max_train_steps": 3}
    result, _ = runs.run({**fresh, "resume_from_checkpoint": str(elsewhere)})
    assert [p.name for p in checkpoint.checkpoints(folder.parent / "fresh")] == ["checkpoint-3"]
    assert result.step == 3 and elsewhere.is_dir()


# ── one at a time ─────────────────────────────────────────────────────────────────────────────────────
def test_a_second_run_into_the_same_folder_is_refused_while_the_first_lives(root, tiny_model):
    config = runs.configuration(root, tiny_model, "shared", max_train_steps=2)
    refused = []

    def second(event):
        if isinstance(event, StepDone) and event.step == 1:
            for options in ({}, {"resume_from_checkpoint": "latest"}):
                with pytest.raises(ConfigError) as error:
                    runs.run({**config, **options})
                refused.append(str(error.value))

    result, _ = runs.run(config, second)
    assert result.finished and len(refused) == 2
    assert all("another run" in text and f"process {os.getpid()}" in text for text in refused)
    checkpoint.verify(result.checkpoint)
    assert not (root / "shared" / output.LOCK).exists()


def test_a_killed_run_leaves_no_lock_behind(tmp_path):
    code = (
        "import os, sys, pathlib\n"
        "from acestep_mlx.training.output import exclusive\n"
        "with exclusive(pathlib.Path(sys.argv[1]), print):\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    folder = tmp_path / "run"
    done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True)
    assert done.returncode == -9 and (folder / output.LOCK).is_file(), done.stderr
    with output.exclusive(folder, lambda *_: None):
        pass
    assert not folder.joinpath(output.LOCK).exists()


def test_a_refused_run_leaves_no_folder_behind(root, tiny_model, tmp_path):
    config = runs.configuration(root, tiny_model, "never", output_dir=str(tmp_path / "new" / "run"))
    with pytest.raises(ConfigError):
        runs.run({**config, "peft_lora_target_modules": "no_such_layer"})
    assert not (tmp_path / "new").exists()


def test_a_disk_without_locks_is_said_and_used(tmp_path, monkeypatch):
    import errno
    import fcntl

    def refuse(*_):
        raise OSError(errno.ENOTSUP, "not supported")

    monkeypatch.setattr(fcntl, "flock", refuse)
    said = []
    with output.exclusive(tmp_path / "run", lambda text, level: said.append((level, text))):
        assert (tmp_path / "run").is_dir()
    assert said[0][0] == "warning" and "without locks" in said[0][1]


def test_temporary_names_are_unique_and_short():
    from acestep_mlx.io.atomic import temporary

    path = Path("x" * 255)
    names = {temporary(path).name for _ in range(100)}
    assert len(names) == 100 and max(map(len, names)) < 40


def test_what_a_killed_save_left_is_cleared_by_the_next_run(used):
    config, folder = used
    (folder / ".checkpoint-8.abcd.partial").mkdir()
    (folder / "checkpoint-6").rename(folder / ".checkpoint-6.old")
    runs.run({**config, "resume_from_checkpoint": "latest"})
    assert [p.name for p in checkpoint.checkpoints(folder)][-1] == "checkpoint-6"
    assert not list(folder.glob(".*"))


def test_metrics_of_a_run_without_a_checkpoint_are_begun_anew_by_latest(root, tiny_model):
    config = runs.configuration(root, tiny_model, "early", max_train_steps=1)
    folder = root / "early"
    folder.mkdir()
    (folder / "metrics.jsonl").write_text(json.dumps({"event": "step", "step": 1, "loss": 9.0}) + "\n")
    result, seen = runs.run({**config, "resume_from_checkpoint": "latest"})
    assert result.finished and "starting from the beginning" in notices(seen)


def test_everything_of_a_run_is_moved_aside_together(tmp_path):
    """What stays behind is taken for a part of the next run: its clips, its numbers, its LoRA."""
    files = [
        LORA,
        "report.html",
        "report_live.js",
        "metrics.jsonl",
        "validation/step_1_a_0.wav",
        "lyrics_embedder/a.json",
    ]
    files += ["checkpoint-1/a", "checkpoint-20/a", "logs/events"]
    for name in [*files, "notes.txt", "songs/a.wav"]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    moved = output.set_aside(tmp_path, tmp_path / "logs")
    found = {path.relative_to(moved).as_posix() for path in moved.rglob("*") if path.is_file()}
    assert found == set(files)
    assert {path.name for path in tmp_path.iterdir()} == {moved.name, "notes.txt", "songs"}
    assert output.run_in(tmp_path) == ""
