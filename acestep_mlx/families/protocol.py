"""What the program asks of a model family. A family is a folder beside this file and a line in the registry.

Nothing outside `families/` knows a model's numbers, fields, paths or tensor names: it asks for them here. The
types are light: importing this module loads neither MLX nor a model.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    import mlx.core as mx
    import mlx.nn as nn
    import numpy as np

    from ..config.request import Request
    from ..config.run import RunConfig
    from ..io.progress import Progress
    from ..io.safetensors import TensorInfo
    from ..io.schema import Check
    from .keymap import KeyMap
    from .known import Examples
    from .layout import ComponentSource, Layout
    from .songs import Arrays, CachedSong, Known, Lyrics, Padding, Shape, Sketch, SongEncoders, SoundPart

Batch = Mapping[str, "mx.array"]
Prepare = Callable[[Batch], "dict[str, mx.array]"]


@dataclass(frozen=True)
class LatentSpec:
    """A song's latents, and how they are counted against its sound.

    sample_rate: Hz of the stereo sound that the codec takes and gives. samples_per_frame: of that sound.
    shape: of one song's latents, None where time is. min_seconds: shorter songs are padded with silence.
    max_seconds: the longest that the model was trained on. shortest: seconds of a song that is made.
    encoding: FLOPs of the convolutions and products that encode a second of sound, counted.
    """

    sample_rate: int
    samples_per_frame: int
    shape: tuple[int | None, ...]
    min_seconds: float
    max_seconds: float
    shortest: float = 1.0
    encoding: float = 0.0

    @property
    def time_axis(self) -> int:
        """Where time is, counted from the end: the same with and without a batch axis."""
        return self.shape.index(None) - len(self.shape)

    @property
    def frame_rate(self) -> float:
        """Frames a second."""
        return self.sample_rate / self.samples_per_frame

    def of(self, frames: int) -> tuple[int, ...]:
        """The shape of one song of so many frames."""
        return tuple(frames if size is None else size for size in self.shape)

    def whole_frames(self, seconds: float) -> int:
        """Frames that fit into `seconds`."""
        return int(seconds * self.sample_rate / self.samples_per_frame)

    def song_frames(self, seconds: float) -> int:
        """Frames of a song that is made to last so long."""
        return self.whole_frames(seconds)

    def covering(self, samples: int) -> int:
        """Frames that hold so many samples, the padded last one included."""
        return math.ceil(samples / self.samples_per_frame)

    def samples(self, seconds: float) -> int:
        """Samples of so much sound, padded where it is shorter than the model takes."""
        return round(max(seconds, self.min_seconds) * self.sample_rate)

    def seconds(self, frames: float) -> float:
        """How long so many frames last."""
        return frames * self.samples_per_frame / self.sample_rate


@dataclass(frozen=True)
class Variant:
    """One released model: its hub repository, how much is fetched from there, in GB, the commit that is taken
    unless another is named, and a repository with folders that this one lacks.

    size: as people call it. transformer: what its config has otherwise than the class. advice: what to know
    before training it. beside_gigabytes: how much is fetched from `beside`. others: GB of the model folder's
    other components than the transformer.
    """

    repository: str
    gigabytes: float
    revision: str | None = None
    beside: str | None = None
    size: str = ""
    transformer: Mapping[str, Any] = field(default_factory=dict)
    advice: str = ""
    beside_gigabytes: float = 0.0
    others: float = 0.0

    @property
    def fetched(self) -> float:
        """GB that are downloaded in all."""
        return self.gigabytes + self.beside_gigabytes


# ── where a model comes from ──────────────────────────────────────────────────────────────────────────
@dataclass(frozen=True)
class Component:
    """One network of a model.

    config: a dataclass on `nn.config.ComponentConfig`. module: built from a config. keymap: from the names of
    other programs' tensors to the module's. quantized: whether its large linear layers may be quantised, but
    for those whose path begins with one of `full_precision`: small ones, or such that everything after them
    depends on.
    """

    config: Any
    module: Callable[[Any], nn.Module]
    keymap: KeyMap
    quantized: bool = False
    full_precision: tuple[str, ...] = ()


class KeptApart(NamedTuple):
    """What a file of its own keeps of a checkpoint: its tensors, as they are there, and metadata."""

    tensors: Mapping[str, TensorInfo]
    metadata: Mapping[str, str]


@dataclass(frozen=True)
class Apart:
    """Tensors of a checkpoint that only some runs read, in a file beside the components' that a model folder
    may lack.

    name: of the file, without its ending. component: of the checkpoint, that has them. title: for people.
    plan: what a checkpoint's component has of them, None where it has none; CheckpointError for wrong shapes.
    """

    name: str
    component: str
    title: str
    plan: Callable[[ComponentSource], KeptApart | None]


@dataclass(frozen=True)
class FoundTexts:
    """What a conversion found beside the weights: files for the MLX folder, by name; what config.json keeps
    of them; and for people, of what was looked for: where it was.
    """

    files: Mapping[str, bytes]
    config: Mapping[str, Any]
    origins: Mapping[str, str]


class Folder(Protocol):
    """What a family asks of an opened model folder: `families.model_folder.ModelFolder` is one."""

    @property
    def path(self) -> Path: ...

    @property
    def config(self) -> Mapping[str, Any]:
        """Its config.json."""

    @property
    def fingerprints(self) -> Mapping[str, str]:
        """Component → SHA-256 of its contents."""

    def component_config(self, component: str) -> Any:
        """The component's config dataclass."""

    def file_apart(self, apart: Apart) -> Path:
        """Where it is; CheckpointError, with the command that adds it, where it is not."""

    def load(
        self, component: str, dtype: mx.Dtype | None = None, *, used: tuple[str, ...] = ("",)
    ) -> nn.Module:
        """One component, frozen; dtype: of everything that is not quantised. used: beginnings of the paths of
        the weights that are needed."""

    def prompt_tokenizer(self) -> Any:
        """As `Texts` gives it; so are the next two."""

    def lyric_tokenizer(self) -> Any: ...

    def lyric_vocab(self) -> Path: ...


