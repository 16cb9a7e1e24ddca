"""What ACE-Step 1.5 keeps of songs, and the batches that they become."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from acestep_mlx.config.request import Request
from acestep_mlx.families.songs import CachedSong, Shape, Words
from acestep_mlx.families.v15 import ACEStep15
from acestep_mlx.families.v15.generation import sung
from acestep_mlx.families.v15.generation import texts as texts_of
from acestep_mlx.families.v15.prompt import format_prompt
from acestep_mlx.families.v15.songs import texts
from acestep_mlx.text.sheet import Sheet

from .v15 import Folder, Letters, song_encoders

FAMILY = ACEStep15()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    return Folder(tmp_path_factory.mktemp("model"))


def words(caption: str = "pop", lyrics: str | None = "la", seconds: float = 61.7, **known: Any) -> Words:
    return Words(caption, lyrics, seconds, **known)


def test_what_is_known_of_a_song_stands_in_the_prompt() -> None:
    prompt, lyrics = texts(words(bpm=97, keyscale="F# minor", timesignature="3", language="de"))
    assert prompt == (
        "# Instruction\nFill the audio semantic mask based on the given conditions:\n\n# Caption\npop\n\n"
        "# Metas\n- bpm: 97\n- timesignature: 3\n- keyscale: F# minor\n- duration: 61 seconds\n"
        "<|endoftext|>\n"
    )
    assert lyrics == "# Languages\nde\n\n# Lyric\nla<|endoftext|>"


def test_what_is_not_known_is_said_to_be_unknown() -> None:
    prompt, lyrics = texts(words(lyrics=None))
    assert prompt.count("N/A") == 3
    assert lyrics == "# Languages\nunknown\n\n# Lyric\n[Instrumental]<|endoftext|>"


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("[Verse 1]\nSoft LIGHT\n\n[chorus]\n歌词 — ça!\n", "[Verse 1]\nSoft LIGHT\n\n[chorus]\n歌词 — ça!"),
        ("[inst]", "[inst]"),
        (" \n\t\n", None),
        ("", None),
    ],
)
@pytest.mark.parametrize("language", [None, "fr"])
def test_lyrics_stay_as_they_are_written(given: str, kept: str | None, language: str | None) -> None:
    assert FAMILY.read_lyrics(given, language) == (kept, [], [], [])


@pytest.mark.parametrize(
    "written",
    [
        "[ti:A song]\n[00:00.50][Verse 1]\n[00:01.00]Hello there\n[00:02.00](softly) goodbye\n",
        "[Verse 1]\n<00:01.00>Hello <00:01.40>there\n(softly) goodbye [00:03,20]",
        "[Verse 1]\n(0:12) Hello there\n(1:02) (softly) goodbye",
        "1\n00:00:01,000 --> 00:00:03,500\n[Verse 1]\nHello there\n\n2\n00:00:04,000 --> 00:00:05,000\n"
        "(softly) goodbye",
        "WEBVTT\n\n00:01.000 --> 00:03.500 align:start\n[Verse 1]\nHello there\n\n00:04.000 --> 00:05.000\n"
        "(softly) goodbye",
        r"[Verse 1]\nHello there\n(softly) goodbye",
    ],
)
def test_what_was_written_for_a_clock_is_not_sung(written: str) -> None:
    """Neither in training nor in a song that is made."""
    read = FAMILY.read_lyrics(written, None)
    assert read.text == "[Verse 1]\nHello there\n(softly) goodbye" and read.notes
    assert sung(Request(lyrics=written)) == Sheet(read.text, list(read.notes), list(read.timed))
    assert texts_of(Request(lyrics=written))[1].endswith(f"# Lyric\n{read.text}<|endoftext|>")


def test_a_request_with_nothing_but_time_stamps_is_instrumental() -> None:
    assert FAMILY.read_lyrics("[00:01.00]\n[ti:Nothing]", None).text is None
    found = sung(Request(lyrics="[00:01.00]\n[ti:Nothing]"))
    assert found.text == "[Instrumental]" and "nothing is left to sing" in found.notes


@pytest.mark.parametrize("samples", [1920 * 5, 1920 * 5 + 1, 1920 * 6 - 1, 700])
def test_sound_is_kept_as_mean_and_deviation_beside_silence(samples: int, folder: Folder) -> None:
    """The last frame is filled up with silence, as the song's length is counted."""
    sound = np.random.default_rng(0).normal(0, 0.1, (samples, 2)).astype(np.float32)
    arrays, notes = FAMILY.encoders.latents(folder).encode(sound)
    T = FAMILY.latents.covering(samples)
    assert {name: a.shape for name, a in arrays.items()} == {n: (T, 8) for n in ("mean", "std", "source")}
    assert notes is None and all(a.dtype == np.float32 for a in arrays.values()) and (arrays["std"] > 0).all()
    padded = np.pad(sound, ((0, T * 1920 - samples), (0, 0)))
    mean, std = folder.modules["vae"].encode(mx.array(padded)[None])
    np.testing.assert_allclose(arrays["mean"], mean[0], atol=1e-5)
    np.testing.assert_allclose(arrays["std"], std[0], atol=1e-5)
    silence = folder.modules["condition_encoder"].silence_latent
    np.testing.assert_array_equal(arrays["source"], silence[0, :T])


