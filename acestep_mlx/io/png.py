"""PNG images, with numpy and zlib alone."""

from __future__ import annotations

import struct
import zlib

import numpy as np


def png(pixels: np.ndarray, title: str = "") -> bytes:
    """(height, width, 3) uint8 → the bytes of a PNG file. title: of the picture, kept as its text."""
    height, width, _ = pixels.shape
    rows = np.concatenate([np.zeros((height, 1), np.uint8), pixels.reshape(height, -1)], axis=1)

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = [(b"IHDR", header), (b"IDAT", zlib.compress(rows.tobytes(), 9)), (b"IEND", b"")]
    if title:  # UTF-8, not compressed, of no language
        parts.insert(1, (b"iTXt", b"Title\0\0\0\0\0" + title.encode(errors="backslashreplace")))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)
