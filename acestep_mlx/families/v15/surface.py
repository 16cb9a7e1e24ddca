"""What the pipeline of ACE-Step 1.5 has beside what all have: its parts by diffusers' names."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import mlx.core as mx

from ..protocol import Models
from .conditions import ConditionEncoder
from .fsq import AudioDetokenizer
from .prompt import format_prompt
from .schedule import sigmas

#: arguments of diffusers' AceStepPipeline → settings of `config.request.Request`
ARGUMENTS = {
    "num_inference_steps": "steps", "audio_duration": "duration", "task_type": "task",
    "repainting_start": "repaint_start", "repainting_end": "repaint_end",
    "audio_cover_strength": "cover_strength",
}  # fmt: skip


class Surface:
    """See `families.protocol.Family.surface`."""

    format_prompt = staticmethod(format_prompt)

    def __init__(self, models: Models) -> None:
        self._models = models

    def tokenize(self, texts: Sequence[str], max_length: int) -> tuple[mx.array, mx.array]:
        """Ids and mask (B, N) int32 of texts, padded on the right to the longest, cut to `max_length`."""
        ids, mask = self._models.prompt_tokenizer(texts, max_length)
        return ids, mask

    @property
    def condition_encoder(self) -> ConditionEncoder:
        """Text, lyrics and references → what the transformer attends to."""
        found: ConditionEncoder = self._models.component("condition_encoder")
        return found

    @property
    def audio_tokenizer(self) -> Callable[[mx.array], tuple[mx.array, mx.array]]:
        """Latents (B, T, C) → what their tokens stand for (B, ⌈T/5⌉, D), and numbers (B, ⌈T/5⌉, 1)."""
        silence = self.condition_encoder.silence_latent
        return partial(self._models.component("audio_tokenizer"), silence=silence)

    @property
    def audio_token_detokenizer(self) -> AudioDetokenizer:
        """(B, N, D) → latents (B, 5·N, C)."""
        found: AudioDetokenizer = self._models.component("audio_token_detokenizer")
        return found

    def schedule(self, steps: int, shift: float = 3.0) -> mx.array:
        """Noise levels (steps + 1,) float32, from 1 to 0."""
        return mx.array(sigmas(steps, shift))

    def arguments(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Arguments of `generate` as `Request` calls them; None is unset, also an end or a length of 0."""

        def unset(name: str, value: Any) -> bool:
            return value is None or (
                name in ("repainting_end", "audio_duration")
                and isinstance(value, (int, float))
                and value <= 0
            )

        return {ARGUMENTS.get(name, name): value for name, value in values.items() if not unset(name, value)}
