"""How often drafts of lyrics are right: word error rate of songs whose lyrics are known.

    python benchmarks/transcription.py MODEL SONG …

MODEL is a Whisper's folder. The lyrics of `song.flac` are in `song.txt` beside it; where that file is not
there, nobody sings, and every line is made up. Errors are counted in words, in characters for Chinese.
"""

from __future__ import annotations

import re
import sys
import time
from pathlib import Path

import numpy as np

from acestep_mlx.io.audio import read_audio
from acestep_mlx.speech.transcribe import Transcriber
from acestep_mlx.speech.whisper import RATE


def words(text: str) -> list[str]:
    """Without marks, punctuation and capitals; each Chinese character by itself."""
    text = re.sub(r"\[.*?\]", " ", text.lower())
    return re.findall(r"[\u3400-\u9fff]|[^\W\u3400-\u9fff]+(?:'\w+)?", text)


def errors(wanted: list[str], got: list[str]) -> int:
    """Words changed, left out or put in: the least that make one of the other."""
    row = np.arange(len(got) + 1)
    for i, word in enumerate(wanted, 1):
        change = row[:-1] + np.array([word != one for one in got], int)
        new = np.concatenate([[i], np.minimum(change, row[1:] + 1)])
        row = np.minimum.accumulate(new - np.arange(len(new))) + np.arange(len(new))
    return int(row[-1])


def main(model: str, *songs: str) -> None:
    transcriber = Transcriber(Path(model))
    print("song: word errors of words, lines, seconds unsure of all, confidence, language, time")
    for song in map(Path, songs):
        sound, began = read_audio(song, sample_rate=RATE, channels=1)[:, 0], time.perf_counter()
        draft = transcriber.hear(sound)
        truth = song.with_suffix(".txt")
        wanted = words(truth.read_text()) if truth.is_file() else []
        missed = errors(wanted, words(draft.lyrics))
        share = f" ({missed / len(wanted):.1%})" if wanted else ""
        print(
            f"{song.stem}: {missed} of {len(wanted)}{share}, {len(draft.lyrics.splitlines())} lines, "
            f"{draft.unsure:.0f} of {len(sound) / RATE:.0f} s, {draft.confidence:.2f}, {draft.language}, "
            f"{time.perf_counter() - began:.0f} s\n    " + draft.lyrics.replace("\n", "\n    "),
            flush=True,
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