class Texts(Protocol):
    """The files of a model that are no weights: tokenizers and vocabularies."""

    @property
    def files(self) -> Mapping[str, str]:
        """What an MLX folder must have: name, as the option of `convert` that gives one → file."""

    @property
    def config_keys(self) -> Mapping[str, Check]:
        """What an MLX folder's config.json may have of them."""

    def find(
        self,
        root: Path,
        layout: Layout,
        configs: Mapping[str, Any],
        given: Mapping[str, str | Path],
        progress: Progress,
    ) -> FoundTexts:
        """For the checkpoint `root`, or as `given` by name. configs: of the components, whose sizes they must
        fit. CheckpointError says what to give.
        """

    def lacking(self, root: Path, layout: Layout) -> Mapping[str, str]:
        """What the checkpoint should carry and does not: name → a line that says so."""

    def describe(self, config: Mapping[str, Any]) -> list[str]:
        """Lines about what an MLX folder's config.json keeps of them."""

    def prompt_tokenizer(self, folder: Folder) -> Any:
        """Of prompts; CheckpointError for another model's."""

    def lyric_tokenizer(self, folder: Folder) -> Any:
        """Of lyrics; CheckpointError for another model's."""

    def lyric_vocab(self, folder: Folder) -> Path:
        """The file that `lyric_tokenizer` reads; CheckpointError for another than was converted."""


@dataclass(frozen=True)
class LyricsQuestion:
    """How lyrics are read: their text, and its language where all lines are in one. folder, given: the model,
    or the file of `Texts`, to read them with; without either the file is looked for, and kept in `cache`.
    """

    text: str
    language: str | None
    folder: Folder | None
    given: Path | None
    cache: Path
    progress: Progress


