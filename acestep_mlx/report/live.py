"""The page of a run, kept up to date while it goes on."""

from __future__ import annotations

import time
from collections.abc import Callable

from ..errors import AceStepError, refusal
from .events import AverageEvaluated, CheckpointSaved, Evaluated, Event, StepDone, ValidationClip

FILE = "report_live.js"
PAUSE = 5.0  # seconds between two writings
SHARE = 0.01  # of the time that writing may take


class Live:
    """A listener, behind metrics.jsonl's own. page: writes all of it; news: what an open one shows anew.

    News that cannot be written are said once: the page itself is written again at every checkpoint.
    """

    def __init__(
        self, page: Callable[[], object], news: Callable[[], None], notify: Callable[[str, str], None]
    ) -> None:
        self.page, self.news, self.notify = page, news, notify
        self.has_clips = self.failed = False
        self.next: float | None = None  # when to write news; None before the page is there

    def __call__(self, event: Event) -> None:
        if isinstance(event, ValidationClip):
            self.has_clips = True  # the page takes all of a step at once
        elif isinstance(event, CheckpointSaved):
            self.has_clips = False  # the page has just been written
        elif isinstance(event, (StepDone, Evaluated, AverageEvaluated)):
            started = time.monotonic()
            if self.next is None or self.has_clips:
                self.has_clips = False
                self.page()
            elif started < self.next:
                return
            else:
                self._write_news()
            took = time.monotonic() - started
            self.next = started + took + max(PAUSE, took / SHARE)

    def _write_news(self) -> None:
        try:
            self.news()
        except (OSError, AceStepError) as error:
            if not self.failed:
                self.notify(f"report.html is not kept up to date: {refusal(error)}", "warning")
            self.failed = True

    def close(self) -> None:
        """The page of a run that is over is written by who ends it."""
