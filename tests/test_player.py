"""`generate --open`: the system's player gets the name of the file as it is, or one line says why not."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from acestep_mlx.cli import player

PROGRAMS = {"linux": "xdg-open", "darwin": "open"}


def stand_in(folder: Path, name: str, body: str) -> None:
    """A program of this name at the only place where programs are looked for."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!{sys.executable}\nimport sys, pathlib, time\n{body}\n")
    (folder / name).chmod(0o755)


@pytest.fixture
def bin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "bin"


@pytest.mark.parametrize("system", PROGRAMS)
@pytest.mark.parametrize(
    "name", ["a song.wav", "-rf.wav", "$(touch x); `id` 'a\" & b.wav", "*.wav", "日本.wav"]
)
def test_it_gets_the_name_as_it_is(
    system: str, name: str, bin: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", system)
    stand_in(
        bin, PROGRAMS[system], f"pathlib.Path({str(tmp_path / 'told')!r}).write_text(repr(sys.argv[1:]))"
    )
    Path(name).touch()
    assert player.open_file(Path(name)) is None
    assert (tmp_path / "told").read_text() == repr([str(tmp_path / name)])
    assert {path.name for path in tmp_path.iterdir()} == {"bin", "told", name}, "no shell had a hand in it"


def test_a_player_that_goes_on_is_not_waited_for(bin: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(player, "SOON", 0.05)
    stand_in(bin, "xdg-open", "time.sleep(5)")
    began = time.monotonic()
    assert player.open_file(Path("a.wav")) is None and time.monotonic() - began < 4


@pytest.mark.parametrize(
    ("body", "display", "words"),
    [(None, True, "there is no xdg-open here; open a.wav yourself"),
     ("", False, "there is no display here"),
     ("sys.exit(3)", True, "found nothing to open a.wav with (code 3)")],
)  # fmt: skip
def test_where_it_cannot_be_opened(
    body: str | None, display: bool, words: str, bin: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    if body is not None:
        stand_in(bin, "xdg-open", body)
    if not display:
        monkeypatch.delenv("DISPLAY")
    said = player.open_file(Path("a.wav"))
    assert said is not None and words in said and "\n" not in said