# ── what a model does ─────────────────────────────────────────────────────────────────────────────────
@dataclass(frozen=True)
class Load:
    """One training step: a batch of songs of so many frames, text and lyric tokens each."""

    frames: int
    batch: int = 1
    text: int = 256
    lyrics: int = 0


class Product(NamedTuple):
    """What a linear layer of a block does in a step: so many rows of `inputs` numbers become `outputs`."""

    rows: int
    inputs: int
    outputs: int

    @property
    def flops(self) -> float:
        return 2.0 * self.rows * self.inputs * self.outputs


class StepMemory(Protocol):
    """What a training step takes beyond its weights, in bytes; for estimates before anything is loaded."""

    def load(self, seconds: float, batch: int = 1, lyrics: int | None = None) -> Load:
        """A song of so many seconds with as many lyrics as such a song tends to have."""

    def activations(self, config: Any, load: Load, size: int, checkpointed: int) -> float:
        """At the worst moment. config: the transformer's. size: bytes of an activation. checkpointed: blocks
        that compute theirs again."""

    def products(self, config: Any, load: Load) -> Sequence[Product]:
        """A block's linear layers. Blocks that keep their results keep those of all but the last."""

    def told(self, config: Any, load: Load, size: int) -> float:
        """Of what `Objective.told` gives."""

    def tokens(self, config: Any, load: Load) -> int:
        """Of a batch, that a block's layers see."""

    def kept(self, load: Load, trained: Iterable[str]) -> Mapping[str, float]:
        """What `Family.prepare` keeps, by name. trained: paths of modules that are trained."""

    def lyric_counter(self, folder: Folder | None) -> Callable[[str], int]:
        """Lyrics → tokens, with the model's tokenizer, or guessed without a model."""

    def cached(self, config: Any, frames: int, captions: Sequence[str], lyrics: str | None) -> float:
        """What caches on the disk keep of a song, its tokens guessed. config: the transformer's."""


@dataclass(frozen=True)
class FullTraining:
    """How a run trains modules in full: at what rate, by which optimizer and schedule."""

    learning_rate: float
    optimizer: str
    lr_scheduler: str


@dataclass(frozen=True)
class FullModules:
    """Modules that can be trained in full beside the LoRA, whose files may carry them under plain names.

    prefixes: of their paths. name: of their folder beside the LoRA's file, of their optimizer's state, and
    the beginning of their options (`…_train`, `…_lr`). title: in messages. settings: how a run trains them,
    or None where it does not. unloadable: program → endings of tensors that its loader has no place for.
    """

    prefixes: tuple[str, ...] = ()
    name: str = ""
    title: str = "layers trained in full"
    settings: Callable[[RunConfig], FullTraining | None] = lambda config: None
    unloadable: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def holds(self, path: str) -> bool:
        """Whether a module or a parameter at this path is, or is in, one of them."""
        return f"{path}.".startswith(self.prefixes)

    def not_loaded(self, program: str, names: Iterable[str]) -> list[str]:
        """Those of the tensors that this program has no way to load."""
        return [name for name in names if name.endswith(self.unloadable.get(program, ()))]


