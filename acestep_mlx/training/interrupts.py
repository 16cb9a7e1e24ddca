"""Ctrl-C, SIGTERM and a closed terminal as a request to stop at the next safe moment.

Python runs its signal handlers between two of its own instructions, and one step of MLX may take a minute. So
signals are also read from a pipe, on a thread of their own: they are answered at once, whatever MLX does.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

INTERRUPTED = 130  # exit code


class StopRequest:
    """While active, the first SIGINT, SIGTERM or SIGHUP asks to stop; a second SIGINT stops at once.

    Inside `deferred()` a request only sets `requested`; outside, where there is nothing to save, it raises
    KeyboardInterrupt as soon as Python runs. A second SIGINT ends the process with `exit_code` within a
    moment, or raises KeyboardInterrupt where that is None. Handlers can only be set in the main thread;
    elsewhere this does nothing but `request()`. A SIGHUP that the caller ignores (nohup) stays ignored.

    say: gets a line when a signal comes. kept: names the last complete checkpoint, in a sentence.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def __init__(self, exit_code: int | None = None) -> None:
        self.requested = False
        self.exit_code = exit_code
        self.say: Callable[[str], None] = lambda line: None
        self.kept: Callable[[], str] = str
        self._deferred = False
        self._signalled = False
        self._interrupts = 0  # SIGINTs, read from the pipe
        self._handled = 0  # SIGINTs, as Python tells
        self._previous: dict[int, Any] = {}
        self._previous_wakeup = -1
        self._pipe: tuple[int, int] | None = None
        self._watcher: threading.Thread | None = None

    def request(self) -> None:
        """Ask the loop to stop."""
        self.requested = True

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """While the block runs, a first signal interrupts nothing."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False

    # ── on the watching thread: at once ──────────────────────────────────────────────────────────────
    def _watch(self, pipe: int) -> None:
        with contextlib.suppress(OSError):
            while data := os.read(pipe, 1):
                if data[0] in self.SIGNALS:
                    self._received(data[0])

    def _received(self, number: int) -> None:
        first, self._signalled = not self._signalled, True
        self.requested = True
        self._interrupts += number == signal.SIGINT
        if first:
            what = "with a complete checkpoint" if self._deferred else "before the first step"
            self.say(f"stopping here {what}; Ctrl-C again stops at once")
        elif self._interrupts > 1:
            self.say(f"stopped at once. {self.kept()}".rstrip())
            if self.exit_code is not None:
                os._exit(self.exit_code)

    # ── on the main thread: when Python runs ─────────────────────────────────────────────────────────
    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._handled += number == signal.SIGINT
        if max(self._interrupts, self._handled) > 1 or not self._deferred:
            raise KeyboardInterrupt

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is not threading.main_thread():
            return self
        read, write = os.pipe()
        os.set_blocking(write, False)
        self._pipe = (read, write)
        self._watcher = threading.Thread(target=self._watch, args=(read,), name="signals", daemon=True)
        self._watcher.start()
        self._previous_wakeup = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        for number in self.SIGNALS:
            if number == signal.SIGHUP and signal.getsignal(number) is signal.SIG_IGN:
                continue
            self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()
        if self._pipe is None or self._watcher is None:
            return
        signal.set_wakeup_fd(self._previous_wakeup)
        read, write = self._pipe
        os.close(write)
        self._watcher.join(timeout=1)
        os.close(read)
        self._pipe = self._watcher = None
