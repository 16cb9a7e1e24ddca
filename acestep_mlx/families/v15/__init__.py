"""ACE-Step 1.5: its networks in MLX, their configs, where their weights come from, and how it is trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from ..protocol import Component, LoRANames, Objective, StepMemory, Texts, Variant
from ..songs import Known, Padding
from .latents import LATENTS

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import mlx.core as mx
    import mlx.nn as nn
    import numpy as np

    from ...config.request import Request
    from ...config.run import RunConfig
    from ..known import Examples
    from ..layout import Layout
    from ..protocol import (
        Apart,
        Codec,
        Conditioned,
        Folder,
        FurtherLoss,
        LyricsQuestion,
        Models,
        Prepare,
        SongSettings,
    )
    from ..songs import Arrays, CachedSong, Lyrics, Shape, Sketch, SongEncoders

TURBO = "ACE-Step/Ace-Step1.5"  # with the autoencoder and the text encoder of all variants
SHARED: Mapping[str, Any] = {"beside": TURBO, "beside_gigabytes": 1.5, "others": 3.2}
#: sizes of the XL transformer
XL = {
    "hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 32, "num_attention_heads": 32,
    "encoder_hidden_size": 2048,
}  # fmt: skip
_NO_SSL = "ACE-Step 1.5 has no projectors for a self-supervised loss"
_FROZEN = "ACE-Step 1.5 encodes lyrics with a frozen encoder, and nothing of it is trained"


def _advice(base: str) -> str:
    return (
        f"turbo models are distilled to few steps, which training one undoes in part; train on "
        f"model_flavour={base}, and hear the LoRA through this one with validation_model"
    )


class ACEStep15:
    """What is answered so far of `families.protocol.Family`; not in the registry before all of it is."""

    name = "v15"
    title = "ACE-Step 1.5"
    latents = LATENTS
    apart: Sequence[Apart] = ()
    further: FurtherLoss | None = None

    padding = Padding(text=32, lyrics=64)
    instrumental = "[Instrumental]"
    key_mark: Mapping[str, Any] = {"family": "v15"}

    # Not verifiable offline: names and sizes are taken from descriptions, no repository was opened. All but
    # the first are one variant's folder, without autoencoder and text encoder.
    variants: Mapping[str, Variant] = {
        "v15-base": Variant("ACE-Step/acestep-v15-base", 4.8, size="2B base", **SHARED),
        "v15-sft": Variant("ACE-Step/acestep-v15-sft", 4.8, size="2B sft", **SHARED),
        "v15-turbo": Variant(TURBO, 6.3, size="2B turbo", advice=_advice("v15-base"), others=3.2),
        "v15-xl-base": Variant(
            "ACE-Step/acestep-v15-xl-base", 10.0, size="4B base", transformer=XL, **SHARED
        ),
        "v15-xl-sft": Variant("ACE-Step/acestep-v15-xl-sft", 10.0, size="4B sft", transformer=XL, **SHARED),
        "v15-xl-turbo": Variant(
            "ACE-Step/acestep-v15-xl-turbo", 10.0, size="4B turbo", transformer=XL,
            advice=_advice("v15-xl-base"), **SHARED,
        ),
    }  # fmt: skip
    unused: Mapping[str, str] = {
        "flow_schedule_shift": "ACE-Step 1.5 draws its timesteps without a shift",
        "validation_negative_prompt": "ACE-Step 1.5 is guided away from a learned null",
        **dict.fromkeys(
            ("lyrics_embedder_lr", "lyrics_embedder_optimizer", "lyrics_embedder_lr_scheduler"), _FROZEN
        ),
        **dict.fromkeys(("ace_step_ssl_encoders", "ace_step_ssl_mert", "ace_step_ssl_mhubert"), _NO_SSL),
    }
    refused: Mapping[str, str] = {
        "lyrics_embedder_train": f"{_FROZEN}; set it to false",
        "ace_step_ssl_loss_weight": f"{_NO_SSL}; set it to 0",
    }

    def flavours(self, config: Any) -> tuple[str, ...]:
        """As its config says; base and sft where it does not say which."""
        from .config import kinds

        return tuple(f"v15-{kind}" for kind in kinds(config))

    @cached_property
    def components(self) -> Mapping[str, Component]:
        """Transformer, condition encoder, semantic tokens both ways, autoencoder and text encoder."""
        from .components import COMPONENTS

        return COMPONENTS

    @cached_property
    def layouts(self) -> Sequence[Layout]:
        """diffusers' folders, the original's with several variants, and one variant's."""
        from .layouts import DIFFUSERS, ORIGINAL, VARIANT

        return DIFFUSERS, *ORIGINAL.values(), VARIANT

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

    @cached_property
    def metadata(self) -> Mapping[str, Sequence[str]]:
        """Tempo, key, metre and language."""
        from .song_facts import NAMES

        return NAMES

    def read_metadata(self, given: Mapping[str, Any]) -> Known:
        """See `song_facts.read`."""
        from .song_facts import read

        return read(given)

    def draft_caption(self, known: Sketch) -> str:
        """See `sketch.caption`."""
        from .sketch import caption

        return caption(known)

    @property
    def encoders(self) -> SongEncoders:
        """Autoencoder, and text and condition encoder."""
        from .songs import SONG_ENCODERS

        return SONG_ENCODERS

    def released(self, component: str) -> Any:
        """The classes are those of the 2B models."""
        return self.components[component].config()

    def crop(self, arrays: Arrays, start: int, frames: int) -> Arrays:
        """See `songs.crop`."""
        from .songs import crop

        return crop(arrays, start, frames)

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

    def examples(self) -> Examples:
        """See `examples`."""
        from .examples import examples

        return examples()

    def prepare(self, model: nn.Module) -> Prepare | None:
        """The model's own distribution of times."""
        from .objective import time_density

        return time_density(model)

    @cached_property
    def texts(self) -> Texts:
        """The tokenizer of prompts and lyrics."""
        from .texts import V15Texts

        return V15Texts()

    def codec(self, load: Callable[[str], Any]) -> Codec:
        """The autoencoder."""
        from .codec import Codec

        return Codec(load("vae"))

    def song_settings(self, folder: Folder | None) -> SongSettings:
        """See `generation.settings`."""
        from .generation import settings

        return settings(folder)

    def source(self, request: Request, encoded: Any, models: Models) -> mx.array:
        """See `generation.source`."""
        from .generation import source

        return source(request, encoded, models)

    def finish(self, sound: np.ndarray) -> np.ndarray:
        """As loud as the reference makes it."""
        from .codec import finish

        return finish(sound)

    def surface(self, models: Models) -> Any:
        """See `surface`."""
        from .surface import Surface

        return Surface(models)

    def conditions(self, request: Request, models: Models) -> Any:
        """See `generation.read`."""
        from .generation import read

        return read(request, models)

    def conditioned(self, transformer: nn.Module, conditions: Any, request: Request) -> Conditioned:
        """See `generation.Conditioned`."""
        from .generation import Conditioned

        return Conditioned(transformer, conditions, request)

    def remarks(self, request: Request, models: Models) -> list[str]:
        """Texts that are cut, and the language that the lyrics were taken for."""
        from .generation import remarks

        return remarks(request, models)

    def lyrics_report(self, asked: LyricsQuestion) -> list[str]:
        """How many tokens, counted with the model's tokenizer; they are read as they are written."""
        from .generation import lyrics_report

        return lyrics_report(asked)

    def write_miniature(self, folder: Path, seed: int = 0) -> None:
        """See `miniature`; of base, which is the one to train."""
        from .miniature import write_checkpoint

        write_checkpoint(folder, seed=seed, flavour="base")


FAMILY = ACEStep15()
