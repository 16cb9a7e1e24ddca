"""Progress as it is seen on a terminal of 80 columns: each phase by its name, moving, in whole lines."""

from __future__ import annotations

import json
import re
import sys
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest

from acestep_mlx.cli import progress as progress_module
from acestep_mlx.cli.events import TrainDisplay
from acestep_mlx.cli.progress import Display, fitted
from acestep_mlx.io.progress import Advance, phase
from acestep_mlx.report.events import Advanced, Evaluated, Started, StepDone

from .screen import COLUMNS, Screen, watched
from .training import runs

PHASES = [
    "looking at songs", "encoding lyrics", "encoding captions", "encoding songs",
    "reading the prompts of clips", "loading the model", "measuring before training", "training",
    "evaluating", "writing the checkpoint", "making clip 1 of 4", "making clip 2 of 4", "making clip 4 of 4",
]  # fmt: skip


class Terminal:
    """Standard error while it is entered: a terminal, drawn as it is written to."""

    encoding = "utf-8"

    def __init__(self) -> None:
        self.screen = Screen()
        self._before = sys.stderr

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        self.screen.feed(text)
        self.screen.look()
        return len(text)

    def flush(self) -> None: ...

    def fileno(self) -> int:
        raise OSError("no file")

    def __enter__(self) -> Screen:
        self._before, sys.stderr = sys.stderr, self  # type: ignore[assignment]
        return self.screen

    def __exit__(self, *_: object) -> None:
        found, sys.stderr = sys.stderr, self._before
        assert found is self, "what stood for it is gone"


def step(number: int, eta: float = 4800.0, eta_open: bool = False, **extra: float) -> StepDone:
    numbers = (0.81234, 0.79876, 1e-4, 0.5, 0.42, 0.314, 12_250_000_000, eta, 0, 1.0)
    return StepDone(number, *numbers, extra=extra, eta_open=eta_open)  # type: ignore[arg-type]


@pytest.mark.slow
def test_a_whole_run_shows_every_phase_by_its_name(tmp_path: Path, tiny_model: Path) -> None:
    """With evaluations, clips of two prompts and checkpoints; notes stand in whole lines above what moves."""
    (tmp_path / "prompts.json").write_text(json.dumps({"one": "jazz", "two": "slow house"}))
    config = runs.configuration(
        tmp_path, tiny_model, "out", max_train_steps=4, checkpointing_steps=2, eval_loss_disable=False,
        num_eval_images=2, validation_disable=False, validation_prompt_library="prompts.json",
        validation_audio_duration=3, validation_num_inference_steps=2,
    )  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    screen, code = watched(["-m", "acestep_mlx", "train", "config.json"], tmp_path)
    assert code == 0, screen.text
    known = re.compile(rf"({'|'.join(PHASES)})\b(?! \d+,\d+ parameters)")
    shown = [found[1] if (found := known.match(row)) else "" for row in screen.seen]
    first = {name: shown.index(name) for name in PHASES if name in shown}
    assert list(first) == PHASES, set(PHASES) - first.keys()
    assert list(first.values()) == sorted(first.values()), "one after the other"
    rows = [(name, row) for name, row in zip(shown, screen.seen, strict=True) if name]
    assert all(len(row) < COLUMNS for _, row in rows)
    assert len([row for name, row in rows if name == "measuring before training"]) > 5
    lines = [line for line in screen.text.splitlines() if line]
    notes = r"(looking|encoding|training \d|step \d|saved|LoRA|best|report|lyrics of|1 of 3 songs)"
    assert all(re.match(notes, line) for line in lines), screen.text
    assert f"training 9,728 parameters on 3 songs, steps 1 to 4, into {config['output_dir']}" in lines
    steps = [row for row in screen.seen if re.match(r"training \[.*\] [1-4]/4", row)]
    assert "+ left" in steps[0], "clips are still to come, and nobody knows how long one takes"
    assert "+ left" not in steps[-1] and " left" in steps[-1]


def test_the_numbers_that_matter_come_first_and_fit() -> None:
    with Terminal() as screen, TrainDisplay() as display:
        display(Started(0, 2000, 1234, 18, "out"))
        display(Advanced(phase("training", 0, 2000)))
        assert screen.seen[-1].startswith("training [----------] 0/2000, 0:0")
        display(step(240, eta_open=True, **{"reflexflow/flow": 0.5, "reflexflow/adr": 0.25}))
        row = screen.seen[-1]
        assert re.match(
            r"training \[#---------\] 240/2000, 1:20:00\+ left, 0:\d\d so far, loss 0\.7988", row
        ), row
        assert len(row) < COLUMNS
        display(step(2000, eta=0.0))
        assert screen.seen[-1].startswith("training [##########] 2000/2000, 0:00 left")


