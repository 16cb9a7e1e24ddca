"""One rank of a data-parallel run: `mlx.launch -n 2 python distributed_run.py CONFIG_JSON [HOW]`."""

from __future__ import annotations

import errno
import json
import os
import sys
import time
from pathlib import Path

import mlx.core as mx

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from acestep_mlx.data.batches import Batches
from acestep_mlx.errors import AceStepError
from acestep_mlx.report.events import StepDone
from acestep_mlx.training import saving
from acestep_mlx.training.run import train
from acestep_mlx.training.step import TrainStep

how = sys.argv[2] if len(sys.argv) > 2 else ""
if how == "lose":  # rank 1 cannot read the songs of its third batch
    take, taken = Batches.next, []

    def lost(self: Batches) -> object:
        taken.append(1)
        if len(taken) == 3 and self.rank == 1:
            raise OSError(errno.EIO, "Input/output error", "songs/a.wav")
        return take(self)

    Batches.next = lost
if how == "die":  # rank 1 vanishes before its third update
    call, done = TrainStep.__call__, []

    def dying(self: TrainStep, batch: dict, **kwargs: object) -> object:
        done.append(1)
        if len(done) == 3 and mx.distributed.init().rank() == 1:
            os._exit(9)
        return call(self, batch, **kwargs)

    TrainStep.__call__ = dying

if how == "late":  # rank 1 is slower, and once very late; rank 0 takes its time over a checkpoint
    step_of, save, stepped = TrainStep.__call__, saving.Writer.checkpoint, []

    def late(self: TrainStep, batch: dict, **kwargs: object) -> object:
        stepped.append(1)
        if mx.distributed.init().rank() == 1:
            time.sleep(20 if len(stepped) == 3 else 0.2)
        return step_of(self, batch, **kwargs)

    def slow(self: saving.Writer, health: object) -> object:
        if self.job.world.first:
            time.sleep(1)
        return save(self, health)

    TrainStep.__call__, saving.Writer.checkpoint = late, slow

config = json.loads(Path(sys.argv[1]).read_text())
try:
    result = train(
        config, on_event=lambda e: print(f"step {e.step}", flush=True) if isinstance(e, StepDone) else None
    )
    print(f"finished {result.finished} at {result.step}", flush=True)
except AceStepError as error:
    print(f"error: {error}", flush=True)
    sys.exit(1)
