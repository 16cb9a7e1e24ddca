"""The configs of upstream checkpoints: the released model's (`released.json`) and the miniature's."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...io.schema import read_json

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


TRUE = Geometry(
    **read_json(Path(__file__).with_name("released.json")), lyric_layers=6, lyric_heads=16, lyric_ff=4096
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
