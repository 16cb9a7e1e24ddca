"""Configs and tensors of ACE-Step 1.5 from both layouts, and what is refused, all of it in one line."""

from __future__ import annotations

import dataclasses
import re
import warnings
from typing import Any

import mlx.core as mx
import pytest

from acestep_mlx.convert.plan import fold_weight_norm, plan, translate
from acestep_mlx.errors import CheckpointError
from acestep_mlx.families.v15.conditions import ConditionConfig, ConditionEncoder
from acestep_mlx.families.v15.config import BOOKKEEPING, split_original
from acestep_mlx.families.v15.dit import ACEStep15Transformer, TransformerConfig
from acestep_mlx.families.v15.fsq import AudioDetokenizer, AudioTokenizer, DetokenizerConfig, TokenizerConfig
from acestep_mlx.families.v15.keymap import KEYMAPS
from acestep_mlx.families.v15.layouts import ORIGINAL as LAYOUTS
from acestep_mlx.families.v15.oobleck import Oobleck, OobleckConfig
from acestep_mlx.nn.foreign_config import UnknownKeys

from ..families.tiny import tiny
from .v15 import normal, randomise, relative_error, torch

pytestmark = pytest.mark.parity

COMPONENTS: dict[str, tuple[Any, Any]] = {
    "transformer": (TransformerConfig, ACEStep15Transformer),
    "condition_encoder": (ConditionConfig, ConditionEncoder),
    "audio_tokenizer": (TokenizerConfig, AudioTokenizer),
    "audio_token_detokenizer": (DetokenizerConfig, AudioDetokenizer),
    "vae": (OobleckConfig, Oobleck),
}
OURS_ONLY = {"timestep_mu", "timestep_sigma", "timbre_fix_frame"}
#: a released config.json of the original, as the files say it (turbo)
ORIGINAL: dict[str, Any] = {
    "architectures": ["AceStepConditionGenerationModel"], "attention_bias": False, "attention_dropout": 0.0,
    "audio_acoustic_hidden_dim": 64, "auto_map": {"AutoModel": "modeling.Model"}, "data_proportion": 0.5,
    "dtype": "bfloat16", "fsq_dim": 2048, "fsq_input_levels": [8, 8, 8, 5, 5, 5],
    "fsq_input_num_quantizers": 1, "head_dim": 128, "hidden_act": "silu", "hidden_size": 2048,
    "in_channels": 192, "initializer_range": 0.02, "intermediate_size": 6144, "is_turbo": True,
    "layer_types": ["sliding_attention", "full_attention"] * 12, "max_position_embeddings": 32768,
    "model_type": "acestep", "model_version": "turbo", "num_attention_heads": 16,
    "num_attention_pooler_hidden_layers": 2, "num_audio_decoder_hidden_layers": 24, "num_hidden_layers": 24,
    "num_key_value_heads": 8, "num_lyric_encoder_hidden_layers": 8, "num_timbre_encoder_hidden_layers": 4,
    "patch_size": 2, "pool_window_size": 5, "rms_norm_eps": 1e-06, "rope_scaling": None,
    "rope_theta": 1000000, "sliding_window": 128, "text_hidden_dim": 1024, "timbre_fix_frame": 750,
    "timbre_hidden_dim": 64, "timestep_mu": -0.4, "timestep_sigma": 1.0,
    "transformers_version": "4.57.0.dev0", "use_cache": True, "use_sliding_window": True, "vocab_size": 64003,
}  # fmt: skip
XL = {
    "hidden_size": 2560, "intermediate_size": 9728, "num_attention_heads": 32, "num_hidden_layers": 32,
    "layer_types": ["sliding_attention", "full_attention"] * 16, "encoder_hidden_size": 2048,
    "encoder_intermediate_size": 6144, "encoder_num_attention_heads": 16, "encoder_num_key_value_heads": 8,
}  # fmt: skip


def reference(component: str, config: Any) -> Any:
    import diffusers
    from diffusers.pipelines import ace_step

    cls = {
        "transformer": diffusers.AceStepTransformer1DModel,
        "condition_encoder": ace_step.AceStepConditionEncoder,
        "audio_tokenizer": ace_step.AceStepAudioTokenizer,
        "audio_token_detokenizer": ace_step.AceStepAudioTokenDetokenizer,
        "vae": diffusers.AutoencoderOobleck,
    }[component]
    values = {k: v for k, v in dataclasses.asdict(config).items() if k not in OURS_ONLY}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # weight_norm
        return cls(**{k: list(v) if isinstance(v, tuple) else v for k, v in values.items()})


def original_name(component: str, name: str) -> str:
    """A diffusers name as the original's file has it."""
    for theirs, original in (
        ("proj_in_conv.", "proj_in.1."), ("proj_out_conv.", "proj_out.1."), (".to_q.", ".q_proj."),
        (".to_k.", ".k_proj."), (".to_v.", ".v_proj."), (".to_out.0.", ".o_proj."), (".norm_q.", ".q_norm."),
        (".norm_k.", ".k_norm."),
    ):  # fmt: skip
        name = name.replace(theirs, original)
    prefix = {
        "transformer": "decoder.", "condition_encoder": "encoder.", "audio_tokenizer": "tokenizer.",
        "audio_token_detokenizer": "detokenizer.",
    }[component]  # fmt: skip
    return name if name == "null_condition_emb" else prefix + name


