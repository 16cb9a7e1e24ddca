"""What the commands say on stderr where that is not a terminal, and errors with details."""

from __future__ import annotations

import pytest

from acestep_mlx.cli import cli, main
from acestep_mlx.cli.events import TrainDisplay, duration
from acestep_mlx.cli.progress import ByteProgress
from acestep_mlx.errors import DataError
from acestep_mlx.report.events import Finished, Progress, Started, StepDone


def test_sizes_fit_the_amount(capsys: pytest.CaptureFixture[str]) -> None:
    with ByteProgress() as progress:
        progress("fusing", 3_000_000, 3_000_000)
    assert capsys.readouterr().err == "fusing: 3.00 MB of 3.00 MB (100 %)\n"


def test_training_in_plain_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with TrainDisplay() as display:
        display(Progress("converting", 2_000_000, 2_000_000, "bytes"))
        display(Progress("latents", 3, 3, "song"))
        display(Started(0, 1, 1234, 1, "out"))
        display(StepDone(1, 1.0, 1.0, 1e-4, 0.5, 2.0, 0.314, 250_000_000, 0.0, 0, 1.0))
        display(Finished(1, "done", None, None, skipped_steps=1))
    lines = capsys.readouterr().err.splitlines()
    assert lines[:2] == ["converting: 2.00 MB of 2.00 MB", "latents: 3 of 3"]
    assert "training 1,234 parameters on 1 song, step 1, into" in lines[2]
    assert "0.31 s audio/s, peak 250.00 MB" in lines[3]
    assert lines[4] == "warning: 1 step skipped in all"


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
