"""`report.html`: one file that plays a run's clips and shows how it goes. No network.

While the run goes on, `report_live.js` beside it holds what changes. An open page reads it every few seconds,
as a script, which works without a server.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from .. import __version__
from ..config.run import RunConfig
from ..families import of_flavour
from ..formatting import count, duration, rate, size
from ..io.atomic import write_bytes
from ..io.schema import read_file
from .charts import Series, constant, line_chart, number
from .clips import listen
from .events import OTHER_RATE, PART, read_metrics
from .live import FILE as LIVE

_COLOURS = ("c0", "c1", "c2", "c3", "c4")  # their values stand in the sheet
STYLE = read_file(Path(__file__).with_suffix(".css")).decode() + "".join(
    f".line.{c},.dot.{c}{{stroke:var(--{c})}}.dot.{c}{{fill:var(--{c})}}" for c in _COLOURS
)
SCRIPT = read_file(Path(__file__).with_suffix(".js")).decode()
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Song:
    """A song that is trained on, as the page names it."""

    name: str
    seconds: float
    captions: Sequence[str]
    lyrics: str | None


@dataclass(frozen=True)
class About:
    """What is known of a run beside its numbers.

    best: path of the checkpoint with the lowest evaluation loss. ended: why the run is over, where it is not
    by its last step. running: it goes on. total: its steps; 0 where that is not known.
    """

    best: str = ""
    ended: str = ""
    running: bool = False
    total: int = 0
    songs: Sequence[Song] = ()

    @property
    def best_step(self) -> int | None:
        """The step that the best checkpoint's folder is named after."""
        step = self.best.rpartition("-")[2]
        return int(step) if step.isdecimal() else None


@dataclass(frozen=True)
class _Run:
    """All that the page shows."""

    config: RunConfig
    about: About
    steps: Sequence[Row]
    told: Row  # the last evaluation that has a verdict
    evaluations: Sequence[Row]  # those whose loss was finite
    averaged: Sequence[Row]
    clips: Sequence[Row]

    @property
    def best(self) -> Row | None:
        """The evaluation of the best checkpoint."""
        step = self.about.best_step
        return next((r for r in reversed(self.evaluations) if r["step"] == step), None)


def write_report(output_dir: Path, config: RunConfig, about: About | None = None) -> Path | None:
    """Write `report.html` from `metrics.jsonl` and the clips that it names; None without any. OSError."""
    run = _read(output_dir, config, about or About())
    if run is None:
        return None
    title = config.tracker_run_name or _name(output_dir)
    page = (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta name="color-scheme" content="light dark">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>"
        f'<body data-live="{LIVE if run.about.running else ""}" data-clips="{len(run.clips)}"><main>'
        f'<header><h1>{escape(title)}</h1><div id="status">{_status(run)}</div>'
        f'<p id="news" hidden><button type="button">There are new clips: show them</button></p>'
        f'<p id="quiet" hidden>No news for ten minutes: the run may have been stopped.</p></header>'
        f"{listen(run.clips, run.about.best_step, _no_clips(config))}"
        f'<section><h2>Is it learning?</h2><div id="curves">{_curves(run)}</div></section>{_songs(run)}'
        f"<section><details><summary><h2>Timesteps, speed, memory, settings</h2></summary>"
        f'<div id="details">{_details(run)}</div>{_settings(config)}</details></section>'
        f"</main><script>{SCRIPT}</script></body></html>"
    )
    path = output_dir / "report.html"
    write_bytes(path, page.encode("utf-8", errors="backslashreplace"))
    return path


def _name(folder: Path) -> str:
    """A run's, from its folder's: of the one around it where it is only called output."""
    folder = folder.resolve()
    return folder.parent.name if folder.name == "output" and folder.parent.name else folder.name


def write_live(output_dir: Path, config: RunConfig, about: About) -> None:
    """Write what an open page shows anew. OSError."""
    run = _read(output_dir, config, about)
    if run is not None:
        parts = {"status": _status(run), "curves": _curves(run), "details": _details(run)}
        news = {"running": about.running, "clips": len(run.clips), "parts": parts}
        write_bytes(output_dir / LIVE, f"live({json.dumps(news)})\n".encode())


def _read(output_dir: Path, config: RunConfig, about: About) -> _Run | None:
    rows = read_metrics(output_dir / "metrics.jsonl")
    if not rows:
        return None
    clips = {r["path"]: r for r in rows if r["event"] == "clip" and Path(r["path"]).is_file()}
    return _Run(
        config,
        about,
        steps=[r for r in rows if r["event"] == "step"],
        told=next((r for r in reversed(rows) if r["event"] == "eval" and r["verdict"]), {}),
        evaluations=[r for r in rows if r["event"] == "eval" and r["loss"] is not None],
        averaged=[r for r in rows if r["event"] == "eval_average"],
        clips=list(clips.values()),
    )


