"""Our own facts in the metadata of a LoRA file: one schema, checked in one place."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from ..words import brief
from .scales import SCALES, is_number

METADATA_KEY = "acestep_mlx"  # of the safetensors metadata; its value is JSON


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53


def _scale(value: Any) -> bool:
    return is_number(value) and SCALES[0] <= value <= SCALES[1]


def _names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


# Fact → (whether a value is one, what it should be). Others, of a newer version, are kept as they are.
SCHEMA: dict[str, tuple[Callable[[Any], bool], str]] = {
    "rank": (lambda v: _whole(v) and v >= 1, "a whole number above 0"),
    "alpha": (_scale, f"a number between {SCALES[0]:g} and {SCALES[1]:g}"),
    "scale": (_scale, f"a number between {SCALES[0]:g} and {SCALES[1]:g}"),
    "scales": (
        lambda v: isinstance(v, dict) and all(map(_scale, v.values())),
        "numbers by module, each a scale",
    ),
    "dropout": (lambda v: is_number(v) and 0 <= v < 1, "a number from 0 to 1"),
    "step": (_whole, "a whole number"),
    "targets": (_names, "a list of names"),
    **{
        name: (lambda v: isinstance(v, bool), "true or false")
        for name in ("baked", "use_rslora", "use_dora", "scale_known")
    },
    **{
        name: (lambda v: isinstance(v, str), "text")
        for name in ("file_format", "tool_version", "base", "base_fingerprint")
    },
}


def read_facts(metadata: Mapping[str, str], file: Path) -> dict[str, Any]:
    """Our facts in the metadata of `file`; empty where it is somebody else's.

    Raises CheckpointError naming the fact that is not what it should be.
    """
    if METADATA_KEY not in metadata:
        return {}
    try:
        facts = json.loads(metadata[METADATA_KEY])
    except (ValueError, RecursionError):
        facts = None
    if not isinstance(facts, dict):
        raise CheckpointError(f"{file}: its {METADATA_KEY} metadata is damaged: it is not a JSON object")
    for name, (good, should) in SCHEMA.items():
        if facts.get(name) is not None and not good(facts[name]):
            raise CheckpointError(
                f"{file}: its {METADATA_KEY} metadata is damaged: {name} should be {should}, and is "
                f"{brief(json.dumps(facts[name]), 60)}"
            )
    return facts
