"""A run that is killed again and again, in a process of its own, ends as the run that was not."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any


def survives(config: dict[str, Any], reference: Path, kills: int, least: int) -> None:
    """Run `config` with so many kills, of each kind at least `least`. Its output and cache are its own.

    reference: the last checkpoint of the run that was not killed.
    """
    path = Path(f"{config['output_dir']}-killed.json")
    path.write_text(json.dumps({**config, "resume_from_checkpoint": "latest"}))
    done = subprocess.run(
        [sys.executable, "-m", "tests.training.kill_driver", path, reference, str(kills), "7"],
        capture_output=True,
        text=True,
        timeout=1200,
        cwd=Path(__file__).resolve().parents[2],
    )
    assert done.returncode == 0, done.stderr[-2000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["problems"] == [], (told["problems"], done.stderr[-3000:])
    assert sum(told["kills"].values()) == kills and min(told["kills"].values()) >= least
    assert told["finished"] >= 1