# ── on top ────────────────────────────────────────────────────────────────────────────────────────────
def _status(run: _Run) -> str:
    """How far it is, and how it goes."""
    about, config, last = run.about, run.config, run.steps[-1] if run.steps else None
    step = last["step"] if last else 0
    total = about.total or config.max_train_steps or step
    done = f"{step:,} of {count(total, 'step')}" if total > step else count(step, "step")
    state = "Training" if about.running else "Done" if step >= total else "Stopped"
    facts = [f"<b>{state}: {done}</b>"]
    if last and last["epoch"]:
        facts.append(f"{count(last['epoch'], 'time')} through the songs")
    if about.running and last and last["eta"]:
        facts.append(f"{_span(last['eta'])} left")
    kind = escape(run.told.get("verdict_kind", ""))
    sentence = escape(run.told.get("verdict", "") or config.unevaluated.capitalize())
    now = datetime.now().astimezone()
    seconds = sum(song.seconds for song in about.songs)
    songs = f"{count(len(about.songs), 'song')}, {_span(seconds)}" if about.songs else ""
    what = f"{_adapter(config)} of {of_flavour(config.model_flavour).title}, acestep-mlx {__version__}"
    date = f'<time datetime="{now:%Y-%m-%dT%H:%M:%S%z}">{now.day} {now:%B %Y, %H:%M}</time>'
    return "".join(
        (
            f'<p class="soft">{" · ".join(part for part in (date, songs, escape(what)) if part)}</p>',
            f'<progress max="{max(total, 1)}" value="{step}" aria-label="Steps done"></progress>',
            f"<p>{' · '.join(facts)}</p>",
            f"<p>{escape(about.ended[0].upper() + about.ended[1:])}</p>" if about.ended else "",
            f'<p class="verdict {kind}">{sentence}</p>' if sentence else "",
        )
    )


