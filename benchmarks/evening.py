"""How a command feels on a terminal: its phases, and every wait in which nothing on the screen changed.

    python benchmarks/evening.py [--wait 5] [--answer TEXT …] -- acestep-mlx new my-songs

The command runs on a terminal of 80 columns. Each `--answer` is typed, in turn, where it asks. What is
printed: what the screen said at last, then each phase (what the moving line said, without its numbers) with
the time that it took, then each wait, with what stood there.
"""

from __future__ import annotations

import argparse
import os
import re
import select
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.screen import Screen, started

ASKED = 1.0  # seconds after which a line that ends like a question is taken for one


@dataclass
class Watch:
    """changes: (seconds since the start, what the cursor's row says) each time that it says something new."""

    screen: Screen = field(default_factory=Screen)
    changes: list[tuple[float, str]] = field(default_factory=list)
    seconds: float = 0.0

    def phases(self) -> Iterator[tuple[str, float]]:
        """(name, seconds), in the order in which they were first seen."""
        taken: dict[str, float] = {}
        ends = [*(at for at, _ in self.changes[1:]), self.seconds]
        for (at, row), end in zip(self.changes, ends, strict=True):
            name = re.split(r"\s*[:·|(\[]|\s+\d", row)[0].strip()
            taken[name] = taken.get(name, 0.0) + end - at
        yield from taken.items()

    def waits(self, least: float) -> Iterator[tuple[float, float, str]]:
        """(when, how long, what stood there)."""
        rows = [(0.0, "(nothing yet)"), *self.changes, (self.seconds, "")]
        for (at, row), (until, _) in pairwise(rows):
            if until - at >= least:
                yield at, until - at, row


def watch(arguments: list[str], answers: list[str]) -> tuple[Watch, int]:
    """Run it; what was seen, and its exit code."""
    child, terminal = started(arguments, Path.cwd())
    found, begun, answers = Watch(), time.monotonic(), list(answers)
    asked = begun
    while True:
        if not select.select([terminal], [], [], 0.2)[0]:
            row = found.screen.row
            if answers and row.endswith((":", "?", "]")) and time.monotonic() - asked > ASKED:
                os.write(terminal, f"{answers.pop(0)}\n".encode())
                asked = time.monotonic()
            continue
        try:
            data = os.read(terminal, 65536)
        except OSError:  # Linux says so that the other side is closed
            break
        if not data:
            break
        asked = time.monotonic()
        for line in data.decode(errors="replace").splitlines(keepends=True):
            found.screen.feed(line)
            row = found.screen.row
            if row and (not found.changes or found.changes[-1][1] != row):
                found.changes.append((asked - begun, row))
    found.seconds = time.monotonic() - begun
    os.close(terminal)
    return found, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--wait", type=float, default=5.0, help="the shortest wait that is named, in seconds")
    parser.add_argument("--answer", action="append", default=[], help="typed where the command asks")
    parser.add_argument("command", nargs="+")
    args = parser.parse_args()
    found, code = watch(args.command, args.answer)
    print(found.screen.text.rstrip())
    print(f"\n{found.seconds:.1f} s, exit code {code}, {len(found.changes)} changes of the moving line")
    for name, seconds in found.phases():
        if seconds >= 1:
            print(f"  {seconds:7.1f} s  {name}")
    waits = list(found.waits(args.wait))
    print(f"{len(waits)} waits of {args.wait:g} s and more without a change")
    for at, long, row in waits:
        print(f"  at {at:.1f} s, {long:.1f} s: {row}")


if __name__ == "__main__":
    main()
