"""`acestep-mlx generate`: a request from flags, a JSON or both; sound files with their story beside them."""

from __future__ import annotations

import math
import os
import shlex
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..config.option import Option
from ..config.parsing import clock
from ..config.request import MODELS_OWN, REQUEST, Request
from ..errors import CheckpointError, ConfigError, DataError
from ..io.filenames import as_stored, at_home
from ..io.hashes import hash_file
from ..io.schema import show
from .again import command_line, flag
from .help_text import Grouped, examples
from .paths import NamedPath
from .player import open_file
from .progress import Display

if TYPE_CHECKING:
    import numpy as np

    from ..families.model_folder import ModelFolder
    from ..families.protocol import LatentSpec
    from ..pipeline import ACEStepPipeline

NUMBERS = {"float": float, "int": int}
PLAIN = "text2music"  # the task of every day
#: options by what they are for; the rest are the expert's
GROUPS = {
    "Basics": (
        *("model", "prompt", "lyrics", "lyrics_file", "duration", "output", "seeds", "batch", "loras"),
        *("lora_scales", "steps", "guidance_scale", "from_json", "bpm", "keyscale", "timesignature"),
        *("lyrics_language", "vocal_language", "plot", "opening", "force"),
    ),
    "Task": (
        *("task", "source"),
        *(name for name, one in REQUEST.items() if one.tasks and PLAIN not in one.tasks),
    ),
    "Expert": (),
}
COMMON = ("prompt", "lyrics", "duration", "steps", "guidance_scale", "seeds")  # at the top of --help


def seconds(value: str) -> float:
    """A length in seconds, or as a clock shows it: `210`, `210s`, `3:30`."""
    found = clock(value)
    if found is not None:
        return found
    try:
        return float(value.strip().removesuffix("s"))
    except ValueError:
        raise click.BadParameter(
            f"{show(value)} is not a length; write seconds (210) or minutes (3:30)"
        ) from None


def numbers(value: str) -> tuple[int, ...]:
    """Whole numbers, separated by commas."""
    try:
        return tuple(int(part) for part in value.split(","))
    except ValueError:
        raise click.BadParameter(f"{show(value)} is not a list of whole numbers") from None


def _option(option: Option) -> Callable[..., Any]:
    """An option of Request as a flag; None where it is not given."""
    typed, help = flag(option.name), option.help
    if option.choices:
        help += f" One of {', '.join(option.choices)}."
    if option.kind == "bool":
        help += f" [default: {'on' if option.default else 'off'}]"
        return click.option(f"{typed}/--no-{typed[2:]}", option.name, default=None, help=help)
    if option.kind == "numbers":
        return click.option(typed, option.name, type=numbers, metavar="N[,N…]", help=help)
    if option.default not in (None, ""):
        own = ", or the model's own" if option.name in MODELS_OWN else ""
        help += f" [default: {option.default}{option.unit and ' ' + option.unit}{own}]"
    kind: Any = seconds if option.unit == "s" else NUMBERS.get(option.kind, str)
    metavar = option.unit.upper() or ("NUMBER" if option.kind in NUMBERS else "TEXT")
    return click.option(typed, option.name, type=kind, metavar=metavar, help=help)


