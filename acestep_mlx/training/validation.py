"""Clips made during training: same prompts, lyrics and seed each time, with the LoRA, once without it."""

from __future__ import annotations

import contextlib
import json
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn

from ..config.request import Request
from ..config.run import RunConfig
from ..errors import ConfigError, DataError
from ..families import of_flavour
from ..families.model_folder import ModelFolder
from ..families.requests import request_for
from ..io import schema
from ..io.audio import write_audio
from ..io.hashes import hash_text
from ..io.loudness import loudness
from ..io.progress import Advance, Progress, phase
from ..lora.apply import apply_loras, remove_loras
from ..lora.surgery import disabled, evaluating, from_model
from ..pipeline import ACEStepPipeline
from ..report.events import Listeners, ValidationClip, read_metrics
from ..sampling.record import SOFTWARE
from .output import METRICS
from .settings import COMPUTE_DTYPES, lora_spec

SLUG_BYTES = 120  # of the 255 that a file name may have

#: `validation_prompt_library=audio`: name → (caption, lyrics)
LIBRARY: dict[str, tuple[str, str]] = {
    "piano_ballad": (
        "slow piano ballad, warm, intimate, female voice, strings",
        "[verse]\nA light is on across the bay\nIt knows the words I did not say\n\n[chorus]\nStay until "
        "the morning\n",
    ),
    "house": ("house, 124 bpm, four on the floor, synth bass, bright, club", "[inst]\n"),
    "folk": (
        "acoustic folk, guitar, male voice, calm, fireside",
        "[verse]\nThe road goes over hill and stone\nAnd every river leads me home\n",
    ),
}


@dataclass(frozen=True)
class Prompt:
    name: str
    caption: str
    lyrics: str


def prompts(config: RunConfig) -> list[Prompt]:
    """What to make clips of; ConfigError for a library file that cannot be read."""
    found = []
    if config.validation_prompt:
        found.append(Prompt("validation", config.validation_prompt, config.validation_lyrics or ""))
    library = config.validation_prompt_library
    if library in (True, "audio", "true"):
        found += [Prompt(name, *texts) for name, texts in LIBRARY.items()]
    elif library:
        found += _library_file(config.resolve(str(library)), config.validation_lyrics or "")
    names: dict[str, str] = {}
    for prompt in found:
        slug = _slug(prompt.name)
        if slug in names:
            raise ConfigError(
                f"validation prompts {names[slug]!r} and {prompt.name!r} share a file name; rename one"
            )
        names[slug] = prompt.name
    return found


_LIBRARY_ENTRY = schema.record({"prompt": schema.text}, {"lyrics": schema.text}, strict=True)


def _library_file(path: Path, lyrics: str) -> list[Prompt]:
    """`{name: caption}` or `{name: {"prompt": …, "lyrics": …}}`."""
    where = f"validation_prompt_library={path}"
    try:
        content = schema.parse_json(schema.read_file(path))
    except OSError as error:
        raise ConfigError(f"{where} cannot be read: {error.strerror or error}") from None
    except ValueError as error:
        raise ConfigError(f"{where} is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{where} must be a JSON object of names and captions")
    found = []
    for name, entry in content.items():
        entry = {"prompt": entry} if isinstance(entry, str) else entry
        if not isinstance(entry, dict) or not isinstance(entry.get("prompt"), str):
            raise ConfigError(f"{where}: {name!r} must be a caption")
        try:
            checked = _LIBRARY_ENTRY(entry, name)
        except schema.Mismatch as error:
            raise ConfigError(f"{where}: {error}") from None
        found.append(Prompt(name, checked["prompt"], checked.get("lyrics", lyrics)))
    return found


def requests(config: RunConfig, folder: ModelFolder | None = None) -> dict[str, Request]:
    """The song that each prompt asks for, by its name. folder: of the model that makes it, if there is one.

    A model's own defaults come before the configuration's. Raises ConfigError where it makes no sense.
    """
    if config.validation_disable:
        return {}
    family = of_flavour(config.model_flavour) if folder is None else folder.family
    own = family.song_settings(folder).defaults
    set_by = {"steps": "validation_num_inference_steps", "guidance_scale": "validation_guidance"}
    common = {
        name: getattr(config, option)
        for name, option in set_by.items()
        if name not in own or config.origin(option) != "default"
    }
    common |= {"duration": config.validation_audio_duration, "seeds": (config.validation_seed,)}
    common |= {"negative_prompt": config.validation_negative_prompt or ""}
    return {
        p.name: request_for(
            family, folder, {**common, "prompt": p.caption, **({"lyrics": p.lyrics} if p.lyrics else {})}
        )
        for p in prompts(config)
    }


class Heard(NamedTuple):
    """A transformer with the LoRA as it is now. without: while it lasts, the LoRA is off."""

    model: nn.Module
    without: Callable[[], contextlib.AbstractContextManager[None]]


@dataclass
class Clips:
    """How many clips are made at a step, and how many of them were begun."""

    total: int
    begun: int = 0


class _Stopped(Exception):
    """The run was asked to stop while a clip was made."""


