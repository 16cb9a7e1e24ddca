"""Progress on stderr: a bar with rate and time left on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import TYPE_CHECKING

import click

from ..formatting import size

if TYPE_CHECKING:
    from tqdm import tqdm

TENTHS = 10  # without a terminal: one line per tenth


class ByteProgress:
    """A callable `(text, done, total)` in bytes; `total` 0 means that `text` is a line worth saying."""

    def __init__(self) -> None:
        self._bar: tqdm | None = None
        self._tenth = -1
        self._terminal = sys.stderr.isatty()

    def __call__(self, text: str, done: int, total: int) -> None:
        if not total:
            self._say(text)
        elif self._terminal:
            self._draw(text, done, total)
        elif done * TENTHS // total > self._tenth:
            self._tenth = done * TENTHS // total
            self._say(f"{text}: {size(done)} of {size(total)} ({100 * done // total} %)")

    def _say(self, line: str) -> None:
        if self._bar is not None:
            self._bar.write(line, file=sys.stderr)
        else:
            click.echo(line, err=True)

    def _draw(self, text: str, done: int, total: int) -> None:
        if self._bar is None:
            from tqdm import tqdm

            self._bar = tqdm(total=total, unit="B", unit_scale=True, file=sys.stderr)
        self._bar.set_description(text, refresh=False)
        self._bar.update(done - self._bar.n)

    def __enter__(self) -> ByteProgress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()