def request_options(*, common: bool) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Fields of Request as flags, those of every day or the rest."""

    def add(command: Callable[..., Any]) -> Callable[..., Any]:
        for name, option in reversed(REQUEST.items()):
            command = _option(option)(command) if (name in COMMON) == common else command
        return command

    return add


@click.command(
    "generate",
    cls=Grouped,
    groups=GROUPS,
    epilog=examples(
        'acestep-mlx generate --model ace-step --prompt "slow jazz, piano" --duration 1:30 -o jazz.wav',
        "acestep-mlx generate --model ace-step --lora my-lora --prompt zyx --lyrics-file song.txt --seed 1,2",
        "acestep-mlx generate --from-json jazz.wav --seed 7 -o other.wav",
        "acestep-mlx generate --from-json jazz.wav --task repaint --source jazz.wav --repaint-start 20",
    ),
)
@click.option(
    "--model", type=NamedPath(str), help="MLX folder that `acestep-mlx convert` wrote.", metavar="DIR"
)
@click.option(
    "--output",
    "-o",
    type=NamedPath(str),
    metavar="FILE_OR_DIR",
    help="wav, flac, mp3 or ogg; or a folder. [default: a name of the prompt]",
)
@request_options(common=True)
@click.option("--lyrics-file", type=NamedPath(str), metavar="FILE", help="Lyrics from a text file.")
@click.option("--batch", type=int, metavar="N", help="So many songs, with seeds that follow the first.")
@click.option(
    "--lora",
    "loras",
    type=NamedPath(str),
    multiple=True,
    metavar="PATH",
    help="A LoRA of any format; repeatable.",
)
@click.option(
    "--lora-scale",
    "lora_scales",
    multiple=True,
    type=float,
    metavar="NUMBER",
    help="Its strength, once for all or once for each. [default: 1]",
)
@click.option("--fuse-loras", is_flag=True, help="Merge LoRAs into the weights first: faster, more memory.")
@click.option("--sample-rate", type=int, metavar="HZ", help="44100 or 48000. [default: the model's]")
@click.option(
    "--from-json",
    type=NamedPath(str),
    metavar="FILE",
    help="Repeat a song from its JSON (or from its sound file); other flags change it.",
)
@click.option("--plot", is_flag=True, help="Write a picture of it (png) as well: waveform and spectrogram.")
@click.option("--open", "opening", is_flag=True, help="Play it at the end, in the system's player.")
@click.option("--force", is_flag=True, help="Replace files that are there.")
@request_options(common=False)
def command(
    model: str | None,
    output: str | None,
    lyrics_file: str | None,
    batch: int | None,
    loras: tuple[str, ...],
    lora_scales: tuple[float, ...],
    fuse_loras: bool,
    sample_rate: int | None,
    from_json: str | None,
    plot: bool,
    opening: bool,
    force: bool,
    **given: Any,
) -> None:
    """Make music from a prompt and lyrics, with or without LoRAs.

    Each song gets a JSON beside it with everything that made it; --from-json repeats it.
    """
    from ..sampling import record

    if lyrics_file is not None:
        given["lyrics"] = _lyrics(lyrics_file, given)
    if given["prompt"] is None and from_json is None:
        raise click.UsageError("--prompt is needed: what the music is like (or --from-json to repeat a song)")
    earlier = record.read_record(from_json) if from_json else {}
    where = f"from {from_json}" if from_json else ""
    if sample_rate is not None and sample_rate not in record.RATES:
        raise ConfigError(f"--sample-rate must be {' or '.join(map(str, record.RATES))}, got {sample_rate}")
    model = model or earlier.get("model", {}).get("path") or _trained_on(loras)
    asked = (earlier.get("request", {}), given, batch, where)
    try:
        pipe = _open(model, fuse_loras)
    except (click.UsageError, CheckpointError):
        _request(*asked)  # what no model makes sense of is said first
        raise
    latents, request = pipe.family.latents, _request(*asked, pipe.folder)
    sample_rate = sample_rate or earlier.get("sample_rate", latents.sample_rate)
    chosen = _loras(loras, lora_scales, earlier)
    request.check_source()
    paths = record.output_paths(output, request)
    beside = [record.beside(path, suffix) for path in paths for suffix in (".json", ".png")[: 1 + plot]]
    seconds = request.duration if request.source is None else 0.0
    largest = math.ceil(seconds * sample_rate * 4)  # as 16-bit stereo, uncompressed
    record.check_writable([*paths, *beside], force=force, largest=largest)
    _load(pipe, chosen)
    source = pipe.read_source(request, lambda what: click.echo(f"note: {what}", err=True))
    facts = _facts(pipe)
    _compare(earlier, facts)
    length = math.inf if source is None else len(source) / latents.sample_rate
    _remark(pipe, request, [name for name, value in given.items() if value is not None], length)
    started = time.perf_counter()
    with Display() as bar:
        songs = pipe.run(request, source_audio=source, progress=bar)
    took = round(time.perf_counter() - started, 2)
    own = [request.for_seed(i).to_dict() for i in range(len(paths))]
    records = [{**facts, "request": one, "sample_rate": sample_rate} for one in own]
    heard = _heard(pipe, songs, records, took)
    _save(zip(paths, songs, records, heard, strict=True), latents.sample_rate, plot, opening)


def _heard(
    pipe: ACEStepPipeline, songs: np.ndarray, records: Sequence[dict[str, Any]], took: float
) -> list[dict[str, Any]]:
    """What is told of each song beside its record. took: seconds for all of them."""
    defaults, rate = pipe.family.song_settings(pipe.folder).defaults, pipe.family.latents.sample_rate
    return [
        {
            "duration": round(len(song) / rate, 3),
            "seconds_for_all": took,
            "command": command_line(one, defaults, rate, fuse_loras=pipe.fuse_loras),
        }
        for song, one in zip(songs, records, strict=True)
    ]


def _open(model: str | None, fuse_loras: bool) -> ACEStepPipeline:
    from ..pipeline import ACEStepPipeline

    if model is None:
        raise click.UsageError(
            "--model is needed: the MLX folder that `acestep-mlx convert` wrote, or that `cache --list` shows"
        )
    return ACEStepPipeline.from_pretrained(model, low_memory=True, fuse_loras=fuse_loras)


def _trained_on(loras: Sequence[str]) -> str | None:
    """The model that the first LoRA was trained on, where it is on this machine; said."""
    from ..convert.conversions import trained_on
    from ..io.safetensors import read_header
    from ..lora.formats.metadata import read_facts
    from ..lora.formats.read import find_file

    if not loras:
        return None
    file = find_file(loras[0])
    facts = read_facts(read_header(file).metadata, file)
    mark, base = facts.get("base_fingerprint"), facts.get("base") or ""
    found = trained_on(mark, base, file) if mark else None
    if found is None and base:
        raise ConfigError(
            f"{loras[0]} was trained on {show(base)}, which is not here; name a model by --model"
        )
    if found is not None:
        click.echo(f"with the model that {loras[0]} was trained on, {found}", err=True)
    return None if found is None else str(found)


def _lyrics(file: str, given: Mapping[str, Any]) -> str:
    """The text of --lyrics-file."""
    from ..io.text_files import read_text

    if given["lyrics"] is not None:
        raise click.UsageError("--lyrics and --lyrics-file exclude each other")
    return read_text(at_home(file))[0]


def _save(
    songs: Iterable[tuple[Path, np.ndarray, dict[str, Any], dict[str, Any]]],
    own_rate: int,
    plot: bool,
    opening: bool,
) -> None:
    """Write songs with their records and what is told beside, say so, and open the first. DataError when
    something is lost.
    """
    from ..sampling import record

    lost: list[str] = []
    written: list[Path] = []
    for path, song, made, heard in songs:
        saved, problems = record.save_song(
            path, song, made, sample_rate=made["sample_rate"], facts=heard, own_rate=own_rate
        )
        lost += problems
        if saved is None:
            continue
        written.append(saved)
        about = f"{len(song) / own_rate:.1f} s, seed {made['request']['seeds'][0]}"
        picture = _plot(saved, song, own_rate, made["request"], about, lost) if plot else ""
        click.echo(f"{saved} ({about}{picture})")
    if written:
        shown = shlex.quote(str(written[0]))
        click.echo(f"again, or changed: acestep-mlx generate --from-json {shown} --output FILE", err=True)
        if opening and (problem := open_file(written[0])) is not None:
            click.echo(f"note: {problem}", err=True)
    if lost:
        raise DataError(lost[-1], details=lost[:-1])


def _load(pipe: ACEStepPipeline, loras: list[tuple[str, float]]) -> None:
    """The pipeline's LoRAs; what of them cannot be used is said."""
    for path, scale in loras:
        pipe.load_lora(path, scale)
    for lora in pipe.loras:
        for line in lora.weights.left_out:
            click.echo(f"note: {lora.path}: {line}", err=True)


