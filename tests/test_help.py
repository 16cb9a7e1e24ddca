"""What `--help` shows: examples that can be typed, and many options in groups; completion in the shell."""

from __future__ import annotations

import re
import shlex

import click
import pytest

from acestep_mlx.cli import COMMANDS, cli, main
from acestep_mlx.cli.generate import GROUPS


def shown(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        main([*arguments])
    assert not caught.value.code
    return capsys.readouterr().out


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_ends_with_examples_of_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    _, _, end = shown(capsys, name, "--help").partition("Examples:\n")
    lines = [line.strip() for line in end.strip().splitlines()]
    assert lines and all(line.startswith(f"acestep-mlx {name}") for line in lines)
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    flags = {flag for one in command.params for flag in (*one.opts, *one.secondary_opts)}
    for line in lines:
        words = shlex.split(line)[2:]
        typed = {word.partition("=")[0] for word in words if word.startswith("-")}
        assert typed <= flags or name in ("train", "cache"), f"{typed - flags} in {line}"
        assert len(line) <= 110


def test_options_of_generate_are_in_groups(capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(capsys, "generate", "--help")
    heads = re.findall(r"^(\w+):(?=\n)", text, re.MULTILINE)
    assert [head for head in heads if head in GROUPS] == ["Basics", "Task", "Expert"]
    basics, task, expert = (text.partition(f"\n{head}:\n")[2].partition("\n\n")[0] for head in GROUPS)
    assert "--prompt" in basics and "--lora-scale" in basics and "--help" in basics
    assert "--repaint-start" in task and "--source" in task and "--cover-strength" in task
    assert "--omega" in expert and "--shift" in expert and "--task" not in expert
    command = cli.get_command(click.Context(cli), "generate")
    assert command is not None
    for one in command.params:
        listed = re.compile(rf"^  (?:-\w, )?{max(one.opts, key=len)}(?![\w-])", re.MULTILINE)
        assert sum(len(listed.findall(part)) for part in (basics, task, expert)) == 1, one.opts
    known = {one.name for one in command.params}
    assert {name for names in GROUPS.values() for name in names} <= known


@pytest.mark.parametrize(("word", "found"), [("gen", "generate"), ("ne", "new"), ("tr", "train")])
def test_the_shell_completes_commands(
    word: str, found: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("_ACESTEP_MLX_COMPLETE", "zsh_source")
    assert "compdef" in shown(capsys)
    monkeypatch.setenv("_ACESTEP_MLX_COMPLETE", "zsh_complete")
    monkeypatch.setenv("COMP_WORDS", f"acestep-mlx {word}")
    monkeypatch.setenv("COMP_CWORD", "1")
    assert shown(capsys).splitlines()[1] == found
