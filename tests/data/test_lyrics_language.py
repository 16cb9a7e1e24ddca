"""The data set's say in its lyrics: a forced language, and what happens to scripts without tokens."""

from __future__ import annotations

from pathlib import Path

import pytest

from acestep_mlx.errors import ConfigError, DataError
from acestep_mlx.families.v1.lyrics.tokenizer import LyricTokenizer

from ..parity import reference
from .songs import manifest, song


@pytest.fixture
def songs(tmp_path: Path) -> Path:
    folder = tmp_path / "songs"
    folder.mkdir()
    song(folder, "a", lyrics="[verse]\n永遠\n\nlove")
    return folder


@pytest.mark.parametrize("name", ["ja", "Japanese", "jpn"])
def test_forced_language_reaches_the_tokens_and_every_key(tmp_path: Path, songs: Path, name: str) -> None:
    (free,) = manifest(tmp_path).samples
    found = manifest(tmp_path, {"audio": {"lyrics_language": name}})
    (forced,) = found.samples
    tokenizer = LyricTokenizer(reference.vocab())
    assert tokenizer.tokenize(forced.lyrics or "") == tokenizer.tokenize(free.lyrics or "", language="ja")
    assert tokenizer.tokenize(forced.lyrics or "") != tokenizer.tokenize(free.lyrics or "")
    assert forced.lyrics != free.lyrics and forced.key != free.key
    assert found.report.sets[0].languages() == {"ja": 2}


def test_auto_is_the_default(tmp_path: Path, songs: Path) -> None:
    (free,) = manifest(tmp_path).samples
    (auto,) = manifest(tmp_path, {"audio": {"lyrics_language": "auto"}}).samples
    assert auto.lyrics == free.lyrics and auto.key == free.key


def test_unknown_language_is_an_error_at_once(tmp_path: Path, songs: Path) -> None:
    with pytest.raises(ConfigError, match=r"lyrics_language 'klingon' is not one the model sings"):
        manifest(tmp_path, {"audio": {"lyrics_language": "klingon"}})


def test_unsupported_script_is_noted_or_an_error(tmp_path: Path, songs: Path) -> None:
    song(songs, "b", lyrics="Hello there\nสวัสดี")
    found = manifest(tmp_path)
    assert len(found.samples) == 2
    ((name, note),) = found.report.sets[0].notes
    assert name == "b.wav" and "lyrics line 2 is in Thai script" in note
    with pytest.raises(DataError, match=r"b\.wav: lyrics line 2 is in Thai script"):
        manifest(tmp_path, {"audio": {"lyrics_unsupported": "error"}})
