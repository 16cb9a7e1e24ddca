"""Files that are whole or not there."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ..errors import CheckpointError, not_utf8
from .atomic import PREFIX
from .schema import is_utf8


@contextlib.contextmanager
def whole_or_nothing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its name at the end, or vanishes."""
    if not is_utf8(path.absolute()):
        what = not_utf8(path.absolute(), ", which MLX needs; choose another")
        raise CheckpointError(f"{path.absolute()}: its path {what}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=PREFIX, suffix=".safetensors", dir=path.parent)
        os.close(handle)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be written: {error.strerror or error}") from None
    temporary = Path(name)
    try:
        yield temporary
        try:
            temporary.chmod(0o644)
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            temporary.replace(path)
        except OSError as error:
            raise CheckpointError(f"{path} cannot be written: {error.strerror or error}") from None
    finally:
        temporary.unlink(missing_ok=True)
