"""A new folder that is either whole or absent, also after a power cut or kill -9."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from ..errors import CheckpointError, cause, not_utf8
from ..formatting import listed, size
from .atomic import sync
from .disk import free_space
from .filenames import at_home, shown
from .progress import Advance, Progress, silent
from .schema import is_utf8

LOCK = ".lock"
YOUNG = 60  # seconds
PARTIAL, OLD = ".partial", ".old"


def alive(folder: Path) -> bool:
    """Whether the process that writes `folder` still runs: it holds a lock in it."""
    try:
        handle = os.open(folder / LOCK, os.O_RDWR)
    except FileNotFoundError:  # not yet made, or about to be renamed
        try:
            return time.time() - folder.stat().st_mtime < YOUNG
        except FileNotFoundError:  # renamed by now
            return True
    try:
        return not _lock(handle)
    finally:
        os.close(handle)


def _lock(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


@contextlib.contextmanager
def exclusive(folder: Path, waiting: Callable[[], None]) -> Iterator[None]:
    """Hold the right to make `folder`, across processes; `waiting` is called once if another one holds it."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder.parent / f".{folder.name}.lock", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise CheckpointError(f"{folder}: cannot write there: {cause(error)}") from None
    try:
        if not _lock(handle):
            waiting()
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def new_path(dst: str | Path, option: str) -> Path:
    """`dst` as an absolute path where a new folder can be made: nothing is there, or an empty folder.

    CheckpointError says what is there instead, and to choose another `option`.
    """
    if not str(dst).strip():
        raise CheckpointError(f"no folder is named for the new model; give a {option}")
    dst = at_home(dst).absolute()
    if not is_utf8(dst):
        what = not_utf8(dst, f", which MLX needs; choose another {option}")
        raise CheckpointError(f"{dst}: its path {what}")
    for place in (dst, *dst.parents):
        if place.is_symlink() and not place.exists():
            raise CheckpointError(
                f"{dst} cannot be a folder: {place} links to nothing; choose another {option}"
            )
        if place.exists() and not place.is_dir():
            what = "it" if place == dst else str(place)
            raise CheckpointError(f"{dst} cannot be a folder: {what} is a file; choose another {option}")
    if dst.exists() and any(dst.iterdir()):
        there = listed(sorted(shown(entry.name) for entry in dst.iterdir()), 3)
        raise CheckpointError(f"{dst} exists already, with {there} in it; choose another {option}")
    return dst


@contextlib.contextmanager
def _partial_folder(dst: Path) -> Iterator[Path]:
    """A hidden folder beside `dst`, deleted at the end unless it has another name by then."""
    partial = dst.with_name(f".{dst.name}.{secrets.token_hex(4)}{PARTIAL}")
    partial.mkdir()
    try:
        yield partial
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _sync_all(folder: Path) -> None:
    for path in (*sorted(folder.rglob("*")), folder):
        sync(path)


@contextlib.contextmanager
def replaced_folder(dst: Path) -> Iterator[Path]:
    """A folder to fill that takes the place of `dst` when the block ends well, else is deleted.

    What was there before stays until then; a kill between two renames leaves it under a hidden name that ends
    with OLD. Raises OSError.
    """
    dst.parent.mkdir(parents=True, exist_ok=True)
    with _partial_folder(dst) as partial:
        yield partial
        _sync_all(partial)
        old = dst.with_name(f".{dst.name}{OLD}")
        try:
            if dst.exists():
                shutil.rmtree(old, ignore_errors=True)
                dst.rename(old)
            partial.rename(dst)
        except OSError:
            with contextlib.suppress(OSError):  # what is raised says what the disk refuses
                if old.exists() and not dst.exists():
                    old.rename(dst)
            raise
        sync(dst.parent)
        shutil.rmtree(old, ignore_errors=True)


@contextlib.contextmanager
def new_folder(dst: Path, *, needed: int, progress: Progress = silent) -> Iterator[Path]:
    """A temporary folder beside `dst` that is renamed to `dst` when the block ends well, else deleted.

    needed: bytes; refused with CheckpointError before anything is written when the disk has less. What an
    earlier, killed run left beside `dst` is deleted. A full disk becomes a CheckpointError.
    """
    try:
        dst.parent.mkdir(parents=True, exist_ok=True)
        _clear(dst, progress)
        free = free_space(dst.parent)
    except OSError as error:
        raise CheckpointError(f"{dst}: cannot write there: {cause(error)}") from None
    if free < needed:
        raise CheckpointError(
            f"{dst.parent}: {size(needed)} needed, {size(free)} free; make room or choose another folder"
        )
    made = False
    try:
        with _partial_folder(dst) as folder, _locked(folder):
            made = True
            yield folder
            (folder / LOCK).unlink()
            _sync_all(folder)
            folder.replace(dst)
            sync(dst.parent)
    except OSError as error:
        if not made:
            what = f"{dst}: cannot write there: {cause(error)}"
        elif error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            what = f"{dst.parent}: the disk is full; make room or choose another folder"
        elif error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            what = f"{dst}: another run made it in the meantime"
        else:
            what = f"{error.filename or dst}: {cause(error)}"
        raise CheckpointError(what) from None


def _clear(dst: Path, progress: Progress) -> None:
    """Delete what killed runs left beside `dst`."""
    ours = re.compile(rf"\.{re.escape(dst.name)}\.([0-9a-f]+{PARTIAL}|partial-\w+)")  # the latter until 0.1
    for left in dst.parent.iterdir():
        if ours.fullmatch(left.name) and not alive(left):
            progress(Advance(f"removing {left.name}, left by a run that was killed"))
            shutil.rmtree(left, ignore_errors=True)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Tell other processes that `folder` is being written."""
    handle = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT)
    try:
        _lock(handle)
        yield
    finally:
        os.close(handle)
