"""The rims of an Ogg file: what an Opus header says, and whether it ends as its writer meant.

A download that broke off decodes without a complaint.
"""

from __future__ import annotations

import os
from pathlib import Path

from .schema import open_file

_MARK, _END_OF_STREAM = b"OggS", 4  # RFC 3533: of a page's header, and of its flags
_LONGEST = 27 + 255 + 255 * 255  # bytes of a page


def is_open_ended(path: Path) -> bool:
    """Whether the last page of an Ogg file is not marked as the end of its stream, or is cut itself.

    False for other files, and where it cannot be read.
    """
    try:
        with open_file(path) as file:
            if file.read(len(_MARK)) != _MARK:
                return False
            file.seek(max(0, file.seek(0, os.SEEK_END) - 2 * _LONGEST))
            tail = file.read()
    except OSError:
        return False
    page = tail[tail.rfind(_MARK) :]
    lengths = page[27 : 27 + page[26]] if len(page) > 26 else b""
    whole = len(page) > 26 and len(page) >= 27 + page[26] + sum(lengths)
    return not whole or not page[5] & _END_OF_STREAM


def opus_rate(path: Path) -> int:
    """Hz of the sound that Opus was made of, as its header says for information (RFC 7845); 0: unknown."""
    with open_file(path) as file:
        data = file.read(_LONGEST)
    at = data.find(b"OpusHead") + 12
    return int.from_bytes(data[at : at + 4], "little") if at >= 12 else 0
