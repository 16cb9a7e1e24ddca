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


def _transformer(
    layers: int,
    heads: int,
    head_dim: int,
    speaker: int,
    text: int,
    lyric: int,
    depths: list[int],
    ssl: list[int],
) -> Config:
    return {
        "_class_name": "Transformer2DModel",
        "_diffusers_version": "0.32.2",
        "in_channels": 8,
        "out_channels": 8,
        "num_layers": layers,
        "inner_dim": heads * head_dim,
        "attention_head_dim": head_dim,
        "num_attention_heads": heads,
        "mlp_ratio": 2.5,
        "max_position": 32768,
        "rope_theta": 1000000.0,
        "speaker_embedding_dim": speaker,
        "text_embedding_dim": text,
        "ssl_encoder_depths": depths,
        "ssl_names": ["mert", "m-hubert"],
        "ssl_latent_dims": ssl,
        "lyric_encoder_vocab_size": 6693,
        "lyric_hidden_size": lyric,
        "patch_size": [16, 1],
        "max_height": 16,
        "max_width": 32768,
    }


def _text_encoder(vocab: int, width: int, head_dim: int, ff: int, layers: int, heads: int) -> Config:
    return {
        "architectures": ["UMT5EncoderModel"],
        "model_type": "umt5",
        "vocab_size": vocab,
        "d_model": width,
        "d_kv": head_dim,
        "d_ff": ff,
        "num_layers": layers,
        "num_decoder_layers": layers,
        "num_heads": heads,
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
    }


def _dcae(channels: list[int], encoder_layers: list[int], decoder_layers: list[int], head_dim: int) -> Config:
    blocks = ["ResBlock"] * (len(channels) - 1) + ["EfficientViTBlock"]
    multiscales: list[list[int]] = [[]] * (len(channels) - 1) + [[5]]
    return {
        "_class_name": "AutoencoderDC",
        "_diffusers_version": "0.32.1",
        "in_channels": 2,
        "latent_channels": 8,
        "attention_head_dim": head_dim,
        "encoder_block_types": blocks,
        "decoder_block_types": blocks,
        "encoder_block_out_channels": channels,
        "decoder_block_out_channels": channels,
        "encoder_layers_per_block": encoder_layers,
        "decoder_layers_per_block": decoder_layers,
        "encoder_qkv_multiscales": multiscales,
        "decoder_qkv_multiscales": multiscales,
        "downsample_block_type": "Conv",
        "upsample_block_type": "interpolate",
        "decoder_norm_types": "rms_norm",
        "decoder_act_fns": "silu",
        "scaling_factor": 0.41407,
    }


def _vocoder(
    depths: list[int],
    dims: list[int],
    rates: list[int],
    kernels: list[int],
    resblocks: list[int],
    channels: int,
) -> Config:
    return {
        "_class_name": "ADaMoSHiFiGANV1",
        "_diffusers_version": "0.32.1",
        "input_channels": 128,
        "depths": depths,
        "dims": dims,
        "drop_path_rate": 0.0,
        "kernel_sizes": [7],
        "upsample_rates": rates,
        "upsample_kernel_sizes": kernels,
        "resblock_kernel_sizes": resblocks,
        "resblock_dilation_sizes": [[1, 3, 5]] * len(resblocks),
        "num_mels": dims[-1],
        "upsample_initial_channel": channels,
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
    }


# Small enough for a test, and true where other code depends on it: 8×16 latents, 44.1 kHz, hop 512, /8.
TINY = Geometry(
    transformer=_transformer(2, 4, 32, speaker=64, text=64, lyric=64, depths=[1, 1], ssl=[24, 16]),
    text_encoder=_text_encoder(384, 64, 16, 128, layers=2, heads=4),
    dcae=_dcae([8, 16, 32, 64], [1, 1, 1, 1], [1, 1, 1, 1], head_dim=16),
    vocoder=_vocoder([1, 1], [32, 64], [8, 8, 8], [16, 16, 16], [3, 5], channels=16),
    lyric_layers=2,
    lyric_heads=4,
    lyric_ff=128,
)
TRUE = Geometry(
    transformer=_transformer(24, 20, 128, speaker=512, text=768, lyric=1024, depths=[8, 8], ssl=[1024, 768]),
    text_encoder=_text_encoder(256384, 768, 64, 2048, layers=12, heads=12),
    dcae=_dcae([128, 256, 512, 1024], [2, 2, 3, 3], [3, 3, 3, 3], head_dim=32),
    vocoder=_vocoder(
        [3, 3, 9, 3],
        [128, 256, 384, 512],
        [4, 4, 2, 2, 2, 2, 2],
        [8, 8, 4, 4, 4, 4, 4],
        [3, 7, 11, 13],
        channels=1024,
    ),
    lyric_layers=6,
    lyric_heads=16,
    lyric_ff=4096,
)
SIZES = {"tiny": TINY, "true": TRUE}