@dataclass(frozen=True)
class LoRANames:
    """How a transformer's modules are called as LoRA targets, here and in other programs' files.

    Paths are upstream's, patterns are matched against whole paths.

    presets: value of the configuration's `option` → targets. refused: a module that can still not carry a
    LoRA → why. idle: a target that gets no gradient → a sentence. numbered: lists of equal layers.
    convolutions: linear layers here that are convolutions in PyTorch, with their trailing dimensions. flat:
    paths whose dots became underscores → dotted. unused: modules of the checkpoint that are never used → why.
    outside: pattern of modules of its other networks, on which programs put adapters that stay untrained.
    others: further modules, `#` for a number, that adapters of other programs may sit on. lookalikes: width
    of the first list's layers → other models that call them the same. prefixes: format → what its loaders
    want in front of a path. spellings: dotted paths of other programs → ours, one rule after the other.
    renamed: format → our paths as its loaders call them, one rule after the other. programs: format → who
    loads it, where that is not as for other models. marks: program → pattern of a path by which alone it
    knows a file in the format peft. peft_folder: whether that format is a folder with peft's own files.
    recipes: rank → upstream's advice for it with a scale of 2, which files do not say. full: what can be
    trained in full beside the LoRA. classes: pattern of a module's path (the model's own is empty) → what
    LyCORIS may call its class.
    """

    presets: Mapping[str, tuple[str, ...]]
    default: str
    option: str
    refused: Mapping[str, str]
    idle: Mapping[str, str]
    numbered: tuple[str, ...]
    convolutions: tuple[tuple[str, int], ...]
    flat: tuple[tuple[str, str], ...]
    unused: tuple[tuple[str, str], ...]
    others: tuple[str, ...]
    lookalikes: Mapping[int, str]
    prefixes: Mapping[str, str]
    spellings: tuple[tuple[str, str], ...] = ()
    full: FullModules = FullModules()
    outside: str = ""
    renamed: Mapping[str, tuple[tuple[str, str], ...]] = field(default_factory=dict)
    programs: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    marks: Mapping[str, str] = field(default_factory=dict)
    peft_folder: bool = False
    recipes: Mapping[int, str] = field(default_factory=dict)
    classes: tuple[tuple[str, tuple[str, ...]], ...] = ()

    @property
    def default_targets(self) -> tuple[str, ...]:
        """Targets of the default preset."""
        return self.presets[self.default]

    def trailing_dims(self, path: str) -> int:
        """How many trailing 1s the LoRA tensors of this module have in PyTorch: 0 for a linear layer."""
        return next((dims for pattern, dims in self.convolutions if re.fullmatch(pattern, path)), 0)

    def ours(self, path: str) -> str:
        """Our path of a module that a file calls `path`, without any loader's prefix."""
        return _renamed(path, self.spellings)

    def theirs(self, path: str, format: str) -> str:
        """What the loaders of a format call our `path`, with their prefix."""
        return self.prefixes.get(format, "") + _renamed(path, self.renamed.get(format, ()))

    def why_unused(self, path: str) -> str | None:
        """Why a LoRA on this module of the checkpoint changes nothing, or None where it does."""
        if self.is_outside(path):
            return "nothing outside the transformer is trained"
        return next((why for pattern, why in self.unused if re.fullmatch(pattern, path)), None)

    def is_outside(self, path: str) -> bool:
        """Whether a module belongs to another network of the checkpoint."""
        return re.fullmatch(self.outside, path) is not None

    def numberless(self, path: str) -> str:
        """`transformer_blocks.3.attn.to_out.0` → `transformer_blocks.#.attn.to_out.0`."""
        for name in self.numbered:
            path = re.sub(rf"^({re.escape(name)})\.(0|[1-9]\d*)(?=\.)", r"\1.#", path)
        return path


def _renamed(path: str, rules: Iterable[tuple[str, str]]) -> str:
    for pattern, replacement in rules:
        if match := re.fullmatch(pattern, path):
            path = match.expand(replacement)
    return path


class Draw(NamedTuple):
    """Everything random about a micro-batch of B songs."""

    noise: mx.array  # like the latents, float32
    sigma: mx.array  # (B,) float32, the noise level: 1 is noise alone
    dropout_key: mx.array  # (2,) for the LoRA layers' dropout
    more: dict[str, mx.array]  # (B, …), what else the family draws


