"""Which bytes that are no UTF-8 are taken for Western text."""

from __future__ import annotations

from pathlib import Path

import pytest

from acestep_mlx.errors import DataError
from acestep_mlx.io.text_files import read_text


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"caf\xe9 noir", "café noir"),
        (b"\xe9t\xe9 \xe0 la mer", "été à la mer"),
        (b"\xe9", "é"),  # one letter of however short a text
        (b"\xe9a bc de fg \xe9a \xe9a", "éa bc de fg éa éa"),
        (b"\xe9a \xe9a \xe9a \xe9a", None),  # more than a quarter of it is accented, as in no language
        (b"\xe9\xe8 ab \xe9\xe8 ab \xe9\xe8", None),
        (b"abcdef \xc2\xee\xe4 abcdefghijklmnopq", None),  # three in a row, as Cyrillic has them
        (b"\x81 abc", None),
    ],
)
def test_letters_with_accents_are_few_and_stand_alone(data: bytes, text: str | None, tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(data)
    if text is None:
        with pytest.raises(DataError, match="is not UTF-8, and its encoding cannot be told"):
            read_text(path)
    else:
        assert read_text(path) == (text, "read as Windows-1252; save it as UTF-8")
