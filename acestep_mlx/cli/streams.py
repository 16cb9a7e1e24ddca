"""Standard output and error that cannot stop the work: what is lost is a line, not a run or a song.

The reader of a pipe may go (`| head`, a Ctrl-C that ends `| tee` too), a disk may be full, a terminal closed.
Everything that is said goes through these two streams, whoever says it: this program, click, tqdm, warnings.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from pathlib import Path
from typing import TextIO


class Tolerant(io.RawIOBase):
    """A file descriptor that is written to as long as that works; `failure` is why it stopped."""

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self.descriptor = descriptor
        self.failure: OSError | None = None

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self.descriptor

    def isatty(self) -> bool:
        try:
            return os.isatty(self.descriptor)
        except OSError:
            return False

    def write(self, data: object) -> int:
        view = memoryview(data)  # type: ignore[arg-type]
        if self.failure is not None:
            return view.nbytes
        try:
            return os.write(self.descriptor, view)
        except BlockingIOError:
            raise
        except OSError as error:
            self.failure = error
            return view.nbytes


def tolerant(stream: TextIO | None, descriptor: int) -> TextIO:
    """The same stream, tolerant; one that goes nowhere for a closed descriptor (`2>&-`)."""
    if stream is None:
        return Path(os.devnull).open("w", encoding="utf-8")
    stream.flush()
    raw = io.BufferedWriter(Tolerant(descriptor))
    # Names and captions may hold what this encoding has not, or half characters.
    return io.TextIOWrapper(raw, encoding=stream.encoding, errors="backslashreplace", line_buffering=True)


def install() -> None:
    """Put tolerant streams in the place of the process's own; those of a test or a caller stay."""
    if sys.stdout is sys.__stdout__:
        sys.stdout = sys.__stdout__ = tolerant(sys.stdout, 1)  # type: ignore[misc,assignment]
    if sys.stderr is sys.__stderr__:
        sys.stderr = sys.__stderr__ = tolerant(sys.stderr, 2)  # type: ignore[misc,assignment]


def failure(stream: TextIO | None) -> OSError | None:
    """Why nothing more can be written to `stream`, or None."""
    raw = getattr(getattr(stream, "buffer", None), "raw", None)
    return raw.failure if isinstance(raw, Tolerant) else None


def deliver(stream: TextIO | None) -> None:
    """Write out what waits in `stream`. OSError when some of it is lost, unless its reader left."""
    if stream is not None:
        stream.flush()
    found = failure(stream)
    if found is not None and found.errno != errno.EPIPE:
        raise OSError(found.errno, found.strerror, "standard output")


def reader_gone(stream: TextIO | None) -> bool:
    """Whether what is written to `stream` has no reader any more."""
    found = failure(stream)
    return found is not None and found.errno == errno.EPIPE
