"""report.html read back: every number of metrics.jsonl that it shows, and every text exactly as it was."""

from __future__ import annotations

import base64
import io
import json
import math
import struct
import zlib
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from acestep_mlx import __version__
from acestep_mlx.config.read_run import load_config
from acestep_mlx.config.run import RunConfig
from acestep_mlx.io.audio import write_audio
from acestep_mlx.report import charts
from acestep_mlx.report import clips as report
from acestep_mlx.report.page import About, Song, write_live, write_report
from acestep_mlx.report.spectrogram import log_mel_png

EVIL = """<u>"Böse" & 'x'</u><script>alert(1)</script>"""
BINS = ("0-200", "200-400")
VOID = {"meta", "img", "line", "circle", "polyline", "br", "input"}


@dataclass
class Node:
    """An element: its attributes, its own text in order, its children."""

    tag: str
    attributes: dict[str, str]
    parts: list[Any] = field(default_factory=list)  # text and elements as they come

    @property
    def text(self) -> str:
        return "".join(part if isinstance(part, str) else part.text for part in self.parts)

    def all(self, tag: str, css: str = "") -> list[Node]:
        """Elements below with this tag, and with these classes."""
        found = []
        for part in self.parts:
            if isinstance(part, Node):
                if part.tag == tag and set(css.split()) <= set(part.attributes.get("class", "").split()):
                    found.append(part)
                found += part.all(tag, css)
        return found

    def one(self, tag: str, css: str = "") -> Node:
        (found,) = self.all(tag, css)
        return found


class Page(HTMLParser):
    """A page as a tree; what is not closed, or closed twice, fails."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.root = Node("", {})
        self.open = [self.root]
        self.feed(text)
        self.close()
        assert len(self.open) == 1, self.open[-1].tag

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        node = Node(tag, {k: v or "" for k, v in attrs})
        self.open[-1].parts.append(node)
        if tag not in VOID:
            self.open.append(node)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open[-1].parts.append(Node(tag, {k: v or "" for k, v in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop().tag == tag

    def handle_data(self, data: str) -> None:
        self.open[-1].parts.append(data)


def step_row(step: int, **changes: Any) -> dict[str, Any]:
    """Numbers that are all different, so that none can stand for another."""
    return {
        "event": "step",
        "step": step,
        "loss": 0.5 + 0.01 * step,
        "smoothed_loss": 0.7 - 0.02 * step,
        "learning_rate": 1e-4 * step,
        "learning_rate_lyrics_embedder": 3e-5 * step,
        "grad_norm": 2.0 + 0.1 * step,
        "steps_per_second": 1.0 + 0.25 * step,
        "audio_seconds_per_second": 7.0 + 0.5 * step,
        "peak_memory": 10**9 * (4 + step % 3),
        "eta": 9.0,
        "epoch": step // 3,
        "elapsed": 3.0,
        "skipped": False,
        **changes,
    }


def eval_row(step: int) -> dict[str, Any]:
    bins = {name: 0.2 + 0.1 * i + 0.01 * step for i, name in enumerate(BINS)}
    return {"event": "eval", "step": step, "loss": 0.8 - 0.05 * step, "bins": bins}


STEPS = [step_row(n) for n in range(1, 7)]
EVALS = [eval_row(n) for n in (0, 2, 4, 6)]


def config(**options: Any) -> RunConfig:
    return load_config({"max_train_steps": 6, **options})


def page(folder: Path, rows: list[dict[str, Any]], about: About | None = None, **options: Any) -> Node:
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    path = write_report(folder, config(**options), about)
    assert path == folder / "report.html"
    return Page(path.read_text(encoding="utf-8")).root


def tiles(root: Node) -> dict[str, tuple[str, str]]:
    """label → (number, note)."""
    return {
        tile.one("span").text: (tile.one("b").text, tile.one("small").text)
        for tile in root.all("div", "tile")
    }


def status(root: Node) -> list[str]:
    """The lines below the title."""
    (found,) = (div for div in root.all("div") if div.attributes.get("id") == "status")
    return [line.text for line in found.all("p")]


def drawing(figure: Node) -> Node:
    """A figure's chart, and not the pieces of lines in its legend."""
    (found,) = (svg for svg in figure.all("svg") if "data-s" in svg.attributes)
    return found


