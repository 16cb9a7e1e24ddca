"""Progress of work in named stages, on stderr: a bar on a terminal, one line per stage elsewhere."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from tqdm import tqdm


class StageBar:
    """A callable `(stage, fraction)`; a context manager that leaves the terminal tidy."""

    def __init__(self) -> None:
        self._stage = ""
        self._bar: tqdm[Any] | None = None
        self._terminal = sys.stderr.isatty()

    def __call__(self, stage: str, fraction: float) -> None:
        if stage != self._stage:
            self.close()
            self._stage = stage
            if self._terminal:
                from tqdm import tqdm

                form = "{desc}: {percentage:3.0f}% |{bar}| {elapsed} < {remaining}"
                self._bar = tqdm(total=1.0, desc=stage, bar_format=form, file=sys.stderr)
            else:
                click.echo(f"{stage} …", err=True)
        if self._bar is not None:
            self._bar.update(fraction - self._bar.n)

    def close(self) -> None:
        """End the bar of the current stage."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def __enter__(self) -> StageBar:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