class Objective(Protocol):
    """What training minimises. Pure functions of a batch and of what is drawn for it."""

    def draw(self, batch: Batch) -> Draw:
        """For training, from the songs' own random `keys` (B, 2): a song draws the same in any batch."""

    def fixed(self, batch: Batch, sigma: mx.array) -> Draw:
        """For evaluation at the noise level `sigma` (): the songs' own noise, and nothing else by chance."""

    def losses(self, model: nn.Module, batch: Batch, draw: Draw, dtype: mx.Dtype) -> mx.array:
        """(B,) float32, computed by the model in `dtype`."""

    # The parts of `losses`, for rollouts: x0 becomes noise ε in a straight line, x_σ = σ·ε + (1 − σ)·x0.
    def clean(self, batch: Batch, draw: Draw) -> tuple[mx.array, mx.array]:
        """x0 float32, and 1 where it counts, of as many dimensions."""

    def told(self, model: nn.Module, batch: Batch, dtype: mx.Dtype) -> dict[str, Any]:
        """What the model makes of the conditions, for a batch of which `velocity` is asked several times."""

    def velocity(
        self, model: nn.Module, batch: Batch, noisy: mx.array, sigma: mx.array, dtype: mx.Dtype
    ) -> mx.array:
        """The model's dx/dσ at latents `noisy` of noise level sigma (B,), like the latents."""

    def compared(
        self,
        velocity: mx.array,
        noisy: mx.array,
        batch: Batch,
        draw: Draw,
        *,
        rolled: mx.array | None = None,
        weight: mx.array | None = None,
    ) -> mx.array:
        """The loss (B,) float32 of a velocity. rolled: (B,) where `noisy` is another than x_σ, and what is to
        be learned leads from there to x0 all the same. weight: of each squared error, like the latents.
        """


class Auxiliary(Protocol):
    """A further loss of a training step, of what the model computes on the way. Evaluation has none of it."""

    @property
    def parts(self) -> tuple[str, ...]:
        """What of it is logged apart: names with a slash, `ssl/mert`."""

    def __call__(
        self, model: nn.Module, batch: Batch, run: Callable[[], mx.array]
    ) -> tuple[mx.array, dict[str, mx.array]]:
        """run: runs the model and gives the objective's losses (B,). Those with this loss added, float32, and
        the batch's mean () of each of `parts`.
        """


class FurtherLoss(Protocol):
    """A loss that a run may add to its family's objective, and what it needs.

    repositories: at the hub, of what it may download.
    """

    repositories: tuple[str, ...]

    def wanted(self, config: RunConfig) -> bool:
        """Whether this run has it. Nothing below is asked where it does not."""

    def check(self, config: RunConfig, folder: Folder | None) -> None:
        """AceStepError for what is missing, with what to do. Reads headers. folder: where there is one."""

    def parts(self, config: RunConfig, folder: Folder, progress: Progress) -> Mapping[str, SoundPart]:
        """Further parts of a song, by name, made of its sound; what makes them is downloaded if need be."""

    def loss(self, config: RunConfig, folder: Folder) -> Auxiliary:
        """Of a run on this model."""

    def memory(self, config: RunConfig, sizes: Any, load: Load) -> Mapping[str, float]:
        """Bytes that it takes in a step, by name. sizes: the transformer's config."""

    def lines(self, config: RunConfig, seconds: float) -> list[str]:
        """For a dry run: what it does and takes, with so many seconds of songs."""

    def disk(self, config: RunConfig, seconds: float) -> tuple[float, float]:
        """Bytes that are still to be fetched for it, and those of so many seconds of songs in caches."""

    def facts(self, config: RunConfig) -> Mapping[str, Any]:
        """What the metadata of its LoRA says of it."""


