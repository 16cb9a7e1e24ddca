"""What the components of ACE-Step 1.5 have in common in their configs, and the original config.json.

diffusers writes one config.json a component; the original checkpoint has a single one for the transformer,
the condition encoder and both tokenizers. `split_original` makes the first out of the second, so that each
component has one reader: `from_dict` of its config class.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, TypeVar

from ...errors import CheckpointError
from ...io.schema import number
from ...nn.config import ComponentConfig
from ...nn.foreign_config import check_leftover

FULL, SLIDING = "full_attention", "sliding_attention"
T = TypeVar("T", bound="EncoderConfig")


@dataclass(frozen=True)
class LayerConfig(ComponentConfig):
    """Sizes of transformer layers; the defaults are those of the released 2 B models."""

    hidden_size: int = 2048
    intermediate_size: int = 6144
    num_attention_heads: int = 16
    num_key_value_heads: int = 8
    head_dim: int = 128
    rope_theta: float = 1e6
    attention_bias: bool = False
    rms_norm_eps: float = 1e-6

    LIMITS: ClassVar = {"rope_theta": number(1, 1e12), "rms_norm_eps": number(1e-12, 1)}
    IGNORED: ClassVar = {"attention_dropout"}  # which only training from the start would use
    REQUIRED: ClassVar[tuple[str, ...]] = ("hidden_size",)

    def stored(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Every size, so that both layouts give the same."""
        return asdict(self)

    def problems(self) -> list[str]:
        """Sizes that do not go together."""
        problems = []
        if self.num_attention_heads % self.num_key_value_heads:
            problems.append(
                f"num_attention_heads {self.num_attention_heads} is not a multiple of "
                f"num_key_value_heads {self.num_key_value_heads}"
            )
        if self.head_dim % 2:
            problems.append(f"head_dim must be even, got {self.head_dim}")
        return problems


@dataclass(frozen=True)
class StackConfig(LayerConfig):
    """With layers that see their neighbourhood alone, `sliding_window` positions to each side."""

    sliding_window: int = 128


def alternating(layers: int) -> tuple[str, ...]:
    """The released models' layers: the first one sliding, the second one full, and so on."""
    return tuple(FULL if i % 2 else SLIDING for i in range(layers))


class EncoderConfig(StackConfig):
    """Of a component whose stacks of REPEATED layers alternate, the first layer a sliding one."""

    @classmethod
    def from_dict(cls: type[T], values: Mapping[str, Any]) -> T:
        """As every config; `layer_types` may be there where they alternate.

        diffusers hands the list to the lyric encoder alone and the original to all; the two agree in this
        case.
        """
        config = super().from_dict({key: value for key, value in values.items() if key != "layer_types"})
        given = values.get("layer_types")
        most = max(getattr(config, field) for field in cls.REPEATED)
        if given is not None and (
            not isinstance(given, (list, tuple)) or tuple(given[:most]) != alternating(most)[: len(given)]
        ):
            raise CheckpointError(
                f"{cls.NAME} config: layer_types must alternate, {SLIDING} first; got {str(given)[:80]}"
            )
        return config


COMMON = ("head_dim", "rope_theta", "attention_bias", "rms_norm_eps", "sliding_window")
SIZES = ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads")
#: component → the keys of the original config.json that it takes as they are, beside COMMON and its SIZES
TAKEN: dict[str, tuple[str, ...]] = {
    "transformer": (
        *SIZES, "num_hidden_layers", "in_channels", "audio_acoustic_hidden_dim", "patch_size", "layer_types",
        "encoder_hidden_size", "is_turbo", "model_version", "timestep_mu", "timestep_sigma",
    ),
    "condition_encoder": (
        "text_hidden_dim", "timbre_hidden_dim", "num_lyric_encoder_hidden_layers",
        "num_timbre_encoder_hidden_layers", "timbre_fix_frame", "layer_types",
    ),
    "audio_tokenizer": (
        "audio_acoustic_hidden_dim", "pool_window_size", "fsq_dim", "fsq_input_levels",
        "fsq_input_num_quantizers", "num_attention_pooler_hidden_layers", "layer_types",
    ),
    "audio_token_detokenizer": (
        "audio_acoustic_hidden_dim", "pool_window_size", "num_attention_pooler_hidden_layers", "layer_types",
    ),
}  # fmt: skip
ENCODER_SIZES = tuple(f"encoder_{key}" for key in SIZES)  # of the XL models; elsewhere as the transformer's
#: keys of the original that may have one value only, because another would change the computation
FIXED: dict[str, Any] = {"hidden_act": "silu", "rope_scaling": None, "use_sliding_window": True}
#: keys of the original that change nothing here
BOOKKEEPING = {
    "architectures", "attention_dropout", "auto_map", "data_proportion", "dtype", "initializer_range",
    "max_position_embeddings", "model_type", "num_audio_decoder_hidden_layers", "tie_word_embeddings",
    "torch_dtype", "transformers_version", "use_cache", "vocab_size",
}  # fmt: skip


KINDS = ("base", "sft", "turbo")


def kinds(transformer: Any) -> tuple[str, ...]:
    """What a model with this transformer's config can be: `xl-turbo`; two where it does not say which.

    Its `model_version` ends in its kind; without one, whether it `is_turbo` is all that is known.
    """
    said = (transformer.model_version or "").rpartition("-")[2]
    found = (said,) if said in KINDS else ("turbo",) if transformer.is_turbo else ("base", "sft")
    large = transformer.encoder_hidden_size not in (None, transformer.hidden_size)
    return tuple(f"xl-{kind}" if large else kind for kind in found)


def split_original(values: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The original config.json → component → what diffusers' config.json of it would say.

    Raises CheckpointError for a value that is not supported, UnknownKeys for keys that nobody here knows.
    """
    values = with_rope_theta("ACE-Step 1.5", values)
    wrong = [
        f"{key} is {values[key]!r}, only {value!r} is supported"
        for key, value in FIXED.items()
        if key in values and values[key] != value
    ]
    if wrong:
        raise CheckpointError(f"ACE-Step 1.5 config: {'; '.join(wrong)}")
    taken = {*COMMON, *SIZES, *ENCODER_SIZES}.union(*TAKEN.values())
    known = taken | FIXED.keys() | BOOKKEEPING
    leftover = {key: value for key, value in values.items() if key not in known and not key.startswith("_")}
    check_leftover(
        "ACE-Step 1.5", leftover, "PretrainedConfig", values.get("transformers_version"), sorted(known)
    )
    split = {
        component: {key: values[key] for key in (*COMMON, *keys) if key in values}
        for component, keys in TAKEN.items()
    }
    for component in ("condition_encoder", "audio_tokenizer", "audio_token_detokenizer"):
        for key, own in zip(SIZES, ENCODER_SIZES, strict=True):
            if own in values or key in values:
                split[component][key] = values.get(own, values.get(key))
    return split


def with_rope_theta(name: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """transformers 5 writes `rope_parameters` where 4 wrote `rope_theta`. name: the config's."""
    rest = {key: value for key, value in values.items() if key != "rope_parameters"}
    rope = values.get("rope_parameters")
    if rope is None:
        return rest
    theta = rope.get("rope_theta") if isinstance(rope, Mapping) else None
    if theta is None or dict(rope) != {"rope_type": "default", "rope_theta": theta}:
        raise CheckpointError(f"{name} config: rope_parameters {str(rope)[:80]} are not supported")
    return {**rest, "rope_theta": theta}
