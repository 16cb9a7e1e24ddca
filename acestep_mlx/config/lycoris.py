"""`lycoris_config`: LyCORIS's settings of a LoKr, its keys declared once as those of config.json are.

Names, defaults and meanings are those of LyCORIS's `create_lycoris` and of SimpleTuner's documentation of it.
"""

from __future__ import annotations

import fnmatch
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from ..errors import ConfigError
from .option import Option, declared, foreign, option
from .parsing import Options, kind_of

KEY = "lycoris_config"
EXAMPLE = '{"algo": "lokr", "linear_dim": 10000, "linear_alpha": 1, "factor": 16}'
_OTHERS = (
    "of LyCORIS's kinds only LoKr is trained here; set algo to lokr, or lora_type=standard (a LoRA, with "
    "use_dora also a DoRA)"
)
_ALGOS = {
    "lora locon": "that is a plain LoRA: set lora_type=standard, lora_rank and lora_alpha; or algo to lokr",
    "loha dylora glora full diag-oft boft ia3 tlora": _OTHERS,
}


# fmt: off
@dataclass(frozen=True)
class Factors:
    """How the update of a layer is made up: ΔW = w1 ⊗ w2, of which either may be a product."""

    dim: int = option(4, "Rank of a factor that is a product; one that it does not make smaller is a whole "
        "matrix.", low=1, high=10**6)
    alpha: float = option(1.0, "Strength is alpha / dim; 0: as dim. Without effect where both factors are "
        "whole.", low=0, high=65536)
    factor: int = option(-1, "Size of w1, where it divides the layer's sizes; -1: their roots.", low=-1,
        high=10**6)
    full_matrix: bool = option(False, "Both factors are whole matrices.")
    decompose_both: bool = option(False, "w1 may be a product too.")
    use_scalar: bool = option(False,
        "One more trained number for each layer, which starts at 0 in w2's place.")
    unbalanced_factorization: bool = option(False,
        "The larger part of the outputs is w1's. ComfyUI loads such a file, LyCORIS 4.1.3 does not.")


@dataclass(frozen=True)
class _Override(Factors):
    """An entry of module_algo_map or name_algo_map."""

    algo: str = option("lokr", "Kind of adapter.", choices="lokr", refused=_ALGOS)


@dataclass(frozen=True)
class _Top:
    """The file itself, beside what `Factors` has under other names."""

    algo: str = option(None, "Kind of adapter.", choices="lokr", refused=_ALGOS)
    linear_dim: int = option(4, Factors.__dataclass_fields__["dim"].metadata["option"].help, low=1,
        high=10**6)
    linear_alpha: float = option(1.0, Factors.__dataclass_fields__["alpha"].metadata["option"].help, low=0,
        high=65536)
    multiplier: float = option(1.0, "Strength while training.", low=1, high=1,
        reason="no file keeps another one, and the LoKr would play otherwise than it was trained; set "
        "linear_alpha")
    apply_preset: dict[str, Any] = option(None, "Which layers, and settings of their own.")


@dataclass(frozen=True)
class _Preset:
    """`apply_preset`: layers by the class of a module that holds them, or by a pattern of their path."""

    target_module: list[str] = option(None, "Classes of modules, all of whose linear layers are trained.")
    target_name: list[str] = option(None, "Patterns of layers' paths.")
    module_algo_map: dict[str, Any] = option(None, "Class → settings of its layers.")
    name_algo_map: dict[str, Any] = option(None, "Pattern → settings of its layers.")
    exclude_name: list[str] = option(None, "Patterns of paths that are left out.")
    use_fnmatch: bool = option(False, "Patterns are those of file names, not regular expressions.")
# fmt: on

_IGNORED = {
    "a LoKr is computed without its product, which gives the same numbers": "bypass_mode",
    "it counts with dora_wd only": "wd_on_output wd_on_out",
    "it counts with rank_dropout only": "rank_dropout_scale",
    "convolutions get no LoKr here": "conv_dim conv_alpha use_tucker use_cp use_conv_cp disable_conv_cp",
    "it is of another algo": "block_size constraint rescaled tlora_min_rank tlora_alpha",
    "layers that match nothing are always named": "warn_on_unmatched",
    "it is for another model": "train_llm_adapter",
}
_REFUSED = {
    "a LoKr has no magnitudes here; leave it out, or train a DoRA (lora_type=standard, use_dora=true)":
        "dora_wd weight_decompose",
    "a LoKr is trained without dropout here; set it to 0":
        "dropout rank_dropout module_dropout",
    "norm layers are not trained here; set it to false": "train_norm",
    "LyCORIS passes it over; set linear_alpha, whose scale is linear_alpha / linear_dim": "rs_lora",
}  # fmt: skip
_NO_PRESET = {"name the layers in apply_preset": "preset"}
_OTHER_NAMES = {
    "for some layers it is called dim": "linear_dim",
    "for some layers it is called alpha": "linear_alpha",
}
_PRESET_IGNORED = {
    "convolutions get no LoKr here": "enable_conv",
    "files are named as the programs that load them want it": "lora_prefix",
    "it is for other models": "unet_target_module unet_target_name text_encoder_target_module"
    " text_encoder_target_name",
}