def curves(root: Node) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """chart → series → points as the pointer reads them off."""
    found: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for figure in root.all("figure", "chart"):
        svg = drawing(figure)
        series = {}
        for name, points in json.loads(svg.attributes["data-s"]):
            series[name] = [(float(x), float(y)) for x, y in points]
        found[svg.attributes["data-title"]] = series
    return found


# ── the numbers on top ───────────────────────────────────────────────────────────────────────────────
def test_every_tile(tmp_path: Path) -> None:
    rows = [*EVALS[:1], *STEPS, *EVALS[1:]]
    root = page(tmp_path, rows, lora_rank=24, lora_alpha=12)
    assert "LoRA, rank 24, alpha 12" in status(root)[0]
    assert status(root)[1] == "Done: 6 steps · 2 times through the songs"
    assert tiles(root) == {
        "Training loss": ("0.58", "smoothed"),  # the last smoothed one
        "Evaluation loss": ("0.5", "-37.5 % since step 0"),  # 0.5 of 0.8
        "Speed": ("1.88 steps/s", "10 s of audio per second"),  # the median, and the last
        "Peak memory": ("6.00 GB", "model, LoRA, activations"),  # the highest
    }


def test_tiles_of_a_long_slow_run_with_faults(tmp_path: Path) -> None:
    rows = [step_row(n, steps_per_second=0.25, audio_seconds_per_second=0.31) for n in range(1499, 1502)]
    rows[1] |= {"skipped": True, "loss": None}
    rows[2] |= {"smoothed_loss": None, "epoch": 11, "peak_memory": 1}
    root = page(tmp_path, [eval_row(3), *rows], use_dora=True, max_train_steps=2000)
    assert status(root)[1] == "Stopped: 1,501 of 2,000 steps · 11 times through the songs"
    found = tiles(root)
    assert found["Training loss"] == ("–", "smoothed")
    assert found["Evaluation loss"] == ("0.65", "step 3")
    assert found["Speed"] == ("4.0 s/step", "0.31 s of audio per second")
    assert found["Skipped steps"] == ("1", "not finite") and "DoRA, rank 16" in status(root)[0]
    assert found["Peak memory"][0] == "6.00 GB"


@pytest.mark.parametrize(
    ("options", "kind"), [({}, "LoRA"), ({"use_rslora": True}, "rsLoRA"), ({"use_dora": True}, "DoRA")]
)
def test_the_kind_of_adapter(tmp_path: Path, options: dict[str, Any], kind: str) -> None:
    assert f" · {kind}, rank 16, alpha 16 of ACE-Step v1, " in status(page(tmp_path, STEPS, **options))[0]


def test_a_run_without_evaluation_has_no_tile_for_it(tmp_path: Path) -> None:
    found = tiles(page(tmp_path, STEPS))
    assert "Evaluation loss" not in found and "Skipped steps" not in found


# ── curves ───────────────────────────────────────────────────────────────────────────────────────────
def test_every_point_of_every_curve(tmp_path: Path) -> None:
    found = curves(page(tmp_path, [*STEPS, *EVALS]))

    def points(rows: list[dict[str, Any]], key: str, scale: float = 1.0) -> Any:
        return [(row["step"], pytest.approx(row[key] * scale, rel=1e-5)) for row in rows]

    assert found == {
        "Training loss": {"each step": points(STEPS, "loss"), "smoothed": points(STEPS, "smoothed_loss")},
        "Evaluation loss": {"mean": points(EVALS, "loss")},
        "Evaluation loss by timestep": {
            name: [(row["step"], pytest.approx(row["bins"][name], rel=1e-5)) for row in EVALS]
            for name in BINS
        },
        "Learning rate": {
            "LoRA": points(STEPS, "learning_rate"),
            "lyrics embedder": points(STEPS, "learning_rate_lyrics_embedder"),
        },
        "Gradient norm": {"norm": points(STEPS, "grad_norm")},
        "Peak memory": {"peak": points(STEPS, "peak_memory", 1e-9)},
        "Speed": {"speed": points(STEPS, "audio_seconds_per_second")},
    }


