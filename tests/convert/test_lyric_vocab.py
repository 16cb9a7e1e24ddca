"""Where the lyric vocabulary is found, in which order, and what is believed."""

from __future__ import annotations

import io
import json
import sys
import types
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from acestep_mlx.errors import CheckpointError
from acestep_mlx.families.v1.lyrics import vocabulary as lyric_vocab
from acestep_mlx.families.v1.lyrics.vocabulary import content_hash, find
from acestep_mlx.families.v1.miniature_text import miniature_vocabulary

SIZE = 6693


@pytest.fixture
def upstream(monkeypatch: pytest.MonkeyPatch) -> bytes:
    """A vocabulary that passes for upstream's; nothing is installed, and the network is off."""
    content = miniature_vocabulary()
    monkeypatch.setattr(lyric_vocab, "SHA256", content_hash(content))
    monkeypatch.setattr(lyric_vocab, "PACKAGES", ())
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)

    def off(*_: object, **__: object) -> None:
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(urllib.request, "urlopen", off)
    return json.dumps(content, indent=7).encode()  # white space does not matter


def other() -> bytes:
    content = miniature_vocabulary()
    content["truncation"] = None
    content["version"] = "1.0"
    content["model"]["merges"].pop()
    return json.dumps(content).encode()


def install(name: str, folder: Path, data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package that must not be imported, with a vocabulary in it."""
    package = folder / name
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('must not be imported')")
    (package / "vocab.json").write_bytes(data)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setattr(lyric_vocab, "PACKAGES", ((name, "vocab.json"),))


def test_the_flag_wins_and_a_different_file_is_accepted_with_a_warning(
    upstream: bytes, tmp_path: Path
) -> None:
    (tmp_path / "lyric_vocab.json").write_bytes(upstream)
    (tmp_path / "mine.json").write_bytes(other())
    notes: list[str] = []
    found = find(tmp_path / "mine.json", tmp_path, SIZE, lambda advance: notes.append(advance.stage))
    assert found.data == other() and not found.known and "is not the lyric vocabulary" in notes[0]
    assert notes[0].startswith("warning: ")
    with pytest.raises(CheckpointError, match=r"Is a directory; give upstream's .*leave --lyric-vocab out"):
        find(tmp_path, tmp_path, SIZE, lambda *_: None)


@pytest.mark.parametrize("name", ["lyric_vocab.json", "vocab.json", "acestep/models/lyrics_utils/vocab.json"])
def test_then_the_checkpoint(name: str, upstream: bytes, tmp_path: Path) -> None:
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_bytes(upstream)
    notes: list[str] = []
    found = find(None, tmp_path, SIZE, lambda advance: notes.append(advance.stage))
    assert found.known and found.data == upstream and notes == []


def test_then_an_installed_package_which_is_not_imported(
    upstream: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install("carrier_of_vocab", tmp_path / "site", upstream, monkeypatch)
    found = find(None, tmp_path, SIZE)
    assert found.source == "the installed package carrier_of_vocab" and found.known
    assert "carrier_of_vocab" not in sys.modules


def test_a_package_that_somebody_registered_by_hand(
    upstream: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install("by_hand", tmp_path / "site", upstream, monkeypatch)
    module = types.ModuleType("by_hand")
    module.__path__ = [str(tmp_path / "site" / "by_hand")]
    monkeypatch.setitem(sys.modules, "by_hand", module)
    assert find(None, tmp_path, SIZE).source == "the installed package by_hand"


def test_a_package_with_another_file_is_not_believed(
    upstream: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install("other_carrier", tmp_path / "site", other(), monkeypatch)
    with pytest.raises(CheckpointError, match=r"no network.*--lyric-vocab"):
        find(None, tmp_path, SIZE)


def test_then_the_network_with_its_content_checked(
    upstream: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replies = [upstream, other()]
    asked: list[str] = []

    def reply(url: str, timeout: float) -> io.BytesIO:
        asked.append(url)
        return io.BytesIO(replies.pop(0))

    monkeypatch.setattr(urllib.request, "urlopen", reply)
    found = find(None, tmp_path, SIZE)
    assert found.data == upstream and found.source == asked[0]
    assert "/ace-step/ACE-Step/d612523f50e252c0e138e68ae75b06223f96e934/" in asked[0]
    with pytest.raises(CheckpointError, match="unexpected content"):
        find(None, tmp_path, SIZE)


def test_offline_says_what_to_do(upstream: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(CheckpointError, match=r"HF_HUB_OFFLINE.*--lyric-vocab"):
        find(None, tmp_path, SIZE)


def test_it_must_fit_the_model(upstream: bytes, tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_bytes(upstream)
    largest = max(miniature_vocabulary()["model"]["vocab"].values())
    assert find(None, tmp_path, largest + 1).known
    with pytest.raises(CheckpointError, match=f"ids up to {largest}, the model only {largest}"):
        find(None, tmp_path, largest)
    with pytest.raises(CheckpointError, match=r"ids up to \d+, the model only 300"):
        find(None, tmp_path, 300)


@pytest.mark.parity
def test_the_reference_carries_the_known_file(tmp_path: Path) -> None:
    found = find(None, tmp_path, SIZE)
    assert found.known and found.source == "the installed package simpletuner"
