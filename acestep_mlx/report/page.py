"""`report.html`: one file that shows a run, with its curves, clips and spectrograms inside. No network."""

from __future__ import annotations

import base64
import io
import json
import os
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from .. import __version__
from ..config.run import RunConfig
from ..families import of_flavour
from ..formatting import brief, rate, size
from ..io.atomic import write_bytes
from ..io.audio import log_mel
from ..io.schema import read_file
from .charts import Series, evenly, line_chart, number
from .events import OTHER_RATE, PART, read_metrics
from .spectrogram import log_mel_png

CLIPS_PER_PROMPT = 6
_COLOURS = ("c0", "c1", "c2", "c3", "c4", "r0", "r1", "r2", "r3", "r4")  # their values stand in the sheet
STYLE = read_file(Path(__file__).with_suffix(".css")).decode() + "".join(
    f".line.{c},.dot.{c}{{stroke:var(--{c})}}.dot.{c}{{fill:var(--{c})}}.chip.{c}{{background:var(--{c})}}"
    for c in _COLOURS
)
SCRIPT = read_file(Path(__file__).with_suffix(".js")).decode()
Row = Mapping[str, Any]


def write_report(output_dir: Path, config: RunConfig, best: str = "", ended: str = "") -> Path | None:
    """Write `report.html` from `metrics.jsonl` and the clips that it names; None without any.

    best: path of the checkpoint with the lowest evaluation loss. ended: why the run is over, where it is not
    by its last step.
    """
    rows = read_metrics(output_dir / "metrics.jsonl")
    if not rows:
        return None
    steps = [r for r in rows if r["event"] == "step"]
    evaluations = [r for r in rows if r["event"] == "eval" and r["loss"] is not None]
    averaged = [r for r in rows if r["event"] == "eval_average"]
    clips = list({r["path"]: r for r in rows if r["event"] == "clip" and Path(r["path"]).is_file()}.values())
    title = config.tracker_run_name or output_dir.name
    page = (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body><main>"
        f"<header><h1>{escape(title)}</h1><p>LoRA training of "
        f"{of_flavour(config.model_flavour).title} with acestep-mlx {__version__}</p>"
        f"{f'<p>{escape(ended[0].upper() + ended[1:])}</p>' if ended else ''}</header>"
        f"{_summary(steps, evaluations, config, best)}{_charts(steps, evaluations, averaged, best)}"
        f"{_clips(clips)}{_settings(config)}</main><script>{SCRIPT}</script></body></html>"
    )
    path = output_dir / "report.html"
    write_bytes(path, page.encode("utf-8", errors="backslashreplace"))
    return path


# ── the numbers on top ────────────────────────────────────────────────────────────────────────────────
def _best(evaluations: Sequence[Row], best: str) -> Row | None:
    """The evaluation of the best checkpoint, whose folder's name ends with its step."""
    step = best.rpartition("-")[2]
    return next((r for r in reversed(evaluations) if str(r["step"]) == step), None)


def _summary(steps: Sequence[Row], evaluations: Sequence[Row], config: RunConfig, best: str) -> str:
    tiles: list[tuple[str, str, str]] = []
    if steps:
        last = steps[-1]
        tiles.append(("Steps", f"{last['step']:,}", f"epoch {last['epoch'] + 1}"))
        loss = last["smoothed_loss"]
        tiles.append(("Training loss", number(loss) if loss is not None else "–", "smoothed"))
    if evaluations:
        first, last_eval = evaluations[0], evaluations[-1]
        change = (last_eval["loss"] / first["loss"] - 1) * 100 if first["loss"] else 0.0
        note = (
            f"{change:+.1f} % since step {first['step']}" if len(evaluations) > 1 else f"step {first['step']}"
        )
        tiles.append(("Evaluation loss", number(last_eval["loss"]), note))
    if found := _best(evaluations, best):
        tiles.append(
            ("Best checkpoint", f"step {found['step']:,}", f"evaluation loss {number(found['loss'])}")
        )
    if steps:
        rates = [r["steps_per_second"] for r in steps if r["steps_per_second"]]
        typical = float(np.median(rates)) if rates else 0.0
        speed = f"{typical:.2f} steps/s" if typical >= 1 else f"{1 / typical:.1f} s/step" if typical else "–"
        audio = rate(steps[-1]["audio_seconds_per_second"] or 0.0)
        tiles.append(("Speed", speed, f"{audio} s of audio per second"))
        peak = max(r["peak_memory"] for r in steps)
        tiles.append(("Peak memory", size(peak), "model, LoRA, activations"))
        skipped = sum(bool(r["skipped"]) for r in steps)
        if skipped:
            tiles.append(("Skipped steps", str(skipped), "not finite"))
    kind = "DoRA" if config.use_dora else "rsLoRA" if config.use_rslora else "LoRA"
    detail, alpha = f"rank {config.lora_rank}", f"alpha {config.lora_alpha:g}"
    if isinstance(config.lycoris_config, dict) and config.lora_type == "lycoris":
        kind, detail = "LoKr", f"factor {config.lycoris_config.get('factor', -1)}"
        alpha = f"linear_dim {config.lycoris_config.get('linear_dim', 4)}"
    tiles.append((kind, detail, alpha))
    cells = "".join(
        f'<div class="tile"><span>{escape(a)}</span><b>{escape(b)}</b><small>{escape(c)}</small></div>'
        for a, b, c in tiles
    )
    return f'<section class="tiles">{cells}</section>'


# ── curves ────────────────────────────────────────────────────────────────────────────────────────────
def _points(rows: Sequence[Row], key: str, scale: float = 1.0) -> list[tuple[float, float]]:
    return [(r["step"], r[key] * scale) for r in rows if r.get(key) is not None]


