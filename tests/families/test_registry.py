"""The registry of model families, and how a family counts its latents."""

from __future__ import annotations

import subprocess
import sys

import pytest

from acestep_mlx import registry
from acestep_mlx.families import REGISTRY, family, of_flavour
from acestep_mlx.families.protocol import LatentSpec


@pytest.mark.parametrize("name", list(REGISTRY))
def test_a_family_answers_without_loading_mlx(name: str) -> None:
    code = (
        f"import sys; from acestep_mlx.families import family; f = family({name!r})\n"
        "assert f.name and f.title and f.variants and f.latents.frame_rate > 0\n"
        "assert not {'mlx', 'numpy', 'transformers'} & set(sys.modules), 'heavy'"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", list(REGISTRY))
def test_its_components_have_a_config_and_a_module(name: str) -> None:
    components = family(name).components
    assert "transformer" in components
    for component in components.values():
        assert hasattr(component.config, "from_dict") and component.config.REPEATED is not None
        assert callable(component.module)


def test_latents_are_counted_from_samples_and_from_seconds() -> None:
    first, last = LatentSpec(44100, 4096, (8, 16, None), 3, 240), LatentSpec(48000, 1920, (None, 64), 1, 600)
    assert (first.time_axis, last.time_axis) == (-1, -2)
    assert (first.of(7), last.of(7)) == ((8, 16, 7), (7, 64))
    assert (first.whole_frames(60), last.whole_frames(60.03)) == (645, 1500)
    assert (first.covering(4096), first.covering(4097), last.covering(1)) == (1, 2, 1)
    assert last.seconds(25) == 1.0 and last.frame_rate == 25


def test_a_song_that_is_too_short_is_padded_to_what_the_model_takes() -> None:
    spec = LatentSpec(48000, 1920, (None, 64), 2.5, 600)
    assert (spec.samples(1.0), spec.samples(2.5), spec.samples(4.0)) == (120000, 120000, 192000)


def test_a_configuration_asks_the_families_what_it_takes() -> None:
    every = [family(name) for name in REGISTRY]
    assert registry.flavours() == tuple(flavour for one in every for flavour in one.variants)
    assert all(of_flavour(flavour) is one for one in every for flavour in one.variants)
    assert set(registry.lora_presets()) == {preset for one in every for preset in one.lora.presets}
    assert registry.MAX_SECONDS == max(one.latents.max_seconds for one in every) == 600
    assert registry.FRAME == min(one.latents.seconds(1) for one in every) == 0.04


def test_no_two_families_have_the_same_mark_in_their_caches_keys() -> None:
    marks = [sorted(family(name).key_mark.items()) for name in REGISTRY]
    assert all(mark not in marks[:i] for i, mark in enumerate(marks))
