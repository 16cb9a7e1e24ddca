"""Caches that a newer version has written are neither read wrongly nor written over."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from acestep_mlx.data import cache as store
from acestep_mlx.data import facts as audio_facts
from acestep_mlx.errors import NewerVersionError

from .songs import config, song


@pytest.mark.parametrize("compress", [False, True])
def test_a_newer_cache_file(compress: bool, tmp_path: Path) -> None:
    cache = store.Store(tmp_path, compress)
    cache.put("abcd", {"x": np.arange(3)})
    path = cache.path("abcd")
    data = path.read_bytes()
    assert cache.has("abcd")
    for later in (b"2", b"9"):
        path.write_bytes(b"ACEC" + later + data[5:])
        with pytest.raises(NewerVersionError, match="newer version of acestep-mlx"):
            cache.get("abcd")
    for other in (b"ACECx", b"ACED1", b"ACEC0", b"\0\0\0\0\0"):
        path.write_bytes(other + data[5:])
        assert cache.get("abcd") is None, "damaged: computed again"


def test_a_newer_index_of_songs(tmp_path: Path) -> None:
    path = tmp_path / "facts.json"
    newer = {"version": audio_facts.INDEX_VERSION + 1, "songs": [1]}
    path.write_text(json.dumps(newer))
    with pytest.raises(NewerVersionError, match=r"facts\.json: the index of songs was written by a newer"):
        audio_facts.FactsIndex(path)
    assert json.loads(path.read_text()) == newer


ODD = [
    "",
    "[]",
    "3",
    '{"version": null}',
    '{"version": [9]}',
    '{"version": NaN}',
    '{"facts": {}}',
    "[" * 100_000,
]


@pytest.mark.parametrize("duration", [1e300, -1, 1e9, None, "6"])
def test_a_length_that_no_song_has_is_not_taken_from_the_index(duration: object, tmp_path: Path) -> None:
    from acestep_mlx.data.manifest import build_manifest

    song(tmp_path / "songs", "a")
    found = config(tmp_path)
    (before,) = build_manifest(found).samples
    (index,) = (p for p in (tmp_path / "cache").rglob("*.json"))
    content = json.loads(index.read_text())
    for facts in content["facts"].values():
        facts["duration"] = duration
    index.write_text(json.dumps(content))
    assert build_manifest(found).samples == [before]


@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
def test_what_is_no_file_in_a_caches_place_is_not_waited_for(kind: str, tmp_path: Path) -> None:
    cache = store.Store(tmp_path)
    path = cache.path("abc")
    path.parent.mkdir()
    {"pipe": os.mkfifo, "device": lambda p: p.symlink_to("/dev/zero"), "folder": Path.mkdir}[kind](path)
    assert cache.get("abc") is None


@pytest.mark.parametrize("text", [*ODD, '{"version": 2, "facts": [1]}'])
def test_a_damaged_index_is_built_again(text: str, tmp_path: Path) -> None:
    from acestep_mlx.data.manifest import build_manifest

    song(tmp_path / "songs", "a")
    found = config(tmp_path)
    assert len(build_manifest(found).samples) == 1
    (index,) = (p for p in (tmp_path / "cache").rglob("*.json"))
    index.write_text(text)
    assert len(build_manifest(found).samples) == 1
    assert json.loads(index.read_text())["version"] == audio_facts.INDEX_VERSION
