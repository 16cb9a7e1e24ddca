"""Names for files that are written beside their place and renamed once they are whole."""

from __future__ import annotations

import secrets
from pathlib import Path

PREFIX, SUFFIX = ".acestep-", ".partial"


def temporary(path: Path) -> Path:
    """A hidden name beside `path` that nobody else takes, short however long `path`'s own name is."""
    return path.with_name(f"{PREFIX}{secrets.token_hex(6)}{SUFFIX}")
