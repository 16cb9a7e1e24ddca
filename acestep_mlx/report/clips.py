"""The clips of a run on its page: a table of prompts by steps, and the sounds that its player plays."""

from __future__ import annotations

import base64
import io
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from ..errors import DataError
from ..formatting import brief
from ..io.audio import log_mel
from ..io.loudness import loudness
from .charts import evenly, number
from .spectrogram import log_mel_png, mel_centres

STEPS = 6  # of the steps with clips; the page holds their sounds
QUIETER = 18.0  # dB that a clip is played more softly, at most, to be as loud as its prompt's softest one
_KILOHERTZ = (0.5, 1, 2, 4, 8)
Row = Mapping[str, Any]


class Column(NamedTuple):
    """What a clip was made with. step: -1 without LoRA."""

    step: int
    averaged: bool

    @property
    def title(self) -> str:
        if self.step < 0:
            return "Without LoRA"
        return f"Step {self.step:,}{', averaged weights' if self.averaged else ''}"

    @property
    def id(self) -> str:
        return "base" if self.step < 0 else f"{self.step}{'a' if self.averaged else ''}"


@dataclass(frozen=True)
class Sound:
    """A clip for a page: MP3 and its picture, as base64; seconds; LUFS."""

    kind: str
    data: str
    picture: str
    seconds: float
    level: float


def column(row: Row) -> Column:
    return Column(row["step"], bool(row.get("averaged"))) if row["with_lora"] else Column(-1, False)


def listen(clips: Sequence[Row], best: int | None, none: str) -> str:
    """The section to listen in. best: the step to begin with. none: said where there are no clips."""
    by_prompt: dict[str, dict[Column, Row]] = {}
    for row in clips:
        by_prompt.setdefault(row["name"], {})[column(row)] = row
    if not by_prompt:
        return f'<section id="listen"><h2>Listen</h2><p class="soft">{escape(none)}</p></section>'
    every = {c for found in by_prompt.values() for c in found}
    columns = _columns(every, best)
    steps, shown = ({c.step for c in some if c.step >= 0} for some in (every, columns))
    rest = f"{len(shown)} of {len(steps)} steps; clips of the others are in the folder validation."
    head = "".join(
        f'<th scope="col">{escape(c.title)}{_BEST if c.step == best and not c.averaged else ""}</th>'
        for c in columns
    )
    sounds: dict[str, dict[str, Any]] = {}
    body = "".join(
        _prompt(i, name, found, columns, sounds) for i, (name, found) in enumerate(by_prompt.items())
    )
    held = json.dumps(sounds).replace("<", "\\u003c")
    return (
        f'<section id="listen"><h2>Listen</h2>{_player()}'
        f'<div class="scroll" role="region" aria-label="Clips, prompts by steps" tabindex="0">'
        f'<table class="clips"><thead><tr>{head}</tr></thead>{body}</table></div>'
        f"{f'<p class=soft>{rest}</p>' if len(shown) < len(steps) else ''}"
        f'<script type="application/json" id="sounds">{held}</script></section>'
    )


_BEST = ' <span class="best">best</span>'


def _columns(found: Iterable[Column], best: int | None) -> list[Column]:
    """Without LoRA, then the first, the last, the best and some between."""
    every = sorted(found)
    base, steps = [c for c in every if c.step < 0], sorted({c.step for c in every if c.step >= 0})
    shown = set(evenly(steps, STEPS))
    if best in steps and best not in shown:
        middle = [s for s in shown if s not in (steps[0], steps[-1])]
        shown = shown - {min(middle, key=lambda s: abs(s - best))} | {best} if middle else shown | {best}
    return base + [c for c in every if c.step in shown]


def _prompt(
    number_: int, name: str, found: Mapping[Column, Row], columns: Sequence[Column], sounds: dict[str, Any]
) -> str:
    """The rows of a prompt: its words, then a button for each clip, whose sound is added to `sounds`."""
    heard: dict[Column, Sound | str] = {c: _sound(found[c]) for c in columns if c in found}
    levels = [s.level for s in heard.values() if isinstance(s, Sound) and math.isfinite(s.level)]
    cells = []
    for c in columns:
        sound = heard.get(c, "")
        if isinstance(sound, str):
            cells.append(f'<td class="soft">{escape(sound)}</td>')
            continue
        id, row = f"{number_}-{c.id}", found[c]
        down = min(QUIETER, sound.level - min(levels)) if math.isfinite(sound.level) else 0.0
        sounds[id] = {"type": sound.kind, "data": sound.data, "decibels": -round(down, 2)}
        note = f"{number(round(sound.seconds, 1))} s · seed {row['seed']}"
        label = f"{name}, {c.title}: {note}"
        cells.append(
            f'<td><button type="button" class="clip" data-clip="{id}" data-title="{escape(c.title)}" '
            f'aria-pressed="false" aria-label="{escape(label)}">{_picture(sound)}'
            f'<span class="note">{escape(note)}</span></button></td>'
        )
    first = next(iter(found.values()))
    lyrics = first.get("lyrics") or ""
    words = f"<details><summary>Lyrics</summary><pre>{escape(lyrics)}</pre></details>" if lyrics else ""
    return (
        f'<tbody><tr><th colspan="{len(columns)}" scope="rowgroup"><div class="prompt">'
        f'<h3>{escape(name)}</h3><p class="caption">{escape(first["prompt"])}</p>{words}</div></th></tr>'
        f"<tr>{''.join(cells)}</tr></tbody>"
    )


