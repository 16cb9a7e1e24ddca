"""Progress on stderr: on a terminal a line that always moves, plain lines elsewhere."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Sequence
from time import monotonic
from typing import TYPE_CHECKING, Any, TextIO

import click

from ..formatting import duration, size
from ..io.progress import Advance

if TYPE_CHECKING:
    from tqdm import tqdm

TICK = 1.0  # seconds between two looks at the clock
LINE_SECONDS = 10.0  # without a terminal: at most one line in this time,
TENTHS = 10  # and of bytes one per tenth,
SILENCE = 30.0  # and one after so long without any
COLUMNS = 80  # where the terminal does not say
CELLS = 10  # of a bar
KNOWN = 3.0  # seconds after which it can be said how long the rest will take


def bar(share: float) -> str:
    """`[####------]`."""
    filled = int(CELLS * min(1.0, max(0.0, share)))
    return f"[{'#' * filled}{'-' * (CELLS - filled)}]"


def fitted(parts: Sequence[str], columns: int) -> str:
    """The parts, the most important first, as far as they fit into a line; the last one may be cut."""
    from tqdm.utils import disp_len, disp_trim

    line = ""
    for text in filter(None, parts):
        longer = f"{line}, {text}" if line else text
        if disp_len(longer) > columns:
            room = columns - disp_len(line) - len(", ...")
            if not line:
                return str(disp_trim(text, columns))
            return f"{line}, {disp_trim(text, room)}..." if room > CELLS else line
        line = longer
    return line


class Display:
    """Draws what it is told as a `Progress`; a context manager that leaves the terminal tidy.

    While it is entered a thread keeps the line on the terminal moving, and what else is written to
    `sys.stderr` stands in lines of its own above it.
    """

    def __init__(self) -> None:
        self.terminal = sys.stderr.isatty()
        self._stream: TextIO = sys.stderr
        self._aside: _Aside | None = None
        self._line: tqdm[Any] | None = None
        self._parts: Callable[[], Sequence[str]] = list
        self._now = Advance()
        self._began = self._moved = self._told = monotonic()
        self._first = 0.0  # what was done when the stage began
        self._said, self._tenth = 0.0, -1
        self._lock = threading.RLock()
        self._over = threading.Event()
        self._ticker: threading.Thread | None = None

    def __call__(self, advance: Advance) -> None:
        if not advance.total:
            self.say(advance.stage)
            return
        with self._lock:
            begins = advance.stage != self._now.stage
            if begins and not (advance.unit == "bytes" == self._now.unit):
                self.close()
                self._said, self._tenth = 0.0, -1
                self._began, self._first = monotonic(), advance.done
            self._now, self._moved = advance, monotonic()
            if self.terminal:
                self.show(self._described)
            else:
                self._tell(advance, begins)

    @staticmethod
    def clock() -> float:
        """Seconds."""
        return monotonic()

    @property
    def stage(self) -> str:
        """That is shown; "" without any."""
        return self._now.stage

    # ── on a terminal ────────────────────────────────────────────────────────────────────────────────
    def show(self, parts: Callable[[], Sequence[str]]) -> None:
        """From now on the line consists of these parts, the most important first. They are asked for again
        and again, so that what they say of time is true.
        """
        from tqdm import tqdm

        with self._lock:
            self._parts = parts
            if self._line is None:
                self._line = tqdm(file=self._stream, bar_format="{desc}", leave=False)
            self._draw()

    def _draw(self) -> None:
        if self._line is not None:
            self._line.set_description_str(fitted(self._parts(), self._columns() - 1))

    def _columns(self) -> int:
        try:
            return os.get_terminal_size(self._stream.fileno()).columns or COLUMNS
        except (OSError, ValueError):  # no terminal, or none that is open
            return COLUMNS

    def _described(self) -> list[str]:
        """What there is to say of the stage, the most important first."""
        now = self._now
        counted = f"{int(now.done)} of {now.total:g}"
        if now.unit == "phase":
            return [now.stage, counted if now.total > 1 else "", now.note, self._elapsed]
        percent = f"{100 * now.done / now.total:.0f} %"
        amount = {"bytes": f"{percent}, {size(now.done)} of {size(now.total)}", "items": counted}
        drawn = f"{bar(now.done / now.total)} " if self.terminal else ""
        head = f"{now.stage} {drawn}{amount.get(now.unit, percent)}"
        return [head, self._left, f"{self._elapsed} so far", now.note]

    @property
    def _elapsed(self) -> str:
        return duration(monotonic() - self._began)

    @property
    def _left(self) -> str:
        """How long the rest of the stage takes if it goes on like this."""
        done, took = self._now.done - self._first, self._moved - self._began
        if not done or took < KNOWN:
            return ""
        return f"{duration(took / done * (self._now.total - self._now.done))} left"

    # ── elsewhere ────────────────────────────────────────────────────────────────────────────────────
    def _tell(self, advance: Advance, begins: bool) -> None:
        stage, done, total = advance.stage, advance.done, advance.total
        match advance.unit:
            case "share":
                if begins:
                    self.say(f"{stage} …")
            case "bytes":
                if (tenth := int(done * TENTHS // total)) > self._tenth:
                    self._tenth = tenth
                    self.say(f"{stage}: {size(done)} of {size(total)} ({100 * done // total:.0f} %)")
            case "items":
                if self.due(last=done == total):
                    within = f" ({advance.note})" if done != int(done) else ""
                    self.say(f"{stage}: {int(done)} of {total:g}{within}")

    def due(self, last: bool) -> bool:
        """Whether it is time for a line without a terminal; always for the last one."""
        now = monotonic()
        if not last and now - self._said <= LINE_SECONDS:
            return False
        self._said = now
        return True

    # ── both ─────────────────────────────────────────────────────────────────────────────────────────
    def say(self, line: str) -> None:
        """A line of its own, above the moving one if there is one."""
        with self._lock:
            self._told = monotonic()
            if self._line is not None:
                self._line.write(line, file=self._stream)
            elif self._aside is not None:
                click.echo(line, file=self._stream)
            else:
                click.echo(line, err=True)

    def close(self) -> None:
        """Take the moving line away; of a stage that came to its end a plain one stays."""
        with self._lock:
            now, self._now = self._now, Advance()
            if self._line is not None:
                self._line.close()
                self._line = None
                if now.unit in ("items", "bytes") and 0 < now.total <= now.done:
                    amount = size(now.total) if now.unit == "bytes" else f"{now.total:g} of {now.total:g}"
                    self.say(f"{now.stage}: {amount}, {self._elapsed}")

    def _tick(self) -> None:
        while not self._over.wait(TICK):
            with self._lock:
                if self.terminal:
                    self._draw()
                elif self._now.total and monotonic() - max(self._told, self._began) > SILENCE:
                    self.say(", ".join(filter(None, self._described())))

    def __enter__(self) -> Display:
        self._over.clear()
        self._ticker = threading.Thread(target=self._tick, name="progress", daemon=True)
        self._ticker.start()
        if self.terminal and sys.stderr is self._stream:
            self._aside = _Aside(self._stream, self.say)
            sys.stderr = self._aside
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        if self._ticker is not None:
            self._ticker.join()
        self.close()
        if self._aside is not None:
            if sys.stderr is self._aside:
                sys.stderr = self._stream
            self._aside.end()
            self._aside = None


class _Aside:
    """Stands for `stream` while a moving line is on it: whole lines go above that. Other libraries' moving
    lines, which know of it through tqdm, pass as they are.
    """

    def __init__(self, stream: TextIO, say: Callable[[str], None]) -> None:
        self._stream, self._say, self._begun = stream, say, ""

    def write(self, text: str) -> int:
        if not self._begun and (text == "\n" or "\r" in text or "\x1b" in text):
            return self._stream.write(text)
        *lines, self._begun = (self._begun + text).split("\n")
        for line in lines:
            self._say(line)
        return len(text)

    def writelines(self, lines: Sequence[str]) -> None:
        for line in lines:
            self.write(line)

    def end(self) -> None:
        """What waits for the end of its line is written without."""
        if self._begun:
            self._stream.write(self._begun)
            self._begun = ""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def __eq__(self, other: object) -> bool:  # tqdm takes lines away from the stream that they are on
        return other is self or other is self._stream

    def __hash__(self) -> int:
        return hash(self._stream)
