"""Configs of models of milliseconds, with the released models' ratios where others depend on them."""

from __future__ import annotations

from typing import Any, TypeVar

from acestep_mlx.families.v1.dcae import DCAEConfig
from acestep_mlx.families.v1.dit import TransformerConfig
from acestep_mlx.families.v1.umt5 import UMT5Config
from acestep_mlx.families.v1.vocoder import VocoderConfig
from acestep_mlx.families.v15.conditions import ConditionConfig
from acestep_mlx.families.v15.dit import TransformerConfig as TransformerConfig15
from acestep_mlx.families.v15.fsq import DetokenizerConfig, TokenizerConfig
from acestep_mlx.families.v15.oobleck import OobleckConfig
from acestep_mlx.families.v15.qwen3 import Qwen3Config

T = TypeVar("T")

_TYPES = ("ResBlock", "ResBlock", "ResBlock", "EfficientViTBlock")
# Those of the 1.5 family fit each other.
_STACK = {
    "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1,
    "head_dim": 16, "sliding_window": 4,
}  # fmt: skip

SIZES: dict[type, dict[str, Any]] = {
    DCAEConfig: {  # eight channels of latents, 8× compression
        "in_channels": 2, "latent_channels": 8, "attention_head_dim": 8,
        "encoder_block_types": _TYPES, "decoder_block_types": _TYPES,
        "encoder_block_out_channels": (8, 8, 16, 16), "decoder_block_out_channels": (8, 8, 16, 16),
        "encoder_layers_per_block": (1, 1, 1, 1), "decoder_layers_per_block": (1, 1, 1, 1),
        "encoder_qkv_multiscales": ((), (), (), (5,)), "decoder_qkv_multiscales": ((), (), (), (5,)),
        "upsample_block_type": "interpolate", "downsample_block_type": "Conv", "decoder_conv_act_fn": "silu",
    },
    VocoderConfig: {  # a hop of 512 samples, 128 mel bins
        "depths": (1, 1), "dims": (8, 16), "num_mels": 16, "upsample_rates": (8, 8, 8),
        "upsample_kernel_sizes": (16, 16, 16), "upsample_initial_channel": 16,
        "resblock_kernel_sizes": (3, 7), "resblock_dilation_sizes": ((1, 3, 5), (1, 3, 5)),
    },
    TransformerConfig: {
        "num_layers": 2, "attention_head_dim": 16, "num_attention_heads": 4, "speaker_embedding_dim": 16,
        "text_embedding_dim": 32, "lyric_encoder_vocab_size": 6693, "lyric_hidden_size": 32,
        "lyric_encoder_layers": 2, "lyric_encoder_heads": 4, "lyric_encoder_ff": 64,
    },
    UMT5Config: {
        "vocab_size": 384, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4,
    },
    TransformerConfig15: {  # queries wider than the model, as in the XL models
        "hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 4, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 16, "sliding_window": 4, "in_channels": 24,
        "audio_acoustic_hidden_dim": 8, "encoder_hidden_size": 32,
    },
    ConditionConfig: {
        **_STACK, "text_hidden_dim": 32, "timbre_hidden_dim": 8, "num_lyric_encoder_hidden_layers": 3,
        "num_timbre_encoder_hidden_layers": 2,
    },
    DetokenizerConfig: {**_STACK, "audio_acoustic_hidden_dim": 8},
    TokenizerConfig: {**_STACK, "audio_acoustic_hidden_dim": 8, "fsq_dim": 32},
    OobleckConfig: {  # 1920 samples a frame
        "encoder_hidden_size": 16, "channel_multiples": (1, 1, 1, 2, 2), "decoder_channels": 16,
        "decoder_input_channels": 8,
    },
    Qwen3Config: {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 512,
    },
}  # fmt: skip


def tiny(config: type[T]) -> T:
    """The component's config with few thousand parameters."""
    return config(**SIZES[config])
