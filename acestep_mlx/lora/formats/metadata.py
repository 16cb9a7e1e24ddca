"""Our own facts in the metadata of a LoRA file: one schema, checked in one place."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...errors import CheckpointError
from ...io import schema
from .scales import SCALES

METADATA_KEY = "acestep_mlx"  # of the safetensors metadata; its value is JSON
VERSION = 1  # of what a LoRA file of ours says of itself
_SCALE = schema.number(*SCALES)

# Every fact may be missing or null; further ones are kept as they are.
SCHEMA: dict[str, schema.Check] = {
    "format_version": schema.whole(1),
    "rank": schema.whole(1),
    "alpha": _SCALE,
    "scale": _SCALE,
    "scales": schema.table(_SCALE),
    "scale_known": schema.flag,
    "baked": schema.flag,
    "use_rslora": schema.flag,
    "use_dora": schema.flag,
    "dropout": schema.number(0, 1),
    "targets": schema.items(schema.text),
    "lycoris_config": schema.text,
    "step": schema.whole(),
    "base": schema.text,
    "base_fingerprint": schema.text,
    "file_format": schema.text,
    "tool_version": schema.text,
    "licences": schema.items(schema.text),
}
_RECORD = schema.record({}, {name: schema.optional(check) for name, check in SCHEMA.items()})


def read_facts(metadata: Mapping[str, str], file: Path) -> dict[str, Any]:
    """Our facts in the metadata of `file`; empty where it is somebody else's.

    Raises CheckpointError naming the fact that is not what it should be, NewerVersionError for a file whose
    facts may mean something else than this version takes them for.
    """
    if METADATA_KEY not in metadata:
        return {}
    try:
        facts: dict[str, Any] = _RECORD(schema.parse_json(metadata[METADATA_KEY]), "")
    except (ValueError, schema.Mismatch) as error:
        raise CheckpointError(f"{file}: its {METADATA_KEY} metadata is damaged: {error}") from None
    schema.refuse_newer(facts.get("format_version") or 1, VERSION, f"{file}: the LoRA")
    return facts