def shapes_of(module: Any) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in module.state_dict().items()}


@pytest.mark.parametrize("change", [{}, XL], ids=["2 B", "XL"])
def test_every_tensor_of_the_true_sizes_has_its_place(change: dict) -> None:
    """From the original config.json, at the sizes that are released; nothing is computed."""
    split = split_original({**ORIGINAL, **change})
    for component, (config_class, module) in COMPONENTS.items():
        config = OobleckConfig() if component == "vae" else config_class.from_dict(split[component])
        with torch.device("meta"):
            theirs = reference(component, config)
        planned = plan(component, KEYMAPS[component], module(config), shapes_of(theirs))
        used = {name for entry in planned.entries for name in entry.sources}
        assert used | planned.dropped.keys() == theirs.state_dict().keys()
        expected = {"timbre_encoder.special_token"} if component == "condition_encoder" else set()
        assert planned.dropped.keys() == expected


@pytest.mark.parametrize("component", [c for c in COMPONENTS if c != "vae"])
def test_both_layouts_give_the_same_tensors(component: str) -> None:
    config_class, module = COMPONENTS[component]
    ours = module(tiny(config_class))
    theirs = {
        k: mx.array(v.numpy()) for k, v in randomise(reference(component, ours.config)).state_dict().items()
    }
    file = {
        original_name(component, name): value for name, value in theirs.items() if name != "silence_latent"
    }
    places = LAYOUTS["turbo"].places
    shared = {name: place for name, place in places.items() if place.folder == "acestep-v15-turbo"}
    mine = [name for name, place in shared.items() if place.rename(next(iter(file)))]
    assert mine == [component]
    tensors = {str(places[component].rename(name)): value for name, value in file.items()}
    if component == "condition_encoder":
        tensors["silence_latent"] = theirs["silence_latent"]  # a file of its own beside the original's
    keymap = KEYMAPS[component]
    from_original, from_diffusers = (translate(component, keymap, ours, t) for t in (tensors, theirs))
    assert from_original.keys() == from_diffusers.keys()
    assert all(mx.array_equal(from_original[name], from_diffusers[name]) for name in from_original)


def test_all_that_is_wrong_is_named_at_once() -> None:
    ours = ACEStep15Transformer(tiny(TransformerConfig))
    shapes = shapes_of(reference("transformer", ours.config))
    shapes["layers.1.mlp.gate_projj.weight"] = shapes.pop("layers.1.mlp.gate_proj.weight")
    shapes["layers.0.self_attn.q_proj.weight"] = shapes["layers.0.self_attn.to_q.weight"]
    shapes["proj_in_conv.weight"] = (48, 24)
    shapes["norm_out.weight"] = (47,)
    with pytest.raises(CheckpointError) as caught:
        plan("transformer", KEYMAPS["transformer"], ours, shapes)
    for part in (
        "transformer: 5 problems",
        "unknown tensor 'layers.1.mlp.gate_projj.weight'; did you mean 'layers.1.mlp.gate_proj.weight'?",
        "are both 'layers.0.self_attn.q_proj.weight'",
        "'proj_in_conv.weight' has shape (48, 24), in our layout (48, 24); expected (48, 2, 24)",
        "'norm_out.weight' has shape (47,), in our layout (47,); expected (48,)",
        "missing tensor 'layers.1.mlp.gate_proj.weight'",
    ):
        assert part in str(caught.value)


