"""ACE-Step 1.5: its networks in MLX, their configs, where their weights come from, and how it is trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from ..protocol import Component, LoRANames, Objective, StepMemory
from ..songs import Padding
from .latents import LATENTS

if TYPE_CHECKING:
    import mlx.nn as nn

    from ...config.run import RunConfig
    from ..layout import Layout
    from ..protocol import Folder, Prepare
    from ..songs import Arrays, CachedSong, Lyrics, Shape, SongEncoders


class ACEStep15:
    """What is answered so far of `families.protocol.Family`; not in the registry before all of it is."""

    name = "v15"
    title = "ACE-Step 1.5"
    latents = LATENTS

    padding = Padding(text=32, lyrics=64)
    instrumental = "[Instrumental]"
    key_mark: Mapping[str, Any] = {"family": "v15"}

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

    @cached_property
    def lora(self) -> LoRANames:
        """Attentions, with or without the MLP, and every loader's spelling."""
        from .lora import LORA

        return LORA

    @cached_property
    def memory(self) -> StepMemory:
        """Counted, not fitted."""
        from . import memory

        return memory.StepMemory(self.latents.frame_rate)

    def read_lyrics(self, text: str, language: str | None) -> Lyrics:
        """As they are written."""
        from .songs import read_lyrics

        return read_lyrics(text)

    def encoders(self, folder: Folder) -> SongEncoders:
        """Autoencoder, and text and condition encoder."""
        from .songs import encoders

        return encoders(folder)

    def collate(self, songs: Sequence[CachedSong], shape: Shape) -> Arrays:
        """See `songs.collate`."""
        from .songs import collate

        return collate(songs, shape)

    def objective(self, config: RunConfig) -> Objective:
        """Flow matching at the model's own times, unless the configuration moves them."""
        from .objective import FlowMatching

        def given(name: str) -> float | None:
            return None if config.origin(name) == "default" else getattr(config, name)

        return FlowMatching(given("logit_mean"), given("logit_std"), config.ace_step_timestep_draws)

    def prepare(self, model: nn.Module) -> Prepare | None:
        """The model's own distribution of times."""
        from .objective import time_density

        return time_density(model)