def test_what_was_not_measured_is_not_drawn(tmp_path: Path) -> None:
    rows = [{k: v for k, v in row.items() if not k.endswith("embedder")} for row in STEPS]
    rows[2] = {**rows[2], "loss": None, "grad_norm": None}
    found = curves(page(tmp_path, rows))
    assert set(found["Learning rate"]) == {"LoRA"} and not [name for name in found if "Evaluation" in name]
    assert [x for x, _ in found["Training loss"]["each step"]] == [1, 2, 4, 5, 6]
    assert len(found["Training loss"]["smoothed"]) == 6 and len(found["Gradient norm"]["norm"]) == 5


def test_lines_and_ticks_are_where_their_numbers_are(tmp_path: Path) -> None:
    """Positions on the picture, read through its own ticks, are the values again."""
    for figure in page(tmp_path, [*STEPS, *EVALS]).all("figure", "chart"):
        svg = drawing(figure)
        texts = svg.all("text", "tick")
        across = [
            (float(t.attributes["x"]), _number(t.text))
            for t in texts
            if t.attributes["text-anchor"] == "middle"
        ]
        up = [
            (float(t.attributes["y"]) - 4, _number(t.text))
            for t in texts
            if t.attributes["text-anchor"] == "end"
        ]
        assert [v for _, v in sorted(up, reverse=True)] == sorted(v for _, v in up), "up is more"
        assert [x for _, x in sorted(across)] == sorted(x for _, x in across), "and later is to the right"
        title = svg.attributes["data-title"]
        shown = curves(Node("", {}, [figure]))[title]
        lines = svg.all("polyline", "line")
        assert len(lines) == len(shown)
        grid = [float(line.attributes["y1"]) for line in svg.all("line", "grid")]
        assert grid == pytest.approx([y for y, _ in up], abs=0.1)
        for line, points in zip(lines, shown.values(), strict=True):
            places = [tuple(map(float, p.split(","))) for p in line.attributes["points"].split()]
            left, right, top, bottom = map(float, svg.attributes["data-box"].split(","))
            first, last = map(float, svg.attributes["data-x"].split(","))
            low, high = min(v for _, v in up), max(v for _, v in up)
            for (px, py), (x, y) in zip(places, points, strict=True):
                assert px == pytest.approx(left + (x - first) / (last - first) * (right - left), abs=0.1)
                assert top <= py <= bottom
                assert _through(across, px) == pytest.approx(x, abs=0.05), title
                assert _through(up, py) == pytest.approx(y, abs=0.02 * (high - low)), title


def _number(text: str) -> float:
    return float(text.replace(",", ""))


def _through(ticks: list[tuple[float, float]], place: float) -> float:
    """The value at a place on a straight axis with these ticks."""
    (a, x), (b, y) = ticks[0], ticks[-1]
    assert a != b
    return x + (place - a) / (b - a) * (y - x)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.5, "0.5"), (0.01234567, "0.01235"), (1234.5, "1,234"), (-1500, "-1,500"),
     (2.5e-5, "2.5e-05"), (0.001, "0.001"), (999.96, "1000")],
)  # fmt: skip
def test_short_numbers(value: float, text: str) -> None:
    assert charts.number(value) == text


