"""`acestep-mlx`, and `python -m acestep_mlx`."""

from __future__ import annotations

import signal
import sys
import time
from types import FrameType

_LOOK_AGAIN, _LONGEST = 0.02, 10.0  # seconds; no import takes as long
_REPEATED = 5.0  # seconds in which a closing terminal or a service manager signals again


class Interrupts:
    """Ctrl-C, SIGTERM and SIGHUP as KeyboardInterrupt, which lets every command clear up behind itself.

    Extension modules end in a traceback, or abort, where one is raised while they are imported; so it waits
    for the end of an import. Signals that are ignored (nohup, a job in the background) stay ignored, and
    `train` has handlers of its own while it runs.
    """

    def __init__(self) -> None:
        self._first: float | None = None  # when the signal came that waits for an import
        self._ended: float | None = None  # when SIGTERM or SIGHUP was answered

    def install(self) -> None:
        """Take the place of Python's own handlers."""
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, self.handle)
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is signal.SIG_DFL:
                signal.signal(number, self.handle)
        signal.signal(signal.SIGALRM, self.handle)
        sys.unraisablehook = self.unraisable

    def unraisable(self, found: sys.UnraisableHookArgs) -> None:
        """An interrupt that came while something was being deleted, where Python drops it, comes again."""
        if issubclass(found.exc_type, KeyboardInterrupt):
            signal.setitimer(signal.ITIMER_REAL, _LOOK_AGAIN)
        else:
            sys.__unraisablehook__(found)

    def handle(self, number: int, frame: FrameType | None) -> None:
        """KeyboardInterrupt, at once or when what is imported now is there."""
        now = time.monotonic()
        if number in (signal.SIGTERM, signal.SIGHUP):
            if self._ended is not None and now - self._ended < _REPEATED:
                return
            self._ended = now
        if self._first is None:
            self._first = now
        if importing(frame) and now - self._first < _LONGEST:
            signal.setitimer(signal.ITIMER_REAL, _LOOK_AGAIN)
            return
        self._first = None
        signal.setitimer(signal.ITIMER_REAL, 0)
        raise KeyboardInterrupt


def importing(frame: FrameType | None) -> bool:
    """Whether an import waits for the code of `frame`."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def run() -> None:
    """The command line; a signal that comes while it is being loaded ends it without a traceback too."""
    try:
        Interrupts().install()
        from .cli import main

        main()
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)  # the alarm's default is to kill, once Python winds up


if __name__ == "__main__":
    run()
