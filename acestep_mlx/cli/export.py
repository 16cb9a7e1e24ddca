"""`acestep-mlx export`: a LoRA for another program, verified."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..config.lora_formats import ALL_FORMATS, FORMATS, LOKR_FORMATS, LYCORIS
from ..errors import ConfigError
from ..formatting import count, size
from ..registry import REGISTRY, answers
from .help_text import examples
from .paths import NamedPath

if TYPE_CHECKING:
    from ..families.protocol import Family
    from ..lora.weights import LoRAWeights

FILE_NAME = "pytorch_lora_weights.safetensors"
LOKR_FILE = "lokr_weights.safetensors"


def _special() -> str:
    """How the formats differ for families that have a way of their own, for the help."""
    text = ""
    for one in map(answers, REGISTRY):
        folders = {"peft": " (a folder)"} if one.lora.peft_folder else {}
        kinds = [
            f"{name}{folders.get(name, '')} for {', '.join(who)}" for name, who in one.lora.programs.items()
        ]
        text += f" Of {one.title}: {'; '.join(kinds)}." if kinds else ""
    return text


@click.command(
    "export",
    epilog=examples(
        "acestep-mlx export output --format comfyui",
        "acestep-mlx export output/checkpoint-500 --format peft -o my-lora",
    ),
)
@click.argument("path", type=NamedPath())
@click.option(
    "--format",
    "kind",
    type=click.Choice(ALL_FORMATS),
    help="; ".join(f"{name}: for {one.programs}" for name, one in FORMATS.items())
    + "."
    + _special()
    + " A LoKr is written for ComfyUI, or as "
    + f"{LYCORIS}: for {LOKR_FORMATS[LYCORIS]}.  [default: peft; of a LoKr {LYCORIS}]",
)
@click.option(
    "--dtype",
    default="float32",
    show_default=True,
    type=click.Choice(["float32", "float16", "bfloat16"]),
    help="Precision of the file; the smaller ones halve it.",
)
@click.option(
    "-o",
    "--output",
    type=NamedPath(),
    metavar="FILE",
    help=f"File to write, or a folder for {FILE_NAME} or peft's files (default: named after PATH, here).",
)
@click.option(
    "--model",
    type=NamedPath(),
    metavar="MLX_FOLDER",
    help="The base model: checks the LoRA against it; ComfyUI files of a DoRA or lyrics embedder need it.",
)
@click.option(
    "--with-lyrics-embedder", is_flag=True, help="Put the trained lyrics embedder into the file too."
)
@click.option(
    "--ema", is_flag=True, help="The averaged weights of a run with use_ema, which lie beside PATH."
)
@click.option("--force", is_flag=True, help="Overwrite FILE.")
def command(
    path: Path,
    kind: str | None,
    dtype: str,
    output: Path | None,
    model: Path | None,
    with_lyrics_embedder: bool,
    ema: bool,
    force: bool,
) -> None:
    """Write the LoRA at PATH (checkpoint folder or LoRA file of any format) as one file for another program.

    The trained scale is multiplied in, so that strength 1.0 is right everywhere. The file is read back and
    compared before this says done.
    """
    from ..families.model_folder import ModelFolder
    from ..lora.formats.read import find_file, read_lora
    from ..lora.formats.recognise import check_model
    from ..lora.formats.write import DTYPES, prepare, verify, write_lora, write_peft_folder

    given = path
    path = averaged(given) if ema else given
    source = find_file(path)
    kind = kind or _usual(source)
    folder = kind == "peft" and _family(source).lora.peft_folder
    named = Path(f"{_name(given)}-ema") if ema else source if path.is_file() else path
    target = _target(named, kind, output, folder)
    if target.exists() and target.samefile(source):
        raise ConfigError(f"{target} is the LoRA itself; choose another file with -o")
    _check_not_part(target)
    if folder:
        _check_folder(target.parent, force)
    elif target.exists() and not force:
        raise ConfigError(f"{target} exists already; overwrite it with --force or choose another with -o")
    weights = read_lora(path)
    base = ModelFolder.open(model).load("transformer") if model else None
    if base is not None:
        weights.check_against(base)
    else:
        check_model(weights.shapes, weights.family, weights.source)
    written = prepare(weights, kind, base, with_full=with_lyrics_embedder)
    if folder:
        write_peft_folder(target.parent, weights, DTYPES[dtype], base=base)
    else:
        write_lora(target, weights, kind, DTYPES[dtype], base=base, with_full=with_lyrics_embedder)
    difference = verify(target, written, DTYPES[dtype])
    click.echo(
        f"{target.parent if folder else target}: {weights.kind} of {count(len(weights.modules), 'module')}, "
        f"{f'rank {weights.rank}, ' if not weights.is_lokr else ''}{dtype}, "
        f"{size(target.stat().st_size)}, for {programs(weights, kind, with_lyrics_embedder)}"
    )
    if kind == "peft" and not folder and target.name != FILE_NAME:
        click.echo(f"note: the original pipeline wants a folder with this file in it as {FILE_NAME}")
    for line in notes(weights, kind, with_lyrics_embedder):
        click.echo(f"note: {line}")
    same = f"differs by {difference:.1e} of itself at most" if difference else "is the same, bit for bit"
    click.echo(f"read back and compared: the update {same}")


def averaged(path: Path) -> Path:
    """The folder of the averaged weights beside a LoRA, or in a checkpoint or output folder of training.

    ConfigError where there are none.
    """
    from ..training.checkpoint import EMA

    folder = (path.parent if path.is_file() else path) / EMA
    if not folder.is_dir():
        raise ConfigError(f"{folder}: no averaged weights are there; they are kept by runs with use_ema=true")
    return folder


def programs(weights: LoRAWeights, kind: str, with_full: bool) -> str:
    """The programs that load all of this LoRA from a file of this format."""
    names = weights.family.lora
    if weights.is_lokr:
        return LOKR_FORMATS[kind]
    if kind == "peft":
        whole = with_full and bool(weights.full or weights.diffs)
        known = names.programs.get(kind, ("the original pipeline", "diffusers"))
        marks = {who: names.marks.get(who, ".*") for who in known}
        own = [who for who, mark in marks.items() if any(re.fullmatch(mark, p) for p in weights.modules)]
        return ", ".join(own if weights.is_dora or whole else [*own, "ComfyUI"])
    if kind == "simpletuner" and _convolutions(weights):
        return "SimpleTuner's resume (not --init_lora)"
    return ", ".join(names.programs.get(kind, [FORMATS[kind].programs]))


def _convolutions(weights: LoRAWeights) -> list[str]:
    return [path for path in weights.modules if weights.family.lora.trailing_dims(path)]


def _simpletuner_settings(weights: LoRAWeights) -> str:
    """With these its trainer makes the adapter that the file is copied into, and multiplies by nothing."""
    names = weights.family.lora
    usual = [f".{target}" for target in names.default_targets]
    targets = {next((u[1:] for u in usual if f".{path}".endswith(u)), path) for path in weights.modules}
    targets = {names.numberless(target).rpartition("#.")[2] for target in targets}
    settings = [f"lora_rank {weights.rank}", f"lora_alpha {weights.rank} or none"]
    if weights.is_dora:
        settings.append("use_dora true")
    if not targets <= {*names.default_targets}:
        settings.append(f"peft_lora_target_modules {' '.join(sorted(targets))}")
    return ", ".join(settings)


def notes(weights: LoRAWeights, kind: str, with_full: bool) -> list[str]:
    """What the programs do with such a file that a user may not expect, and what the file lacks."""
    modules = weights.family.lora.full
    lines = []
    if kind == "peft" and weights.is_dora:
        lines.append("ComfyUI does not load a DoRA from this file; --format comfyui is for it")
    if kind == "simpletuner" and (lost := _convolutions(weights)):
        lines.append(
            f"SimpleTuner's --init_lora knows linear layers only and would drop {len(lost)} of these "
            "modules, which are convolutions there"
        )
    elif kind == "simpletuner":
        lines.append(f"SimpleTuner takes it in where its own settings are {_simpletuner_settings(weights)}")
    if kind == LYCORIS:
        lines.append(f"the official app wants a folder with this file in it as {LOKR_FILE}")
    if kind != "mlx" and weights.is_dora:
        lines.append("a DoRA is the same in all programs at strength 1.0 only")
    trained = {**(weights.full or {}), **weights.diffs}
    if trained and not with_full:
        lines.append(f"the trained {modules.title} is not in this file; --with-lyrics-embedder adds it")
    elif trained and kind == "comfyui" and (unloaded := modules.not_loaded(kind, trained)):
        which = ", ".join(modules.unloadable[kind])
        lines.append(f"ComfyUI has no way to load {len(unloaded)} of the {modules.title}'s tensors ({which})")
    elif trained and kind == "peft":
        lines.append(
            f"ComfyUI does not load a {modules.title} from this file; the original pipeline puts it in whole "
            "at any strength, and keeps it when the LoRA is unloaded"
        )
    if not weights.is_trained:
        lines.append("this LoRA is untrained: it changes nothing")
    return [*lines, *weights.notes]


def _usual(file: Path) -> str:
    """The format that is taken where none is named."""
    from ..io.safetensors import read_header
    from ..lora.formats.recognise import LOKR_KIND, recognise

    adapter = recognise(read_header(file).tensors)
    return LYCORIS if adapter is not None and adapter.kind == LOKR_KIND else "peft"


def _family(file: Path) -> Family:
    """Of the model that the LoRA in `file` is for; the default one where it is for none."""
    from ..families import default
    from ..io.safetensors import read_header
    from ..lora.formats.recognise import recognise

    adapter = recognise(read_header(file).tensors)
    return adapter.family if adapter is not None and adapter.problem is None else default()


def _check_not_part(target: Path) -> None:
    """ConfigError where the file is one of several that only work together: --force is for LoRAs."""
    from ..training.checkpoint import STATE

    if not target.exists():
        return
    if (target.parent / STATE).exists():
        raise ConfigError(f"{target} is part of a training checkpoint; choose another file with -o")
    if all((target.parent / name).exists() for name in ("config.json", "transformer.safetensors")):
        raise ConfigError(f"{target} is part of a model folder; choose another file with -o")


def _check_folder(folder: Path, force: bool) -> None:
    """ConfigError where peft's folder cannot be, or would take the place of anything but another one."""
    from ..lora.formats.read import PEFT_FILE
    from ..lora.formats.scales import ADAPTER_CONFIG

    if folder.suffix == ".safetensors" or (folder.exists() and not folder.is_dir()):
        raise ConfigError(f"{folder} cannot be a folder, which this format is; choose another with -o")
    inside = sorted(path.name for path in folder.iterdir()) if folder.exists() else []
    if others := [name for name in inside if name not in (PEFT_FILE, ADAPTER_CONFIG)]:
        raise ConfigError(f"{folder} holds other files ({others[0]}); choose another folder with -o")
    if inside and not force:
        raise ConfigError(f"{folder} exists already; overwrite it with --force or choose another with -o")


def _target(source: Path, kind: str, output: Path | None, folder: bool) -> Path:
    """The file to write: as told, in the folder told, or named after the source."""
    if folder:
        from ..lora.formats.read import PEFT_FILE

        return (output or Path(f"{_name(source)}-peft")) / PEFT_FILE
    if output is not None and kind == LYCORIS and output.is_dir():
        return output / LOKR_FILE
    if output is not None:
        return output / FILE_NAME if output.is_dir() or not output.suffix else output
    name = _name(source)
    return Path(f"{name}-peft", FILE_NAME) if kind == "peft" else Path(f"{name}-{kind}.safetensors")


def _name(source: Path) -> str:
    """What files made of this one begin with: its folder's name where its own says nothing."""
    from ..lora.formats.read import FILE_NAMES

    source = source.absolute()
    if source.name in FILE_NAMES:
        return source.parent.name
    return source.stem if source.is_file() else source.name
