"""From the tensor names of ACE-Step 1.5's checkpoints to ours, and what is left out.

Ours are the original's names wherever they can be; diffusers' differ from them wherever the layouts do, so
that one map reads both.
"""

from __future__ import annotations

from ..keymap import KeyMap

_DIFFUSERS_ATTENTION = (
    (r"(.*_attn)\.to_([qkv])\.(weight|bias)", r"\1.\2_proj.\3"),
    (r"(.*_attn)\.to_out\.0\.(weight|bias)", r"\1.o_proj.\2"),
    (r"(.*_attn)\.norm_([qk])\.weight", r"\1.\2_norm.weight"),
)
KEYMAPS: dict[str, KeyMap] = {
    "transformer": KeyMap(
        renames=((r"proj_(in|out)(?:\.1|_conv)\.(weight|bias)", r"proj_\1.\2"), *_DIFFUSERS_ATTENTION),
    ),
    "condition_encoder": KeyMap(
        renames=((r"silence_latent\.pt", "silence_latent"), *_DIFFUSERS_ATTENTION),
        swapped=("silence_latent.pt",),  # as the original's file has it: channels before time
        drops=((r"timbre_encoder\.special_token", "in the checkpoint, but the forward pass never uses it"),),
    ),
    "audio_tokenizer": KeyMap(renames=_DIFFUSERS_ATTENTION),
    "audio_token_detokenizer": KeyMap(renames=_DIFFUSERS_ATTENTION),
    "vae": KeyMap(),
    "text_encoder": KeyMap(
        renames=((r"model\.(.*)", r"\1"),),  # as a language model has them
        drops=((r"lm_head\.weight", "hidden states are used, and no next token"),),
    ),
}