@dataclass(frozen=True)
class SongSettings:
    """What a model makes of the settings of a song (`config.request.Request`).

    tasks: that it has. defaults: of settings where it has its own. literal: further ones of Python's
    `generate`. idle: settings that change nothing → why; idle_in: of a task. read: settings in the form that
    the model was taught; ConfigError for those that it cannot be told.
    """

    tasks: tuple[str, ...]
    defaults: Mapping[str, Any]
    literal: Mapping[str, Any]
    idle: Mapping[str, str]
    idle_in: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    read: Callable[[Mapping[str, Any]], Mapping[str, Any]] = field(default=dict)

    def reasons(self, names: Iterable[str], task: str) -> dict[str, str]:
        """Which of the settings change nothing in a task with this model, and why."""
        reasons = {**self.idle_in.get(task, {}), **self.idle}
        return {name: reasons[name] for name in names if name in reasons}


class Codec(Protocol):
    """Sound ↔ latents."""

    def encode(self, wav: np.ndarray | mx.array, *, progress: Progress = ...) -> Any:
        """What `Family.source` takes, of sound (samples, 2) or (B, samples, 2) at the family's rate."""

    def decode(self, latents: mx.array, *, progress: Progress = ...) -> mx.array:
        """Sound (B, samples, 2) float32."""


class Models(Protocol):
    """What reads texts, each loaded when it is first asked for."""

    @property
    def text_encoder(self) -> nn.Module:
        """Prompts → states."""

    @property
    def prompt_tokenizer(self) -> Any:
        """The text encoder's tokenizer."""

    @property
    def lyric_tokenizer(self) -> Any:
        """Lyrics → ids."""

    def component(self, name: str) -> Any:
        """Any other component of the family."""


class Conditioned(Protocol):
    """A model that has been told what the song is to be: what `sampling` samples.

    told: whether it also sees the part of a song that is given, and makes the whole anew beside it.
    """

    @property
    def told(self) -> bool: ...

    def silence(self, frames: int) -> mx.array:
        """Latents (1, …) of silence."""

    @property
    def latents(self) -> LatentSpec:
        """Shape and rate of its latents."""

    @property
    def schedule(self) -> Any:
        """Its noise levels: a `sampling.tasks.Schedule`."""

    @property
    def norm_axes(self) -> tuple[int, ...]:
        """Axes of its latents, from the end, over which APG has its norms."""

    @property
    def frames_at_once(self) -> int:
        """Of all rows of an evaluation together."""

    def beside(self, songs: int, given: Any = None) -> tuple[Any, float] | None:
        """A velocity that is mixed in after guidance, a row a song, and its share."""

    def velocity(self, branches: int, songs: int, given: Any = None) -> Any:
        """A `sampling.denoise.Velocity` for rows [conditional × songs, unconditional × songs, text alone ×
        songs], as many as `branches`. For an edit those of the source, then those of the target.
        given: a `sampling.tasks.Given` where the task has one and the model is `told`.
        """


