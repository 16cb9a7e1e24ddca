"""The networks that hear a song for the self-supervised loss, and how many frames each makes of it.

Both are HuBERTs; the transformer's config names them. A song is heard in chunks. A chunk loses its last frame
to the convolutions' edge, so a second is not a whole number of frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ....errors import ConfigError, nearest

if TYPE_CHECKING:
    import numpy as np

    from ....config.run import RunConfig

SOUND_RATE = 48_000  # Hz of the sound that encoders are given, as upstream gives it
HOP = 320  # samples of an encoder's rate to a frame
LOST = 80  # of a chunk's samples: what does not fill another frame


@dataclass(frozen=True)
class Encoder:
    """One network. name: in the transformer's config. option: of a run, that names its file. rate: Hz.

    chunk: seconds that it hears at once. pre_norm: see `hubert`. width: of its features. parameters: in
    millions. repository, revision: at the hub; downloads: whether a safetensors file is there. licence: of
    its weights.
    """

    name: str
    title: str
    option: str
    rate: int
    chunk: int
    pre_norm: bool
    width: int
    parameters: int
    repository: str
    downloads: bool
    licence: str
    revision: str | None = None

    @property
    def down(self) -> int:
        """Samples of `SOUND_RATE` to one of its own."""
        return SOUND_RATE // self.rate

    @property
    def chunk_samples(self) -> int:
        """Of its rate."""
        return self.chunk * self.rate

    def length(self, samples: int) -> int:
        """Frames of so many samples of `SOUND_RATE`; the last chunk is padded, and its padding cut off."""
        whole, rest = divmod(samples // self.down, self.chunk_samples)
        most = (self.chunk_samples - LOST) // HOP
        return whole * most + min(-(-rest // HOP), most)

    def frame(self, seconds: float) -> int:
        """The first frame that begins at `seconds` or later; at a song's end that is its length."""
        return self.length(round(seconds * SOUND_RATE))

    def cut(self, features: np.ndarray, start: float, stop: float) -> np.ndarray:
        """The rows of a song's features (L, D) between two moments, in seconds; at least one."""
        first = min(self.frame(start), len(features) - 1)
        return features[first : max(first + 1, self.frame(stop))]


# The commit of mHuBERT is one that others have had in use; not verifiable offline. The caches' keys hold the
# contents.
MERT = Encoder(
    "mert", "MERT-v1-330M", "ace_step_ssl_mert", 24_000, 5, True, 1024, 315,
    "m-a-p/MERT-v1-330M", False, "CC BY-NC 4.0",
)  # fmt: skip
MHUBERT = Encoder(
    "m-hubert", "mHuBERT-147", "ace_step_ssl_mhubert", 16_000, 30, False, 768, 94,
    "utter-project/mHuBERT-147", True, "CC BY-NC-SA 4.0", "69467f5ee758b795c77abe33ac4a09dff1b82fdf",
)  # fmt: skip
ENCODERS = {one.name: one for one in (MERT, MHUBERT)}


def length_of(encoder: str) -> str:
    """What a batch calls the lengths (B,) of an encoder's features."""
    return f"{encoder}_length"


def chosen(config: RunConfig) -> tuple[Encoder, ...]:
    """The encoders of a run: none with weight 0. ConfigError for one that there is not."""
    if not config.ace_step_ssl_loss_weight:
        return ()
    names: Sequence[str] = tuple(ENCODERS)
    if config.ace_step_ssl_encoders is not None:
        names = [_spelt(name) for name in config.ace_step_ssl_encoders]
    return tuple(one for name, one in ENCODERS.items() if name in names)


def _spelt(name: str) -> str:
    """`mhubert` and `mHuBERT-147` are what the transformer's config calls m-hubert."""
    plain = name.lower().replace("-", "").replace("_", "")
    for encoder in ENCODERS.values():
        title = encoder.title.lower().replace("-", "")
        if plain in (encoder.name.replace("-", ""), title):
            return encoder.name
    raise ConfigError(
        f"ace_step_ssl_encoders: {name!r} is none of {', '.join(ENCODERS)}{nearest(name, list(ENCODERS))}"
    )
