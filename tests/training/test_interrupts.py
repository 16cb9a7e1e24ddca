"""Ctrl-C, SIGTERM, a closed terminal, a pipe that nobody reads: the run ends with a complete checkpoint."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from acestep_mlx.report.events import CheckpointSaved, Evaluated, Notice, StepDone, ValidationClip
from acestep_mlx.training import checkpoint
from acestep_mlx.training.interrupts import StopRequest

from . import runs

PROJECT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("interrupts")


@pytest.fixture(autouse=True)
def hangup():
    """A terminal that is closed ends programs, also where these tests run under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


# ── the request itself ────────────────────────────────────────────────────────────────────────────────
@pytest.mark.slow_after(1)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_is_answered_while_the_main_thread_is_not_in_python(number):
    """The answer comes from another thread, before the blocking call returns."""
    stop, order = StopRequest(), []
    stop.say = lambda line: order.append(line)

    def send():
        time.sleep(0.1)
        os.kill(os.getpid(), number)

    with stop, stop.deferred():
        threading.Thread(target=send).start()
        hashlib.pbkdf2_hmac("sha256", b"x", b"y", 2_000_000)
        order.append("back in Python")
        for _ in range(100):
            if len(order) > 1:
                break
            time.sleep(0.01)
    assert stop.requested
    assert order[1] == "back in Python" and order[0].startswith("stopping here")


def test_before_anything_is_trained_a_signal_interrupts_at_once():
    stop, said = StopRequest(), []
    stop.say = said.append
    with pytest.raises(KeyboardInterrupt), stop:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)
    assert len(said) == 1 and "before the first step" in said[0]


def test_a_second_interrupt_in_a_program_of_ones_own_is_a_keyboard_interrupt():
    stop, said = StopRequest(), []
    stop.say, stop.kept = said.append, lambda: "The last complete checkpoint is C."
    with pytest.raises(KeyboardInterrupt), stop, stop.deferred():
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)
    assert said[-1] == "stopped at once. The last complete checkpoint is C."


def test_a_request_of_another_thread_does_not_make_the_first_interrupt_the_second():
    """A gone reader asks to stop; the Ctrl-C that took it must not end the run without a checkpoint."""
    stop, said = StopRequest(exit_code=7), []
    stop.say = said.append
    with stop, stop.deferred():
        stop.request()
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.2)
    assert len(said) == 1 and said[0].startswith("stopping here")


def test_handlers_and_an_ignored_hangup_are_put_back():
    before = {n: signal.getsignal(n) for n in StopRequest.SIGNALS}
    with StopRequest():
        assert signal.getsignal(signal.SIGHUP) != before[signal.SIGHUP]
    assert {n: signal.getsignal(n) for n in StopRequest.SIGNALS} == before
    previous = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # nohup
    try:
        with StopRequest():
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, previous)


# ── in a run ──────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_a_run_with_a_complete_checkpoint(root, tiny_model, number):
    name = f"signal-{number}"
    config = runs.configuration(root, tiny_model, name, max_train_steps=50)
    result, seen = runs.run(
        config, lambda e: os.kill(os.getpid(), number) if isinstance(e, StepDone) and e.step == 2 else None
    )
    assert not result.finished and 2 <= result.step <= 4
    assert checkpoint.verify(result.checkpoint)["step"] == result.step
    assert any("Ctrl-C again" in e.text for e in seen.of(Notice))


@pytest.mark.slow
def test_stopped_while_it_evaluates_and_makes_clips(root, tiny_model):
    """What was due and broken off is done by the run that goes on."""
    options = {
        "max_train_steps": 2,
        "eval_loss_disable": False,
        "eval_steps_interval": 1,
        "validation_disable": False,
        "validation_prompt": "a tone",
        "validation_steps": 1,
        "validation_audio_duration": 1,
        "validation_num_inference_steps": 2,
        "resume_from_checkpoint": "latest",
    }
    config = runs.configuration(root, tiny_model, "clips", **options)
    stop = StopRequest()
    result, seen = runs.run(
        config, lambda e: stop.request() if isinstance(e, Evaluated) and e.step == 1 else None, stop
    )
    assert not result.finished and result.step == 1 and not seen.of(ValidationClip)
    assert [e.step for e in seen.of(CheckpointSaved)] == [1]
    result, seen = runs.run(config)
    assert result.finished
    assert [(e.step, e.with_lora) for e in seen.of(ValidationClip)] == [(0, False), (1, True), (2, True)]