def test_texts_are_kept_as_the_condition_encoder_gives_them(folder: Folder) -> None:
    """Its rows of the whole, one part after the other; the song has no reference for the timbre."""
    song = words(lyrics="[verse]\nla la", bpm=120, language="en")
    prompt, lyrics = format_prompt(song.caption, str(song.lyrics), "en", song.seconds, bpm=120)
    encoder, conditions = (folder.modules[name] for name in ("text_encoder", "condition_encoder"))
    (ids, mask), (lyric_ids, lyric_mask) = (Letters()([text], 999) for text in (prompt, lyrics))
    states, valid = conditions(
        encoder(ids, mask),
        mask,
        encoder.embed_tokens(lyric_ids),
        lyric_mask,
        conditions.silent_reference(),
        mx.zeros(1, dtype=mx.int32),
    )
    assert valid.all()
    parts = song_encoders(folder)
    text, sung = parts.text.encode(song), parts.lyrics.encode(song)
    assert text.notes is None and sung.notes is None
    assert (
        text.arrays["text"].shape == (len(prompt) + 1, 32) and len(sung.arrays["lyrics"]) == len(lyrics) + 1
    )
    rows = np.concatenate([sung.arrays["lyrics"], text.arrays["timbre"], text.arrays["text"]])
    np.testing.assert_allclose(rows, states[0], atol=1e-5)
    np.testing.assert_array_equal(text.arrays["null"], conditions.null_condition_emb[0])


def test_long_texts_are_cut_and_said(folder: Folder) -> None:
    parts = song_encoders(folder)
    text, sung = parts.text.encode(words("x" * 300)), parts.lyrics.encode(words(lyrics="la " * 900))
    assert len(text.arrays["text"]) == 256 and len(sung.arrays["lyrics"]) == 2048
    lengths = [len(text) + 1 for text in texts(words("x" * 300, "la " * 900))]
    assert text.notes == [f"caption: cut to 256 of {lengths[0]} tokens"]
    assert sung.notes == [f"lyrics: cut to 2048 of {lengths[1]} tokens"]


