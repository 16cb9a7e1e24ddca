"""The numbers that ship for `doctor` are PyTorch's, made again here."""

from __future__ import annotations

import numpy as np
import pytest

from acestep_mlx.families import families
from acestep_mlx.families.known import known_numbers

from .known import reference_numbers

pytestmark = pytest.mark.parity


@pytest.mark.slow
@pytest.mark.parametrize("name", [one.name for one in families()])
def test_they_are_the_references(name: str) -> None:
    shipped, made = known_numbers(name), reference_numbers(name)
    assert shipped.keys() == made.keys()
    for what, outputs in made.items():
        assert shipped[what].keys() == outputs.keys()
        for output, expected in outputs.items():
            found = shipped[what][output]
            assert found["shape"] == expected["shape"], (what, output)
            assert found["norm"] == pytest.approx(expected["norm"], rel=1e-5), (what, output)
            a, b = np.array(found["sample"]), np.array(expected["sample"])
            assert np.linalg.norm(a - b) <= 1e-5 * np.linalg.norm(b) != 0, (what, output)