def test_no_phase_shows_the_bar_of_another() -> None:
    with Terminal() as screen, TrainDisplay() as display:
        display(Started(0, 10, 1234, 3, "out"))
        for number in range(1, 4):
            display(Advanced(phase("training", number - 1, 10)))
            display(step(number))
            display(Advanced(phase("evaluating", 3, 20)))
            assert screen.seen[-1].startswith("evaluating, 3 of 20, 0:0")
            display(Evaluated(number, 1.0, {"0-200": 1.0}))
            display(Advanced(phase("writing the checkpoint")))
            assert screen.seen[-1].startswith("writing the checkpoint, 0:0")
        display(Advanced(phase("training", 3, 10)))
        assert screen.seen[-1].startswith("training [###-------] 3/10, 1:20:00 left")
    lines = [line for line in screen.text.splitlines() if line]
    assert lines[0] == "training 1,234 parameters on 3 songs, steps 1 to 10, into out"
    assert [line.split(":")[0] for line in lines[1:]] == ["step 1", "step 2", "step 3"]


def test_what_others_write_never_tears_the_line() -> None:
    """Notes, warnings, and what libraries print, whole and in pieces, from this thread and others."""
    with Terminal() as screen, Display() as display:
        display(Advance("encoding songs", 1, 3, note="a.wav"))
        print("Warning: something is odd", file=sys.stderr)
        click.echo("a note", err=True)
        print("half a line ", end="", file=sys.stderr)
        display(Advance("encoding songs", 2, 3, note="b.wav"))
        print("and its end", file=sys.stderr)
        said = [f"from thread {i}" for i in range(4)]
        others = [threading.Thread(target=click.echo, args=(text, None, True, True)) for text in said]
        for other in others:
            other.start()
        for i in range(50):
            note = f"0:{i:02} of 4:00 of a song with a long name.wav"
            display(Advance("encoding songs", 2 + i / 60, 3, note=note))
        for other in others:
            other.join()
        display(Advance("encoding songs", 3, 3))
    lines = [line for line in screen.text.splitlines() if line]
    assert {"Warning: something is odd", "a note", "half a line and its end", *said} < set(lines), lines
    assert lines[-1].startswith("encoding songs: 3 of 3, 0:0") and len(lines) == 8
    assert all("[" not in line for line in lines), lines
    assert all(len(row) <= COLUMNS for row in screen.rows)


def test_warnings_of_python_are_lines_of_their_own() -> None:
    with Terminal() as screen, Display() as display, warnings.catch_warnings():
        warnings.simplefilter("always")
        display(phase("loading the model"))
        shown = warnings.formatwarning("something is odd", UserWarning, "library.py", 7, "x = 1")
        sys.stderr.write(shown)
        assert screen.seen[-1].startswith("loading the model, 0:0")
    lines = [line.strip() for line in screen.text.splitlines() if line.strip()]
    assert lines == ["library.py:7: UserWarning: something is odd", "x = 1"]


