"""No child process outlives what it was started for, however that ends."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from acestep_mlx.errors import DataError
from acestep_mlx.training import macos

RATE, SECONDS = 44100, 20


class Children:
    """The processes that were started while the test ran."""

    def __init__(self) -> None:
        self.all: list[subprocess.Popen[bytes]] = []

    @property
    def running(self) -> list[int]:
        """Those that have not ended, or that nobody has asked how (zombies)."""
        return [child.pid for child in self.all if child.returncode is None]

    def ended(self) -> None:
        """At least one was started, all are gone, and what they were read through is closed."""
        assert self.all and not self.running
        for child in self.all:
            with pytest.raises(ProcessLookupError):
                os.kill(child.pid, 0)
            assert child.stdout is None or child.stdout.closed


@pytest.fixture
def children(monkeypatch: pytest.MonkeyPatch) -> Iterator[Children]:
    found = Children()
    start = subprocess.Popen

    class Watched(start):  # type: ignore[misc, valid-type]
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            found.all.append(self)

    monkeypatch.setattr(subprocess, "Popen", Watched)
    yield found
    for child in found.all:
        if child.poll() is None:
            child.kill()
            child.wait()


@pytest.mark.parametrize("error", [None, DataError("no songs"), KeyboardInterrupt()], ids=repr)
def test_what_keeps_a_mac_awake_ends_with_the_run(
    children: Children, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException | None
) -> None:
    program = tmp_path / "caffeinate"
    program.write_text("#!/bin/sh\nexec sleep 600\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(sys, "platform", "darwin")
    try:
        with macos.keep_awake():
            (child,) = children.all
            assert (
                child.poll() is None and str(os.getpid()) in child.args
            )  # and it ends if this one is killed
            if error is not None:
                raise error
    except (DataError, KeyboardInterrupt) as raised:
        assert raised is error
    children.ended()
