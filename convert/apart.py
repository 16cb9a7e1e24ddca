"""What a model folder keeps beside its components: tensors that only some runs read, as they are upstream."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import mlx.core as mx

from ..errors import CheckpointError, cause
from ..families.model_folder import ModelFolder
from ..families.protocol import Apart, KeptApart
from ..formatting import listed, size
from ..io.atomic import new_file
from ..io.disk import free_space
from ..io.progress import Progress, silent
from ..io.safetensors import ITEM_SIZES
from ..io.tensors import SafetensorsWriter, dtype_name, load_lazily, read_rows
from .source import Source, resolve
from .stream import plan_component


def plans(source: Source) -> dict[Apart, KeptApart]:
    """What there is of it in a checkpoint. CheckpointError for wrong shapes."""
    found = {one: one.plan(source.component(one.component)) for one in source.family.apart}
    return {one: kept for one, kept in found.items() if kept is not None}


def needed(kept: KeptApart, dtype: mx.Dtype) -> int:
    """Bytes that are written."""
    return sum(info.size for info in kept.tensors.values()) * ITEM_SIZES[dtype_name(dtype)]


def write(path: Path, kept: KeptApart, dtype: mx.Dtype, read: Callable[[int], object]) -> None:
    """Write the file, a slice of a tensor at a time; `read` is told the bytes of each. CheckpointError for
    what is not finite.
    """
    kind = dtype_name(dtype)
    outputs = {name: (kind, info.shape) for name, info in kept.tensors.items()}
    with SafetensorsWriter(path, outputs, kept.metadata) as writer:
        for name, info in kept.tensors.items():
            for rows in read_rows(info):
                value = rows.astype(dtype)
                if not mx.isfinite(value).all().item():
                    raise CheckpointError(
                        f"{info.path}: {name!r} has values that are not finite, or that {kind} cannot hold"
                    )
                writer.write(name, value)
            read(info.nbytes)


def add_missing(
    src: str | Path, folder: str | Path, revision: str | None = None, progress: Progress = silent
) -> list[Path]:
    """Add to a model folder what an earlier version of `convert` left out of the checkpoint `src`, which it
    was made from; the files that were added. Each appears only when whole.

    Raises CheckpointError in one line when it is another checkpoint, or has nothing to add.
    """
    model = ModelFolder.open(folder)
    lacking = [one for one in model.family.apart if not (model.path / f"{one.name}.safetensors").is_file()]
    if not lacking:
        return []
    source = resolve(src, revision, progress)
    if source.family is not model.family:
        raise CheckpointError(f"{src} is {source.family.title}, and {model.path} is {model.family.title}")
    found = plans(source)
    added = []
    for one in lacking:
        if one not in found:
            raise CheckpointError(f"{src} has nothing of {one.title} either; give upstream's own checkpoint")
        _check_same(source, model, one.component)
        path = model.path / f"{one.name}.safetensors"
        try:
            if (there := free_space(model.path)) < (bytes_needed := needed(found[one], model.dtype)):
                raise CheckpointError(
                    f"{path} takes {size(bytes_needed)}, and {size(there)} are free on its disk"
                )
            with new_file(path, ".safetensors") as partial:
                write(partial, found[one], model.dtype, lambda size: None)
        except OSError as error:
            raise CheckpointError(f"{path} cannot be written: {cause(error)}") from None
        added.append(path)
    return added


def _check_same(source: Source, model: ModelFolder, component: str) -> None:
    """CheckpointError unless what no LoRA, no quantisation and no training in full changes is the same."""
    job = plan_component(source, component)
    stored = load_lazily(model.file(component))
    layers = {name.rpartition(".")[0] for name in stored if name.endswith((".weight", ".scales"))}
    different = []
    compared = 0
    for entry in job.plan.entries:
        owner = entry.target.rpartition(".")[0]
        if owner in layers or model.family.lora.full.holds(entry.target):
            continue
        compared += 1
        parts = list(job.slices(entry))
        value = parts[0] if len(parts) == 1 else mx.concatenate(parts)
        mine = stored.get(entry.target)
        if (
            mine is None
            or mine.shape != value.shape
            or not mx.array_equal(value.astype(mine.dtype), mine).item()
        ):
            different.append(entry.target)
    if different or not compared:
        raise CheckpointError(
            f"{source.path_or_repo} is not the checkpoint that {model.path} was converted from: "
            f"{listed(different, between=', ')} differ; give that one"
        )