def _picture(sound: Sound) -> str:
    if not sound.picture:
        return '<span class="nothing"></span>'
    return f'<img alt="" src="data:image/png;base64,{sound.picture}">'


def _player() -> str:
    """One player for all clips. What it shows comes from the clip that is chosen."""
    centres = mel_centres()
    heights = (
        100 * np.interp(np.array(_KILOHERTZ) * 1000, centres, np.arange(len(centres)) + 0.5) / len(centres)
    )
    marks = "".join(
        f'<span style="bottom:{height:.1f}%">{k:g}</span>'
        for k, height in zip(_KILOHERTZ, heights, strict=True)
    )
    return (
        '<div class="player card" role="group" aria-label="Player"><div class="bar">'
        '<button type="button" id="play" aria-label="Play"></button>'
        '<div class="ab" role="group" aria-label="Compare without and with the LoRA">'
        '<button type="button" id="without" aria-pressed="false">Without LoRA</button>'
        '<button type="button" id="with" aria-pressed="false"></button></div>'
        '<span class="clock"><span id="clock">0:00</span> / <span id="length">0:00</span></span>'
        '<label class="match"><input type="checkbox" id="match" checked> equally loud</label></div>'
        f'<div class="shown"><div class="kilohertz" aria-hidden="true"><i>kHz</i>{marks}</div>'
        '<div class="picture"><img id="picture" alt="">'
        '<input type="range" id="place" min="0" max="1" step="any" value="0" '
        'aria-label="Place in the clip, seconds">'
        '</div><div class="seconds" id="seconds" aria-hidden="true"></div></div>'
        '<p class="hears"><b id="name"></b> <span id="words"></span></p>'
        '<p class="keys"><kbd>←</kbd> <kbd>→</kbd> another step, at the same place · '
        "<kbd>↑</kbd> <kbd>↓</kbd> another prompt · <kbd>B</kbd> without and with the LoRA · "
        "<kbd>space</kbd> play, pause</p></div>"
    )


# ── sounds ────────────────────────────────────────────────────────────────────────────────────────────
def _sound(row: Row) -> Sound | str:
    """The clip of a row, or why it cannot be heard."""
    try:
        status = os.stat(row["path"])  # noqa: PTH116
        return _read(row["path"], row.get("loudness"), status.st_size, status.st_mtime_ns)
    except (DataError, OSError) as error:
        return brief(error)


@lru_cache(maxsize=64)
def _read(path: str, level: float | None, *stamp: int) -> Sound:
    """Read once, as the page is written many times. level: LUFS where they are known. DataError."""
    import soundfile

    try:
        sound, rate = soundfile.read(os.fsencode(path), dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, RuntimeError) as error:
        raise DataError(f"{Path(path).name} cannot be read: {brief(error)}") from None
    picture = ""
    if len(sound) > 4096:
        energies = np.array(log_mel(mx.array(sound.mean(1)), sample_rate=rate))
        picture = base64.b64encode(log_mel_png(energies)).decode()
    kind, encoded = compressed(sound, rate)
    level = loudness(sound, rate) if level is None else level
    return Sound(kind, base64.b64encode(encoded).decode(), picture, len(sound) / rate, level)


def compressed(sound: np.ndarray, rate: int) -> tuple[str, bytes]:
    """(media type, file) of a clip: MP3, which every browser plays, or WAV where that cannot be made.

    Of a constant bit rate, so that every place in it is found exactly.
    """
    import soundfile

    buffer = io.BytesIO()
    if "MP3" in soundfile.available_formats():
        how = {"format": "MP3", "bitrate_mode": "CONSTANT", "compression_level": 0.6}
        soundfile.write(buffer, sound, rate, **how)
        return "audio/mpeg", buffer.getvalue()
    soundfile.write(buffer, sound, rate, format="WAV", subtype="PCM_16")
    return "audio/wav", buffer.getvalue()
