"""What can be written: the space on a disk, and the size of one file."""

from __future__ import annotations

import resource
import shutil
from pathlib import Path


def free_space(folder: Path) -> int:
    """Bytes that can be written to the disk of `folder`, which need not exist yet. OSError."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def largest_file() -> int | None:
    """Bytes that this process may write into one file (ulimit -f); None without a limit."""
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    return None if limit == resource.RLIM_INFINITY else limit
