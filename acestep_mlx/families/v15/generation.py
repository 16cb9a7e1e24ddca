"""Songs of ACE-Step 1.5: what the model is told, and its velocity under that.

Beside the noisy latents the transformer sees a context: latents of what is given of the song, silence where
nothing is, and where it is to make something. It makes the whole song anew, the given part too. Guidance
leads away from a learned null condition. Source: `AceStepPipeline` of diffusers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from ...config.request import Request
from ...errors import ConfigError
from ...formatting import count
from ...nn.windows import rows_side_by_side
from ...text.detect import detect_lines
from ...text.sheet import Sheet, untimed
from ..protocol import Folder, LatentSpec, LyricsQuestion, Models, SongSettings
from . import schedule as levels
from . import song_facts
from .conditions import tiled
from .config import kinds
from .dit import TransformerConfig
from .latents import LATENTS
from .layers import KeysValues
from .prompt import INSTRUCTIONS, MAX_LYRIC_TOKENS, MAX_TEXT_TOKENS, format_prompt
from .songs import INSTRUMENTAL, UNCUT, UNKNOWN_LANGUAGE
from .texts import TextTokenizer

#: task → the one whose instruction the model reads
TASKS = {
    "text2music": "text2music", "retake": "text2music", "audio2audio": "text2music", "repaint": "repaint",
    "extend": "repaint", "cover": "cover",
}  # fmt: skip
#: what the model is told of a song → the setting that says it
FACTS = {
    "bpm": "bpm", "keyscale": "keyscale", "timesignature": "timesignature", "language": "vocal_language",
}  # fmt: skip
STEPS, TURBO_STEPS, GUIDANCE = 50, 8, 7.0
ANY_SIZE = 1 << 31  # of the vocabulary of a model that is not there
#: settings of other models → why they change nothing
IDLE = {
    **dict.fromkeys(("erg_tag", "erg_lyric", "erg_diffusion"), "ACE-Step 1.5 has no ERG"),
    **dict.fromkeys(
        ("guidance_scale_text", "guidance_scale_lyric"), "ACE-Step 1.5 has one condition for both"
    ),
    "negative_prompt": "ACE-Step 1.5 is guided away from a learned null",
    "guidance_interval": "ACE-Step 1.5 takes cfg_interval_start and cfg_interval_end",
    "omega": "ACE-Step 1.5 has no granularity",
    "lyrics_language": "ACE-Step 1.5 takes vocal_language",
    **dict.fromkeys(
        ("edit_prompt", "edit_lyrics", "edit_begin", "edit_end", "edit_samples"), "ACE-Step 1.5 has no edit"
    ),
}
GUIDED = (
    "guidance", "guidance_scale", "guidance_decay", "min_guidance_scale", "cfg_interval_start",
    "cfg_interval_end", "zero_steps", "zero_init",
)  # fmt: skip


def is_turbo(config: TransformerConfig) -> bool:
    """Whether the model was distilled with guidance, for few steps."""
    return config.is_turbo or any(kind.endswith("turbo") for kind in kinds(config))


def settings(folder: Folder | None) -> SongSettings:
    """Of a model; without one, of base."""
    turbo = folder is not None and is_turbo(folder.component_config("transformer"))
    return SongSettings(
        tasks=tuple(TASKS),
        defaults={
            "steps": TURBO_STEPS if turbo else STEPS,
            "guidance_scale": 1.0 if turbo else GUIDANCE,
            "guidance_interval": 1.0,
            "omega": 0.0,
            "lyrics": INSTRUMENTAL,
        },
        literal={"duration": 60.0, "vocal_language": "en"},
        idle=IDLE | (dict.fromkeys(GUIDED, "turbo models have guidance in their weights") if turbo else {}),
        idle_in={
            "repaint": dict.fromkeys(("variance", "retake_seeds"), "ACE-Step 1.5 makes the section anew")
        },
        read=read_facts,
    )


def read_facts(values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with tempo, key, metre and language in the form of a data set; ConfigError for others."""
    asked = {name: values[setting] for name, setting in FACTS.items() if setting in values}
    found = song_facts.read(asked)
    if found.problems:
        raise ConfigError(found.problems[0])
    return {**values, **{FACTS[name]: value for name, value in found.values.items()}}


@dataclass(frozen=True)
class Conditions:
    """What the model is told.

    prompt: states (1, S, D), and for a weaker cover those of its prompt as of a new song. null: (1, 1, D), a
    condition that is left out. silence: latents of it, (frames) → (1, frames, C).
    """

    prompt: mx.array
    plain: mx.array | None
    null: mx.array
    silence: Callable[[int], mx.array]