def _foreign() -> dict[str, Option]:
    return foreign("ignored", _IGNORED) | foreign("refused", _REFUSED)


_SHARED = {name: one for name, one in declared(Factors).items() if name not in ("dim", "alpha")}
TOP = Options(
    declared(_Top), _SHARED, _foreign(), foreign("refused", _NO_PRESET, off=("full",)), what=f"key of {KEY}"
)
OVERRIDE = Options(declared(_Override), _foreign(), foreign("refused", _OTHER_NAMES), what=f"key of {KEY}")
PRESET = Options(declared(_Preset), foreign("ignored", _PRESET_IGNORED), what="key of apply_preset")


@dataclass(frozen=True)
class LoKrConfig:
    """What a `lycoris_config` says. classes, names: which layers, by class and by pattern; by_class, by_name:
    those with settings of their own. Nothing in either: the layers that the run's other options name.
    """

    base: Factors
    classes: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    by_class: tuple[tuple[str, Factors], ...] = ()
    by_name: tuple[tuple[str, Factors], ...] = ()
    exclude: tuple[str, ...] = ()
    use_fnmatch: bool = False

    @property
    def chooses(self) -> bool:
        """Whether it names layers itself."""
        return bool(self.classes or self.names)

    def matches(self, pattern: str, path: str) -> bool:
        """As LyCORIS matches: the whole path, or with a regular expression its beginning."""
        if self.use_fnmatch:
            return fnmatch.fnmatchcase(path, pattern)
        return path == pattern or re.match(pattern, path) is not None


def read_lycoris(content: Any, where: str, ignored: list[tuple[str, str]] | None = None) -> LoKrConfig:
    """Check a `lycoris_config`; `ignored` gets (key, reason) of what has no meaning here.

    Raises ConfigError: one line with the key, the value, the place and what would be right.
    """
    if not isinstance(content, Mapping):
        raise ConfigError(
            f"{KEY} must be a JSON object like {EXAMPLE}, or the path of a file with one, not "
            f"{kind_of(content)} ({where})"
        )
    given = _read(TOP, content, where, ignored)
    if given.pop("algo", None) is None:
        raise ConfigError(
            f"{KEY} has no algo, for which LyCORIS takes a plain LoRA; add algo: lokr ({where})"
        )
    preset = _read(PRESET, given.pop("apply_preset", {}), f"{where}, apply_preset", ignored)
    given.pop("multiplier", None)
    named = {"linear_dim": "dim", "linear_alpha": "alpha"}
    base = replace(Factors(), **{named.get(key, key): value for key, value in given.items()})
    by_class, by_name = (
        tuple(
            (name, _override(base, settings, f"{where}, {table} {name}", ignored))
            for name, settings in preset.get(table, {}).items()
        )
        for table in ("module_algo_map", "name_algo_map")
    )
    made = LoKrConfig(
        base,
        tuple(dict.fromkeys([*preset.get("target_module", ()), *(name for name, _ in by_class)])),
        tuple(dict.fromkeys([*preset.get("target_name", ()), *(name for name, _ in by_name)])),
        by_class,
        by_name,
        tuple(preset.get("exclude_name", ())),
        preset.get("use_fnmatch", False),
    )
    for pattern in () if made.use_fnmatch else (*made.names, *made.exclude):
        try:
            re.compile(pattern)
        except re.error as error:
            raise ConfigError(
                f"{pattern!r} is no regular expression: {error}; use_fnmatch=true takes * and ? ({where})"
            ) from None
    return made


def _read(
    table: Options, content: Mapping[str, Any], where: str, ignored: list[tuple[str, str]] | None
) -> dict[str, Any]:
    """Supported keys and their values, without those that are null."""
    found = {}
    entries = [(key, value) for key, value in content.items() if value != []]  # an empty list names nothing
    for one, shown, value in table.read(entries, where):
        if value is None:
            continue
        if one.status == "supported":
            found[one.name] = value
        elif one.status == "ignored" and ignored is not None and (shown, one.reason) not in ignored:
            ignored.append((shown, one.reason))
    return found


def _override(base: Factors, content: Any, where: str, ignored: list[tuple[str, str]] | None) -> Factors:
    """`base` with the settings of an entry."""
    if not isinstance(content, Mapping):
        raise ConfigError(f'it must be an object like {{"factor": 8}}, not {kind_of(content)} ({where})')
    given = _read(OVERRIDE, content, where, ignored)
    given.pop("algo", None)
    if not given.get("alpha", True):  # LyCORIS takes the general one then
        del given["alpha"]
    return replace(base, **given)


def as_text(content: Mapping[str, Any]) -> str:
    """The same JSON for the same content."""
    return json.dumps(content, sort_keys=True, ensure_ascii=False)


FACTORS = tuple(one.name for one in fields(Factors))
