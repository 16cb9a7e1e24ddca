"""The scale that a LoRA file was trained with, from wherever its writer put it.

`<module>.alpha` gives alpha/r; peft's settings (`lora_adapter_metadata`, the flat metadata of older
SimpleTuner files, or `adapter_config.json` beside the file) give alpha/r or alpha/√r with their rank and
alpha patterns; a file with neither is what loaders take it for: 1.0 × the stored weights, and the scale that
it was trained with is unknown.
"""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...errors import CheckpointError
from ...io import schema

ADAPTER_METADATA = "lora_adapter_metadata"
ADAPTER_CONFIG = "adapter_config.json"
SCALES = (1e-6, 65536.0)  # that training can have used; beyond lies damage
DEFAULT = 8  # peft's rank and alpha where its settings name none
OTHER_BASES = ("pissa", "olora", "loftq", "corda")  # ways to begin that take something out of the base
REPEATS = 3  # `*`, `+`, `?` and `{` in a pattern of module names


@dataclass(frozen=True)
class PeftSettings:
    """The part of a peft LoraConfig that decides the scale; patterns are of the paths that the file has."""

    rank: int
    alpha: float
    use_rslora: bool = False
    use_dora: bool = False
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    source: str = ""

    @classmethod
    def from_dict(cls, d: Mapping[str, Any], source: str) -> PeftSettings:
        """Raises ValueError for values that are not what they should be."""
        values = {k.removeprefix("transformer."): _literal(v) for k, v in d.items()}
        rank: Any = values.get("r", DEFAULT)
        kind = values.get("peft_type", "LORA")
        if kind not in ("LORA", "LOKR"):
            raise ValueError(f"peft_type must be LORA or LOKR, got {schema.show(kind)}")
        lokr = kind == "LOKR"  # whose settings are otherwise called the same
        alpha: Any = values.get("alpha" if lokr else "lora_alpha", DEFAULT)
        if not _number(rank) or not _number(alpha) or rank != int(rank) or rank < 1:
            got = f"{schema.show(rank)} and {schema.show(alpha)}"
            raise ValueError(f"r and lora_alpha must be numbers, got {got}")
        ranks, alphas = (_checked_patterns(values, name) for name in ("rank_pattern", "alpha_pattern"))
        for name in ("use_rslora", "use_dora"):
            if values.get(name) not in (None, True, False):
                raise ValueError(f"{name} must be true or false, got {schema.show(values[name])}")
        start = values.get("init_lora_weights")
        if isinstance(start, str) and start.lower().startswith(OTHER_BASES):
            raise ValueError(
                f"it was trained with init_lora_weights={schema.show(start)}, which changes the base model "
                "too; save it as a plain LoRA (peft's path_initial_model_for_weight_conversion)"
            )
        rslora, dora = bool(values.get("use_rslora")), bool(values.get("use_dora"))
        return cls(int(rank), alpha, rslora, dora, ranks, alphas, source)

    def scale(self, path: str, rank: int | None) -> float:
        """The scale of a module whose tensors have `rank`, None where they have none. Raises ValueError where
        the two disagree.
        """
        said = int(_pattern(self.rank_pattern, path, self.rank))
        rank = said if rank is None else rank
        if said != rank:
            raise ValueError(f"{self.source} says rank {said} for {path}, and its tensors have rank {rank}")
        alpha: float = _pattern(self.alpha_pattern, path, self.alpha)
        return alpha / (math.sqrt(rank) if self.use_rslora else rank)


def check_scale(scale: float, what: str) -> None:
    """Raises ValueError, in words, for a scale that no training has used; `what` gives it."""
    if scale == 0:
        raise ValueError(f"{what} gives the scale 0: it would do nothing")
    if not SCALES[0] <= scale <= SCALES[1]:
        raise ValueError(
            f"{what} gives the scale {scale:.6g}, and a trained one lies between {SCALES[0]:g} and "
            f"{SCALES[1]:g}: the file is damaged, or was written with a wrong alpha"
        )


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= 1e300


def _literal(value: Any) -> Any:
    """Flat metadata holds Python's str() of every value."""
    if not isinstance(value, str) or len(value) > 100_000:
        return value
    try:
        return ast.literal_eval(value)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return value


def _checked_patterns(values: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A table of numbers by regular expression, as peft has them: names of modules, or little more.

    ValueError for others: a pattern with many repeats could keep us busy for ever.
    """
    patterns = values.get(name) or {}
    if not isinstance(patterns, Mapping) or not all(_number(v) for v in patterns.values()):
        raise ValueError(f"{name} must map module names to numbers")
    for pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"{name} has {schema.show(pattern)}, no regular expression: {error}") from None
        if len(re.findall(r"[*+?{]", pattern)) > REPEATS or re.search(r"\)[*+{]", pattern):
            raise ValueError(f"{name} has {schema.show(pattern)}, which is too complicated for module names")
    return patterns


def _pattern(patterns: Mapping[str, Any], path: str, default: Any) -> Any:
    """peft's rule: a pattern matches the whole path or its end after a dot."""
    return next((v for p, v in patterns.items() if re.match(rf"(.*\.)?({p})$", path)), default)


def read_settings(metadata: Mapping[str, str], file: Path) -> PeftSettings | None:
    """peft's settings of the LoRA `file`, whose safetensors metadata is given.

    Raises CheckpointError, naming the file, for settings that cannot be read.
    """
    config = file.parent / ADAPTER_CONFIG
    try:
        if ADAPTER_METADATA in metadata:
            return PeftSettings.from_dict(_json(metadata[ADAPTER_METADATA]), ADAPTER_METADATA)
        if "r" in metadata and "lora_alpha" in metadata:
            return PeftSettings.from_dict(metadata, "its metadata")
        if config.exists():
            return PeftSettings.from_dict(_json(schema.read_file(config)), ADAPTER_CONFIG)
    except (OSError, ValueError) as failed:
        error = (failed.strerror or failed) if isinstance(failed, OSError) else failed
        source = ADAPTER_METADATA if ADAPTER_METADATA in metadata else ADAPTER_CONFIG
        raise CheckpointError(f"{file}: {source} cannot be used: {error}") from None
    return None


def _json(text: str | bytes) -> dict[str, Any]:
    value = schema.parse_json(text)
    if not isinstance(value, dict):
        raise ValueError("it is not a JSON object")
    return value