def texts(request: Request, instruction: str | None = None) -> tuple[str, str]:
    """The two strings that the model reads of a request, or with another instruction."""
    bpm = request.bpm
    lyrics = sung(request).text
    return format_prompt(
        request.prompt,
        lyrics,
        language_of(lyrics) if request.vocal_language == "auto" else request.vocal_language,
        request.duration,
        instruction or request.instruction or INSTRUCTIONS[TASKS[request.task]],
        bpm=int(bpm) if bpm is not None and bpm == int(bpm) else bpm,
        keyscale=request.keyscale,
        timesignature=request.timesignature,
    )


def sung(request: Request) -> Sheet:
    """The request's lyrics without time stamps, and what was left out."""
    sheet = untimed(request.lyrics)
    return (
        Sheet(INSTRUMENTAL, [*sheet.notes, "nothing is left to sing"])
        if sheet.notes and not sheet.text
        else sheet
    )


def language_of(lyrics: str) -> str:
    """What most of the lyrics are in, counted in letters; their marks in brackets are nobody's language."""
    lines = [line for line in lyrics.splitlines() if line.strip() and not line.strip().startswith("[")]
    letters: Counter[str] = Counter()
    for line, guess in zip(lines, detect_lines(lines), strict=True):
        letters[guess.language] += sum(map(str.isalpha, line))
    return letters.most_common(1)[0][0] if letters.total() else UNKNOWN_LANGUAGE


def read(request: Request, models: Models) -> Conditions:
    """Encode the request's texts; the timbre is that of silence, a song without a reference."""
    conditions = models.component("condition_encoder")
    prompt = encode(texts(request), models)
    plain = encode(texts(request, INSTRUCTIONS["text2music"]), models) if _is_weaker_cover(request) else None
    silence = conditions.silence_latent
    mx.eval(prompt, plain, conditions.null_condition_emb, silence)
    null = conditions.null_condition_emb
    return Conditions(prompt, plain, null, lambda frames: tiled(silence, frames))


def _is_weaker_cover(request: Request) -> bool:
    return request.task == "cover" and request.cover_strength < 1


def encode(both: tuple[str, str], models: Models) -> mx.array:
    """The two strings of a song → (1, S, D)."""
    text, lyrics = both
    conditions, encoder = models.component("condition_encoder"), models.text_encoder
    ids, mask = models.prompt_tokenizer([text], MAX_TEXT_TOKENS)
    lyric_ids, lyric_mask = models.prompt_tokenizer([lyrics], MAX_LYRIC_TOKENS)
    found: tuple[mx.array, mx.array] = conditions(
        encoder(input_ids=ids, attention_mask=mask),
        mask,
        encoder.embed_tokens(lyric_ids),
        lyric_mask,
        conditions.silent_reference(),
        mx.zeros((1,), dtype=mx.int32),
    )
    return found[0]


def remarks(request: Request, models: Models) -> list[str]:
    """What of the lyrics was left out, texts that are cut, and the language that was found."""
    sheet = sung(request)
    found = [f"lyrics: {note}" for note in sheet.notes]
    for name, text, most in zip(
        ("prompt", "lyrics"), texts(request), (MAX_TEXT_TOKENS, MAX_LYRIC_TOKENS), strict=True
    ):
        tokens = models.prompt_tokenizer([text], UNCUT)[0].shape[1]
        if tokens > most:
            found.append(f"{name}: cut to {most} of {tokens} tokens")
    if request.vocal_language == "auto" and (code := language_of(sheet.text)) != UNKNOWN_LANGUAGE:
        found.append(f"lyrics: taken for {code}; vocal_language says it otherwise")
    return found


def source(request: Request, encoded: Any, models: Models) -> mx.array:
    """Latents (1, T, C) of a song to start from, the mean of what the autoencoder says; for a cover as its
    semantic tokens have them."""
    latents: mx.array = encoded[0] if isinstance(encoded, tuple) else encoded
    if request.task != "cover":
        return latents
    silence = models.component("condition_encoder").silence_latent
    quantized, _ = models.component("audio_tokenizer")(latents, silence)
    covered: mx.array = models.component("audio_token_detokenizer")(quantized)
    covered = covered[:, : latents.shape[1]].astype(mx.float32)
    mx.eval(covered)
    return covered


