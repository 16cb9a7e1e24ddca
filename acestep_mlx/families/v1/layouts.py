"""How checkpoints of v1 are laid out: upstream's folders, and ComfyUI's all-in-one file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...errors import CheckpointError
from ..layout import Layout, Parts, Place
from .geometry import SIZES
from .lyrics.vocabulary import VOCABULARIES
from .prompt_files import SPIECE, TOKENIZER_FILES

FOLDERS = Layout(
    "ACE-Step checkpoint for PyTorch",
    {
        "transformer": Place("ace_step_transformer"),
        "text_encoder": Place("umt5-base"),
        "dcae": Place("music_dcae_f8c8"),
        "vocoder": Place("music_vocoder"),
    },
    beside=(*(f"umt5-base/{name}" for name in TOKENIZER_FILES), *VOCABULARIES),
)


class _AllInOne(Layout):
    """A file without a config.json."""

    def config(self, name: str, found: dict[str, Any], parts: Parts, root: Path) -> dict[str, Any]:
        """Of the released model or the miniature. CheckpointError for another width; every shape is compared
        later.
        """
        embedder = parts["transformer"].get("speaker_embedder.weight")
        shape = embedder.shape if embedder is not None else ()
        for size in SIZES.values():
            sizes = size.transformer
            width = sizes["num_attention_heads"] * sizes["attention_head_dim"]
            if shape == (width, sizes["speaker_embedding_dim"]):
                return dict(getattr(size, name))
        raise CheckpointError(
            f"{root}: its transformer's speaker_embedder is {'×'.join(map(str, shape)) or 'missing'}; "
            "without a config.json only the released model's sizes are known (2560×512): give upstream's "
            "checkpoint folder"
        )


ALL_IN_ONE = _AllInOne(
    "ComfyUI's all-in-one checkpoint of ACE-Step v1",
    {
        "transformer": Place(names=(("model.diffusion_model.", ""),)),
        "text_encoder": Place(
            names=(
                ("text_encoders.umt5base.transformer.", ""),
                ("text_encoders.umt5base.logit_scale", "logit_scale"),
            )
        ),
        "dcae": Place(names=(("vae.dcae.", ""),)),
        "vocoder": Place(names=(("vae.vocoder.", ""),)),
    },
    marks=("model.diffusion_model.lyric_embs.", "text_encoders.umt5base.transformer.", "vae.dcae."),
    strangers=(SPIECE,),
)
