"""Progress of work that is counted in items, on stderr: a bar with rate and time left, or plain lines."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from tqdm import tqdm

LINE_SECONDS = 10.0  # without a terminal: at most one line per stage in this time


class CountProgress:
    """A callable `(stage, done, total, name)`; a context manager that leaves the terminal tidy."""

    def __init__(self) -> None:
        self._stage = ""
        self._bar: tqdm[Any] | None = None
        self._said = 0.0
        self._terminal = sys.stderr.isatty()

    def __call__(self, stage: str, done: int, total: int, name: str) -> None:
        if stage != self._stage:
            self.close()
            self._stage, self._said = stage, 0.0
        if self._terminal:
            self._draw(stage, done, total, name)
        elif done == total or time.monotonic() - self._said > LINE_SECONDS:
            self._said = time.monotonic()
            click.echo(f"{stage}: {done} of {total}", err=True)

    def _draw(self, stage: str, done: int, total: int, name: str) -> None:
        if self._bar is None:
            from tqdm import tqdm

            self._bar = tqdm(total=total, desc=stage, file=sys.stderr)
        self._bar.set_postfix_str(name[-40:], refresh=False)
        self._bar.update(done - self._bar.n)

    def close(self) -> None:
        """End the bar of the current stage."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def __enter__(self) -> CountProgress:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