def _plot(
    saved: Path, song: np.ndarray, rate: int, request: Mapping[str, Any], about: str, lost: list[str]
) -> str:
    """Write the picture and return what to say of it; what could not be written goes to `lost`."""
    from ..report.song_picture import song_png
    from ..sampling import record

    try:
        title = " ".join(request["prompt"].split()) or request["task"]
        record.write_beside(saved, ".png", song_png(song, rate, title, f"{saved.name}: {about}"))
    except DataError as error:
        lost.append(str(error))
        return ""
    return f", picture {record.beside(saved, '.png')}"


def _request(
    earlier: dict[str, Any],
    given: dict[str, Any],
    batch: int | None,
    where: str,
    folder: ModelFolder | None = None,
) -> Request:
    """The earlier song's settings with those that are given, as the model takes them."""
    from ..families.requests import request_for
    from ..pipeline import random_seed

    values = {**earlier, **{name: value for name, value in given.items() if value is not None}}
    if given["seeds"] is not None and given["retake_seeds"] is None:
        values.pop("retake_seeds", None)
    values.setdefault("seeds", (random_seed(),))
    if folder is None:
        request = Request.from_dict(values, where)
    else:
        request = request_for(folder.family, folder, values, where)
    if request.source is not None:  # so that the song's record says it from everywhere
        request = replace(request, source=os.path.realpath(as_stored(at_home(request.source))))
    if batch is None:
        return request
    if not 1 <= batch <= 64:
        raise ConfigError(f"--batch must be between 1 and 64, got {batch}")
    if len(request.seeds) > 1:
        raise click.UsageError("--batch and several seeds exclude each other")
    return replace(request, seeds=tuple(request.seeds[0] + i for i in range(batch)), retake_seeds=())


