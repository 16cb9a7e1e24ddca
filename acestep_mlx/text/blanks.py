"""What people and programs write where nothing is known."""

from __future__ import annotations

import math
from typing import Any

_BLANK = {"", "n/a", "na", "none", "null", "nan", "unknown", "auto", "?", "-"}
_TEMPOS = ("bpm", "tempo")  # other programs write 0 for one that is not known


def is_blank(value: Any, field: str = "") -> bool:
    """Whether a value of a field says nothing: blank, not a number, or a word that says so."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return True
    if isinstance(value, (list, tuple, dict)):
        return not value
    text = str(value).strip().lower()
    return text in _BLANK or (field in _TEMPOS and text in ("0", "0.0"))
