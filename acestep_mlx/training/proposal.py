"""A run for somebody's songs on this machine: what fits, why, and roughly how long it takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from ..config.read_run import load_config
from ..families import of_flavour
from ..formatting import count, duration, listed, size
from .memory import budget, encoding, estimate, loads, machine_memory, released_sizes
from .pace import SLACK, Rates, recomputed, song_seconds

if TYPE_CHECKING:
    from ..config.run import RunConfig
    from ..data.manifest import Manifest
    from ..families.model_folder import ModelFolder

FULL, INT8, INT4 = "no_change", "int8-quanto", "int4-quanto"
#: precision of the base and seconds of a part, the best first
LADDER: tuple[tuple[str, float | None], ...] = (
    (FULL, None), (INT8, None), (INT8, 120.0), (INT8, 60.0), (INT4, 60.0), (INT4, 30.0),
)  # fmt: skip
RANK, SMALL_RANK = 32, 16
SPARE = 0.9  # of what is usable: the rest is for what else runs
PASSES = 40  # over the songs, a part of a long one counting for itself
FEWEST, MOST = 500, 2000  # steps
LOW, HIGH = 1 / SLACK, 2.0  # what a step may take, of what is expected
CLIP_SECONDS = 30.0


@dataclass(frozen=True)
class Model:
    """What is trained: a flavour's released model, or a folder. sizes: of its transformer."""

    flavour: str
    name: str
    sizes: Any
    bits: int | None = None
    folder: ModelFolder | None = None

    @classmethod
    def released(cls, flavour: str) -> Model:
        """The one on the hub."""
        repository = of_flavour(flavour).variants[flavour].repository
        return cls(flavour, repository, released_sizes(load_config({"model_flavour": flavour})))


@dataclass(frozen=True)
class Proposal:
    """A run. need: bytes at the worst step, of `room`. part: seconds of a song that are trained on at a time.
    place: how far down the ladder it is.
    """

    model: Model
    precision: str
    crop: float | None
    rank: int
    need: float
    room: float
    part: float
    place: int

    @property
    def fits(self) -> bool:
        """Whether the worst step stays within what is usable."""
        return self.need <= self.room


def propose(model: Model, manifest: Manifest, room: float | None = None) -> Proposal:
    """The best rung of the ladder that fits `room` bytes (default: what this machine lets a run use), else
    the last one, with a smaller rank.
    """
    room = budget() if room is None else room
    longest = max(sample.seconds for sample in manifest.samples)
    family = of_flavour(model.flavour)
    longest = min(longest, family.latents.max_seconds)
    found: list[Proposal] = []
    for place, (precision, crop) in enumerate(LADDER):
        if (crop is not None and crop >= longest) or (model.bits is not None and precision == INT4):
            continue
        kept = FULL if model.bits is not None else precision
        need = _need(model, manifest, kept, crop, RANK)
        found.append(Proposal(model, kept, crop, RANK, need, room, min(longest, crop or longest), place))
        if need <= SPARE * room:
            return found[-1]
    last = found[-1]
    need = _need(model, manifest, last.precision, last.crop, SMALL_RANK)
    return Proposal(model, last.precision, last.crop, SMALL_RANK, need, room, last.part, len(LADDER))


def _config(model: Model, precision: str, rank: int) -> RunConfig:
    return load_config({"model_flavour": model.flavour, "base_model_precision": precision, "lora_rank": rank})


def _need(model: Model, manifest: Manifest, precision: str, crop: float | None, rank: int) -> float:
    """Bytes at the worst step."""
    family, config = of_flavour(model.flavour), _config(model, precision, rank)
    most = min(family.latents.max_seconds, crop or family.latents.max_seconds)
    songs = []
    for sample in manifest.samples:
        seconds = max(min(sample.seconds, most), family.latents.min_seconds)
        frames = family.latents.covering(round(seconds * family.latents.sample_rate))
        songs.append((frames, sample.lyrics))
    found = loads(songs, 1, family, model.folder)
    steps = (estimate(config, load, model=model.sizes, stored_bits=model.bits).total for load in found)
    longest = max(min(sample.seconds, family.latents.max_seconds) for sample in manifest.samples)
    return max(*steps, encoding(family, longest, model.folder))


def steps_for(manifest: Manifest, proposal: Proposal) -> int:
    """Steps in which every part of the songs comes up some forty times, in hundreds."""
    parts = sum(max(1.0, sample.seconds / proposal.part) for sample in manifest.samples)
    return int(min(MOST, max(FEWEST, round(parts * PASSES, -2))))


def bits_of(proposal: Proposal) -> int | None:
    """Of a weight that is trained on; None where it is not quantised."""
    if proposal.model.bits is not None:
        return proposal.model.bits
    bits: int | None = (_config(proposal.model, proposal.precision, RANK).quantization or {}).get("bits")
    return bits


def step_seconds(proposal: Proposal, manifest: Manifest, rates: Rates) -> float:
    """About what a step takes, in the mean over the songs; what is computed again is so in all."""
    model, family = proposal.model, of_flavour(proposal.model.flavour)
    config = _config(model, proposal.precision, proposal.rank)
    options: Any = {"model": model.sizes, "stored_bits": model.bits}
    chosen = recomputed(config, family.memory.load(proposal.part), proposal.room, **options)
    parts = (min(sample.seconds, proposal.part) for sample in manifest.samples)
    return fmean(song_seconds(config, part, chosen, rates, **options) for part in parts)


