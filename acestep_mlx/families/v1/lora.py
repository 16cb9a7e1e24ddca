"""How the transformer's modules are called as LoRA targets, here and in other programs' files."""

from __future__ import annotations

from ..protocol import LoRANames
from .lyrics_embedder import LYRICS_EMBEDDER

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
LYRICS = ("linear_q", "linear_k", "linear_v")
_DEPTHWISE = "it is a depthwise convolution, and no LoRA loader takes one"

LORA = LoRANames(
    # The values of SimpleTuner's `acestep_lora_target`.
    presets={
        "attn_qkv": ATTENTION,
        "attn_qkv+linear_qkv": LYRICS + ATTENTION,
        "attn_qkv+linear_qkv+speech_embedder": ("speaker_embedder", *LYRICS, *ATTENTION),
    },
    default="attn_qkv+linear_qkv",
    option="acestep_lora_target",
    refused={"depth_conv": _DEPTHWISE, "depth_conv.conv": _DEPTHWISE},
    idle={
        "speaker_embedder": "speaker_embedder gets no gradient, because its input is always zero in this "
        "model: its LoRA stays untrained"
    },
    full=LYRICS_EMBEDDER,
    numbered=("transformer_blocks", "lyric_encoder.encoders"),
    convolutions=(
        (r"transformer_blocks\.\d+\.ff\.(inverted_conv|point_conv)\.conv", 1),
        (r"proj_in\.early_conv_layers\.2", 2),
    ),
    # Every linear layer, convolution and norm.
    flat=(
        (r"transformer_blocks_(\d+)_(attn|cross_attn)_(to_[qkv])", r"transformer_blocks.\1.\2.\3"),
        (r"transformer_blocks_(\d+)_(attn|cross_attn)_to_out_0", r"transformer_blocks.\1.\2.to_out.0"),
        (
            r"transformer_blocks_(\d+)_cross_attn_(add_[qkv]_proj|to_add_out)",
            r"transformer_blocks.\1.cross_attn.\2",
        ),
        (
            r"transformer_blocks_(\d+)_ff_(inverted|depth|point)_conv_conv",
            r"transformer_blocks.\1.ff.\2_conv.conv",
        ),
        (r"lyric_encoder_encoders_(\d+)_self_attn_(linear_\w+)", r"lyric_encoder.encoders.\1.self_attn.\2"),
        (r"lyric_encoder_encoders_(\d+)_feed_forward_(w_[12])", r"lyric_encoder.encoders.\1.feed_forward.\2"),
        (r"lyric_encoder_encoders_(\d+)_(norm_ff|norm_mha)", r"lyric_encoder.encoders.\1.\2"),
        (r"lyric_encoder_embed_out_([01])", r"lyric_encoder.embed.out.\1"),
        (r"lyric_encoder_after_norm", r"lyric_encoder.after_norm"),
        (r"(speaker_embedder|genre_embedder|lyric_proj|lyric_embs)", r"\1"),
        (r"t_block_1", r"t_block.1"),
        (r"timestep_embedder_(linear_[12])", r"timestep_embedder.\1"),
        (r"final_layer_linear", r"final_layer.linear"),
        (r"proj_in_early_conv_layers_([012])", r"proj_in.early_conv_layers.\1"),
        (r"projectors_(\d+)_(\d+)", r"projectors.\1.\2"),
    ),
    unused=(
        (r"transformer_blocks\.\d+\.cross_attn\.(add_[qkv]_proj|to_add_out)", "the model never uses them"),
        (r"projectors\.\d+\.\d+", "only a loss that is not offered here uses them"),
    ),
    # Convolutions and a norm that an adapter of another program may sit on.
    others=(
        "transformer_blocks.#.ff.depth_conv.conv",
        "proj_in.early_conv_layers.0",
        "proj_in.early_conv_layers.1",
    ),
    lookalikes={
        1536: "Stable Diffusion 3 Medium",
        2432: "Stable Diffusion 3.5 Large",
        3072: "FLUX.1, AuraFlow or Qwen-Image",
        6144: "FLUX.2",
    },
    prefixes={"diffusers": "transformer.", "simpletuner": "transformer."},
    recipes={16: "alpha 32", 256: "alpha 32 with rsLoRA"},
    classes=(
        (r"transformer_blocks\.\d+\.(attn|cross_attn)", ("Attention",)),
        (r"transformer_blocks\.\d+\.ff", ("GLUMBConv",)),
        (r"transformer_blocks\.\d+", ("LinearTransformerBlock",)),
        (r"lyric_encoder\.encoders\.\d+\.self_attn", ("RelPositionMultiHeadedAttention",)),
        (r"lyric_encoder\.encoders\.\d+\.feed_forward", ("PositionwiseFeedForward",)),
        (r"lyric_encoder\.encoders\.\d+", ("ConformerEncoderLayer",)),
        (r"lyric_encoder", ("ConformerEncoder",)),
        (r"timestep_embedder", ("TimestepEmbedding",)),
        (r"proj_in", ("PatchEmbed",)),
        (r"final_layer", ("T2IFinalLayer",)),
        (r"", ("ACEStepTransformer2DModel",)),
    ),
)
