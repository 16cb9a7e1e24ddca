"""Who uses a folder: a lock in it that ends with the process; its file's time is that of the last use."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
import weakref
from collections.abc import Iterator
from pathlib import Path

HOLD = ".acestep-mlx.used"
_TRIES, _PAUSE = 20, 0.05  # seconds between; whoever looks has the lock for a moment
_held: dict[Path, int] = {}  # until this process ends: locked files by folder


def hold(folder: Path, owner: object | None = None, *, new: bool = True) -> None:
    """Tell other processes that `folder` is in use: until `owner` is gone, without one as long as this runs.

    new: also where nobody has said so before. Where it cannot be told (no such folder, nothing may be written
    there, a disk without locks) nothing happens.
    """
    folder = folder.absolute()
    if owner is None and folder in _held and _same(_held[folder], folder / HOLD):
        return
    for _ in range(_TRIES):
        handle = _open(folder, new)
        if handle is None:
            return
        if _lock(handle, fcntl.LOCK_SH) and _same(handle, folder / HOLD):
            with contextlib.suppress(OSError):
                os.utime(handle)
            break
        os.close(handle)
        time.sleep(_PAUSE)
    else:
        return
    if owner is not None:
        weakref.finalize(owner, os.close, handle)
    else:
        _held[folder] = handle


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[bool]:
    """Whether nobody uses `folder`; as long as the block lasts nobody begins to, under this name."""
    handle = _open(folder, new=True)
    try:
        yield handle is None or _lock(handle, fcntl.LOCK_EX)
    finally:
        if handle is not None:
            os.close(handle)


def in_use(folder: Path) -> bool:
    """Whether a process uses `folder` now."""
    handle = _open(folder, new=False)
    if handle is None:
        return False
    try:
        return not _lock(handle, fcntl.LOCK_EX)
    finally:
        os.close(handle)


def last_used(folder: Path) -> float | None:
    """When a process began to use `folder` last; None where that is not known."""
    try:
        return (folder / HOLD).lstat().st_mtime
    except OSError:
        return None


def _open(folder: Path, new: bool) -> int | None:
    """The lock's file; None where there is none and none can be made."""
    flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        return os.open(folder / HOLD, flags | (os.O_CREAT if new else 0), 0o644)
    except OSError:
        return None


def _lock(handle: int, kind: int) -> bool:
    """Whether nobody else has a lock in the way; True too where the disk has none."""
    try:
        fcntl.flock(handle, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def _same(handle: int, path: Path) -> bool:
    """Whether the open file is the one at `path` still, which was not removed in between."""
    try:
        return os.path.samestat(os.fstat(handle), path.lstat())
    except OSError:
        return False
