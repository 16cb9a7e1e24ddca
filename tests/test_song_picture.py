"""The picture that `generate --plot` writes: what stands where, and that its letters can be read."""

from __future__ import annotations

import zlib

import numpy as np
import pytest

from acestep_mlx.io.lettering import dots, plain, write
from acestep_mlx.io.png import png
from acestep_mlx.report import song_picture as picture
from acestep_mlx.report.spectrogram import log_mel_picture

RATE = 8000


def pixels(data: bytes) -> np.ndarray:
    """(height, width, 3) of a PNG of ours."""
    width, height = (int.from_bytes(data[a : a + 4], "big") for a in (16, 20))
    body = data[data.index(b"IDAT") + 4 : data.rindex(b"IEND") - 8]
    rows = np.frombuffer(zlib.decompress(body), np.uint8).reshape(height, 1 + 3 * width)
    return rows[:, 1:].reshape(height, width, 3)


def has(seen: np.ndarray, text: str) -> bool:
    """Whether a text stands somewhere in a part of a picture, in the picture's own letters."""
    ink = (seen == picture.INK).all(2)
    letters = dots(text, 2)
    fullest = int(letters.sum(1).argmax())
    wanted, (height, width) = letters[fullest].tobytes(), letters.shape
    for row in range(fullest, len(ink) - height + fullest + 1):
        line, at = ink[row].tobytes(), -1
        while (at := line.find(wanted, at + 1)) >= 0:
            if (ink[row - fullest : row - fullest + height, at : at + width] == letters).all():
                return True
    return False


def tone(hertz: float, seconds: float, level: float = 0.5) -> np.ndarray:
    return (level * np.sin(2 * np.pi * hertz * np.arange(int(seconds * RATE)) / RATE)).astype(np.float32)


def test_axes_title_and_units() -> None:
    sound = np.concatenate([np.zeros(2 * RATE, np.float32), tone(1000, 2)])
    seen = pixels(
        picture.song_png(np.stack([sound, sound], 1), RATE, "Slow jazz (café)", "a.wav: 4.0 s, seed 7")
    )
    left, top = picture.LEFT, picture.TOP + picture.WAVE + picture.GAP
    below = top + picture.SPECTRUM
    assert seen.shape == (below + picture.BOTTOM, left + picture.WIDTH + picture.RIGHT, 3)
    assert has(seen[: picture.TOP], "Slow jazz (cafe)") and has(seen[: picture.TOP], "a.wav: 4.0 s, seed 7")
    for text in ("0", "0.5", "3.5", "4", "seconds", "kHz", "bright: loud, black: 80 dB less"):
        assert has(seen[below:], text), text
    for text in ("0.1", "0.5", "1", "2", "4"):
        assert has(seen[top - 8 : below + 8, :left], text), text
    assert not has(seen[top - 8 : below + 8, :left], "8"), "half the rate is as high as it goes"
    for text in ("1", "0", "-1"):
        assert has(seen[picture.TOP - 8 : top - 8, :left], text)


@pytest.mark.slow
def test_a_tone_stands_at_its_frequency_and_in_its_half() -> None:
    sound = np.concatenate([np.zeros(2 * RATE, np.float32), tone(1000, 2)])
    seen = pixels(picture.song_png(sound, RATE))
    top, left = picture.TOP + picture.WAVE + picture.GAP, picture.LEFT
    drawn = seen[top : top + picture.SPECTRUM, left : left + picture.WIDTH].astype(int).sum(2)
    loudest = top + drawn[:, 800].argmax()
    marks = [row for row in range(top, top + picture.SPECTRUM) if (seen[row, left - 4] == picture.INK).all()]
    one_kilohertz = marks[::-1][2]  # of 0.1, 0.5, 1, 2, 4
    assert len(marks) == 5 and abs(loudest - one_kilohertz) <= 2
    assert drawn[:, 200].max() < drawn[:, 800].max() / 3
    wave = (seen[picture.TOP : picture.TOP + picture.WAVE] == picture.SOUND).all(2).sum(0)
    assert wave[left + 200] <= 1 and wave[left + 800] == pytest.approx(picture.WAVE / 2, abs=3)


@pytest.mark.parametrize(
    ("seconds", "marks"),
    [(0.93, ["0", "0.1", "0.9"]), (30, ["0", "5", "30"]), (60, ["0", "10", "60"]),
     (90, ["0:00", "0:10", "1:30"]), (240, ["0:00", "0:30", "4:00"]), (600, ["0:00", "1:00", "10:00"]),
     (5000, ["0:00", "9:00", "1:21:00"]), (0, ["0"])],
)  # fmt: skip
def test_marks_of_time(seconds: float, marks: list[str]) -> None:
    found = list(picture.time_marks(seconds))
    texts = [text for _, text in found]
    assert [*texts[:2], texts[-1]][: len(marks)] == marks and len(found) <= picture.MARKS + 1
    assert all(0 <= at <= seconds for at, _ in found)


@pytest.mark.parametrize(("samples", "level"), [(0, 0.0), (1, 1.0), (2000, 50.0)])
def test_any_sound_has_a_picture(samples: int, level: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(picture, "WIDTH", 100)
    assert pixels(picture.song_png(np.full(samples, level, np.float32), RATE, "x" * 500)).shape[2] == 3
    assert log_mel_picture(np.zeros(samples), RATE, 50, 20).max() == 0, "silence is dark"


def test_a_title_that_cannot_be_drawn_is_in_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(picture, "WIDTH", 100)
    data = picture.song_png(tone(300, 0.1), RATE, "慢爵士 jazz")
    assert "慢爵士 jazz".encode() in data and has(pixels(data)[: picture.TOP], "jazz")
    assert b"iTXt" not in png(np.zeros((1, 1, 3), np.uint8))


def test_letters() -> None:
    ascii_ = [chr(code) for code in range(32, 127)]
    shapes = {dots(f"i{c}i").tobytes() for c in ascii_}
    assert len(shapes) == 95, "no two characters look alike"
    assert plain("Ünïcode – naïve ❤ 日本") == "Unicode naive" and dots("").shape == (9, 0)
    assert dots("I", 1).astype(int)[:7].tolist() == [
        [0, 1, 1, 1, 0], *[[0, 0, 1, 0, 0]] * 5, [0, 1, 1, 1, 0]
    ]  # fmt: skip
    for at in ((-5, -8), (6, 30), (100, 100), (0, 0)):  # also where some or all of it lies outside
        seen = np.zeros((10, 40, 3), np.uint8)
        write(seen, "Wagen", at, ink=(1, 1, 1), scale=1)
        assert seen.any() == (at != (100, 100))
