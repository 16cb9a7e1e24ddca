"""What the benchmarks have to know of each family: `--family v1` or `v15`."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import mlx.core as mx

from acestep_mlx.families.protocol import Family, Load, Objective
from acestep_mlx.families.v1 import FAMILY as V1
from acestep_mlx.families.v15 import FAMILY as V15
from acestep_mlx.registry import REGISTRY

#: what XL transformers have otherwise than the defaults; their conditions are as wide as the others'
XL = {
    "hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 32, "num_attention_heads": 32,
    "encoder_hidden_size": 2048,
}  # fmt: skip


@dataclass(frozen=True)
class Subject:
    """A family, and what differs between families in a training step.

    depth: the config's field with the number of blocks. narrow: changes of the config for `--quick`. arrays:
    a batch, but for its keys, by name → shape; masks and what counts as one are named `…mask`, ids `…ids`.
    """

    family: Family
    flavour: str
    depth: str
    narrow: Mapping[str, int]
    arrays: Callable[[Any, Load], dict[str, tuple[int, ...]]]

    @property
    def config(self) -> Any:
        """The released models' transformer."""
        return self.family.components["transformer"].config()

    def blocks(self, config: Any, count: int) -> Any:
        """`config` with so many blocks."""
        return replace(config, **{self.depth: count})

    def objective(self) -> Objective:
        """With its defaults."""
        found: Objective = self._module("objective").FlowMatching()
        return found

    @property
    def memory(self) -> Any:
        """The family's module of that name, where the fit is."""
        return self._module("memory")

    def _module(self, name: str) -> Any:
        return importlib.import_module(f"acestep_mlx.families.{self.family.name}.{name}")

    def batch(self, config: Any, load: Load, seed: int = 0) -> dict[str, mx.array]:
        """Random arrays as data.batches makes them."""
        shapes = self.arrays(config, load)
        keys = mx.random.split(mx.random.key(seed), load.batch + len(shapes))
        made = {"keys": keys[len(shapes) :]}
        for key, (name, shape) in zip(keys, shapes.items(), strict=False):
            if name.endswith("ids"):
                made[name] = mx.random.randint(1, 6000, shape, key=key)
            elif name.endswith("mask"):
                made[name] = mx.ones(shape)
            else:
                made[name] = mx.random.normal(shape, key=key)
        mx.eval(made)
        return made


def _v1(config: Any, load: Load) -> dict[str, tuple[int, ...]]:
    B, T, L, M = load.batch, load.frames, load.text, load.lyrics
    return {
        "latents": (B, 8, 16, T), "latent_mask": (B, T), "text": (B, L, config.text_embedding_dim),
        "text_mask": (B, L), "lyric_ids": (B, M), "lyric_mask": (B, M),
    }  # fmt: skip


def _v15(config: Any, load: Load) -> dict[str, tuple[int, ...]]:
    B, T, S = load.batch, load.frames, load.lyrics + 1 + load.text
    sound = dict.fromkeys(("mean", "std", "source"), (B, T, config.audio_acoustic_hidden_dim))
    width = config.encoder_hidden_size or config.hidden_size
    return {**sound, "latent_mask": (B, T), "states": (B, S, width), "states_mask": (B, S)}


SUBJECTS = {
    "v1": Subject(
        V1,
        "base",
        "num_layers",
        {
            "num_attention_heads": 3,
            "lyric_hidden_size": 128,
            "lyric_encoder_heads": 4,
            "lyric_encoder_ff": 256,
        },
        _v1,
    ),
    "v15": Subject(
        V15,
        "v15-base",
        "num_hidden_layers",
        {"hidden_size": 384, "intermediate_size": 1152, "num_attention_heads": 4, "num_key_value_heads": 2},
        _v15,
    ),
}


def add_family(parser: argparse.ArgumentParser) -> None:
    """The option `--family`."""
    parser.add_argument("--family", choices=SUBJECTS, default="v1", help="model family (default: v1)")


def subject(name: str) -> Subject:
    """What `--family` names; registered from here on, so that configurations may name it."""
    REGISTRY.setdefault(name, f"acestep_mlx.families.{name}")
    return SUBJECTS[name]


def subject_of(config: Any) -> Subject:
    """Whose transformer this is."""
    return next(
        one for one in SUBJECTS.values() if isinstance(config, one.family.components["transformer"].config)
    )
