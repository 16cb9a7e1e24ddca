"""What the latents of a song are known by, and that they are of the sound that was looked at."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from acestep_mlx.data.cache import Store
from acestep_mlx.data.encode import Cache, load_part
from acestep_mlx.data.facts import MISREAD, MISREAD_OGG, FileAudio
from acestep_mlx.errors import DataError
from acestep_mlx.families import default
from acestep_mlx.io.hashes import hash_file

from .songs import song


def test_a_song_that_was_read_wrongly_has_another_key_and_so_has_each_part() -> None:
    cache: Any = object.__new__(Cache)
    cache.family = SimpleNamespace(key_mark={})
    version = {"version": 1}
    cache._encoders = {"latents": SimpleNamespace(key=lambda words: version)}

    def key(**changes: Any) -> str:
        facts = {"content": "0", "start": 0.0, "seconds": 9.0, "misread": ""}
        sample: Any = SimpleNamespace(words=lambda: None, **{**facts, **changes})
        return str(cache.latent_key(sample))

    changes = (
        {"content": "1"},
        {"start": 1.0},
        {"seconds": 8.0},
        {"misread": MISREAD},
        {"misread": MISREAD_OGG},
    )
    keys = [key(), *(key(**change) for change in changes)]
    version["version"] = 2
    assert len({*keys, key()}) == len(keys) + 1


def test_sound_that_is_another_than_was_looked_at_is_not_taken(tmp_path: Path) -> None:
    path = song(tmp_path, "a", seconds=4.0)
    facts: Any = {"id": "set/a", "audio": FileAudio(path), "start": 0.0, "seconds": 4.0, "samples": 176400}
    good: Any = SimpleNamespace(**facts, latents=default().latents, content=hash_file(path))
    assert load_part(good).shape == (176400, 2)
    good.content = "0" * 64
    with pytest.raises(DataError, match="set/a: changed while it was in use"):
        load_part(good)


def test_an_entry_under_anothers_name_is_not_taken_for_it(tmp_path: Path) -> None:
    store = Store(tmp_path)
    one, other = "aa" * 20, "bb" * 20
    store.put(one, {"x": np.arange(3.0)})
    assert store.get(other) is None
    store.path(other).parent.mkdir()
    shutil.copyfile(store.path(one), store.path(other))
    assert store.get(other) is None and not store.has(other) and store.occupied(other)
    found = store.get(one)
    assert found is not None and found["x"].tolist() == [0.0, 1.0, 2.0]
