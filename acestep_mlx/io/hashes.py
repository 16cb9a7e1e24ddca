"""SHA-256 of files, texts and JSON contents, and keys of what was computed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from .schema import open_file

BLOCK = 4096  # bytes


class Digest(Protocol):
    """SHA-256 of what it was told so far."""

    def update(self, piece: bytes | memoryview, /) -> None: ...

    def digest(self) -> bytes: ...

    def hexdigest(self) -> str: ...


def digest_of(start: bytes = b"") -> Digest:
    """SHA-256 of bytes that come in pieces, of which this is the first."""
    return hashlib.sha256(start)


def hash_file(path: Path) -> str:
    """SHA-256 of a file's bytes, read in pieces."""
    digest = digest_of()
    with open_file(path) as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def hash_blocks(size: int, read: Callable[[int, int], bytes], blocks: int) -> str:
    """Hash of blocks spread evenly over `size` bytes, ends included; `read(position, count)` gives them."""
    digest = digest_of()
    last = max(0, size - BLOCK)
    for position in sorted({last * i // (blocks - 1) for i in range(blocks)}):
        digest.update(read(position, BLOCK))
    return digest.hexdigest()[:32]


def hash_text(text: str) -> str:
    """SHA-256 of a text, which may hold half characters."""
    return hashlib.sha256(text.encode("utf-8", errors="surrogatepass")).hexdigest()


def content_hash(content: Any) -> str:
    """SHA-256 of a JSON content, whatever its white space and order."""
    return hash_text(json.dumps(content, sort_keys=True, ensure_ascii=False, separators=(",", ":")))


def cache_key(**parts: Any) -> str:
    """A key that changes when any part changes. Parts are JSON values."""
    return hash_text(json.dumps(parts, sort_keys=True, ensure_ascii=False))[:40]
