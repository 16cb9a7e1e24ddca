"""Files that are whole or not there: written beside their place under a name of their own, then renamed."""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path

PREFIX, SUFFIX = ".acestep-", ".partial"


def temporary(path: Path) -> Path:
    """A hidden name beside `path` that nobody else takes, short however long `path`'s own name is."""
    return path.with_name(f"{PREFIX}{secrets.token_hex(6)}{SUFFIX}")


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file, whole or not at all; what was there before stays until then. Raises OSError.

    For encoders too, into memory first: libsndfile does not tell when the last of a file was not written.
    """
    partial = temporary(path)
    try:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
