"""What is read back is checked before it is used: files of ours, edited, cut, or of another version."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from acestep_mlx.errors import AceStepError
from acestep_mlx.io import schema

HUGE = 10**400
ODD: list[Any] = [None, True, -1, 2.5, 10**30, HUGE, "x", "\ud800", [], [1], {}, {"a": 1}]


def refused(check: schema.Check, value: Any) -> str:
    with pytest.raises(schema.Mismatch) as caught:
        check(value, "here")
    line = str(caught.value)
    assert line.startswith("here") and "\n" not in line and line.isascii() and len(line) < 200
    return line


def test_numbers() -> None:
    check = schema.whole(0, 9)
    assert [check(n, "") for n in (0, 9, 3.0)] == [0, 9, 3] and type(check(3.0, "")) is int
    for value in (None, True, -1, 10, 2.5, HUGE, float("nan"), float("inf"), "3", [3]):
        refused(check, value)
    assert "between 0 and 9, got a number of many digits" in refused(check, HUGE)
    check = schema.number(0, 1)
    assert check(1, "") == 1 and check(0.5, "") == 0.5
    for value in (None, False, -0.1, HUGE, -HUGE, float("nan"), float("-inf"), "0", {}):
        refused(check, value)


def test_where_a_number_should_lie() -> None:
    inside = [(0, 0, 9, None), (9, 0, 9, None), (0.1, None, 1, 0), (1, 1, 1, None), (-5, None, None, None)]
    assert all(schema.outside(*given) is None for given in inside)
    assert schema.outside(10, 0, 9) == "between 0 and 9"
    assert schema.outside(0, 1, 240.0, unit="s") == "between 1 and 240 s"
    assert schema.outside(0, None, 1e6, above=0) == "above 0 and at most 1000000"
    assert schema.outside(2, 1, 1) == "1"
    assert schema.outside(float("nan"), 0, 1) == "between 0 and 1"
    assert schema.outside(-HUGE, -1e300, 1e300) == "between -1e+300 and 1e+300"


def test_texts() -> None:
    assert schema.text("Ü 🎵", "") == "Ü 🎵"
    for value in (None, 3, ["x"], "\ud800", "a\udcff"):
        refused(schema.text, value)
    assert schema.path_text("caf\udce9", "") == "caf\udce9", "a byte that is not UTF-8"
    for value in ("", "  ", "a\0b", "\ud800", 3, None, "x" * 256, "x/" * 3000):
        refused(schema.path_text, value)
    check = schema.choice("a", 1, None)
    assert check("a", "") == "a" and check(None, "") is None
    for value in ("b", 1.0, True, ["a"], {}):
        refused(check, value)


def test_lists_and_objects_name_the_place() -> None:
    check = schema.record({"a": schema.items(schema.whole(), 1, 2)}, {"b": schema.table(schema.flag)})
    assert check({"a": [1], "b": {"x": True}, "c": 0}, "") == {"a": (1,), "b": {"x": True}, "c": 0}
    assert refused(check, {"a": [1, None]}) == "here.a[1] must be a whole number, got null"
    assert refused(check, {"a": [1], "b": {"x": 1}}) == "here.b.x must be true or false, got 1"
    assert refused(check, {"a": []}) == "here.a must have between 1 and 2 entries, got 0"
    assert refused(check, {}) == "here.a is missing"
    assert refused(check, []) == "here must be an object, got []"
    assert "'c' is not known" in refused(schema.record({}, strict=True), {"c": 1})


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"\xff{}", "not UTF-8 at byte 0"),
        (b'{"a": NaN}', "NaN is not a JSON number"),
        (b'{"a": -Infinity}', "not a JSON number"),
        (b'{"a": 1, "a": 2}', "given twice"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a": ' + b"9" * 5000 + b"}", "digit"),
        (b"", "Expecting value"),
    ],
)
def test_json_is_read_strictly(data: bytes, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        schema.parse_json(data)


def test_only_files_are_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    for path, what in ((tmp_path / "pipe", "a named pipe"), (tmp_path / "link", "a named pipe"),
                       (Path("/dev/zero"), "a device")):  # fmt: skip
        with pytest.raises(OSError, match=f"it is {what}, not a file"):
            schema.read_file(path)
    with pytest.raises(IsADirectoryError):
        schema.read_file(tmp_path)
    (tmp_path / "large").write_bytes(bytes(11))
    assert schema.read_file(tmp_path / "large", 11) == bytes(11)
    with pytest.raises(OSError, match="more than 10 bytes"):
        schema.read_file(tmp_path / "large", 10)


def test_a_newer_version_is_an_error_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "x.json"

    def read(**content: Any) -> str:
        path.write_text(json.dumps(content))
        with pytest.raises(AceStepError) as caught:
            schema.read_artifact(path, schema.record({"a": schema.whole()}), what="the thing", version=2)
        return str(caught.value)

    newer = read(format_version=3, b=1)
    assert f"{path}: the thing was written by a newer version of acestep-mlx" in newer
    assert "format version 3, this one reads 2" in newer and "update" in newer and "damaged" not in newer
    for other in (0, -1, None, "2", True, [2]):
        assert "is damaged: its format version is" in read(format_version=other, a=1)
    assert "is damaged: a is missing" in read(format_version=2)
    path.write_text('{"format_version": 1, "a": 5}')
    found = schema.read_artifact(path, schema.record({"a": schema.whole()}), what="the thing", version=2)
    assert found["a"] == 5
