"""What trackers are given: every number under its own name, at its own step."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from acestep_mlx.config.read_run import load_config
from acestep_mlx.report import trackers
from acestep_mlx.report.events import (
    CheckpointSaved,
    Evaluated,
    Event,
    Finished,
    Notice,
    StepDone,
    ValidationClip,
)

STEP = StepDone(
    7, 0.5, 0.25, 1e-4, 3.0, 0.75, 12.5, 5_000_000_000, 60.0, 1, 9.0, extra={"learning_rate_x": 2e-4}
)
NUMBERS = {
    "train/loss": 0.5,
    "train/smoothed_loss": 0.25,
    "train/learning_rate": 1e-4,
    "train/learning_rate_x": 2e-4,
    "train/grad_norm": 3.0,
    "speed/steps_per_second": 0.75,
    "speed/audio_seconds_per_second": 12.5,
    "memory/peak_gb": 5.0,
}
CLIP = ValidationClip(7, "jazz", "a caption", "clip.wav", 1)
CASES: list[tuple[Event, dict[str, float]]] = [
    (STEP, NUMBERS),
    (replace(STEP, skipped=True), {"train/skipped": 1.0}),
    (
        Evaluated(8, 0.3, {"0-200": 0.1, "800-1000": 0.9}),
        {"eval/loss": 0.3, "eval/timestep_0-200": 0.1, "eval/timestep_800-1000": 0.9},
    ),
    (Notice("one"), {}),
    (CheckpointSaved(7, "checkpoint-7"), {}),
    (CLIP, {}),
]


@pytest.mark.parametrize(("event", "numbers"), CASES)
def test_every_number_has_its_own_name(event: Event, numbers: dict[str, float]) -> None:
    assert trackers.scalars(event) == numbers


class Log:
    """What stands for the modules of a tracker; keeps what it is given."""

    def __init__(self) -> None:
        self.logged: list[tuple[dict[str, Any], Any]] = []
        self.summary: dict[str, Any] = {}
        self.options: dict[str, Any] = {}
        self.finished = False

    def init(self, **options: Any) -> Log:
        self.options = options
        return self

    def Audio(self, path: str, caption: str) -> tuple[str, str]:
        return path, caption

    def log(self, values: dict[str, Any], step: Any) -> None:
        self.logged.append((values, step))

    def finish(self) -> None:
        self.finished = True


def test_wandb_is_given_numbers_clips_and_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    log = Log()
    monkeypatch.setitem(__import__("sys").modules, "wandb", log)
    config = load_config(
        {"report_to": "wandb", "tracker_project_name": "p", "tracker_run_name": "r", "logging_dir": "logs"}
    )
    (tracker,) = trackers.make_trackers(config, tmp_path, lambda *_: pytest.fail("it failed"))
    for event, _ in CASES:
        tracker(event)
    tracker(replace(CLIP, with_lora=False))
    tracker(Finished(9, "done", None, None, skipped_steps=3))
    assert not log.finished
    tracker.close()
    assert log.finished and log.summary == {"skipped_steps": 3}
    assert log.options["project"] == "p" and log.options["name"] == "r"
    assert log.options["dir"] == str(tmp_path / "logs") and log.options["config"] == config.to_dict()
    assert log.logged == [
        *[(numbers, event.step) for event, numbers in CASES[:3]],  # type: ignore[attr-defined]
        ({"clips/jazz_lora": ("clip.wav", "a caption")}, 7),
        ({"clips/jazz_base": ("clip.wav", "a caption")}, 7),
    ]


JUDGED = Evaluated(8, 0.3, {"0-200": 0.3}, {"a": 0.3}, "0", "Still learning: it fell.", "learning")


def test_wandb_is_given_the_verdict(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    log = Log()
    monkeypatch.setitem(__import__("sys").modules, "wandb", log)
    trackers.WandB(load_config({}), tmp_path)(JUDGED)
    numbers = {"eval/loss": 0.3, "eval/timestep_0-200": 0.3}
    assert log.logged == [({**numbers, "eval/verdict": "Still learning: it fell."}, 8)]


def test_tensorboard_is_given_the_verdict_as_text(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = trackers.TensorBoard(tmp_path)
    board(JUDGED)
    board.close()
    read = EventAccumulator(str(tmp_path))
    read.Reload()
    (found,) = read.Tensors("eval/verdict")
    assert found.step == 8 and found.tensor_proto.string_val == [b"Still learning: it fell."]
    assert read.summary_metadata["eval/verdict"].plugin_data.plugin_name == "text"


def test_a_tracker_that_fails_is_named_once_and_left_alone(tmp_path: Path) -> None:
    calls: list[str] = []

    class Broken:
        def __call__(self, event: Event) -> None:
            calls.append("event")
            raise ConnectionError("no network")

        def close(self) -> None:
            calls.append("close")

    said: list[tuple[str, str]] = []
    careful = trackers.Careful(Broken(), "A tracker", lambda text, level: said.append((text, level)))
    careful(STEP)
    careful(STEP)
    careful.close()
    assert calls == ["event"]
    assert said == [("A tracker gets no more numbers: ConnectionError: no network", "warning")]


@pytest.mark.parametrize("given", ["logs", "a/b", "/tmp/elsewhere"])
def test_logs_lie_in_the_output_folder_unless_the_path_is_absolute(given: str, tmp_path: Path) -> None:
    folder = trackers.trackers_folder(load_config({"logging_dir": given}), tmp_path)
    assert folder == (Path(given) if given.startswith("/") else tmp_path / given)
