"""metrics.jsonl is read back by the report, by a resume and by `info`: each line is checked first."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from acestep_mlx.config.read_run import load_config
from acestep_mlx.report.events import (
    RECORDED,
    AverageEvaluated,
    CheckpointSaved,
    Evaluated,
    MetricsFile,
    StepDone,
    ValidationClip,
    read_metrics,
)
from acestep_mlx.report.page import write_report

ODD: list[Any] = [None, True, -1, 2.5, 10**400, "x", "\ud800", "a\0b", [], [[]], {}, {"a": "b"}, {"a": None}]
EVENTS = {
    "step": StepDone(
        1, 2.0, 2.0, 1e-3, 0.5, 1.0, 9.0, 10**9, 5.0, 0, 1.0, extra={"learning_rate_lyrics_embedder": 1e-4}
    ),
    "eval": Evaluated(1, 1.5, {"0-200": 1.0, "200-400": 2.0}),
    "clip": ValidationClip(1, "p", "jazz", "/nowhere/clip.wav", 2**63 - 1),
    "checkpoint": CheckpointSaved(1, "/x/checkpoint-1", ("/x/checkpoint-0",)),
    "eval_average": AverageEvaluated(1, 1.4, {"0-200": 0.9}),
}  # fmt: skip


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """A file of one event of each kind."""
    file = MetricsFile(tmp_path / "metrics.jsonl")
    for event in EVENTS.values():
        file(event)
    file.close()
    return file.path


def test_every_recorded_event_reads_back(written: Path) -> None:
    damaged: list[str] = []
    rows = read_metrics(written, damaged)
    assert set(EVENTS) == set(RECORDED) == {row["event"] for row in rows} and not damaged
    step = rows[0]
    assert (
        step["loss"] == 2.0 and step["learning_rate_lyrics_embedder"] == 1e-4 and step["peak_memory"] == 10**9
    )
    assert written.read_text().splitlines() == [json.dumps(row) for row in rows]


@pytest.mark.slow_after(1)
@pytest.mark.parametrize("kind", EVENTS)
def test_every_column_with_every_kind_of_nonsense(kind: str, written: Path) -> None:
    """A wrong type is named with its line; the report is drawn from the rest, and from what may be null."""
    lines = written.read_text().splitlines()
    place = list(EVENTS).index(kind)
    good = json.loads(lines[place])
    named = 0
    for column in good:
        for odd in ODD:
            edited = lines.copy()
            edited[place] = json.dumps({**good, column: odd})
            written.write_text("\n".join(edited) + "\n")
            damaged: list[str] = []
            rows = read_metrics(written, damaged)
            assert len(rows) + len(damaged) == len(EVENTS) or column == "event"
            if damaged:
                named += 1
                assert damaged[0].startswith(f"line {place + 1}: ") and "\n" not in damaged[0]
                assert column in damaged[0]
            write_report(written.parent, load_config({}))
    assert named > 5 * len(good)


@pytest.mark.parametrize("kind", EVENTS)
def test_columns_that_are_not_there(kind: str, written: Path) -> None:
    written.write_text(json.dumps({"event": kind, "step": 3}) + "\n")
    (row,) = read_metrics(written)
    names = {f.name for f in fields(RECORDED[kind])} - {"extra"}
    assert names <= row.keys() and row["step"] == 3
    assert write_report(written.parent, load_config({})) is not None


def test_a_line_that_a_kill_cut_short_is_not_damage(written: Path) -> None:
    whole = written.read_text()
    written.write_text(whole[:-20])
    damaged: list[str] = []
    n = len(EVENTS)
    assert len(read_metrics(written, damaged)) == n - 1 and not damaged
    written.write_text(whole[:-20] + "\n" + whole)
    assert len(read_metrics(written, damaged)) == 2 * n - 1 and len(damaged) == 1
    assert f"line {n}: " in damaged[0]


def test_a_resume_names_what_it_leaves_out(written: Path) -> None:
    with written.open("a") as file:
        file.write('{"event": "step", "step": "two"}\n{"event": "later", "step": 1}\n\xff\n')
    again = MetricsFile(written, 1)
    again.close()
    assert [line.split(":")[0] for line in again.damaged] == [f"line {len(EVENTS) + n}" for n in (1, 3)]
    assert len(read_metrics(written)) == len(EVENTS)


def test_a_clip_that_is_no_sound(written: Path) -> None:
    clip = written.parent / "clip.wav"
    clip.write_bytes(b"not sound")
    written.write_text(
        json.dumps({"event": "clip", "step": 1, "name": "p", "prompt": "jazz", "path": str(clip)}) + "\n"
    )
    report = write_report(written.parent, load_config({}))
    assert report is not None and "<audio" not in report.read_text() and "jazz" in report.read_text()
