"""Every option of the reference trainer is known here, as its own tables name them."""

from __future__ import annotations

import ast
import re

import pytest

from acestep_mlx.config.read_run import load_config
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


def defaults() -> dict[str, object]:
    """Option → default value, where the registry of the web form states it as a literal."""
    registry = reference.folder().parents[2] / "simpletuner_sdk" / "server" / "services" / "field_registry"
    found: dict[str, object] = {}
    for file in registry.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                given = {k.arg: k.value for k in node.keywords}
                if {"arg_name", "default_value"} <= given.keys():
                    try:
                        name, value = (ast.literal_eval(given[k]) for k in ("arg_name", "default_value"))
                    except ValueError:
                        continue
                    found[name.lstrip("-")] = value
    return found


def test_a_configuration_of_the_references_defaults_runs() -> None:
    """Its web form writes every option out; parameters of methods that are off must not stop a run."""
    stopped = {}
    for name, value in defaults().items():
        try:
            load_config({name: value})
        except ConfigError as error:
            stopped[name] = str(error)
    # What would train another thing: there is no full training here, and no clipping by value.
    assert stopped.keys() == {"model_type", "grad_clip_method"}, stopped
    assert len(defaults()) > 250


def test_the_references_example_for_this_model_runs_as_it_stands() -> None:
    examples = reference.folder().parents[2] / "examples"
    found = [
        path for path in examples.glob("*/config.json") if '"ace_step"' in path.read_text(encoding="utf-8")
    ]
    assert found
    for path in found:
        config = load_config(path)
        assert config.model_family == "ace_step" and config.lr_scheduler == "cosine"
        assert {key for key, _ in config.ignored} >= {"vae_enable_tiling", "hub_model_id"}
