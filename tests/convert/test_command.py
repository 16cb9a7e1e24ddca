"""The `convert` command: flags, summary, usage errors, upload, and that it works from anywhere."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from itertools import takewhile
from pathlib import Path

import pytest

from acestep_mlx.cli import convert, main
from acestep_mlx.convert import converter
from acestep_mlx.convert.converter import Report
from acestep_mlx.families.model_folder import ModelFolder
from acestep_mlx.families.v1.layouts import FOLDERS
from acestep_mlx.formatting import size
from acestep_mlx.io.safetensors import read_header


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
    assert "16 left out: in the checkpoint, but the forward pass never uses it" in printed.out
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


@pytest.mark.slow
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
        "def interrupt(self, advance):\n"
        "    if advance.done > advance.total / 2: os.kill(os.getpid(), signal.SIGINT)\n"
        "p.Display.__call__ = interrupt\n"
        "from acestep_mlx.cli import main\n"
        "main(['convert', '--hf-path', sys.argv[1], '--mlx-path', sys.argv[2]])\n"
    )
    out = tmp_path / "out" / "model"
    command = [sys.executable, "-c", code, str(tiny_checkpoint), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 130 and "Traceback" not in done.stderr and "interrupted" in done.stderr
    assert list(out.parent.iterdir()) == []


@pytest.mark.slow
def test_upload(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import huggingface_hub

    calls: list[tuple[str, object]] = []

    class Refused(Exception):
        """As the hub's transports have them."""

    class Api:
        def create_repo(self, repo: str, exist_ok: bool) -> None:
            if "/" not in repo:
                raise Refused("Repo id must be\nowner/name")
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


#: Every flag: what is typed, and what reaches the converter.
REACHES: dict[str, tuple[list[str], dict[str, object]]] = {
    "hf_path": (["--hf-path", "a/b"], {"src": "a/b"}),
    "mlx_path": (["--mlx-path", "there"], {"dst": Path("there")}),
    "quantize": (["-q"], {"quantize": True}),
    "q_bits": (["-q", "--q-bits", "3"], {"quantize": True, "q_bits": 3}),
    "q_group_size": (["-q", "--q-group-size", "128"], {"quantize": True, "q_group_size": 128}),
    "q_mode": (["-q", "--q-mode", "nvfp4"], {"quantize": True, "q_mode": "nvfp4"}),
    "dtype": (["--dtype", "float16"], {"dtype": "float16"}),
    "lyric_vocab": (["--lyric-vocab", "v.json"], {"lyric_vocab": Path("v.json")}),
    "tokenizer": (["--tokenizer", "t.json"], {"tokenizer": Path("t.json")}),
    "allow_config_keys": (
        ["--allow-config-key", "one", "--allow-config-key", "two"], {"allow_config_keys": ("one", "two")},
    ),
    "revision": (["--revision", "main"], {"revision": "main"}),
    "upload_repo": (["--upload-repo", "me/it"], {"uploaded": "me/it"}),
    "add_missing": (["--add-missing"], {"src": "added", "dst": "added"}),
}  # fmt: skip


def test_every_flag_reaches_the_converter(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, object] = {}

    def fake(src: str, dst: Path, **options: object) -> Report:
        asked.update(options, src=src, dst=dst)
        return Report(dst, {}, {}, 0.0)

    def added(src: str, dst: Path, revision: str | None) -> None:
        asked.update({**plain, "src": "added", "dst": "added"})

    monkeypatch.setattr(converter, "convert", fake)
    monkeypatch.setattr(convert, "_add_missing", added)
    monkeypatch.setattr(convert, "_upload", lambda folder, repo: asked.update(uploaded=repo))
    assert run() == 0
    plain = {**asked, "progress": None, "uploaded": None}
    assert {p.name for p in convert.command.params} == set(REACHES), "show what a new flag does"
    for name, (typed, wanted) in REACHES.items():
        asked.clear()
        assert run(*typed) == 0, name
        assert {"uploaded": None, **asked, "progress": None} == {**plain, **wanted}, name


@pytest.mark.parametrize(
    "flags", [[], ["--dtype", "bfloat16"], ["-q", "--q-bits", "8", "--q-group-size", "32"]]
)
def test_the_summary_is_the_files(
    flags: list[str], tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every number that is printed, against the headers of both sides."""
    out = tmp_path / "model"
    assert run("--hf-path", tiny_checkpoint, "--mlx-path", out, *flags) == 0
    lines = capsys.readouterr().out.splitlines()
    read = written = 0
    for name, place in FOLDERS.places.items():
        (line,) = [line for line in lines if line.startswith(f"{name} ")]
        tensors = [
            info for file in (tiny_checkpoint / place.folder).glob("*.safetensors")
            for info in read_header(file).tensors.values()
        ]  # fmt: skip
        made = read_header(out / f"{name}.safetensors").tensors
        source, stored = sum(one.stop - one.start for one in tensors), (out / f"{name}.safetensors").stat()
        numbers = re.fullmatch(
            r"\w+ +(\S+) M parameters +(\S+ \S+) → +(\S+ \S+)  ([\d,]+) tensors converted, (\d+) left out"
            r"(?:, (\d+) layers quantised)?",
            line,
        )
        assert numbers is not None, line
        assert numbers[2] == size(source) and numbers[3] == size(stored.st_size)
        assert int(numbers[4].replace(",", "")) + int(numbers[5]) == len(tensors)
        assert int(numbers[6] or 0) == sum(key.endswith(".scales") for key in made)
        if not flags:
            assert numbers[1] == f"{sum(one.size for one in made.values()) / 1e6:.2f}"
        reasons = list(takewhile(lambda one: one.startswith(" "), lines[lines.index(line) + 1 :]))
        assert sum(int(one.split(" left out: ")[0]) for one in reasons) == int(numbers[5])
        read, written = read + source, written + stored.st_size
    assert lines[-1].startswith(f"{out}: {size(read)} → {size(written)} in ")
