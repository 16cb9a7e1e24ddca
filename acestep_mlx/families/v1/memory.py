"""What activations of a training step take: one term per kind of array that is alive at the worst moment.

The coefficients are fitted to measured peaks by `benchmarks/memory.py`, which prints them and their error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import prod

from ..protocol import Folder, Load, Product
from . import lyric_states
from .dit import TransformerConfig
from .latents import LATENTS
from .lyrics.tokenizer import MAX_TOKENS

TEXT_TOKENS, LYRIC_TOKENS_PER_SECOND = 256, 3.2  # what a song has unless the data says
LETTERS_PER_TOKEN = 3.5  # of a caption


@dataclass(frozen=True)
class Coefficients:
    """What each of `features` is multiplied by for one size of activations; benchmarks/memory.py fits it."""

    frames: float
    scores: float
    kept: float
    kept_scores: float
    lyric_scores: float
    lyrics: float


#: By the bytes of an activation: in float32 more is held at once, as nothing is made smaller on the way.
FITTED = {
    2: Coefficients(frames=6.96, scores=4.90, kept=2.43, kept_scores=1.63, lyric_scores=11.1, lyrics=7.12),
    4: Coefficients(frames=9.6, scores=5.35, kept=1.52, kept_scores=2.04, lyric_scores=9.51, lyrics=10.1),
}
FIRST_KEPT = 0.4  # of what a block keeps, the part that one without checkpointing adds among others with it
LYRICS_KEPT = 1.6  # without any checkpointing the lyric encoder keeps its layers too


def features(config: TransformerConfig, load: Load, size: int, checkpointed: int) -> dict[str, float]:
    """What the coefficients multiply, in bytes. `size`: of an activation; D width, F feed-forward width.

    frames: arrays of the block in work over the frames, B·T·(2F + 4D); scores: its cross-attention's,
    B·H·T·S; kept and kept_scores: the same of each other block that is not checkpointed; lyric_scores,
    lyrics: the lyric encoder's attention and its layers. (`block_inputs` adds what the others keep.)
    """
    B, T, M = load.batch, load.frames, load.lyrics
    S = 1 + load.text + M
    frames = B * T * (2.0 * config.ff_dim + 4 * config.dim) * size
    scores = float(B * config.num_attention_heads * T * S * size)
    free = config.num_layers - checkpointed
    kept = max(FIRST_KEPT * free, free - 1.0)  # what the block in work keeps, frames and scores count
    return {
        "frames": frames,
        "scores": scores,
        "kept": kept * frames,
        "kept_scores": kept * scores,
        "lyric_scores": B * config.lyric_encoder_heads * M * (2.0 * M) * size,
        "lyrics": B * M * config.lyric_hidden_size * 4.0 * size,
    }


def activations(config: TransformerConfig, load: Load, size: int, checkpointed: int) -> float:
    """Bytes at the worse of two moments: the backward pass of a block, and that of the lyric encoder."""
    terms: dict[str, float] = {
        name: getattr(FITTED[size], name) * value
        for name, value in features(config, load, size, checkpointed).items()
    }
    lyrics = terms.pop("lyric_scores") + terms.pop("lyrics")
    block = block_inputs(config, load, size, checkpointed) + sum(terms.values())
    return max(block, lyrics if checkpointed else LYRICS_KEPT * lyrics)


def block_inputs(config: TransformerConfig, load: Load, size: int, checkpointed: int) -> float:
    """Bytes that checkpointed blocks keep: the frames they were given, and the conditions' gradient."""
    tokens = load.frames + 1 + load.text + load.lyrics
    return checkpointed * load.batch * tokens * config.dim * float(size)


class StepMemory:
    """See `families.protocol.StepMemory`."""

    def __init__(self, frame_rate: float) -> None:
        self.frame_rate = frame_rate

    def load(self, seconds: float, batch: int = 1, lyrics: int | None = None) -> Load:
        """A song of so many seconds with as many lyrics as such a song tends to have."""
        tokens = round(seconds * LYRIC_TOKENS_PER_SECOND) if lyrics is None else lyrics
        return Load(round(seconds * self.frame_rate), batch, TEXT_TOKENS, tokens)

    def activations(self, config: TransformerConfig, load: Load, size: int, checkpointed: int) -> float:
        """Bytes at the worst moment."""
        return activations(config, load, size, checkpointed)

    def products(self, config: TransformerConfig, load: Load) -> Sequence[Product]:
        """Both attentions', and the feed-forward's."""
        D, F, T = config.dim, config.ff_dim, load.batch * load.frames
        S = load.batch * (1 + load.text + load.lyrics)
        attentions = [Product(T, D, D)] * 6 + [Product(S, D, D)] * 2
        return [*attentions, Product(T, D, 2 * F), Product(T, F, D)]

    def told(self, config: TransformerConfig, load: Load, size: int) -> float:
        """Keys and values of each block."""
        tokens = load.batch * (1 + load.text + load.lyrics)
        return 2.0 * config.num_layers * tokens * config.dim * size

    def tokens(self, config: TransformerConfig, load: Load) -> int:
        """The frames."""
        return load.batch * load.frames

    def kept(self, load: Load, trained: Iterable[str]) -> dict[str, float]:
        """Encoded lyrics, unless what encodes them is among the `trained` modules."""
        if not load.lyrics or lyric_states.trained(trained):
            return {}
        return {"encoded lyrics, at most": float(lyric_states.MAX_BYTES)}

    def lyric_counter(self, folder: Folder | None) -> Callable[[str], int]:
        """Tokens of lyrics: counted with the model's vocabulary, guessed without."""
        if folder is None:
            return _guessed_tokens
        tokenizer = folder.lyric_tokenizer()
        return lambda lyrics: len(tokenizer.tokenize(lyrics))

    def cached(
        self, config: TransformerConfig, frames: int, captions: Sequence[str], lyrics: str | None
    ) -> float:
        """Latents and states of captions in half precision, ids of lyrics."""
        states = sum(min(TEXT_TOKENS, len(one) / LETTERS_PER_TOKEN + 2) for one in captions)
        ids = 4.0 * _guessed_tokens(lyrics or "")
        return 2.0 * (prod(LATENTS.of(frames)) + states * config.text_embedding_dim) + ids


def _guessed_tokens(text: str) -> int:
    """Lyric tokens as a letter tends to take them: Latin script half a one, others two and more."""
    plain = sum(character.isascii() for character in text)
    return min(MAX_TOKENS, round(0.6 * plain + 2.5 * (len(text) - plain)))
