"""The networks of ACE-Step 1.5: config, module and key map of each."""

from __future__ import annotations

from collections.abc import Mapping

from ..protocol import Component
from .conditions import ConditionConfig, ConditionEncoder
from .dit import ACEStep15Transformer, TransformerConfig
from .fsq import AudioDetokenizer, AudioTokenizer, DetokenizerConfig, TokenizerConfig
from .keymap import KEYMAPS
from .oobleck import Oobleck, OobleckConfig
from .qwen3 import Qwen3Config, Qwen3Encoder

#: which may be quantised, but for small layers that everything after them depends on
QUANTIZED: dict[str, tuple[str, ...]] = {
    "transformer": ("time_embed", "time_embed_r", "condition_embedder"),
    "condition_encoder": ("text_projector", "lyric_encoder.embed_tokens", "timbre_encoder.embed_tokens"),
    "text_encoder": (),
}
COMPONENTS: Mapping[str, Component] = {
    name: Component(config, module, KEYMAPS[name], name in QUANTIZED, QUANTIZED.get(name, ()))
    for name, config, module in (
        ("transformer", TransformerConfig, ACEStep15Transformer),
        ("condition_encoder", ConditionConfig, ConditionEncoder),
        ("audio_tokenizer", TokenizerConfig, AudioTokenizer),
        ("audio_token_detokenizer", DetokenizerConfig, AudioDetokenizer),
        ("vae", OobleckConfig, Oobleck),
        ("text_encoder", Qwen3Config, Qwen3Encoder),
    )
}
