"""The weights of a folder: one safetensors file, or the shards of an index. Headers only."""

from __future__ import annotations

from pathlib import Path

from ..errors import CheckpointError
from ..formatting import problem_report
from .safetensors import PICKLES, TensorInfo, inside, read_header
from .schema import read_json

STEMS = ("diffusion_pytorch_model", "model")


def read_weights(folder: Path) -> dict[str, TensorInfo]:
    """Every tensor of a folder by its name. CheckpointError where there are none, or several sets of them."""
    try:
        names = {path.name for path in folder.iterdir() if path.is_file()}
    except OSError as error:
        raise CheckpointError(f"{folder}: {error.strerror or error}") from None
    for stem in STEMS:
        if f"{stem}.safetensors" in names:
            return read_header(folder / f"{stem}.safetensors").tensors
    indices = sorted(name for name in names if name.endswith(".safetensors.index.json"))
    files = sorted(name for name in names if name.endswith(".safetensors"))
    if len(indices) == 1:
        return _sharded(folder, indices[0])
    if len(indices) > 1 or len(files) > 1:
        raise CheckpointError(f"{folder}: several weight files ({', '.join(indices or files)}); keep one set")
    if files:
        return read_header(folder / files[0]).tensors
    pickles = sorted(name for name in names if name.endswith(PICKLES))
    if pickles:
        raise CheckpointError(
            f"{folder}: only {pickles[0]}, a pickle, which can run code and is not opened; "
            "download or save the .safetensors weights instead"
        )
    raise CheckpointError(f"{folder}: no .safetensors weights in it")


def _sharded(folder: Path, index: str) -> dict[str, TensorInfo]:
    weight_map = read_json(folder / index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(v, str) for v in weight_map.values()):
        raise CheckpointError(f"{folder / index}: no weight_map of file names in it")
    headers = {name: read_header(inside(folder, name)).tensors for name in sorted(set(weight_map.values()))}
    problems = [
        f"{tensor!r} is not in {name}" for tensor, name in weight_map.items() if tensor not in headers[name]
    ]
    problems += [
        f"{tensor!r} of {name} is not in the index"
        for name, tensors in headers.items()
        for tensor in tensors
        if weight_map.get(tensor) != name
    ]
    if problems:
        raise problem_report(str(folder / index), problems)
    return {tensor: headers[name][tensor] for tensor, name in weight_map.items()}
