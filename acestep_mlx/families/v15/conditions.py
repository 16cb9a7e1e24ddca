"""Conditions of ACE-Step 1.5: prompt, lyrics and a reference for the timbre become one sequence.

Text states are projected, lyric embeddings and reference latents go through encoders of their own, and the
rows that count are packed together: lyrics, timbre, text. Source: `AceStepConditionEncoder` of diffusers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from .config import EncoderConfig, alternating
from .layers import EncoderStack

SILENCE_FRAMES = 15000  # of the silence latent that the released checkpoints have: ten minutes


@dataclass(frozen=True)
class ConditionConfig(EncoderConfig):
    """Sizes; the defaults are the released models'. `timbre_fix_frame`: frames of a reference, 30 s."""

    text_hidden_dim: int = 1024
    timbre_hidden_dim: int = 64
    num_lyric_encoder_hidden_layers: int = 8
    num_timbre_encoder_hidden_layers: int = 4
    timbre_fix_frame: int = 750

    NAME: ClassVar = "condition encoder"
    REPEATED: ClassVar = ("num_lyric_encoder_hidden_layers", "num_timbre_encoder_hidden_layers")


class LyricEncoder(EncoderStack):
    """Embedded lyric tokens → states."""

    def __init__(self, config: ConditionConfig) -> None:
        super().__init__(config, config.text_hidden_dim, alternating(config.num_lyric_encoder_hidden_layers))

    def __call__(self, embedded: mx.array, mask: mx.array) -> mx.array:
        """embedded (B, N, E), mask (B, N) of the tokens → (B, N, D); rows outside the mask are finite."""
        return self.run(self.embed_tokens(embedded), mask > 0)


class TimbreEncoder(EncoderStack):
    """Latents of reference audio → one vector each: the state of the first frame."""

    def __init__(self, config: ConditionConfig) -> None:
        layers = alternating(config.num_timbre_encoder_hidden_layers)
        super().__init__(config, config.timbre_hidden_dim, layers)

    def __call__(self, references: mx.array) -> mx.array:
        """references (R, F, C) → (R, D)."""
        return self.run(self.embed_tokens(references))[:, 0]


def pack(*parts: tuple[mx.array, mx.array]) -> tuple[mx.array, mx.array]:
    """(states (B, Li, D), mask (B, Li)) one after the other, the rows that count first and in their order.

    Gives states (B, ΣLi, D) and mask (B, ΣLi) bool.
    """
    states = mx.concatenate([part for part, _ in parts], axis=1)
    valid = mx.concatenate([mask > 0 for _, mask in parts], axis=1)
    L = valid.shape[1]
    at = mx.arange(L)
    order = mx.argsort(mx.where(valid, at, at + L), axis=1)  # all different, so that the order is certain
    packed = mx.take_along_axis(states, order[..., None], axis=1)
    return packed, at < valid.sum(axis=1, keepdims=True)


def by_song(order: mx.array, songs: int) -> tuple[mx.array, mx.array]:
    """Which reference is whose: rows (songs, K) of the references and mask (songs, K) bool.

    order (R,): the song of each reference, 0 to songs − 1; K is the most that one song has.
    """
    owners = np.array(order).astype(np.int64)
    if owners.size == 0 or owners.min() < 0 or owners.max() >= songs:
        raise ValueError(f"references must name songs 0 to {songs - 1}, got {owners.tolist()}")
    rows = [np.flatnonzero(owners == song) for song in range(songs)]
    K = max(len(own) for own in rows)
    index = np.stack([np.pad(own, (0, K - len(own))) for own in rows])
    return mx.array(index), mx.array(np.arange(K) < np.array([len(own) for own in rows])[:, None])


def tiled(latents: mx.array, frames: int) -> mx.array:
    """The first of `latents` (1, T, C); beyond their end they begin again."""
    return mx.tile(latents, (1, -(-frames // latents.shape[1]), 1))[:, :frames]


class ConditionEncoder(nn.Module):
    """Text states, lyric embeddings and reference latents → what the transformer attends to.

    `null_condition_emb` (1, 1, D) stands for a condition that is left out. `silence_latent`
    (1, 15000, C) are latents of silence: a song's source where there is none, and the reference of a song
    without one (zeros are far from what the encoder has seen).
    """

    def __init__(self, config: ConditionConfig) -> None:
        super().__init__()
        self.config = config
        self.text_projector = nn.Linear(config.text_hidden_dim, config.hidden_size, bias=False)
        self.lyric_encoder = LyricEncoder(config)
        self.timbre_encoder = TimbreEncoder(config)
        self.null_condition_emb = mx.zeros((1, 1, config.hidden_size))
        self.silence_latent = mx.zeros((1, SILENCE_FRAMES, config.timbre_hidden_dim))

    def __call__(
        self,
        text_hidden_states: mx.array,
        text_attention_mask: mx.array,
        lyric_hidden_states: mx.array,
        lyric_attention_mask: mx.array,
        refer_audio_acoustic_hidden_states_packed: mx.array,
        refer_audio_order_mask: mx.array,
    ) -> tuple[mx.array, mx.array]:
        """Text (B, N, E), lyrics (B, L, E), their masks, references (R, F, C) and the song of each (R,).

        Gives states (B, L + K + N, D) and mask (B, L + K + N) bool, K the most references of one song.
        """
        dtype = self.null_condition_emb.dtype
        text = self.text_projector(text_hidden_states.astype(dtype))
        lyrics = self.lyric_encoder(lyric_hidden_states.astype(dtype), lyric_attention_mask)
        timbre = self.timbre_encoder(refer_audio_acoustic_hidden_states_packed.astype(dtype))  # [R, D]
        rows, present = by_song(refer_audio_order_mask, text.shape[0])
        return pack((lyrics, lyric_attention_mask), (timbre[rows], present), (text, text_attention_mask))

    def null(self, states: mx.array) -> mx.array:
        """The condition that is left out, in the place of `states` (B, S, D): every row the same."""
        return mx.broadcast_to(self.null_condition_emb.astype(states.dtype), states.shape)

    def silence(self, frames: int) -> mx.array:
        """Latents of silence, (1, frames, C); beyond their end they begin again."""
        return tiled(self.silence_latent, frames)

    def silent_reference(self) -> mx.array:
        """(1, 750, C): the reference of a song that has none."""
        return self.silence_latent[:, : self.config.timbre_fix_frame]
