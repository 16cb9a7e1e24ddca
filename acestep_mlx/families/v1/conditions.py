"""What the model is told: encoded once for a song, its cross-attention keys and values with it.

A *branch* is one condition under which the model is evaluated: the prompt and lyrics themselves, nothing
(or the weakened or negative condition) and, for double-condition guidance, the text alone. All branches of
all songs of a batch are rows of one evaluation.

ERG (entropy rectifying guidance, arXiv 2504.13987) replaces "nothing" by a weaker version of the condition
or of the model: the query projections of some layers are multiplied by TAU.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn

from ...config.request import TASKS, Request
from ...text.sheet import read_sheet
from ..protocol import Models, SongSettings
from . import schedule as levels
from .latents import LATENTS
from .lyrics.report import remarks as lyric_remarks
from .prompt import MAX_LENGTH

SETTINGS = SongSettings(
    tasks=tuple(task for task in TASKS if task != "cover"),
    defaults={},
    literal={},
    idle={
        **dict.fromkeys(
            ("bpm", "keyscale", "timesignature", "vocal_language", "instruction"),
            "ACE-Step v1 hears of it in the prompt alone",
        ),
        **dict.fromkeys(("cfg_interval_start", "cfg_interval_end"), "ACE-Step v1 takes guidance_interval"),
    },
)
TAU = 0.01
TEXT_BLOCKS = (8, 10)  # of UMT5
LYRIC_LAYERS = (4, 6)  # of the lyric encoder
DIFFUSION_BLOCKS = (15, 20)  # of the transformer


@dataclass(frozen=True)
class Prompt:
    """One song's inputs to the transformer.

    text (1, L, 768) with text_mask (1, L); lyric_ids (1, M) int32 with lyric_mask (1, M). null_text with
    null_mask, if there, is what stands for "no text" (a negative prompt, or the text weakened by ERG);
    otherwise zeros do.
    """

    text: mx.array
    text_mask: mx.array
    lyric_ids: mx.array
    lyric_mask: mx.array
    null_text: mx.array | None = None
    null_mask: mx.array | None = None

    @property
    def null(self) -> tuple[mx.array, mx.array]:
        """Text and mask of the branch without the condition."""
        text = mx.zeros_like(self.text) if self.null_text is None else self.null_text
        return text, self.text_mask if self.null_mask is None else self.null_mask


@dataclass(frozen=True)
class Conditions:
    """What the encoders make of a request: its prompt and, for an edit, the prompt it leads to."""

    prompt: Prompt
    target: Prompt | None = None


def read(request: Request, models: Models) -> Conditions:
    """Encode the request's texts."""
    null: tuple[mx.array, mx.array] | tuple[None, None] = (None, None)
    if request.negative_prompt:
        null = embed(request.negative_prompt, models)
    elif request.erg_tag and request.task != "edit":
        null = embed(request.prompt, models, weakened=True)
    text = embed(request.prompt, models)
    prompt = Prompt(*text, *_lyrics(request.lyrics, request.lyrics_language, models), *null)
    if request.task != "edit":
        return Conditions(prompt)
    new_text = text if request.edit_prompt is None else embed(request.edit_prompt, models)
    lyrics = request.lyrics if request.edit_lyrics is None else request.edit_lyrics
    target = Prompt(*new_text, *_lyrics(lyrics, request.lyrics_language, models), *null)
    return Conditions(prompt, target)


def embed(prompt: str, models: Models, *, weakened: bool = False) -> tuple[mx.array, mx.array]:
    """Text states (1, L, 768) and mask (1, L); `weakened`: as ERG weakens them."""
    ids, mask = models.prompt_tokenizer(prompt)
    scale = (TAU, *TEXT_BLOCKS) if weakened else None
    states = models.text_encoder(ids, mask, query_scale=scale)
    mx.eval(states)
    return states, mask


def _lyrics(lyrics: str, language: str, models: Models) -> tuple[mx.array, mx.array]:
    """Ids and mask (1, M) of lyrics as people write them (`text.sheet`).

    Without lyrics M is 0, where the reference has one token and masks it.
    """
    lyrics = read_sheet(lyrics).text
    if not lyrics:
        return mx.zeros((1, 0), dtype=mx.int32), mx.zeros((1, 0))
    ids = mx.array([models.lyric_tokenizer.tokenize(lyrics, language)], dtype=mx.int32)
    return ids, mx.ones(ids.shape)


