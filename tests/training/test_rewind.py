"""Songs that go away in the middle of an update: a run keeps all of it, ranks go back to where it began."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from acestep_mlx.errors import DataError
from acestep_mlx.report.events import Listeners
from acestep_mlx.training.trainer import Counters, Intervals, Trainer


@pytest.mark.parametrize("world", [1, 2])
def test_what_is_each_ranks_own_is_forgotten_before_the_checkpoint(world: int) -> None:
    done: list[Any] = []
    step: Any = SimpleNamespace(
        world=world, scales_loss=False, settings=SimpleNamespace(accumulate=4), begin_round=done.append
    )

    def gone() -> Any:
        raise DataError("a: cannot be read")

    batches: Any = SimpleNamespace(epoch=0, next=gone, restore=done.append, state=lambda: {"position": 9})
    one = Trainer(
        step, batches, 99, intervals=Intervals(0), save=lambda health: (Path("checkpoint-3"), []),
        emit=Listeners(), counters=Counters(step=3, micro=2, loss_sum=1.5, loss_weight=2.0),
    )  # fmt: skip
    one._round = {"position": 7}, {}
    with pytest.raises(DataError, match=r"stopped at step 3: .*cannot be read\. checkpoint-3 is complete"):
        one._next_batch()
    counters = one.counters
    assert done == ([{"position": 7}, {}] if world > 1 else [])
    wanted = (0, 0.0, 0.0) if world > 1 else (2, 1.5, 2.0)
    assert (counters.micro, counters.loss_sum, counters.loss_weight) == wanted
