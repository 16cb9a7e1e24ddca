"""ACEStepPipeline: prompt and lyrics → sound, with components that load when they are first needed."""

from __future__ import annotations

import secrets
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from .config.request import Request
from .errors import CheckpointError, ConfigError, DataError
from .families.model_folder import ModelFolder
from .families.protocol import Codec
from .families.requests import check_task, request_for
from .io.audio import probe, read_audio
from .io.filenames import at_home
from .io.progress import Advance, Progress, as_stage, silent
from .nn.device import buffers_kept
from .sampling.sample import sample

T = TypeVar("T")


@dataclass(frozen=True)
class LoadedLoRA:
    """A LoRA file as it was asked for; `weights` are lora.weights.LoRAWeights."""

    path: Path
    scale: float
    weights: Any = field(repr=False)


class ACEStepPipeline:
    """A model that makes music.

    `folder` is the MLX folder. With `low_memory` a component leaves memory when the next one is needed
    (for a single song); otherwise all stay. With `fuse_loras` LoRAs are merged into the weights: faster,
    and what was there stays in memory. Components that are already in memory may be given by name:
    `transformer`, `text_encoder`, `codec`.
    """

    def __init__(
        self, folder: ModelFolder, *, low_memory: bool = False, fuse_loras: bool = False, **components: Any
    ) -> None:
        if unknown := set(components) - {"transformer", "text_encoder", "codec"}:
            raise TypeError(f"no such component: {', '.join(sorted(unknown))}")
        self.folder, self.low_memory, self.fuse_loras = folder, low_memory, fuse_loras
        self.family = folder.family
        self._loaded: dict[str, Any] = dict(components)
        self._given = frozenset(components)
        self._loras: list[LoadedLoRA] = []
        self._applied = False

    @classmethod
    def from_pretrained(
        cls, path: str | Path, *, low_memory: bool = False, fuse_loras: bool = False
    ) -> ACEStepPipeline:
        """The pipeline of an MLX folder. Raises CheckpointError in one line when `path` is none."""
        return cls(ModelFolder.open(path), low_memory=low_memory, fuse_loras=fuse_loras)

    # ── components ───────────────────────────────────────────────────────────────────────────────────
    @property
    def transformer(self) -> nn.Module:
        """With the loaded LoRAs in it."""
        transformer = self._component("transformer", lambda: self.folder.load("transformer"))
        if self._loras and not self._applied:
            from .lora.apply import apply_loras

            pairs = [(lora.weights, lora.scale) for lora in self._loras]
            apply_loras(transformer, pairs, fused=self.fuse_loras)
            self._applied = True
        return transformer

    @property
    def text_encoder(self) -> nn.Module:
        """Prompts → states."""
        return self.component("text_encoder")

    @property
    def codec(self) -> Codec:
        """Waveform ↔ latents."""
        return self._component("codec", lambda: self.family.codec(self.folder.load))

    @property
    def prompt_tokenizer(self) -> Any:
        """The text encoder's tokenizer."""
        return self._component("prompt_tokenizer", self.folder.prompt_tokenizer)

    @property
    def lyric_tokenizer(self) -> Any:
        """Lyrics → ids."""
        return self._component("lyric_tokenizer", self.folder.lyric_tokenizer)

    def component(self, name: str) -> nn.Module:
        """Any component of the model by its name, without LoRAs."""
        return self._component(name, lambda: self.folder.load(name))

    def __getattr__(self, name: str) -> Any:
        """What only pipelines of this model have: see `families.protocol.Family.surface`."""
        if name.startswith("_") or name == "family":
            raise AttributeError(name)
        found = getattr(self.family.surface(self), name, None)
        if found is None:
            raise AttributeError(f"the pipeline of {self.family.title} has no {name!r}")
        return found

    def _component(self, name: str, load: Callable[[], T]) -> T:
        if name not in self._loaded:
            self._loaded[name] = load()
        found: T = self._loaded[name]
        return found

    def release(self, *names: str) -> None:
        """Let components go that this pipeline has loaded itself, all without a name; they load again when
        they are needed.
        """
        for name in names or tuple(self._loaded):
            if name not in self._given:
                self._loaded.pop(name, None)
                self._applied &= name != "transformer"
        mx.clear_cache()

    def _room_for(self, part: str = "") -> None:
        """With `low_memory` only this one of codec and transformer stays; without one: what reads texts."""
        if self.low_memory:
            large = {"codec", "transformer"}
            self.release(*(large - {part}), *(set(self._loaded) - large if part else ()))

    # ── LoRAs ────────────────────────────────────────────────────────────────────────────────────────
    def load_lora(self, path: str | Path, scale: float = 1.0) -> None:
        """Add a LoRA of any supported format; several add up, each with its own scale.

        Raises CheckpointError when the file is not a LoRA or one for another model, ConfigError for a scale
        that is no number between -100 and 100.
        """
        from .lora.formats.read import read_lora
        from .lora.merge import MAX_SCALE

        if not abs(scale) <= MAX_SCALE:
            raise ConfigError(f"lora scale must be between -{MAX_SCALE:g} and {MAX_SCALE:g}, got {scale}")
        lora = LoadedLoRA(Path(path), float(scale), read_lora(path))
        transformer = self._loaded.get("transformer")
        if transformer is None:  # shapes are all that matters, and nothing here is computed
            component = self.family.components["transformer"]
            transformer = component.module(self.folder.component_config("transformer"))
        lora.weights.check_against(transformer, str(path))
        self._off()
        self._loras.append(lora)

    def unload_loras(self) -> None:
        """Back to the base model, bit for bit."""
        self._off()
        self._loras = []

    def _off(self) -> None:
        if self._applied:
            from .lora.apply import remove_loras

            remove_loras(self._loaded["transformer"])
            self._applied = False

    @property
    def loras(self) -> tuple[LoadedLoRA, ...]:
        """The LoRAs that are in use."""
        return tuple(self._loras)

    # ── the stages of a song ─────────────────────────────────────────────────────────────────────────
    def prepare(self, request: Request) -> Any:
        """What the encoders make of the request's texts; afterwards they may go."""
        return self.family.conditions(request, self)

    def read_source(
        self, request: Request, remark: Callable[[str], object] = warnings.warn
    ) -> np.ndarray | None:
        """The request's source (samples, 2) at the model's sample rate. remark: told what of it is lost.

        Raises DataError when it is missing or too long, ConfigError for a section outside it.
        """
        request.check_source()
        if request.source is None:
            return None
        path, latents = at_home(request.source), self.family.latents
        longest = latents.max_seconds
        found = probe(path)
        if found.duration > longest + 0.1:
            raise DataError(f"{path} lasts {found.duration:.0f} s; a source may have {longest:g} s at most")
        if found.lost:
            remark(f"{path}: {found.lost}")
        sound = read_audio(path, sample_rate=latents.sample_rate)
        length = len(sound) / latents.sample_rate
        if request.task == "repaint" and request.repaint_start > length - latents.seconds(1):
            raise ConfigError(
                f"repaint_start {request.repaint_start:g} s is not within the song: {path} lasts "
                f"{length:.2f} s"
            )
        return sound

    def sample(
        self,
        request: Request,
        conditions: Any,
        source: mx.array | None = None,
        progress: Progress = silent,
        *,
        initial: mx.array | None = None,
    ) -> mx.array:
        """Latents (songs, …) float32; `source` are the source's latents (1, …), `initial` the first noise."""
        model = self.family.conditioned(self.transformer, conditions, request)
        with buffers_kept():
            return sample(
                model, request, source=source, initial=initial, progress=as_stage(progress, "denoising")
            )

    def run(
        self,
        request: Request,
        *,
        source_audio: np.ndarray | None = None,
        conditions: Any = None,
        progress: Progress = silent,
    ) -> np.ndarray:
        """Sound (songs, samples, 2) float32 in [-1, 1] at the model's sample rate, one song per seed.

        `source_audio` (samples, 2) at that rate takes the place of the request's file; `conditions` those
        that `prepare` would make.
        """
        check_task(self.family, self.family.song_settings(self.folder), request.task)
        if source_audio is None:
            source_audio = self.read_source(request)
        elif not request.needs_source:
            raise ConfigError(f"{request.task} takes no source")
        encoded = None
        if source_audio is not None:
            request = self._as_long_as(request, len(source_audio))
            self._room_for("codec")
            encoded = self.codec.encode(source_audio, progress=as_stage(progress, "encoding the source"))
        latents = self._latents(request, encoded, conditions, progress)
        return self._sound(latents, None if request.task == "extend" else source_audio, progress)

    def _as_long_as(self, request: Request, samples: int) -> Request:
        """Of a song that is made from so many samples: with the duration that the model may be told."""
        latents = self.family.latents
        seconds = samples / latents.sample_rate + request.extend_left + request.extend_right
        return replace(request, duration=min(seconds, latents.max_seconds))

    def _latents(
        self,
        request: Request,
        encoded: Any,
        conditions: Any,
        progress: Progress,
        initial: mx.array | None = None,
    ) -> mx.array:
        """Of a song; encoded: its source, as `families.protocol.Family.source` takes it."""
        source = None
        if encoded is not None:
            self._room_for()
            source = self.family.source(request, encoded, self)
        if conditions is None:
            self._room_for()
            progress(Advance("reading prompt and lyrics", 0, 1, "share"))
            conditions = self.prepare(request)
        self._room_for("transformer")
        latents = self.sample(request, conditions, source, progress, initial=initial)
        if not mx.isfinite(latents).all().item():
            raise CheckpointError(
                "the model gave values that are not numbers; is the LoRA or the model damaged?"
            )
        return latents

    def _sound(self, latents: mx.array, source_audio: np.ndarray | None, progress: Progress) -> np.ndarray:
        """Songs (songs, samples, 2), as long as what they were made from."""
        self._room_for("codec")
        sound = np.array(self.codec.decode(latents, progress=as_stage(progress, "decoding")))
        sound = self.family.finish(sound)
        return sound if source_audio is None else sound[:, : len(source_audio)]

    def generate(
        self,
        prompt: str = "",
        lyrics: str = "",
        duration: float | None = None,
        seed: int | Sequence[int] | None = None,
        *,
        source_audio: np.ndarray | None = None,
        src_latents: mx.array | None = None,
        latents: mx.array | None = None,
        output_type: Literal["audio", "latent"] = "audio",
        progress: Progress = silent,
        **options: Any,
    ) -> Any:
        """Make a song: (samples, 2) float32 at the model's rate; with several seeds (songs, samples, 2).

        duration in seconds, counted in whole latent frames; 30 unless the model's reference has another
        default. Without a seed one is drawn. `options` are the other fields of `config.request.Request`, also
        by the names that the model's reference has for them. src_latents (1, …): the source's, in place of
        its sound. latents (songs, …): the first noise, in place of the seeds'. output_type "latent": songs as
        an `mx.array` (songs, …), not decoded. Raises ConfigError, DataError or CheckpointError in one line.
        """
        latents, src_latents = (None if one is None else mx.array(one) for one in (latents, src_latents))
        songs = 1 if latents is None else latents.shape[0]
        several = isinstance(seed, Sequence)
        if not isinstance(seed, Sequence):
            seed = (random_seed() if seed is None else seed,)
        seeds = tuple(seed)
        seeds += tuple(random_seed() for _ in range(songs - len(seeds)))
        values = {"prompt": prompt, "lyrics": lyrics, "duration": duration, "seeds": seeds, **options}
        arguments = self.family.surface(self).arguments({k: v for k, v in values.items() if v is not None})
        if output_type not in ("audio", "latent"):
            raise ConfigError(f"output_type must be audio or latent, got {output_type!r}")
        request = request_for(self.family, self.folder, arguments, literal=True)
        settings = self.family.song_settings(self.folder)
        for name, why in settings.reasons(arguments, request.task).items():
            warnings.warn(f"{name} changes nothing: {why}", stacklevel=2)
        if output_type == "audio" and src_latents is None and latents is None:
            sound = self.run(request, source_audio=source_audio, progress=progress)
            return sound if several else sound[0]
        if src_latents is None and source_audio is None:
            source_audio = self.read_source(request)
        given = src_latents if source_audio is None else self.codec.encode(source_audio)
        made = self._latents(request, given, None, progress, latents)
        if output_type == "latent":
            return made
        sound = self._sound(made, source_audio, progress)
        return sound if several or songs > 1 else sound[0]


def random_seed() -> int:
    """A seed of ten digits at most, easy to write down."""
    return secrets.randbelow(2**32)
