"""The self-supervised loss: what the transformer has in the middle points where an encoder's features point.

P = mean over the features' frames of 1 − cosine similarity, between 0 and 2; the transformer's frames are
interpolated linearly onto the features'. Upstream interpolates a batch's padding along; here each song's own
frames are used, so that a song's loss does not depend on the others. float32.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from .encoders import length_of
from .projectors import Projectors


def interpolation(T: int, L: int, frames: mx.array, lengths: mx.array) -> mx.array:
    """(B, L, T): rows are the weights that frames have in each of a song's features (align_corners = False).

    frames, lengths (B,): how many of the T frames and L features are a song's. A matrix, and no gather: the
    gradient is then a product too, and the same in every run.
    """
    frames, lengths = (n.astype(mx.float32)[:, None] for n in (frames, mx.maximum(lengths, 1)))
    place = (mx.arange(L, dtype=mx.float32) + 0.5) * (frames / lengths) - 0.5  # [B, L]
    place = mx.clip(place, 0, frames - 1)
    return mx.maximum(1 - mx.abs(place[..., None] - mx.arange(T, dtype=mx.float32)), 0)


def _unit(x: mx.array) -> mx.array:
    """Rows of length 1; a row of zeros stays one."""
    return x * mx.rsqrt(mx.maximum(mx.sum(mx.square(x), axis=-1, keepdims=True), 1e-24))


def distances(projected: mx.array, features: mx.array, frames: mx.array, lengths: mx.array) -> mx.array:
    """P (B,) of projected frames (B, T, d) and features (B, L, d); 0 for a song without features."""
    T, L = projected.shape[1], features.shape[1]
    student = _unit(interpolation(T, L, frames, lengths) @ projected)
    teacher = _unit(features.astype(mx.float32))
    sizes = [mx.sum(mx.square(x), axis=-1) + 1e-12 for x in (student, teacher)]
    cosine = mx.sum(student * teacher, axis=-1) * mx.rsqrt(sizes[0] * sizes[1])  # [B, L]
    counts = (mx.arange(L) < lengths[:, None]).astype(mx.float32)
    return mx.sum((1 - cosine) * counts, axis=1) / mx.maximum(lengths, 1).astype(mx.float32)


@dataclass(frozen=True)
class Alignment:
    """The loss of a run: see `families.protocol.Auxiliary`. encoders: by name."""

    projectors: Projectors
    weight: float
    encoders: tuple[str, ...]

    @property
    def parts(self) -> tuple[str, ...]:
        """`ssl/mert`, `ssl/m-hubert`."""
        return tuple(f"ssl/{name}" for name in self.encoders)

    def __call__(
        self, model: nn.Module, batch: Mapping[str, mx.array], run: Callable[[], mx.array]
    ) -> tuple[mx.array, dict[str, mx.array]]:
        """losses + weight · the mean of P over the encoders whose features a song has."""
        with model.watched() as hidden:
            losses = run()
        frames = mx.sum(batch["latent_mask"], axis=1)
        total, count, parts = mx.zeros_like(losses), mx.zeros_like(losses), {}
        for name in self.encoders:
            lengths = batch[length_of(name)]
            tapped = self.projectors(name, hidden[self.projectors.taps[name].depth])
            found = distances(tapped, batch[name], frames, lengths)
            there = (lengths > 0).astype(mx.float32)
            total, count = total + found, count + there
            parts[f"ssl/{name}"] = mx.sum(found) / mx.maximum(mx.sum(there), 1)
        return losses + self.weight * total / mx.maximum(count, 1), parts


def losses_of_songs(
    model: nn.Module, projectors: Projectors, call: Mapping[str, Any], ssl_hidden_states: Mapping[str, Any]
) -> dict[str, mx.array]:
    """P (B,) of each encoder that is given, of features (L, d) for each song; call: the model's arguments."""
    B = call["hidden_states"].shape[0]
    for name, songs in ssl_hidden_states.items():
        if name not in projectors.taps:
            raise ValueError(f"ssl_hidden_states has {name!r}; the model knows {', '.join(projectors.taps)}")
        width, shapes = projectors.taps[name].width, [tuple(mx.array(one).shape) for one in songs]
        if len(shapes) != B or any(len(one) != 2 or not one[0] or one[1] != width for one in shapes):
            raise ValueError(f"ssl_hidden_states[{name!r}] must be {B} arrays (L, {width}), got {shapes}")
    found: dict[str, list[mx.array]] = {name: [] for name in ssl_hidden_states}
    for b in range(B):
        with model.watched() as hidden:
            model(**_alone(call, b))  # lazily: blocks behind the tap are never run
        for name, songs in ssl_hidden_states.items():
            tapped, features = hidden[projectors.taps[name].depth], mx.array(songs[b])[None]
            lengths = (mx.array([tapped.shape[1]]), mx.array([features.shape[1]]))
            found[name].append(distances(projectors(name, tapped), features, *lengths))
    return {name: mx.concatenate(parts) for name, parts in found.items()}


#: of a call's masks: the arguments that are as long, by their axis
_PADDED = {
    "attention_mask": {"hidden_states": -1},
    "text_attention_mask": {"encoder_text_hidden_states": 1},
    "lyric_mask": {"lyric_token_idx": 1, "lyric_states": 1},
}


def _alone(call: Mapping[str, Any], b: int) -> dict[str, Any]:
    """The arguments of song b alone, without what its masks leave out at the end."""
    own = {name: mx.array(value)[b : b + 1] for name, value in call.items() if value is not None}
    for mask, padded in _PADDED.items():
        counting = np.flatnonzero(np.array(own[mask][0])) if mask in own else np.zeros(0)
        for name, axis in {mask: 1, **padded}.items():
            if mask in own and name in own:
                last = int(counting[-1]) + 1 if len(counting) else 0
                own[name] = mx.split(own[name], [last], axis=axis)[0]
    return {"attention_mask": None, **own}
