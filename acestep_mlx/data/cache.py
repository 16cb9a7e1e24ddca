"""Cache files: named arrays under a key, written atomically, checked when read.

A file is a safetensors blob (deflated when asked) that holds its own key, with its CRC-32 in front, so that
a damaged file, or one under another's name, is noticed and computed again instead of being trained on. It
also says which model family it is of.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DataError, cause
from ..io import schema
from ..io.atomic import write_bytes

_FAMILY = b"ACEC"
_MAGIC = _FAMILY + b"1"  # with its format version
_PLAIN, _DEFLATED = b"p", b"z"
_KEY = "key"  # of the blob's metadata: the family's name and the key; those of earlier versions have none
_OWNER = "family"  # a word of its own for a while; words stand in another order in each file
_HEADER = 1 << 16  # bytes of a blob in which its header ends


def write_atomic(path: Path, data: bytes) -> None:
    """Write so that the file is whole or not there. DataError when the disk is full or not writable."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, data)
    except OSError as error:
        raise DataError(f"cannot write the cache file {path}: {cause(error)}") from None


class Store:
    """Arrays by key in a folder, or in memory when folder is None.

    signed: whether only entries that know their key are taken, which those of 0.1 do not. family: whose name
    new entries get.
    """

    def __init__(
        self, folder: Path | None, compress: bool = False, signed: bool = False, family: str = ""
    ) -> None:
        self.folder = folder
        self.family = family
        self.compress = compress
        self.keys = () if signed else (None,)  # besides an entry's own
        self._memory: dict[str, dict[str, np.ndarray]] = {}

    def path(self, key: str) -> Path:
        assert self.folder is not None
        return self.folder / key[:2] / f"{key}.cache"

    def put(self, key: str, arrays: Mapping[str, np.ndarray]) -> None:
        """Keep the arrays. DataError when the disk is full."""
        if self.folder is None:
            self._memory[key] = dict(arrays)
            return
        from safetensors.numpy import save

        facts = {_KEY: f"{self.family}/{key}"}
        body = save({name: np.ascontiguousarray(array) for name, array in arrays.items()}, facts)
        kind = _DEFLATED if self.compress else _PLAIN
        body = zlib.compress(body, 6) if self.compress else body
        write_atomic(self.path(key), _MAGIC + kind + zlib.crc32(body).to_bytes(4, "big") + body)

    def get(self, key: str) -> dict[str, np.ndarray] | None:
        """The arrays, or None when they are not there, or the file is damaged or another entry's.

        NewerVersionError for a file that only a newer version understands.
        """
        if self.folder is None:
            return self._memory.get(key)
        from safetensors import SafetensorError
        from safetensors.numpy import load

        try:
            with schema.open_file(self.path(key)) as file:  # a pipe in its place would never answer
                data = file.read()
        except OSError:
            return None
        head = len(_MAGIC)
        if data.startswith(_FAMILY) and data[len(_FAMILY) : head].isdigit():
            found, known = int(data[len(_FAMILY) : head]), int(_MAGIC[len(_FAMILY) :])
            schema.refuse_newer(found, known, f"{self.path(key)}: the cache file")
        kind, checksum, body = data[head : head + 1], data[head + 1 : head + 5], data[head + 5 :]
        if not data.startswith(_MAGIC) or zlib.crc32(body).to_bytes(4, "big") != checksum:
            return None
        try:
            blob = zlib.decompress(body) if kind == _DEFLATED else body
            return load(blob) if _own_key(blob) in (key, *self.keys) else None
        except (zlib.error, SafetensorError, ValueError):
            return None

    def has(self, key: str) -> bool:
        """Whether the arrays can be read back."""
        return self.get(key) is not None

    def occupied(self, key: str) -> bool:
        """Whether there is a file in the entry's place, whatever it holds."""
        return self.folder is not None and self.path(key).is_file()


def describe(path: Path) -> tuple[str | None, frozenset[str]]:
    """Of a cache file: the family that it says it is of (None: it does not), and the names of its arrays.

    (None, none) for what cannot be read, or is no cache file.
    """
    try:
        with schema.open_file(path) as file:
            data = file.read(_HEADER)
        head = len(_MAGIC)
        if not data.startswith(_MAGIC):
            return None, frozenset()
        blob = data[head + 5 :]
        if data[head : head + 1] == _DEFLATED:
            blob = zlib.decompressobj().decompress(blob, _HEADER)
        header = _header(blob)
    except (OSError, zlib.error, ValueError):
        return None, frozenset()
    facts = _metadata(header)
    owner = str(facts.get(_KEY, "")).rpartition("/")[0] or facts.get(_OWNER)
    return owner if isinstance(owner, str) else None, frozenset(header.keys() - {"__metadata__"})


def _own_key(blob: bytes) -> Any:
    """The key that a safetensors blob says it was written under, or None. ValueError when it is damaged."""
    key = _metadata(_header(blob)).get(_KEY)
    return key.rpartition("/")[2] if isinstance(key, str) else key


def _header(blob: bytes) -> dict[str, Any]:
    header = schema.parse_json(blob[8 : 8 + int.from_bytes(blob[:8], "little")])
    return header if isinstance(header, dict) else {}


def _metadata(header: Mapping[str, Any]) -> dict[str, Any]:
    metadata = header.get("__metadata__")
    return metadata if isinstance(metadata, dict) else {}
