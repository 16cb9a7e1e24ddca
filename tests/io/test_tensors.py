"""Safetensors that are written slice by slice: one digest for one content, however it came to be written."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from acestep_mlx.errors import CheckpointError
from acestep_mlx.io.hashes import cache_key, hash_text
from acestep_mlx.io.tensors import SafetensorsWriter, load_tensors, save_tensors

TENSORS = {"b": np.arange(6.0, dtype=np.float32).reshape(3, 2), "a": np.ones(4, np.float32)}


def digest(path: Path, names: list[str], tensors: dict[str, np.ndarray], rows: int = 9) -> str:
    declared = {name: ("F32", tensors[name].shape) for name in names}
    with SafetensorsWriter(path, declared) as writer:
        for name in reversed(names):
            for start in range(0, len(tensors[name]), rows):
                writer.write(name, mx.array(tensors[name][start : start + rows]))
    return writer.digest()


def test_the_digest_is_of_the_contents_alone(tmp_path: Path) -> None:
    """Of the same weights from a folder and from one file, whose order is another."""
    first = digest(tmp_path / "1", ["a", "b"], TENSORS)
    assert (
        first == digest(tmp_path / "2", ["b", "a"], TENSORS) == digest(tmp_path / "3", ["b", "a"], TENSORS, 1)
    )
    others = [
        {**TENSORS, "a": 2 * TENSORS["a"]},
        {**TENSORS, "b": TENSORS["b"].reshape(2, 3)},
        {"a": TENSORS["a"], "c": TENSORS["b"]},
    ]
    found = {digest(tmp_path / "4", sorted(other), other) for other in others}
    assert len(found | {first}) == len(others) + 1


def test_a_file_that_its_check_refuses_never_gets_its_name(tmp_path: Path) -> None:
    path = tmp_path / "lora.safetensors"

    def check(partial: Path) -> None:
        assert partial != path and "a" in mx.load(str(partial))
        raise CheckpointError("not what was meant")

    with pytest.raises(CheckpointError, match="not what was meant"):
        save_tensors(path, {"a": mx.zeros(3)}, {}, check)
    assert list(tmp_path.iterdir()) == []


def test_texts_that_differ_in_half_a_character_have_other_hashes() -> None:
    texts = ["a?", "a\ufffd", "a\ud800", "a\udcff", "a\U0001f600"]
    assert (
        len({hash_text(text) for text in texts}) == len({cache_key(caption=t) for t in texts}) == len(texts)
    )


@pytest.mark.parametrize("why", ["a file is there", "no writing", "no room"])
def test_why_tensors_cannot_be_written_is_said(
    why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "folder" / "lora.safetensors"
    if why == "a file is there":
        path.parent.write_text("")
        said = "a file is where a folder has to be"
    else:
        number, said = {
            "no writing": (errno.EACCES, "Permission denied"),
            "no room": (errno.ENOSPC, "disk is full"),
        }[why]

        def refuse(self: Path, mode: str) -> None:
            raise OSError(number, os.strerror(number), str(self))

        monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(CheckpointError, match=f"lora.safetensors cannot be written: .*{said}"):
        save_tensors(path, {"a": mx.zeros(3)}, {})


def written(path: Path, tensors: dict[str, tuple[str, np.ndarray]]) -> Path:
    """A safetensors file byte by byte, with what its libraries do not write."""
    header, data = {}, b""
    for name, (dtype, value) in tensors.items():
        header[name] = {
            "dtype": dtype, "shape": value.shape, "data_offsets": [len(data), len(data) + value.nbytes],
        }  # fmt: skip
        data += value.tobytes()
    raw = json.dumps(header).encode()
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + data)
    return path


def test_float64_is_read_as_float32(tmp_path: Path) -> None:
    """As NumPy saves it; MLX itself does not read it."""
    a, b = np.linspace(0, 1, 6).reshape(2, 3), np.float32([[1, 2]])
    path = written(tmp_path / "x.safetensors", {"a": ("F64", a), "b": ("F32", b)})
    read = load_tensors(path)
    assert read["a"].dtype == read["b"].dtype == mx.float32
    assert np.array_equal(read["a"], a.astype(np.float32)) and np.array_equal(read["b"], b)


@pytest.mark.parametrize("name", ["\ud800", "a.\udfff.weight", "\udc80x"])
def test_a_name_that_is_no_text_is_said_in_one_line(name: str, tmp_path: Path) -> None:
    ones = ("F32", np.ones(2, np.float32))
    path = written(tmp_path / "x.safetensors", {"a": ones, name: ones})
    with pytest.raises(CheckpointError) as error:
        load_tensors(path)
    said = str(error.value)
    assert f"{path}: " in said and ascii(name) in said and said.isascii() and "\n" not in said
