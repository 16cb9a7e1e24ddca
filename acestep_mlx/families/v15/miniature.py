"""A checkpoint of ACE-Step 1.5 with random weights, in the original's layout or diffusers'.

Names and shapes of tensors come from our own modules, whose names are the original's but for what is listed.
"""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from math import prod, sqrt
from pathlib import Path
from typing import Any, NamedTuple

import mlx.nn as nn
import numpy as np

from ..model_folder import parameters_of
from ..random_weights import Shape, Spec, random_values, write_weights
from ..v1.miniature_text import TEXT, WORDS, byte_pairs
from .components import COMPONENTS
from .conditions import SILENCE_FRAMES
from .config import ENCODER_SIZES, SIZES, split_original
from .layouts import DIFFUSERS, ORIGINAL, TOKENIZER
from .prompt import END, format_prompt
from .silence import SILENCE

STACK = {
    "hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 16, "rope_theta": 1e6, "rms_norm_eps": 1e-6, "attention_bias": False,
}  # fmt: skip
CHANNELS, LAYERS = 8, 4
#: the original's config.json
CONFIG = {
    **STACK, "audio_acoustic_hidden_dim": CHANNELS, "fsq_dim": 64, "fsq_input_levels": [8, 8, 8, 5, 5, 5],
    "fsq_input_num_quantizers": 1, "in_channels": 3 * CHANNELS, "model_type": "acestep",
    "num_attention_pooler_hidden_layers": 2, "num_hidden_layers": LAYERS, "patch_size": 2,
    "num_lyric_encoder_hidden_layers": 2, "num_timbre_encoder_hidden_layers": 2, "pool_window_size": 5,
    "layer_types": ["sliding_attention", "full_attention"] * (LAYERS // 2), "sliding_window": 8,
    "text_hidden_dim": 64, "timbre_fix_frame": 750, "timbre_hidden_dim": CHANNELS, "timestep_mu": -0.4,
    "timestep_sigma": 1.0, "use_sliding_window": True,
}  # fmt: skip
NOT_IN_DIFFUSERS = {"timbre_fix_frame", "timestep_mu", "timestep_sigma"}
PREFIXES = {
    "transformer": "decoder.", "condition_encoder": "encoder.", "audio_tokenizer": "tokenizer.",
    "audio_token_detokenizer": "detokenizer.",
}  # fmt: skip
#: an XL transformer is wider than its encoders, and its queries wider still
XL = {"hidden_size": 96, "num_attention_heads": 8}
TEXT_ENCODER = {
    **STACK,
    "model_type": "qwen3",
    "hidden_act": "silu",
    "num_hidden_layers": 2,
    "vocab_size": 640,
}
VAE = {
    "encoder_hidden_size": 2 * CHANNELS, "downsampling_ratios": [2, 4, 4, 6, 10], "audio_channels": 2,
    "channel_multiples": [1, 1, 1, 2, 2], "decoder_channels": 16, "decoder_input_channels": CHANNELS,
    "sampling_rate": 48000,
}  # fmt: skip
#: the original's → diffusers'
DIFFUSERS_NAMES = (
    (r"^proj_(in|out)\.1\.", r"proj_\1_conv."), (r"(_attn)\.([qkv])_proj\.", r"\1.to_\2."),
    (r"(_attn)\.o_proj\.", r"\1.to_out.0."), (r"(_attn)\.([qk])_norm\.", r"\1.norm_\2."),
)  # fmt: skip
NUMBERS = 240  # merges of the tokenizer
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)  # how Qwen's tokenizers cut a text before they merge


class Geometry(NamedTuple):
    """Configs of a checkpoint: the original's, its changes in XL variants, and those of two components."""

    model: Mapping[str, Any]
    xl: Mapping[str, Any]
    text_encoder: Mapping[str, Any]
    vae: Mapping[str, Any]


TINY = Geometry(CONFIG, XL, TEXT_ENCODER, VAE)


