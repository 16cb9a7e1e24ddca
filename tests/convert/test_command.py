"""The `convert` command: flags, summary, usage errors, upload, and that it works from anywhere."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from acestep_mlx.cli import main
from acestep_mlx.models.load import ModelFolder


def run(*arguments: object) -> int:
    """The exit code of `acestep-mlx convert ...`."""
    with pytest.raises(SystemExit) as caught:
        main(["convert", *map(str, arguments)])
    assert isinstance(caught.value.code, int)
    return caught.value.code


def test_flags_are_mlx_lms(tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "model"
    flags = ["-q", "--q-bits", "8", "--q-group-size", "32", "--q-mode", "affine", "--dtype", "bfloat16"]
    assert run("--hf-path", tiny_checkpoint, "--mlx-path", out, *flags) == 0
    assert ModelFolder.open(out).quantization == {"bits": 8, "group_size": 32, "mode": "affine"}
    printed = capsys.readouterr()
    assert "16 dropped: in the checkpoint, but the forward pass never uses it" in printed.out
    assert "layers quantised" in printed.out and re.search(r"model: [\d.]+ MB → [\d.]+ MB in", printed.out)
    assert "lyric vocabulary: " in printed.out
    assert "converting transformer" in printed.err and "100 %" in printed.err
    assert "\r" not in printed.err, "plain lines without a terminal"


@pytest.mark.parametrize(
    "flags",
    [
        ["--q-bits", "4"],
        ["--q-mode", "mxfp4"],
        ["-q", "--q-bits", "7"],
        ["-q", "--q-mode", "int8"],
        ["--dtype", "int8"],
        ["--no-such-flag"],
        ["--hf-path", ""],
        ["--mlx-path", " "],
        ["--lyric-vocab", ""],
    ],
)
def test_wrong_usage_is_exit_2(
    flags: list[str],
    tiny_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("--hf-path", tiny_checkpoint, "--mlx-path", tmp_path / "model", *flags) == 2
    assert flags[0] in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_from_the_root_folder(tiny_checkpoint: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "acestep_mlx", "convert"]
    done = subprocess.run([*command, "--help"], cwd="/", capture_output=True, text=True, check=True)
    for flag in ("--hf-path", "--mlx-path", "--quantize", "--q-bits", "--q-group-size", "--q-mode", "--dtype",
                 "--lyric-vocab", "--revision", "--upload-repo"):  # fmt: skip
        assert flag in done.stdout
    paths = ["--hf-path", str(tiny_checkpoint), "--mlx-path", str(tmp_path / "model")]
    subprocess.run([*command, *paths], cwd="/", capture_output=True, check=True)
    assert ModelFolder.open(tmp_path / "model")


def test_ctrl_c_leaves_nothing(tiny_checkpoint: Path, tmp_path: Path) -> None:
    code = (
        "import os, signal, sys\n"
        # a job in the background, such as a CI's, is started with interrupts ignored
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "import acestep_mlx.cli.progress as p\n"
        "def interrupt(self, text, done, total):\n"
        "    if done > total / 2: os.kill(os.getpid(), signal.SIGINT)\n"
        "p.ByteProgress.__call__ = interrupt\n"
        "from acestep_mlx.cli import main\n"
        "main(['convert', '--hf-path', sys.argv[1], '--mlx-path', sys.argv[2]])\n"
    )
    out = tmp_path / "out" / "model"
    command = [sys.executable, "-c", code, str(tiny_checkpoint), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 130 and "Traceback" not in done.stderr and "interrupted" in done.stderr
    assert list(out.parent.iterdir()) == []


def test_upload(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import huggingface_hub

    calls: list[tuple[str, object]] = []

    class Api:
        def create_repo(self, repo: str, exist_ok: bool) -> None:
            if "/" not in repo:
                raise ValueError("Repo id must be\nowner/name")
            calls.append(("create", repo))

        def upload_folder(self, folder_path: Path, repo_id: str) -> None:
            calls.append(("upload", folder_path))
            assert (folder_path / "config.json").is_file()

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    paths = ["--hf-path", tiny_checkpoint, "--mlx-path"]
    assert run(*paths, tmp_path / "a", "--upload-repo", "me/songs") == 0
    assert calls == [("create", "me/songs"), ("upload", tmp_path / "a")]
    assert run(*paths, tmp_path / "b", "--upload-repo", "songs") == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert "is written, but uploading it to songs failed" in error and "owner/name" in error
    assert ModelFolder.open(tmp_path / "b")


@pytest.mark.skipif(not hasattr(signal, "SIGXFSZ"), reason="a POSIX signal")
def test_unwritable_place(tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert run("--hf-path", tiny_checkpoint, "--mlx-path", tmp_path / "file" / "model") == 1
    assert f"{tmp_path / 'file'} is a file; choose another --mlx-path" in capsys.readouterr().err
    assert run("--hf-path", tiny_checkpoint, "--mlx-path", tmp_path / "file") == 1
    assert "it is a file; choose another --mlx-path" in capsys.readouterr().err
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    assert run("--hf-path", tiny_checkpoint, "--mlx-path", tmp_path / "link") == 1
    assert "links to nothing" in capsys.readouterr().err
    if os.geteuid() != 0:
        (tmp_path / "locked").mkdir(mode=0o500)
        assert run("--hf-path", tiny_checkpoint, "--mlx-path", tmp_path / "locked" / "model") == 1