def test_only_what_a_part_needs_is_loaded(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    parts = song_encoders(folder)
    for part in parts:
        part.key(words())
    assert not folder.loaded
    parts.lyrics.encode(words())
    assert sorted(folder.loaded) == ["condition_encoder", "text_encoder"]
    folder.loaded.clear()
    parts.latents.encode(np.zeros((1920, 2), np.float32))
    assert sorted(folder.loaded) == ["condition_encoder", "vae"]


@pytest.mark.parametrize(
    ("change", "changed"),
    [
        ({}, ""),
        ({"caption": "rock"}, "text"),
        ({"seconds": 30.0}, "text"),
        ({"seconds": 61.2}, ""),  # the same whole seconds
        ({"bpm": 120}, "text"),
        ({"keyscale": "C major"}, "text"),
        ({"timesignature": "4"}, "text"),
        ({"lyrics": "lo"}, "lyrics"),
        ({"lyrics": None}, "lyrics"),
        ({"language": "en"}, "lyrics"),
        ({"vae": "2"}, "latents"),
        ({"condition_encoder": "2"}, "latents text lyrics"),
        ({"text_encoder": "2"}, "text lyrics"),
        ({"tokenizer": "2"}, "text lyrics"),
    ],
    ids=str,
)
def test_keys_change_with_what_a_part_is_made_of(change: dict, changed: str, tmp_path: Path) -> None:
    def keys(**given: Any) -> dict[str, Any]:
        folder = Folder(tmp_path)
        for name in [*folder.fingerprints]:
            folder.fingerprints[name] = given.pop(name, "1")
        (tmp_path / "tokenizer.json").write_text(given.pop("tokenizer", "1"))
        parts = song_encoders(folder)._asdict()
        return {name: part.key(words(**given)) for name, part in parts.items()}

    before, after = keys(), keys(**change)
    assert {name for name in before if before[name] != after[name]} == set(changed.split())


def stored(frames: int, text: int, lyrics: int, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    sizes = {"mean": (frames, 8), "std": (frames, 8), "source": (frames, 8)}
    sizes |= {"text": (text, 5), "timbre": (1, 5), "null": (1, 5), "lyrics": (lyrics, 5)}
    return {name: rng.normal(size=size).astype(np.float16) for name, size in sizes.items()}


@pytest.mark.parametrize("drop_lyrics", [False, True])
@pytest.mark.parametrize("drop_text", [False, True])
def test_a_batch(drop_text: bool, drop_lyrics: bool) -> None:
    """The rows that count come first; the whole condition is dropped with its caption, and no part of it."""
    a, b = stored(9, 3, 4), stored(7, 1, 6, seed=1)
    batch = FAMILY.collate(
        [CachedSong(a, drop_text, drop_lyrics), CachedSong(b, False, False)], Shape(10, 4, 8)
    )
    assert {name: array.shape for name, array in batch.items()} == {
        "mean": (2, 10, 8), "std": (2, 10, 8), "source": (2, 10, 8), "latent_mask": (2, 10),
        "states": (2, 13, 5), "states_mask": (2, 13),
    }  # fmt: skip
    assert all(array.dtype == np.float32 for array in batch.values())
    for name in ("mean", "std", "source"):
        np.testing.assert_array_equal(batch[name][0], np.pad(a[name], ((0, 1), (0, 0))))
    assert batch["latent_mask"].sum(axis=1).tolist() == [9, 7]
    rows = np.concatenate([a["lyrics"], a["timbre"], a["text"]])
    np.testing.assert_array_equal(batch["states"][0, :8], np.tile(a["null"], (8, 1)) if drop_text else rows)
    assert batch["states_mask"].tolist() == [[1] * 8 + [0] * 5, [1] * 8 + [0] * 5]


def test_a_converted_model_encodes_songs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With its own text encoder, tokenizer, condition encoder and autoencoder."""
    from acestep_mlx import families
    from acestep_mlx.convert.converter import convert
    from acestep_mlx.families.model_folder import ModelFolder
    from acestep_mlx.families.v15.miniature import write_checkpoint

    monkeypatch.setitem(families.REGISTRY, "v15", __name__)
    write_checkpoint(tmp_path / "checkpoint")
    convert(tmp_path / "checkpoint", tmp_path / "model")
    parts = song_encoders(ModelFolder.open(tmp_path / "model"))
    assert all(part.key(words()) for part in parts)
    arrays = parts.latents.encode(np.zeros((1920 * 3 + 1, 2), np.float32)).arrays
    arrays |= parts.text.encode(words()).arrays | parts.lyrics.encode(words(lyrics=None)).arrays
    shape = Shape(5, len(arrays["text"]), len(arrays["lyrics"]))
    batch = FAMILY.collate([CachedSong(arrays, False, False)], shape)
    assert batch["latent_mask"].sum() == 4 and batch["states_mask"].all()
    assert all(np.isfinite(array).all() for array in batch.values())
