"""A checkpoint with random weights in the upstream PyTorch layout: for the demo, the tests and benchmarks.

`size="tiny"` has a few million parameters; `size="true"` has the released model's geometry (7.7 GB in
bfloat16) and is streamed to disk.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Sequence
from math import prod
from pathlib import Path

import mlx.core as mx
import numpy as np

from ...io.tensors import SafetensorsWriter, dtype_name
from . import miniature_tensors
from .geometry import SIZES, Geometry
from .layouts import FOLDERS
from .lyrics.vocabulary import LYRIC_VOCAB
from .miniature_tensors import Spec
from .miniature_text import miniature_vocabulary, write_prompt_tokenizer

SLICE = 1 << 24  # elements that are in memory at a time


def write_checkpoint(
    folder: str | Path,
    *,
    seed: int = 0,
    size: str | Geometry = "tiny",
    dtype: str = "float32",
    shards: int = 1,
    new_weight_norm: bool = True,
) -> Path:
    """Write a whole checkpoint into `folder` (made if need be) and return its path.

    size: "tiny", "true" or a Geometry. dtype: float32, float16 or bfloat16. shards: into how many files the
    transformer is cut. new_weight_norm: `parametrizations.weight.original0/1` rather than `weight_g/_v`.
    Same seed, same bytes.
    """
    folder = Path(folder)
    geometry = SIZES[size] if isinstance(size, str) else size
    tensors = {
        "transformer": miniature_tensors.transformer(geometry),
        "text_encoder": miniature_tensors.text_encoder(geometry),
        "dcae": miniature_tensors.dcae(geometry),
        "vocoder": miniature_tensors.vocoder(geometry, new_weight_norm),
    }
    for name, specs in tensors.items():
        target = folder / FOLDERS.places[name].folder
        target.mkdir(parents=True, exist_ok=True)
        (target / "config.json").write_text(json.dumps(getattr(geometry, name), indent=2) + "\n")
        stem = "model" if name == "text_encoder" else "diffusion_pytorch_model"
        _write_weights(target, stem, list(specs), shards if name == "transformer" else 1, seed, dtype)
    words = folder / FOLDERS.places["text_encoder"].folder
    write_prompt_tokenizer(words, geometry.text_encoder["vocab_size"])
    vocab = json.dumps(miniature_vocabulary(), ensure_ascii=False, indent=1)
    (folder / LYRIC_VOCAB).write_text(vocab + "\n", encoding="utf-8")
    return folder


def _write_weights(
    folder: Path,
    stem: str,
    specs: Sequence[Spec],
    shards: int,
    seed: int,
    dtype: str,
) -> None:
    kind = getattr(mx, dtype)
    cuts = np.array_split(np.arange(len(specs)), shards)
    weight_map: dict[str, str] = {}
    total = 0
    for number, cut in enumerate(cuts, 1):
        part = [specs[i] for i in cut]
        name = f"{stem}.safetensors" if shards == 1 else f"{stem}-{number:05d}-of-{shards:05d}.safetensors"
        tensors = {spec.name: (dtype_name(kind), spec.shape) for spec in part}
        with SafetensorsWriter(folder / name, tensors, {"format": "pt"}) as writer:
            for spec in part:
                for values in _random(spec, seed):
                    writer.write(spec.name, mx.array(values).astype(kind))
        weight_map.update(dict.fromkeys(tensors, name))
        total += writer.size
    if shards > 1:
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def _random(spec: Spec, seed: int) -> Iterator[np.ndarray]:
    """A tensor's values in flat slices, the same for a seed and a name."""
    rng = np.random.default_rng([seed, zlib.crc32(spec.name.encode())])
    left = prod(spec.shape)
    while left:
        count = min(left, SLICE)
        left -= count
        if spec.std:
            yield rng.standard_normal(count, np.float32) * np.float32(spec.std) + np.float32(spec.mean)
        else:
            yield np.full(count, spec.mean, np.float32)