@pytest.mark.parametrize("transposed", [False, True])
def test_weight_norm(transposed: bool) -> None:
    """The magnitude belongs to the first axis, which of a transposed convolution is its input."""
    conv = (torch.nn.ConvTranspose1d if transposed else torch.nn.Conv1d)(5, 3, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        torch.nn.utils.weight_norm(conv)
    with torch.no_grad():
        conv.weight_g.mul_(torch.rand_like(conv.weight_g) + 0.5)
    conv(torch.from_numpy(normal(1, 5, 9)))  # computes the weight
    g, v = (mx.array(p.detach().numpy()) for p in (conv.weight_g, conv.weight_v))
    assert relative_error(fold_weight_norm(g, v), conv.weight) <= 1e-6


def test_a_magnitude_that_does_not_fit() -> None:
    ours = Oobleck(tiny(OobleckConfig))
    shapes = shapes_of(reference("vae", ours.config))
    shapes["encoder.conv1.weight_g"] = (3, 1, 1)
    del shapes["decoder.conv2.weight_v"]
    with pytest.raises(
        CheckpointError, match=r"weight_g' of shape \(3, 1, 1\) cannot scale \(16, 2, 7\)"
    ) as caught:
        plan("vae", KEYMAPS["vae"], ours, shapes)
    assert "unknown tensor 'decoder.conv2.weight_g'" in str(caught.value)
    assert "missing tensor 'decoder.conv2.weight'" in str(caught.value)


@pytest.mark.parametrize("component", COMPONENTS)
def test_configs_of_diffusers(component: str) -> None:
    """What diffusers saves is read, and gives the reference's own sizes."""
    config_class, _ = COMPONENTS[component]
    small = tiny(config_class)
    saved = dict(reference(component, small).config)  # with attention_dropout, layer_types and _class_name
    config = config_class.from_dict({**saved, "_class_name": "X", "_diffusers_version": "0.42.1"})
    same = {k: v for k, v in dataclasses.asdict(config).items() if k not in OURS_ONLY}
    assert {k: tuple(v) if isinstance(v, list) else v for k, v in same.items()} == {
        k: v for k, v in dataclasses.asdict(small).items() if k not in OURS_ONLY
    }
    with pytest.raises(UnknownKeys, match="'qk_scale' may change the computation"):
        config_class.from_dict({**saved, "qk_scale": 2})


def test_the_original_config() -> None:
    split = split_original({**ORIGINAL, "timestep_mu": -0.3, "timbre_fix_frame": 700})
    assert TransformerConfig.from_dict(split["transformer"]) == TransformerConfig(
        is_turbo=True, model_version="turbo", layer_types=tuple(ORIGINAL["layer_types"]), timestep_mu=-0.3
    )
    assert ConditionConfig.from_dict(split["condition_encoder"]) == ConditionConfig(timbre_fix_frame=700)
    assert TokenizerConfig.from_dict(split["audio_tokenizer"]) == TokenizerConfig()
    assert DetokenizerConfig.from_dict(split["audio_token_detokenizer"]) == DetokenizerConfig()


def test_the_original_config_of_xl() -> None:
    """The encoders keep the smaller model's sizes; the transformer's queries are wider than it is."""
    split = split_original({**ORIGINAL, **XL})
    transformer = TransformerConfig.from_dict(split["transformer"])
    assert (transformer.hidden_size, transformer.encoder_hidden_size) == (2560, 2048)
    assert transformer.num_attention_heads * transformer.head_dim == 4096
    assert ConditionConfig.from_dict(split["condition_encoder"]) == ConditionConfig()
    assert TokenizerConfig.from_dict(split["audio_tokenizer"]) == TokenizerConfig()


def test_what_transformers_5_writes() -> None:
    values = {k: v for k, v in ORIGINAL.items() if k not in ("rope_theta", "rope_scaling")}
    values["rope_parameters"] = {"rope_type": "default", "rope_theta": 5e5}
    assert split_original(values)["transformer"]["rope_theta"] == 5e5
    values["rope_parameters"] = {"rope_type": "yarn", "rope_theta": 5e5, "factor": 4.0}
    with pytest.raises(CheckpointError, match=r"rope_parameters .*yarn.* are not supported"):
        split_original(values)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"qk_scale": 2}, "unknown key 'qk_scale' may change the computation"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu', only 'silu' is supported"),
        ({"use_sliding_window": False}, "use_sliding_window is False, only True is supported"),
        ({"rope_scaling": {"type": "yarn"}}, "rope_scaling is .*, only None is supported"),
        ({"in_channels": 128}, r"in_channels 128 is not 3 · audio_acoustic_hidden_dim 64"),
        ({"layer_types": ["full_attention"] * 23}, "23 layer_types for 24 layers"),
        ({"layer_types": ["full_attention"] * 24}, "condition encoder config: layer_types must alternate"),
        ({"layer_types": ["causal"] * 24}, r"layer_types\[0\] must be"),
        ({"num_key_value_heads": 5}, "num_attention_heads 16 is not a multiple of num_key_value_heads 5"),
        ({"head_dim": 127}, "head_dim must be even, got 127"),
        ({"hidden_size": "2048"}, "hidden_size must be a whole number, got '2048'"),
        ({"num_hidden_layers": 0}, "num_hidden_layers must be between"),
        ({"fsq_input_num_quantizers": 2}, "fsq_input_num_quantizers is 2, only 1 works"),
        ({"fsq_dim": 6}, "fsq_dim 6 is not hidden_size 2048"),
    ],
    ids=str,
)  # fmt: skip
def test_refused_configs(change: dict, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        for component, values in split_original({**ORIGINAL, **change}).items():
            COMPONENTS[component][0].from_dict(values)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"downsampling_ratios": [2, 4, 4, 6, 9]},
            r"downsampling_ratios must be even, got \[2, 4, 4, 6, 9\]",
        ),
        ({"channel_multiples": [1, 2]}, "2 channel_multiples for 5 downsampling_ratios"),
        ({"encoder_hidden_size": 64}, "encoder_hidden_size 64 is not twice decoder_input_channels 64"),
    ],
    ids=str,
)
def test_refused_autoencoders(change: dict, message: str) -> None:
    with pytest.raises(CheckpointError, match=re.compile(f"vae config: {message}")):
        OobleckConfig.from_dict({**dataclasses.asdict(OobleckConfig()), **change})


def test_bookkeeping_changes_nothing() -> None:
    kept = {k: v for k, v in ORIGINAL.items() if k not in BOOKKEEPING}
    assert split_original(kept) == split_original(ORIGINAL)
