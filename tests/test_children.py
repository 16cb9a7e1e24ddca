"""No child process outlives what it was started for, however that ends."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from acestep_mlx.errors import DataError
from acestep_mlx.io import audio, ffmpeg
from acestep_mlx.io.audio import read_audio
from acestep_mlx.training import macos

from .conftest import require

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


@pytest.fixture(scope="module")
def song(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """More sound than a pipe holds, so that a decoder that nobody reads from waits for ever."""
    require("ffprobe")
    folder = tmp_path_factory.mktemp("song")
    noise = np.random.default_rng(0).normal(0, 0.1, (SECONDS * RATE, 2))
    soundfile.write(folder / "a.wav", noise, RATE)
    command = [require("ffmpeg"), "-v", "error", "-i", str(folder / "a.wav"), str(folder / "a.m4a")]
    subprocess.run(command, check=True)
    return folder / "a.m4a"


def test_reading_to_the_end(children: Children, song: Path) -> None:
    assert abs(len(read_audio(song)) - SECONDS * RATE) < RATE / 10
    children.ended()


def test_reading_a_part(children: Children, song: Path) -> None:
    assert len(read_audio(song, duration=0.5)) == RATE // 2
    children.ended()


@pytest.mark.parametrize("end", ["close", "forget", "throw"])
def test_a_reader_that_stops_early(children: Children, song: Path, end: str) -> None:
    blocks = ffmpeg.blocks(song, 2, RATE)
    next(blocks)
    assert children.running, "it waits to be read from"
    if end == "close":
        blocks.close()
    elif end == "throw":
        with pytest.raises(KeyboardInterrupt):
            blocks.throw(KeyboardInterrupt)
    else:
        del blocks
        gc.collect()
    children.ended()


def test_a_file_over_which_ffprobe_never_ends_is_given_up(
    children: Children, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("ffprobe", "ffmpeg"):
        (tmp_path / name).write_text("#!/bin/sh\nexec sleep 3\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(ffmpeg, "PROBE_SECONDS", 0.05)
    with pytest.raises(DataError, match=r"could not make sense of it within 0\.05 s"):
        ffmpeg.probe(tmp_path / "a.m4a")
    children.ended()


def test_a_decoder_that_hangs_is_not_waited_for(
    children: Children, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "ffmpeg"
    program.write_text(f"#!/bin/sh\nhead -c 2000000 /dev/zero\nsleep 2\ntouch {tmp_path}/outlived\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    blocks = ffmpeg.blocks(tmp_path / "a.m4a", 2, RATE)
    next(blocks)
    blocks.close()
    children.ended()
    assert not (tmp_path / "outlived").exists()


def test_a_song_that_turns_out_too_long(
    children: Children, song: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audio, "MAX_FRAMES", RATE)
    monkeypatch.setattr(
        audio, "look", lambda path: audio.AudioInfo(0.0, RATE, 2, "aac", "ffmpeg", exact=False)
    )
    with pytest.raises(DataError, match="too much for memory"):
        read_audio(song)
    children.ended()


def test_sound_that_is_refused_in_the_middle(
    children: Children, song: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(block: np.ndarray, layouts: Any) -> np.ndarray:
        raise DataError("no such layout")

    monkeypatch.setattr(audio, "to_stereo", broken)
    with pytest.raises(DataError, match="no such layout"):
        read_audio(song)
    children.ended()


def test_a_file_that_ffmpeg_refuses(children: Children, song: Path, tmp_path: Path) -> None:
    path = tmp_path / "cut.m4a"
    path.write_bytes(song.read_bytes()[:5000])
    with pytest.raises(DataError):
        read_audio(path)
    children.ended()


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
