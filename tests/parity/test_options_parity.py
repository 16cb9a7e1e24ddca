"""Every option of the reference trainer is known here, as its own tables name them."""

from __future__ import annotations

import re

import pytest

from acestep_mlx.config import load_config
from acestep_mlx.errors import ConfigError

from . import reference

pytestmark = pytest.mark.parity


def names() -> set[str]:
    """Options of the web form's registry, the parser and the environment file of SimpleTuner."""
    package = reference.folder().parents[2]
    registry = package / "simpletuner_sdk" / "server" / "services" / "field_registry"
    files = [*registry.rglob("*.py"), *(package / "helpers" / "configuration").glob("*.py")]
    found = {name for file in files for name in re.findall(r'"--(\w+)"', file.read_text(encoding="utf-8"))}
    return found - {"help"}


def test_no_option_of_the_reference_is_unknown() -> None:
    known = names()
    assert len(known) > 300 and "validation_guidance_real" in known
    unknown = []
    for name in sorted(known):
        try:
            load_config({name: "x"})
        except ConfigError as error:
            if "unknown option" in str(error):
                unknown.append(name)
    assert unknown == []