@pytest.mark.slow
def test_a_run_that_is_stopped_where_its_checkpoint_is_keeps_that_as_it_is(root, tiny_model):
    options = {"max_train_steps": 4, "checkpointing_steps": 2, "eval_loss_disable": False}
    config = runs.configuration(root, tiny_model, "same", resume_from_checkpoint="latest", **options)
    stop = StopRequest()
    first, _ = runs.run(config, lambda e: stop.request() if isinstance(e, CheckpointSaved) else None, stop)
    state = (first.checkpoint / "training_state.json").read_bytes()
    assert not first.finished and first.step == 2 and json.loads(state)["evaluation"] > 0
    stop = StopRequest()
    stop.request()
    second, seen = runs.run(config, stop=stop)
    assert second.step == 2 and not seen.of(CheckpointSaved) and second.checkpoint == first.checkpoint
    assert (first.checkpoint / "training_state.json").read_bytes() == state


# ── as a user starts it ───────────────────────────────────────────────────────────────────────────────
@pytest.fixture(scope="module")
def endless(root, tiny_model):
    """A configuration that trains until it is stopped; its caches are filled."""
    options = {"max_train_steps": 100_000, "checkpointing_steps": 3, "checkpoints_total_limit": 1}
    config = runs.configuration(root, tiny_model, "endless", **options)
    runs.run({**config, "output_dir": str(root / "filled"), "max_train_steps": 1})
    path = root / "endless.json"
    path.write_text(json.dumps(config))
    return path


@contextlib.contextmanager
def started(endless: Path, output: Path, **options):
    """`acestep-mlx train` in a session of its own, once it has written two checkpoints."""
    command = [sys.executable, "-m", "acestep_mlx", "train", str(endless), f"--output_dir={output}"]
    child = subprocess.Popen(command, cwd=PROJECT, start_new_session=True, text=True, **options)
    try:
        yield child
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def wait_for(condition, seconds: float = 100.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


def saved(output: Path) -> int:
    found = checkpoint.checkpoints(output)
    return int(found[-1].name.rpartition("-")[2]) if found else 0


@pytest.mark.slow
def test_ctrl_c_ends_with_a_checkpoint_though_nobody_reads_the_output(endless, tmp_path):
    """`train 2>&1 | tee log`: Ctrl-C goes to both, and tee is gone first."""
    read, write = os.pipe()
    with started(endless, tmp_path / "run", stdout=write, stderr=write) as child:
        os.close(write)
        wait_for(lambda: saved(tmp_path / "run") >= 3)
        os.close(read)
        os.kill(child.pid, signal.SIGINT)
        assert child.wait(60) == 130
    newest = checkpoint.checkpoints(tmp_path / "run")[-1]
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert checkpoint.verify(newest)["step"] == rows[-1]["step"] and rows[-1]["event"] == "checkpoint"


@pytest.mark.slow
def test_a_reader_that_leaves_ends_the_run_with_a_checkpoint(endless, tmp_path):
    """`train 2>&1 | head -1`."""
    read, write = os.pipe()
    with started(endless, tmp_path / "run", stdout=write, stderr=write) as child:
        os.close(write)
        assert os.read(read, 1)
        os.close(read)
        assert child.wait(100) == 130
    checkpoint.verify(checkpoint.checkpoints(tmp_path / "run")[-1])


def test_a_second_ctrl_c_ends_a_process_that_is_stuck_outside_of_python(tmp_path):
    code = (
        "import hashlib, os, signal, sys, threading, time\n"
        "from acestep_mlx.training.interrupts import StopRequest\n"
        "stop = StopRequest(130)\n"
        "stop.say = lambda line: print(line, flush=True)\n"
        "stop.kept = lambda: 'The last complete checkpoint is C.'\n"
        "def press():\n"
        "    for _ in range(2):\n"
        "        time.sleep(0.1)\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "with stop, stop.deferred():\n"
        "    threading.Thread(target=press).start()\n"
        "    hashlib.pbkdf2_hmac('sha256', b'x', b'y', 2_000_000_000)\n"
        "print('the call returned')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=PROJECT
    )
    assert done.returncode == 130 and not done.stderr
    assert done.stdout.splitlines()[1:] == ["stopped at once. The last complete checkpoint is C."]
