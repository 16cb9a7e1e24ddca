"""The silence latent of the original checkpoint: one tensor in PyTorch's archive, found without unpickling.

The archive is a zip whose member `…/data/0` holds the numbers as they are. What their order is stands in
`…/data.pkl`, a pickle, which is taken apart into its opcodes (`pickletools`) and never run.
"""

from __future__ import annotations

import pickletools
import zipfile
from math import prod
from pathlib import Path

from ...errors import CheckpointError, cause
from ...io.safetensors import ITEM_SIZES, TensorInfo
from ...io.schema import open_file

SILENCE = "silence_latent.pt"
MEMBERS = {
    "data.pkl", "data/0", "version", "byteorder", ".format_version", ".storage_alignment",
    ".data/serialization_id",
}  # fmt: skip
STORAGES = {"torch FloatStorage": "F32", "torch HalfStorage": "F16", "torch BFloat16Storage": "BF16"}
MAX_PICKLE = 4096  # bytes; that of one tensor has some 250
#: opcodes of a tensor's pickle that say nothing by themselves
_PLAIN = {
    "PROTO", "GLOBAL", "BINPUT", "LONG_BINPUT", "MARK", "BINUNICODE", "SHORT_BINUNICODE", "TUPLE", "TUPLE1",
    "TUPLE2", "TUPLE3", "EMPTY_TUPLE", "BINPERSID", "NEWFALSE", "REDUCE", "STOP",
}  # fmt: skip
_NUMBERS = {"BININT", "BININT1", "BININT2", "LONG1", "INT", "LONG"}


def read_silence(path: Path) -> dict[str, TensorInfo]:
    """Name → where the numbers are: `silence_latent.pt` for (1, C, T), `silence_latent` for (1, T, C).

    CheckpointError for anything but one tensor of such a shape, uncompressed.
    """
    try:
        with open_file(path) as file, zipfile.ZipFile(file) as archive:
            members = {info.filename.partition("/")[2]: info for info in archive.infolist()}
            if len(members) != len(archive.infolist()) or not {"data.pkl", "data/0"} <= members.keys():
                raise _refused(path, "it is not PyTorch's archive of one tensor")
            if strangers := members.keys() - MEMBERS:
                raise _refused(path, f"it has further members: {', '.join(sorted(strangers))[:80]}")
            if any(
                info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1 for info in members.values()
            ):
                raise _refused(path, "its members are compressed")
            if members["data.pkl"].file_size > MAX_PICKLE:
                raise _refused(path, f"its data.pkl has {members['data.pkl'].file_size} bytes")
            if "byteorder" in members and archive.read(members["byteorder"]) != b"little":
                raise _refused(path, "its byte order is not little")
            dtype, sizes, strides = _tensor(path, archive.read(members["data.pkl"]))
            data = members["data/0"]
            file.seek(data.header_offset + 26)
            lengths = file.read(4)  # of the name and of what follows it, before the bytes themselves
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError) as error:
        raise _refused(path, f"it is not a whole zip archive ({error})") from None
    except OSError as error:
        raise CheckpointError(f"{path}: {cause(error)}") from None
    start = data.header_offset + 30 + sum(int.from_bytes(lengths[i : i + 2], "little") for i in (0, 2))
    if data.file_size != prod(sizes) * ITEM_SIZES[dtype]:
        raise _refused(path, f"{data.file_size} bytes cannot be {'×'.join(map(str, sizes))} in {dtype}")
    name, shape = SILENCE, sizes
    _, C, T = sizes
    if strides[1:] == (1, C):  # a transposed view, stored as we have it
        name, shape = SILENCE.removesuffix(".pt"), (1, T, C)
    elif strides[1:] != (T, 1):
        raise _refused(path, f"its numbers lie {strides} apart")
    return {name: TensorInfo(path, dtype, shape, start, start + data.file_size)}


def _tensor(path: Path, pickle: bytes) -> tuple[str, tuple[int, ...], tuple[int, ...]]:
    """dtype, shape (1, C, T) and strides, from the opcodes of one tensor's pickle."""
    try:
        opcodes = [(opcode.name, value) for opcode, value, _ in pickletools.genops(pickle)]
    except (ValueError, UnicodeDecodeError, IndexError) as error:
        raise _refused(path, f"its data.pkl is damaged ({error})") from None
    made = [value for name, value in opcodes if name == "GLOBAL"]
    numbers = [int(value) for name, value in opcodes if name in _NUMBERS and value is not None]
    wanted = [
        "torch._utils _rebuild_tensor_v2",
        *(m for m in made[1:2] if m in STORAGES),
        "collections OrderedDict",
    ]
    names = [name for name, _ in opcodes if not name.endswith("BINPUT")]
    strange = set(names) - _PLAIN - _NUMBERS or names[-2:] != ["REDUCE", "STOP"]
    if strange or made != wanted or len(made) != 3 or len(numbers) != 8:
        raise _refused(path, "it holds something else than one tensor of three axes")
    stored, offset, *rest = numbers
    sizes, strides = tuple(rest[:3]), tuple(rest[3:])
    if sizes[0] != 1 or min(sizes) < 1 or offset != 0 or stored != prod(sizes):
        raise _refused(
            path, f"its shape is {sizes} at {offset} of {stored} numbers; expected 1 × channels × time"
        )
    return STORAGES[made[1]], sizes, strides


def _refused(path: Path, why: str) -> CheckpointError:
    return CheckpointError(f"{path}: {why}; download the checkpoint's own {SILENCE} again")
