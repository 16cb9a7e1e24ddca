"""Why a download from the Hugging Face hub failed."""

from __future__ import annotations

from ..errors import NO_SPACE
from ..formatting import brief


def hub_failure(error: BaseException) -> str:
    """What kept a download from working, in our own words where the cause is known, and what to do."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE forbids a download; unset it, or give a downloaded folder"
    cause: BaseException | None = error
    while cause is not None:
        status = getattr(getattr(cause, "response", None), "status_code", None)
        if status in (401, 403):
            return f"the hub refuses this login (status {status}); `hf auth login` again, or unset HF_TOKEN"
        if status is not None:
            return f"the hub answers with status {status}; try again later, or give a downloaded folder"
        if _disk_full(cause):
            return "the disk of the hub's cache is full; free some space, or set HF_HOME to another disk"
        cause = cause.__cause__ or cause.__context__
    reason = brief(str(error).split(". ")[0]) or type(error).__name__
    return f"the hub cannot be reached ({reason}); connect to the network, or give a downloaded folder"


def _disk_full(error: BaseException) -> bool:
    """Also where a transport tells it in words only."""
    if isinstance(error, OSError) and error.errno in NO_SPACE:
        return True
    return "no space left on device" in str(error).lower()