class Velocity:
    """The model's velocity for a fixed set of conditions, as one compiled function of latents and time.

    keys_values: of each layer, a row for each of the batch. context: frames → (1, frames, 2C).
    """

    def __init__(
        self,
        transformer: nn.Module,
        keys_values: Sequence[KeysValues],
        context: Callable[[int], mx.array],
    ) -> None:
        self._transformer, self._keys_values, self._context = transformer, list(keys_values), context
        mx.eval(transformer.parameters(), self._keys_values)

        def run(
            latents: mx.array, time: mx.array, context: mx.array, keys_values: list[KeysValues]
        ) -> mx.array:
            rows = latents.shape[0]
            velocity: mx.array = transformer(
                latents, time, time, None, mx.broadcast_to(context, (rows, *context.shape[1:])),
                cross_kv=keys_values,
            )  # fmt: skip
            return velocity.astype(mx.float32)

        self._run = mx.compile(run)

    def part(self, start: int, stop: int) -> Velocity:
        """The same conditions for rows start … stop - 1 only; keys and values are shared, not computed."""
        return Velocity(
            self._transformer, [(k[start:stop], v[start:stop]) for k, v in self._keys_values], self._context
        )

    def __call__(self, latents: mx.array, sigma: float) -> mx.array:
        """latents (rows, T, C) float32 at noise level sigma → velocity of the same shape, float32."""
        rows, T, _ = latents.shape
        time, context = mx.full((rows,), sigma), self._context(T)

        def some(part: slice) -> mx.array:
            keys_values = [(k[part], v[part]) for k, v in self._keys_values]
            return self._run(latents[part], time[part], context, keys_values)

        return rows_side_by_side(some, rows)


@dataclass(frozen=True)
class Conditioned:
    """The transformer with what a request asks for: see `families.protocol.Conditioned`."""

    transformer: nn.Module
    conditions: Conditions
    request: Request

    schedule = levels
    norm_axes = (-2,)  # over time, each channel by itself
    told = True
    # Two branches of six minutes, or a dozen songs of 30 s with two.
    frames_at_once = 18000

    @property
    def latents(self) -> LatentSpec:
        """With the channels of this model; miniatures have fewer."""
        return replace(LATENTS, shape=(None, self.transformer.config.audio_acoustic_hidden_dim))

    def silence(self, frames: int) -> mx.array:
        """Latents (1, frames, C) of silence."""
        return self.conditions.silence(frames)

    def velocity(self, branches: int, songs: int, given: Any = None) -> Velocity:
        """Rows of the prompt, then of the null condition."""
        prompt = self.conditions.prompt
        rows = [(prompt, songs), (self.conditions.null, songs * (branches - 1))]
        return self._velocity([row for row in rows if row[1]], given)

    def beside(self, songs: int, given: Any = None) -> tuple[Velocity, float] | None:
        """Of a weaker cover: the velocity of the same song as a new one, and how much that one counts."""
        if self.conditions.plain is None:
            return None
        return self._velocity([(self.conditions.plain, songs)], given), 1 - self.request.cover_strength

    def _velocity(self, rows: Sequence[tuple[mx.array, int]], given: Any) -> Velocity:
        """states (1, S, D) and for how many rows; one of a single state is as long as the longest."""
        longest = max(states.shape[1] for states, _ in rows)
        of_rows = [self.transformer.cross_kv(states) for states, _ in rows]
        keys_values = []
        for layer in zip(*of_rows, strict=True):  # one at a time, so that nothing is kept twice
            wide = [
                [mx.broadcast_to(x, (count, x.shape[1], longest, x.shape[3])) for x in kv]
                for kv, (_, count) in zip(layer, rows, strict=True)
            ]
            k, v = (mx.concatenate([one[i] for one in wide]) for i in (0, 1))
            mx.eval(k, v)
            keys_values.append((k, v))
        return Velocity(self.transformer, keys_values, lambda frames: self._context(frames, given))

    def _context(self, frames: int, given: Any) -> mx.array:
        """(1, frames, 2C): what is given, and 1 where the model is to make something."""
        if given is None:
            source = self.silence(frames).astype(mx.float32)
            return mx.concatenate([source, mx.ones_like(source)], axis=-1)
        return mx.concatenate([given.source[:1], given.free[:1]], axis=-1).astype(mx.float32)


def lyrics_report(asked: LyricsQuestion) -> list[str]:
    """How many tokens the lyrics have, with the model's tokenizer or the one that is given."""
    named = asked.language or language_of(asked.text)
    read = [f"read as they are written, after the line {named!r}"]
    if asked.given is not None:
        tokenizer = TextTokenizer(asked.given, ANY_SIZE)
    elif asked.folder is not None:
        tokenizer = asked.folder.prompt_tokenizer()
    else:
        return [*read, "name the model to count tokens: --model MLX_FOLDER"]
    tokens = tokenizer([format_prompt("", asked.text, named)[1]], UNCUT)[0].shape[1]
    cut = f", cut to {MAX_LYRIC_TOKENS}" if tokens > MAX_LYRIC_TOKENS else ""
    return [*read, f"{count(tokens, 'token')} of at most {MAX_LYRIC_TOKENS}{cut}"]