class Family(Protocol):
    """A model family."""

    def __hash__(self) -> int: ...

    @property
    def name(self) -> str:
        """As the registry and an MLX folder's config.json call it."""

    @property
    def title(self) -> str:
        """As people call it."""

    @property
    def variants(self) -> Mapping[str, Variant]:
        """By `model_flavour`; the first is the default."""

    def flavours(self, config: Any) -> tuple[str, ...]:
        """Which of the variants a model can be whose transformer has this config."""

    @property
    def unused(self) -> Mapping[str, str]:
        """Options of a run that change nothing in this family's training → why."""

    @property
    def refused(self) -> Mapping[str, str]:
        """Options of a run that this family cannot do → why, and what to do."""

    @property
    def latents(self) -> LatentSpec:
        """Shape, rates and limits of a song's latents."""

    @property
    def components(self) -> Mapping[str, Component]:
        """By name, in the order in which they are converted; `transformer` is the one that is trained. Its
        config has `blocks`, the number of blocks that can be checkpointed, and its module
        `checkpoint_blocks` and `product_blocks`: of how many, from the first, everything is computed again,
        and of how many after those all but what their linear layers gave.
        """

    @property
    def apart(self) -> Sequence[Apart]:
        """What `convert` keeps in files of their own."""

    @property
    def layouts(self) -> Sequence[Layout]:
        """Of the checkpoints that `convert` reads, folders first."""

    @property
    def texts(self) -> Texts:
        """Its tokenizers and vocabularies."""

    @property
    def memory(self) -> StepMemory:
        """What a training step takes."""

    @property
    def lora(self) -> LoRANames:
        """The names of LoRA targets; the transformer's module has them as `lora` too."""

    @property
    def padding(self) -> Padding:
        """How texts are padded in a batch."""

    @property
    def key_mark(self) -> Mapping[str, Any]:
        """What the keys of its caches hold and no other family's do; nothing for v1, as in version 0.1."""

    @property
    def instrumental(self) -> str:
        """The lyrics of a song in which nobody sings."""

    def read_lyrics(self, text: str, language: str | None) -> Lyrics:
        """Lyrics as somebody wrote them in the model's form. language: of all lines, where it is known."""

    @property
    def metadata(self) -> Mapping[str, Sequence[str]]:
        """What the model is told of a song beside its caption: field of `Words` → names that files have for
        it, in lower case. Nothing where there is no place for it.
        """

    def read_metadata(self, given: Mapping[str, Any]) -> Known:
        """Fields of `metadata` as somebody wrote them, in the model's form."""

    def draft_caption(self, known: Sketch) -> str:
        """A caption in the form that the model was trained on; empty where nothing of it is known."""

    @property
    def encoders(self) -> SongEncoders:
        """What encodes songs for this model."""

    def released(self, component: str) -> Any:
        """The config of a component of a released model, of its smallest variant."""

    def crop(self, arrays: Arrays, start: int, frames: int) -> Arrays:
        """A song's arrays with only a part of its sound: so many latent frames, from `start` on.

        Every array that goes with time is cut to the same seconds; the lyrics are the part's already. NumPy
        alone.
        """

    @property
    def further(self) -> FurtherLoss | None:
        """A loss that runs may add to the objective's."""

    def collate(self, songs: Sequence[CachedSong], shape: Shape) -> Arrays:
        """A batch as `objective` takes it, but for the songs' random keys. Pure, and NumPy alone."""

    def objective(self, config: RunConfig) -> Objective:
        """What a run minimises."""

    def codec(self, load: Callable[[str], nn.Module]) -> Codec:
        """Sound ↔ latents, of components that `load` gives by name."""

    def song_settings(self, folder: Folder | None) -> SongSettings:
        """Of this model; of the family's first kind where there is none yet."""

    def source(self, request: Request, encoded: Any, models: Models) -> mx.array:
        """The latents (1, …) of a request's source as its task takes them. encoded: what the codec gave, or
        latents.
        """

    def finish(self, sound: np.ndarray) -> np.ndarray:
        """Songs (songs, samples, 2) float32 as they are heard, of what the codec gave."""

    def surface(self, models: Models) -> Any:
        """What a pipeline of this model has beside what all have, as attributes of one object."""

    def conditions(self, request: Request, models: Models) -> Any:
        """What the encoders make of a request's texts."""

    def conditioned(self, transformer: nn.Module, conditions: Any, request: Request) -> Conditioned:
        """The model with what `conditions` gave."""

    def remarks(self, request: Request, models: Models) -> list[str]:
        """What the model will not hear of a request's texts, or hears otherwise than they are written."""

    def lyrics_report(self, asked: LyricsQuestion) -> list[str]:
        """Lyrics line by line, as training and `generate` read them."""

    def write_miniature(self, folder: Path, seed: int = 0) -> None:
        """A checkpoint with random weights in upstream's layout, for the demo and tests."""

    def examples(self) -> Examples:
        """Miniatures of its networks and a training step with known numbers."""

    def prepare(self, model: nn.Module) -> Prepare | None:
        """What is added to each batch before the compiled step, as nothing that is trained changes it."""
