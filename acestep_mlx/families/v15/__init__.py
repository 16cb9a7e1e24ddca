"""ACE-Step 1.5: its components in MLX, their configs, and where their weights come from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from ..protocol import Component

if TYPE_CHECKING:
    from ..layout import Layout


class ACEStep15:
    """What is answered so far of `families.protocol.Family`; not in the registry before all of it is."""

    name = "v15"
    title = "ACE-Step 1.5"

    @cached_property
    def components(self) -> Mapping[str, Component]:
        """Transformer, condition encoder, semantic tokens both ways, and the autoencoder."""
        from .conditions import ConditionConfig, ConditionEncoder
        from .dit import ACEStep15Transformer, TransformerConfig
        from .fsq import AudioDetokenizer, AudioTokenizer, DetokenizerConfig, TokenizerConfig
        from .keymap import KEYMAPS
        from .oobleck import Oobleck, OobleckConfig

        parts = {
            "transformer": (TransformerConfig, ACEStep15Transformer),
            "condition_encoder": (ConditionConfig, ConditionEncoder),
            "audio_tokenizer": (TokenizerConfig, AudioTokenizer),
            "audio_token_detokenizer": (DetokenizerConfig, AudioDetokenizer),
            "vae": (OobleckConfig, Oobleck),
        }
        return {name: Component(*part, KEYMAPS[name]) for name, part in parts.items()}

    @cached_property
    def layouts(self) -> Sequence[Layout]:
        """diffusers' folders, and the original's."""
        from .layouts import DIFFUSERS, ORIGINAL

        return DIFFUSERS, *ORIGINAL.values()
