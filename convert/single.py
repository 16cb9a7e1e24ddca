"""ComfyUI's all-in-one checkpoint: every component in one file, under prefixes, without config.json files."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from ..families.v1.geometry import SIZES, Geometry
from ..io.safetensors import TensorInfo
from .spiece import MAX_BYTES
from .translate import problem_report

PREFIXES = {
    "transformer": "model.diffusion_model.",
    "text_encoder": "text_encoders.umt5base.transformer.",
    "dcae": "vae.dcae.",
    "vocoder": "vae.vocoder.",
}
TOKENIZER = "spiece_model"  # the last part of the key that holds the tokenizer's bytes
IDLE = "text_encoders.umt5base.logit_scale"  # a number that ComfyUI keeps beside every text encoder


def is_all_in_one(names: Collection[str]) -> bool:
    """Whether tensors of these names can be such a checkpoint (`split` then checks it)."""
    own = PREFIXES["transformer"] + "lyric_embs.", PREFIXES["text_encoder"], "vae.dcae."
    return any(name.startswith(own) for name in names)


def split(tensors: Mapping[str, TensorInfo], path: Path) -> dict[str, dict[str, TensorInfo]]:
    """Component → its tensors by upstream name. CheckpointError for what is missing or nobody's."""
    found: dict[str, dict[str, TensorInfo]] = {name: {} for name in PREFIXES}
    unknown, idle = [], {}
    for name, info in tensors.items():
        component = next((c for c, prefix in PREFIXES.items() if name.startswith(prefix)), None)
        if component is not None:
            found[component][name.removeprefix(PREFIXES[component])] = info
        elif name == IDLE:
            idle["logit_scale"] = info
        elif not _is_tokenizer(name):
            unknown.append(f"unknown tensor {name!r}")
    missing = [f"no {c} (tensors {PREFIXES[c]}…)" for c, part in found.items() if not part]
    if missing or unknown:
        what = "ComfyUI's all-in-one checkpoint of ACE-Step v1"
        raise problem_report(f"{path}: not {what}", [*missing, *unknown])
    found["text_encoder"] |= idle
    return found


def geometry(tensors: Mapping[str, TensorInfo], path: Path) -> Geometry:
    """The sizes of the model, which the file does not tell: those of the released one, or the miniature's.

    `tensors` are the transformer's. CheckpointError for another width; `convert` compares every shape.
    """
    embedder = tensors.get("speaker_embedder.weight")
    shape = embedder.shape if embedder is not None else ()
    for one in SIZES.values():
        config = one.transformer
        width = config["num_attention_heads"] * config["attention_head_dim"]
        if shape == (width, config["speaker_embedding_dim"]):
            return one
    raise CheckpointError(
        f"{path}: its transformer's speaker_embedder is {'×'.join(map(str, shape)) or 'missing'}; without a "
        "config.json only the released model's sizes are known (2560×512): give upstream's checkpoint folder"
    )


def config_of(component: str, sizes: Geometry) -> dict[str, Any]:
    """What upstream's config.json of a component of this size says."""
    config: dict[str, Any] = getattr(sizes, component)
    return config


def tokenizer_bytes(tensors: Mapping[str, TensorInfo]) -> bytes | None:
    """The SentencePiece model that the file carries, or None. CheckpointError for one that is too large."""
    for name, info in tensors.items():
        if _is_tokenizer(name):
            if info.stop - info.start > MAX_BYTES:
                raise CheckpointError(f"{info.path}: {name!r} is too large for a tokenizer")
            with info.path.open("rb") as file:
                file.seek(info.start)
                return file.read(info.stop - info.start)
    return None


def _is_tokenizer(name: str) -> bool:
    return name.rpartition(".")[2] == TOKENIZER
