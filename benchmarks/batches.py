"""What the data side costs a training step: true sizes, warm caches, a made-up data set.

    python benchmarks/batches.py                 # 200 songs of 240 s, batch 1
    python benchmarks/batches.py --songs 2000 --seconds 60 --batch 4

Prints the time of a warm start (cache check) and of `Batches.next()` when the step takes as long as `--step`
(the reading thread works meanwhile). Latents and texts are random numbers; no model is needed.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from acestep_mlx.config.read_datasets import read_datasets
from acestep_mlx.config.read_run import load_config
from acestep_mlx.data.batches import Batches
from acestep_mlx.data.encode import Cache
from acestep_mlx.data.facts import FileAudio
from acestep_mlx.data.manifest import Manifest, Sample
from acestep_mlx.data.summary import DatasetReport, SetReport
from acestep_mlx.families.v1 import FAMILY as V1
from acestep_mlx.io.progress import silent

WORDS, WIDTH, LYRICS = 40, 768, 900


def made_up(root: Path, songs: int, seconds: float, batch: int) -> tuple[Any, Cache]:
    """A configuration and a filled cache of so many songs."""
    entry = {"id": "made-up", "instance_data_dir": str(root)}
    config = load_config(
        {"cache_dir": str(root / "cache"), "data_backend_config": [entry], "train_batch_size": batch}
    )
    backends = read_datasets(config)
    samples = [
        Sample(f"made-up/{i}", backends.audio[0], FileAudio(root / f"{i}.wav"), f"{i:064d}",
               (f"caption {i}",), f"lyrics {i}", 0.0, seconds, False, V1.latents)
        for i in range(songs)
    ]  # fmt: skip
    for name in ("tokenizer.json", "lyric_vocab.json"):
        (root / name).write_text("{}")
    folder = SimpleNamespace(
        path=root,
        config={"components": {"vocoder": {}}},
        fingerprints={"dcae": "d", "text_encoder": "t", "vocoder": "v"},
        lyric_vocab=lambda: root / "lyric_vocab.json",
    )
    manifest = Manifest(samples, [], DatasetReport([SetReport("made-up", songs, 3.0, V1)]), backends, V1)
    cache = Cache(manifest, config, folder)  # type: ignore[arg-type]
    rng = np.random.default_rng(0)
    for sample in samples:
        latents = rng.normal(size=(8, 16, sample.frames)).astype(np.float16)
        cache._store(sample, "latents").put(cache.latent_key(sample), {"latents": latents})
        states = rng.normal(size=(WORDS, WIDTH)).astype(np.float16)
        ids = np.arange(LYRICS, dtype=np.int32)
        for kind, arrays in (("text", {"states": states}), ("lyrics", {"ids": ids})):
            cache._store(sample, kind).put(str(cache.key(kind, sample)), arrays)
    return config, cache


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--songs", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=240.0)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--step", type=float, default=0.05, help="seconds that a training step takes")
    parser.add_argument("--batches", type=int, default=100)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        config, cache = made_up(Path(place), arguments.songs, arguments.seconds, arguments.batch)
        start = time.perf_counter()
        cache.fill(silent)
        print(f"warm start: {time.perf_counter() - start:.2f} s for {arguments.songs} songs")
        size, minutes = cache.disk_usage(), arguments.songs * arguments.seconds / 60
        print(f"caches: {size / 1e6:.1f} MB, {size / 1e6 / minutes:.3f} MB per minute of sound")
        batches = Batches(cache, config)
        batches.next()
        times = []
        for _ in range(arguments.batches):
            time.sleep(arguments.step)
            start = time.perf_counter()
            batch = batches.next()
            mx.eval(batch["latents"], batch["text"], batch["lyric_ids"])
            times.append(time.perf_counter() - start)
        batches.close()
    print(f"next(): median {1e3 * median(times):.2f} ms, worst {1e3 * max(times):.2f} ms")


if __name__ == "__main__":
    main()
