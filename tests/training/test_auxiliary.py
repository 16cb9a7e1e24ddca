"""A further loss of a step: in the gradient and in the numbers, and in nothing that is evaluated."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from acestep_mlx.families.v1.objective import FlowMatching
from acestep_mlx.report.events import Evaluated, Listeners, MetricsFile, StepDone, read_metrics
from acestep_mlx.report.trackers import scalars
from acestep_mlx.training.evaluation import Evaluation
from acestep_mlx.training.optimizers import Group, Schedule, make_optimizer
from acestep_mlx.training.step import StepSettings, TrainStep
from acestep_mlx.training.trainer import Counters, Intervals, Trainer

from . import tiny


class Quiet:
    """The mean square of what a block gives, tenfold."""

    parts = ("quiet/size",)

    def __init__(self, block: int = 0) -> None:
        self.block = block

    def __call__(self, model: Any, batch: Any, run: Any) -> Any:
        with model.watched() as hidden:
            losses = run()
        size = mx.square(hidden[self.block].astype(mx.float32)).mean(axis=(1, 2))
        return losses + 10 * size, {"quiet/size": size.mean()}


def _step(model: Any, auxiliary: Any = None, **settings: Any) -> TrainStep:
    paths = list(tiny.weights(model))
    group = Group("lora", make_optimizer("sgd", 0.01), Schedule("constant", 0.01, 0, 9), paths)
    return TrainStep(model, [group], StepSettings(**settings), FlowMatching(), auxiliary=auxiliary)


@pytest.mark.parametrize("recomputed", [0, 2])
def test_it_is_in_the_gradient_of_what_lies_below_the_block_that_it_watches(recomputed: int) -> None:
    batch, moved = tiny.batch(B=2), {}
    for name, auxiliary in (("plain", None), ("quiet", Quiet())):
        model = tiny.adapted()
        model.checkpoint_blocks = recomputed
        before = tiny.weights(model)
        result = _step(model, auxiliary, max_grad_norm=0)(batch, update=True)
        after = tiny.weights(model)
        moved[name] = result, {path: after[path] - before[path] for path in after}
    (plain, without), (quiet, with_it) = moved["plain"], moved["quiet"]
    assert plain.parts == {} and list(quiet.parts) == ["quiet/size"]
    assert quiet.loss.item() == pytest.approx(plain.loss.item() + 10 * quiet.parts["quiet/size"].item())
    same = {path for path in without if mx.allclose(without[path], with_it[path], rtol=1e-4, atol=1e-9)}
    assert same and all("transformer_blocks.1." in path for path in same)
    assert not any("transformer_blocks.0.attn" in path for path in same)


class _Songs:
    """Two batches of other sizes in turn."""

    epoch = 0

    def __init__(self) -> None:
        self.at = 0

    def next(self) -> Any:
        self.at += 1
        return tiny.batch(seed=self.at, B=1 + self.at % 2)

    def state(self) -> dict[str, Any]:
        return {"at": self.at}

    def restore(self, state: Any) -> None:
        self.at = state["at"]


def test_its_parts_are_means_over_the_songs_of_an_update_in_every_place(tmp_path: Path) -> None:
    metrics, seen = MetricsFile(tmp_path / "metrics.jsonl"), []
    step, results = _step(tiny.adapted(), Quiet(), accumulate=2), []

    class Kept(TrainStep):
        def __call__(self, *args: Any, **options: Any) -> Any:
            results.append(super().__call__(*args, **options))
            return results[-1]

    step.__class__ = Kept
    trainer = Trainer(
        step, _Songs(), 1, intervals=Intervals(0), save=lambda health: (tmp_path, []),
        emit=Listeners([metrics, seen.append]),
    )  # fmt: skip
    trainer.run()
    metrics.close()
    sizes = [one.parts["quiet/size"].item() for one in results]
    expected = (2 * sizes[0] + sizes[1]) / 3
    done = next(event for event in seen if isinstance(event, StepDone))
    assert done.extra["quiet/size"] == pytest.approx(expected)
    assert scalars(done)["quiet/size"] == done.extra["quiet/size"]
    (row,) = [row for row in read_metrics(tmp_path / "metrics.jsonl") if row["event"] == "step"]
    assert row["quiet/size"] == done.extra["quiet/size"]
    assert trainer.counters.parts == {}


def test_sums_of_an_update_in_work_are_in_the_checkpoint_and_nothing_is_without_parts() -> None:
    counters = Counters(step=3, micro=1, parts={"ssl/mert": 0.25})
    assert Counters.from_dict(json.loads(json.dumps(counters.to_dict()))) == counters
    assert "parts" not in Counters(step=3).to_dict()


def test_the_evaluation_is_the_plain_loss() -> None:
    batch = tiny.batch()
    model = tiny.adapted()
    plain = Evaluation(model, [batch], FlowMatching(), mx.float32)()
    step = _step(model, Quiet())
    assert Evaluation(model, [batch], step.objective, mx.float32)() == plain
    assert Evaluated(1, *plain).loss == plain[0]  # type: ignore[index,misc]