def _span(seconds: float) -> str:
    """`2 h 5 min`, `12 min`, `40 s`."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"


def _adapter(config: RunConfig) -> str:
    """What is trained: `LoRA, rank 16, alpha 16`."""
    if isinstance(config.lycoris_config, dict) and config.lora_type == "lycoris":
        factor, dim = config.lycoris_config.get("factor", -1), config.lycoris_config.get("linear_dim", 4)
        return f"LoKr, factor {factor}, linear_dim {dim}"
    kind = "DoRA" if config.use_dora else "rsLoRA" if config.use_rslora else "LoRA"
    return f"{kind}, rank {config.lora_rank}, alpha {config.lora_alpha:g}"


def _no_clips(config: RunConfig) -> str:
    if config.validation_disable or not (config.validation_prompt or config.validation_prompt_library):
        return "This run makes no clips. Set validation_prompt to hear one at every checkpoint."
    every = config.validation_step_interval
    return f"The first clips come {f'at step {every:,}' if every else 'with the first checkpoint'}."


def _tiles(tiles: Sequence[tuple[str, str, str]]) -> str:
    cells = "".join(
        f'<div class="tile"><span>{escape(a)}</span><b>{escape(b)}</b><small>{escape(c)}</small></div>'
        for a, b, c in tiles
    )
    return f'<div class="tiles">{cells}</div>' if tiles else ""


# ── curves ────────────────────────────────────────────────────────────────────────────────────────────
@dataclass(frozen=True)
class _Chart:
    """A chart, or a line where it would show one number."""

    title: str
    series: Sequence[Series]
    unit: str
    note: str = ""
    zero: bool = False
    best: tuple[float, float] | None = None


def _drawn(charts: Sequence[_Chart]) -> str:
    """The charts side by side, and below them what needs none."""
    figures, lines = "", ""
    for c in charts:
        if text := constant(c.series):
            unit = "" if c.unit in c.title.lower() else f" {c.unit}"
            lines += f"<li>{escape(f'{c.title}: {text}{unit} throughout')}</li>"
        else:
            figures += line_chart(c.title, c.series, c.unit, note=c.note, zero=c.zero, best=c.best)
    return (f'<div class="grid2">{figures}</div>' if figures else "") + (
        f'<ul class="soft">{lines}</ul>' if lines else ""
    )


def _points(rows: Sequence[Row], key: str, scale: float = 1.0) -> list[tuple[float, float]]:
    return [(r["step"], r[key] * scale) for r in rows if r.get(key) is not None]


def _curves(run: _Run) -> str:
    evaluations, steps, found = run.evaluations, run.steps, run.best
    tiles: list[tuple[str, str, str]] = []
    if evaluations:
        first, last = evaluations[0], evaluations[-1]
        change = (last["loss"] / first["loss"] - 1) * 100 if first["loss"] else 0.0
        since = f"{change:+.1f} % since step {first['step']}"
        tiles.append(
            (
                "Evaluation loss",
                number(last["loss"]),
                since if len(evaluations) > 1 else f"step {first['step']}",
            )
        )
    if found:
        tiles.append(
            ("Best checkpoint", f"step {found['step']:,}", f"evaluation loss {number(found['loss'])}")
        )
    if steps:
        smoothed = steps[-1]["smoothed_loss"]
        tiles.append(("Training loss", number(smoothed) if smoothed is not None else "–", "smoothed"))
    if skipped := sum(bool(r["skipped"]) for r in steps):
        tiles.append(("Skipped steps", str(skipped), "not finite"))
    mean = [
        Series("mean", _points(evaluations, "loss"), "c1"),
        Series("averaged weights", _points(run.averaged, "loss"), "c2"),
    ]
    losses = [
        Series("each step", _points(steps, "loss"), "c0", faint=True),
        Series("smoothed", _points(steps, "smoothed_loss"), "c0"),
    ]
    same, best = "measured on the same songs and noise each time", None
    if found and len(evaluations) > 1:
        best = (float(found["step"]), float(found["loss"]))
    charts = [
        _Chart("Evaluation loss", mean, "loss", same, best=best),
        _Chart("Training loss", losses, "loss", "a new song and new noise at every step"),
    ]
    return _tiles(tiles) + _drawn(charts)


def _details(run: _Run) -> str:
    """What one looks at when something is odd."""
    evaluations, steps = run.evaluations, run.steps
    if not steps:
        return ""
    bins = list(evaluations[-1]["bins"]) if evaluations else []
    rows = [{"step": r["step"], **r["bins"]} for r in evaluations]
    by_bin = [Series(name, _points(rows, name), f"c{i % 5}") for i, name in enumerate(bins)]
    names = dict.fromkeys(key for row in steps for key in row if PART in key)
    parts = [Series(name, _points(steps, name), f"c{i % 5}") for i, name in enumerate(names)]
    rates = [r["steps_per_second"] for r in steps if r["steps_per_second"]]
    typical = float(np.median(rates)) if rates else 0.0
    speed = f"{typical:.2f} steps/s" if typical >= 1 else f"{1 / typical:.1f} s/step" if typical else "–"
    audio = rate(steps[-1]["audio_seconds_per_second"] or 0.0)
    tiles = [
        ("Speed", speed, f"{audio} s of audio per second"),
        ("Peak memory", size(max(r["peak_memory"] for r in steps)), "model, LoRA, activations"),
    ]
    others = dict.fromkeys(key for row in steps for key in row if key.startswith(OTHER_RATE))
    rates_ = [
        Series("LoRA", _points(steps, "learning_rate"), "c0"),
        *(
            Series(name.removeprefix(OTHER_RATE).replace("_", " "), _points(steps, name), "c1")
            for name in others
        ),
    ]
    audio_rate = [Series("speed", _points(steps, "audio_seconds_per_second"), "c4")]
    memory = [Series("peak", _points(steps, "peak_memory", 1e-9), "c3")]
    charts = [
        _Chart("Evaluation loss by timestep", by_bin, "loss", "0 = clean, 1000 = noise", zero=True),
        _Chart("Parts of the training loss", parts, "loss"),
        _Chart("Learning rate", rates_, "learning rate", zero=True),
        _Chart(
            "Gradient norm", [Series("norm", _points(steps, "grad_norm"), "c2")], "gradient norm", zero=True
        ),
        _Chart("Peak memory", memory, "GB", zero=True),
        _Chart("Speed", audio_rate, "s of audio per s", zero=True),
    ]
    return _tiles(tiles) + _drawn(charts)


# ── songs and settings ────────────────────────────────────────────────────────────────────────────────
def _songs(run: _Run) -> str:
    """What is trained on: each song with its captions and lyrics."""
    if not run.about.songs:
        return ""
    rows = "".join(
        f'<tr><th scope="row">{escape(song.name)}</th><td class="length">{duration(song.seconds)}</td>'
        f"<td>{'<br>'.join(escape(c) for c in song.captions) or '–'}{_lyrics(song.lyrics)}</td></tr>"
        for song in run.about.songs
    )
    return (
        f"<section><h2>Songs</h2><div class='scroll' role='region' aria-label='Songs' tabindex='0'>"
        f'<table class="songs"><thead><tr><th scope="col">Song</th><th scope="col">Length</th>'
        f'<th scope="col">Captions and lyrics</th></tr></thead><tbody>{rows}</tbody></table></div></section>'
    )


def _lyrics(text: str | None) -> str:
    return f"<details><summary>Lyrics</summary><pre>{escape(text)}</pre></details>" if text else ""


def _settings(config: RunConfig) -> str:
    values = config.to_dict()
    given = {k: v for k, v in values.items() if config.origin(k) != "default"}
    rest = {k: v for k, v in values.items() if k not in given and v not in (None, "", False)}

    def table(entries: Mapping[str, Any]) -> str:
        cells = "".join(
            f'<tr><th scope="row">{escape(k)}</th><td>{escape(text)}</td></tr>'
            for k, v in entries.items()
            for text in [v if isinstance(v, str) else json.dumps(v)]
        )
        return f'<table class="settings"><tbody>{cells}</tbody></table>'

    return (
        f"<h3>Settings</h3>{table(given)}<details><summary>Defaults in use</summary>{table(rest)}</details>"
    )