@dataclass
class Validation:
    """The clips of a run: what is asked for, by name, and its texts as the encoders read them.

    folder: of the model that clips are made with; borrowed: it is not the one that is trained. target: where
    they are written.
    """

    config: RunConfig
    folder: ModelFolder
    target: Path
    borrowed: bool
    requests: dict[str, Request]
    conditions: dict[str, Any]
    _told: set[str] | None = None  # clips without LoRA that were named, in earlier starts too

    @classmethod
    def encoded(
        cls, config: RunConfig, folder: ModelFolder, output_dir: Path, *, borrowed: bool = False
    ) -> Validation:
        """Before the model is loaded: the texts are encoded now, and the text encoder is freed again."""
        asked = requests(config, folder)
        conditions = {}
        if asked:
            pipeline = ACEStepPipeline(folder, low_memory=True)
            conditions = {name: pipeline.prepare(request) for name, request in asked.items()}
            mx.eval([c.prompt for c in conditions.values()])
            pipeline.release()
        return cls(config, folder, output_dir / "validation", borrowed, asked, conditions)

    def __call__(
        self,
        model: nn.Module,
        step: int,
        emit: Listeners,
        stopped: Callable[[], bool] = lambda: False,
        averaged: bool = False,
        clips: Clips | None = None,
    ) -> None:
        """Make and write all clips, or as many as there are until `stopped` says so.

        averaged: the LoRA that the model has now is the averaged one. clips: of which these are a part, as
        `planned` gives them. The model's LoRA is in
        evaluation mode meanwhile. Clips that cannot be written are named and left out.
        """
        if not self.requests:
            return
        begin = partial(_begun, clips or self.planned(1), emit, stopped)
        try:
            with evaluating(model), self._heard(model) as heard:
                for name in self.requests:
                    self._clips(heard, name, step, emit, begin, averaged)
        except _Stopped:
            pass
        except DataError as error:
            emit.notice(f"validation clip: {error}", "warning")
        finally:
            mx.clear_cache()

    @contextlib.contextmanager
    def _heard(self, model: nn.Module) -> Iterator[Heard]:
        """What clips are made with: the model, or for as long as that lasts another with the model's LoRA."""
        if not self.borrowed:
            yield Heard(model, lambda: disabled(model))
            return
        dtype = COMPUTE_DTYPES[self.config.mixed_precision]
        other = self.folder.load("transformer", dtype=dtype, quantize=self.config.quantization)
        loras = [(from_model(model, lora_spec(self.config)), 1.0)]
        apply_loras(other, loras)

        @contextlib.contextmanager
        def without() -> Iterator[None]:
            remove_loras(other)
            try:
                yield
            finally:
                apply_loras(other, loras)

        yield Heard(other, without)

    def _clips(
        self,
        heard: Heard,
        name: str,
        step: int,
        emit: Listeners,
        begin: Callable[[], Progress],
        averaged: bool,
    ) -> None:
        """The clip of a prompt with the LoRA, and once the one without it."""
        model, base = heard.model, self._base(name)
        if not base.is_file():
            with heard.without():
                level = self._clip(model, name, base, begin())
        else:
            level = math.nan
        if self._told is None:
            rows = read_metrics(self.target.parent / METRICS)
            self._told = {row["path"] for row in rows if row["event"] == "clip" and not row["with_lora"]}
        if str(base) not in self._told:
            self._told.add(str(base))
            emit(self._event(name, base, 0, False, level))
        path = self.target / f"step_{step}_{_slug(name)}{'_ema' if averaged else ''}_0.wav"
        level = self._clip(model, name, path, begin())
        emit(replace(self._event(name, path, step, True, level), averaged=averaged))

    def planned(self, weights: int) -> Clips:
        """Those of a step, with so many weights; those without LoRA are made once."""
        missing = sum(not self._base(name).is_file() for name in self.requests)
        return Clips(missing + len(self.requests) * weights)

    def _base(self, name: str) -> Path:
        """The clip without LoRA."""
        return self.target / f"base_{_slug(name)}_{self._digest(name)}.wav"

    def _clip(self, model: nn.Module, name: str, path: Path, progress: Progress) -> float:
        """Make and write one; its loudness in LUFS."""
        pipeline = ACEStepPipeline(self.folder, low_memory=True, transformer=model)
        sound = pipeline.run(self.requests[name], conditions=self.conditions[name], progress=progress)[0]
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(f"{path.parent} cannot be made: {error.strerror or error}") from None
        sample_rate = self.folder.family.latents.sample_rate
        write_audio(path, sound, sample_rate, tags={"software": SOFTWARE})
        return loudness(sound, sample_rate)

    def _event(self, name: str, path: Path, step: int, with_lora: bool, level: float) -> ValidationClip:
        request, lyrics = self.requests[name], self.requests[name].lyrics
        clip = ValidationClip(step, name, request.prompt, str(path), request.seeds[0], with_lora)
        return replace(clip, lyrics=lyrics, loudness=level)

    def _digest(self, name: str) -> str:
        """Of all that the song without LoRA depends on, so that an earlier run's clip is not taken for it."""
        facts = [self.requests[name].to_dict(), self.folder.fingerprints]
        return hash_text(json.dumps(facts, sort_keys=True))[:8]


def _begun(clips: Clips, emit: Listeners, stopped: Callable[[], bool]) -> Progress:
    """Another clip begins; what is to be told of it. Raises _Stopped once the run is asked to stop."""
    clips.begun += 1
    stage = f"making clip {clips.begun} of {clips.total}"

    def tell(advance: Advance) -> None:
        if stopped():
            raise _Stopped
        share = f"{advance.stage} {100 * advance.done / advance.total:.0f} %" if advance.total else ""
        emit.progress(phase(stage, note=share))

    tell(Advance())
    return tell


def _slug(name: str) -> str:
    """A part of a file name, short enough that a step and a suffix fit beside it."""
    slug = re.sub(r"[^\w-]+", "_", name).strip("_") or "prompt"
    return slug.encode()[:SLUG_BYTES].decode(errors="ignore")
