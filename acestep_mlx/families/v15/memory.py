"""What activations of a training step take: one term per kind of array that is alive at the worst moment.

The coefficients are fitted to measured peaks by `benchmarks/memory.py`, which prints them and their error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from ..protocol import Folder, Load, Product
from .config import SLIDING
from .dit import TransformerConfig
from .latents import LATENTS
from .layers import SCORES_AT_ONCE
from .prompt import MAX_LYRIC_TOKENS, MAX_TEXT_TOKENS, format_prompt

LYRIC_TOKENS_PER_SECOND = 3.0  # what a song has unless the data says
LETTERS_PER_TOKEN = 3.5  # of Latin script; of others a letter is a token or so
FIRST_KEPT = 0.4  # of what a layer keeps, the part that one without checkpointing adds, as in v1
TIMBRE, NULL = 1, 1  # rows of the conditions


@dataclass(frozen=True)
class Coefficients:
    """What each of `features` is multiplied by for one size of activations; benchmarks/memory.py fits it."""

    layer: float
    scores: float
    states: float
    kept: float
    kept_scores: float
    turn: float
    group: float


#: By the bytes of an activation: in float32 attention on the CPU keeps its weights.
FITTED = {
    2: Coefficients(layer=4.88, scores=1.54, states=5.23, kept=3.95, kept_scores=0.71, turn=4.56, group=3.81),
    4: Coefficients(layer=3.88, scores=1.75, states=4.02, kept=2.56, kept_scores=0.35, turn=5.13, group=4.29),
}


def scores(config: TransformerConfig, load: Load, kind: str) -> tuple[float, float]:
    """Of a layer's attentions: those of all heads at once, and the most of a group where heads take turns."""
    B, L, H = load.batch, -(-load.frames // config.patch_size), config.num_attention_heads
    S, W = load.text + TIMBRE + load.lyrics, config.sliding_window
    at_once, group = 0.0, 0.0
    for keys in (S, 3 * W if kind == SLIDING and L > 3 * W else L):
        count = float(B * H * L * keys)
        if count > SCORES_AT_ONCE:
            group = max(group, count / config.num_key_value_heads)
        else:
            at_once += count
    return at_once, group


def features(config: TransformerConfig, load: Load, size: int, checkpointed: int) -> dict[str, float]:
    """What the coefficients multiply, in bytes. `size`: of an activation.

    layer: arrays of the layer in work over its L tokens, B·L·(2F + 4D + 4·H·Dh), in its MLP; turn: the same
    while groups of heads take turns; scores, group: see `scores`; states: conditions, B·S·(D + 2·Hk·Dh); kept
    and kept_scores: of each other layer that is not checkpointed. (`block_inputs` adds what the others keep.)
    """
    B, L, D = load.batch, -(-load.frames // config.patch_size), config.hidden_size
    Q, KV = (n * config.head_dim for n in (config.num_attention_heads, config.num_key_value_heads))
    layer = B * L * (2.0 * config.intermediate_size + 4 * D + 4 * Q) * size
    kinds = [scores(config, load, kind) for kind in config.kinds]
    at_once, group = max(kinds, key=sum)
    free = config.num_hidden_layers - checkpointed
    kept = max(FIRST_KEPT * free, free - 1.0)  # what the layer in work keeps, `layer` and `scores` count
    return {
        "layer": layer,
        "scores": at_once * size,
        "states": B * (load.text + TIMBRE + load.lyrics) * (D + 2.0 * KV) * size,
        "kept": kept * layer,
        "kept_scores": kept * sum(of_all for of_all, _ in kinds) / len(kinds) * size,
        "turn": layer if group else 0.0,
        "group": group * size,
    }


def activations(config: TransformerConfig, load: Load, size: int, checkpointed: int) -> float:
    """Bytes at the worse of two moments of a layer's backward pass: its MLP, and heads that take turns."""
    terms: dict[str, float] = {
        name: getattr(FITTED[size], name) * value
        for name, value in features(config, load, size, checkpointed).items()
    }
    moments = terms.pop("layer"), terms.pop("turn") + terms.pop("group")
    return block_inputs(config, load, size, checkpointed) + max(moments) + sum(terms.values())


def block_inputs(config: TransformerConfig, load: Load, size: int, checkpointed: int) -> float:
    """Bytes of the tokens that checkpointed layers keep, as they were given."""
    tokens = -(-load.frames // config.patch_size)
    return checkpointed * load.batch * tokens * config.hidden_size * float(size)


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

    def products(self, config: TransformerConfig, load: Load) -> Sequence[Product]:
        """Both attentions', and the MLP's."""
        D, F, L = config.hidden_size, config.intermediate_size, self.tokens(config, load)
        Q, KV = (n * config.head_dim for n in (config.num_attention_heads, config.num_key_value_heads))
        S = load.batch * (load.text + TIMBRE + load.lyrics)
        attentions = [Product(L, D, Q), Product(L, Q, D)] * 2 + [Product(L, D, KV), Product(S, D, KV)] * 2
        return [*attentions, *[Product(L, D, F)] * 2, Product(L, F, D)]

    def told(self, config: TransformerConfig, load: Load, size: int) -> float:
        """Keys and values of each layer."""
        tokens = load.batch * (load.text + TIMBRE + load.lyrics)
        return 2.0 * config.num_hidden_layers * tokens * config.num_key_value_heads * config.head_dim * size

    def tokens(self, config: TransformerConfig, load: Load) -> int:
        """Patches of frames."""
        return load.batch * -(-load.frames // config.patch_size)

    def kept(self, load: Load, trained: Iterable[str]) -> dict[str, float]:
        """Nothing: conditions are cached on disk."""
        return {}

    def lyric_counter(self, folder: Folder | None) -> Callable[[str], int]:
        """Tokens of lyrics with what stands around them: counted with the model's tokenizer, or guessed."""
        if folder is None:
            return _guessed_tokens
        tokenizer = folder.prompt_tokenizer()
        return lambda lyrics: int(tokenizer([format_prompt("", lyrics)[1]], MAX_LYRIC_TOKENS)[0].shape[1])

    def cached(
        self, config: TransformerConfig, frames: int, captions: Sequence[str], lyrics: str | None
    ) -> float:
        """Mean, deviation and source of the sound, and the conditions, in half precision."""
        sound = 3 * frames * LATENTS.of(1)[-1]
        prompts = sum(_guessed_prompt(one) + TIMBRE + NULL for one in captions)
        rows = prompts + _guessed_tokens(lyrics or "")
        return 2.0 * (sound + rows * (config.encoder_hidden_size or config.hidden_size))


def _guessed_prompt(caption: str) -> float:
    return min(MAX_TEXT_TOKENS, len(format_prompt(caption, "")[0]) / LETTERS_PER_TOKEN)


def _guessed_tokens(text: str) -> int:
    text = format_prompt("", text)[1]
    plain = sum(character.isascii() for character in text)
    return min(MAX_LYRIC_TOKENS, round(plain / LETTERS_PER_TOKEN + (len(text) - plain)))