def remarks(request: Request, models: Models) -> list[str]:
    """What of the lyrics was changed, and what the model will not hear."""
    lines = []
    for name in ("prompt", "edit_prompt", "negative_prompt"):
        text = getattr(request, name) or ""
        tokens = models.prompt_tokenizer(text, max_length=len(text.encode()) + 2)[0].shape[1]
        if tokens > MAX_LENGTH:
            lines.append(f"{name.replace('_', ' ')}: cut to {MAX_LENGTH} of {tokens} tokens")
    language = None if request.lyrics_language == "auto" else request.lyrics_language
    for name, lyrics in (("lyrics", request.lyrics), ("edit lyrics", request.edit_lyrics)):
        if not lyrics:
            continue
        sheet = read_sheet(lyrics)
        notes = list(sheet.notes)
        if sheet.text:
            report = models.lyric_tokenizer.report(sheet.text, language)
            notes += lyric_remarks(report)
        else:
            notes.append("nothing is left to sing")
        lines += [f"{name}: {note}" for note in notes]
    return lines


class Encoded(NamedTuple):
    """states (1, 1 + L + M, D) and mask (1, 1 + L + M) of one branch of one song."""

    states: mx.array
    mask: mx.array


def encode_branches(
    transformer: nn.Module, prompt: Prompt, *, weaken_lyrics: bool = False, text_alone: bool = False
) -> list[Encoded]:
    """The conditional, the unconditional and, with `text_alone`, the text-only branch of one song.

    Without a condition the lyric ids are 0 but their mask stays, as in the reference. `weaken_lyrics` (ERG)
    keeps the ids and weakens the lyric encoder instead. The reference drops a weakened text unless the
    lyrics are weakened too; here each works by itself.
    """
    scale = (TAU, *LYRIC_LAYERS) if weaken_lyrics else None
    ids = prompt.lyric_ids if weaken_lyrics else mx.zeros_like(prompt.lyric_ids)
    lyrics, idle = (prompt.lyric_ids, prompt.lyric_mask), (ids, prompt.lyric_mask)
    text = (prompt.text, prompt.text_mask)
    branches = [_encode(transformer, text, lyrics), _encode(transformer, prompt.null, idle, scale)]
    return [*branches, _encode(transformer, text, idle, scale)] if text_alone else branches


def encode_plain(transformer: nn.Module, prompt: Prompt) -> list[Encoded]:
    """The two branches of an edit: the condition, and zeros with the lyrics masked away."""
    lyrics = (prompt.lyric_ids, prompt.lyric_mask)
    none = (mx.zeros_like(prompt.lyric_ids), mx.zeros_like(prompt.lyric_mask))
    return [
        _encode(transformer, (prompt.text, prompt.text_mask), lyrics),
        _encode(transformer, prompt.null, none),
    ]


def _encode(
    transformer: nn.Module,
    text: tuple[mx.array, mx.array],
    lyrics: tuple[mx.array, mx.array],
    scale: tuple[float, int, int] | None = None,
) -> Encoded:
    """One branch, of states and mask of the text, ids and mask of the lyrics; no speaker."""
    silent = mx.zeros((1, transformer.config.speaker_embedding_dim))
    return Encoded(*transformer.encode(*text, silent, *lyrics, query_scale=scale))


