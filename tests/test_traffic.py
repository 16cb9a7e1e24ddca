"""What a GPU would have to do in a step stays below what it once was, by `benchmarks/traffic.py`.

Counted from MLX's own graph, so that the numbers hold for the locked MLX.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from acestep_mlx.families.work import step_work
from tests.conftest import require

TRAFFIC = Path(__file__).resolve().parents[1] / "benchmarks" / "traffic.py"

#: family → (kernels, GB moved) of a step of 240 s at 8 bits with every block recomputed, and of a guided step
BOUNDS = {
    "v1": {"step": (8_690, 232.5), "guided step": (1_930, 96.4)},
    "v15": {"step": (15_960, 249.6), "guided step": (1_200, 50.9)},
}
#: family → products' FLOPs of a step that keeps what linear layers give, by those of one that recomputes all
SHARES = {"v1": 0.74, "v15": 0.79}


@cache
def counted(family: str) -> dict[str, dict[str, Any]]:
    """What the counter prints of steps on 240 s at 8 bits."""
    require("g++")
    command = [sys.executable, str(TRAFFIC), "--family", family, "--seconds", "240", "--bits", "8", "--json"]
    environment = {**os.environ, "PYTHONPATH": str(TRAFFIC.parents[1])}
    printed = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
    return {line["what"]: line for line in map(json.loads, printed.splitlines())}


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="graphs are read with shapes on Linux only")
@pytest.mark.parametrize("family", BOUNDS)
def test_a_step_takes_no_more_kernels_and_bytes_than_before(family: str) -> None:
    counts = counted(family)
    for what, (kernels, gigabytes) in BOUNDS[family].items():
        found = counts[what]
        assert 0.5 * kernels < found["kernels"] <= kernels
        assert 0.5 * gigabytes < found["bytes"] / 1e9 <= gigabytes
    whole, kept, plain = (counts[f"step{what}"] for what in ("", ", products kept", ", everything kept"))
    assert kept["flops"] <= SHARES[family] * whole["flops"]
    assert all(plain[what] < kept[what] < whole[what] for what in ("kernels", "bytes", "flops"))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="graphs are read with shapes on Linux only")
@pytest.mark.parametrize("family", BOUNDS)
def test_what_doctor_expects_was_counted(family: str) -> None:
    """The table that ships is the counter's, give or take what a change of the code made since."""
    ways = {"step": (1, 0), "step, products kept": (0, 1), "step, everything kept": (0, 0)}
    for what, shares in ways.items():
        shipped = step_work(family, 8, 240, *shares)
        assert list(shipped) == pytest.approx(counted(family)[what]["row"], rel=0.05)
