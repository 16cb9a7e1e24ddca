"""The command line: one file per command, imported only when that command runs."""

from __future__ import annotations

import importlib
import os
import re
import sys
from pathlib import Path

import click

from .. import __version__
from ..errors import AceStepError, ConfigError, not_utf8, refusal
from ..formatting import without_secrets
from ..io.backend import ADVICE, check_machine, fault_of
from . import streams

COMMANDS = {
    "demo": "The whole job on made-up songs and a miniature model, in minutes, without a download.",
    "prepare": "Draft tempo, key, tags and captions for songs that lack them.",
    "new": "Make a run for a folder of songs: what fits this machine, and why.",
    "convert": "Turn the PyTorch checkpoint into an MLX folder, quantised if you like.",
    "train": "Train a LoRA from a config.json.",
    "generate": "Make music from a prompt and lyrics, with or without LoRAs.",
    "export": "Write a LoRA for ComfyUI, diffusers, SimpleTuner or the original pipeline.",
    "fuse": "Merge LoRAs into a model and write a new MLX folder.",
    "info": "Say what a checkpoint, LoRA, data set, lyrics file or config is.",
    "cache": "Fill the caches of a config without training; list and remove what takes room.",
    "doctor": "Does this machine compute rightly, how fast is it, and what fits?",
}


class LazyGroup(click.Group):
    """Commands are listed from a table; `cli/NAME.py` (its object `command`) is imported when it is run."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command = importlib.import_module(f"{__name__}.{cmd_name}").command
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="acestep-mlx")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def cli(debug: bool) -> None:
    """Train LoRAs for the ACE-Step music models, v1 and 1.5, on a Mac, and hear them."""
    try:
        Path.cwd()
    except OSError:
        raise ConfigError("the working directory is not there any more; cd to one that is") from None
    _mend_temporary_folder()


def _mend_temporary_folder() -> None:
    """MLX compiles in the folder that these variables name, and ends in C++ where it is not there."""
    for name in ("TMPDIR", "TMP", "TEMP", "TEMPDIR"):
        given = os.environ.get(name)
        if given is not None and not os.access(given, os.W_OK | os.X_OK):
            import tempfile

            os.environ[name] = tempfile.gettempdir()
            click.echo(f"{name}={given} is no folder to write in: {os.environ[name]} is used", err=True)


def _show(error: click.ClickException) -> None:
    """What click has found wrong with the arguments, as all our errors look."""
    if type(error).__name__ == "NoArgsIsHelpError":  # the help itself, from click 8.2 on
        error.show()
        return
    context = getattr(error, "ctx", None)
    hint = f" (see {context.command_path} --help)" if context is not None else ""
    message = re.sub(r"\S{300,}", lambda long: f"{long[0][:60]}…", error.format_message())
    click.echo(f"error: {message}{hint}", err=True)


def main(argv: list[str] | None = None) -> None:
    """Entry point. Exit codes: 0 done, 1 a problem the user can mend, 2 wrong usage, 130 interrupted."""
    streams.install()
    arguments = sys.argv[1:] if argv is None else argv
    debug = "--debug" in arguments  # also after the command's name
    arguments = [a for a in arguments if a != "--debug"]
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a name that is not UTF-8 is shown with its bytes
            stream.reconfigure(errors="backslashreplace")
    for argument in arguments:
        if any("\ud800" <= character <= "\udfff" for character in argument):
            shown = argument.encode(errors="surrogateescape").decode(errors="backslashreplace")
            what = not_utf8(argument, "; rename the file, or write it anew")
            click.echo(f"error: the argument {shown} {what}", err=True)
            sys.exit(2)
    try:
        if arguments and not {"-h", "--help", "--version"} & set(arguments):
            check_machine()
        result = cli.main(arguments, prog_name="acestep-mlx", standalone_mode=False)
        streams.deliver(sys.stdout)
    except AceStepError as error:
        for line in error.details:
            click.echo(line, err=True)
        if debug:
            raise
        click.echo(f"error: {without_secrets(str(error))}", err=True)
        sys.exit(1)
    except OSError as error:
        if debug:
            raise
        click.echo(f"error: {without_secrets(refusal(error))}", err=True)
        sys.exit(1)
    except (KeyboardInterrupt, click.Abort):  # before RuntimeError, which click's is one of
        click.echo("interrupted", err=True)
        sys.exit(130)
    except (RuntimeError, MemoryError) as error:
        kind = fault_of(error)
        if debug or kind is None:
            raise
        click.echo(f"error: {ADVICE[kind].format(error=str(error) or 'no more')}", err=True)
        sys.exit(1)
    except click.ClickException as error:
        _show(error)
        sys.exit(error.exit_code)
    sys.exit(result if isinstance(result, int) else 0)