@pytest.mark.parametrize("low", [0.0, -3.0, 1e-6, 4321.0])
@pytest.mark.parametrize("span", [1e-5, 0.37, 1.0, 7.7, 12345.0])
def test_ticks_are_few_round_and_inside(low: float, span: float) -> None:
    found = charts.ticks(low, low + span)
    assert 1 <= len(found) <= 5
    assert all(low - 1e-9 * span <= t <= low + span * (1 + 1e-9) for t in found)
    steps = np.diff(found)
    if len(steps):
        assert np.allclose(steps, steps[0], rtol=1e-3)
        lead = steps[0] / 10 ** math.floor(math.log10(steps[0]) + 1e-9)
        assert min(abs(lead - nice) for nice in (1, 2, 2.5, 5, 10)) < 1e-2


def test_thousands_of_steps_keep_their_first_and_last() -> None:
    points = [(float(i), float(i)) for i in range(10_000)]
    found = charts.thin(points)
    assert len(found) == charts.MAX_POINTS and (found[0], found[-1]) == (points[0], points[-1])
    assert charts.thin([(0.0, 1.0), (1.0, math.nan), (2.0, math.inf), (3.0, 4.0)]) == [(0.0, 1.0), (3.0, 4.0)]


def _pixels(png: bytes) -> np.ndarray:
    """(rows, columns): how bright the pixels of an unfiltered RGB picture are."""
    columns, rows = struct.unpack(">II", png[16:24])
    start = png.index(b"IDAT")
    length = int.from_bytes(png[start - 4 : start], "big")
    lines = np.frombuffer(zlib.decompress(png[start + 4 : start + 4 + length]), np.uint8).reshape(rows, -1)
    assert not lines[:, 0].any() and lines.shape[1] == 1 + 3 * columns
    return lines[:, 1:].reshape(rows, columns, 3).astype(float).sum(2)


