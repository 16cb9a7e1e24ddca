"""Paths as arguments."""

from __future__ import annotations

import errno
import os
import shlex
from pathlib import Path
from typing import Any

import click

from ..io.filenames import as_stored


def typed(path: Path) -> str:
    """A path as an argument that can be pasted, also where its name looks like an option."""
    return shlex.quote(f"./{path}" if str(path).startswith("-") else str(path))


class NamedPath(click.Path):
    """A path that is not empty: `Path("")` would silently be the working directory.

    kind: what the command gets, `Path` or `str`.
    """

    def __init__(self, kind: type[Path] | type[str] = Path) -> None:
        super().__init__(path_type=kind)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not os.fspath(value).strip():
            self.fail("it is empty; name a file or folder", param, ctx)
        try:
            os.lstat(value)
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:
                self.fail("the name is too long", param, ctx)
        text = os.fspath(value)
        if (stored := as_stored(Path(text))) != Path(text):
            value = str(stored) + (os.sep if text.endswith(os.sep) else "")
        return super().convert(value, param, ctx)
