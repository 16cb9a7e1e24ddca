"""A checkpoint with random weights in the upstream PyTorch layout: for the demo, the tests and benchmarks.

`size="tiny"` has a few million parameters; `size="true"` has the released model's geometry (7.7 GB in
bfloat16) and is streamed to disk.
"""

from __future__ import annotations

import json
from pathlib import Path

from ..random_weights import write_weights
from . import miniature_tensors
from .geometry import SIZES, Geometry
from .layouts import FOLDERS
from .lyrics.vocabulary import LYRIC_VOCAB
from .miniature_text import miniature_vocabulary, write_prompt_tokenizer


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
        write_weights(target, stem, list(specs), shards if name == "transformer" else 1, seed, dtype)
    words = folder / FOLDERS.places["text_encoder"].folder
    write_prompt_tokenizer(words, geometry.text_encoder["vocab_size"])
    vocab = json.dumps(miniature_vocabulary(), ensure_ascii=False, indent=1)
    (folder / LYRIC_VOCAB).write_text(vocab + "\n", encoding="utf-8")
    return folder
