"""A miniature of ACE-Step 1.5 with random weights, and stand-ins for what reads its texts."""

from __future__ import annotations

from collections import namedtuple
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_map_with_path

from acestep_mlx.families.v15 import ACEStep15
from acestep_mlx.families.v15.conditions import ConditionConfig, ConditionEncoder
from acestep_mlx.families.v15.dit import ACEStep15Transformer, TransformerConfig
from acestep_mlx.families.v15.oobleck import Oobleck, OobleckConfig

from .tiny import tiny


def random(module: Any, seed: int = 0) -> Any:
    """Random weights everywhere, of sizes that keep signals alive."""
    mx.random.seed(seed)

    def fill(path: str, p: mx.array) -> mx.array:
        noise = mx.random.normal(p.shape)
        if path.endswith("norm.weight"):
            return 1 + 0.3 * noise
        return noise / max(1.0, p.size / p.shape[0]) ** 0.5 if path.endswith("weight") else 0.3 * noise

    module.update(tree_map_with_path(fill, module.parameters()))
    module.freeze()
    mx.eval(module.parameters())
    return module.eval()


def transformer(seed: int = 0) -> ACEStep15Transformer:
    return random(ACEStep15Transformer(tiny(TransformerConfig)), seed)


class Letters:
    """A token a letter, and one more at the end, also of what is cut."""

    END = 256

    def __call__(self, texts: list[str], max_length: int) -> tuple[mx.array, mx.array]:
        rows = [[*text.encode()[: max_length - 1], self.END] for text in texts]
        N = max(map(len, rows))
        ids = np.array([row + [self.END] * (N - len(row)) for row in rows])
        return mx.array(ids), mx.array(np.array([[1] * len(row) + [0] * (N - len(row)) for row in rows]))


class Reader(nn.Module):
    """In the text encoder's place: a row a token, and states that are something else."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(257, width)

    def __call__(self, input_ids: mx.array, attention_mask: mx.array) -> mx.array:
        return mx.cumsum(self.embed_tokens(input_ids), axis=1) / 4


def song_encoders(folder: Any) -> Any:
    """What encodes songs, by part."""
    made = {part: one(folder) for part, one in ACEStep15().encoders._asdict().items()}
    return namedtuple("Parts", made)(**made)


class Folder:
    """In a model folder's place; says what is loaded."""

    def __init__(self, path: Path, **modules: Any) -> None:
        self.path, self.loaded = path, []
        (path / "tokenizer.json").write_text("{}")
        condition = tiny(ConditionConfig)
        self.modules = {
            "text_encoder": Reader(condition.text_hidden_dim),
            "condition_encoder": random(ConditionEncoder(condition), 1),
            "vae": random(Oobleck(tiny(OobleckConfig)), 2),
            **modules,
        }
        self.fingerprints = {name: f"{name} 1" for name in self.modules}

    def load(self, component: str, dtype: Any = None, used: tuple[str, ...] = ("",)) -> Any:
        assert dtype == mx.float32
        self.loaded.append(component)
        return self.modules[component]

    def prompt_tokenizer(self) -> Letters:
        return Letters()
