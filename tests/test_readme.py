"""README.md and README.zh.md tell the same, and the commands in them exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from acestep_mlx.cli import COMMANDS, cli
from acestep_mlx.config.read_run import examples

ROOT = Path(__file__).resolve().parents[1]
ENGLISH, CHINESE = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "README.zh.md"))
_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_ELSEWHERE = re.compile(r"\]\(([^)#][^)]*)\)")  # links to other files and addresses


def code(text: str) -> list[str]:
    """Code blocks without their comments."""
    return [
        kind
        + "".join(f"\n{line}" for line in re.sub(r" *(?<!\S)#.*", "", block).splitlines() if line.strip())
        for kind, block in _BLOCK.findall(text)
    ]


def headings(text: str) -> list[int]:
    """The levels of headings, in their order."""
    return [len(found) for found in re.findall(r"^(#+) ", _BLOCK.sub("", text), re.MULTILINE)]


def tables(text: str) -> list[tuple[int, int]]:
    """Rows and columns of each table."""
    found = re.findall(r"(?:^\|.*\|\n)+", text, re.MULTILINE)
    return [(len(rows := table.splitlines()), rows[1].count("|") - 1) for table in found]


def test_the_same_in_both_languages() -> None:
    assert code(ENGLISH) == code(CHINESE), "what is typed is the same"
    assert headings(ENGLISH) == headings(CHINESE) and tables(ENGLISH) == tables(CHINESE)
    there, here = ({*_ELSEWHERE.findall(text)} for text in (ENGLISH, CHINESE))
    assert there - {"README.zh.md"} == here - {"README.md"}


@pytest.mark.parametrize("text", [ENGLISH, CHINESE], ids=["English", "中文"])
def test_links_lead_somewhere(text: str) -> None:
    for target in _ELSEWHERE.findall(text):
        path = target.partition("#")[0]
        assert target.startswith("https://") or (ROOT / path).exists(), target
    places = {re.sub(r"[^\w -]", "", line.lower()).strip().replace(" ", "-") for line in
              re.findall(r"^#+ (.*)$", text, re.MULTILINE)}  # fmt: skip
    for anchor in re.findall(r"\]\(#([^)]+)\)", text):
        assert anchor in places, anchor


def typed() -> list[list[str]]:
    """Every `acestep-mlx …` of the English code blocks, as the shell splits it."""
    found = []
    for block in (one for one in code(ENGLISH) if one.startswith("sh\n")):
        for line in block.replace("\\\n", " ").splitlines():
            if line.startswith("acestep-mlx "):
                found.append(shlex.split(line)[1:])
    return found


@pytest.mark.parametrize("words", typed(), ids=" ".join)
def test_what_is_to_be_typed_can_be(words: list[str]) -> None:
    import click

    name, *arguments = words
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    command.make_context(name, arguments, resilient_parsing=False)


def test_the_evening_comes_first_and_every_command_is_named() -> None:
    first = next(block for block in code(ENGLISH))
    wanted = ["prepare", "new", "train", "generate"]
    assert [line.split()[1] for line in first.splitlines() if line.startswith("acestep-mlx")] == wanted
    for text in (ENGLISH, CHINESE):
        for name in COMMANDS:
            assert f"| `{name}` |" in text, name
    said = "\n".join(code(ENGLISH))
    for name in ("my-songs", "my-songs-v15"):
        assert name in examples() and f"example={name} " in said
