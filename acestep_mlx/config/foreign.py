"""Keys that configurations written for other trainers carry, and what becomes of them here.

Of config.json (see `run.py`) and of multidatabackend.json (see `datasets.py`), for an entry and each of its
blocks. `foreign.json` maps a reason, for the user, to the names that it holds for.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..io.schema import read_json

_TABLES = read_json(Path(__file__).with_suffix(".json"))


def _names(table: Any) -> dict[str, str]:
    return {reason: names if isinstance(names, str) else " ".join(names) for reason, names in table.items()}


# Accepted and without effect here.
IGNORED = _names(_TABLES["ignored"])
# Switched on, these would change what is learned, so they are errors; off (false, 0, "none") is accepted.
REFUSED = _names(_TABLES["refused"])
# Any key that begins so is ignored: parameters of training methods whose switch is in REFUSED, of back ends
# that are not here, and of SimpleTuner's other model families.
IGNORED_PREFIXES = _names(_TABLES["ignored_prefixes"])
# The same of multidatabackend.json.
DATA_IGNORED = {block: _names(table) for block, table in _TABLES["data_ignored"].items()}
DATA_REFUSED = {block: _names(table) for block, table in _TABLES["data_refused"].items()}
# Reasons that hold for other keys, too.
PARQUET = next(reason for reason, names in DATA_REFUSED["entry"].items() if names == "parquet")
SCHEDULED = next(reason for reason, names in DATA_REFUSED["entry"].items() if names == "end_epoch end_step")
