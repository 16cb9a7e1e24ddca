"""Small training runs end to end: three short songs, the miniature model, shared caches."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import soundfile

from acestep_mlx.report.events import Event
from acestep_mlx.training import checkpoint
from acestep_mlx.training.checkpoint import Checkpoint
from acestep_mlx.training.run import TrainResult, train

from ..small import small_model

SONGS = {"low": 110.0, "middle": 220.0, "high": 440.0}
LYRICS = {"low": "[verse]\nDown by the river\n", "high": "[instrumental]\n"}


def write_songs(folder: Path, seconds: float = 3.0) -> None:
    """Three tones with captions, two with lyrics; one bucket, so that a run compiles one graph."""
    folder.mkdir(parents=True, exist_ok=True)
    time = np.arange(round(seconds * 44100)) / 44100
    for name, hertz in SONGS.items():
        tone = 0.3 * np.sin(2 * np.pi * hertz * time) * (1 + 0.5 * np.sin(2 * np.pi * 2 * time))
        soundfile.write(folder / f"{name}.wav", np.stack([tone, 0.8 * tone], 1), 44100)
        (folder / f"{name}.txt").write_text(f"{name} tone\na {name} sound\n")
        if name in LYRICS:
            (folder / f"{name}.lyrics").write_text(LYRICS[name])


def configuration(root: Path, model: Path, name: str, **options: Any) -> dict[str, Any]:
    """A run in `root/name` on the songs and caches of `root`."""
    songs = root / "songs"
    if not songs.is_dir():
        write_songs(songs)
    backends = options.pop("backends", [{"id": "songs", "instance_data_dir": str(songs)}])
    filled = [
        {"type": "local", "dataset_type": "audio", "caption_strategy": "textfile", **b} for b in backends
    ]
    backend_file = root / f"{name}-backends.json"
    backend_file.write_text(json.dumps(filled))
    return {
        "model_family": "ace_step",
        "model_type": "lora",
        "pretrained_model_name_or_path": str(model),
        "output_dir": str(root / name),
        "data_backend_config": str(backend_file),
        "cache_dir": str(root / "cache"),
        "mixed_precision": "no",
        "lora_rank": 2,
        "learning_rate": 1e-3,
        "lr_scheduler": "constant",
        "max_train_steps": 6,
        "checkpointing_steps": 0,
        "validation_disable": True,
        "eval_loss_disable": True,
        **options,
    }


@contextmanager
def lab(root: Path, **options: Any) -> Iterator[Callable[..., dict[str, Any]]]:
    """Makes configurations as `configuration` does, of the smallest model and with these options; while it
    is open nothing is compiled and nothing waits for the disk.
    """
    model = small_model(root / "base")
    smallest = {"acestep_lora_target": "attn_qkv", "gradient_checkpointing": False}
    evaluated = {"eval_loss_disable": False, "num_eval_images": 1}

    def make(name: str, **changes: Any) -> dict[str, Any]:
        return configuration(root, model, name, **{**smallest, **evaluated, **options, **changes})

    mx.disable_compile()
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "fsync", lambda handle: None)
            yield make
    finally:
        mx.enable_compile()


class Recorder:
    """Keeps all events; may act on one."""

    def __init__(self, act: Any = None) -> None:
        self.events: list[Event] = []
        self.act = act

    def __call__(self, event: Event) -> None:
        self.events.append(event)
        if self.act is not None:
            self.act(event)

    def of(self, kind: type) -> list[Any]:
        return [e for e in self.events if isinstance(e, kind)]


def run(config: dict[str, Any], act: Any = None, stop: Any = None) -> tuple[TrainResult, Recorder]:
    recorder = Recorder(act)
    return train(config, on_event=recorder, stop=stop), recorder


def latest(output: Path) -> Checkpoint:
    """The newest checkpoint, once what a kill left in the folder has been put right; none is damaged."""
    checkpoint.clean(output)
    path = checkpoint.newest(output, lambda text, level: pytest.fail(text))
    assert path is not None
    return checkpoint.read(path)


def tensors(checkpoint: Path) -> dict[str, mx.array]:
    """Everything numeric in a checkpoint."""
    return {
        f"{name}|{key}": value
        for name in ("adapter", "optimizer", "sampler", "average")
        if name != "average" or (checkpoint / "average.safetensors").is_file()
        for key, value in mx.load(str(checkpoint / f"{name}.safetensors")).items()
    }


def assert_identical(a: Path, b: Path) -> None:
    """Two checkpoints hold the same bits, and their runs have the same losses."""
    one, two = tensors(a), tensors(b)
    assert one.keys() == two.keys()
    different = [k for k in one if not mx.array_equal(one[k], two[k])]
    assert not different, different[:5]
    state = [json.loads((p / "training_state.json").read_text()) for p in (a, b)]
    assert state[0]["counters"] == state[1]["counters"] and state[0]["batches"] == state[1]["batches"]


def losses(output: Path) -> list[tuple[int, float]]:
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [(r["step"], r["loss"]) for r in rows if r["event"] == "step"]
