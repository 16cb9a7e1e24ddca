"""What is kept of a song, and how songs become a batch: the types that families and caches share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

from ..io.progress import Progress, silent

if TYPE_CHECKING:
    import numpy as np

    from ..text.stamps import Timed

Arrays = dict[str, "np.ndarray"]
Given = TypeVar("Given")


@dataclass(frozen=True)
class Words:
    """What is written of a song, with one of its captions. lyrics: None without. seconds: of its sound.

    The rest is None where it is not known. language: of the lyrics, an ISO code. bpm: beats a minute.
    keyscale: `C major`. timesignature: beats a bar, `4`.
    """

    caption: str
    lyrics: str | None
    seconds: float
    language: str | None = None
    bpm: int | float | None = None
    keyscale: str | None = None
    timesignature: str | None = None


@dataclass(frozen=True)
class Sketch:
    """What is known of a song that has no caption, to draft one of; None is not known.

    genre: as its tags call it. bpm, keyscale: see `Words`. pace: `slow` or `fast`. language: the English name
    of the one that it is sung in. instrumental: whether somebody said that nobody sings.
    """

    genre: str | None = None
    bpm: int | None = None
    keyscale: str | None = None
    pace: str | None = None
    language: str | None = None
    instrumental: bool = False


class Known(NamedTuple):
    """What is known of a song beside its caption, by field of `Words`; a line for what is not understood."""

    values: dict[str, Any]
    problems: list[str]


class Lyrics(NamedTuple):
    """Lyrics in a model's form, None where nothing is left; what was changed; lines that it cannot sing.

    timed: its lines, and when they are sung where that is known.
    """

    text: str | None
    notes: Sequence[str]
    problems: Sequence[str]
    timed: Sequence[Timed] = ()


class Encoded(NamedTuple):
    """What is kept of one part of a song: arrays by name, floating ones float32 and finite, and remarks."""

    arrays: Arrays
    notes: Sequence[str] | None = None


class PartEncoder(ABC, Generic[Given]):
    """Encodes one part of a song, from its sound (samples, 2) float32 or from its words.

    names: of the arrays that it gives; no other part's has them. Texts have their tokens on the first axis.
    progress: is told how far `encode` is with a long song. uses: component → beginnings of the paths of those
    of its weights that `load` takes, in float32. folder: a `protocol.Folder`, the model's.
    """

    names: tuple[str, ...]
    uses: Mapping[str, tuple[str, ...]] = {}
    progress: Progress = staticmethod(silent)
    _loaded: Any = None

    def __init__(self, folder: Any) -> None:
        self._folder = folder

    def _load(self, component: str) -> Any:
        import mlx.core as mx

        return self._folder.load(component, dtype=mx.float32, used=self.uses[component])

    @staticmethod
    def activations(seconds: float) -> float:
        """Bytes that `encode` takes beside the weights for a song of so many seconds, as measured."""
        return 0.0

    @abstractmethod
    def key(self, words: Words) -> Mapping[str, Any] | None:
        """JSON values that change when the result may change, the sound aside. They are part of the caches'
        keys. None: such a song has no such part; its arrays are empty, (0,)."""

    @abstractmethod
    def load(self) -> Any:
        """The networks and tokenizers that `encode` takes."""

    @abstractmethod
    def encode(self, given: Given) -> Encoded:
        """One song's part."""

    @property
    def loaded(self) -> Any:
        """What `load` gives, loaded when it is first asked for."""
        if self._loaded is None:
            self._loaded = self.load()
        return self._loaded

    def release(self) -> None:
        """Free what is loaded."""
        import gc

        import mlx.core as mx

        if self._loaded is not None:
            self._loaded = None
            gc.collect()
            mx.clear_cache()


class SoundPart(PartEncoder["np.ndarray"]):
    """Encodes the sound (samples, 2) of a song at a `rate` of its own, in Hz. title: for people."""

    rate: int
    title: str

    @abstractmethod
    def fits(self, arrays: np.ndarray, samples: int) -> bool:
        """Whether this can be what it makes of so many samples."""


class SongEncoders(NamedTuple):
    """What encodes the parts of a song, each kept by itself; `text` once for each caption."""

    latents: type[PartEncoder[np.ndarray]]
    text: type[PartEncoder[Words]]
    lyrics: type[PartEncoder[Words]]


@dataclass(frozen=True)
class CachedSong:
    """A song of a batch: the arrays of its parts, and what it goes without this time."""

    arrays: Arrays
    drop_text: bool
    drop_lyrics: bool


class Shape(NamedTuple):
    """Padded lengths of a batch: latent frames, text tokens, lyric tokens."""

    frames: int
    text: int
    lyrics: int


class Padding(NamedTuple):
    """Lengths of texts are rounded up to multiples of these, so that there are few shapes."""

    text: int
    lyrics: int
