"""What v1 keeps of songs: under the keys of version 0.1, whose caches stay in use."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from acestep_mlx.data.encode import Cache
from acestep_mlx.data.manifest import build_manifest
from acestep_mlx.families.songs import CachedSong, Shape
from acestep_mlx.families.v1 import FAMILY

from ..data.songs import config, song


def test_keys_are_those_of_version_0_1(tmp_path: Path) -> None:
    """As that version's program gave them for this song and this model."""
    (tmp_path / "songs").mkdir()
    song(tmp_path / "songs", "a", 3.0)
    (tmp_path / "tokenizer.json").write_text('{"a": 1}')
    (tmp_path / "lyric_vocab.json").write_text('{"b": 2}')
    folder: Any = SimpleNamespace(
        path=tmp_path,
        config={"components": {"vocoder": {"n_mels": 128, "f_min": 40}}},
        fingerprints={"dcae": "d" * 64, "text_encoder": "t" * 64},
        lyric_vocab=lambda: tmp_path / "lyric_vocab.json",
    )
    settings = config(tmp_path)
    manifest = build_manifest(settings)
    one = replace(
        manifest.samples[0],
        content="c" * 64,
        captions=("pop, fröhlich", "rock"),
        lyrics="[verse]\nla la",
        start=1.5,
        seconds=30.25,
    )
    cache = Cache(manifest, settings, folder)
    assert [cache.key("text", one, variant) for variant in (0, 1)] == [
        "87257dd28deb9f7d86fc085936016e2cc53c6edc",
        "953f0bda21c9af61fd2c32ad1c4273deb1e84275",
    ]
    assert cache.key("lyrics", one) == "6d692fb3fb6486511739ca7d741f05ae0bc194aa"
    assert cache.key("lyrics", replace(one, lyrics=None)) is None
    assert cache.key("latents", one) == "2c2e6fac2eeda0f5f9c28a64b3f1c9a9f9ee68d9"
    assert (
        cache.key("latents", replace(one, misread="to the end")) == "0254eee4d8330a51db5d236db5e4c73ade2f4189"
    )
    assert one.key == "780467859ccf26b54fe752903472942b7496ccd5", "the order of songs goes on after a resume"


@pytest.mark.parametrize("drop_text", [False, True])
@pytest.mark.parametrize("drop_lyrics", [False, True])
def test_what_a_dropped_condition_leaves_in_a_batch(drop_text: bool, drop_lyrics: bool) -> None:
    """A dropped caption is zeros that still count; dropped lyrics do not count."""
    rng = np.random.default_rng(0)

    def stored(frames: int, words: int, ids: int) -> dict[str, np.ndarray]:
        return {
            "latents": rng.normal(size=(8, 16, frames)).astype(np.float16),
            "states": rng.normal(size=(words, 5)).astype(np.float16),
            "ids": rng.integers(1, 99, ids).astype(np.int32),
        }

    arrays = [stored(30, 7, 9), stored(33, 2, 0)]
    songs = [CachedSong(arrays[0], drop_text, drop_lyrics), CachedSong(arrays[1], False, False)]
    batch = FAMILY.collate(songs, Shape(33, 32, 64))
    assert {name: array.shape for name, array in batch.items()} == {
        "latents": (2, 8, 16, 33), "latent_mask": (2, 33), "text": (2, 32, 5), "text_mask": (2, 32),
        "lyric_ids": (2, 64), "lyric_mask": (2, 64),
    }  # fmt: skip
    assert [int(batch[mask][0].sum()) for mask in ("latent_mask", "text_mask")] == [30, 7]
    np.testing.assert_array_equal(batch["text"][0, :7], 0 if drop_text else arrays[0]["states"])
    np.testing.assert_array_equal(batch["lyric_ids"][0, :9], 0 if drop_lyrics else arrays[0]["ids"])
    assert batch["lyric_mask"][0].sum() == (0 if drop_lyrics else 9) and not batch["lyric_mask"][1].any()
    assert not batch["latents"][0, :, :, 30:].any() and batch["latents"].dtype == np.float32


@pytest.mark.parametrize(
    ("written", "language", "read"),
    [
        ("[00:01.00] la", None, "la"),
        ("(Chorus)\nla", "de", "[lang:de][chorus]\nla"),
        ("", "de", None),
        ("[00:01.00]", "de", None),
        (" \n", None, None),
    ],
)
def test_lyrics_are_read_in_the_form_that_the_tokenizer_knows(
    written: str, language: str | None, read: str | None
) -> None:
    assert FAMILY.read_lyrics(written, language).text == read


def test_lines_in_a_script_without_tokens_are_named() -> None:
    found = FAMILY.read_lyrics("la la\nγεια σου φίλε μου", None)
    problem = "lyrics line 2 is in Greek script, which the model has no tokens for"
    assert found.problems == [problem] and found.text
