"""Ctrl-C, SIGTERM and a closed terminal end every command alike: nothing is left behind, one line, 130."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from acestep_mlx.__main__ import Interrupts

ENDING = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
MOMENTS = [0.1 + 0.035 * i for i in range(12)]  # seconds after the start

# The command, which gets a signal in the middle of its work.
COMMAND = """
import os, signal, sys
for number in (signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, signal.SIG_DFL)
signal.signal(signal.SIGINT, signal.default_int_handler)
number, where = int(sys.argv.pop(1)), sys.argv.pop(1)
module, _, name = where.partition(":")
from importlib import import_module
from pathlib import Path
holder = import_module(module)
*outer, name = name.split(".")
for one in outer:
    holder = getattr(holder, one)
work = getattr(holder, name)
def interrupted(*arguments, **options):
    work(*arguments, **options)
    os.kill(os.getpid(), number)
    raise SystemExit("it goes on")
setattr(holder, name, interrupted)
from acestep_mlx.__main__ import run
run()
"""


def ended(number: int, where: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """The command with these arguments, which is sent a signal once `where` has done its work."""
    command = [sys.executable, "-c", COMMAND, str(int(number)), where, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def assert_interrupted(done: subprocess.CompletedProcess[str]) -> None:
    assert done.returncode == 130, done.stderr
    assert done.stderr.splitlines()[-1] == "interrupted" and "Traceback" not in done.stderr


@pytest.mark.parametrize("number", ENDING, ids=lambda one: one.name)
def test_a_conversion_that_is_ended_leaves_nothing(
    number: signal.Signals, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    place = "acestep_mlx.io.tensors:SafetensorsWriter.write"
    out = tmp_path / "out" / "model"
    assert_interrupted(ended(number, place, "convert", "--hf-path", tiny_checkpoint, "--mlx-path", out))
    assert list(out.parent.iterdir()) == []


@pytest.mark.parametrize("number", ENDING[1:], ids=lambda one: one.name)
def test_a_song_that_is_ended_leaves_nothing(
    number: signal.Signals, tiny_model: Path, tmp_path: Path
) -> None:
    arguments = ["--prompt", "x", "--duration", "1", "--steps", "1", "--output", tmp_path / "song.wav"]
    place = "acestep_mlx.io.audio:write_audio"
    done = ended(number, place, "generate", "--model", tiny_model, *arguments)
    assert_interrupted(done)
    assert not [path.name for path in tmp_path.iterdir() if path.suffix == ".partial"]


@pytest.fixture
def interrupts() -> Iterator[Interrupts]:
    """Installed over Python's own handlers, which come back."""
    numbers = [*ENDING, signal.SIGALRM]
    before = {number: signal.signal(number, signal.SIG_DFL) for number in numbers}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    one = Interrupts()
    one.install()
    yield one
    signal.setitimer(signal.ITIMER_REAL, 0)
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("interrupts")
@pytest.mark.parametrize("number", ENDING, ids=lambda one: one.name)
def test_a_signal_waits_for_the_end_of_an_import(
    number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An extension module that is interrupted ends in a traceback of its own, or aborts."""
    name = f"slow_to_import_{number.name}"
    text = f"import signal, time\nsignal.raise_signal({int(number)})\ntime.sleep(0.1)\nwhole = True\n"
    (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(KeyboardInterrupt):
        __import__(name)
        time.sleep(10)
    assert sys.modules[name].whole


@pytest.mark.usefixtures("interrupts")
@pytest.mark.parametrize(
    "numbers", [(signal.SIGHUP, signal.SIGHUP), (signal.SIGTERM, signal.SIGHUP)], ids=str
)
def test_a_terminal_that_tells_twice_does_not_disturb_the_clearing_up(
    numbers: tuple[signal.Signals, signal.Signals],
) -> None:
    first, second = numbers
    cleared = False
    with pytest.raises(KeyboardInterrupt):
        try:
            signal.raise_signal(first)
        finally:
            signal.raise_signal(second)
            cleared = True
    assert cleared
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


@pytest.mark.usefixtures("interrupts")
def test_signals_that_are_ignored_stay_ignored() -> None:
    for number in ENDING:
        signal.signal(number, signal.SIG_IGN)
    Interrupts().install()
    assert all(signal.getsignal(number) is signal.SIG_IGN for number in ENDING)


@pytest.mark.slow
@pytest.mark.parametrize("command", ["generate", "fuse", "info"])
def test_ctrl_c_at_any_moment_of_the_start(command: str, tiny_model: Path, tmp_path: Path) -> None:
    arguments = {
        "generate": ["--model", tiny_model, "--prompt", "x", "--output", tmp_path / "x.wav"],
        "fuse": ["--model", tiny_model, "--lora", tmp_path / "none", "-o", tmp_path / "out"],
        "info": [tiny_model],
    }[command]
    line = [sys.executable, "-m", "acestep_mlx", command, *map(str, arguments)]
    for moment in MOMENTS:
        child = subprocess.Popen(
            line,
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        time.sleep(moment)
        child.send_signal(signal.SIGINT)
        said = child.communicate()[1]
        if child.returncode == -signal.SIGINT and "acestep_mlx/cli" not in said:
            continue  # Python itself was still starting
        assert "Traceback" not in said and child.returncode in (0, 1, 130), (moment, said)


def test_an_interrupt_while_something_is_deleted_is_not_lost() -> None:
    """Python prints what a `__del__` raises, and goes on; the interrupt comes again, and nothing is said."""
    code = (
        "import os, signal, time\n"
        "from acestep_mlx.__main__ import Interrupts\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "Interrupts().install()\n"
        "class Thing:\n"
        "    def __del__(self):\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "        time.sleep(0.01)\n"
        "try:\n"
        "    Thing()\n"
        "    time.sleep(5)\n"
        "except KeyboardInterrupt:\n"
        "    raise SystemExit(130)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (130, "")
