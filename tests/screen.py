"""What somebody sees of a command on a terminal of 80 columns: run on one, and drawn as it would be."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import sys
import termios
from collections.abc import Sequence
from pathlib import Path

COLUMNS = 80


class Screen:
    """As much of a terminal as progress needs. rows: of text. seen: what the cursor's row said, in turn."""

    def __init__(self) -> None:
        self.rows = [""]
        self.seen: list[str] = []
        self._x = self._y = 0

    def feed(self, text: str) -> None:
        """Characters as they come."""
        for character in text.replace("\x1b[A", "\x0b"):
            if character == "\r":
                self._x = 0
            elif character == "\n":
                self._go(self._y + 1)
            elif character == "\x0b":
                self._go(max(0, self._y - 1))
            else:
                assert character.isprintable(), f"{character!r} is no text"
                self._put(character)

    def _put(self, character: str) -> None:
        if self._x == COLUMNS:
            self._x = 0
            self._go(self._y + 1)
        row = self.rows[self._y].ljust(self._x)
        self.rows[self._y] = row[: self._x] + character + row[self._x + 1 :]
        self._x += 1

    def _go(self, y: int) -> None:
        self._y = y
        self.rows += [""] * (y + 1 - len(self.rows))

    def look(self) -> None:
        """Remember what the row with the cursor says now, unless it says nothing."""
        if self.row and self.seen[-1:] != [self.row]:
            self.seen.append(self.row)

    @property
    def row(self) -> str:
        """What the row with the cursor says."""
        return self.rows[self._y].rstrip()

    @property
    def text(self) -> str:
        """What stays, with lines as they were written: full rows go on in the next one."""
        rows = [row.rstrip() for row in self.rows]
        return "".join(row if len(row) == COLUMNS else f"{row}\n" for row in rows)


def started(command: Sequence[str], folder: Path) -> tuple[int, int]:
    """Run a command on a terminal: its process, and the other side of the terminal."""
    child, terminal = pty.fork()
    if child == 0:
        os.chdir(folder)
        os.execvp(command[0], command)
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, COLUMNS, 0, 0))
    return child, terminal


def watched(arguments: Sequence[str], folder: Path) -> tuple[Screen, int]:
    """Run Python with these arguments on a terminal: what is seen, and the exit code."""
    child, terminal = started([sys.executable, *arguments], folder)
    screen = Screen()
    while True:
        try:
            data = os.read(terminal, 65536)
        except OSError:  # Linux says so that the other side is closed
            break
        if not data:
            break
        for line in data.decode(errors="replace").splitlines(keepends=True):
            screen.feed(line)
            screen.look()
    os.close(terminal)
    return screen, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
