"""`acestep-mlx demo`: every command of the product on a miniature model, as a user would type them."""

from __future__ import annotations

import shlex
import time
from pathlib import Path

import click

from ..errors import AceStepError, CheckpointError
from ..formatting import count
from ..io.schema import parse_json, read_file
from ..registry import REGISTRY, answers
from .help_text import examples
from .paths import NamedPath


def _type(*arguments: str) -> None:
    """Show a command and run it in this process."""
    from . import cli

    click.secho(f"\n$ acestep-mlx {shlex.join(arguments)}", bold=True)
    result = cli.main(list(arguments), prog_name="acestep-mlx", standalone_mode=False)
    if isinstance(result, int) and result:
        raise AceStepError(f"the command above ended with exit code {result}")


def _verify(checkpoint: Path, exported: Path, model: Path) -> tuple[int, float]:
    """The exported file, read back, must change the model as the trained checkpoint does.

    Returns the number of modules and the largest |ΔW| difference.
    """
    import mlx.core as mx

    from ..families.model_folder import ModelFolder
    from ..lora.formats.read import read_lora

    trained, again = read_lora(checkpoint), read_lora(exported)
    transformer = ModelFolder.open(model).load("transformer")
    again.check_against(transformer)
    if trained.modules.keys() != again.modules.keys():
        raise CheckpointError(f"{exported} does not hold the modules of {checkpoint}")
    worst, largest = 0.0, 0.0
    for name, module in trained.modules.items():
        delta = module.delta()
        worst = max(worst, float(mx.abs(delta - again.modules[name].delta()).max()))
        largest = max(largest, float(mx.abs(delta).max()))
    if largest == 0:
        raise CheckpointError(f"{checkpoint} is untrained: its LoRA changes nothing")
    if worst > 1e-6:
        raise CheckpointError(f"{exported} differs from the trained LoRA by {worst:.2e}")
    return len(again.modules), worst


def _demo_of(config: Path) -> str | None:
    """The flavour of the demo that wrote this file; None where there is none yet."""
    try:
        content = parse_json(read_file(config))
    except (OSError, ValueError):
        return None
    return content.get("model_flavour") if isinstance(content, dict) else None


@click.command("demo", epilog=examples("acestep-mlx demo", "acestep-mlx demo try-v15 --family v15"))
@click.argument("directory", type=NamedPath(), default=Path("acestep-demo"))
@click.option(
    "--family",
    "name",
    default=next(iter(REGISTRY)),
    show_default=True,
    type=click.Choice(list(REGISTRY)),
    help=f"Of the model: {', '.join(f'{name} is {answers(name).title}' for name in REGISTRY)}.",
)
def command(directory: Path, name: str) -> None:
    """Run the whole job on a miniature model in DIRECTORY (default: acestep-demo).

    Makes a checkpoint with random weights and three short songs, then converts, trains, resumes, exports,
    checks and generates. The result is noise; the way there is real.
    """
    from ..families import family as family_of
    from ..testing.demo_songs import write_configs, write_songs

    if directory.exists() and not directory.is_dir():
        raise AceStepError(f"{directory} is a file; name a folder")
    if directory.exists() and any(directory.iterdir()) and not (directory / "config.json").is_file():
        raise AceStepError(f"{directory} is not empty and is not an earlier demo; name another folder")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "config.json").touch()
    except OSError as error:
        raise AceStepError(f"{directory} cannot be written: {error.strerror}; name another folder") from None
    family, started = family_of(name), time.perf_counter()
    flavour = next(iter(family.variants))
    if (other := _demo_of(directory / "config.json")) not in (None, flavour):
        raise AceStepError(f"{directory} holds a demo with model_flavour={other}; name another folder")
    checkpoint, songs, model = directory / "checkpoint", directory / "songs", directory / "model"
    if not checkpoint.exists():
        family.write_miniature(checkpoint)
    paths = write_songs(songs, metadata=bool(family.metadata))
    config = write_configs(directory, model=model, songs=songs, flavour=flavour)
    click.echo(f"a miniature checkpoint in the PyTorch layout: {checkpoint}")
    click.echo(f"{len(paths)} made-up songs with captions and lyrics: {songs}")

    if not model.exists():
        _type("convert", "--hf-path", str(checkpoint), "--mlx-path", str(model), "--dtype", "float32")
    _type("train", str(config), "--max_train_steps=10")
    _type("train", str(config))  # picks up the checkpoint of step 10
    trained = directory / "output" / "checkpoint-20"
    exported = directory / ("demo_lora" if family.lora.peft_folder else "demo_lora.safetensors")
    _type("export", str(trained), "--format", "peft", "-o", str(exported), "--force")
    modules, difference = _verify(trained, exported, model)
    request = ["generate", "--model", str(model), "--prompt", "slow, warm, ballad"]
    request += ["--lyrics", "[verse]\nHarbour lights are turning low", "--duration", "5"]
    request += ["--steps", "8", "--seed", "7", "--force"]
    wav = directory / "with_lora.wav"
    _type(*request, "--output", str(directory / "without_lora.wav"))
    _type(*request, "--lora", str(exported), "--output", str(wav))

    import soundfile as sf

    heard = sf.info(str(wav))
    click.secho(f"\nDone in {time.perf_counter() - started:.0f} s.", bold=True)
    same = f"ΔW within {difference:.1e} of the trained one" if difference else "ΔW equal to the trained one"
    checked = f"{count(modules, 'module')}, {same}"
    click.echo(f"  verified LoRA: {exported} ({checked})")
    click.echo(
        f"  sound:         {wav} ({heard.duration:.1f} s, {heard.samplerate} Hz, random weights: noise)"
    )
    click.echo(f"  to listen:     {directory / 'output' / 'report.html'} (clips without and with the LoRA)")
    click.echo("  next:          acestep-mlx convert, then train your own songs: see README.md")