def run_config(
    proposal: Proposal, manifest: Manifest, steps: int, folder: Path, trigger: str
) -> dict[str, Any]:
    """config.json: what is not a default, and what somebody will want to change. folder: of the run."""
    quarter = max(1, steps // 4)
    heard = next((one for one in manifest.samples if one.captions[0]), manifest.samples[0])
    caption = " ".join(part for part in (trigger, heard.captions[0]) if part)
    config: dict[str, Any] = {
        "model_family": "ace_step",
        "model_type": "lora",
        "model_flavour": proposal.model.flavour,
        "pretrained_model_name_or_path": proposal.model.name,
        "data_backend_config": str(folder / "multidatabackend.json"),
        "output_dir": str(folder / "output"),
        "cache_dir": str(folder / "cache"),
        "base_model_precision": proposal.precision,
        "mixed_precision": "bf16",
        "lora_rank": proposal.rank,
        "learning_rate": 1e-4,
        "lr_scheduler": "constant_with_warmup",
        "lr_warmup_steps": 10,
        "max_train_steps": steps,
        "checkpoint_step_interval": quarter,
        "resume_from_checkpoint": "latest",
    }
    if caption:
        config |= {
            "validation_prompt": caption,
            **({"validation_lyrics": heard.lyrics} if heard.lyrics else {}),
            "validation_step_interval": quarter,
            "validation_audio_duration": CLIP_SECONDS,
        }
    return config


def data_config(proposal: Proposal, songs: Path, trigger: str) -> list[dict[str, Any]]:
    """multidatabackend.json."""
    entry: dict[str, Any] = {
        "id": "my-songs", "type": "local", "dataset_type": "audio",
        "instance_data_dir": str(songs), "caption_strategy": "textfile",
    }  # fmt: skip
    if trigger:
        entry |= {"instance_prompt": trigger, "prepend_instance_prompt": True}
    if proposal.crop is not None:
        entry["audio"] = {"crop_seconds": proposal.crop}
    return [entry]


# ── words ────────────────────────────────────────────────────────────────────────────────────────────
def song_lines(manifest: Manifest) -> list[str]:
    """What the songs are, and what is wrong with them, the most important first."""
    (one,) = manifest.report.sets
    lengths = sorted(sample.seconds for sample in manifest.samples)
    languages = ", ".join(list(one.languages())[:4])
    out = [
        f"{count(one.songs, 'song')}, {duration(one.seconds)} in all, each from {duration(lengths[0])} to "
        f"{duration(lengths[-1])}; lyrics: {len(one.lyrics)}{languages and f' ({languages})'}"
    ]
    found = manifest.report.sets[0].problems()
    return out + [f"{len(names)} {what} ({listed(names)})" for what, names in found if names]


def _fetched(model: Model) -> str:
    if model.folder is not None:
        return ""
    return f"; about {of_flavour(model.flavour).variants[model.flavour].fetched:g} GB are downloaded once"


def between(seconds: float) -> str:
    """What may become of a time that is expected so: `5 to 16 hours`, `40 minutes to 2 hours`."""
    low, high = rough(LOW * seconds), rough(HIGH * seconds)
    if high == "1 minute":
        return "a minute at most"
    (least, unit), (_, other) = low.split(), high.split()
    same = unit.rstrip("s") == other.rstrip("s") and low != high
    return f"{least} to {high}" if same else f"{low} to {high}"


def rough(seconds: float) -> str:
    """A time of which only the size is known: `40 minutes`, `3 hours`, `12 days`."""
    for unit, length in (("day", 86400), ("hour", 3600)):
        if seconds >= 2 * length:
            return count(round(seconds / length), unit)
    return count(max(1, round(seconds / 60)), "minute")


def reasons(
    proposal: Proposal, manifest: Manifest, steps: int, trigger: str, seconds: float
) -> list[tuple[str, str]]:
    """Each choice, and why it was made. seconds: about what a step takes."""
    model, family = proposal.model, of_flavour(proposal.model.flavour)
    memory = f"about {size(proposal.need)} of {size(proposal.room)} usable ({size(machine_memory())} in all)"
    whole = {FULL: "as it is, which loses nothing", INT8: "8 bits", INT4: "4 bits, as 8 do not fit"}
    precision = (
        whole[proposal.precision] if model.bits is None else f"{model.bits} bits, as the folder has it"
    )
    out = [
        ("model", f"{family.title} ({model.flavour}), {model.name}{_fetched(model)}"),
        ("memory", f"{memory}: {'fits' if proposal.fits else 'does not fit, use a larger machine'}"),
        ("precision", f"{proposal.precision}: {precision}"),
        ("rank", f"{proposal.rank}: {'the usual' if proposal.rank == RANK else f'as {RANK} does not fit'}"),
    ]
    if proposal.crop is None:
        out.append(("length", f"whole songs, up to {duration(proposal.part)}"))
    else:
        text = f"a random part of {proposal.crop:g} s each time, as whole songs do not fit"
        out.append(("length", text))
    heard = steps / len(manifest.samples)
    out.append(("steps", f"{steps:,}: each song comes up about {heard:,.0f} times"))
    out.append(
        (
            "time",
            f"estimated, {between(steps * seconds)} of steps, by what a step has to do and by products and "
            "memory timed here; the first steps of training show what one takes. Encoding the songs once and "
            "making clips come on top",
        )
    )
    if not trigger and len(manifest.report.sets[0].no_caption) == len(manifest.samples):
        out.append(("trigger", "none, and no song has a caption: --trigger WORD gives them one"))
    if trigger:
        out.append(("trigger", f"{trigger!r} stands before every caption: write it to call the LoRA up"))
    return out


def best(models: Sequence[Model], manifest: Manifest, room: float | None = None) -> Proposal:
    """Of several models the one that fits best; of those as good, the last."""
    found = [propose(model, manifest, room) for model in models]
    place = min(proposal.place for proposal in found)
    return next(proposal for proposal in reversed(found) if proposal.place == place)
