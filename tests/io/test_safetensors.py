"""Safetensors headers that were damaged in any way are refused in one line, and cost no memory."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from acestep_mlx.errors import CheckpointError
from acestep_mlx.io.safetensors import inside, read_header
from acestep_mlx.io.schema import read_json
from acestep_mlx.io.tensors import SafetensorsWriter, read_rows, read_tensor

GOOD = save({"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones((4,), np.float16)})


def try_read(path: Path, data: bytes) -> None:
    """Whatever the bytes are: a header, or one line."""
    path.write_bytes(data)
    try:
        header = read_header(path)
        for info in header.tensors.values():
            assert info.stop <= len(data)
    except CheckpointError as error:
        assert "\n" not in str(error) and str(path) in str(error)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.integers(0, len(GOOD) - 1), value=st.integers(0, 255), length=st.integers(0, len(GOOD)))
def test_flipped_and_cut_bytes(place: int, value: int, length: int, tmp_path: Path) -> None:
    data = bytearray(GOOD)
    data[place] = value
    try_read(tmp_path / "x.safetensors", bytes(data[:length]))
    try_read(tmp_path / "x.safetensors", bytes(data))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=12), inner, max_size=3),
    max_leaves=8,
)
KEYS = st.fixed_dictionaries(
    {}, optional={"dtype": JSON | st.just("F32"), "shape": JSON, "data_offsets": JSON}
)


@pytest.mark.slow
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.dictionaries(st.text(max_size=5) | st.just("__metadata__"), JSON | KEYS, max_size=3))
def test_any_json_header(content: dict[str, object], tmp_path: Path) -> None:
    raw = json.dumps(content).encode()
    try_read(tmp_path / "x.safetensors", struct.pack("<Q", len(raw)) + raw + bytes(8))


def test_overlapping_tensors_are_refused(tmp_path: Path) -> None:
    entry = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    raw = json.dumps({"a": entry, "b": entry}).encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + bytes(8))
    with pytest.raises(CheckpointError, match="do not follow"):
        read_header(path)


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/x", "", "a\\..\\x", "C:x"])
def test_names_that_lead_out_of_the_folder(name: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="leads out of the folder"):
        inside(tmp_path, name)


def test_names_inside(tmp_path: Path) -> None:
    assert inside(tmp_path, "sub/x.safetensors") == tmp_path / "sub" / "x.safetensors"


@pytest.mark.parametrize("content", [b"\xff\xfe", b"[" * 100_000, b"7", b""])
def test_json_that_is_none(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        read_json(tmp_path / "x.json")
    assert "\n" not in str(caught.value)


def test_written_slices_read_back(tmp_path: Path) -> None:
    import mlx.core as mx

    arrays = {
        "a": mx.random.normal((7, 3)).astype(mx.bfloat16),
        "b": mx.random.normal((5, 2, 2)),
        "scalar": mx.array(1.5),
    }
    path = tmp_path / "x.safetensors"
    kinds = {"a": "BF16", "b": "F32", "scalar": "F32"}
    with SafetensorsWriter(path, {n: (kinds[n], tuple(v.shape)) for n, v in arrays.items()}) as writer:
        writer.write("scalar", arrays["scalar"])
        for i in range(5):  # slices of two tensors in turn
            writer.write("b", arrays["b"][i : i + 1])
            if i < 4:
                writer.write("a", arrays["a"][2 * i : 2 * i + 2])
    loaded = mx.load(str(path))
    header = read_header(path).tensors
    for name, value in arrays.items():
        assert mx.array_equal(loaded[name], value) and mx.array_equal(read_tensor(header[name]), value)
    rows = list(read_rows(header["a"], 13))
    assert len(rows) == 4 and mx.array_equal(mx.concatenate(rows), arrays["a"])


def test_an_unfinished_file_is_an_error(tmp_path: Path) -> None:
    writer = SafetensorsWriter(tmp_path / "x.safetensors", {"a": ("F32", (3,))})
    with pytest.raises(ValueError, match="not written completely: a"):
        writer.close()
    import mlx.core as mx

    writer = SafetensorsWriter(tmp_path / "x.safetensors", {"a": ("F32", (3,))})
    with pytest.raises(ValueError, match="too many bytes"):
        writer.write("a", mx.zeros((4,)))


def test_a_file_without_metadata_as_mlx_writes_it(tmp_path):
    """`mx.save_safetensors` without metadata stores null in their place."""
    import mlx.core as mx

    path = tmp_path / "x.safetensors"
    mx.save_safetensors(str(path), {"a": mx.zeros((2,))})
    assert b'"__metadata__":null' in path.read_bytes()
    header = read_header(path)
    assert header.metadata == {} and list(header.tensors) == ["a"]


@pytest.mark.parametrize("value", [5, None, ["pt"], {"a": "b"}])
def test_metadata_that_are_not_text(tmp_path, value):
    path = tmp_path / "m.safetensors"
    head = json.dumps({"__metadata__": {"format": value}}).encode()
    path.write_bytes(len(head).to_bytes(8, "little") + head)
    with pytest.raises(CheckpointError, match="'format' in its metadata is not text"):
        read_header(path)