def _loras(
    paths: tuple[str, ...], scales: tuple[float, ...], earlier: dict[str, Any]
) -> list[tuple[str, float]]:
    """Paths with their scales; those of the earlier song when none is given."""
    before, typed = earlier.get("loras") or [], bool(paths)
    if scales and not paths and not before:
        raise click.UsageError("--lora-scale is the strength of a LoRA; name the LoRA with --lora")
    if not paths:
        paths = tuple(entry["path"] for entry in before)
        scales = scales or tuple(entry["scale"] for entry in before)
    if len(scales) not in (0, 1, len(paths)):
        which = "--lora" if typed else "LoRA in the song's record"
        raise click.UsageError(
            f"{len(scales)} --lora-scale for {len(paths)} {which}: give none, one, or one each"
        )
    each = scales if len(scales) == len(paths) else (scales or (1.0,)) * len(paths)
    return list(zip(paths, each, strict=True))


def _facts(pipe: ACEStepPipeline) -> dict[str, Any]:
    """The model and the LoRAs, by path and by content."""
    from .. import __version__
    from ..lora.formats.read import find_file
    from ..sampling.record import RECORD_VERSION

    folder = pipe.folder
    return {
        "format_version": RECORD_VERSION,
        "version": __version__,
        "model": {
            "path": str(folder.path.resolve()),
            "source": folder.config.get("source"),
            "quantization": folder.quantization,
            "fingerprints": folder.fingerprints,
        },
        "loras": [
            {
                "path": str(at_home(lora.path).resolve()),
                "scale": lora.scale,
                "sha256": hash_file(find_file(lora.path)),
            }
            for lora in pipe.loras
        ],
    }


def _remark(pipe: ACEStepPipeline, request: Request, typed: Sequence[str], length: float) -> None:
    """Say which of the flags change nothing, what of the texts was changed, and what the model will not hear,
    before the work begins. length: seconds of the source; infinite without one.
    """
    if (request.repaint_end or 0) > length + pipe.family.latents.seconds(1):
        click.echo(f"note: --repaint-end is the song's end, after {length:.2f} s", err=True)
    own = pipe.family.song_settings(pipe.folder).reasons(typed, request.task)
    for name, why in {**request.idle(typed), **own}.items():
        click.echo(f"note: {flag(name)} changes nothing: {why}", err=True)
    for line in [*pipe.family.remarks(request, pipe), *_words(request, length, pipe.family.latents)]:
        click.echo(line, err=True)


def _words(request: Request, length: float, latents: LatentSpec) -> Iterator[str]:
    """What is wrong with the lyrics whatever the model. length: as for `_remark`."""
    from ..io.filenames import is_file
    from ..text.singable import too_many

    seconds = min(length + request.extend_left + request.extend_right, latents.max_seconds)
    seconds = request.duration if math.isinf(length) else seconds
    for name in ("lyrics", "edit_lyrics"):
        text, called = (getattr(request, name) or "").strip(), name.replace("_", " ")
        if text and "\n" not in text and is_file(at_home(text)):
            yield f"{called}: {text} is a file, and its name would be sung; --lyrics-file reads it"
        if (problem := too_many(text, seconds, latents.max_seconds)) is not None:
            yield f"{called}: {problem}"


def _compare(earlier: dict[str, Any], facts: dict[str, Any]) -> None:
    """Say it when the song cannot come out the same because model or LoRA files have changed."""
    if not earlier:
        return
    if earlier.get("model", {}).get("fingerprints") != facts["model"]["fingerprints"]:
        click.echo("note: the model is another one than that of the song to repeat", err=True)
    was = {one["path"]: one.get("sha256") for one in earlier.get("loras") or []}
    changed = [one["path"] for one in facts["loras"] if was.get(one["path"], one["sha256"]) != one["sha256"]]
    for path in changed:
        click.echo(f"note: {path} has changed since the song to repeat was made", err=True)
    before = [(was[one["path"]], one.get("scale")) for one in earlier.get("loras") or []]
    if not changed and before != [(one["sha256"], one["scale"]) for one in facts["loras"]]:
        click.echo("note: the LoRAs or their scales are others than those of the song to repeat", err=True)
