"""`acestep-mlx info`: what is this file or folder?"""

from __future__ import annotations

import itertools
import stat
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..errors import AceStepError, cause
from ..formatting import count
from ..io.filenames import at_home
from ..io.schema import KINDS, parse_json, read_file
from .help_text import examples
from .paths import NamedPath

if TYPE_CHECKING:
    from ..families.model_folder import ModelFolder

LYRICS_SUFFIXES = (".lyrics", ".lrc")
LYRICS_ENDINGS = ("_lyrics.txt", ".lyrics.txt")
MOST_ENTRIES = 20_000  # files and folders in a folder that are looked at


@click.command(
    "info",
    epilog=examples(
        "acestep-mlx info my-songs",
        "acestep-mlx info output/pytorch_lora_weights.safetensors --model ace-step",
        "acestep-mlx info example=my-songs",
    ),
)
@click.argument("path", type=NamedPath(str))
@click.option(
    "--model", type=NamedPath(), help="MLX folder: does the LoRA fit it; how it sees songs and lyrics."
)
@click.option("--lyric-vocab", type=NamedPath(), help="Lyric vocabulary file, for lyrics.")
@click.option("--lyrics-language", help="Language of the lyrics (default: found line by line).")
def command(path: str, model: Path | None, lyric_vocab: Path | None, lyrics_language: str | None) -> None:
    """Say what PATH is: a PyTorch checkpoint, MLX folder, LoRA, training checkpoint or output, data set,
    configuration (also env=NAME, example=NAME), metrics, lyrics or sound file. Nothing is changed.
    """
    from ..families.model_folder import ModelFolder

    folder = ModelFolder.open(model) if model is not None else None
    for line in _describe(path, folder, lyric_vocab, lyrics_language):
        click.echo(line)


def _describe(
    text: str, model: ModelFolder | None, lyric_vocab: Path | None, language: str | None
) -> list[str]:
    from . import describe_training

    if text.startswith(("env=", "example=")):
        return describe_training.configuration(text)
    path = at_home(text)
    if path.is_dir():
        return _folder(path, model)
    if not path.exists():
        hub = text.count("/") == 1 and not text.startswith((".", "/", "~"))
        hint = f"; a hub repository is fetched by `acestep-mlx convert --hf-path {text}`" if hub else ""
        raise AceStepError(f"{text}: no such file or folder{hint}")
    kind = stat.S_IFMT(path.stat().st_mode)
    if kind != stat.S_IFREG:
        raise AceStepError(f"{text}: it is {KINDS.get(kind, 'something else')}, not a file or folder")
    return _file(path, model, lyric_vocab, language)


def _folder(path: Path, model: ModelFolder | None) -> list[str]:
    from ..families import layouts
    from ..lora.formats.read import FILE_NAMES
    from ..training.checkpoint import checkpoints
    from . import describe, describe_training

    if path.resolve().parent == path.resolve():
        raise AceStepError(f"{path}: the whole disk; name a model, LoRA, checkpoint or folder of songs on it")
    names = {entry.name for entry in path.iterdir()}
    if "config.json" in names and "transformer.safetensors" in names:
        return describe.mlx_folder(path)
    components = {folder for _, layout in layouts() for folder in layout.folders}
    if names & components or any(not one.missing(path) for _, one in layouts() if not one.one_file):
        return describe.pytorch_checkpoint(path)
    if path.name in components and "config.json" in names:
        return [f"{path}: one component of a PyTorch checkpoint; give its parent folder"]
    if "training_state.json" in names:
        return describe_training.training_checkpoint(path, model)
    if checkpoints(path) or "metrics.jsonl" in names:
        return describe_training.training_output(path)
    if names & set(FILE_NAMES):
        return describe.lora(path, model)
    inside = list(itertools.islice(path.rglob("*"), MOST_ENTRIES + 1))
    if len(inside) > MOST_ENTRIES:
        return [
            f"{path}: a folder with at least {count(sum(map(_is_song, inside)), 'song')}; only the first "
            f"{MOST_ENTRIES} files and folders in it were looked at; name a folder in it to know more"
        ]
    if names & {"state.json", "dataset_info.json", "dataset_dict.json"} or any(
        one.suffix == ".parquet" for one in inside
    ):
        return describe.data_set(path, "huggingface", model)
    if "config.json" in names and "multidatabackend.json" in names:
        return describe_training.configuration(path / "config.json")
    if any(map(_is_song, inside)):
        return describe.data_set(path, "local", model)
    if "config.json" in names:
        return describe_training.configuration(path / "config.json")
    raise AceStepError(f"{path}: not a model, LoRA, checkpoint, configuration or folder of songs")


def _is_song(path: Path) -> bool:
    from ..io.audio import SUFFIXES

    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


def _file(path: Path, model: ModelFolder | None, lyric_vocab: Path | None, language: str | None) -> list[str]:
    from ..io.audio import SUFFIXES, UNREAD
    from ..io.safetensors import PICKLES, refuse_pickle
    from . import describe, describe_training

    suffix = path.suffix.lower()
    if suffix in PICKLES:
        refuse_pickle(path)
    if suffix == ".safetensors":
        return _weights(path, model)
    if suffix in LYRICS_SUFFIXES or path.name.endswith(LYRICS_ENDINGS):
        return describe.lyrics(path, model, lyric_vocab, language)
    if suffix == ".json":
        return _json(path)
    if suffix == ".jsonl":
        return describe_training.metrics(path)
    if suffix in SUFFIXES:
        return describe.audio_file(path, model)
    if suffix in UNREAD:
        raise AceStepError(f"{path}: no song for acestep-mlx: it {UNREAD[suffix]}")
    if suffix == ".txt":
        return describe.lyrics(path, model, lyric_vocab, language)
    raise AceStepError(f"{path}: not a file that acestep-mlx knows")


def _weights(path: Path, model: ModelFolder | None) -> list[str]:
    from ..families import layouts
    from ..io.safetensors import read_header
    from ..lora.formats.recognise import recognise
    from . import describe

    names = read_header(path).tensors
    if recognise(names) is not None:
        return describe.lora(path, model)
    if any(layout.marked(names) for _, layout in layouts()):
        return describe.pytorch_checkpoint(path)
    return describe.weights_file(path)


def _json(path: Path) -> list[str]:
    from ..sampling.record import KEY
    from . import describe, describe_training

    try:
        content = parse_json(read_file(path))
    except OSError as error:
        raise AceStepError(f"{path}: {cause(error)}") from None
    except ValueError as error:
        raise AceStepError(f"{path}: not JSON: {error}") from None
    if isinstance(content, list):
        from ..config.read_datasets import read_datasets
        from ..config.read_run import load_config

        found = read_datasets(load_config({"data_backend_config": str(path.resolve())}))
        sets = [f"  {one.id}: {one.type}, {one.place}" for one in found.audio]
        return [f"{path}: data sets for training", *sets]
    if isinstance(content, dict) and content.get("format") == "acestep-mlx":
        return describe.mlx_folder(path.parent)
    if isinstance(content, dict) and isinstance(content.get("facts"), dict) and "version" in content:
        songs = count(len(content["facts"]), "song")
        return [f"{path}: what a cache of acestep-mlx knows of {songs}; it is made anew when deleted"]
    if isinstance(content, dict) and KEY in content:
        return [f"{path}: how a song was made", *describe.song_record(path)]
    return describe_training.configuration(path)
