"""A file in the player that the system has for it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

SOON = 3.0  # seconds in which a program that finds no player says so


def open_file(path: Path) -> str | None:
    """Open a file as a double click does, and do not wait for its end; what kept it from that, or None."""
    mac = sys.platform == "darwin"
    program = shutil.which("open" if mac else "xdg-open")
    if program is None:
        return f"there is no {'open' if mac else 'xdg-open'} here; open {path} yourself"
    if not mac and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        return f"there is no display here; open {path} where you can hear it"
    try:
        started = subprocess.Popen(  # no shell: the name is an argument, and never begins with a dash
            [program, str(path.absolute())],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        code = started.wait(SOON)
    except OSError as error:
        return f"{program} cannot be started ({error.strerror}); open {path} yourself"
    except subprocess.TimeoutExpired:
        return None  # it plays
    return f"{program} found nothing to open {path} with (code {code})" if code else None
