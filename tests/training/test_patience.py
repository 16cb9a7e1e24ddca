"""Knowing when it is good: the best checkpoint is kept and named; training ends when it gets no better."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from acestep_mlx.cli.dry_run import patience_lines
from acestep_mlx.cli.events import TrainDisplay
from acestep_mlx.config.read_run import load_config
from acestep_mlx.errors import ConfigError
from acestep_mlx.report.events import (
    AverageEvaluated,
    CheckpointSaved,
    Evaluated,
    Finished,
    Listeners,
    Notice,
    StepDone,
)
from acestep_mlx.training import checkpoint
from acestep_mlx.training.evaluation import Evaluation, Measured
from acestep_mlx.training.interrupts import StopRequest
from acestep_mlx.training.trainer import Counters, Intervals, Lowest, Trainer

from . import runs


def test_a_lowest_loss_is_one_below_all_before() -> None:
    lowest = Lowest()
    given = [(1, 0.5), (2, 0.5), (3, math.nan), (4, 0.4), (5, math.inf), (6, 0.45)]
    assert [lowest.add(*one) for one in given] == [True, False, False, True, False, False]
    assert lowest == Lowest(4, 0.4, 2)
    assert not Lowest().add(1, math.nan)


@pytest.mark.parametrize(
    ("options", "advice"),
    [
        ({"eval_loss_disable": True, "eval_steps_interval": 5}, "eval_loss_disable is true"),
        ({"num_eval_images": 0, "eval_steps_interval": 5}, "num_eval_images is 0"),
        ({"eval_steps_interval": 0}, "set eval_steps_interval"),
        ({"checkpointing_steps": 0}, "set eval_steps_interval"),
    ],
)
def test_patience_without_evaluations_is_an_error(options: dict[str, Any], advice: str) -> None:
    with pytest.raises(ConfigError, match=f"early_stopping_patience=3 needs evaluations, and .*{advice}"):
        load_config({"early_stopping_patience": 3, **options})
    load_config(options)
    for enough in ({"eval_steps_interval": 5}, {"checkpoint_epoch_interval": 1, "checkpointing_steps": 0}):
        load_config({"early_stopping_patience": 3, **enough})


# ── runs whose evaluation losses are given ───────────────────────────────────────────────────────────
LOSSES = {0: 0.1, 1: 0.9, 2: 0.5, 3: 0.7, 4: 0.6, 5: 0.8, 6: 0.55, 7: 0.3, 8: 0.4}


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    root, options = tmp_path_factory.mktemp("patience"), {"max_train_steps": 8, "eval_steps_interval": 1}
    with runs.lab(root, **options) as make:
        yield make


def evaluations(patch: pytest.MonkeyPatch, config: dict[str, Any]) -> None:
    """The loss of each step is that of LOSSES."""
    now = [0]

    def evaluate(self: Any, stopped: Any) -> Any:
        metrics = Path(config["output_dir"]) / "metrics.jsonl"
        rows = [json.loads(line) for line in metrics.read_text().splitlines()]
        now[0] = max((row["step"] for row in rows if row["event"] == "step"), default=0)
        return None if stopped() else Measured(LOSSES[now[0]], {"0-200": LOSSES[now[0]]}, {})

    patch.setattr(Evaluation, "__call__", evaluate)


@pytest.mark.slow
def test_it_stops_by_itself_with_the_best_step_kept_and_named(
    lab: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """0.5 at step 2 stays the lowest for four evaluations; that of the untrained model does not count."""
    config = lab("stops", early_stopping_patience=4, checkpoints_total_limit=1)
    evaluations(monkeypatch, config)
    display = TrainDisplay()
    result, seen = runs.run(config, act=display)
    assert result.finished and result.step == 6 and result.lora.is_file()
    output = Path(config["output_dir"])
    assert [p.name for p in checkpoint.checkpoints(output)] == ["checkpoint-2", "checkpoint-6"]
    assert seen.of(CheckpointSaved)[-1].best == str(output / "checkpoint-2")
    finished = seen.of(Finished)[-1]
    assert (finished.reason, finished.best) == ("early", str(output / "checkpoint-2"))
    said = [e.text for e in seen.of(Notice) if e.text.startswith("stopped at step 6")]
    assert len(said) == 1 and "0.5000 at step 2" in said[0] and "checkpoint-2" in said[0]
    page = result.report.read_text()
    assert "Best checkpoint" in page and "step 2" in page and said[0][1:] in page
    shown = capsys.readouterr().err
    assert f"best checkpoint by evaluation loss: {output / 'checkpoint-2'}" in shown
    assert "checkpoint-2, removed 1 older; the best so far by evaluation loss" in shown
    assert "the best so far is checkpoint-2" in shown


@pytest.mark.slow
@pytest.mark.parametrize("at", [1, 3, 5])
def test_a_run_that_was_stopped_goes_on_counting(at: int, lab: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    config = lab(f"counts-{at}", early_stopping_patience=4)
    evaluations(monkeypatch, config)
    stop = StopRequest()

    def act(event: Any) -> None:
        if isinstance(event, StepDone) and event.step == at:
            stop.request()

    runs.run(config, act, stop)
    result, seen = runs.run({**config, "resume_from_checkpoint": "latest"})
    assert result.step == 6 and seen.of(Finished)[-1].reason == "early"
    state = checkpoint.read(result.checkpoint).state
    lowest = {k: v for k, v in state["lowest"].items() if k != "measured"}
    assert lowest == {"step": 2, "loss": 0.5, "since": 4}
    best = checkpoint.best(Path(config["output_dir"]))
    assert best is not None and best.name == "checkpoint-2"
    again, seen = runs.run({**config, "resume_from_checkpoint": "latest"})
    assert again.step == 6 and not seen.of(StepDone) and seen.of(Finished)[-1].reason == "early"
    more, seen = runs.run({**config, "resume_from_checkpoint": "latest", "early_stopping_patience": 5})
    assert more.step == 8 and [e.step for e in seen.of(StepDone)] == [7, 8]
    assert seen.of(Finished)[-1].reason == "done" and seen.of(Finished)[-1].best.endswith("checkpoint-7")


@pytest.mark.slow
def test_losses_of_other_songs_do_not_count(lab: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    config = lab("others", early_stopping_patience=2)
    evaluations(monkeypatch, config)
    assert runs.run(config)[0].step == 4, "0.5 at step 2 was the lowest"
    more = {**config, "resume_from_checkpoint": "latest", "num_eval_images": 2}
    result, seen = runs.run(more)
    assert result.step == 8 and [e.step for e in seen.of(StepDone)] == [5, 6, 7, 8]
    assert any("early_stopping_patience counts anew" in e.text for e in seen.of(Notice))


def test_the_lowest_is_one_of_the_same_songs() -> None:
    lowest = Lowest(2, 0.5, 3, "these")
    assert lowest.of("these") == lowest and lowest.of("others") == Lowest(measured="others")
    assert Lowest(2, 0.5, 3).of("these") == lowest, "older checkpoints do not say"


@pytest.mark.slow
def test_without_patience_nothing_is_saved_or_ended_for_it(lab: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    config = lab("off")
    evaluations(monkeypatch, config)
    result, seen = runs.run(config)
    assert result.step == 8 and [e.step for e in seen.of(CheckpointSaved)] == [8]
    assert len(seen.of(Evaluated)) == 9 and seen.of(Finished)[-1].best.endswith("checkpoint-8")


@pytest.mark.slow
def test_a_real_song_in_parts_with_averaged_weights_stops_by_itself(
    lab: Any, tmp_path: Path, real_song: Path
) -> None:
    """Nothing is given here but the song: the loss falls, and then falls no more."""
    shutil.copytree(real_song, tmp_path / "songs")
    audio = {"crop_seconds": 4, "crop_lyrics": "cut", "max_duration_seconds": 20}
    songs = {"id": "real", "instance_data_dir": str(tmp_path / "songs"), "audio": audio}
    options = {"use_ema": True, "ema_decay": 0.9, "early_stopping_patience": 2, "eval_steps_interval": 3}
    config = lab("real", **options, backends=[songs], learning_rate=0.3, max_train_steps=200)
    result, seen = runs.run(config)
    finished, first = seen.of(Finished)[-1], seen.of(Evaluated)[0]
    assert finished.reason == "early" and 9 <= result.step < 200 and seen.of(AverageEvaluated)
    best = Path(finished.best)
    found = checkpoint.read(best).state["evaluation"]
    assert found == min(e.loss for e in seen.of(Evaluated)) < first.loss
    assert int(best.name.rpartition("-")[2]) == result.step - 6
    page = result.report.read_text()
    assert f"step {result.step - 6}</b>" in page and "averaged weights" in page and best.name in page
    assert (result.lora.parent / "ema" / checkpoint.LORA).is_file()


@pytest.mark.parametrize(
    ("patience", "loss", "kept"),
    [
        (0, 0.4, False),
        (2, 0.4, True),
        (3, 0.6, False),
        (2, 0.6, True),
        (2, math.nan, True),
        (3, math.nan, False),
    ],
)
def test_it_is_known_before_whether_a_checkpoint_follows(patience: int, loss: float, kept: bool) -> None:
    """Of a new lowest loss, and of the evaluation that ends the run; asking counts nothing."""
    step: Any = SimpleNamespace(settings=SimpleNamespace(accumulate=1), world=1, groups=[])
    none: Any = None
    counters = Counters(step=4, lowest=Lowest(2, 0.5, 1))
    trainer = Trainer(
        step,
        none,
        9,
        intervals=Intervals(),
        save=none,
        emit=Listeners(),
        counters=counters,
        patience=patience,
    )
    assert trainer.keeps(loss) is kept and counters.lowest == Lowest(2, 0.5, 1)
    assert (trainer.judge(loss) or trainer.over) is kept


def test_ranks_without_an_evaluation_count_that_of_the_first() -> None:
    step: Any = SimpleNamespace(settings=SimpleNamespace(accumulate=1), world=2, groups=[])
    given = iter([0.5, 0.6, 0.7])
    none: Any = None
    ends = {"share": lambda _: next(given), "patience": 2}
    trainer = Trainer(step, none, 9, intervals=Intervals(), save=none, emit=Listeners(), **ends)
    seen = [(trainer.judge(None), trainer.over) for _ in range(3)]
    assert seen == [(True, False), (False, False), (False, True)]


def test_a_dry_run_tells_when_it_may_end() -> None:
    assert patience_lines(load_config({})) == []
    for options, often in (
        ({"eval_steps_interval": 50}, "one every 50 steps"),
        ({}, "one at each checkpoint"),
    ):
        (line,) = patience_lines(load_config({"early_stopping_patience": 3, **options}))
        assert line == f"ends earlier after 3 evaluations in a row ({often}) without a new lowest loss"


def test_a_state_of_an_earlier_version_begins_to_count() -> None:
    counters = Counters.from_dict(Counters(step=4).to_dict())
    assert counters.lowest == Lowest() and "lowest" not in counters.to_dict()
