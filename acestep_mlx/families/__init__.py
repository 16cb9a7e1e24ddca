"""What is true of one model only: a folder a family, and the registry."""

from __future__ import annotations

from importlib import import_module

from .protocol import Family

#: name → module that holds `FAMILY`, imported when it is first asked for
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
