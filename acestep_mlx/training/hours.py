"""About how long a run takes, before it begins: from its own first steps where it goes on, else estimated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any

from ..config.run import RunConfig
from ..data.manifest import Manifest, Sample
from ..families import of_flavour
from ..report.events import read_metrics
from .evaluation import TIMESTEPS
from .intervals import Agenda, ToCome
from .memory import Recomputed, released_sizes, weight_bytes
from .output import METRICS
from .pace import SLACK, Rates, song_seconds
from .preflight import Preflight
from .proposal import between, rough
from .settings import measured_weights
from .validation import requests

RECENT = 50  # steps whose speed tells that of the next
FORWARDS = 3  # passes forward that a step which computes all again equals: two, and the gradient


@dataclass(frozen=True)
class Hours:
    """Seconds. train: of all steps, evaluations and clips that are to come. measured: of one step in this
    run, which the time of steps is then made of; 0 where everything is estimated.
    """

    encode: float
    train: float
    measured: float

    @property
    def training(self) -> str:
        """For people."""
        return f"about {rough(self.train)}" if self.measured else between(self.train)

    @property
    def basis(self) -> str:
        """What it was made of."""
        if self.measured:
            return f"{self.measured:.2g} s a step, as measured in this run"
        return "estimated by products and memory timed here"


def hours(
    config: RunConfig,
    found: Preflight,
    manifest: Manifest,
    agenda: Agenda,
    cached: set[str],
    rates: tuple[Rates, Rates],
    recomputed: Recomputed,
) -> Hours:
    """Of a run on these songs. cached: ids of those whose sound is encoded already. rates: of this machine,
    with the weights of the base and with those of the encoders. recomputed: in all steps, as in the worst.
    """
    family, sizes = manifest.family, found.model.transformer or released_sizes(config)
    left = sum(sample.seconds for sample in manifest.samples if sample.id not in cached)
    encode = SLACK * left * family.latents.encoding * _share(config, sizes) / rates[1].products

    def step_on(seconds: float, again: Recomputed) -> float:
        return song_seconds(config, seconds, again, rates[0], model=sizes, stored_bits=found.model.bits)

    def forward(seconds: float) -> float:
        return step_on(seconds, Recomputed(sizes.blocks)) / FORWARDS

    evaluated = manifest.held_out or manifest.trained
    one = fmean(step_on(sample.at_once, recomputed) for sample in manifest.trained)
    step = one * config.train_batch_size * config.gradient_accumulation_steps
    measured = measured_step(found.resume.parent / METRICS) if found.resume is not None else 0.0
    steps = max(0, agenda.total - found.step)
    to_come = agenda.after(found.step)
    others = _evaluations(config, evaluated, to_come, fmean(forward(sample.at_once) for sample in evaluated))
    others += _clips(config, to_come, forward(config.validation_audio_duration))
    return Hours(encode, steps * (measured or step) + others, measured)


def _share(config: RunConfig, sizes: Any) -> float:
    """How large the model is, of the released one: in a miniature everything is small."""
    family = of_flavour(config.model_flavour)
    here, released = (weight_bytes(family, one, None, 64, 1) for one in (sizes, released_sizes(config)))
    return min(1.0, here / released)


def measured_step(metrics: Path) -> float:
    """Of a run's last steps, as its metrics.jsonl has them; 0 without any."""
    speeds = [row["steps_per_second"] for row in read_metrics(metrics) if row["event"] == "step"][-RECENT:]
    speeds = [speed for speed in speeds if speed]
    return 1 / median(speeds) if speeds else 0.0


def _evaluations(config: RunConfig, songs: Sequence[Sample], to_come: ToCome, forward: float) -> float:
    """forward: seconds of a pass on a song."""
    if config.eval_loss_disable:
        return 0.0
    at_once = min(config.num_eval_images, len(songs)) * len(TIMESTEPS) * forward
    return (to_come.evaluations + 1) * len(measured_weights(config)) * at_once


def _clips(config: RunConfig, to_come: ToCome, forward: float) -> float:
    """forward: seconds of a pass on a song as long as a clip. Those without the LoRA are made once."""
    made = [one.steps * (2 if one.guidance_scale > 1 else 1) for one in requests(config).values()]
    return (to_come.validations * len(measured_weights(config)) + 1) * sum(made) * forward
