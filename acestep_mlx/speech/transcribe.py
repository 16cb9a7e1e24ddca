"""Drafts of lyrics: what a Whisper hears in a song, as far as it is sure of it.

Every window of thirty seconds is heard by itself, so that no text is carried from one to the next, and always
takes the likeliest token, so that a song has one draft. A window that the model is not sure of, or where it
goes round in circles, gives nothing: where nobody sings, it makes lines up. How often it is right is measured
by `benchmarks/transcription.py`.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from ..errors import CheckpointError, DataError
from ..io.audio import read_audio
from ..io.schema import Mismatch, items, read_json, table, whole
from .whisper import FFT, HOP, RATE, WINDOW, Cache, Whisper, load_whisper, log_mel

SUREST = math.log(0.45)  # mean log-probability of a window's tokens, from which on it counts
LOOPING = 2.4  # of a text's length over that of its deflated bytes: above, it goes round in circles
STANZA = 4.0  # seconds without a line between two stanzas
FRAMES = WINDOW * RATE // HOP
TICK = 2  # frames of one step of a time token
LATEST = 50  # of these steps: before then the first line of a window begins


class Line(NamedTuple):
    """start and stop: in frames of the song. logprob: the mean of its window's tokens."""

    start: int
    stop: int
    text: str
    logprob: float


@dataclass(frozen=True)
class Transcript:
    """lyrics: lines, an empty one between stanzas; "" where nothing could be made out.

    confidence: the mean probability (geometric) of the tokens in the lines' windows. unsure: seconds in which
    no word was sure. repeats: lines left out that said the same as the one before.
    """

    lyrics: str
    language: str
    confidence: float
    unsure: float = 0.0
    repeats: int = 0


@dataclass(frozen=True)
class Tokens:
    """The ids that mean something. silence: nobody speaks. first_time: 0.00 s; later times follow, `TICK`
    apart. languages: code → id, and transcribe: none for a model that knows English alone.
    """

    start: int
    end: int
    silence: int
    first_time: int
    languages: dict[str, int]
    transcribe: int | None
    never: tuple[int, ...]
    never_first: tuple[int, ...]

    @classmethod
    def of(cls, said: dict[str, Any]) -> Tokens:
        """From transformers' generation_config.json; CheckpointError for what is missing or no token."""
        token = whole(0, 1 << 22)
        try:
            no_times = token(said.get("no_timestamps_token_id"), "no_timestamps_token_id")
            languages = table(token)(said.get("lang_to_id") or {}, "lang_to_id")
            never, first = (
                items(token)(said.get(key) or [], key) for key in ("suppress_tokens", "begin_suppress_tokens")
            )
            return cls(
                token(said.get("decoder_start_token_id"), "decoder_start_token_id"),
                token(said.get("eos_token_id"), "eos_token_id"),
                no_times - 1,
                no_times + 1,
                {name.strip("<|>"): one for name, one in languages.items()},
                table(token)(said.get("task_to_id") or {}, "task_to_id").get("transcribe"),
                (*never, no_times),
                first,
            )
        except Mismatch as error:
            raise CheckpointError(f"generation_config.json: {error}") from None

    @property
    def highest(self) -> int:
        """The largest id of them all."""
        last_time = self.first_time + FRAMES // TICK
        named = (*self.never, *self.never_first, *self.languages.values(), self.transcribe or 0)
        return max(self.start, self.end, self.silence, last_time, *named)

    def mask(self, logits: np.ndarray, before: Sequence[int]) -> None:
        """Set (V,) logits to −∞ in place for tokens that may not follow `before`.

        Times come in pairs, a line's end and the next one's start; they never go back.
        """
        logits[list(self.never)] = -np.inf
        times = [one for one in before if one >= self.first_time]
        if not before:
            logits[list(self.never_first)] = -np.inf
            logits[: self.first_time] = logits[self.first_time + LATEST + 1 :] = -np.inf
            return
        a_time = before[-1] >= self.first_time
        opens = a_time and (len(before) < 2 or before[-2] >= self.first_time)  # the next token is text
        if opens:
            logits[self.first_time :] = -np.inf
        elif a_time:
            logits[: self.end] = -np.inf
        if times:
            logits[self.first_time : times[-1] + (not a_time or opens)] = -np.inf
        heights = logits - logits.max()
        late = np.exp(heights[self.first_time :]).sum()
        if late > np.exp(heights[: self.first_time]).max():  # any time is likelier than every text
            logits[: self.first_time] = -np.inf


