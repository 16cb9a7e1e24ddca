"""What is true of one model only: a folder a family. Which there are, `registry` says."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from .. import registry
from ..registry import REGISTRY, answers
from .protocol import Family, LoRANames, Variant

if TYPE_CHECKING:
    from .layout import Layout


def of_flavour(flavour: str) -> Family:
    """The family with this `model_flavour`, which a configuration has checked."""
    found: Family = registry.of_flavour(flavour)
    return found


def default() -> Family:
    """See `registry.default`."""
    found: Family = registry.default()
    return found


def family(name: str) -> Family:
    """The family of this name. KeyError for one that is not registered."""
    found: Family = answers(name)
    return found


def families() -> Iterator[Family]:
    """All of them."""
    return map(family, REGISTRY)


def of_lora(names: LoRANames) -> Family:
    """The family whose transformer has these names of LoRA targets; the default one if none has."""
    return next((one for one in families() if one.lora is names), default())


def layouts() -> Iterator[tuple[Family, Layout]]:
    """Every layout of every family."""
    return ((one, layout) for one in families() for layout in one.layouts)


def released(repository: str | None = None) -> Variant:
    """The released model in a hub repository; the default one for None, and for a repository of others."""
    variants = [variant for one in families() for variant in one.variants.values()]
    return next((variant for variant in variants if variant.repository == repository), variants[0])
