"""The model families: a line each, with what a configuration must know of one before it is loaded."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Entry:
    """A family.

    module: holds its `FAMILY`. flavours: values of `model_flavour` that lead to it. max_seconds: the longest
    song that it was trained on. frame: how many seconds a latent frame lasts.
    """

    module: str
    flavours: tuple[str, ...]
    max_seconds: float
    frame: float


#: name → family; the first is the default
REGISTRY: dict[str, Entry] = {
    "v1": Entry("acestep_mlx.families.v1", ("base",), max_seconds=240.0, frame=4096 / 44100),
}
DEFAULT = next(iter(REGISTRY.values()))
FLAVOURS = tuple(flavour for entry in REGISTRY.values() for flavour in entry.flavours)
MAX_SECONDS = max(entry.max_seconds for entry in REGISTRY.values())
FRAME = min(entry.frame for entry in REGISTRY.values())
