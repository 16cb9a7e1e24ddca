"""ACE-Step v1 (3.5B): what the program asks of a model family, answered for this one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..protocol import Apart, Component, Family, FurtherLoss, LoRANames, Objective, StepMemory, Texts, Variant
from ..songs import Known, Padding
from .latents import LATENTS

if TYPE_CHECKING:
    import mlx.core as mx
    import mlx.nn as nn
    import numpy as np

    from ...config.request import Request
    from ...config.run import RunConfig
    from ..known import Examples
    from ..layout import Layout
    from ..protocol import Codec, Conditioned, Folder, LyricsQuestion, Models, Prepare, SongSettings
    from ..songs import Arrays, CachedSong, Lyrics, Shape, Sketch, SongEncoders


class ACEStepV1:
    """See `families.protocol.Family`. Its networks are imported when they are asked for."""

    name = "v1"
    title = "ACE-Step v1"
    variants: Mapping[str, Variant] = {
        "base": Variant(
            "ACE-Step/ACE-Step-v1-3.5B", 7.7, "82cd0d7b6322bd28cd4e830fe675ddb6180ce36c", size="3.5B",
            others=1.2,
        )
    }  # fmt: skip
    unused: Mapping[str, str] = {
        "ace_step_timestep_draws": "only ACE-Step 1.5 is trained so; ACE-Step v1 draws a timestep once"
    }
    refused: Mapping[str, str] = {}
    metadata: Mapping[str, Sequence[str]] = {}
    latents = LATENTS

    padding = Padding(text=32, lyrics=64)
    instrumental = "[inst]"
    key_mark: Mapping[str, Any] = {}

    def flavours(self, config: Any) -> tuple[str, ...]:
        """There is one."""
        return tuple(self.variants)

    @cached_property
    def components(self) -> Mapping[str, Component]:
        """Transformer, text encoder, and the two halves of the codec."""
        from .dcae import AutoencoderDC, DCAEConfig
        from .dit import ACEStepTransformer, TransformerConfig
        from .keymap import KEYMAPS
        from .umt5 import UMT5Config, UMT5Encoder
        from .vocoder import Vocoder, VocoderConfig

        return {
            "transformer": Component(
                TransformerConfig,
                ACEStepTransformer,
                KEYMAPS["transformer"],
                quantized=True,
                full_precision=(
                    "timestep_embedder", "t_block", "proj_in", "final_layer",
                    "speaker_embedder", "genre_embedder", "lyric_proj",
                ),
            ),
            "text_encoder": Component(UMT5Config, UMT5Encoder, KEYMAPS["text_encoder"], quantized=True),
            "dcae": Component(DCAEConfig, AutoencoderDC, KEYMAPS["dcae"]),
            "vocoder": Component(VocoderConfig, Vocoder, KEYMAPS["vocoder"]),
        }  # fmt: skip

    @cached_property
    def lora(self) -> LoRANames:
        """SimpleTuner's presets, and every loader's spelling."""
        from .lora import LORA

        return LORA

    @cached_property
    def memory(self) -> StepMemory:
        """Fitted to measured peaks."""
        from . import memory

        return memory.StepMemory(self.latents.frame_rate)

    def read_lyrics(self, text: str, language: str | None) -> Lyrics:
        """See `lyrics`."""
        from .lyrics import read_lyrics

        return read_lyrics(text, language)

    def read_metadata(self, given: Mapping[str, Any]) -> Known:
        """Nothing: tempo and key are words of the caption."""
        return Known({}, [])

    def draft_caption(self, known: Sketch) -> str:
        """See `sketch.caption`."""
        from .sketch import caption

        return caption(known)

    @property
    def encoders(self) -> SongEncoders:
        """Autoencoder, text encoder, lyric tokenizer."""
        from .songs import SONG_ENCODERS

        return SONG_ENCODERS

    def released(self, component: str) -> Any:
        """As upstream wrote it."""
        from .geometry import TRUE

        return self.components[component].config.from_dict(getattr(TRUE, component))

    def crop(self, arrays: Arrays, start: int, frames: int) -> Arrays:
        """See `songs.crop`."""
        from .songs import crop

        return crop(arrays, start, frames)

    @cached_property
    def further(self) -> FurtherLoss:
        """The self-supervised loss."""
        from .ssl.further import SelfSupervised

        return SelfSupervised()

    def collate(self, songs: Sequence[CachedSong], shape: Shape) -> Arrays:
        """See `songs.collate`."""
        from .songs import collate

        return collate(songs, shape)

    @property
    def apart(self) -> Sequence[Apart]:
        """The projectors of the self-supervised losses."""
        from .ssl.projectors import APART

        return (APART,)

    @cached_property
    def layouts(self) -> Sequence[Layout]:
        """Upstream's folders, and ComfyUI's file."""
        from .layouts import ALL_IN_ONE, FOLDERS

        return FOLDERS, ALL_IN_ONE

    @cached_property
    def texts(self) -> Texts:
        """The text encoder's tokenizer, and the lyric vocabulary."""
        from .texts import V1Texts

        return V1Texts()

    def objective(self, config: RunConfig) -> Objective:
        """Flow matching on a shifted, logit-normal schedule."""
        from .objective import FlowMatching

        return FlowMatching(config.logit_mean, config.logit_std, config.flow_schedule_shift)

    def codec(self, load: Callable[[str], Any]) -> Codec:
        """Autoencoder and vocoder."""
        from .codec import Codec

        return Codec(load("dcae"), load("vocoder"))

    def song_settings(self, folder: Folder | None) -> SongSettings:
        """`Request`'s own, of which a few are other models'."""
        from .conditions import SETTINGS

        return SETTINGS

    def source(self, request: Request, encoded: Any, models: Models) -> mx.array:
        """As the codec gave it."""
        latents: mx.array = encoded
        return latents

    def finish(self, sound: np.ndarray) -> np.ndarray:
        """As the codec gave it."""
        return sound

    def surface(self, models: Models) -> Any:
        """Nothing more."""
        from ..requests import Plain

        return Plain()

    def conditions(self, request: Request, models: Models) -> Any:
        """See `conditions.read`."""
        from .conditions import read

        return read(request, models)

    def conditioned(self, transformer: nn.Module, conditions: Any, request: Request) -> Conditioned:
        """See `conditions.Conditioned`."""
        from .conditions import Conditioned

        return Conditioned(transformer, conditions, request)

    def remarks(self, request: Request, models: Models) -> list[str]:
        """Prompts that are cut, and what became of the lyrics."""
        from .conditions import remarks

        return remarks(request, models)

    def lyrics_report(self, asked: LyricsQuestion) -> list[str]:
        """With the vocabulary that is given, the model's, or wherever `convert` would find it."""
        from .lyrics.report import with_vocabulary

        return with_vocabulary(asked)

    def write_miniature(self, folder: Path, seed: int = 0) -> None:
        """See `miniature`."""
        from .miniature import write_checkpoint

        write_checkpoint(folder, seed=seed)

    def examples(self) -> Examples:
        """See `examples`."""
        from .examples import examples

        return examples()

    def prepare(self, model: nn.Module) -> Prepare | None:
        """Encoded lyrics, where nothing that encodes them is trained."""
        from .lyric_states import LyricStates

        return LyricStates.of(model)


FAMILY: Family = ACEStepV1()
