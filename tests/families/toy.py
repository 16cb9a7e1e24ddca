"""A made-up model family, as somebody would add one from the outside: see `registered`.

It is unlike v1 wherever a family may be: sound at 8 kHz, 20 frames a second, time before channels, a mean and
a deviation for each frame; a prompt that says how long the song is; lyrics as embeddings, also where nobody
sings; everything that is said of a song in one row of conditions, of which nothing is dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from acestep_mlx import families
from acestep_mlx.config import run
from acestep_mlx.families.model_folder import ModelFolder
from acestep_mlx.families.protocol import Batch, Draw, LatentSpec, Load, Product, Variant
from acestep_mlx.families.songs import (
    Arrays,
    CachedSong,
    Encoded,
    Known,
    Lyrics,
    Padding,
    PartEncoder,
    Shape,
    Sketch,
    SongEncoders,
    Words,
)

from .toy_checkpoint import COMPONENTS, LAYOUT, LORA, NetConfig, ToyTexts

SPEC = LatentSpec(sample_rate=8000, samples_per_frame=400, shape=(None, 3), min_seconds=1.0, max_seconds=6.0)
WIDTH = 4  # of a token's embedding
MOST = 24  # letters of a prompt


class Ear(PartEncoder[np.ndarray]):
    """Sound → the mean and the deviation of left, right and their product in each frame, (T, 3)."""

    names = ("mean", "std")

    def __init__(self, folder: ModelFolder) -> None:
        super().__init__(folder)
        self.prints, self.loads = folder.fingerprints, 0

    def key(self, words: Words) -> Mapping[str, Any]:
        return {"ear": self.prints["ear"]}

    def load(self) -> str:
        self.loads += 1
        return "an ear"

    def encode(self, given: np.ndarray) -> Encoded:
        assert self.loaded == "an ear"
        T = SPEC.covering(len(given))
        padded = np.pad(given, ((0, T * SPEC.samples_per_frame - len(given)), (0, 0)))
        frames = np.concatenate([padded, padded.prod(axis=1, keepdims=True)], axis=1).reshape(T, -1, 3)
        return Encoded({"mean": frames.mean(axis=1), "std": frames.std(axis=1)})


class Letters(PartEncoder[Words]):
    """A text → (L, 4), a row for each letter. `text` says what stands in it."""

    def __init__(self, folder: ModelFolder) -> None:
        self.prints, self.loads = folder.fingerprints, 0

    def text(self, words: Words) -> str:
        raise NotImplementedError

    def key(self, words: Words) -> Mapping[str, Any]:
        return {"letters": self.prints["letters"], "text": self.text(words)}

    def load(self) -> np.ndarray:
        self.loads += 1
        return np.linspace(0.1, 1, WIDTH, dtype=np.float32)

    def encode(self, given: Words) -> Encoded:
        text = self.text(given)
        rows = np.frombuffer(text[:MOST].encode("ascii"), np.uint8)[:, None] * self.loaded
        cut = [f"{self.names[0]}: cut to {MOST} of {len(text)} letters"] if len(text) > MOST else None
        return Encoded({self.names[0]: rows.astype(np.float32)}, cut)


class Prompt(Letters):
    names = ("prompt",)

    def text(self, words: Words) -> str:
        return f"{words.caption}, {words.seconds:.0f} s"


class Sung(Letters):
    names = ("sung",)

    def text(self, words: Words) -> str:
        return words.lyrics or "nobody sings"


class Toy:
    """See `families.protocol.Family`."""

    name = "toy"
    title = "Toy"
    variants: Mapping[str, Variant] = {"toy": Variant("nobody/toy", 0.0)}
    unused: Mapping[str, str] = {}
    refused: Mapping[str, str] = {}
    metadata: Mapping[str, Sequence[str]] = {}
    latents = SPEC
    padding = Padding(text=4, lyrics=8)
    instrumental = "hush"
    key_mark: Mapping[str, Any] = {"family": "toy"}
    layouts = (LAYOUT,)
    apart = ()
    further = None
    texts = ToyTexts()
    components = COMPONENTS

    def flavours(self, config: Any) -> tuple[str, ...]:
        return ("toy",)

    def read_lyrics(self, text: str, language: str | None) -> Lyrics:
        shouted = ["lyrics line 1 is shouted"] if text.isupper() else []
        return Lyrics(text.strip() or None, [], shouted)

    def read_metadata(self, given: Mapping[str, Any]) -> Known:
        return Known({}, [])

    encoders = SongEncoders(Ear, Prompt, Sung)

    def released(self, component: str) -> Any:
        return COMPONENTS[component].config()

    def draft_caption(self, known: Sketch) -> str:
        return known.genre or ""

    def crop(self, arrays: Arrays, start: int, frames: int) -> Arrays:
        part = slice(start, start + frames)
        return {**arrays, "mean": arrays["mean"][part], "std": arrays["std"][part]}

    def collate(self, songs: Sequence[CachedSong], shape: Shape) -> Arrays:
        """mean, std (B, T, 3), frame_mask (B, T); words (B, N, 4) and words_mask (B, N)."""
        B, N = len(songs), shape.text + shape.lyrics
        sizes = {"mean": (shape.frames, 3), "std": (shape.frames, 3), "frame_mask": (shape.frames,)}
        sizes |= {"words": (N, WIDTH), "words_mask": (N,)}
        batch = {name: np.zeros((B, *size), np.float32) for name, size in sizes.items()}
        for b, song in enumerate(songs):
            T = len(song.arrays["mean"])
            batch["mean"][b, :T], batch["std"][b, :T] = song.arrays["mean"], song.arrays["std"]
            batch["frame_mask"][b, :T] = 1
            said = np.concatenate([song.arrays["sung"], song.arrays["prompt"]])
            batch["words"][b, : len(said)] = said
            batch["words_mask"][b, : len(said)] = 1
        return batch

    lora = LORA

    @property
    def memory(self) -> Memory:
        return Memory()

    def objective(self, config: run.RunConfig) -> Straight:
        return Straight()

    def prepare(self, model: nn.Module) -> None:
        return None


class Memory:
    """Next to nothing."""

    def load(self, seconds: float, batch: int = 1, lyrics: int | None = None) -> Load:
        return Load(round(seconds * SPEC.frame_rate), batch, MOST, lyrics or 0)

    def activations(self, config: NetConfig, load: Load, size: int, checkpointed: int) -> float:
        return float(load.batch * load.frames * config.width * (config.layers + 1) * size)

    def products(self, config: NetConfig, load: Load) -> Sequence[Product]:
        return []

    def told(self, config: NetConfig, load: Load, size: int) -> float:
        return float(load.batch * WIDTH * size)

    def kept(self, load: Load, trained: Iterable[str]) -> Mapping[str, float]:
        return {}

    def lyric_counter(self, folder: ModelFolder | None) -> Callable[[str], int]:
        return len

    def cached(self, config: NetConfig, frames: int, captions: Sequence[str], lyrics: str | None) -> float:
        return 2.0 * 2 * frames * WIDTH


class Straight:
    """From sound to noise in a straight line, the sound drawn from its mean and deviation."""

    def draw(self, batch: Batch) -> Draw:
        shape = batch["mean"].shape[1:]
        keys = [mx.split(mx.random.split(key, 4), 4) for key in batch["keys"]]
        noise, near = (mx.stack([mx.random.normal(shape, key=k[i][0]) for k in keys]) for i in (0, 1))
        sigma = mx.concatenate([mx.random.uniform(shape=(1,), key=k[2][0]) for k in keys])
        return Draw(noise, sigma, keys[0][3][0], {"near": near})

    def fixed(self, batch: Batch, sigma: mx.array) -> Draw:
        drawn = self.draw(batch)
        near = {"near": mx.zeros_like(drawn.more["near"])}
        return drawn._replace(sigma=mx.broadcast_to(sigma, drawn.sigma.shape), more=near)

    def losses(self, model: nn.Module, batch: Batch, draw: Draw, dtype: mx.Dtype) -> mx.array:
        sound, level = self.clean(batch, draw)[0], draw.sigma[:, None, None]
        mixed = level * draw.noise + (1 - level) * sound
        return self.compared(self.velocity(model, batch, mixed, draw.sigma, dtype), mixed, batch, draw)

    def clean(self, batch: Batch, draw: Draw) -> tuple[mx.array, mx.array]:
        return batch["mean"] + batch["std"] * draw.more["near"], batch["frame_mask"][..., None]

    def told(self, model: nn.Module, batch: Batch, dtype: mx.Dtype) -> dict[str, mx.array]:
        return {"said": (batch["words"] * batch["words_mask"][..., None]).sum(axis=1) / 1000}

    def velocity(
        self, model: nn.Module, batch: Batch, noisy: mx.array, sigma: mx.array, dtype: mx.Dtype
    ) -> mx.array:
        level = mx.broadcast_to(sigma[:, None, None], (*noisy.shape[:2], 1))
        said = batch["said"] if "said" in batch else self.told(model, batch, dtype)["said"]
        frames = mx.concatenate([noisy, level], axis=-1)
        return model(frames.astype(dtype), said.astype(dtype))[..., :3].astype(mx.float32)

    def compared(
        self,
        velocity: mx.array,
        noisy: mx.array,
        batch: Batch,
        draw: Draw,
        *,
        rolled: mx.array | None = None,
        weight: mx.array | None = None,
    ) -> mx.array:
        sound, mask = self.clean(batch, draw)
        target = draw.noise - sound
        if rolled is not None:
            back = (noisy - sound) / draw.sigma[:, None, None]
            target = mx.where(rolled[:, None, None], back, target)
        squared = mx.square(velocity - target) * (1 if weight is None else weight)
        return (squared.mean(axis=-1) * mask[..., 0]).sum(axis=1) / mask[..., 0].sum(axis=1)


FAMILY = Toy()


def registered(patch: pytest.MonkeyPatch) -> None:
    """`model_flavour=toy` leads to this family."""
    patch.setitem(families.REGISTRY, "toy", __name__)
    flavour = run.OPTIONS["model_flavour"]
    patch.setitem(run.OPTIONS, "model_flavour", replace(flavour, choices=(*(flavour.choices or ()), "toy")))
