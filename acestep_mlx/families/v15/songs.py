"""What a song of ACE-Step 1.5 is encoded to, and how songs become a batch.

No LoRA changes the condition encoder, so that a song's rows of conditions are kept as it gives them, and
training loads neither it nor the text encoder.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import mlx.core as mx
import numpy as np

from ...io.hashes import hash_file
from ...text.sheet import untimed
from ..protocol import Folder
from ..songs import Arrays, CachedSong, Encoded, Lyrics, PartEncoder, Shape, SongEncoders, Words
from .conditions import ConditionEncoder
from .latents import LATENTS
from .layouts import TOKENIZER
from .prompt import MAX_LYRIC_TOKENS, MAX_TEXT_TOKENS, format_prompt

VERSION = 1  # of what is kept; raise it when the computation changes
INSTRUMENTAL = "[Instrumental]"  # the lyrics of songs in which nobody sings, as the original's data has them
UNKNOWN_LANGUAGE = "unknown"  # and the language of those of which it is not known
UNCUT = 1 << 16  # tokens, to say how long a text would have been


def read_lyrics(text: str) -> Lyrics:
    """Lyrics without time stamps, their marks as they are written: the tokenizer reads every language.

    A part's lyrics are the lines that are sung in it.
    """
    sheet = untimed(text)
    return Lyrics(sheet.text.strip() or None, sheet.notes, [], sheet.lines)


def texts(words: Words) -> tuple[str, str]:
    """The two strings that the model reads of a song: the prompt with what is known of it, and the lyrics."""
    return format_prompt(
        words.caption,
        words.lyrics or INSTRUMENTAL,
        words.language or UNKNOWN_LANGUAGE,
        words.seconds,
        bpm=words.bpm,
        keyscale=words.keyscale,
        timesignature=words.timesignature,
    )


class _Part(PartEncoder[Any]):
    """Knows the fingerprints of the components that it uses."""

    def __init__(self, folder: Folder) -> None:
        super().__init__(folder)
        prints = {name: folder.fingerprints[name] for name in self.uses}
        self._key: dict[str, Any] = {"version": VERSION, **prints}

    def key(self, words: Words) -> Mapping[str, Any]:
        return self._key


class SoundEncoder(_Part):
    """Sound → `mean`, `std` of its latents and `source`, those of silence; each (T, C)."""

    names = ("mean", "std", "source")
    uses: Mapping[str, tuple[str, ...]] = {"vae": ("encoder.",), "condition_encoder": ("silence_latent",)}

    @staticmethod
    def activations(seconds: float) -> float:
        return 1.44e9 + 1.6e6 * seconds

    def load(self) -> tuple[Any, ConditionEncoder]:
        return self._load("vae"), self._load("condition_encoder")

    def encode(self, given: np.ndarray) -> Encoded:
        vae, conditions = self.loaded
        T = LATENTS.covering(len(given))
        sound = np.pad(given, ((0, T * LATENTS.samples_per_frame - len(given)), (0, 0)))
        mean, std = vae.encode(mx.array(sound)[None], progress=self.progress)
        arrays = _numpy(mean=mean[0], std=std[0], source=conditions.silence(T)[0])
        mx.clear_cache()  # each length has buffers of its own
        return Encoded(arrays)


class _Text(_Part):
    """One of the two texts, of at most so many tokens."""

    what: str
    most: int

    def __init__(self, folder: Folder) -> None:
        super().__init__(folder)
        self._key |= {"tokens": self.most, "tokenizer": hash_file(folder.path / TOKENIZER)}

    def text(self, words: Words) -> str:
        """What is read."""
        raise NotImplementedError

    def key(self, words: Words) -> Mapping[str, Any]:
        return {**self._key, "text": self.text(words)}

    def load(self) -> tuple[Any, Any, ConditionEncoder]:
        encoder, conditions = self._load("text_encoder"), self._load("condition_encoder")
        return self._folder.prompt_tokenizer(), encoder, conditions

    def tokens(self, words: Words) -> tuple[mx.array, mx.array, list[str] | None]:
        """Ids and mask, (1, N) each, and a remark where the text is cut."""
        tokenizer = self.loaded[0]
        text = self.text(words)
        length = tokenizer([text], UNCUT)[0].shape[1]
        cut = [f"{self.what}: cut to {self.most} of {length} tokens"] if length > self.most else None
        return (*tokenizer([text], self.most), cut)


class PromptEncoder(_Text):
    """A caption with what is known of the song → its conditions.

    `text` (N, D); with them what is the same for all songs: `timbre` (1, D) of a song without a reference,
    and `null` (1, D), which stands for a condition that is left out.
    """

    names = ("text", "timbre", "null")
    uses: Mapping[str, tuple[str, ...]] = {
        "text_encoder": ("",),
        "condition_encoder": ("text_projector.", "timbre_encoder.", "null_condition_emb", "silence_latent"),
    }
    what, most = "caption", MAX_TEXT_TOKENS

    def text(self, words: Words) -> str:
        return texts(words)[0]

    def encode(self, given: Words) -> Encoded:
        _, encoder, conditions = self.loaded
        ids, mask, cut = self.tokens(given)
        text = conditions.text_projector(encoder(input_ids=ids, attention_mask=mask))[0]
        timbre = conditions.timbre_encoder(conditions.silent_reference())
        return Encoded(_numpy(text=text, timbre=timbre, null=conditions.null_condition_emb[0]), cut)


class LyricsEncoder(_Text):
    """Lyrics and their language → the conditions `lyrics` (L, D); of a song without, that nobody sings."""

    names = ("lyrics",)
    uses: Mapping[str, tuple[str, ...]] = {
        "text_encoder": ("embed_tokens.",),
        "condition_encoder": ("lyric_encoder.",),
    }
    what, most = "lyrics", MAX_LYRIC_TOKENS

    def text(self, words: Words) -> str:
        return texts(words)[1]

    def encode(self, given: Words) -> Encoded:
        _, encoder, conditions = self.loaded
        ids, mask, cut = self.tokens(given)
        return Encoded(_numpy(lyrics=conditions.lyric_encoder(encoder.embed_tokens(ids), mask)[0]), cut)


SONG_ENCODERS = SongEncoders(SoundEncoder, PromptEncoder, LyricsEncoder)


def _numpy(**arrays: mx.array) -> Arrays:
    return {name: np.array(array.astype(mx.float32)) for name, array in arrays.items()}


def crop(arrays: Arrays, start: int, frames: int) -> Arrays:
    """So many latent frames of a song; what silence gives is the same wherever a part begins."""
    stop = start + frames
    part = {"mean": slice(start, stop), "std": slice(start, stop), "source": slice(frames)}
    return {name: array[part[name]] if name in part else array for name, array in arrays.items()}


def collate(songs: Sequence[CachedSong], shape: Shape) -> Arrays:
    """mean, std, source (B, T, C), latent_mask (B, T), states (B, S, D) and states_mask (B, S), float32;
    masks with 1 for what counts, S = lyrics + 1 + text.

    A song's states are its lyrics, timbre and text without gaps, or all of them the null where its caption
    is dropped: the model was trained to go without its whole condition and never without a part of it.
    """
    B, T, S = len(songs), shape.frames, shape.lyrics + 1 + shape.text
    C, D = (songs[0].arrays[name].shape[1] for name in ("mean", "text"))
    sizes = {name: (T, C) for name in ("mean", "std", "source")}
    batch = {name: np.zeros((B, *size), np.float32) for name, size in {**sizes, "states": (S, D)}.items()}
    batch |= {"latent_mask": np.zeros((B, T), np.float32), "states_mask": np.zeros((B, S), np.float32)}
    for b, song in enumerate(songs):
        arrays = song.arrays
        for name in sizes:
            batch[name][b, : len(arrays[name])] = arrays[name]
        batch["latent_mask"][b, : len(arrays["mean"])] = 1
        rows = np.concatenate([arrays["lyrics"], arrays["timbre"], arrays["text"]])
        batch["states"][b, : len(rows)] = arrays["null"] if song.drop_text else rows
        batch["states_mask"][b, : len(rows)] = 1
    return batch
