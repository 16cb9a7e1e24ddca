"""Where the program is started: full and closed outputs, missing folders, few open files, plain locales."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[1]
linux = pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")


def shell(line: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """`line` in a shell in `folder`; `$run` is acestep-mlx."""
    run = f"{sys.executable} -m acestep_mlx"
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("LC_", "LANG", "PYTHON"))}
    return subprocess.run(
        ["bash", "-c", line],
        cwd=folder,
        env={**kept, "PYTHONPATH": str(PROJECT), "run": run, **environment},
        capture_output=True,
        text=True,
        errors="replace",
        timeout=120,
    )


# ── output ────────────────────────────────────────────────────────────────────────────────────────────
@linux
@pytest.mark.parametrize("command", ["--help", "train --help", "--version"])
def test_output_that_cannot_be_written_is_one_line(tmp_path, command):
    done = shell(f"$run {command} > /dev/full", tmp_path)
    assert done.returncode == 1
    assert done.stderr == "error: standard output: the disk is full\n"


@pytest.mark.parametrize("command", ["--help | true", "--help 2>&1 | head -1", "info . 2>&1 | true"])
def test_a_reader_that_leaves_is_no_error_to_talk_about(tmp_path, command):
    done = shell(f"$run {command}; echo ${{PIPESTATUS[0]}}", tmp_path)
    assert not done.stderr and done.stdout.splitlines()[-1] in ("0", "1")


@linux
@pytest.mark.parametrize("where", ["2> /dev/full", "2>&-", "> /dev/full 2>&1", ">&- 2>&-"])
def test_errors_that_cannot_be_said_keep_their_exit_code(tmp_path, where):
    done = shell(f"$run info nothing-here {where}", tmp_path)
    assert done.returncode == 1 and "Traceback" not in done.stdout + done.stderr


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_names_that_the_output_cannot_show_are_written_otherwise(tmp_path, encoding):
    for name in ("Ärger 猫.wav", os.fsdecode(b"\xff\xfe.wav")):
        done = shell('$run info "$name"', tmp_path, PYTHONIOENCODING=encoding, name=name)
        assert done.returncode in (1, 2) and "Traceback" not in done.stderr and ".wav" in done.stderr


# ── folders ───────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize("command", ["info .", "train config.json", "train config.json --dry-run", "cache x"])
def test_a_working_directory_that_is_gone_is_one_line(tmp_path, command):
    gone = tmp_path / "gone"
    gone.mkdir()
    done = shell(f'rmdir "$PWD"; $run {command}', gone)
    assert done.returncode == 1
    assert (
        done.stderr.splitlines()[-1]
        == "error: the working directory is not there any more; cd to one that is"
    )


# ── whole runs ────────────────────────────────────────────────────────────────────────────────────────
@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("environment")


@pytest.fixture(scope="module")
def config(root, tiny_model):
    """A short run whose songs, caches and output have names that are not ASCII."""
    import json

    from .training import runs

    songs = root / "Lieder für 猫"
    runs.write_songs(songs)
    (songs / "low.wav").rename(songs / "tief – 低い.wav")
    (songs / "low.txt").rename(songs / "tief – 低い.txt")
    (songs / "low.lyrics").rename(songs / "tief – 低い.lyrics")
    backends = [{"id": "lieder", "instance_data_dir": str(songs)}]
    made = runs.configuration(root, tiny_model, "Ausgabe – 出力", max_train_steps=1, backends=backends)
    made |= {"validation_disable": False, "validation_prompt": "ein Ton – 音", "validation_audio_duration": 1}
    made |= {"validation_num_inference_steps": 1, "eval_loss_disable": False}
    path = root / "config.json"
    path.write_text(json.dumps(made))
    return path


@pytest.mark.slow
@pytest.mark.parametrize(
    ("prelude", "environment"),
    [
        ("ulimit -n 1024;", {}),
        ("ulimit -n 64;", {}),
        ("", {"TMPDIR": "/no/such/folder"}),
        ("", {"LC_ALL": "C"}),
        ("", {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}),
        ("exec 0<&-;", {}),
    ],
    ids=["1024 open files", "64 open files", "no TMPDIR", "plain locale", "ASCII only", "no input"],
)
def test_a_run_works_or_one_line_says_why_not(root, config, request, prelude, environment):
    output = root / request.node.callspec.id.replace(" ", "-")
    done = shell(f"{prelude} $run train {config} --output_dir={output}", root, **environment)
    assert "Traceback" not in done.stderr, done.stderr[-3000:]
    if done.returncode == 0:
        assert (output / "pytorch_lora_weights.safetensors").is_file()
        assert list((output / "validation").glob("step_1_*.wav"))
    else:
        assert done.returncode == 1 and done.stderr.splitlines()[-1].startswith("error: ")
