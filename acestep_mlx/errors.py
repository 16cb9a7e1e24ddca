"""Errors that a user can mend. The command line prints one line for each and exits with 1."""

from __future__ import annotations

import difflib
import errno
import os
import sys
from collections.abc import Iterable

#: `errno` of a full disk, or of a quota that is used up
NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


def cause(error: OSError) -> str:
    """Why the system refuses something, in a few words."""
    if error.errno in NO_SPACE:
        return "the disk is full"
    if error.errno in (errno.EEXIST, errno.ENOTDIR):  # of making a folder, or a file in one
        return "a file is where a folder has to be"
    if error.errno == errno.EFBIG:
        return "a file may not grow that large (ulimit -f, or the file system's limit)"
    return error.strerror or str(error) or type(error).__name__


def refusal(error: Exception) -> str:
    """What the system refuses, with its place where that is known; of another error its own words."""
    if not isinstance(error, OSError):
        return str(error)
    what = cause(error)
    return f"{os.fsdecode(error.filename)}: {what}" if isinstance(error.filename, (str, bytes)) else what


def not_utf8(name: object, advice: str) -> str:
    """What is wrong with a name that Python did not read as UTF-8; `advice`: what to do about the name."""
    encoding = sys.getfilesystemencoding()
    try:
        os.fsencode(str(name)).decode()
    except UnicodeError:
        encoding = "utf-8"
    if encoding == "utf-8":
        return f"is not UTF-8{advice}"
    return (
        f"is UTF-8, but this process reads names as {encoding} (PYTHONUTF8=0 or -X utf8=0); unset that, "
        "or set LC_ALL=C.UTF-8"
    )


class AceStepError(Exception):
    """What is wrong, where, and what to do, in one line; `details` are lines to be shown before it."""

    def __init__(self, message: object = "", details: Iterable[str] = ()) -> None:
        super().__init__(message)
        self.details = tuple(details)


class ConfigError(AceStepError):
    """A setting, a flag or a config file is wrong."""


class CheckpointError(AceStepError):
    """Model weights, a LoRA file or a training checkpoint cannot be used."""


class NewerVersionError(CheckpointError):
    """A file in a format that only a newer version of this program reads. It is not damaged."""


class DataError(AceStepError):
    """Audio, captions, lyrics or a data set cannot be used."""


def nearest(name: str, known: Iterable[str]) -> str:
    """`"; did you mean 'x'?"` for the closest known name, or an empty string."""
    match = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"; did you mean {match[0]!r}?" if match else ""
