"""What the commands say on stderr where that is not a terminal, and errors with details."""

from __future__ import annotations

import sys

import pytest

from acestep_mlx.cli import cli, main
from acestep_mlx.cli.events import TrainDisplay
from acestep_mlx.cli.progress import Display
from acestep_mlx.errors import DataError
from acestep_mlx.formatting import duration
from acestep_mlx.io.progress import Advance, as_stage, part
from acestep_mlx.report.events import (
    Advanced,
    CheckpointSaved,
    Evaluated,
    Finished,
    Started,
    StepDone,
    ValidationClip,
)


def test_sizes_fit_the_amount(capsys: pytest.CaptureFixture[str]) -> None:
    with Display() as progress:
        progress(Advance("fusing", 3_000_000, 3_000_000, "bytes"))
    assert capsys.readouterr().err == "fusing: 3.00 MB of 3.00 MB (100 %)\n"


def test_plain_lines_by_what_is_counted(capsys: pytest.CaptureFixture[str]) -> None:
    """Items: the last of a stage, and what comes long after a line. Bytes: a line a tenth of all stages.
    Shares: that a stage begins. What has no total is said as it is.
    """
    with Display() as display:
        for done in range(1, 6):
            display(Advance("captions", done, 5, note=f"song {done}"))
        for stage, first in (("converting a", 0), ("converting b", 50)):
            for done in range(first, first + 51):
                display(Advance(stage, done, 100, "bytes"))
        for share in (0.0, 0.5, 1.0):
            display(Advance("decoding", share, 1, "share"))
        display(Advance("note: all is well"))
    lines = capsys.readouterr().err.splitlines()
    assert lines[-2:] == ["decoding …", "note: all is well"]
    assert [line for line in lines if line.startswith("captions")][-1] == "captions: 5 of 5"
    tenths = [line for line in lines if line.startswith("converting")]
    assert [line.split(": ")[0][-1] for line in tenths] == [*"aaaaaa", *"bbbbb"]
    assert tenths[0].endswith("(0 %)") and tenths[-1].endswith("100 bytes of 100 bytes (100 %)")


def test_one_bar_for_all_stages_of_bytes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with Display() as display:
        display(Advance("converting a", 5_000_000, 10_000_000, "bytes"))
        display(Advance("converting b", 10_000_000, 10_000_000, "bytes"))
        display(Advance("latents", 1, 2, note="a song's name"))
        display(Advance("above the bar"))
        display(Advance("latents", 2, 2, note="another song's name"))
    err = capsys.readouterr().err
    assert "100 %, 10.00 MB of 10.00 MB" in err and "2 of 2" in err and "another song's name" in err
    assert err.count("\n") == 3 and "above the bar\n" in err  # a line of its own, and a line for each bar


def test_a_part_counts_as_a_share_of_the_whole() -> None:
    told: list[Advance] = []
    for i in range(3):
        inner = part(as_stage(told.append, "decoding"), i, 3)
        for done in (1, 2):
            inner(Advance(done=done, total=2))
    assert [round(6 * a.done) for a in told] == [1, 2, 3, 4, 5, 6]
    assert {(a.stage, a.total, a.unit) for a in told} == {("decoding", 1, "share")}


def test_training_in_plain_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with TrainDisplay() as display:
        display(Advanced(Advance("converting", 2_000_000, 2_000_000, "bytes")))
        display(Advanced(Advance("latents", 3, 3, note="song")))
        display(Started(0, 1, 1234, 1, "out"))
        display(StepDone(1, 1.0, 1.0, 1e-4, 0.5, 2.0, 0.314, 250_000_000, 0.0, 0, 1.0))
        display(Finished(1, "done", None, None, skipped_steps=1))
    lines = capsys.readouterr().err.splitlines()
    assert lines[:2] == ["converting: 2.00 MB of 2.00 MB (100 %)", "latents: 3 of 3"]
    assert "training 1,234 parameters on 1 song, step 1, into" in lines[2]
    assert "0.31 s audio/s, peak 250.00 MB" in lines[3]
    assert lines[4] == "warning: 1 step skipped in all"


def test_every_number_of_a_run_is_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    with TrainDisplay() as display:
        display(Started(3, 9, 1234567, 17, "out"))
        display(StepDone(9, 1.25, 2.5, 3e-4, 4.5, 5.5, 6.5, 7_000_000, 8100.0, 10, 11.0, skipped=True))
        display(Evaluated(12, 13.5, {"0-200": 14.25, "200-400": 15.75}))
        display(Evaluated(13, 13.5, {"0-200": 14.25}, verdict="Flat: it is."))
        display(ValidationClip(16, "a", "b", "clip.wav", 17))
        display(CheckpointSaved(18, "checkpoint-18", ("x", "y")))
        display(CheckpointSaved(19, "checkpoint-19"))
        display(Finished(20, "done", "lora.safetensors", "report.html", 21))
    assert capsys.readouterr().err.splitlines() == [
        "training 1,234,567 parameters on 17 songs, steps 4 to 9, into out",
        "warning: step 9 skipped: its loss or gradient is not finite",
        "step 9/9, loss 1.2500 (smoothed 2.5000), lr 3.00e-04, grad 4.5, 6.5 s audio/s, peak 7.00 MB, "
        "5.50 steps/s, ETA 2:15:00",
        "step 12: evaluation loss 13.5000 (timesteps 0-200: 14.2500, 200-400: 15.7500)",
        "step 13: evaluation loss 13.5000 (timesteps 0-200: 14.2500)",
        "step 13: Flat: it is.",
        "step 16: clip.wav",
        "saved checkpoint-18, removed 2 older",
        "saved checkpoint-19",
        "warning: 21 steps skipped in all",
        "LoRA: lora.safetensors",
        "report: report.html",
    ]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0:00"), (9.9, "0:09"), (75, "1:15"), (3599, "59:59"), (3600, "1:00:00"), (3700, "1:01:40"),
     (36065, "10:01:05"), (360000, "100:00:00")],
)  # fmt: skip
def test_the_time_that_is_left_has_two_digits_for_minutes_and_seconds(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_details_come_before_the_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def failing(*_: object, **__: object) -> None:
        raise DataError("nothing left", ["skipped a: empty", "skipped b: silent"])

    monkeypatch.setattr(cli, "main", failing)
    with pytest.raises(SystemExit) as caught:
        main(["train", "x"])
    assert caught.value.code == 1
    assert capsys.readouterr().err == "skipped a: empty\nskipped b: silent\nerror: nothing left\n"


def test_demo_wants_a_folder(tmp_path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit) as caught:
        main(["demo", str(tmp_path / "file")])
    assert caught.value.code == 1 and "is a file; name a folder" in capsys.readouterr().err
