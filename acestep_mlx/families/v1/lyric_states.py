"""Encoded lyrics that are kept, where nothing that encodes them is trained.

`acestep_lora_target=attn_qkv`, for one, leaves the lyric embedding and encoder as they are: what they make of
a song's lyrics is the same in every step and has no gradient. Here it is computed when the song is first seen
and handed to the compiled step, padded to the batch's length. `lyric_proj` stays in the step: it is one
product, it may be trained, and its output is wider than its input.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten

#: modules whose training changes a song's states
ENCODED_BY = ("lyric_embs.", "lyric_encoder.")
#: bytes kept at most: about 65,000 lyric tokens of the released model in bfloat16, some hundred songs
MAX_BYTES = 128 << 20


def trained(paths: Iterable[str]) -> bool:
    """Whether one of the trainable `paths` (parameters or modules) changes what lyrics are encoded to."""
    return any(path.startswith(ENCODED_BY) for path in paths)


class LyricStates:
    """Lyric ids → encoded states, each distinct lyrics encoded once while they stay within `max_bytes`."""

    def __init__(self, model: nn.Module, max_bytes: int = MAX_BYTES) -> None:
        self.model, self.max_bytes = model, max_bytes
        self.bytes = 0
        self._kept: OrderedDict[bytes, mx.array] = OrderedDict()  # least recently used first

    @classmethod
    def of(cls, model: nn.Module) -> LyricStates | None:
        """A store for this model, or None where the lyrics have to be encoded in every step."""
        return None if trained(dict(tree_flatten(model.trainable_parameters()))) else cls(model)

    def __call__(self, batch: Mapping[str, mx.array]) -> dict[str, mx.array]:
        """The batch with lyric_states (B, M, H) in the compute dtype, zeros at the padding.

        Tokens that count come first in lyric_ids and lyric_mask (B, M), as `songs.collate` puts them. Reads
        arrays that came from the host, so that nothing waits for the device.
        """
        ids, mask = np.array(batch["lyric_ids"]), np.array(batch["lyric_mask"])
        M = ids.shape[1]
        if not M:
            return dict(batch)
        states = [self._encoded(row[: int(n)]) for row, n in zip(ids, mask.sum(axis=1), strict=True)]
        padded = [mx.pad(s, [(0, M - s.shape[0]), (0, 0)]) for s in states]
        return {**batch, "lyric_states": mx.stack(padded)}

    def _encoded(self, ids: np.ndarray) -> mx.array:
        """ids (n,) → (n, H). Without padding, so that it depends on no other song of the batch."""
        if not len(ids):  # dropped, or none
            return mx.zeros((0, self.model.config.lyric_hidden_size), self.model.dtype)
        key = ids.tobytes()
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        found: mx.array = self.model.encode_lyrics(mx.array(ids)[None], mx.ones((1, len(ids))))[0]
        mx.async_eval(found)  # what led to it is let go of
        self._kept[key] = found
        self.bytes += found.nbytes
        while self.bytes > self.max_bytes:
            self.bytes -= self._kept.popitem(last=False)[1].nbytes
        return found