def write_checkpoint(
    folder: str | Path,
    *,
    seed: int = 0,
    layout: str = "original",
    flavour: str = "turbo",
    dtype: str = "float32",
    shards: int = 1,
    size: Geometry = TINY,
) -> Path:
    """Write a whole checkpoint into `folder` (made if need be) and return its path.

    layout: "original" or "diffusers", with the same numbers. flavour: as in `layouts.FLAVOURS`. shards: into
    how many files the transformer is cut. Same seed, same bytes.
    """
    folder = Path(folder)
    config = _config(flavour, size)
    modules, configs = _modules(config, size)
    original = layout == "original"
    places = (ORIGINAL[flavour] if original else DIFFUSERS).places
    together: list[Spec] = []
    for name, module in modules.items():
        specs = [_named(name, spec, original) for spec in _specs(name, module)]
        target = folder / places[name].folder
        target.mkdir(parents=True, exist_ok=True)
        if original and name not in ("vae", "text_encoder"):
            together += [spec for spec in specs if not spec.name.endswith("silence_latent")]
            continue
        kept = {key: value for key, value in configs[name].items() if key not in NOT_IN_DIFFUSERS}
        _write_json(target / "config.json", kept)
        stem = "model" if name == "text_encoder" else "diffusion_pytorch_model"
        write_weights(target, stem, specs, shards if name == "transformer" else 1, seed, dtype)
    if original:
        target = folder / places["transformer"].folder
        _write_json(target / "config.json", config)
        write_weights(target, "model", together, shards, seed, dtype)
        _write_silence(target / SILENCE, config["timbre_hidden_dim"], seed)
    words = folder / (places["text_encoder"].folder if original else "tokenizer")
    words.mkdir(parents=True, exist_ok=True)
    write_tokenizer(words)
    return folder


def parts(flavour: str, size: Geometry = TINY) -> Iterator[tuple[str, Mapping[str, Any], tuple[Spec, ...]]]:
    """Of each component its name, its config, and its tensors as diffusers calls them."""
    modules, configs = _modules(_config(flavour, size), size)
    for name, module in modules.items():
        yield name, configs[name], tuple(_named(name, one, original=False) for one in _specs(name, module))


def _config(flavour: str, size: Geometry) -> dict[str, Any]:
    large = flavour.startswith("xl-")
    encoder = {own: size.model[key] for own, key in zip(ENCODER_SIZES, SIZES, strict=True)}
    kind = flavour.removeprefix("xl-")
    return {
        **size.model,
        **({**size.xl, **encoder} if large else {}),
        "is_turbo": kind == "turbo",
        "model_version": kind,
    }


def _modules(
    config: Mapping[str, Any], size: Geometry
) -> tuple[dict[str, nn.Module], dict[str, Mapping[str, Any]]]:
    configs = {**split_original(config), "vae": size.vae, "text_encoder": size.text_encoder}
    made = {name: one.module(one.config.from_dict(configs[name])) for name, one in COMPONENTS.items()}
    return made, configs


def _specs(component: str, module: nn.Module) -> Iterator[Spec]:
    """Every tensor under the original's name, within its component, and in PyTorch's layout."""
    owners = dict(module.named_modules())
    for path, value in parameters_of(module).items():
        parent, _, leaf = path.rpartition(".")
        owner, shape = owners.get(parent, module), tuple(value.shape)
        if path == "silence_latent":
            yield _silence(shape[2])
        elif isinstance(owner, (nn.Conv1d, nn.ConvTranspose1d)):
            yield from _convolution(component, parent, owner, leaf, shape)
        elif isinstance(owner, nn.Embedding):
            yield Spec(path, shape, 1.0)
        elif isinstance(owner, nn.RMSNorm):
            yield Spec(path, shape, 0.05, 1.0)
        elif leaf in ("alpha", "beta"):
            yield Spec(path, (1, *shape, 1), 0.1)
        elif len(shape) == 2:
            yield Spec(path, shape, shape[1] ** -0.5)
        else:
            yield Spec(path, shape, 0.02 if leaf == "bias" else shape[-1] ** -0.5)
    if component == "condition_encoder":
        yield Spec("timbre_encoder.special_token", module.null_condition_emb.shape, 0.1)


