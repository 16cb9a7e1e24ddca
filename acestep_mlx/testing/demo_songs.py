"""A few seconds of made-up songs with captions and lyrics, for a run without a download."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile as sf

SAMPLE_RATE = 44100


@dataclass(frozen=True)
class Song:
    """What to synthesise: a chord progression in semitones above A2, played at `bpm` for `seconds`."""

    name: str
    caption: str
    lyrics: str
    chords: tuple[tuple[int, ...], ...]
    bpm: float
    seconds: float
    brightness: float  # 0 (sine) … 1 (saw-like)


SONGS = (
    Song(
        "harbour_lights",
        "slow, warm, electric piano, ballad, female voice",
        "[verse]\nHarbour lights are turning low\nEvery boat knows where to go\n\n[chorus]\nCarry me home\n",
        ((0, 3, 7), (-4, 0, 3), (3, 7, 10), (-2, 2, 5)),
        72.0,
        6.0,
        0.25,
    ),
    Song(
        "paper_engine",
        "fast, electronic, bright, driving, synth, dance",
        "[verse]\nPaper engine, spark and wire\nTwo by two and climbing higher\n",
        ((0, 4, 7), (5, 9, 12), (7, 11, 14), (5, 9, 12)),
        128.0,
        7.5,
        0.9,
    ),
    Song(
        "winter_clock",
        "calm, minor, music box, instrumental",
        "[inst]\n",
        ((0, 3, 7), (-2, 1, 5), (-4, 0, 3), (-5, -1, 2)),
        90.0,
        5.0,
        0.5,
    ),
)


def synthesise(song: Song, seed: int = 0) -> np.ndarray:
    """(samples, 2) float32 at 44.1 kHz within ±0.8: chords, a bass and a soft noise drum."""
    rng = np.random.default_rng(seed)
    n = int(song.seconds * SAMPLE_RATE)
    t = np.arange(n) / SAMPLE_RATE
    beat = 60.0 / song.bpm
    since = t % beat  # seconds since the last beat
    chord_index = (t // (2 * beat)).astype(int) % len(song.chords)
    left, right = np.zeros(n), np.zeros(n)
    for voice in range(max(len(c) for c in song.chords)):
        semitones = np.array([c[voice % len(c)] for c in song.chords])[chord_index]
        frequency = 220.0 * 2.0 ** (semitones / 12)
        phase = 2 * np.pi * np.cumsum(frequency) / SAMPLE_RATE
        tone = sum(song.brightness ** (k - 1) / k * np.sin(k * phase) for k in range(1, 7))
        tone = tone * np.exp(-1.5 * since)
        pan = (voice + 1) / (len(song.chords[0]) + 1)
        left += (1 - pan) * tone
        right += pan * tone
    root = np.array([c[0] for c in song.chords])[chord_index]
    bass = np.sin(2 * np.pi * np.cumsum(55.0 * 2.0 ** (root / 12)) / SAMPLE_RATE) * np.exp(-2.0 * since)
    drum = 0.3 * rng.standard_normal(n) * np.exp(-30.0 * since)
    stereo = np.stack([left + bass + drum, right + bass + drum], axis=1)
    found: np.ndarray = (0.8 * stereo / np.abs(stereo).max()).astype(np.float32)
    return found


def write_songs(folder: Path, *, metadata: bool = False) -> list[Path]:
    """`name.wav`, `name.txt` (caption) and `name.lyrics` for each song, in the layout that training reads.

    metadata: also `name.json` with its tempo and metre, for models that are told them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for seed, song in enumerate(SONGS):
        path = folder / f"{song.name}.wav"
        sf.write(path, synthesise(song, seed), SAMPLE_RATE, subtype="PCM_16")
        path.with_suffix(".txt").write_text(song.caption + "\n", encoding="utf-8")
        path.with_suffix(".lyrics").write_text(song.lyrics, encoding="utf-8")
        if metadata:
            facts = {"bpm": song.bpm, "timesignature": "4"}
            path.with_suffix(".json").write_text(json.dumps(facts) + "\n", encoding="utf-8")
        paths.append(path)
    return paths


def write_configs(folder: Path, *, model: Path, songs: Path, flavour: str = "base") -> Path:
    """`config.json`, `multidatabackend.json` and `prompts.json` in `folder`; the path of the first."""
    backends = [
        {
            "id": "demo-songs",
            "type": "local",
            "dataset_type": "audio",
            "instance_data_dir": str(songs),
            "caption_strategy": "textfile",
            "cache_dir_vae": str(folder / "cache" / "vae" / "{id}"),
        },
        {
            "id": "text-embeds",
            "type": "local",
            "dataset_type": "text_embeds",
            "default": True,
            "cache_dir": str(folder / "cache" / "text"),
        },
    ]
    config = {
        "model_family": "ace_step",
        "model_type": "lora",
        "model_flavour": flavour,
        "pretrained_model_name_or_path": str(model),
        "output_dir": str(folder / "output"),
        "cache_dir": str(folder / "cache"),
        "data_backend_config": str(folder / "multidatabackend.json"),
        "mixed_precision": "no",
        "lora_rank": 8,
        "lora_alpha": 16,
        "learning_rate": 1e-3,
        "lr_scheduler": "constant",
        "max_train_steps": 20,
        "checkpointing_steps": 10,
        "resume_from_checkpoint": "latest",
        "validation_prompt_library": str(folder / "prompts.json"),
        "validation_audio_duration": 5,
        "validation_num_inference_steps": 4,
    }
    prompts = {song.name: {"prompt": song.caption, "lyrics": song.lyrics} for song in SONGS[:2]}
    (folder / "prompts.json").write_text(json.dumps(prompts, indent=2) + "\n", encoding="utf-8")
    (folder / "multidatabackend.json").write_text(json.dumps(backends, indent=2) + "\n", encoding="utf-8")
    path = folder / "config.json"
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return path
