"""A checkpoint's config.json that other programs wrote: which of its keys change the computation?"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Mapping
from functools import cache
from typing import Any

from ..errors import CheckpointError, nearest

# Keys that transformers 4 wrote into every config, and the values with which they changed nothing.
_TRANSFORMERS_4: dict[str, Any] = {
    "add_cross_attention": False, "cross_attention_hidden_size": None, "finetuning_task": None,
    "prefix": None, "pruned_heads": {}, "sep_token_id": None, "task_specific_params": None,
    "tf_legacy_loss": False, "tie_encoder_decoder": False, "torchscript": False, "use_bfloat16": False,
}  # fmt: skip


class UnknownKeys(CheckpointError):
    """Keys of a component's config that may change its computation, and that nobody here knows."""

    def __init__(self, component: str, keys: Iterable[str], known: Iterable[str], why: str = "") -> None:
        self.component, self.keys, self.known, self.why = component, tuple(keys), tuple(known), why
        names = ", ".join(f"{key!r}{nearest(key, self.known)}" for key in self.keys)
        plural = "s" if len(self.keys) > 1 else ""
        super().__init__(f"{component} config: unknown key{plural} {names} may change the computation{why}")

    def with_flag(self) -> UnknownKeys:
        """The same, with the converter's way on."""
        flags = " ".join(f"--allow-config-key {key}" for key in self.keys)
        it = "they do" if len(self.keys) > 1 else "it does"
        return UnknownKeys(self.component, self.keys, self.known, f"{self.why}; if {it} not, {flags}")


@cache
def transformers_defaults(name: str) -> tuple[str, dict[str, Any], Collection[str]]:
    """The installed transformers: its version, the defaults of one config class, and generation's keys."""
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # it would say that PyTorch is missing
    import transformers

    defaults = getattr(transformers, name)().to_dict()
    return transformers.__version__, defaults, transformers.GenerationConfig().to_dict().keys()


def check_leftover(
    component: str, leftover: Mapping[str, Any], name: str, written_by: object, known: Iterable[str]
) -> None:
    """Judge the keys that our table of a transformers model leaves over: bookkeeping, or an error?

    leftover: key → value as in config.json. name: the model's config class in transformers. written_by: the
    file's `transformers_version`. A key at the class's default is bookkeeping, and so is what only chooses
    words in generation. Raises CheckpointError for another value, UnknownKeys for a key that the class lacks.
    """
    if not leftover:
        return
    version, defaults, generation = transformers_defaults(name)
    defaults = {**_TRANSFORMERS_4, **defaults}
    wrong, unknown = [], []
    for key, value in leftover.items():
        if key not in defaults:
            if key not in generation:
                unknown.append(key)
        elif _as_json(value) != _as_json(defaults[key]):
            wrong.append(f"{key} is {value!r}, only {defaults[key]!r} is supported")
    if wrong:
        raise CheckpointError(f"{component} config: {'; '.join(wrong)}")
    if unknown:
        why = ""
        if isinstance(written_by, str) and _release(written_by) > _release(version):
            why = (
                f": transformers {written_by} wrote the file, {version} is installed and does not know it; "
                "update transformers"
            )
        raise UnknownKeys(component, unknown, known, why)


def _release(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])


def _as_json(value: Any) -> Any:
    """With keys as text and lists for tuples, as a file would give it back."""
    if isinstance(value, Mapping):
        return {str(key): _as_json(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_as_json(entry) for entry in value]
    return value
