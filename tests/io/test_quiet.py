"""libmpg123's own messages stay away from the terminal; what anybody else writes there does not."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from acestep_mlx.errors import DataError
from acestep_mlx.io.audio import probe, read_audio, write_audio
from acestep_mlx.io.quiet import without_noise

ODD_TAG = b"ID3\x03\x00\x00\x00\x00\x00\x1fCOMM\x00\x00\x00\x05\x00\x00\x00eng\xffTIT2\x00\x00"


def mp3(path: Path, kind: str) -> Path:
    """An MP3 about which libmpg123 has something to say."""
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
    for look in (probe, read_audio):
        try:
            look(path)
        except DataError as error:
            assert "a.mp3" in str(error)
    assert capfd.readouterr().err == ""


def test_libmpg123_speaks_without_it(tmp_path: Path) -> None:
    """Else the test above would show nothing."""
    path = mp3(tmp_path / "a.mp3", "odd tag")
    code = f"import soundfile; soundfile.info({str(path)!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "libmpg123" in done.stderr


def test_what_others_write_meanwhile_passes(capfd: pytest.CaptureFixture[str]) -> None:
    with without_noise():
        os.write(2, b"[src/libmpg123/id3.c:1] error: Whoa!\nours: kept\nNote: Trying to resync...\n")
        with without_noise():
            os.write(2, b"Warning: Xing stream size off\n\rstep 3")
    os.write(2, b" of 4\n")
    assert capfd.readouterr().err == "ours: kept\n\rstep 3 of 4\n"


def test_from_many_threads(capfd: pytest.CaptureFixture[str]) -> None:
    def work(n: int) -> None:
        for i in range(50):
            with without_noise():
                os.write(2, b"Note: Illegal Audio-MPEG-Header\n")
                os.write(2, b"%d-%d\n" % (n, i))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lines = capfd.readouterr().err.splitlines()
    assert sorted(lines) == sorted(f"{n}-{i}" for n in range(4) for i in range(50))


def test_an_error_inside_comes_through(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="mine"), without_noise():
        raise ValueError("mine")
    os.write(2, b"after\n")
    assert capfd.readouterr().err == "after\n"


def test_without_a_standard_error() -> None:
    code = (
        "import os, sys; os.close(2)\n"
        "from acestep_mlx.io.quiet import without_noise\n"
        "with without_noise(): print('worked')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "worked\n"


def test_nothing_stays_open() -> None:
    """Not after a hundred songs, nor after threads that overlap."""

    def opened() -> int:
        return len(list(Path("/dev/fd").iterdir()))

    with without_noise():
        pass
    before = opened()
    for _ in range(3):
        with without_noise(), without_noise():
            pass
    assert opened() == before
