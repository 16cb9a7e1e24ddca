"""Tensors slice by slice: reading checkpoints and writing safetensors without holding either in memory."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from math import prod
from pathlib import Path
from typing import BinaryIO

import mlx.core as mx
import numpy as np

from ..errors import CheckpointError, cause
from .atomic import flush, new_file
from .hashes import Digest, digest_of
from .safetensors import ITEM_SIZES, Header, TensorInfo, read_header
from .schema import is_utf8, open_file

CHUNK = 64 << 20  # bytes of source that are in memory at a time, for tensors that can be cut by rows
FINGERPRINT = "fingerprint"  # in a file's metadata: the digest of its contents
_NUMPY = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}
_NAMES = {
    mx.float32: "F32", mx.float16: "F16", mx.bfloat16: "BF16",
    mx.uint32: "U32", mx.uint8: "U8", mx.int32: "I32", mx.int64: "I64",
}  # fmt: skip


def dtype_name(dtype: mx.Dtype) -> str:
    """How safetensors spells an MLX dtype."""
    return _NAMES[dtype]


def _to_mlx(data: np.ndarray, dtype: str) -> mx.array:
    if dtype == "BF16":
        return mx.array(data).view(mx.bfloat16)
    return mx.array(data.astype(np.float32) if dtype == "F64" else data)


def read_rows(info: TensorInfo, chunk: int | None = CHUNK) -> Iterator[mx.array]:
    """A float tensor in slices along its first axis, at most `chunk` bytes each; whole if None.

    Raises `CheckpointError` when the file ends early or the tensor does not hold floating-point numbers.
    """
    if info.dtype not in _NUMPY:
        raise CheckpointError(f"{info.path}: a weight is stored as {info.dtype}; expected floating point")
    rows = info.shape[0] if info.shape else 1
    row = info.nbytes // max(rows, 1)
    step = rows if chunk is None or not info.shape else max(1, chunk // max(row, 1))
    with open_file(info.path) as file:
        file.seek(info.start)
        for first in range(0, max(rows, 1), max(step, 1)):
            count = min(step, rows - first)
            shape = (count, *info.shape[1:]) if info.shape else ()
            data = np.fromfile(file, _NUMPY[info.dtype], prod(shape))
            if data.size != prod(shape):
                raise CheckpointError(
                    f"{info.path}: the file ends inside a tensor; download or copy it again"
                )
            yield _to_mlx(data.reshape(shape), info.dtype)


def read_tensor(info: TensorInfo) -> mx.array:
    """One whole float tensor, in its own dtype (float64 becomes float32)."""
    (value,) = read_rows(info, None)
    return value


def to_bytes(value: mx.array) -> memoryview:
    """The bytes of an evaluated array, row by row, little-endian."""
    if value.dtype == mx.bfloat16:
        value = value.view(mx.uint16) if value.ndim else value[None].view(mx.uint16)
    return np.ascontiguousarray(np.asarray(value)).data.cast("B")


def load_lazily(path: Path) -> dict[str, mx.array]:
    """The arrays of a safetensors file, each of which is read when it is used."""
    loaded = mx.load(str(path))
    assert isinstance(loaded, dict)
    return loaded


def load_tensors(path: Path, dtype: mx.Dtype | None = None) -> dict[str, mx.array]:
    """The arrays of a safetensors file, read now, in their own dtype or `dtype`; float64, which MLX does not
    read, becomes float32. CheckpointError.
    """
    header = read_header(path).tensors
    try:
        if any(info.dtype == "F64" for info in header.values()):
            loaded = {name: read_tensor(info) for name, info in header.items()}
        else:
            loaded = load_lazily(path)
        if dtype is not None:
            loaded = {name: value.astype(dtype) for name, value in loaded.items()}
        mx.eval(loaded)
    except (RuntimeError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from None
    return loaded


def save_tensors(
    path: Path,
    tensors: Mapping[str, mx.array],
    metadata: Mapping[str, str],
    check: Callable[[Path], object] = lambda partial: None,
) -> None:
    """Write a safetensors file, whole or not at all, into a folder that is made if need be.

    check: reads the file before it takes its name, and raises what is wrong with it. CheckpointError when it
    cannot be written.
    """
    if not is_utf8(path.absolute()):
        raise CheckpointError(f"{path.absolute()}: its path is not UTF-8, which MLX needs; choose another")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with new_file(path, ".safetensors") as partial:
            partial.open("xb").close()  # MLX does not say why it cannot
            mx.save_safetensors(str(partial), dict(tensors), dict(metadata))
            check(partial)
    except (OSError, RuntimeError) as error:
        why = cause(error) if isinstance(error, OSError) else error
        raise CheckpointError(f"{path} cannot be written: {why}") from None


def _begun(name: str, dtype: str, shape: tuple[int, ...]) -> Digest:
    return digest_of(f"{name}\0{dtype}\0{list(shape)}\0".encode())


def _together(hashes: Mapping[str, Digest]) -> str:
    whole = digest_of()
    for name in sorted(hashes):
        whole.update(hashes[name].digest())
    return whole.hexdigest()


def contents_digest(header: Header, read: Callable[[int], object] = lambda size: None) -> str:
    """What `SafetensorsWriter.digest` gives for the contents of a file; `read` is told the bytes of each
    piece. OSError.
    """
    hashes = {}
    for name, info in header.tensors.items():
        hashes[name] = _begun(name, info.dtype, info.shape)
        with open_file(info.path) as file:
            file.seek(info.start)
            for start in range(info.start, info.stop, CHUNK):
                piece = file.read(min(CHUNK, info.stop - start))
                hashes[name].update(piece)
                read(len(piece))
    return _together(hashes)


class SafetensorsWriter:
    """Writes a safetensors file whose contents are declared first and filled in afterwards.

    tensors: name → (dtype as safetensors spells it, shape). Slices of different tensors may be written in
    turn; each tensor's own slices come in order. `close` refuses a file with gaps. The digest is of the
    contents alone (names, dtypes, shapes, bytes), whatever the order in which they were written; it also
    stands in the header, so that two files with different contents have different headers.
    """

    def __init__(
        self,
        path: Path,
        tensors: Mapping[str, tuple[str, tuple[int, ...]]],
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        self.path = path
        metadata = {"format": "mlx", FINGERPRINT: "0" * 64, **(metadata or {})}
        header: dict[str, object] = {"__metadata__": metadata}
        offset = 0
        self._spans: dict[str, list[int]] = {}  # name → [next byte to write, end]
        for name, (dtype, shape) in tensors.items():
            stop = offset + prod(shape) * ITEM_SIZES[dtype]
            header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, stop]}
            self._spans[name] = [offset, stop]
            offset = stop
        raw = json.dumps(header, separators=(",", ":")).encode()
        self._fingerprint = 8 + raw.index(b"0" * 64)
        raw += b" " * (-len(raw) % 8)
        self._begin = 8 + len(raw)
        self._hashes = {name: _begun(name, dtype, shape) for name, (dtype, shape) in tensors.items()}
        self.size = self._begin + offset
        self._file: BinaryIO = path.open("wb")
        self._file.write(len(raw).to_bytes(8, "little") + raw)

    def write(self, name: str, value: mx.array) -> None:
        """The next slice of tensor `name`."""
        data = to_bytes(value)
        span = self._spans[name]
        if span[0] + len(data) > span[1]:
            raise ValueError(f"{self.path}: too many bytes for {name!r}")
        self._file.seek(self._begin + span[0])
        self._file.write(data)
        self._hashes[name].update(data)
        span[0] += len(data)

    def digest(self) -> str:
        """SHA-256 of the contents written."""
        return _together(self._hashes)

    def close(self) -> None:
        """Tell the header the digest and flush to the disk; ValueError when a tensor is not complete."""
        self._file.seek(self._fingerprint)
        self._file.write(self.digest().encode())
        self._file.flush()
        flush(self._file.fileno())
        self._file.close()
        gaps = [name for name, (at, stop) in self._spans.items() if at != stop]
        if gaps:
            raise ValueError(f"{self.path}: not written completely: {', '.join(gaps)}")

    def __enter__(self) -> SafetensorsWriter:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self.close()
        else:
            self._file.close()
