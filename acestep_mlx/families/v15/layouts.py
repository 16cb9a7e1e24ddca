"""How checkpoints of ACE-Step 1.5 are laid out: the original's, a folder a variant, and diffusers'."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from ...io.schema import read_file
from ..layout import ComponentSource, Layout, Parts, Place
from .config import TAKEN, split_original
from .silence import SILENCE, read_silence

TOKENIZER = "tokenizer.json"
TEXT_ENCODER = "Qwen3-Embedding-0.6B"
FLAVOURS = ("base", "sft", "turbo", "xl-base", "xl-sft", "xl-turbo")

DIFFUSERS = Layout(
    "ACE-Step 1.5 in diffusers' layout",
    {name: Place(name) for name in (*TAKEN, "vae", "text_encoder")},
    beside=(f"tokenizer/{TOKENIZER}",),
)


class _Original(Layout):
    """One config.json for all that shares a folder, and the silence latent in a file of its own."""

    def config(self, name: str, found: dict[str, Any], parts: Parts, root: Path) -> dict[str, Any]:
        """The component's part, as diffusers would write it."""
        return split_original(found)[name] if name in TAKEN else found

    def component(self, root: Path, name: str) -> ComponentSource:
        """With the silence latent."""
        found = super().component(root, name)
        if name != "condition_encoder":
            return found
        return replace(found, tensors={**found.tensors, **read_silence(found.where / SILENCE)})


class _Variant(_Original):
    """The folder of one variant; autoencoder and text encoder are in it or beside it."""

    def where(self, root: Path, folder: str) -> Path:
        """In the checkpoint, else `elsewhere`, which is the folder that it is in unless it is given."""
        inside, beside = root / folder, (self.elsewhere or root.absolute().parent) / folder
        return beside if folder and beside.is_dir() and not inside.is_dir() else inside

    def missing(self, root: Path) -> list[str]:
        """Known by a file or a config.json that no other checkpoint has; without both, all is missing."""
        config = root / "config.json"
        files = [path.name for path in (config, root / SILENCE) if not path.is_file()]
        known = SILENCE not in files or (not files[:-1] and b'"fsq_dim"' in read_file(config))
        return [*files, *(super().missing(root) if known else self.folders)]

    @property
    def patterns(self) -> list[str]:
        """Of a repository that is such a folder; a `*` alone would fetch what is below it too."""
        own = ("config.json", "model.safetensors", "model-*-of-*.safetensors", "*.index.json", SILENCE)
        return [*own, *(one for one in super().patterns if "/" in one)]


def _original(kind: type[_Original], title: str, folder: str) -> Layout:
    encoder = (("encoder.", ""), ("null_condition_emb", "null_condition_emb"))
    return kind(
        title,
        {
            "transformer": Place(folder, (("decoder.", ""),)),
            "condition_encoder": Place(folder, encoder),
            "audio_tokenizer": Place(folder, (("tokenizer.", ""),)),
            "audio_token_detokenizer": Place(folder, (("detokenizer.", ""),)),
            "vae": Place("vae"),
            "text_encoder": Place(TEXT_ENCODER),
        },
        beside=(f"{TEXT_ENCODER}/{TOKENIZER}", *([f"{folder}/{SILENCE}"] if folder else [])),
    )


#: flavour → the layout in which its folder is one of several
ORIGINAL = {
    flavour: _original(_Original, f"acestep-v15-{flavour} of ACE-Step 1.5", f"acestep-v15-{flavour}")
    for flavour in FLAVOURS
}
#: the folder of one variant by itself, whatever it is called
VARIANT = _original(_Variant, "one variant of ACE-Step 1.5", "")


def tokenizer_in(root: Path, layout: Layout) -> Path:
    """Where the checkpoint has its tokenizer."""
    if layout.places == DIFFUSERS.places:
        return root / "tokenizer" / TOKENIZER
    return layout.where(root, TEXT_ENCODER) / TOKENIZER