@pytest.mark.parametrize(("frames", "columns"), [(40, 40), (2000, 480)])
def test_a_spectrogram_has_low_notes_below_time_to_the_right_and_loud_ones_bright(
    frames: int, columns: int
) -> None:
    energies = np.full((16, frames), -20.0)
    energies[2, : frames // 2], energies[13, frames // 2 :] = 0.0, -4.5  # low and loud, then high and softer
    seen = _pixels(log_mel_png(energies))
    assert seen.shape == (16, columns)
    half = columns // 2
    low, high = seen[16 - 1 - 2, :half], seen[16 - 1 - 13, half + 1 :]
    assert (low == low[0]).all() and (high == high[0]).all() and low[0] > high[0] > 8
    assert (np.delete(seen, [2, 13], 0) == 8).all(), "nine nats below the loudest, and further, is black"


# ── clips ────────────────────────────────────────────────────────────────────────────────────────────
def clip_row(folder: Path, step: int, name: str, *, with_lora: bool = True, **changes: Any) -> dict[str, Any]:
    """A clip of a tone of its own, of 0.6 s."""
    path = folder / f"{name.encode().hex()[:20]}-{step}-{with_lora}.wav"
    time = np.arange(26460) / 44100
    hertz = 200 + 100 * step + 37 * with_lora
    write_audio(path, 0.3 * np.sin(2 * np.pi * hertz * time)[:, None].repeat(2, 1), 44100)
    row = {"event": "clip", "step": step, "name": name, "prompt": f"{name} caption", "path": str(path)}
    return {**row, "seed": 7 + step, "with_lora": with_lora, **changes}


def shown_clips(root: Node) -> dict[str, list[str]]:
    """prompt → what its buttons are called, or what stands in their place."""
    found = {}
    for body in root.one("table", "clips").all("tbody"):
        words, cells = body.all("tr")
        label = [b.attributes["aria-label"] for td in cells.all("td") for b in td.all("button")]
        found[words.one("h3").text] = label + [td.text for td in cells.all("td") if not td.all("button")]
    return found


def sounds(root: Node) -> dict[str, dict[str, Any]]:
    """What the player plays, by the clip's id."""
    (held,) = (s for s in root.all("script") if s.attributes.get("id") == "sounds")
    return dict(json.loads(held.text))


def test_every_clip_with_its_step_seed_length_sound_and_picture(tmp_path: Path) -> None:
    rows = [
        clip_row(tmp_path, 0, "a", with_lora=False, lyrics="[verse]\nla"),
        clip_row(tmp_path, 2, "a"),
        clip_row(tmp_path, 3, "b"),
    ]
    root = page(tmp_path, [*STEPS, *rows])
    assert [p.text for p in root.all("p", "caption")] == ["a caption", "b caption"]
    assert [th.text for th in root.one("table", "clips").one("thead").all("th")] == [
        "Without LoRA", "Step 2", "Step 3",
    ]  # fmt: skip
    assert shown_clips(root) == {
        "a": ["a, Without LoRA: 0.6 s · seed 7", "a, Step 2: 0.6 s · seed 9", ""],
        "b": ["b, Step 3: 0.6 s · seed 10", "", ""],
    }
    assert [pre.text for pre in root.one("table", "clips").all("pre")] == ["[verse]\nla"]
    held = sounds(root)
    assert (
        list(held)
        == ["0-base", "0-2", "1-3"]
        == [b.attributes["data-clip"] for b in root.all("button", "clip")]
    )
    for sound, row in zip(held.values(), rows, strict=True):
        heard, rate = soundfile.read(io.BytesIO(base64.b64decode(sound["data"])))
        assert (rate, abs(len(heard) - 26460) < 3000) == (44100, True)
        loudest = np.abs(np.fft.rfft(heard[:26460, 0])).argmax() * 44100 / 26460
        assert loudest == pytest.approx(200 + 100 * row["step"] + 37 * row["with_lora"], abs=3)
    for button in root.all("button", "clip"):
        picture = base64.b64decode(button.one("img").attributes["src"].split("base64,")[1])
        assert picture.startswith(b"\x89PNG")


def test_a_prompts_clips_are_played_as_loud_as_its_softest(tmp_path: Path) -> None:
    """By what was measured when they were made, or is measured now; a clip that is silent changes nothing."""
    rows = [clip_row(tmp_path, n, "a") for n in range(4)] + [clip_row(tmp_path, 1, "b")]
    rows[0]["loudness"], rows[1]["loudness"], rows[2]["loudness"] = -14.0, -20.0, -18.5
    write_audio(Path(rows[3]["path"]), np.zeros((26460, 2)), 44100)
    held = sounds(page(tmp_path, [*STEPS, *rows]))
    assert {id: sound["decibels"] for id, sound in held.items()} == {
        "0-0": -6.0, "0-1": 0.0, "0-2": -1.5, "0-3": 0.0, "1-1": 0.0,
    }  # fmt: skip
    soft, loud = clip_row(tmp_path, 5, "c"), clip_row(tmp_path, 6, "c")
    write_audio(Path(soft["path"]), 0.1 * soundfile.read(loud["path"])[0], 44100)
    held = sounds(page(tmp_path, [*STEPS, soft, loud]))
    assert held["0-5"]["decibels"] == 0 and held["0-6"]["decibels"] == pytest.approx(-report.QUIETER, abs=2.1)


def test_whatever_a_clips_row_says_stays_text(tmp_path: Path) -> None:
    """In its name, prompt and lyrics, in a path that cannot be read, and in what scripts read."""
    row = clip_row(tmp_path, 1, "a") | {"name": EVIL, "prompt": EVIL, "lyrics": f"{EVIL}</pre>"}
    gone = {**row, "path": str(tmp_path / EVIL.replace("/", "∕")), "step": 2}
    Path(gone["path"]).write_bytes(b"RIFF")
    root = page(tmp_path, [*STEPS, row, gone])
    assert list(shown_clips(root)) == [EVIL] and root.one("pre").text == f"{EVIL}</pre>"
    assert root.one("button", "clip").attributes["aria-label"].startswith(f"{EVIL}, Step 1: ")
    assert not root.all("u") and len(root.all("script")) == 2


def test_a_clip_that_cannot_be_read_is_said_and_the_rest_is_shown(tmp_path: Path) -> None:
    row = clip_row(tmp_path, 1, "a")
    broken = tmp_path / "<u>broken.wav"
    broken.write_bytes(b"RIFF")
    root = page(tmp_path, [*STEPS, {**row, "path": str(broken), "step": 2}, row])
    playable, said = shown_clips(root)["a"]
    assert "Step 1" in playable and said.startswith("<u>broken.wav cannot be read: ") and not root.all("u")


def test_of_many_steps_the_first_the_last_the_best_and_some_between(tmp_path: Path) -> None:
    rows = [clip_row(tmp_path, n, "a") for n in range(1, 12)]
    rows.append({**rows[0], "path": str(tmp_path / "deleted.wav"), "step": 99})
    root = page(tmp_path, [*STEPS, *rows], About(best=str(tmp_path / "checkpoint-4")))
    head = [th.text for th in root.one("table", "clips").one("thead").all("th")]
    assert len(head) == report.STEPS == len(sounds(root))
    assert head[0] == "Step 1" and head[-1] == "Step 11" and "Step 4 best" in head
    assert "6 of 11 steps; clips of the others are in the folder validation." in root.text
    few = page(tmp_path, [*STEPS, *rows[:5]])
    assert len(sounds(few)) == 5 and "clips of the others" not in few.text


def test_a_run_without_clips_says_how_to_get_some(tmp_path: Path) -> None:
    assert "Set validation_prompt" in page(tmp_path, STEPS).text
    asked = page(tmp_path, STEPS, validation_prompt="jazz", validation_step_interval=1500)
    assert "The first clips come at step 1,500." in asked.text


# ── how far, and how it goes ─────────────────────────────────────────────────────────────────────────
def test_how_far_a_run_is_and_what_it_trains_on(tmp_path: Path) -> None:
    songs = [
        Song("set/<u>one", 200.0, ["calm", "slow & low"], "[verse]\nla <u>"),
        Song("set/two", 61.0, [], None),
    ]
    rows = [*STEPS, {**STEPS[-1], "step": 7, "eta": 7500.0}]
    root = page(
        tmp_path, rows, About(running=True, total=40, songs=songs), max_train_steps=0, num_train_epochs=9
    )
    assert status(root)[0].split(" · ")[1] == "2 songs, 4 min"
    assert status(root)[1] == "Training: 7 of 40 steps · 2 times through the songs · 2 h 5 min left"
    (bar,) = root.all("progress")
    assert bar.attributes["max"] == "40" and bar.attributes["value"] == "7"
    _, *listed = root.one("table", "songs").all("tr")
    assert [tr.text for tr in listed] == ["set/<u>one3:20calmslow & lowLyrics[verse]\nla <u>", "set/two1:01–"]


def test_the_sentence_of_the_last_evaluation_that_has_one(tmp_path: Path) -> None:
    evals = [{**EVALS[0], "verdict": "old"}, {**EVALS[1], "verdict": EVIL}, EVALS[2]]
    for row in evals[:2]:
        row["verdict_kind"] = "learning"
    root = page(tmp_path, [*STEPS, *evals])
    assert root.one("p", "verdict").text == EVIL and not root.all("u")
    assert not page(tmp_path, [*STEPS, *EVALS]).all("p", "verdict")


def test_what_is_constant_is_a_line_and_no_chart(tmp_path: Path) -> None:
    rows = [{**row, "learning_rate": 1e-4, "peak_memory": 10**9, "grad_norm": None} for row in STEPS]
    root = page(tmp_path, [*rows, EVALS[0]])
    assert set(curves(root)) == {"Training loss", "Learning rate", "Speed"}, "another learning rate changes"
    said = [li.text for li in root.all("li")]
    assert "Peak memory: 1 GB throughout" in said and "Evaluation loss: 0.8 throughout" in said
    for row in rows:
        row["learning_rate_lyrics_embedder"] = 3e-5
    root = page(tmp_path, rows)
    assert "Learning rate: LoRA 1.0e-04, lyrics embedder 3.0e-05 throughout" in [
        li.text for li in root.all("li")
    ]


def test_axes_name_what_they_count_lines_differ_without_colour_and_the_best_is_marked(tmp_path: Path) -> None:
    root = page(tmp_path, [*STEPS, *EVALS], About(best="x/checkpoint-4"))
    units = {}
    for figure in root.all("figure", "chart"):
        svg = drawing(figure)
        unit, step, *mark = [text.text for text in svg.all("text", "axis")]
        units[svg.attributes["data-title"]] = unit
        assert step == "step"
        assert mark == (["best, step 4"] if svg.attributes["data-title"] == "Evaluation loss" else [])
        kinds = [line.attributes["class"].split(maxsplit=2)[2] for line in svg.all("polyline")]
        assert len(set(kinds)) == len(kinds), "dashes, or thin and thick"
        assert not figure.all("div") or len(figure.one("div", "legend").all("svg")) == len(kinds)
    assert units == {
        "Evaluation loss": "loss", "Training loss": "loss", "Evaluation loss by timestep": "loss",
        "Learning rate": "learning rate", "Gradient norm": "gradient norm", "Peak memory": "GB",
        "Speed": "s of audio per s",
    }  # fmt: skip
    (ring,) = root.all("circle", "ring")
    places = [p for p in root.all("circle", "dot") if p.attributes["cx"] == ring.attributes["cx"]]
    assert ring.attributes["cy"] in {p.attributes["cy"] for p in places}, "on the curve"
    assert (
        "measured on the same songs and noise each time" in root.text and "always the same" not in root.text
    )


def test_news_are_the_parts_of_the_page_as_a_script(tmp_path: Path) -> None:
    """No more of it than a call: `</script>` in a text is no end of it either."""
    about = About(running=True, total=40, songs=[Song("</script>", 1.0, ["</script>"], None)])
    root = page(tmp_path, [*STEPS, {**EVALS[1], "verdict": "</script>"}], about)
    write_live(tmp_path, config(), about)
    text = (tmp_path / "report_live.js").read_text(encoding="ascii")
    assert text.startswith("live(") and text.endswith(")\n") and "</script>" not in text
    news = json.loads(text[5:-2])
    assert news["running"] is True and news["clips"] == 0
    for id, html in news["parts"].items():
        (part,) = (d for d in root.all("div") if d.attributes.get("id") == id)
        assert Page(html).root.text == part.text, id
    (body,) = root.all("body")
    assert body.attributes["data-live"] == "report_live.js"
    assert page(tmp_path, STEPS).one("body").attributes["data-live"] == "", "a run that is over has no news"


# ── texts ────────────────────────────────────────────────────────────────────────────────────────────
def settings(root: Node) -> dict[str, str]:
    """All rows of both tables."""
    cells = [
        (row.one("th").text, row.one("td").text) for t in root.all("table", "settings") for row in t.all("tr")
    ]
    assert len({name for name, _ in cells}) == len(cells)
    return dict(cells)


def test_all_settings_are_there_given_ones_first(tmp_path: Path) -> None:
    root = page(tmp_path, STEPS, lora_rank=24, validation_prompt="jazz", optimizer_config={"eps": 1e-6})
    given, rest = root.all("table", "settings")
    named = {row.one("th").text: row.one("td").text for row in given.all("tr")}
    assert named["lora_rank"] == "24" and named["validation_prompt"] == "jazz"
    assert named["optimizer_config"] == '{"eps": 1e-06}' and named["max_train_steps"] == "6"
    others = {row.one("th").text: row.one("td").text for row in rest.all("tr")}
    assert others["learning_rate"] == "0.0001" and "lora_rank" not in others
    wanted = config(lora_rank=24, validation_prompt="jazz", optimizer_config={"eps": 1e-6}).to_dict()
    shown = settings(root)
    assert set(shown) == {k for k, v in wanted.items() if v not in (None, "", False) or k in named}
    for name, text in shown.items():
        value = wanted[name]
        assert text == (value if isinstance(value, str) else json.dumps(value)), name


def test_every_text_is_shown_as_it_is_and_none_becomes_part_of_the_page(tmp_path: Path) -> None:
    folder = tmp_path / EVIL.replace("/", "∕")
    folder.mkdir()
    texts = {
        name: EVIL
        for name in ("validation_prompt", "validation_lyrics", "instance_prompt", "tracker_run_name")
    }
    clip = clip_row(folder, 1, "x") | {"name": EVIL, "prompt": EVIL}
    root = page(
        folder, [*STEPS, clip], **texts, optimizer_config={"eps": 1e-6}, peft_lora_target_modules=[EVIL],
        validation_prompt_library=EVIL, output_dir=EVIL,
    )  # fmt: skip
    assert root.one("title").text == root.one("h1").text == EVIL
    assert root.all("h3")[0].text == EVIL and root.one("p", "caption").text == EVIL
    assert shown_clips(root) == {EVIL: [f"{EVIL}, Step 1: 0.6 s · seed 8"]}
    shown = settings(root)
    for name in (*texts, "validation_prompt_library", "output_dir"):
        assert shown[name] == EVIL, name
    assert json.loads(shown["peft_lora_target_modules"]) == [EVIL]
    assert not root.all("u") and len(root.all("script")) == 2, "what is played, and the player"
    assert __version__ in root.one("header").text


def test_the_folders_name_is_the_title_where_the_run_has_none(tmp_path: Path) -> None:
    folder = tmp_path / "a & <b>"
    folder.mkdir()
    root = page(folder, STEPS)
    assert root.one("title").text == root.one("h1").text == "a & <b>"
    (folder / "output").mkdir()
    assert page(folder / "output", STEPS).one("h1").text == "a & <b>", (
        "that of a folder around many runs' output"
    )


def test_names_in_charts_are_shown_as_they_are() -> None:
    series = [charts.Series(EVIL, [(0, 1), (1, 2)], "c0"), charts.Series("other", [(0, 1)], "c1")]
    root = Page(charts.line_chart(EVIL, series, EVIL, note=EVIL)).root
    figure = root.one("figure")
    assert figure.one("figcaption").text == f"{EVIL} {EVIL}"
    assert drawing(figure).attributes["aria-label"].startswith(f"{EVIL}, by step. {EVIL}: 1 at step 0, 2 at")
    assert EVIL in [text.text for text in drawing(figure).all("text", "axis")]
    assert [s.text for s in figure.one("div").all("span")] == [EVIL, "other"]
    assert json.loads(drawing(figure).attributes["data-s"]) == [[EVIL, [[0, 1], [1, 2]]], ["other", [[0, 1]]]]
    assert not root.all("u") and not root.all("script")


def test_every_step_of_a_long_run_counts(tmp_path: Path) -> None:
    """Faults and peaks of long ago too; and one pause of the machine is not its speed."""
    rows = [step_row(n, peak_memory=10**9, steps_per_second=4.0) for n in range(1, 1001)]
    rows[0] |= {"skipped": True, "loss": None, "steps_per_second": 4000.0}
    rows[400] |= {"skipped": True, "loss": None, "peak_memory": 9 * 10**9}
    rows[999] |= {"skipped": True, "loss": None}
    found = tiles(page(tmp_path, rows))
    assert found["Skipped steps"][0] == "3" and found["Peak memory"][0] == "9.00 GB"
    assert found["Speed"][0] == "4.00 steps/s"
