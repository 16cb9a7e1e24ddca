"""Small data sets for tests: songs that are cheap to make and told apart by their sound."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import soundfile as sf

from acestep_mlx.config.read_run import load_config
from acestep_mlx.config.run import RunConfig
from acestep_mlx.data.manifest import Manifest, build_manifest

RATE = 22050


def tone(seconds: float, pitch: float = 220.0, rate: int = RATE, channels: int = 1) -> np.ndarray:
    """(samples, channels) float32: a tone with a little noise."""
    t = np.arange(round(seconds * rate)) / rate
    noise = np.random.default_rng(int(pitch)).normal(size=len(t)) * 0.01
    return np.repeat((0.3 * np.sin(2 * np.pi * pitch * t) + noise)[:, None], channels, 1).astype(np.float32)


def write(path: Path, seconds: float = 4.0, pitch: float = 220.0, rate: int = RATE, **kw: Any) -> Path:
    """One song as an audio file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sf.write(path, tone(seconds, pitch, rate), rate, **kw)
    return path


def song(
    folder: Path,
    name: str,
    seconds: float = 4.0,
    caption: str | None = "pop, happy",
    lyrics: str | None = None,
) -> Path:
    """A song with the usual text files beside it."""
    path = write(folder / f"{name}.wav", seconds, 200.0 + sum(name.encode()))
    if caption is not None:
        (folder / f"{name}.txt").write_text(caption, encoding="utf-8")
    if lyrics is not None:
        (folder / f"{name}.lyrics").write_text(lyrics, encoding="utf-8")
    return path


def config(root: Path, *entries: dict[str, Any], **options: Any) -> RunConfig:
    """A configuration whose caches lie under `root`; an entry without id and folder gets `root/songs`."""
    full = [
        {"id": f"set{i}" if i else "set", "type": "local", "instance_data_dir": str(root / "songs"), **entry}
        for i, entry in enumerate(entries or ({},))
    ]
    return load_config({"cache_dir": str(root / "cache"), "data_backend_config": full, **options})


def manifest(root: Path, *entries: dict[str, Any], **options: Any) -> Manifest:
    return build_manifest(config(root, *entries, **options))
