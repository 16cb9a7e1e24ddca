"""The lyrics embedder: the part of v1's transformer that can be trained in full beside the LoRA."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..protocol import FullModules, FullTraining

if TYPE_CHECKING:
    from ...config.run import RunConfig


def _settings(config: RunConfig) -> FullTraining | None:
    if not config.lyrics_embedder_train:
        return None
    return FullTraining(
        config.lyrics_embedder_lr, config.lyrics_embedder_optimizer, config.lyrics_embedder_lr_scheduler
    )


LYRICS_EMBEDDER = FullModules(
    prefixes=("lyric_embs.", "lyric_encoder.", "lyric_proj."),
    name="lyrics_embedder",
    title="lyrics embedder",
    settings=_settings,
    unloadable={"comfyui": ("pos_bias_u", "pos_bias_v")},  # its key table has no place for them
)
