"""The model families, a line each, and what a configuration asks of them before a model is loaded."""

from __future__ import annotations

from importlib import import_module
from typing import Any

#: name → module that holds `FAMILY`, imported when it is first asked for; the first is the default
REGISTRY: dict[str, str] = {
    "v1": "acestep_mlx.families.v1",
    "v15": "acestep_mlx.families.v15",
}


def answers(name: str) -> Any:
    """The family of this name (a `families.protocol.Family`; light: its networks are not imported)."""
    return import_module(REGISTRY[name]).FAMILY


def default() -> Any:
    """The first one: what folders are that name none, and what options speak of that name none."""
    return answers(next(iter(REGISTRY)))


def of_flavour(flavour: str) -> Any:
    """The family with this `model_flavour`, which a configuration has checked."""
    return next(one for one in map(answers, REGISTRY) if flavour in one.variants)


def flavours() -> tuple[str, ...]:
    """The values of `model_flavour`; the first is the default."""
    return tuple(flavour for name in REGISTRY for flavour in answers(name).variants)


def lora_presets() -> tuple[str, ...]:
    """The names of LoRA presets, of all families."""
    return tuple(dict.fromkeys(preset for name in REGISTRY for preset in answers(name).lora.presets))


_LATENTS = [answers(name).latents for name in REGISTRY]
MAX_SECONDS: float = max(latents.max_seconds for latents in _LATENTS)  # of a song
FRAME: float = min(latents.seconds(1) for latents in _LATENTS)  # seconds of a latent frame