def _silence(channels: int) -> Spec:
    return Spec("silence_latent", (1, SILENCE_FRAMES, channels), 0.5)


def _convolution(component: str, name: str, owner: Any, leaf: str, shape: Shape) -> Iterator[Spec]:
    """With weight normalisation in the autoencoder; of magnitudes that keep signals as they are."""
    if leaf == "bias":
        yield Spec(f"{_numbered(component, name)}.bias", shape, 0.02)
        return
    O, K, I = shape
    transposed = isinstance(owner, nn.ConvTranspose1d)
    theirs = (I, O, K) if transposed else (O, I, K)
    if component != "vae":
        yield Spec(f"{_numbered(component, name)}.weight", theirs, 1 / sqrt(prod(theirs[1:])))
        return
    magnitude = sqrt(O * K / 2 / I) if transposed else 0.4 if "res_unit" in name else 1.0
    yield Spec(f"{name}.weight_g", (theirs[0], 1, 1), 0.05 * magnitude, magnitude)
    yield Spec(f"{name}.weight_v", theirs, 0.1)


def _numbered(component: str, name: str) -> str:
    """The original's transformer has its convolutions second in a sequence."""
    return f"{name}.1" if component == "transformer" else name


def _named(component: str, spec: Spec, original: bool) -> Spec:
    """As the layout names it, with numbers that do not depend on it."""
    name = spec.name
    if not original:
        for theirs, diffusers in DIFFUSERS_NAMES if component != "text_encoder" else ():
            name = re.sub(theirs, diffusers, name)
    elif name != "null_condition_emb":
        name = PREFIXES.get(component, "") + name
    return replace(spec, name=name, drawn_as=f"{component}.{spec.name}")


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def _write_silence(path: Path, channels: int, seed: int) -> None:
    """As `torch.save` would write the tensor (1, C, T): its pickle is put together by hand."""
    spec = _named("condition_encoder", _silence(channels), original=True)
    values = np.concatenate(list(random_values(spec, seed))).reshape(spec.shape).swapaxes(1, 2)
    _, C, T = values.shape

    def tup(*numbers: int) -> bytes:
        return b"(" + b"".join(b"J" + n.to_bytes(4, "little") for n in numbers) + b"t"

    def text(value: str) -> bytes:
        return b"X" + len(value).to_bytes(4, "little") + value.encode()

    storage = (
        b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu") + tup(C * T)[1:] + b"Q"
    )
    pickle = (
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(" + storage + tup(0)[1:-1] + tup(1, C, T)
        + tup(C * T, T, 1) + b"\x89ccollections\nOrderedDict\n)RtR."
    )  # fmt: skip
    members = {"data.pkl": pickle, "byteorder": b"little", "data/0": values.tobytes(), "version": b"3\n"}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(zipfile.ZipInfo(f"{path.stem}/{name}"), data)


def write_tokenizer(folder: Path) -> None:
    """A small tokenizer like Qwen3-Embedding's: byte pairs, and `<|endoftext|>` after every text."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    words = [*format_prompt("", "")[0].split(), *WORDS.split(), *TEXT.split()]
    merges = byte_pairs([f"Ġ{word}" for word in words if word.isascii()], NUMBERS)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = dict.fromkeys([*letters, *("".join(pair) for pair in merges)])
    tokenizer = Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, merges))
    tokenizer.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(SPLIT), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([END, "<|im_start|>", "<|im_end|>"])
    end = processors.TemplateProcessing(
        single=f"$A {END}", special_tokens=[(END, tokenizer.token_to_id(END))]
    )
    tokenizer.post_processor = processors.Sequence(
        [processors.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False), end]
    )
    tokenizer.save(str(folder / TOKENIZER))
    config = {"tokenizer_class": "Qwen2Tokenizer", "pad_token": END, "eos_token": "<|im_end|>"}
    _write_json(folder / "tokenizer_config.json", config)
