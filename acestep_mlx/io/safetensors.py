"""Safetensors files, distrusted: the header is checked in full before memory is taken for anything."""

from __future__ import annotations

import os
from dataclasses import dataclass
from math import prod
from pathlib import Path, PurePosixPath
from typing import Any

from ..errors import CheckpointError, cause, not_utf8
from .hashes import digest_of, hash_blocks
from .schema import is_utf8, open_file, parse_json

# Bytes per element. What is missing here (FP8, F4, …) is refused by name.
ITEM_SIZES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2,
    "I64": 8, "I32": 4, "I16": 2, "I8": 1,
    "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1,
}  # fmt: skip
MAX_DIMENSIONS = 16
FLOATS = ("F64", "F32", "F16", "BF16")
# Both far above any model's: the released one has 1,200 tensors, their header 150 kB.
MAX_HEADER, MAX_TENSORS = 16 << 20, 100_000  # bytes
SAMPLES = 65  # blocks of a file
PICKLES = (".bin", ".pt", ".pth", ".ckpt")


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of a file: dtype as safetensors spells it, shape, and where its bytes are."""

    path: Path
    dtype: str
    shape: tuple[int, ...]
    start: int  # bytes from the beginning of the file
    stop: int

    @property
    def size(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Its bytes in the file."""
        return self.stop - self.start


@dataclass(frozen=True)
class Header:
    """What a safetensors file says it holds."""

    tensors: dict[str, TensorInfo]
    metadata: dict[str, str]


def _corrupt(path: Path, why: str) -> CheckpointError:
    return CheckpointError(f"{path}: not a whole safetensors file: {why}; download or copy it again")


def read_header(path: Path) -> Header:
    """The checked header of one file; reads no tensor.

    Raises `CheckpointError` for a missing, truncated or corrupt file, a pickle, or a header that promises
    more than the file holds.
    """
    refuse_pickle(path)
    if not is_utf8(path):
        raise CheckpointError(f"{path}: its path {not_utf8(path, ', which MLX needs; rename it')}")
    try:
        with open_file(path) as file:
            size = os.fstat(file.fileno()).st_size
            prefix = file.read(8)
            if len(prefix) < 8:
                raise _corrupt(path, f"it has {size} bytes")
            length = int.from_bytes(prefix, "little")
            if length > size - 8:
                raise _corrupt(path, f"its header claims {length} bytes, and the file has {size}")
            if length > MAX_HEADER:
                raise CheckpointError(
                    f"{path}: its header has {length} bytes, and {MAX_HEADER} are read at most; "
                    "no model needs so many"
                )
            raw = file.read(length)
    except OSError as error:
        raise CheckpointError(f"{path}: {cause(error)}") from None
    try:
        content = parse_json(raw)
    except ValueError as error:
        raise _corrupt(path, f"its header is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise _corrupt(path, "its header is not a JSON object")
    metadata = content.pop("__metadata__", None)
    if metadata is None:  # as mx.save_safetensors writes it when it is given none
        metadata = {}
    if not isinstance(metadata, dict):
        raise _corrupt(path, "its metadata is not a JSON object")
    if wrong := [key for key, value in metadata.items() if not isinstance(value, str)]:
        raise _corrupt(path, f"{wrong[0]!r} in its metadata is not text")
    if len(content) > MAX_TENSORS:
        raise CheckpointError(
            f"{path}: it lists {len(content)} tensors, and {MAX_TENSORS} are read at most; "
            "no model has so many"
        )
    begin = 8 + length
    tensors = {name: _tensor(path, name, entry, begin) for name, entry in content.items()}
    end = begin
    for name, info in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].stop)):
        if info.start != end:
            raise _corrupt(path, f"the bytes of {name!r} do not follow those before them")
        end = info.stop
    if end != size:
        raise _corrupt(path, f"its tensors end at byte {end}, and the file has {size}")
    return Header(tensors, metadata)


def sample(path: Path) -> dict[str, Any]:
    """What tells a file from another in milliseconds, whatever its size, as JSON: "bytes", and "sampled", the
    SHA-256 of its header and of blocks spread over it. A change between two of them is not seen.
    """
    with open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        header = 8 + min(int.from_bytes(os.pread(file.fileno(), 8, 0), "little"), MAX_HEADER)
        digest = digest_of(os.pread(file.fileno(), header, 0))
        digest.update(hash_blocks(size, lambda at, n: os.pread(file.fileno(), n, at), SAMPLES).encode())
    return {"bytes": size, "sampled": digest.hexdigest()}


def _tensor(path: Path, name: str, entry: Any, begin: int) -> TensorInfo:
    if not is_utf8(name):
        raise _corrupt(path, f"the name {name!a} is not text")
    try:
        dtype, shape, (start, stop) = entry["dtype"], entry["shape"], entry["data_offsets"]
        numbers = [*shape, start, stop]
    except (KeyError, TypeError, ValueError):
        raise _corrupt(path, f"the entry of {name!r} is damaged") from None
    if len(shape) > MAX_DIMENSIONS:
        raise _corrupt(path, f"{name!r} has {len(shape)} dimensions")
    if not all(type(n) is int and 0 <= n < 2**62 for n in numbers) or not isinstance(dtype, str):
        raise _corrupt(path, f"the entry of {name!r} is damaged")
    if dtype not in ITEM_SIZES:
        raise CheckpointError(
            f"{path}: {name!r} is stored as {dtype}, which is not supported; use a float32, float16 or "
            "bfloat16 copy of the checkpoint"
        )
    if prod(shape) * ITEM_SIZES[dtype] != stop - start:
        raise _corrupt(path, f"{name!r} with shape {tuple(shape)} cannot have {stop - start} bytes")
    return TensorInfo(path, dtype, tuple(shape), begin + start, begin + stop)


def refuse_pickle(path: Path) -> None:
    """Pickles can run code when they are read, so they are never opened."""
    if path.suffix.lower() in PICKLES:
        raise CheckpointError(
            f"{path}: a pickle can run code, so it is not opened; save the weights as .safetensors instead"
        )


def inside(folder: Path, name: str) -> Path:
    """`folder/name` for a name found in a file; a name that leads out of the folder is an error.

    Only the spelling is judged: a symbolic link inside the folder may point elsewhere, as the hub's cache
    does.
    """
    relative = PurePosixPath(name)
    if not name or "\\" in name or relative.is_absolute() or ".." in relative.parts or ":" in name:
        raise CheckpointError(f"{folder}: the file name {name!r} leads out of the folder")
    return folder / relative