def _charts(steps: Sequence[Row], evaluations: Sequence[Row], averaged: Sequence[Row], best: str) -> str:
    bins = list(evaluations[-1]["bins"]) if evaluations else []
    rows = [{"step": r["step"], **r["bins"]} for r in evaluations]
    by_bin = [Series(name, _points(rows, name), f"r{i}") for i, name in enumerate(bins)]
    rates = [
        Series("LoRA", _points(steps, "learning_rate"), "c0"),
        *(
            Series(name.removeprefix(OTHER_RATE).replace("_", " "), _points(steps, name), "c1")
            for name in dict.fromkeys(key for row in steps for key in row if key.startswith(OTHER_RATE))
        ),
    ]
    losses = [
        Series("each step", _points(steps, "loss"), "c0", faint=True),
        Series("smoothed", _points(steps, "smoothed_loss"), "c0"),
    ]
    names = dict.fromkeys(key for row in steps for key in row if PART in key)
    parts = [Series(name, _points(steps, name), f"c{i % 5}") for i, name in enumerate(names)]
    mean = [
        Series("mean", _points(evaluations, "loss"), "c1"),
        Series("averaged weights", _points(averaged, "loss"), "c2"),
    ]
    if found := _best(evaluations, best):
        mean.append(Series(f"best checkpoint, step {found['step']:,}", _points([found], "loss"), "c0"))
    memory = [Series("GB", _points(steps, "peak_memory", 1e-9), "c3")]
    speed = [Series("s", _points(steps, "audio_seconds_per_second"), "c4")]
    charts = [
        line_chart("Training loss", losses),
        *([line_chart("Parts of the training loss", parts)] if parts else []),
        line_chart("Evaluation loss", mean, unit="always the same"),
        line_chart("Evaluation loss by timestep", by_bin, unit="0 = clean, 1000 = noise", zero=True),
        line_chart("Learning rate", rates, zero=True),
        line_chart("Gradient norm", [Series("norm", _points(steps, "grad_norm"), "c2")], zero=True),
        line_chart("Peak memory", memory, unit="GB", zero=True),
        line_chart("Speed", speed, unit="seconds of audio per second", zero=True),
    ]
    return f'<section><h2>Curves</h2><div class="grid2">{"".join(charts)}</div></section>'


# ── clips ─────────────────────────────────────────────────────────────────────────────────────────────
def _clips(clips: Sequence[Row]) -> str:
    prompts: dict[str, list[Row]] = {}
    for clip in clips:
        prompts.setdefault(clip["name"], []).append(clip)
    parts = []
    for name, all_rows in prompts.items():
        latest = list({(r["with_lora"], r.get("averaged"), r["step"]): r for r in all_rows}.values())
        base = [r for r in latest if not r["with_lora"]][-1:]
        tuned = evenly([r for r in latest if r["with_lora"]], CLIPS_PER_PROMPT)
        caption = escape(all_rows[0]["prompt"])
        cards = "".join(_card(r) for r in [*base, *tuned])
        parts.append(
            f'<h3>{escape(name)}</h3><p class="caption">{caption}</p><div class="grid2">{cards}</div>'
        )
    return f"<section><h2>Clips</h2>{''.join(parts)}</section>" if parts else ""


def _card(row: Row) -> str:
    import soundfile

    try:
        sound, rate = soundfile.read(os.fsencode(row["path"]), dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, RuntimeError) as error:
        return f'<figure class="card clip"><figcaption>{escape(brief(error))}</figcaption></figure>'
    title = f"Step {row['step']}" if row["with_lora"] else "Without LoRA"
    title += ", averaged weights" if row.get("averaged") else ""
    picture = ""
    if len(sound) > 4096:
        energies = np.array(log_mel(mx.array(sound.mean(1)), sample_rate=rate))
        data = base64.b64encode(log_mel_png(energies)).decode()
        picture = f'<img alt="spectrogram, {escape(title)}" src="data:image/png;base64,{data}">'
    kind, encoded = compressed(sound, rate)
    source = f"data:{kind};base64,{base64.b64encode(encoded).decode()}"
    player = f'<audio controls preload="metadata" src="{source}"></audio>'
    note = escape(f"seed {row['seed']} · {len(sound) / rate:.0f} s")
    return (
        f'<figure class="card clip"><figcaption>{escape(title)} <span class="unit">{note}</span></figcaption>'
        f"{picture}{player}</figure>"
    )


def compressed(sound: np.ndarray, rate: int) -> tuple[str, bytes]:
    """(media type, file) of a clip: MP3, which every browser plays, or WAV where that cannot be made."""
    import soundfile

    buffer = io.BytesIO()
    if "MP3" in soundfile.available_formats():
        soundfile.write(buffer, sound, rate, format="MP3")
        return "audio/mpeg", buffer.getvalue()
    soundfile.write(buffer, sound, rate, format="WAV", subtype="PCM_16")
    return "audio/wav", buffer.getvalue()


# ── settings ──────────────────────────────────────────────────────────────────────────────────────────
def _settings(config: RunConfig) -> str:
    values = config.to_dict()
    given = {k: v for k, v in values.items() if config.origin(k) != "default"}
    rest = {k: v for k, v in values.items() if k not in given and v not in (None, "", False)}

    def table(entries: Mapping[str, Any]) -> str:
        cells = "".join(
            f"<tr><th>{escape(k)}</th><td>{escape(v if isinstance(v, str) else json.dumps(v))}</td></tr>"
            for k, v in entries.items()
        )
        return f"<table>{cells}</table>"

    return (
        f"<section><h2>Settings</h2>{table(given)}<details><summary>Defaults in use"
        f"</summary>{table(rest)}</details>"
        "</section>"
    )
