"""Runs trainings in forked children, kills them at random moments, resumes; prints what happened as JSON.

    python -m tests.training.kill_driver CONFIG_JSON REFERENCE_CHECKPOINT KILLS SEED

The children are forked from a process that has imported everything and evaluated nothing, so a run costs
its own
time only. Half of the kills strike at a random moment, half inside the n-th write to the disk (caches,
checkpoint
files, folders), before or after it.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import time
import traceback
from pathlib import Path

import acestep_mlx.data.batches
import acestep_mlx.training.run  # noqa: F401
from acestep_mlx.training.run import train


def child(config: dict, at_write: int | None, after: bool) -> None:
    """Train; kill this process at its n-th fsync when asked to."""
    if at_write is not None:
        sync, count = os.fsync, [0]

        def counted(handle: int) -> None:
            count[0] += 1
            if count[0] == at_write and not after:
                os.kill(os.getpid(), signal.SIGKILL)
            sync(handle)
            if count[0] == at_write:
                os.kill(os.getpid(), signal.SIGKILL)

        os.fsync = counted
    try:
        result = train(config)
        code = 0 if result.finished else 3
    except BaseException:
        traceback.print_exc()
        code = 4
    sys.stderr.flush()
    os._exit(code)


def launch(
    config: dict, *, delay: float | None = None, at_write: int | None = None, after: bool = False
) -> int:
    """Exit code of one run, negative when it was killed."""
    pid = os.fork()
    if pid == 0:
        child(config, at_write, after)
    if delay is not None:
        end = time.monotonic() + delay
        while time.monotonic() < end:
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.01)
        os.kill(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def main() -> None:
    config = json.loads(Path(sys.argv[1]).read_text())
    reference, wanted, rng = Path(sys.argv[2]), int(sys.argv[3]), random.Random(int(sys.argv[4]))
    output, cache = Path(config["output_dir"]), Path(config["cache_dir"])
    kills, finished, problems = {"time": 0, "write": 0}, 0, []
    started = time.monotonic()
    if (code := launch(config)) != 0:
        problems.append(f"a run without a kill ended with {code}")
    whole = time.monotonic() - started
    same(output, reference, problems)
    reset(output, cache)
    while sum(kills.values()) < wanted and not problems:
        if rng.random() < 0.5:
            kind, code = "time", launch(config, delay=rng.uniform(0.02, 0.8 * whole))
        else:
            kind, code = "write", launch(config, at_write=rng.randint(1, 30), after=rng.random() < 0.5)
        if code == -signal.SIGKILL:
            kills[kind] += 1
        elif code == 0:
            finished += 1
            same(output, reference, problems)
            reset(output, cache)
        else:
            problems.append(f"a resumed run ended with {code}")
    if not problems:
        if (code := launch(config)) != 0:
            problems.append(f"the last resumed run ended with {code}")
        same(output, reference, problems)
    print(json.dumps({"kills": kills, "finished": finished + 1, "problems": problems, "run": whole}))


def same(output: Path, reference: Path, problems: list[str]) -> None:
    """The final checkpoint holds the reference's bytes."""
    for theirs in sorted(reference.glob("*.safetensors")):
        ours = output / reference.name / theirs.name
        if not ours.is_file() or ours.read_bytes() != theirs.read_bytes():
            problems.append(f"{theirs.name} differs from the uninterrupted run's")


def reset(output: Path, cache: Path) -> None:
    shutil.rmtree(output, ignore_errors=True)
    shutil.rmtree(cache, ignore_errors=True)


if __name__ == "__main__":
    main()
