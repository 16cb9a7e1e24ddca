"""The configs of upstream checkpoints: the miniature's and the released model's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

Config = dict[str, Any]


@dataclass(frozen=True)
class Geometry:
    """The four configs of a checkpoint, as upstream writes them, and what its transformer does not write."""

    transformer: Config
    text_encoder: Config
    dcae: Config
    vocoder: Config
    lyric_layers: int
    lyric_heads: int
    lyric_ff: int


_BLOCKS = ["ResBlock", "ResBlock", "ResBlock", "EfficientViTBlock"]

TRUE = Geometry(
    transformer={
        "_class_name": "Transformer2DModel",
        "_diffusers_version": "0.32.2",
        "in_channels": 8,
        "out_channels": 8,
        "num_layers": 24,
        "inner_dim": 2560,
        "attention_head_dim": 128,
        "num_attention_heads": 20,
        "mlp_ratio": 2.5,
        "max_position": 32768,
        "rope_theta": 1000000.0,
        "speaker_embedding_dim": 512,
        "text_embedding_dim": 768,
        "ssl_encoder_depths": [8, 8],
        "ssl_names": ["mert", "m-hubert"],
        "ssl_latent_dims": [1024, 768],
        "lyric_encoder_vocab_size": 6693,
        "lyric_hidden_size": 1024,
        "patch_size": [16, 1],
        "max_height": 16,
        "max_width": 32768,
    },
    text_encoder={
        "architectures": ["UMT5EncoderModel"],
        "model_type": "umt5",
        "vocab_size": 256384,
        "d_model": 768,
        "d_kv": 64,
        "d_ff": 2048,
        "num_layers": 12,
        "num_decoder_layers": 12,
        "num_heads": 12,
        "relative_attention_num_buckets": 32,
        "relative_attention_max_distance": 128,
        "dropout_rate": 0.1,
        "classifier_dropout": 0.0,
        "layer_norm_epsilon": 1e-06,
        "initializer_factor": 1.0,
        "feed_forward_proj": "gated-gelu",
        "dense_act_fn": "gelu_new",
        "is_gated_act": True,
        "is_encoder_decoder": True,
        "output_past": True,
        "use_cache": True,
        "tie_word_embeddings": False,
        "tokenizer_class": "T5Tokenizer",
        "pad_token_id": 0,
        "eos_token_id": 1,
        "decoder_start_token_id": 0,
        "scalable_attention": True,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.47.1",
    },
    dcae={
        "_class_name": "AutoencoderDC",
        "_diffusers_version": "0.32.1",
        "in_channels": 2,
        "latent_channels": 8,
        "attention_head_dim": 32,
        "encoder_block_types": _BLOCKS,
        "decoder_block_types": _BLOCKS,
        "encoder_block_out_channels": [128, 256, 512, 1024],
        "decoder_block_out_channels": [128, 256, 512, 1024],
        "encoder_layers_per_block": [2, 2, 3, 3],
        "decoder_layers_per_block": [3, 3, 3, 3],
        "encoder_qkv_multiscales": [[], [], [], [5]],
        "decoder_qkv_multiscales": [[], [], [], [5]],
        "downsample_block_type": "Conv",
        "upsample_block_type": "interpolate",
        "decoder_norm_types": "rms_norm",
        "decoder_act_fns": "silu",
        "scaling_factor": 0.41407,
    },
    vocoder={
        "_class_name": "ADaMoSHiFiGANV1",
        "_diffusers_version": "0.32.1",
        "input_channels": 128,
        "depths": [3, 3, 9, 3],
        "dims": [128, 256, 384, 512],
        "drop_path_rate": 0.0,
        "kernel_sizes": [7],
        "upsample_rates": [4, 4, 2, 2, 2, 2, 2],
        "upsample_kernel_sizes": [8, 8, 4, 4, 4, 4, 4],
        "resblock_kernel_sizes": [3, 7, 11, 13],
        "resblock_dilation_sizes": [[1, 3, 5]] * 4,
        "num_mels": 512,
        "upsample_initial_channel": 1024,
        "use_template": False,
        "pre_conv_kernel_size": 13,
        "post_conv_kernel_size": 13,
        "sampling_rate": 44100,
        "n_fft": 2048,
        "win_length": 2048,
        "hop_length": 512,
        "f_min": 40,
        "f_max": 16000,
        "n_mels": 128,
    },
    lyric_layers=6,
    lyric_heads=16,
    lyric_ff=4096,
)
# Small enough for a test, and true where other code depends on it: 8×16 latents, 44.1 kHz, hop 512, /8.
TINY = Geometry(
    TRUE.transformer
    | {"num_layers": 2, "inner_dim": 128, "attention_head_dim": 32, "num_attention_heads": 4}
    | {"speaker_embedding_dim": 64, "text_embedding_dim": 64, "lyric_hidden_size": 64}
    | {"ssl_encoder_depths": [1, 1], "ssl_latent_dims": [24, 16]},
    TRUE.text_encoder
    | {"vocab_size": 384, "d_model": 64, "d_kv": 16, "d_ff": 128}
    | {"num_layers": 2, "num_decoder_layers": 2, "num_heads": 4},
    TRUE.dcae
    | {"attention_head_dim": 16}
    | {f"{side}_block_out_channels": [8, 16, 32, 64] for side in ("encoder", "decoder")}
    | {f"{side}_layers_per_block": [1, 1, 1, 1] for side in ("encoder", "decoder")},
    TRUE.vocoder
    | {"depths": [1, 1], "dims": [32, 64], "num_mels": 64, "upsample_initial_channel": 16}
    | {"upsample_rates": [8, 8, 8], "upsample_kernel_sizes": [16, 16, 16]}
    | {"resblock_kernel_sizes": [3, 5], "resblock_dilation_sizes": [[1, 3, 5]] * 2},
    lyric_layers=2,
    lyric_heads=4,
    lyric_ff=128,
)

SIZES = {"tiny": TINY, "true": TRUE}
