"""A new folder that is either whole or absent, also after a power cut or kill -9."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from ..errors import CheckpointError, not_utf8
from ..formatting import size
from .progress import Advance, Progress, silent
from .schema import is_utf8

LOCK = ".lock"
YOUNG = 60  # seconds


def _partial(dst: Path) -> str:
    return f".{dst.name}.partial-"


def _alive(folder: Path) -> bool:
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
        raise CheckpointError(f"{folder}: cannot write there: {error.strerror or error}") from None
    try:
        if not _lock(handle):
            waiting()
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def free_space(folder: Path) -> int:
    """Bytes that can be written to the disk of `folder`, which need not exist yet."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def new_path(dst: str | Path, option: str) -> Path:
    """`dst` as an absolute path where a new folder can be made: nothing is there, or an empty folder.

    CheckpointError says what is there instead, and to choose another `option`.
    """
    if not str(dst).strip():
        raise CheckpointError(f"no folder is named for the new model; give a {option}")
    dst = Path(dst).expanduser().absolute()
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
        raise CheckpointError(f"{dst} exists already; delete it or choose another {option}")
    return dst


@contextlib.contextmanager
def new_folder(dst: Path, *, needed: int, progress: Progress = silent) -> Iterator[Path]:
    """A temporary folder beside `dst` that is renamed to `dst` when the block ends well, else deleted.

    needed: bytes; refused with CheckpointError before anything is written when the disk has less. What an
    earlier, killed run left beside `dst` is deleted. A full disk becomes a CheckpointError.
    """
    try:
        dst.parent.mkdir(parents=True, exist_ok=True)
        for left in dst.parent.glob(f"{_partial(dst)}*"):
            if not _alive(left):
                progress(Advance(f"removing {left.name}, left by a run that was killed"))
                shutil.rmtree(left, ignore_errors=True)
        free = free_space(dst.parent)
        if free < needed:
            raise CheckpointError(
                f"{dst.parent}: {size(needed)} needed, {size(free)} free; make room or choose another folder"
            )
        folder = Path(tempfile.mkdtemp(prefix=_partial(dst), dir=dst.parent))
    except OSError as error:
        raise CheckpointError(f"{dst}: cannot write there: {error.strerror or error}") from None
    handle = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT)
    try:
        _lock(handle)
        folder.chmod(0o755)
        yield folder
        for path in folder.iterdir():
            _sync(path)
        (folder / LOCK).unlink()
        _sync(folder)
        folder.replace(dst)
        _sync(dst.parent)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            what = f"{dst.parent}: the disk is full; make room or choose another folder"
        elif error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            what = f"{dst}: another run made it in the meantime"
        else:
            what = f"{error.filename or dst}: {error.strerror or error}"
        raise CheckpointError(what) from None
    finally:
        os.close(handle)
        shutil.rmtree(folder, ignore_errors=True)


def _sync(path: Path) -> None:
    """Bring a file or a folder's names to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
