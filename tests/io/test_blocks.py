"""Sound comes out of FFmpeg whole, wherever the pieces that are read of it end."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from acestep_mlx.io import ffmpeg
from acestep_mlx.io.audio import write_audio


@pytest.mark.skipif(not ffmpeg.available(), reason="needs FFmpeg")
@pytest.mark.parametrize("channels", [1, 2, 6])
@pytest.mark.parametrize("piece", [1000, 4097])
def test_pieces_may_end_within_a_sample(channels: int, piece: int, tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "song.wav"
    write_audio(path, 0.5 * np.sin(np.arange(6000, dtype=np.float32) / 9), 44100)
    whole = np.concatenate(list(ffmpeg.blocks(path, channels, 44100)))
    assert whole.shape == (6000, channels)
    monkeypatch.setattr(ffmpeg, "BLOCK_BYTES", piece)
    np.testing.assert_array_equal(np.concatenate(list(ffmpeg.blocks(path, channels, 44100))), whole)
