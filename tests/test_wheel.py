"""The wheel, installed elsewhere, does the whole job: the demo is the end-to-end test."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import soundfile as sf

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = [
    "demo",
    "prepare",
    "new",
    "convert",
    "train",
    "generate",
    "export",
    "fuse",
    "info",
    "cache",
    "doctor",
]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built wheel. Built from a copy, so that no build folder is left in the checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    names = listed.stdout.split("\n") if listed.returncode == 0 else [str(p) for p in _plain_files()]
    for name in filter(None, names):
        target = source / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_symlink():
            target.symlink_to((ROOT / name).readlink())
        elif (ROOT / name).is_file():
            target.write_bytes((ROOT / name).read_bytes())
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w"]
    subprocess.run([*command, str(folder), str(source)], check=True, capture_output=True)
    return next(folder.glob("*.whl"))


def _plain_files() -> list[Path]:
    """Files of an unpacked source archive, where there is no git."""
    rooms = ("acestep_mlx", "convert")
    files = [p for room in rooms for p in (ROOT / room).rglob("*") if p.suffix != ".pyc"]
    files += [ROOT / name for name in ("pyproject.toml", "README.md", "LICENSE")]
    return [p.relative_to(ROOT) for p in files]


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Environment in which Python imports the installed wheel and not this checkout."""
    site = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(site), str(wheel)]
    subprocess.run(command, check=True, capture_output=True)
    environment = {**os.environ, "PYTHONPATH": str(site), "HF_HUB_OFFLINE": "1"}
    where = subprocess.run(
        [sys.executable, "-c", "import acestep_mlx.convert; print(acestep_mlx.convert.__file__)"],
        cwd="/",
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert Path(where.stdout.strip()).is_relative_to(site)
    return environment


@pytest.mark.slow
def test_what_the_wheel_installs(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert tops == {"acestep_mlx", next(t for t in tops if t.endswith(".dist-info"))}
    assert "acestep_mlx/convert/converter.py" in names
    assert any(name.startswith("acestep_mlx/examples/") and name.endswith("config.json") for name in names)


def run(installed: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    """The installed command, from a folder that is not the checkout."""
    return subprocess.run(
        [sys.executable, "-m", "acestep_mlx", *arguments],
        cwd="/",
        env=installed,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_answers_from_anywhere(installed: dict[str, str], command: str) -> None:
    done = run(installed, command, "--help")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"Usage: acestep-mlx {command}")


@pytest.mark.slow
@pytest.mark.parametrize(("family", "hertz"), [("v1", 44100), ("v15", 48000)])
def test_the_demo_does_the_whole_job(
    installed: dict[str, str], tmp_path: Path, family: str, hertz: int
) -> None:
    done = run(installed, "demo", str(tmp_path / "demo"), *(["--family", family] if family != "v1" else []))
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    demo = tmp_path / "demo"
    assert "going on from" in done.stdout + done.stderr, "the second training run did not resume"
    steps = [json.loads(line) for line in (demo / "output" / "metrics.jsonl").read_text().splitlines()]
    trained = [entry["step"] for entry in steps if "grad_norm" in entry]
    assert trained == list(range(1, 21)), "every step once, over both runs"
    plain, _ = sf.read(demo / "without_lora.wav")
    with_lora, rate = sf.read(demo / "with_lora.wav")
    assert rate == hertz
    assert plain.shape == with_lora.shape
    assert abs(with_lora).max() > 1e-3, "silence"
    assert abs(with_lora - plain).max() > 0, "the LoRA cannot be heard"
    exported = "demo_lora.safetensors" if family == "v1" else "demo_lora/adapter_model.safetensors"
    assert (demo / exported).is_file()
    page = (demo / "output" / "report.html").read_text(encoding="utf-8")
    clips = [f'data-clip="{prompt}-{step}"' for prompt in (0, 1) for step in ("base", 10, 20)]
    assert [clip for clip in clips if clip not in page] == [] and "Done: 20 steps" in page
    assert str(demo / "output" / "report.html") in done.stdout
    alarming = [
        line
        for line in (done.stdout + done.stderr).lower().splitlines()
        if "warning" in line or "fail" in line
    ]
    assert not alarming, "all is as it should be, and nothing says otherwise"

    lora, model, fused = (str(demo / name) for name in (exported, "model", "fused"))
    for arguments, words in (
        (["fuse", "--model", model, "--lora", lora, "-o", fused], "fused"),
        (["info", fused], "MLX model"),
        (["info", lora], "rank"),
        (["cache", str(demo / "config.json")], "3"),
    ):
        more = run(installed, *arguments)
        assert more.returncode == 0, more.stderr
        assert words in more.stdout + more.stderr, more.stdout + more.stderr


def test_a_demo_of_the_other_model_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from acestep_mlx.cli import main

    (tmp_path / "config.json").write_text('{"model_flavour": "base"}')
    with pytest.raises(SystemExit) as stop:
        main(["demo", str(tmp_path), "--family", "v15"])
    assert stop.value.code == 1
    said = f"error: {tmp_path} holds a demo with model_flavour=base; name another folder\n"
    assert capsys.readouterr().err == said
    assert [p.name for p in tmp_path.iterdir()] == ["config.json"]


@pytest.mark.parametrize("folder", ["/proc/nowhere", "taken"])
def test_a_demo_that_cannot_be_written_says_so_in_one_line(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from acestep_mlx.cli import main

    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.txt").write_text("do not touch")
    with pytest.raises(SystemExit) as stop:
        main(["demo", folder])
    assert stop.value.code == 1
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
    assert [p.name for p in (tmp_path / "taken").iterdir()] == ["thesis.txt"]
