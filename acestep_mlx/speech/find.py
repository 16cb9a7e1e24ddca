"""Where a Whisper is: a folder, or a hub repository that is downloaded once."""

from __future__ import annotations

from pathlib import Path

from ..errors import CheckpointError
from ..io.downloads import hub_failure, reading
from ..io.filenames import at_home, is_file, is_folder
from ..io.progress import Advance, Progress, silent

EXAMPLE = "openai/whisper-base"
_FILES = [
    "*config.json",
    "tokenizer.json",
    "model.safetensors",
    "model.safetensors.index.json",
    "model-*.safetensors",
]


def find_whisper(model: str, progress: Progress = silent) -> Path:
    """The folder as it is, or that of the hub's cache. CheckpointError where there is neither."""
    path = at_home(model)
    if is_folder(path):
        return path
    if is_file(path) or model.count("/") != 1 or model.startswith((".", "/", "~")):
        raise CheckpointError(f"{model}: no such folder (and not a hub repository like {EXAMPLE})")
    from huggingface_hub import snapshot_download

    progress(Advance(f"fetching {model} from the hub (kept in the hub's cache)"))
    try:
        found = snapshot_download(model, allow_patterns=_FILES)
        reading(model)
    except Exception as error:  # the hub's client and its transports have many kinds of their own
        raise CheckpointError(f"{model}: no such folder here, and {hub_failure(error)}") from error
    return Path(found)