class Velocity:
    """The model's velocity for a fixed set of conditions, as one compiled function of latents and time.

    rows: one Encoded per row of the batch; equal objects share their keys and values. Keys are computed at
    each row's own length and padded afterwards, so that a row does not depend on the others. `weaken`
    (ERG) names the rows whose queries are multiplied by TAU in DIFFUSION_BLOCKS.
    """

    def __init__(self, transformer: nn.Module, rows: Sequence[Encoded], weaken: Sequence[bool] = ()) -> None:
        distinct = {id(row): row for row in rows}
        mx.eval([row.states for row in rows])
        cross_kv = {key: transformer.cross_kv(row.states) for key, row in distinct.items()}
        longest = max(row.mask.shape[1] for row in rows)
        mask = mx.concatenate([mx.pad(row.mask, [(0, 0), (0, longest - row.mask.shape[1])]) for row in rows])
        self._mask = None if (mask > 0).all().item() else mask
        self._cross_kv = []
        for _ in range(transformer.config.num_layers):  # one block at a time, so that nothing is kept twice
            of_row = {key: blocks.pop(0) for key, blocks in cross_kv.items()}
            parts = [[_padded(of_row[id(row)][part], longest) for row in rows] for part in (0, 1)]
            self._cross_kv.append((mx.concatenate(parts[0]), mx.concatenate(parts[1])))
            mx.eval(self._cross_kv[-1])
        self._factors = [TAU if weak else 1.0 for weak in weaken] or [1.0] * len(rows)
        self._transformer = transformer
        mx.eval(transformer.parameters())
        self._compile()

    def _compile(self) -> None:
        transformer = self._transformer
        factors = mx.array(self._factors, dtype=transformer.dtype)[:, None, None]
        scale = (factors, *DIFFUSION_BLOCKS) if any(f != 1.0 for f in self._factors) else None

        def run(
            latents: mx.array,
            timestep: mx.array,
            mask: mx.array | None,
            cross_kv: Sequence[tuple[mx.array, mx.array]],
        ) -> mx.array:
            velocity: mx.array = transformer.decode(
                latents, None, None, mask, timestep, cross_kv=cross_kv, query_scale=scale
            )
            return velocity.astype(mx.float32)

        self._run = mx.compile(run)

    def part(self, start: int, stop: int) -> Velocity:
        """The same conditions for rows start … stop - 1 only; keys and values are shared, not computed."""
        other = object.__new__(Velocity)
        other._transformer, other._factors = self._transformer, self._factors[start:stop]
        other._mask = None if self._mask is None else self._mask[start:stop]
        other._cross_kv = [(k[start:stop], v[start:stop]) for k, v in self._cross_kv]
        mx.eval(other._cross_kv)
        other._compile()
        return other

    def __call__(self, latents: mx.array, sigma: float) -> mx.array:
        """latents (rows, 8, 16, T) float32 at noise level sigma → velocity of the same shape, float32."""
        timestep = mx.full((latents.shape[0],), sigma * 1000.0)
        return self._run(latents, timestep, self._mask, self._cross_kv)


def _padded(array: mx.array, length: int) -> mx.array:
    """A block's keys or values (B, heads, L, head_dim) with zeros up to `length` tokens."""
    missing = length - array.shape[2]
    return mx.pad(array, [(0, 0), (0, 0), (0, missing), (0, 0)]) if missing else array


@dataclass(frozen=True)
class Conditioned:
    """The transformer with what a request asks for: see `sampling.sample.Model`."""

    transformer: nn.Module
    conditions: Conditions
    request: Request

    latents = LATENTS
    schedule = levels
    norm_axes = (-2, -1)  # channel by channel
    told = False
    # Three branches of 240 s, or ten songs of 30 s with two.
    frames_at_once = 8192

    def silence(self, frames: int) -> mx.array:
        """Zeros, as in the reference."""
        return mx.zeros((1, *LATENTS.of(frames)))

    def beside(self, songs: int, given: Any = None) -> None:
        """Nothing."""

    def velocity(self, branches: int, songs: int, given: Any = None) -> Velocity:
        """Rows of the prompt, or for an edit of the prompt and of the target."""
        if self.request.task == "edit":
            assert self.conditions.target is not None
            prompts = (self.conditions.prompt, self.conditions.target)
            encoded = [one for p in prompts for one in encode_plain(self.transformer, p)[:branches]]
            weaken = [False] * len(encoded)
        else:
            encoded = encode_branches(
                self.transformer,
                self.conditions.prompt,
                weaken_lyrics=self.request.erg_lyric,
                text_alone=branches == 3,
            )[:branches]
            weaken = [i == 1 and self.request.erg_diffusion for i in range(branches)]
        rows = [branch for branch in encoded for _ in range(songs)]
        return Velocity(self.transformer, rows, [weak for weak in weaken for _ in range(songs)])
