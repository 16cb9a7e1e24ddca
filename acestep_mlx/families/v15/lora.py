"""How the transformer's modules are called as LoRA targets, here and in other programs' files.

Our paths are the original's, which PEFT folders, ComfyUI, Side-Step, SimpleTuner and LyCORIS use as well,
with or without the `decoder.` that the transformer is there; diffusers has names of its own for attentions.
"""

from __future__ import annotations

from ..protocol import LoRANames

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")

LORA = LoRANames(
    # The first as v1's of that name: queries, keys, values and outputs of both attentions.
    presets={"attn_qkv": ATTENTION, "attn_qkv+mlp": (*ATTENTION, *MLP)},
    default="attn_qkv",
    option="acestep_lora_target",
    refused={},
    idle={},
    numbered=("layers",),
    convolutions=(),
    # Every linear layer.
    flat=(
        (r"(?:decoder_)?layers_(\d+)_(self|cross)_attn_([qkvo]_proj)", r"layers.\1.\2_attn.\3"),
        (r"(?:decoder_)?layers_(\d+)_(self|cross)_attn_to_([qkv])", r"layers.\1.\2_attn.\3_proj"),
        (r"(?:decoder_)?layers_(\d+)_(self|cross)_attn_to_out_0", r"layers.\1.\2_attn.o_proj"),
        (r"(?:decoder_)?layers_(\d+)_mlp_((?:gate|up|down)_proj)", r"layers.\1.mlp.\2"),
        (r"(?:decoder_)?(time_embed|time_embed_r)_(linear_[12]|time_proj)", r"\1.\2"),
        (r"(?:decoder_)?condition_embedder", r"condition_embedder"),
        (r"(?:decoder_)?(proj_in|proj_out)_1", r"\1.1"),
    ),
    unused=(),
    others=("proj_in.1", "proj_out.1"),  # convolutions
    lookalikes={},
    prefixes={
        "peft": "base_model.model.",
        "comfyui": "diffusion_model.decoder.",
        "diffusers": "transformer.",
        # Its --init_lora looks into all of the model, which peft has wrapped.
        "simpletuner": "transformer.base_model.model.decoder.",
    },
    spellings=(
        (r"decoder\.(.+)", r"\1"),
        (r"(layers\.\d+\.(?:self|cross)_attn)\.to_([qkv])", r"\1.\2_proj"),
        (r"(layers\.\d+\.(?:self|cross)_attn)\.to_out\.0", r"\1.o_proj"),
    ),
    # SimpleTuner adapts the whole model, and runs all but the decoder without gradients.
    outside=r"(?:encoder\.\w+_encoder|(?:de)?tokenizer(?:\.\w+)?)\.layers\.\d+"
    r"\.(?:self_attn\.[qkvo]_proj|mlp\.(?:gate|up|down)_proj)",
    # diffusers' loader looks for its own names, and leaves the others to guesses.
    renamed={
        "diffusers": (
            (r"(layers\.\d+\.(?:self|cross)_attn)\.([qkv])_proj", r"\1.to_\2"),
            (r"(layers\.\d+\.(?:self|cross)_attn)\.o_proj", r"\1.to_out.0"),
        )
    },
    programs={"peft": ("the official app", "peft", "diffusers")},
    marks={"diffusers": r".*\.[qk]_proj"},
    peft_folder=True,
    # The original's, diffusers', and what SimpleTuner's documentation calls them in every model.
    classes=(
        (r"layers\.\d+\.(self|cross)_attn", ("AceStepAttention", "Attention")),
        (r"layers\.\d+\.mlp", ("Qwen3MLP", "AceStepMLP", "FeedForward")),
        (r"layers\.\d+", ("AceStepDiTLayer", "AceStepTransformerBlock")),
        (r"time_embed(_r)?", ("TimestepEmbedding", "AceStepTimestepEmbedding")),
        (r"", ("AceStepDiTModel", "AceStepTransformer1DModel")),
    ),
)
