"""How a command ends: 0 done, 1 a problem the user can mend, 2 wrong usage, 130 interrupted."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest

from acestep_mlx.cli import COMMANDS, cli, main
from acestep_mlx.errors import AceStepError, CheckpointError, ConfigError, DataError
from acestep_mlx.training import run as loop
from acestep_mlx.training.run import TrainResult

End = Callable[..., tuple[int, str]]


@pytest.fixture
def end(capsys: pytest.CaptureFixture[str]) -> End:
    """Runs a command here → (exit code, what it said on stderr)."""

    def call(*arguments: str) -> tuple[int, str]:
        with pytest.raises(SystemExit) as stop:
            main(list(arguments))
        assert isinstance(stop.value.code, int)
        return stop.value.code, capsys.readouterr().err

    return call


@pytest.fixture
def config(tmp_path: Path) -> str:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"output_dir": str(tmp_path / "out")}))
    return str(path)


def training(monkeypatch: pytest.MonkeyPatch, outcome: Any) -> None:
    """What `train` of the loop gives or raises."""

    def train(*arguments: Any, **options: Any) -> Any:
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    monkeypatch.setattr(loop, "train", train)


@pytest.mark.parametrize(("given", "code"), [(0, 0), (3, 3), (None, 0), ("done", 0)])
def test_a_commands_own_code_is_the_programs(
    given: Any, code: int, end: End, config: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli, "main", lambda *arguments, **options: given)
    assert end("train", config) == (code, "")


def test_done_is_zero(end: End, config: str, monkeypatch: pytest.MonkeyPatch) -> None:
    training(monkeypatch, TrainResult(6, True, Path("lora"), Path("checkpoint-6"), None))
    assert end("train", config)[0] == 0
    assert end("--help")[0] == end("--version")[0] == 0
    assert {name: end(name, "--help")[0] for name in COMMANDS} == dict.fromkeys(COMMANDS, 0)


def test_an_interrupted_run_is_130_and_says_how_to_go_on(
    end: End, config: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    training(monkeypatch, TrainResult(3, False, None, Path("out/checkpoint-3"), None))
    code, said = end("train", config)
    assert code == 130
    assert "step 3" in said and "checkpoint-3" in said and "resume_from_checkpoint" in said


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt(), click.Abort()], ids=["Ctrl-C", "at a question"])
def test_an_interrupt_is_130_in_one_line(
    end: End, config: str, monkeypatch: pytest.MonkeyPatch, interrupt: BaseException
) -> None:
    training(monkeypatch, interrupt)
    code, said = end("train", config)
    assert code == 130 and said.strip() == "interrupted"


@pytest.mark.parametrize("kind", [AceStepError, ConfigError, CheckpointError, DataError])
def test_a_problem_the_user_can_mend_is_one_with_its_details_before_it(
    end: End, config: str, monkeypatch: pytest.MonkeyPatch, kind: type[AceStepError]
) -> None:
    training(monkeypatch, kind("no songs are left", ["a.wav: silent", "b.wav: empty"]))
    code, said = end("train", config)
    assert code == 1 and said.splitlines() == ["a.wav: silent", "b.wav: empty", "error: no songs are left"]


@pytest.mark.parametrize(
    "secret", ["hf_AbCdEfGhIjKlMnOpQrStUvWx", "https://me:pass-word@example.org/songs", "hf_" + "A" * 16]
)
@pytest.mark.parametrize("kind", [AceStepError, ConfigError, DataError, OSError])
def test_no_error_shows_a_token_or_a_password(
    end: End, config: str, monkeypatch: pytest.MonkeyPatch, kind: type[Exception], secret: str
) -> None:
    training(monkeypatch, OSError(5, "broken", secret) if kind is OSError else kind(f"no model at {secret}"))
    code, said = end("train", config)
    assert code == 1 and said.startswith("error: ") and "…" in said
    assert "hf_" not in said and "pass-word" not in said and ("example.org" in said) == ("://" in secret)


@pytest.mark.parametrize("arguments", [["--debug", "train"], ["train", "--debug"]])
def test_debug_shows_where_it_comes_from(
    config: str, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    training(monkeypatch, DataError("no songs are left"))
    with pytest.raises(DataError):
        main([*arguments, config])


@pytest.mark.parametrize(
    "arguments", [["traim"], ["train"], ["generate", "--steps", "x"], ["info"], ["--no"]]
)
def test_wrong_usage_is_two(end: End, arguments: list[str]) -> None:
    code, said = end(*arguments)
    assert code == 2 and "error: " in said and "Traceback" not in said


def test_what_is_wrong_is_not_repeated_without_end(end: End) -> None:
    code, said = end("generate", "--steps", "9" * 5000)
    assert code == 2 and "--steps" in said and "999…" in said and len(said) < 300


def test_ctrl_c_while_the_program_is_being_loaded(tmp_path: Path) -> None:
    (tmp_path / "click.py").write_text("raise KeyboardInterrupt\n")
    code = "import sys; sys.path.insert(0, sys.argv.pop()); from acestep_mlx.__main__ import run; run()"
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True)
    assert done.returncode == 130 and not done.stderr


def test_the_command_starts_where_ctrl_c_is_minded() -> None:
    text = (Path(__file__).parents[1] / "pyproject.toml").read_text()
    assert 'acestep-mlx = "acestep_mlx.__main__:run"' in text
