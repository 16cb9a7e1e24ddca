"""A file that takes another one's place is written beside it: a kill in between leaves the old one."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from acestep_mlx.config.read_run import load_config
from acestep_mlx.data.cache import Store
from acestep_mlx.data.facts import AudioFacts, FactsIndex
from acestep_mlx.io import atomic, new_folder
from acestep_mlx.io.audio import write_audio
from acestep_mlx.io.tensors import save_tensors
from acestep_mlx.report.events import MetricsFile, StepDone
from acestep_mlx.report.page import write_report
from acestep_mlx.sampling.record import write_beside

STEP = StepDone(1, 2.0, 2.0, 1e-3, 0.5, 1.0, 9.0, 10**9, 5.0, 0, 1.0)


def metrics(path: Path) -> None:
    """As a resume at its step begins it: with the lines up to there."""
    file = MetricsFile(path, 1)
    file.close()


def report(path: Path) -> None:
    assert write_report(path.parent, load_config({})) == path


def index(path: Path) -> None:
    found = FactsIndex(path)
    found._facts["a|1"] = AudioFacts("c", 1.0)
    found._changed = True
    found.save()


WRITERS: dict[str, Callable[[Path], object]] = {
    "metrics.jsonl": metrics,
    "report.html": report,
    "audio_index.json": index,
    "song.json": lambda path: write_beside(path.with_suffix(".wav"), ".json", b"{}"),
    "song.wav": lambda path: write_audio(path, np.zeros((100, 2)), 44100),
    "song.flac": lambda path: write_audio(path, np.zeros((100, 2)), 44100),
    "lora.safetensors": lambda path: save_tensors(path, {"a": mx.zeros(3)}, {}),
    "ab.cache": lambda path: Store(path.parent.parent).put("ab", {"a": np.zeros(3)}),
}


@pytest.fixture
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Where the file of that name is written, with what a writer needs beside it."""
    path = tmp_path / "ab" / request.param
    path.parent.mkdir()
    file = MetricsFile(path.parent / "metrics.jsonl")
    file(STEP)
    file.close()
    return path


@pytest.mark.parametrize("place", WRITERS, indirect=True)
def test_the_old_file_is_never_written_into(place: Path) -> None:
    if place.name != "metrics.jsonl":
        place.write_bytes(b"before")
    old = place.with_name("the same file by another name")
    os.link(place, old)
    content = old.read_bytes()
    WRITERS[place.name](place)
    assert old.read_bytes() == content and place.stat().st_ino != old.stat().st_ino


@pytest.mark.parametrize("place", WRITERS, indirect=True)
def test_the_new_file_is_on_the_disk_before_it_has_its_name(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a power cut after the rename leaves an empty file where a whole one was."""
    synced: list[int] = []
    sync = atomic.sync
    monkeypatch.setattr(atomic, "sync", lambda path: (synced.append(path.stat().st_ino), sync(path)))
    WRITERS[place.name](place)
    assert place.stat().st_ino in synced


def test_two_writers_of_one_file_do_not_share_what_they_write_to(tmp_path: Path) -> None:
    """Two runs with one cache, or two songs of one name: the last one wins, and it is whole."""
    place = tmp_path / "song.wav"
    with atomic.new_file(place) as first, atomic.new_file(place) as second:
        assert first != second
        first.write_bytes(b"first")
        second.write_bytes(b"second")
    assert place.read_bytes() == b"first" and list(tmp_path.iterdir()) == [place]


def test_all_files_of_a_new_folder_are_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: dict[str, bool] = {}
    target = tmp_path / "checkpoint-1"
    monkeypatch.setattr(new_folder, "sync", lambda path: synced.update({path.name: target.exists()}))
    with new_folder.replaced_folder(target) as partial:
        (partial / "inside").mkdir()
        for name in ("a", "inside/b"):
            (partial / name).write_text(name)
    assert {name for name, there in synced.items() if not there} == {"a", "b", "inside", partial.name}


# ── drives ───────────────────────────────────────────────────────────────────────────────────────────
@pytest.fixture
def drive(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the drive answers: `fsync` and `fcntl` fail with these numbers; and what it was asked."""
    answers: dict[str, Any] = {"fsync": None, "fcntl": None, "asked": []}

    def answer(name: str) -> None:
        answers["asked"].append(name)
        if answers[name] is not None:
            raise OSError(answers[name], os.strerror(answers[name]))

    monkeypatch.setattr(atomic.os, "fsync", lambda handle: answer("fsync"))
    monkeypatch.setattr(
        atomic.fcntl, "fcntl", lambda handle, command: answer("fcntl") if command == 51 else None
    )
    return answers


def test_a_mac_brings_files_past_the_drive_s_own_cache(
    tmp_path: Path, drive: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(atomic.fcntl, "F_FULLFSYNC", 51, raising=False)
    atomic.write_bytes(tmp_path / "a", b"a")
    assert drive["asked"] == ["fcntl"]
    for refused in (errno.ENOTSUP, errno.ENOTTY, errno.EINVAL):  # a network drive
        drive["fcntl"], drive["asked"] = refused, []
        atomic.write_bytes(tmp_path / "a", b"b")
        assert drive["asked"] == ["fcntl", "fsync"] and (tmp_path / "a").read_bytes() == b"b"
    drive["fcntl"] = drive["fsync"] = errno.EIO
    with pytest.raises(OSError, match="Input/output"):
        atomic.write_bytes(tmp_path / "a", b"c")
    assert (tmp_path / "a").read_bytes() == b"b"


def test_other_systems_have_fsync(
    tmp_path: Path, drive: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(atomic.fcntl, "F_FULLFSYNC", raising=False)
    atomic.sync(tmp_path)
    assert drive["asked"] == ["fsync"]


@pytest.mark.parametrize("refused", ["EINVAL", "ENOTSUP", "EACCES", "EPERM", "ENOSYS", "EBADF", "EISDIR"])
def test_a_drive_that_cannot_sync_folders_is_no_error(
    refused: str, tmp_path: Path, drive: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """When it is asked to, or already when the folder is opened for it; a file must be synced."""
    drive["fsync"] = number = getattr(errno, refused)
    atomic.sync(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(OSError):
        atomic.sync(tmp_path / "file")
    opened = os.open

    def refusing(path: Any, *options: Any, **more: Any) -> int:
        if Path(path) == tmp_path:
            raise OSError(number, os.strerror(number), str(path))
        return opened(path, *options, **more)

    monkeypatch.setattr(atomic.os, "open", refusing)
    atomic.sync(tmp_path)


@pytest.mark.parametrize("lost", ["EIO", "ENOSPC"])
def test_a_folder_that_a_drive_fails_to_write_is_an_error(
    lost: str, tmp_path: Path, drive: dict[str, Any]
) -> None:
    drive["fsync"] = getattr(errno, lost)
    with pytest.raises(OSError):
        atomic.sync(tmp_path)


def test_a_checkpoint_is_whole_on_a_drive_that_cannot_sync_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync = os.fsync

    def of_files(handle: int) -> None:
        if Path(f"/dev/fd/{handle}").is_dir():
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        fsync(handle)

    monkeypatch.setattr(atomic.os, "fsync", of_files)
    with new_folder.replaced_folder(tmp_path / "checkpoint-1") as partial:
        (partial / "a").write_text("a")
    assert (tmp_path / "checkpoint-1" / "a").read_text() == "a"
