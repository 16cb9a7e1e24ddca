"""Two ranks on one machine train what one does; a rank that dies ends the others."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import pytest

from acestep_mlx.training import checkpoint

from . import runs

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not mx.distributed.is_available(), reason="this build of MLX has no distributed backend"
    ),
]
SCRIPT = Path(__file__).with_name("distributed_run.py")


def launch(config: dict, folder: Path, *extra: str) -> subprocess.CompletedProcess:
    program = Path(sys.executable).with_name("mlx.launch")
    path = folder / "config.json"
    path.write_text(json.dumps(config))
    command = [program, "-n", "2", "--backend", "ring", sys.executable, SCRIPT, path, *extra]
    return subprocess.run([str(c) for c in command], capture_output=True, text=True, timeout=240)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("ranks")


@pytest.mark.parametrize("target", ["attn_qkv+linear_qkv", "attn_qkv"])  # attn_qkv: lyrics encoded once
def test_two_ranks_at_batch_one_equal_one_rank_at_batch_two(tmp_path, tiny_run, target):
    if tiny_run["model_flavour"] != "base" and target != "attn_qkv":
        return
    root = tmp_path
    options = {"max_train_steps": 4, "checkpointing_steps": 2, "gradient_accumulation_steps": 2, **tiny_run}
    options |= {"acestep_lora_target": target, "use_ema": True}
    one, _ = runs.run(runs.configuration(root, "", "one", train_batch_size=2, **options))
    config = runs.configuration(root, "", "two", train_batch_size=1, **options)
    done = launch(config, root)
    assert done.stdout.count("finished True at 4") == 2, done.stdout + done.stderr
    assert done.stdout.count("step 4") == 1  # only rank 0 tells
    a, b = runs.tensors(one.checkpoint), runs.tensors(root / "two" / "checkpoint-4")
    assert any(k.startswith("average|") for k in a)
    for name in (k for k in a if k.startswith(("adapter|", "average|"))):
        assert mx.abs(a[name] - b[name]).max().item() <= 1e-6, name
    single, double = runs.losses(root / "one"), runs.losses(root / "two")
    assert [s for s, _ in single] == [s for s, _ in double]
    assert all(abs(x - y) < 1e-5 for (_, x), (_, y) in zip(single, double, strict=True))

    # and going on from a checkpoint gives the same again
    again = root / "again"
    shutil.copytree(root / "two", again)
    shutil.rmtree(again / "checkpoint-4")
    done = launch({**config, "output_dir": str(again), "resume_from_checkpoint": "latest"}, root)
    assert done.stdout.count("finished True at 4") == 2, done.stdout + done.stderr
    runs.assert_identical(again / "checkpoint-4", root / "two" / "checkpoint-4")


def test_a_dying_rank_ends_the_others_with_a_message_and_an_intact_checkpoint(root, tiny_model):
    config = runs.configuration(root, tiny_model, "dying", max_train_steps=50, checkpointing_steps=1)
    done = launch(config, root, "die")
    assert "finished" not in done.stdout
    assert "another machine or process of this run ended" in done.stdout + done.stderr
    assert runs.latest(root / "dying").step >= 1


def test_songs_that_a_rank_cannot_read_end_all_with_a_checkpoint(root, tiny_model):
    config = runs.configuration(root, tiny_model, "losing", max_train_steps=50)
    done = launch(config, root, "lose")
    said = "error: training stopped at step 2: songs/a.wav: Input/output error. "
    assert said in done.stdout and "finished" not in done.stdout and "another machine" not in done.stdout
    assert checkpoint.verify(root / "losing" / "checkpoint-2")["step"] == 2


def test_a_rank_that_is_slow_and_one_that_is_twenty_seconds_late_end_nothing(root, tiny_model):
    """And train what one rank does: nothing waits within a step, and all wait at a checkpoint."""
    options = {"max_train_steps": 4, "checkpointing_steps": 2, "acestep_lora_target": "attn_qkv"}
    one, _ = runs.run(runs.configuration(root, tiny_model, "in time", train_batch_size=2, **options))
    done = launch(runs.configuration(root, tiny_model, "late", **options), root, "late")
    assert done.stdout.count("finished True at 4") == 2, done.stdout + done.stderr
    a, b = runs.tensors(one.checkpoint), runs.tensors(root / "late" / "checkpoint-4")
    for name in (k for k in a if k.startswith("adapter|")):
        assert mx.abs(a[name] - b[name]).max().item() <= 1e-6, name
