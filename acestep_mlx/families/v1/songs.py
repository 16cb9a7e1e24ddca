"""What a song of ACE-Step v1 is encoded to, and how songs become a batch.

The keys are those of version 0.1, so that its caches stay in use.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import mlx.core as mx
import numpy as np

from ...io.hashes import cache_key, hash_file
from ..protocol import Folder
from ..songs import Arrays, CachedSong, Encoded, PartEncoder, Shape, SongEncoders, Words
from .codec import Codec
from .latents import LATENTS
from .lyrics.report import summary
from .lyrics.tokenizer import RULES_VERSION, LyricTokenizer
from .prompt import MAX_LENGTH
from .prompt_files import TOKENIZER
from .ssl.encoders import ENCODERS, SOUND_RATE, length_of

VERSION = 1  # of what is kept; raise it when the computation changes


class SoundEncoder(PartEncoder[np.ndarray]):
    """Sound → `latents` (8, 16, T)."""

    names = ("latents",)
    uses: Mapping[str, tuple[str, ...]] = {
        "dcae": ("encoder.",),
        "vocoder": (),
    }  # of the vocoder the scale of the mel frames

    def __init__(self, folder: Folder) -> None:
        super().__init__(folder)
        mel = cache_key(vocoder=folder.config["components"]["vocoder"])
        self._key = {"version": VERSION, "dcae": folder.fingerprints["dcae"], "mel": mel}

    def key(self, words: Words) -> dict[str, Any]:
        return self._key

    def load(self) -> Codec:
        return Codec(self._load("dcae"), self._load("vocoder"))

    @staticmethod
    def activations(seconds: float) -> float:
        return 1.57e9 + 1.4e6 * seconds  # two windows side by side; more of a long song is kept

    def encode(self, given: np.ndarray) -> Encoded:
        latents = np.array(self.loaded.encode(given, progress=self.progress)[0].astype(mx.float32))
        mx.clear_cache()  # each length has buffers of its own
        return Encoded({"latents": latents})


class CaptionEncoder(PartEncoder[Words]):
    """A caption → `states` (L, 768) of the text encoder, L ≤ 256 tokens."""

    names = ("states",)
    uses: Mapping[str, tuple[str, ...]] = {"text_encoder": ("",)}

    def __init__(self, folder: Folder) -> None:
        super().__init__(folder)
        self._key = {
            "version": VERSION,
            "tokens": MAX_LENGTH,
            "encoder": folder.fingerprints["text_encoder"],
            "tokenizer": hash_file(folder.path / TOKENIZER),
        }

    def key(self, words: Words) -> dict[str, Any]:
        return {**self._key, "caption": words.caption}

    def load(self) -> tuple[Any, Any]:
        return self._folder.prompt_tokenizer(), self._load("text_encoder")

    def encode(self, given: Words) -> Encoded:
        tokenizer, encoder = self.loaded
        states = np.array(encoder(*tokenizer(given.caption, MAX_LENGTH))[0].astype(mx.float32))  # [L, 768]
        tokens = tokenizer(given.caption, 1 << 16)[0].shape[1]
        cut = [f"caption: cut to {MAX_LENGTH} of {tokens} tokens"] if tokens > MAX_LENGTH else None
        return Encoded({"states": states}, cut)


class LyricsTokens(PartEncoder[Words]):
    """Lyrics → `ids` (M,), with what the tokenizer remarks (cut, dropped or unspeakable lines)."""

    names = ("ids",)

    def __init__(self, folder: Folder) -> None:
        super().__init__(folder)
        version = [VERSION, RULES_VERSION]
        self._key = {"version": version, "vocab": hash_file(folder.lyric_vocab())}

    def key(self, words: Words) -> dict[str, Any] | None:
        return None if words.lyrics is None else {**self._key, "lyrics": words.lyrics}

    def load(self) -> LyricTokenizer:
        found: LyricTokenizer = self._folder.lyric_tokenizer()
        return found

    def encode(self, given: Words) -> Encoded:
        report = self.loaded.report(str(given.lyrics))
        notes = [f"lyrics: {line}" for line in summary(report)[1:]]
        return Encoded({"ids": np.array(report.ids, np.int32)}, notes)


SONG_ENCODERS = SongEncoders(SoundEncoder, CaptionEncoder, LyricsTokens)


def crop(arrays: Arrays, start: int, frames: int) -> Arrays:
    """So many latent frames of a song, from `start` on."""
    heard = {
        name: encoder.cut(arrays[name], LATENTS.seconds(start), LATENTS.seconds(start + frames))
        for name, encoder in ENCODERS.items()
        if name in arrays
    }
    return {**arrays, "latents": arrays["latents"][..., start : start + frames], **heard}


def collate(songs: Sequence[CachedSong], shape: Shape) -> Arrays:
    """latents (B, 8, 16, T), latent_mask (B, T), text (B, L, 768), text_mask (B, L), lyric_mask (B, M)
    float32, lyric_ids (B, M) int32; masks with 1 for what counts, M = 0 where no song of the bucket has
    lyrics. Where the songs have features of an encoder, they are there too, float16, with their lengths.
    """
    B = len(songs)
    width = songs[0].arrays["states"].shape[-1]
    channels, height = songs[0].arrays["latents"].shape[:2]
    latents = np.zeros((B, channels, height, shape.frames), np.float32)
    latent_mask = np.zeros((B, shape.frames), np.float32)
    text = np.zeros((B, shape.text, width), np.float32)
    text_mask = np.zeros((B, shape.text), np.float32)
    lyric_ids = np.zeros((B, shape.lyrics), np.int32)
    lyric_mask = np.zeros((B, shape.lyrics), np.float32)
    for b, song in enumerate(songs):
        own, states, ids = (song.arrays[name] for name in ("latents", "states", "ids"))
        T, L, M = own.shape[-1], len(states), len(ids)
        latents[b, :, :, :T] = own
        latent_mask[b, :T] = 1
        text_mask[b, :L] = 1
        if not song.drop_text:  # upstream zeroes the states of a dropped caption and keeps its mask
            text[b, :L] = states
        if not song.drop_lyrics:
            lyric_ids[b, :M] = ids
            lyric_mask[b, :M] = 1
    return {
        "latents": latents,
        "latent_mask": latent_mask,
        "text": text,
        "text_mask": text_mask,
        "lyric_ids": lyric_ids,
        "lyric_mask": lyric_mask,
        **_heard(songs, shape.frames),
    }


def _heard(songs: Sequence[CachedSong], frames: int) -> Arrays:
    """Features (B, L, D) and lengths (B,) int32 of each encoder; L is that of a song of so many frames."""
    batch = {}
    for name, encoder in ENCODERS.items():
        own = [song.arrays[name] for song in songs if name in song.arrays]
        if len(own) == len(songs):
            L = encoder.length(round(LATENTS.seconds(frames) * SOUND_RATE)) + 2  # a part's rims may add two
            padded = np.zeros((len(songs), L, own[0].shape[-1]), np.float16)
            for row, features in zip(padded, own, strict=True):
                row[: len(features)] = features
            batch[name], batch[length_of(name)] = padded, np.array([len(one) for one in own], np.int32)
    return batch
