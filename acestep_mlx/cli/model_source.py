"""The base model that a configuration names, as an MLX folder."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..config.run import RunConfig
    from ..families.folder import ModelFolder


def open_model(config: RunConfig) -> ModelFolder:
    """`pretrained_model_name_or_path` opened; a PyTorch checkpoint is converted once into the cache.

    Raises CheckpointError in one line.
    """
    from ..convert.cache import ensure_model
    from ..families.folder import ModelFolder
    from .progress import Display

    given = config.pretrained_model_name_or_path
    local = config.resolve(given)
    with Display() as progress:
        path = ensure_model(
            local if local.exists() else given,
            quantize=config.quantization,  # the conversion that `train` asks for
            revision=config.revision,
            progress=progress,
        )
    return ModelFolder.open(path)
