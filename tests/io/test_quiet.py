"""What decoders say of odd files stays away from the terminal: our errors say what is wrong."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from acestep_mlx.cli.describe import song_record
from acestep_mlx.errors import DataError
from acestep_mlx.io.audio import probe, read_audio, write_audio

ODD_TAG = b"ID3\x03\x00\x00\x00\x00\x00\x1fCOMM\x00\x00\x00\x05\x00\x00\x00eng\xffTIT2\x00\x00"


def mp3(path: Path, kind: str) -> Path:
    """An MP3 about which decoders have something to say."""
    tone = 0.3 * np.sin(np.arange(4 * 44100) / 9)[:, None].repeat(2, 1).astype(np.float32)
    write_audio(path, tone, 44100)
    data = path.read_bytes()
    path.write_bytes(
        {
            "odd tag": ODD_TAG + data,
            "junk inside": data[:9000] + b"\0junk" * 300 + data[9000:],
            "cut": data[: len(data) // 2 + 7],
        }[kind]
    )
    return path


@pytest.mark.parametrize("kind", ["odd tag", "junk inside", "cut"])
def test_nothing_of_it_is_heard(kind: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = mp3(tmp_path / "a.mp3", kind)
    for look in (probe, read_audio, song_record):
        try:
            look(path)
        except DataError as error:
            assert "a.mp3" in str(error)
    assert capfd.readouterr().err == ""


def test_nothing_is_said_of_places_that_are_not_there(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A chunk whose size is negative leads to before the file."""
    path = tmp_path / "a.caf"
    for size in (-1, -(1 << 40), 1 << 62):
        chunk = b"free" + struct.pack(">q", size)
        path.write_bytes(b"caff\0\1\0\0" + chunk + bytes(2000))
        with pytest.raises(DataError, match=r"a\.caf: "):
            probe(path)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("content", [b"\0" * 400, b"ID3\4\0\0\0\0\1\0" + b"x" * 400, b"x"])
def test_nothing_is_said_of_what_is_no_sound(
    content: bytes, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.mp3"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"a\.mp3: "):
        probe(path)
    assert capfd.readouterr().err == ""


def test_nothing_stays_open(tmp_path: Path) -> None:
    def opened() -> int:
        return len(list(Path("/dev/fd").iterdir()))

    path = mp3(tmp_path / "a.mp3", "odd tag")
    probe(path)
    before = opened()
    for _ in range(3):
        probe(path)
    assert opened() == before
