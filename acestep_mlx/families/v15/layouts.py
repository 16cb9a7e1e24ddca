"""How checkpoints of ACE-Step 1.5 are laid out: the original's, a folder a variant, and diffusers'."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..layout import Layout, Parts, Place
from .config import TAKEN, split_original

DIFFUSERS = Layout(
    "ACE-Step 1.5 in diffusers' layout",
    {name: Place(name) for name in (*TAKEN, "vae")},
)


class _Original(Layout):
    """One config.json for all that shares a folder."""

    def config(self, name: str, found: dict[str, Any], parts: Parts, root: Path) -> dict[str, Any]:
        """The component's part, as diffusers would write it."""
        return split_original(found)[name] if name in TAKEN else found


def _original(folder: str) -> Layout:
    encoder = (("encoder.", ""), ("null_condition_emb", "null_condition_emb"))
    return _Original(
        f"{folder} of ACE-Step 1.5",
        {
            "transformer": Place(folder, (("decoder.", ""),)),
            "condition_encoder": Place(folder, encoder),
            "audio_tokenizer": Place(folder, (("tokenizer.", ""),)),
            "audio_token_detokenizer": Place(folder, (("detokenizer.", ""),)),
            "vae": Place("vae"),
        },
    )


#: flavour → layout
ORIGINAL = {
    flavour: _original(f"acestep-v15-{flavour}")
    for flavour in ("base", "sft", "turbo", "xl-base", "xl-sft", "xl-turbo")
}