def test_another_librarys_bars_stay_as_they_are() -> None:
    """As the hub's when it downloads: below ours, and neither leaves a piece of itself in a line."""
    from tqdm import tqdm

    with Terminal() as screen, Display() as display:
        display(phase("downloading"))
        with tqdm(total=3, desc="model.safetensors", leave=False, ncols=60) as other:
            for _ in range(3):
                other.update()
                other.refresh()
                display(Advance("a note"))
        display(phase("downloading"))
    lines = [line.strip() for line in screen.text.splitlines() if line.strip()]
    assert lines == ["a note"] * 3, screen.rows
    assert any(row.startswith("model.safetensors:") for row in screen.seen)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds as the display counts them; it looks at them all the time."""
    now = [0.0]
    monkeypatch.setattr(progress_module, "TICK", 0.001)
    monkeypatch.setattr(progress_module, "monotonic", lambda: now[0])
    return now


def eventually(told: Callable[[], bool]) -> bool:
    until = time.perf_counter() + 10
    while not told() and time.perf_counter() < until:
        time.sleep(0.001)
    return told()


@pytest.mark.parametrize(
    "slow",
    [Advance("encoding songs", 0, 18, note="long.flac"), phase("making clip 2 of 3", note="decoding 40 %"),
     phase("training", 0, 20), phase("evaluating", 3, 20), Advance("denoising", 0.4, 1, "share"),
     Advance("converting transformer", 5e9, 7e9, "bytes")],
    ids=lambda advance: advance.stage,
)  # fmt: skip
def test_slow_work_that_says_nothing_is_seen_to_go_on(slow: Advance, clock: list[float]) -> None:
    """The first step is compiled, a song decoded: nothing is told for minutes, and the time goes on."""
    with Terminal() as screen, TrainDisplay() as display:
        display(Started(0, 20, 1234, 3, "out"))
        display(Advanced(slow))
        for minutes in range(1, 6):
            clock[0] = 61.0 * minutes
            text = f"{minutes}:{minutes:02}"
            assert eventually(lambda text=text: text in screen.seen[-1]), screen.seen  # type: ignore[misc]
            assert screen.seen[-1].startswith(slow.stage)


def test_long_silences_are_told_without_a_terminal(
    clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A line in half a minute; phases that are soon over say nothing."""
    clock[0] = 100.0
    said: list[str] = []
    monkeypatch.setattr(progress_module.click, "echo", lambda line, err: said.append(line))
    with Display() as display:
        display(phase("loading the model"))
        display(Advance("encoding songs", 0.5, 18, note="0:30 of 1:00 of a.wav"))
        for later, lines in ((129.0, 1), (131.0, 2), (160.0, 2), (162.0, 3)):
            clock[0] = later
            assert eventually(lambda lines=lines: len(said) == lines)  # type: ignore[misc]
    told = "encoding songs 0 of 18, {} so far, 0:30 of 1:00 of a.wav"
    assert said == [
        "encoding songs: 0 of 18 (0:30 of 1:00 of a.wav)",
        told.format("0:31"),
        told.format("1:02"),
    ]


@pytest.mark.parametrize(
    ("parts", "line"),
    [
        (["a", "b", "", "c"], "a, b, c"),
        (["encoding", "1:00 left", "a name that does not fit"], "encoding, 1:00 left, a name that does..."),
        (["encoding songs", "1:00 left, 0:10 so far", "long name"], "encoding songs, 1:00 left, 0:10 so far"),
        (["x" * 50], "x" * 40),
        (["name", "日本語の長い名前の歌です。とても長い名前"], "name, 日本語の長い名前の歌です。とて..."),
    ],
)
def test_what_matters_least_is_cut(parts: list[str], line: str) -> None:
    from tqdm.utils import disp_len

    assert fitted(parts, 40) == line and disp_len(fitted(parts, 40)) <= 40


@pytest.mark.slow
def test_a_long_song_moves_while_it_is_encoded(tmp_path: Path, tiny_run: dict[str, str]) -> None:
    from acestep_mlx.config.read_run import load_config
    from acestep_mlx.data.encode import encode_dataset
    from acestep_mlx.data.manifest import build_manifest
    from acestep_mlx.families.model_folder import ModelFolder

    runs.write_songs(tmp_path / "songs", 6.0)
    for name in ("low", "middle"):
        (tmp_path / "songs" / f"{name}.wav").unlink()
    config = load_config(runs.configuration(tmp_path, Path(), "out", **tiny_run))
    folder = ModelFolder.open(Path(tiny_run["pretrained_model_name_or_path"]))
    told: list[Advance] = []
    encode_dataset(build_manifest(config), config, folder, told.append)
    sound = [one for one in told if one.stage == "encoding songs"]
    assert [one.done for one in sound] == sorted(one.done for one in sound)
    assert sound[0].done == 0 and sound[-1].done == sound[-1].total == 1
    within = [one.note for one in sound[1:-1]]
    assert within and all(re.fullmatch(r"0:0\d of 0:06 of songs/high\.wav", note) for note in within)


def test_a_song_that_takes_long_to_look_at_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    from acestep_mlx.data import facts

    let = threading.Event()

    def examine(song: Any, heard: Callable[[float], None]) -> facts.AudioFacts:
        heard(130.0)
        assert let.wait(10)
        return facts.AudioFacts("x", 240.0)

    class Song:
        name = "long.mp3"

        def stamp(self) -> str:
            return "long.mp3|1"

    told: list[Advance] = []

    def tell(advance: Advance) -> None:
        told.append(advance)
        if advance.note.startswith("2:10"):
            let.set()

    monkeypatch.setattr(facts, "examine", examine)
    monkeypatch.setattr(facts, "WATCHED", 0.001)
    found = facts.FactsIndex(None).look_up([Song()], tell)  # type: ignore[list-item]
    assert found[0].duration == 240 and told[-1].done == 1
    moved = next(one for one in told if one.note == "2:10 of long.mp3")
    assert (moved.stage, moved.done, moved.total) == ("looking at songs", 0, 1)
