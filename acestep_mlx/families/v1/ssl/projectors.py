"""The transformer's projectors: from what a block gives to what an encoder hears.

They came with the checkpoint, trained with it, and stay as they are. The converter keeps them in a file of
their own, which says what they are for; only the self-supervised loss reads it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from ....errors import CheckpointError
from ....formatting import problem_report
from ....io import schema
from ....io.safetensors import Header, read_header
from ....io.tensors import FINGERPRINT, contents_digest, load_tensors
from ...layout import ComponentSource
from ...protocol import Apart, KeptApart

NAME = "projectors"
LAYERS = (0, 2, 4)  # of a projector; SiLU is between them
KEY = "taps"  # of the file's metadata


@dataclass(frozen=True)
class Tap:
    """What of the transformer is compared with an encoder: the output of block `depth`; width: features'."""

    encoder: str
    depth: int
    width: int


_TAPS = schema.items(
    schema.record(
        {"encoder": schema.text, "depth": schema.whole(0, 4096), "width": schema.whole(1, 1 << 16)}
    ),
    1,
    64,
)


def plan(source: ComponentSource) -> KeptApart | None:
    """What the transformer of a checkpoint has of them; None where it has none. CheckpointError."""
    tensors = {name: info for name, info in source.tensors.items() if name.startswith(f"{NAME}.")}
    if not tensors:
        return None
    config = source.config
    given = [config.get(key) or [] for key in ("ssl_names", "ssl_encoder_depths", "ssl_latent_dims")]
    numbers = {name.split(".")[1] for name in tensors}
    if len({*map(len, given), len(numbers)}) > 1:
        raise CheckpointError(
            f"{source.config_file}: {len(numbers)} projectors are in the weights, and ssl_names, "
            f"ssl_encoder_depths and ssl_latent_dims list {', '.join(str(len(one)) for one in given)}"
        )
    try:
        found = _TAPS(
            [dict(zip(("encoder", "depth", "width"), one, strict=True)) for one in zip(*given, strict=True)],
            KEY,
        )
    except schema.Mismatch as error:
        raise CheckpointError(f"{source.config_file}: {error}") from None
    taps = [Tap(**one) for one in found]
    dim = config["num_attention_heads"] * config["attention_head_dim"]
    _check(str(source.where), taps, {name: info.shape for name, info in tensors.items()}, dim)
    return KeptApart(tensors, {KEY: json.dumps([asdict(tap) for tap in taps])})


APART = Apart(NAME, "transformer", "the projectors of the self-supervised losses", plan)


def shapes(taps: list[Tap], dim: int) -> dict[str, tuple[int, ...]]:
    """Name → shape of every tensor. dim: the transformer's width."""
    found: dict[str, tuple[int, ...]] = {}
    for i, tap in enumerate(taps):
        sizes = ((2 * dim, dim), (2 * dim, 2 * dim), (tap.width, 2 * dim))
        for layer, size in zip(LAYERS, sizes, strict=True):
            found[f"{NAME}.{i}.{layer}.weight"], found[f"{NAME}.{i}.{layer}.bias"] = size, size[:1]
    return found


def _check(where: str, taps: list[Tap], have: Mapping[str, tuple[int, ...]], dim: int) -> None:
    wanted = shapes(taps, dim)
    problems = [f"unknown tensor {name!r}" for name in have if name not in wanted]
    problems += [f"missing tensor {name!r}" for name in wanted if name not in have]
    problems += [
        f"{name!r} has shape {have[name]}, expected {shape}"
        for name, shape in wanted.items()
        if name in have and have[name] != shape
    ]
    if problems:
        raise problem_report(where, problems)


def read_taps(path: Path, config: Any) -> list[Tap]:
    """What a file's header says, checked against the transformer's config; CheckpointError."""
    return _taps(path, read_header(path), config)


def _taps(path: Path, header: Header, config: Any) -> list[Tap]:
    try:
        taps = [Tap(**one) for one in _TAPS(schema.parse_json(header.metadata[KEY]), KEY)]
    except (KeyError, ValueError, TypeError, schema.Mismatch) as error:
        raise CheckpointError(f"{path}: it does not say what its projectors are for: {error}") from None
    _check(str(path), taps, {name: info.shape for name, info in header.tensors.items()}, config.dim)
    for tap in taps:
        if tap.depth >= config.num_layers:
            raise CheckpointError(
                f"{path}: block {tap.depth} is asked for, and there are {config.num_layers}"
            )
    return taps


class Projectors:
    """Frozen, in float32. Called with an encoder's name and the output of its block."""

    def __init__(self, taps: list[Tap], tensors: Mapping[str, mx.array]) -> None:
        self.taps = {tap.encoder: tap for tap in taps}
        self._layers = {
            tap.encoder: [
                (tensors[f"{NAME}.{i}.{layer}.weight"].T, tensors[f"{NAME}.{i}.{layer}.bias"])
                for layer in LAYERS
            ]
            for i, tap in enumerate(taps)
        }
        mx.eval(self._layers)

    @classmethod
    def read(cls, path: Path, config: Any) -> Projectors:
        """Of a model folder's file. CheckpointError when it is damaged, or another model's."""
        header = read_header(path)
        taps = _taps(path, header, config)
        if contents_digest(header) != header.metadata.get(FINGERPRINT):
            raise CheckpointError(
                f"{path} is damaged: its contents are not what its header says; add it again"
            )
        return cls(taps, load_tensors(path, mx.float32))

    def __call__(self, encoder: str, hidden: mx.array) -> mx.array:
        """(B, T, D) of any type → (B, T, width) float32."""
        first, *rest = self._layers[encoder]
        x = mx.addmm(first[1], hidden.astype(mx.float32), first[0])
        for weight, bias in rest:
            x = mx.addmm(bias, nn.silu(x), weight)
        return x
