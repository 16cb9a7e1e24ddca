"""Encodings of caption and lyrics files, names of lyrics files, shuffled captions."""

from __future__ import annotations

import codecs
import os
from dataclasses import replace
from pathlib import Path

import pytest

from acestep_mlx.config.datasets import Shuffle, lyrics_name
from acestep_mlx.data.captions import caption_lines, clean_lyrics, shuffled
from acestep_mlx.errors import ConfigError, DataError
from acestep_mlx.io.text_files import read_text

TEXT = "Grüße, naïve café"
GOOD: dict[str, tuple[bytes, str, bool]] = {
    "UTF-8": (TEXT.encode(), TEXT, False),
    "UTF-8 with mark": (TEXT.encode("utf-8-sig"), TEXT, False),
    "UTF-16 little endian": (codecs.BOM_UTF16_LE + TEXT.encode("utf-16-le"), TEXT, True),
    "UTF-16 big endian": (codecs.BOM_UTF16_BE + TEXT.encode("utf-16-be"), TEXT, True),
    "UTF-16 without mark": (TEXT.encode("utf-16-le"), TEXT, True),
    "Latin-1": (TEXT.encode("latin-1"), TEXT, True),
    "Windows-1252 quotes": ("it’s “pop” – 5 €".encode("cp1252"), "it’s “pop” – 5 €", True),
    "Windows line ends": (b"a\r\nb\rc", "a\nb\nc", False),
    "control characters": (b"a\x00\x01b".replace(b"\x00", b"\x07"), "ab", False),
    "Japanese": ("夜に駆ける".encode(), "夜に駆ける", False),
    "empty": (b"", "", False),
    "one NUL at its end": (b"slow jazz\x00", "slow jazz", True),
    "an odd number of bytes and a NUL": (b"jazz\x00", "jazz", True),
    "filled up with NULs": (b"pop" + bytes(61), "pop", True),
    "a line end and a NUL": (b"pop\r\n\x00", "pop\n", True),
    "Japanese and a NUL": ("夜に駆ける".encode() + b"\x00", "夜に駆ける", True),
    "one letter and a NUL": (b"a\x00", "a", True),
    "UTF-16 big endian without mark": (TEXT.encode("utf-16-be"), TEXT, True),
    "UTF-16 without mark, ended by NUL": ("pop\x00".encode("utf-16-le"), "pop", True),
}
BAD: dict[str, bytes] = {
    "Shift-JIS": "夜に駆ける、静かな歌".encode("shift_jis"),
    "GB18030": "慢速爵士乐女声".encode("gb18030"),
    "EUC-KR": "느린 재즈 발라드 여성".encode("euc_kr"),
    "Windows-1251": "медленный джаз".encode("cp1251"),
    "nothing but NULs": bytes(64),
    "NULs in many places": b"a\x00b\x00cd",
    "a NUL inside": b"slow\x00jazz, piano",
    "binary": bytes(range(256)) * 4,
    "a wav file": b"RIFF\x24\x00\x00\x00WAVEfmt \x10\x00\x00\x00" + b"\x00\x10\x20" * 50,
    "broken UTF-16": codecs.BOM_UTF16_LE + b"\x00\xd8\x00",
    "cut UTF-8 of Japanese": "夜に駆ける".encode()[:-1],
}


@pytest.mark.parametrize("name", GOOD)
def test_encodings_that_are_certain(name: str, tmp_path: Path) -> None:
    data, want, noted = GOOD[name]
    (tmp_path / "a.txt").write_bytes(data)
    text, note = read_text(tmp_path / "a.txt")
    assert text == want and (note is not None) is noted


@pytest.mark.parametrize("name", BAD)
def test_encodings_that_would_be_guesses_are_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(BAD[name])
    with pytest.raises(DataError, match=r"a\.txt"):
        read_text(tmp_path / "a.txt")


def test_huge_missing_and_folders(tmp_path: Path) -> None:
    (tmp_path / "big.txt").write_bytes(b"x" * (1 << 21))
    (tmp_path / "folder.txt").mkdir()
    (tmp_path / "full.txt").write_bytes(b"x" * 100)
    assert len(read_text(tmp_path / "full.txt", limit=100)[0]) == 100
    with pytest.raises(DataError, match="100 bytes, too large"):
        read_text(tmp_path / "full.txt", limit=99)
    for name in ("big.txt", "absent.txt", "folder.txt"):
        with pytest.raises(DataError, match=name):
            read_text(tmp_path / name)


@pytest.mark.parametrize("target", ["/dev/zero", "pipe"])
def test_what_is_no_file_is_neither_waited_for_nor_read(target: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "a.txt").symlink_to(target if target.startswith("/") else tmp_path / target)
    with pytest.raises(DataError, match=r"cannot read a\.txt: it is not a regular file"):
        read_text(tmp_path / "a.txt")


def test_no_file_stays_open(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("pop")
    (tmp_path / "folder.txt").mkdir()
    free = os.dup(0)
    os.close(free)
    for _ in range(3):
        read_text(tmp_path / "a.txt")
        with pytest.raises(DataError):
            read_text(tmp_path / "folder.txt")
    again = os.dup(0)
    os.close(again)
    assert again == free


def test_caption_lines() -> None:
    assert caption_lines(" a \n\n b\n", True) == ["a", "b"]
    assert caption_lines(" a \n\n b\n", False) == ["a b"]
    assert caption_lines(r"a\n\n b\r\nc", True) == ["a", "b", "c"]
    assert caption_lines("\n \n", True) == [] == caption_lines("", False)


def test_lyrics() -> None:
    assert clean_lyrics("\n[verse]  \nla\n\n") == "[verse]\nla"
    assert clean_lyrics(" \n\n") is None
    assert clean_lyrics("[instrumental]") == "[instrumental]"


@pytest.mark.parametrize(
    ("template", "name"),
    [("{filename}_lyrics.txt", "my.song_lyrics.txt"), ("{stem}.l", "my.song.l"),
     ("{name}.lrc", "my.song.mp3.lrc"), ("{stem}.{ext}.txt", "my.song.mp3.txt"),
     ("lyrics/{parent}-{stem}.txt", "lyrics/album-my.song.txt")],
)  # fmt: skip
def test_lyrics_names(template: str, name: str) -> None:
    assert lyrics_name(template, Path("x/album/my.song.mp3")) == name


@pytest.mark.parametrize(
    "template",
    [
        "{title}.txt",
        "../{stem}.txt",
        "/abs/{stem}",
        "a/../../{stem}",
        "{}",
        " ",
        "{stem",
        "stem}.txt",
        "{stem.__class__}",
    ],
)
def test_lyrics_names_that_lead_elsewhere(template: str) -> None:
    with pytest.raises(ConfigError, match="lyrics_filename_format"):
        lyrics_name(template, Path("x/song.mp3"))


def test_shuffles_are_deterministic_and_keep_the_head() -> None:
    settings = Shuffle(split_on="comma", count=4, seed=1, position_start=1, include_original=True)
    caption = "trigger, a, b, c, d"
    variants = shuffled(caption, settings)
    assert variants == shuffled(caption, settings) and variants[0] == caption and len(variants) > 2
    for variant in variants:
        tags = variant.split(", ")
        assert tags[0] == "trigger" and sorted(tags) == sorted(caption.split(", "))
    assert variants != shuffled(caption, replace(settings, seed=2))
    assert caption not in shuffled(caption, replace(settings, include_original=False, count=1))
    assert shuffled("one, two", settings) == ["one, two"]
