"""Checkpoints of the made-up family: a folder `toy_net` with transformer and letters in one file and one
config.json, a folder `toy_ear`, and beside them the alphabet that prompts are spelt with.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from safetensors.numpy import save_file

from acestep_mlx.errors import CheckpointError
from acestep_mlx.families.keymap import KeyMap
from acestep_mlx.families.layout import Layout, Parts, Place
from acestep_mlx.families.model_folder import ModelFolder
from acestep_mlx.families.protocol import Component, FoundTexts, LoRANames
from acestep_mlx.io import schema
from acestep_mlx.io.progress import Progress
from acestep_mlx.nn.config import ComponentConfig

ALPHABET = "abcdefghijklmnopqrstuvwxyz -,."


@dataclass(frozen=True)
class NetConfig(ComponentConfig):
    """Sizes of the transformer, if that is what it is."""

    width: int = 64
    layers: int = 2
    channels: int = 4

    @property
    def blocks(self) -> int:
        return self.layers

    NAME: ClassVar = "toy net"
    REPEATED: ClassVar = ("layers",)
    REQUIRED: ClassVar = ("width",)


LORA = LoRANames(
    presets={"most": ("layers.0", "layers.1"), "all": ("enter", "layers.0", "layers.1", "leave")},
    default="most",
    option="acestep_lora_target",
    refused={},
    idle={},
    numbered=("layers",),
    convolutions=(),
    flat=((r"layers_(\d+)", r"layers.\1"), (r"(enter|leave)", r"\1")),
    unused=(),
    others=(),
    lookalikes={},
    prefixes={"simpletuner": "net."},
)


class Net(nn.Module):
    """Linear layers over the frames of (B, T, C)."""

    lora = LORA
    checkpoint_blocks = 0
    product_blocks = 0

    def __init__(self, config: NetConfig) -> None:
        super().__init__()
        self.config = config
        D = config.width
        self.enter = nn.Linear(config.channels, D)
        self.layers = [nn.Linear(D, D) for _ in range(config.layers)]
        self.leave = nn.Linear(D, config.channels)

    def __call__(self, frames: mx.array, said: mx.array) -> mx.array:
        """frames (B, T, C), said (B, C') → (B, T, C)."""
        x = self.enter(frames) + mx.mean(said, axis=-1)[:, None, None]
        for layer in self.layers:
            x = x + mx.tanh(layer(x))
        return self.leave(x)


@dataclass(frozen=True)
class LettersConfig(ComponentConfig):
    """Sizes of what reads prompts."""

    width: int = 64
    letters: int = 32

    NAME: ClassVar = "toy letters"

    @classmethod
    def sizes_in(cls, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
        """The file says nothing of the letters."""
        return {"letters": shapes["table.weight"][0]}


class Letters(nn.Module):
    """A vector a letter."""

    def __init__(self, config: LettersConfig) -> None:
        super().__init__()
        self.table = nn.Embedding(config.letters, config.width)


@dataclass(frozen=True)
class EarConfig(ComponentConfig):
    """Sizes of what hears."""

    channels: int = 4
    hop: int = 16

    NAME: ClassVar = "toy ear"


class Ear(nn.Module):
    """Sound (B, N, 2) → latents (B, N / hop, C)."""

    def __init__(self, config: EarConfig) -> None:
        super().__init__()
        self.frames = nn.Conv1d(2, config.channels, config.hop, stride=config.hop)


class _Shared(Layout):
    """Transformer and letters share a config.json."""

    def config(self, name: str, found: dict[str, Any], parts: Parts, root: Path) -> dict[str, Any]:
        return dict(found[name]) if name in found else found


LAYOUT = _Shared(
    "toy of nobody",
    {
        "transformer": Place("toy_net", (("core.", ""),)),
        "letters": Place("toy_net", (("letters", "table.weight"),)),
        "ear": Place("toy_ear"),
    },
    beside=("alphabet.json",),
)


class ToyTexts:
    """The alphabet."""

    files: Mapping[str, str] = {"alphabet": "alphabet.json"}
    config_keys: Mapping[str, schema.Check] = {"alphabet": schema.text}

    def find(
        self,
        root: Path,
        layout: Layout,
        configs: Mapping[str, Any],
        given: Mapping[str, str | Path],
        progress: Progress,
    ) -> FoundTexts:
        """From the checkpoint, or the file that is given."""
        path = Path(given.get("alphabet", root / "alphabet.json"))
        letters = schema.read_json(path)["letters"]
        if len(letters) > configs["letters"].letters:
            raise CheckpointError(f"{path}: more letters than the letters have")
        return FoundTexts(
            {"alphabet.json": path.read_bytes()}, {"alphabet": letters}, {"alphabet": str(path)}
        )

    def lacking(self, root: Path, layout: Layout) -> Mapping[str, str]:
        """Nothing."""
        return {}

    def describe(self, config: Mapping[str, Any]) -> list[str]:
        """How many letters."""
        return [f"alphabet of {len(config['alphabet'])} letters"]

    def prompt_tokenizer(self, folder: ModelFolder) -> Any:
        """Text → ids of its letters; what is no letter is left out."""
        letters = schema.read_json(folder.path / "alphabet.json")["letters"]
        return lambda text: [letters.index(letter) for letter in text if letter in letters]

    def lyric_tokenizer(self, folder: ModelFolder) -> Any:
        """The same."""
        return self.prompt_tokenizer(folder)

    def lyric_vocab(self, folder: ModelFolder) -> Path:
        """The alphabet."""
        return folder.path / "alphabet.json"


COMPONENTS: Mapping[str, Component] = {
    "transformer": Component(
        NetConfig,
        Net,
        KeyMap(((r"blocks\.(\d+)\.(.*)", r"layers.\1.\2"),), ((r"spare", "nobody uses it"),)),
        quantized=True,
        full_precision=("enter",),
    ),
    "letters": Component(LettersConfig, Letters, KeyMap()),
    "ear": Component(EarConfig, Ear, KeyMap()),
}  # fmt: skip


def write_checkpoint(folder: Path) -> dict[str, np.ndarray]:
    """A random checkpoint as its makers would lay it out; gives the tensors of `toy_net`."""
    rng = np.random.default_rng(0)
    net, ear = NetConfig(), EarConfig()
    sizes = {"enter": (net.width, net.channels), "leave": (net.channels, net.width)}
    sizes |= {f"blocks.{i}": (net.width, net.width) for i in range(net.layers)}
    tensors = {f"core.{name}.weight": rng.normal(0, 0.1, size) for name, size in sizes.items()}
    tensors |= {f"core.{name}.bias": rng.normal(0, 0.1, size[:1]) for name, size in sizes.items()}
    tensors |= {"core.spare": np.zeros(3), "letters": rng.normal(size=(32, net.width))}
    shape = (ear.channels, 2, ear.hop)
    heard = {
        "frames.weight_g": np.ones((ear.channels, 1, 1)),
        "frames.weight_v": rng.normal(size=shape),
        "frames.bias": np.zeros(ear.channels),
    }
    configs = {"transformer": {**asdict(net), "_class_name": "X"}, "letters": {"width": net.width}}
    for name, values, content in (("toy_net", tensors, configs), ("toy_ear", heard, asdict(ear))):
        (folder / name).mkdir(parents=True)
        save_file({k: v.astype(np.float32) for k, v in values.items()}, folder / name / "model.safetensors")
        (folder / name / "config.json").write_text(json.dumps(content))
    (folder / "alphabet.json").write_text(json.dumps({"letters": ALPHABET}))
    return {name: value.astype(np.float32) for name, value in tensors.items()}
