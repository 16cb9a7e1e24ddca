"""Files that are whole or not there: written beside their place under a name of their own, then renamed."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

#: What drives answer that sync files alone.
_NOT_FOR_FOLDERS = {
    errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOTTY, errno.EACCES, errno.EPERM,
    errno.EBADF, errno.EISDIR,
}  # fmt: skip
PREFIX, SUFFIX = ".acestep-", ".partial"


def temporary(path: Path, suffix: str = SUFFIX) -> Path:
    """A hidden name beside `path` that nobody else takes, short however long `path`'s own name is."""
    return path.with_name(f"{PREFIX}{secrets.token_hex(6)}{suffix}")


@contextlib.contextmanager
def new_file(path: Path, suffix: str = SUFFIX) -> Iterator[Path]:
    """A path beside `path` to write to, which takes its name when the block ends well, or vanishes.

    What was there before stays until then. suffix: of the path, for writers that look at it. OSError.
    """
    partial = temporary(path, suffix)
    try:
        yield partial
        sync(partial)
        partial.replace(path)
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file, whole or not at all; what was there before stays until then. Raises OSError.

    For encoders too, into memory first: libsndfile does not tell when the last of a file was not written.
    """
    with new_file(path) as partial:
        partial.write_bytes(data)


def sync(path: Path) -> None:
    """Bring a file or a folder's names to the disk, so that a rename after it is never ahead of them.

    Network drives and some others cannot do that for folders; that is no error. OSError otherwise.
    """
    folder = path.is_dir()
    try:
        handle = os.open(path, os.O_RDONLY)
        try:
            flush(handle)
        finally:
            os.close(handle)
    except OSError as error:
        if not folder or error.errno not in _NOT_FOR_FOLDERS:
            raise


def flush(handle: int) -> None:
    """Bring an open file to the disk: on macOS past the drive's own cache, where `fsync` ends. OSError."""
    command = getattr(fcntl, "F_FULLFSYNC", None)
    if command is not None:
        try:
            fcntl.fcntl(handle, command)
            return
        except OSError:
            pass  # no drive of this Mac's own: what else is wrong, `fsync` says
    os.fsync(handle)
