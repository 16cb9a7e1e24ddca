"""Everything a song is asked for with, declared once: type, default, range, help.

The command line makes its options from these fields, the JSON beside an audio file stores them, and
`ACEStepPipeline.generate` takes them as keywords. Imports nothing heavy.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import Any

from ..errors import ConfigError, DataError, nearest
from ..io.filenames import at_home
from ..io.schema import Mismatch
from ..registry import FRAME, MAX_SECONDS, default
from ..text.languages import forced_language
from .option import Option, PathText, declared, option
from .parsing import check_of

TASKS = ("text2music", "retake", "repaint", "extend", "edit", "audio2audio", "cover")
NEEDS_SOURCE = ("repaint", "extend", "edit", "audio2audio", "cover")
SCHEDULERS = ("euler", "heun", "pingpong")
GUIDANCE = ("apg", "cfg", "cfg_star")
SHIFT = 3.0
MAX_SEED = 2**63 - 1
MODELS_OWN = ("lyrics", "steps", "guidance_scale", "guidance_interval")  # of which models may have defaults
SHORTEST = 0.01  # seconds of a song, before its model is asked
ANEW = ("text2music", "retake")  # tasks without a source
SAMPLED = tuple(task for task in TASKS if task != "edit")  # an edit has a loop of its own


@dataclass(frozen=True)
class Request:
    """One song or, with several seeds, several. Raises ConfigError when it makes no sense."""

    # fmt: off
    prompt: str = option("", "What the music is like: genre, instruments, mood, tempo, voice.")
    lyrics: str = option("", "Lyrics, with [verse]-like marks on lines of their own.")
    lyrics_language: str = option("auto", "Language of the lyrics (ja, Japanese, ...); auto: found by line.")
    vocal_language: str = option("auto", "What the model is told of the language (en, zh, unknown, ...).")
    bpm: float | None = option(None, "Tempo that the model is told.", low=0, high=1000)
    keyscale: str | None = option(None, "Key that the model is told (C major, ...).")
    timesignature: str | None = option(None, "Beats a bar that the model is told (4, 3, ...).")
    instruction: str | None = option(None, "What the model is told to do (default: the task's sentence).")
    negative_prompt: str = option("", "What the music should not be like; in place of an empty prompt.",
        tasks=SAMPLED)
    task: str = option("text2music", "What to make.", choices=TASKS)
    duration: float = option(30.0, "Length; with a source, the source's length.", low=SHORTEST,
        high=MAX_SECONDS, unit="s", tasks=ANEW)
    seeds: tuple[int, ...] = option((0,), "One song for each seed.", low=0, high=MAX_SEED)
    steps: int = option(60, "Denoising steps.", low=1, high=1000)
    scheduler: str = option("euler", "How steps are taken (heun evaluates the model twice).",
        choices=SCHEDULERS)
    shift: float = option(SHIFT, "Shift of the noise levels towards 1.", low=0.01, high=100)
    oss_steps: tuple[int, ...] = option((),
        "Take only these steps (rising numbers from 1) of as many as the last says.", low=1, high=1000,
        tasks=tuple(task for task in SAMPLED if task != "audio2audio"))
    guidance: str = option("apg", "How guidance is computed.", choices=GUIDANCE)
    guidance_scale: float = option(15.0, "Strength of guidance; 0 or 1 switches it off.", low=0, high=100)
    guidance_interval: float = option(0.5, "Share of the run, in its middle, that is guided.", low=0, high=1,
        tasks=SAMPLED)
    cfg_interval_start: float = option(0.0, "Guide from this share of the noise's way to music on.",
        low=0, high=1, tasks=SAMPLED)
    cfg_interval_end: float = option(1.0, "Guide up to this share of it.", low=0, high=1, tasks=SAMPLED)
    guidance_decay: float = option(0.0, "How far the scale falls within the interval.", low=0, high=1,
        tasks=SAMPLED)
    min_guidance_scale: float = option(3.0, "The scale that decay falls towards.", low=0, high=100,
        tasks=SAMPLED)
    guidance_scale_text: float = option(0.0,
        "With the next one above 1 too: guide text and lyrics each by its own scale.", low=0, high=100,
        tasks=SAMPLED)
    guidance_scale_lyric: float = option(0.0, "The lyrics' own scale.", low=0, high=100, tasks=SAMPLED)
    zero_steps: int = option(1, "cfg_star: guided steps up to this one move nothing.", low=0, high=1000)
    zero_init: bool = option(True, "cfg_star: use zero steps at all.")
    omega: float = option(10.0, "Granularity: gain on what departs from a step's mean.", low=-100, high=100,
        tasks=SAMPLED)
    erg_tag: bool = option(True, "ERG: guide away from a weakened prompt instead of from nothing.",
        tasks=SAMPLED)
    erg_lyric: bool = option(True, "ERG: guide away from weakened lyrics instead of from nothing.",
        tasks=SAMPLED)
    erg_diffusion: bool = option(True, "ERG: weaken the model itself for the unconditional pass.",
        tasks=SAMPLED)
    source: PathText | None = option(None,
        "The song to repaint, extend, edit or start from (an audio file).")
    variance: float | None = option(None,
        "retake, repaint, extend: how much may change (default 0.5; extend: 1).", low=0, high=1,
        tasks=("retake", "repaint", "extend"))
    retake_seeds: tuple[int, ...] = option((), "Seeds of the changed part (default: seed + 1).",
        low=0, high=MAX_SEED, tasks=("retake", "repaint", "extend", "edit"))
    repaint_start: float = option(0.0, "Start of the section to repaint.", low=0, high=MAX_SECONDS, unit="s",
        tasks=("repaint",))
    repaint_end: float | None = option(None, "Its end (default: the song's).", low=0, high=MAX_SECONDS,
        unit="s", tasks=("repaint",))
    extend_left: float = option(0.0, "Add this much before the song.", low=0, high=MAX_SECONDS, unit="s",
        tasks=("extend",))
    extend_right: float = option(0.0, "Add this much after the song.", low=0, high=MAX_SECONDS, unit="s",
        tasks=("extend",))
    edit_prompt: str | None = option(None, "edit: the new prompt (default: the same).", tasks=("edit",))
    edit_lyrics: str | None = option(None, "edit: the new lyrics (default: the same).", tasks=("edit",))
    edit_begin: float = option(0.0, "edit: leave out this share of the steps at first.", low=0, high=1,
        tasks=("edit",))
    edit_end: float = option(1.0, "edit: after this share sample freely.", low=0, high=1, tasks=("edit",))
    edit_samples: int = option(1, "edit: noises to average over in each step.", low=1, high=64,
        tasks=("edit",))
    reference_strength: float = option(0.5, "audio2audio: how much of the source stays.", low=0, high=1,
        tasks=("audio2audio",))
    cover_strength: float = option(1.0, "cover: how much the source leads.", low=0, high=1,
        tasks=("cover",))
    # fmt: on

    def __post_init__(self) -> None:
        for name, one in REQUEST.items():
            object.__setattr__(self, name, _check(one, getattr(self, name)))
        forced_language(self.lyrics_language, "lyrics_language")
        if not self.seeds:
            raise ConfigError("seeds must have at least one number")
        if self.retake_seeds and len(self.retake_seeds) != len(self.seeds):
            raise ConfigError(
                f"retake_seeds must be as many as seeds ({len(self.seeds)}), got {len(self.retake_seeds)}"
            )
        if self.task == "extend" and not (self.extend_left or self.extend_right):
            raise ConfigError("extend needs extend_left or extend_right (seconds)")
        if self.task == "edit" and self.edit_prompt is None and self.edit_lyrics is None:
            raise ConfigError("edit needs edit_prompt or edit_lyrics")
        if self.cfg_interval_start > self.cfg_interval_end:
            raise ConfigError(
                f"cfg_interval_start must not lie after cfg_interval_end, got {self.cfg_interval_start} and "
                f"{self.cfg_interval_end}"
            )
        if self.edit_begin > self.edit_end:
            raise ConfigError(
                f"edit_begin must not lie after edit_end, got {self.edit_begin} and {self.edit_end}"
            )
        if self.repaint_end is not None and self.repaint_end <= self.repaint_start:
            raise ConfigError(
                f"repaint_end must lie after repaint_start ({self.repaint_start}), got {self.repaint_end}"
            )
        _check_frames(vars(self), FRAME)
        if self.oss_steps and self.task in ("edit", "audio2audio"):
            raise ConfigError(f"oss_steps cannot be used with {self.task}")
        if self.task == "edit" and self.guidance_scale_text > 1 and self.guidance_scale_lyric > 1:
            raise ConfigError("guidance_scale_text and guidance_scale_lyric cannot be used with edit")
        if any(b <= a for a, b in pairwise(self.oss_steps)):
            raise ConfigError(f"oss_steps must be rising step numbers, got {list(self.oss_steps)}")

    @property
    def needs_source(self) -> bool:
        """Whether the task starts from a song."""
        return self.task in NEEDS_SOURCE

    @property
    def change(self) -> float:
        """`variance`, or the task's default."""
        if self.variance is not None:
            return self.variance
        return 1.0 if self.task == "extend" else 0.5

    @property
    def other_seeds(self) -> tuple[int, ...]:
        """Seeds of the second noise of retake, repaint and extend, and of all noise of edit."""
        return self.retake_seeds or tuple((seed + 1) % (MAX_SEED + 1) for seed in self.seeds)

    def for_seed(self, index: int) -> Request:
        """The request that makes song number `index` alone."""
        return replace(self, seeds=(self.seeds[index],), retake_seeds=(self.other_seeds[index],))

    def check_source(self) -> None:
        """DataError when the task's source is not given or not there."""
        if not self.needs_source:
            if self.source is not None:
                raise ConfigError(f"{self.task} takes no source; choose a task of {', '.join(NEEDS_SOURCE)}")
            return
        if self.source is None:
            raise ConfigError(f"{self.task} needs a source: the audio file to start from")
        if not at_home(self.source).is_file():
            raise DataError(f"there is no audio file {self.source}")

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], where: str = "", latents: Any = None) -> Request:
        """The reverse; ConfigError names a key that is not known. latents: the model's `LatentSpec`, whose
        limits hold; None: the first family's.
        """
        latents = latents or default().latents
        low, high = latents.shortest, latents.max_seconds
        try:
            for key, value in values.items():
                if key not in REQUEST:
                    raise ConfigError(f"unknown setting {key!r}{nearest(key, REQUEST)}")
                one = REQUEST[key]
                if one.high == MAX_SECONDS:
                    _check(replace(one, low=low if one.low == SHORTEST else one.low, high=high), value)
            _check_frames(values, latents.seconds(1))
            return cls(**values)
        except ConfigError as error:
            raise ConfigError(f"{error}{where and f' ({where})'}") from None

    def idle(self, given: Iterable[str]) -> dict[str, str]:
        """Which of the settings that somebody has `given` change nothing here, and why."""
        reasons = {
            name: f"{self.task} does not use it"
            for name, one in REQUEST.items()
            if one.tasks and self.task not in one.tasks
        }
        if self.needs_source:
            more = ", plus what is added" if self.task == "extend" else ""
            reasons["duration"] = f"{self.task} has the length of its source{more}"
        guided = self.guidance_scale not in (0, 1)
        double = guided and self.guidance_scale_text > 1 and self.guidance_scale_lyric > 1
        for names, idle, why in (
            (("steps",), self.oss_steps, "oss_steps says how many there are"),
            (("zero_steps", "zero_init"), self.guidance != "cfg_star", "they belong to guidance cfg_star"),
            (("min_guidance_scale",), not self.guidance_decay, "guidance_decay is 0"),
            (("guidance_scale_text", "guidance_scale_lyric"), not double, "both must be above 1"),
            (("guidance", "guidance_decay", "guidance_interval", "negative_prompt", "cfg_interval_start",
              "cfg_interval_end"), not guided, "a guidance_scale of 0 or 1 switches guidance off"),
            (("lyrics_language", "vocal_language"), not (self.lyrics or self.edit_lyrics),
             "there are no lyrics"),
        ):  # fmt: skip
            reasons |= dict.fromkeys(names, why) if idle else {}
        return {name: reasons[name] for name in given if name in reasons}


#: every field of a request by name
REQUEST = declared(Request)


def _check_frames(given: Mapping[str, Any], frame: float) -> None:
    """ConfigError for a part of a request that is shorter than a latent frame of so many seconds."""
    for name in ("extend_left", "extend_right"):
        if 0 < given.get(name, 0) < frame:
            raise ConfigError(
                f"{name} must be 0 or at least {frame:.2g} s, one latent frame, got {given[name]}"
            )
    start, end = given.get("repaint_start", 0.0), given.get("repaint_end")
    if end is not None and start < end < start + frame:
        raise ConfigError(
            f"the section to repaint must last at least {frame:.2g} s, one latent frame; it goes from "
            f"{start} to {end}"
        )


def _check(option: Option, value: Any) -> Any:
    """The value of an option; ConfigError where it cannot have it."""
    try:
        return check_of(option)(value, option.name)
    except Mismatch as error:
        raise ConfigError(str(error)) from None
