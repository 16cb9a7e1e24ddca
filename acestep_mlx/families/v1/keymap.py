"""From the tensor names of v1's checkpoints to ours, and what is left out."""

from __future__ import annotations

from ..keymap import KeyMap

KEYMAPS: dict[str, KeyMap] = {
    "transformer": KeyMap(
        drops=(
            (
                r"transformer_blocks\.\d+\.cross_attn\.(add_[qkv]_proj|to_add_out)\.(weight|bias)",
                "in the checkpoint, but the forward pass never uses it",
            ),
            (r"projectors\..*", "kept in projectors.safetensors, as only the self-supervised losses use it"),
            (r"rotary_emb\.inv_freq", "a constant"),
        ),
    ),
    "text_encoder": KeyMap(
        aliases=(("encoder.embed_tokens.weight", "shared.weight"),),
        drops=(
            (r"(decoder\..*|lm_head\.weight)", "only UMT5's encoder is used"),
            (r"logit_scale", "ComfyUI keeps it beside every text encoder, and T5 has no use for it"),
        ),
    ),
    "dcae": KeyMap(
        drops=((r".*\.num_batches_tracked", "batch norm's counter, used in training only"),),
    ),
    "vocoder": KeyMap(
        drops=((r"mel_transform\.(spectrogram\.window|mel_scale\.fb)", "a constant"),),
    ),
}
