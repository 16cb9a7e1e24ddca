"""What libmpg123 writes to standard error by itself, kept from the terminal; everything else passes.

libsndfile reads MP3s with it and cannot silence it: "Warning: Xing stream size off by more than 1%", and
source lines of its own, about files that then play well. What is wrong with a file our errors say.
"""

from __future__ import annotations

import os
import re
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NOISE = re.compile(rb"(?:\[src/libmpg123/|Note: |Warning: )[^\n]*\n?")


class _Diversion:
    """File descriptor 2 turned into a file while libsndfile is at work, on as many threads as there are."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.users, self.real, self.file, self.read = 0, -1, -1, 0

    def enter(self) -> None:
        with self.lock:
            if self.users == 0:
                self.real = os.dup(2)
                try:
                    self.file, path = tempfile.mkstemp(prefix="acestep-stderr-")
                    Path(path).unlink()
                    os.dup2(self.file, 2)
                except OSError:
                    os.close(self.real)
                    raise
                self.read = 0
            self.users += 1

    def leave(self) -> None:
        with self.lock:
            self.users -= 1
            if self.users == 0:
                os.dup2(self.real, 2)
            # What others have written meanwhile is passed on now, not when the last thread has done.
            size = os.fstat(self.file).st_size
            said = os.pread(self.file, size - self.read, self.read)
            self.read = size
            try:
                if kept := b"".join(line for line in said.splitlines(True) if not NOISE.fullmatch(line)):
                    os.write(self.real, kept)
            finally:
                if self.users == 0:
                    os.close(self.real)
                    os.close(self.file)


_DIVERSION = _Diversion()


@contextmanager
def without_noise() -> Iterator[None]:
    """Nothing of libmpg123's own reaches standard error meanwhile. Cheap; for calls into libsndfile only."""
    try:
        _DIVERSION.enter()
    except OSError:  # no standard error, or nowhere to put it: then it is as it is
        yield
        return
    try:
        yield
    finally:
        _DIVERSION.leave()
