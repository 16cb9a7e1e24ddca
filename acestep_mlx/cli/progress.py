"""Progress on stderr: a bar with rate and time left on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

import click

from ..formatting import size
from ..io.progress import Advance

if TYPE_CHECKING:
    from tqdm import tqdm

LINE_SECONDS = 10.0  # without a terminal: at most one line in this time,
TENTHS = 10  # and of bytes one per tenth
_BARS: dict[str, dict[str, Any]] = {
    "items": {},
    "bytes": {"unit": "B", "unit_scale": True},
    "share": {"bar_format": "{desc}: {percentage:3.0f}% |{bar}| {elapsed} < {remaining}"},
}


class Display:
    """Draws what it is told as a `Progress`; a context manager that leaves the terminal tidy."""

    def __init__(self) -> None:
        self.terminal = sys.stderr.isatty()
        self._bar: tqdm[Any] | None = None
        self._stage, self._unit = "", ""
        self._said, self._tenth = 0.0, -1

    def __call__(self, advance: Advance) -> None:
        if not advance.total:
            self.say(advance.stage)
            return
        begins = advance.stage != self._stage
        if begins and not (advance.unit == "bytes" == self._unit):
            self.close()
            self._said, self._tenth = 0.0, -1
        self._stage, self._unit = advance.stage, advance.unit
        if not self.terminal:
            self._tell(advance, begins)
            return
        if self._bar is None:
            self.open(total=advance.total, desc=advance.stage, **_BARS[advance.unit])
        elif begins:
            self._bar.set_description(advance.stage, refresh=False)
        self.move(advance.done, advance.note[-40:])

    def _tell(self, advance: Advance, begins: bool) -> None:
        stage, done, total = advance.stage, advance.done, advance.total
        match advance.unit:
            case "share":
                if begins:
                    self.say(f"{stage} …")
            case "bytes":
                if (tenth := int(done * TENTHS // total)) > self._tenth:
                    self._tenth = tenth
                    self.say(f"{stage}: {size(done)} of {size(total)} ({100 * done // total} %)")
            case "items":
                if self.due(last=done == total):
                    self.say(f"{stage}: {done} of {total}")

    def due(self, last: bool) -> bool:
        """Whether it is time for a line without a terminal; always for the last one."""
        now = time.monotonic()
        if not last and now - self._said <= LINE_SECONDS:
            return False
        self._said = now
        return True

    def say(self, line: str) -> None:
        """A line of its own, above the bar if there is one."""
        if self._bar is not None:
            self._bar.write(line, file=sys.stderr)
        else:
            click.echo(line, err=True)

    def open(self, **options: Any) -> None:
        """Begin a bar; `options` are tqdm's."""
        from tqdm import tqdm

        self.close()
        self._bar = tqdm(file=sys.stderr, **options)

    def move(self, done: float, note: str = "") -> None:
        """Bring the bar to `done`, with `note` behind it."""
        if self._bar is not None:
            self._bar.set_postfix_str(note, refresh=False)
            self._bar.update(done - self._bar.n)

    def close(self) -> None:
        """End the bar that is shown, if any."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def __enter__(self) -> Display:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
