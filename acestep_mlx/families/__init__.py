"""What is true of one model only: a folder a family, and the registry."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from typing import TYPE_CHECKING

from .protocol import Family, Variant

if TYPE_CHECKING:
    from .layout import Layout

#: name → module that holds `FAMILY`, imported when it is first asked for; the first is the default
REGISTRY: dict[str, str] = {"v1": "acestep_mlx.families.v1"}


def of_flavour(flavour: str) -> Family:
    """The family with this `model_flavour`. KeyError for one that no family has."""
    for name in REGISTRY:
        if flavour in family(name).variants:
            return family(name)
    raise KeyError(flavour)


def default() -> Family:
    """The first one: what folders are that name none, and what options speak of that name none."""
    return family(next(iter(REGISTRY)))


def family(name: str) -> Family:
    """The family of this name. KeyError for one that is not registered."""
    found: Family = import_module(REGISTRY[name]).FAMILY
    return found


def layouts() -> Iterator[tuple[Family, Layout]]:
    """Every layout of every family."""
    return ((one, layout) for one in map(family, REGISTRY) for layout in one.layouts)


def released(repository: str | None = None) -> Variant:
    """The released model in a hub repository; the default one for None, and for a repository of others."""
    variants = [variant for one in map(family, REGISTRY) for variant in one.variants.values()]
    return next((variant for variant in variants if variant.repository == repository), variants[0])