class Transcriber:
    """A Whisper and its words. folder: as transformers saves it, and the hub has `openai/whisper-base`."""

    def __init__(self, folder: Path) -> None:
        from tokenizers import Tokenizer

        names = ("config.json", "generation_config.json", "tokenizer.json")
        if missing := [name for name in names if not (folder / name).is_file()]:
            raise CheckpointError(
                f"{folder}: no Whisper as transformers saves it: it has no {', '.join(missing)}; "
                "openai/whisper-base is one on the hub"
            )
        config, generation = (read_json(folder / name) for name in names[:2])
        self.tokens = Tokens.of(generation)
        try:
            self._tokenizer = Tokenizer.from_file(str(folder / names[2]))
        except Exception as error:  # the library raises no kind of its own
            raise CheckpointError(f"{folder / names[2]}: {error}") from None
        self.network: Whisper = load_whisper(folder, config)
        if self.tokens.highest >= self.network.config.vocab_size:
            raise CheckpointError(f"{folder}: generation_config.json names tokens that the model lacks")

    def hear_file(self, path: Path, within: Callable[[float], None] = lambda share: None) -> Transcript:
        """Of a sound file. DataError."""
        return self.hear(read_audio(path, sample_rate=RATE, channels=1)[:, 0], None, within)

    def hear(
        self,
        sound: np.ndarray,
        language: str | None = None,
        within: Callable[[float], None] = lambda share: None,
    ) -> Transcript:
        """Of a song (samples,) float32 at `RATE`. language: a code, or None to find it out. within: is
        told how far that is, from 0 to 1. DataError for a language that the model does not know.
        """
        sound = np.pad(sound, (0, max(0, FFT - len(sound))))
        mel = log_mel(sound, self.network.config.num_mel_bins)
        language = self._language(mel, language)
        at, unsure, lines = 0, 0, list[Line]()
        while at < len(mel):
            found, used = self._window(mel, at, language)
            unsure += 0 if found else used
            lines += found
            at += used
            within(min(1.0, at / len(mel)))
        return _transcript(lines, language, unsure * HOP / RATE)

    def _hears(self, mel: np.ndarray, at: int) -> Cache:
        part = mel[at : at + FRAMES]
        quiet = np.full((FRAMES - len(part), mel.shape[1]), _quiet(mel), np.float32)
        frames = mx.array(np.concatenate([part, quiet]))[None]
        encoder, decoder = self.network.encoder, self.network.decoder
        return decoder.hears(encoder(frames.astype(encoder.conv1.weight.dtype)))

    def _language(self, mel: np.ndarray, given: str | None) -> str:
        """The one of the whole song; windows where nobody speaks count less."""
        known = self.tokens.languages
        if not known:
            return "en"
        if given is not None:
            if given not in known:
                raise DataError(f"this Whisper knows no language {given!r}; leave it out to have it guessed")
            return given
        codes, total = list(known), np.zeros(len(known))
        for at in range(0, len(mel), FRAMES):
            logits, _ = self.network.decoder(mx.array([[self.tokens.start]]), self._hears(mel, at))
            row = np.array(mx.softmax(logits[0, -1]))
            chosen = row[[known[code] for code in codes]]
            total += (1 - row[self.tokens.silence]) * chosen / chosen.sum()
        return codes[int(total.argmax())]

    def _window(self, mel: np.ndarray, at: int, language: str) -> tuple[list[Line], int]:
        """The lines of thirty seconds, none where they are not sure, and how many frames they are of."""
        length = min(FRAMES, len(mel) - at)
        tokens, logprob = self._decode(self._hears(mel, at), language)
        spans, used = _spans(tokens, self.tokens.first_time, length)
        texts = [(start, stop, self._tokenizer.decode(text).strip()) for start, stop, text in spans]
        whole = "\n".join(text for *_, text in texts).encode()
        if logprob < SUREST or len(whole) > LOOPING * len(zlib.compress(whole)):
            return [], length
        sung = [one for one in texts if any(character.isalpha() for character in one[2])]
        return [Line(at + start, at + stop, text, logprob) for start, stop, text in sung], used

    def _decode(self, heard: Cache, language: str) -> tuple[list[int], float]:
        """The likeliest tokens, one after the other, and the mean of their log-probabilities."""
        known = self.tokens
        prompt = [known.start]
        if known.languages and known.transcribe is not None:
            prompt += [known.languages[language], known.transcribe]
        found: list[int] = []
        total, given, cache = 0.0, prompt, None
        for _ in range(self.network.config.max_target_positions // 2):
            logits, cache = self.network.decoder(mx.array([given]), heard, cache)
            row = np.array(logits[0, -1])
            known.mask(row, found)
            best = int(row.argmax())
            total -= math.log(np.exp(row - row[best]).sum())
            if best == known.end:
                break
            found.append(best)
            given = [best]
        return found, total / (len(found) + 1)


def _quiet(mel: np.ndarray) -> float:
    """What silence is in a song's spectrogram."""
    return float(mel.max()) - 2.0


def _spans(tokens: list[int], first_time: int, length: int) -> tuple[list[tuple[int, int, list[int]]], int]:
    """Lines as (start, stop, tokens), in frames of a window of `length`, and where the next window begins:
    at the line that is not finished, if there is one before it.
    """
    lines, text, start, at = [], list[int](), 0, 0
    for token in tokens:
        if token < first_time:
            text.append(token)
            continue
        at = min(length, (token - first_time) * TICK)
        if text:
            lines.append((start, at, text))
            text = []
        start = at
    closed = len(tokens) >= 2 and tokens[-1] >= first_time and tokens[-2] < first_time
    if text and not lines:
        lines.append((start, length, text))
    elif not closed and 0 < start < length and lines:
        return lines, start
    return lines, length


def _transcript(lines: list[Line], language: str, unsure: float) -> Transcript:
    kept = list(_without_repeats(lines))
    rows: list[str] = []
    for before, line in zip([None, *kept], kept, strict=False):
        if before is not None and (line.start - before.stop) * HOP / RATE >= STANZA:
            rows.append("")
        rows.append(line.text)
    confidence = math.exp(sum(line.logprob for line in kept) / len(kept)) if kept else 0.0
    return Transcript("\n".join(rows), language, confidence, unsure, len(lines) - len(kept))


def _without_repeats(lines: list[Line]) -> Iterator[Line]:
    said = ""
    for line in lines:
        plain = "".join(c for c in line.text.casefold() if c.isalnum())
        if plain != said:
            yield line
        said = plain
