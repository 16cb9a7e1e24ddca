"""What activations of a training step take. The factors are counted from the layers, not fitted to measured
peaks yet: an estimate from them is a guess.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from ..protocol import Folder, Load
from .dit import TransformerConfig
from .layers import SCORES_AT_ONCE
from .prompt import MAX_LYRIC_TOKENS, MAX_TEXT_TOKENS, format_prompt

LYRIC_TOKENS_PER_SECOND = 3.0  # what a song has unless the data says
LETTERS_PER_TOKEN = 3.5  # of Latin script; of others a letter is a token or so
FIRST_KEPT = 0.4  # of what a layer keeps, the part that one without checkpointing adds, as in v1
TIMBRE = 1  # row of the conditions


@dataclass(frozen=True)
class Factors:
    """What each of `terms` is multiplied by; counted: arrays of that kind at the worst moment."""

    tokens: float = 14.0  # of the width: normed, modulated and added to, of three parts, and gradients
    heads: float = 8.0  # of the queries' width: before and after norm and turning, and gradients
    gated: float = 5.0  # of the MLP's width: gate, up, their product, and gradients
    scores: float = 3.0  # scores, their softmax, and its gradient
    kept: float = 0.6  # share of a layer's arrays that stay for the backward pass
    conditions: float = 4.0  # rows, what they are embedded to, and their gradient


COUNTED = Factors()


def terms(config: TransformerConfig, load: Load, size: int) -> dict[str, float]:
    """What the factors multiply, in bytes. `size`: of an activation.

    tokens: B·L·D, L = ⌈frames / patch⌉; heads: B·L·H·Dh; gated: B·L·F; scores: of the attention that has
    most; conditions: B·S·D.
    """
    B, L, D = load.batch, -(-load.frames // config.patch_size), config.hidden_size
    S, H = load.text + TIMBRE + load.lyrics, config.num_attention_heads
    whole = B * H * L * max(L, S)
    if whole > SCORES_AT_ONCE:  # then the heads of one group at a time
        whole //= config.num_key_value_heads
    sliding = B * H * L * min(L, 3 * config.sliding_window)
    return {
        "tokens": float(B * L * D * size),
        "heads": float(B * L * H * config.head_dim * size),
        "gated": float(B * L * config.intermediate_size * size),
        "scores": float(max(whole, sliding) * size),
        "conditions": float(B * S * D * size),
    }


def activations(
    config: TransformerConfig, load: Load, size: int, checkpointed: int, factors: Factors = COUNTED
) -> float:
    """Bytes in the backward pass of a layer, with what the others keep: all or, checkpointed, their input."""
    found = terms(config, load, size)
    layer: float = sum(getattr(factors, name) * found[name] for name in ("tokens", "heads", "gated"))
    free = config.num_hidden_layers - checkpointed
    keeping = max(FIRST_KEPT * free, free - 1.0)  # what the layer in work keeps is counted already
    given = 4.0 * load.batch * load.frames * config.in_channels  # the batch and its noise, float32
    return (
        layer * (1 + factors.kept * keeping)
        + factors.scores * found["scores"]
        + checkpointed * found["tokens"]
        + factors.conditions * found["conditions"]
        + 2 * given
    )


class StepMemory:
    """See `families.protocol.StepMemory`."""

    def __init__(self, frame_rate: float) -> None:
        self.frame_rate = frame_rate

    def load(self, seconds: float, batch: int = 1, lyrics: int | None = None) -> Load:
        """A song of so many seconds with as many lyrics as such a song tends to have."""
        tokens = round(seconds * LYRIC_TOKENS_PER_SECOND) if lyrics is None else lyrics
        tokens = min(tokens, MAX_LYRIC_TOKENS)
        return Load(round(seconds * self.frame_rate), batch, MAX_TEXT_TOKENS, tokens)

    def activations(self, config: TransformerConfig, load: Load, size: int, checkpointed: int) -> float:
        """Bytes at the worst moment."""
        return activations(config, load, size, checkpointed)

    def kept(self, load: Load, trained: Iterable[str]) -> dict[str, float]:
        """Nothing: conditions are cached on disk."""
        return {}

    def lyric_counter(self, folder: Folder | None) -> Callable[[str], int]:
        """Tokens of lyrics with what stands around them: counted with the model's tokenizer, or guessed."""
        if folder is None:
            return _guessed_tokens
        tokenizer = folder.prompt_tokenizer()
        return lambda lyrics: int(tokenizer([format_prompt("", lyrics)[1]], MAX_LYRIC_TOKENS)[0].shape[1])


def _guessed_tokens(text: str) -> int:
    text = format_prompt("", text)[1]
    plain = sum(character.isascii() for character in text)
    return min(MAX_LYRIC_TOKENS, round(plain / LETTERS_PER_TOKEN + (len(text) - plain)))
